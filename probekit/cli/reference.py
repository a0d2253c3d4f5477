"""The page docs/reference/cli.md, made from the commands themselves: `python -m probekit.cli.reference`."""

from pathlib import Path

from probekit.cli.main import VERBS, app, whole_help

HEAD = """# The command line

<!-- made by `python -m probekit.cli.reference`; edit the docstrings in probekit/cli instead -->

Exit codes: 0 done; 2 the input cannot be used (one sentence says what was given, what was expected and what to do);
1 a fault of probekit's own; 130 interrupted, with what was finished saved. `--debug` shows the traceback. Under
torchrun rank 0 alone prints.

"""


def reference() -> str:
    """Every verb with its arguments, flags and defaults, as Markdown."""
    for verb in VERBS:
        whole_help(verb)
    page = app.generate_docs(output_format="markdown")
    # the program's own title gives way to the page's, and the contents to the page's margin
    verbs = page[page.index("## probekit ") :]
    lines = (line.rstrip() for line in verbs.splitlines())
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path("docs/reference/cli.md").write_text(reference())
