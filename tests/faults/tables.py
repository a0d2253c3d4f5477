"""Write the tables of the campaigns' state files into docs/explanation/reliability.md.

python tests/faults/tables.py [--fuzz build/faults-fuzz.json] [--kills build/faults-kills.jsonl]
"""

import argparse
import collections
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "reliability.md"


def fuzz_table(state: Path) -> str:
    """Inputs and failures of each reader."""
    readers = json.loads(state.read_text())
    rows = [(name, own["inputs"], sum(n for n, _ in own["failures"].values())) for name, own in readers.items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"| {name} | {inputs:,} | {failures} |" for name, inputs, failures in rows]
    return "\n".join(["| reader | inputs | failures |", "|---|---|---|", *lines])


def kill_table(state: Path) -> str:
    """How often each check was made of each verb, and how many of its parts went wrong."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    wrong: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    checks: dict[str, None] = {}
    for part in map(json.loads, state.read_text().splitlines()):
        if part["check"] in ("pairs", "reading"):  # of two verbs each: counted in the text
            continue
        checks[part["check"]] = None
        for verb in (part["verb"], "all"):
            counts[verb][part["check"]] += part["count"]
            wrong[verb][part["check"]] += bool(part["problems"])
    verbs = [*(verb for verb in counts if verb != "all"), "all"]
    lines = [f"| verb | {' | '.join(checks)} |", f"|{'---|' * (len(checks) + 1)}"]
    for verb in verbs:
        cells = [str(counts[verb][c]) + (f" ({wrong[verb][c]} wrong)" if wrong[verb][c] else "") for c in checks]
        lines.append(f"| {verb} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Replace what stands between the page's marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=Path, default=ROOT / "build" / "faults-fuzz.json")
    parser.add_argument("--kills", type=Path, default=ROOT / "build" / "faults-kills.jsonl")
    asked = parser.parse_args()
    page = PAGE.read_text()
    for mark, state, table in (("fuzz", asked.fuzz, fuzz_table), ("kills", asked.kills, kill_table)):
        if state.exists():
            new = f"<!-- {mark} -->\n{table(state)}\n<!-- end of {mark} -->"
            page = re.sub(f"<!-- {mark} -->.*?<!-- end of {mark} -->", lambda _, new=new: new, page, flags=re.DOTALL)
        else:
            print(f"{state} is not there: its table stays as it is")
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
