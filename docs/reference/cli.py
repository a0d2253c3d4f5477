"""The page cli.md beside this file, made from the commands themselves: `python docs/reference/cli.py`."""

import re
from pathlib import Path

from probekit.cli.main import VERBS, app, whole_help
from probekit.cli.register import COMMON, CONFIG, EVERY_VERB

HEAD = """# The command line

<!-- made by `python docs/reference/cli.py`; edit the docstrings of the functions instead -->

The answer is printed on stdout, the verdict last; progress, plans and remarks go to stderr. Exit codes: 0 done; 2 the
input cannot be used (one sentence says what was given, what was expected and what to do); 1 an error in probekit
itself; 130 interrupted, with finished work saved. Under torchrun only rank 0 prints. Lists take spaces or commas:
`--Cs 0.01 1` or `--Cs 0.01,1`. `probekit --install-completion` sets up completion for bash, zsh and fish.

Every command also accepts:

"""


def reference() -> str:
    """Every verb with its arguments, flags and defaults, as Markdown."""
    for verb in VERBS:
        whole_help(verb)
    page = app.generate_docs(output_format="markdown")
    # the program's own title gives way to the page's, and the contents to the page's margin
    verbs = page[page.index(f"## probekit {next(iter(VERBS))}") :]
    verbs = re.sub(rf"\*\*{EVERY_VERB.name}\*\*:\n\n(?:\*.*\n|    .*\n)+", "", verbs + "\n")
    spelled = {
        " ".join(f"`{name}`" for name in ([flag] if isinstance(flag, str) else flag)): help
        for flag, help in COMMON.values()
    }
    common = "".join(f"* {flags}: {help}\n" for flags, help in [*spelled.items(), ("`--config FILE`", CONFIG)])
    lines = (line.rstrip() for line in verbs.splitlines())
    return HEAD + common + "\n" + re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(reference())
