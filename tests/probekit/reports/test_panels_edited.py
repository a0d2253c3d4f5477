"""A results file edited by hand: whatever a value of a record is replaced by, it is refused or shown as text."""

import copy
import io
import json
import shutil
from contextlib import suppress

import pytest
from rich.console import Console

from probekit.reports.figures.terminal import print_panel
from probekit.reports.panels import build_panels, collect_records
from probekit.reports.tables import layer_table
from probekit.results.results import Results
from probekit.runtime.errors import UserError

TEXT = "a\nb\x1b[31m|$\\input{a}=cmd\u202e<script>"
VALUES = [None, True, 0, -1, 2.5, 1e400, float("nan"), 10**30, "", TEXT, "A" * 10_000, [], {}, [None], [0.1] * 12]


def places(value, at=()):
    """The keys and positions that lead to every value inside; of a list to the first and the last."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        if not isinstance(value, list) or key in (0, len(value) - 1):
            yield from places(one, (*at, key))


@pytest.fixture(scope="module")
def few(run_folder, tmp_path_factory):
    """The records of three layers, in a folder of their own."""
    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(run_folder / "probes", folder / "probes")
    lines = map(json.loads, (run_folder / "results.jsonl").read_text().splitlines())
    return folder, [r for r in lines if r["series"] == "igpt" and len(r["identity"]["layers"]) == 1][:3]


def show(folder):
    results, console = Results(folder), Console(file=io.StringIO(), width=80, emoji=False, markup=False)
    results.frame(), results.curves(), results._repr_html_()
    for panel in build_panels(collect_records(folder)):
        print_panel(panel, console)
        for form in ("csv", "md", "tex"):
            assert not {"\x1b", "\u202e"} & set(layer_table(panel).text(form))
    assert not {"\x1b", "\u202e"} & set(console.file.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:20])
def test_any_value_of_a_record_is_refused_or_shown(few, value):
    folder, records = few
    for at in places(records[1]):
        changed = copy.deepcopy(records[1])
        inner = changed
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value
        text = "".join(json.dumps(r) + "\n" for r in (records[0], changed, records[2]))
        (folder / "results.jsonl").write_text(text)
        with suppress(UserError):
            show(folder)


def test_a_metric_that_one_record_lacks_is_unknown(few):
    folder, records = few
    changed = copy.deepcopy(records)
    changed[1]["metrics"]["brier"] = None
    changed[0]["metrics"]["brier"] = changed[2]["metrics"]["brier"] = 0.5
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in changed))
    (curve,) = Results(folder).curves().values()
    assert str(curve.metrics["brier"]) == "[0.5 nan 0.5]"
