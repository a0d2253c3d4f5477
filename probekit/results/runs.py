"""Pre-training runs of one model: series named "NAME, run 1", "NAME, run 2", combined to one curve with a spread."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from probekit.results.record import Record
from probekit.runtime.errors import UserError

_RUN = re.compile(r"(.*\S), run (\d+)")


def run_name(model: str, number: int) -> str:
    """Name of the series of a model's run, numbered from 1."""
    return f"{model}, run {number}"


def model_name(series: str) -> str:
    """The model of a series: its name without the run."""
    found = _RUN.fullmatch(series)
    return found[1] if found else series


def model_names(records: Iterable[Record]) -> dict[str, str]:
    """Series -> the curve it belongs to: a model with several runs, or itself."""
    names = dict.fromkeys(record.series for record in records)
    models = [model_name(name) for name in names]
    return {name: model if models.count(model) > 1 else name for name, model in zip(names, models, strict=True)}


def join_runs(records: Sequence[Record], runs: Mapping[str, Sequence[str]]) -> list[Record]:
    """Rename the series of records so that they are runs of one model.

    `runs` maps the name of the model to the series that are its runs; to none: the series of that name, each of whose
    feature files is a run.
    """
    known = list(dict.fromkeys(record.series for record in records))
    new: dict[tuple[str, str], str] = {}
    for model, named in runs.items():
        for name in named or (model,):
            if name not in known:
                raise UserError(f"There is no series {name!r} to be a run of {model!r}; there are {', '.join(known)}.")
        # by series in the order given, then by feature file in the order of the records
        files = dict.fromkeys((r.series, r.identity.feature_id) for r in records if r.series in (named or (model,)))
        order = sorted(files, key=lambda file: list(named).index(file[0]) if named else 0)
        if len(order) < 2:
            raise UserError(f"{model!r} has only one run in these results; name two or more, as in --runs {model}=A,B.")
        new |= {file: run_name(model, number) for number, file in enumerate(order, start=1)}
    return [replace(r, series=new.get((r.series, r.identity.feature_id), r.series)) for r in records]


def read_runs(texts: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=SERIES,SERIES` or `NAME` texts of the command line as a mapping."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, series = text.partition("=")
        if not name or (equals and not series):
            raise UserError(f"--runs is {text!r}; expected NAME=SERIES,SERIES,... or a NAME shared by several runs.")
        if name in found:
            raise UserError(f"--runs names {name!r} twice; list all runs of a model together.")
        found[name] = [one.strip() for one in series.split(",") if one.strip()]
    return found
