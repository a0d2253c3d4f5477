"""Records: each line of results.jsonl describes one probe of a layer or of concatenated layers.

n_C penalties of the path, N test rows, K classes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from igpt_model.checked_json import Int, Real, Text, check_json, mismatch, parse_json, read_bytes
from igpt_model.hashing import hash_json
from probekit.runtime.errors import UserError

SCHEMA = 1
RESULTS_NAME = "results.jsonl"
MOST_BYTES = 8 << 30
"""Largest results file that is read: some millions of records."""
MOST_LAYERS = 10_000
TEST_NAME = r"\w[\w.+-]{0,199}"  # names of further test sets, which become part of file names

# types of fields, with the bounds that a line of results.jsonl is checked against
Name = Annotated[str, Text(1000)]
Hash = Annotated[str, Text(32)]
Share = Annotated[float, Real(0, 1)]
Positive = Annotated[float, Real(0)]
Tried = Annotated[float, Real(1e-300, 1e300)]  # a value of a grid, shown on a logarithmic axis
Count = Annotated[int, Int(0)]
Depth = Annotated[int, Int(0, MOST_LAYERS)]
Rows = Annotated[int, Int(1)]
_SHARE, _NUMBER, _NAME = Real(0, 1), (float, None), Text(1000)
_ENCODER = {
    "name?": (_NAME, None),
    "last_depth?": Int(0, MOST_LAYERS),
    "depths?": [Int(0, MOST_LAYERS)],
    "weights_hash?": (str, None),
    "checkpoint?": (Text(), None),
}
_DATASET = {
    "name?": _NAME,
    "classes?": (list, None),
    "decoding?": ({"exif?": (str, None), "value_range?": ([float], None)}, None),
}
_REFIT = {"converged": bool, "n_iter": Int(0), "grad_rel": (Real(0), None), "gap": _NUMBER, "kind?": _NAME}
_METRICS: dict[str, Any] = dict.fromkeys(("top1", "mean_per_class", "top1_low", "top1_high"), _SHARE)
_NEARLY = -1e-6  # a loss of 0 may be negative by rounding
_METRICS |= {"top5": (_SHARE, None), "log_loss": Real(_NEARLY), "n_test": Int(1)}
_METRICS |= {"ece?": (Real(_NEARLY, 1 - _NEARLY), None), "brier?": (Real(_NEARLY, 2 - _NEARLY), None)}
_NUMBERS = {str: _NUMBER}  # what else is measured: a function of METRICS gives one number, or none


@dataclass(frozen=True)
class Identity:
    """Everything that determines a record's numbers; its hash is the record's key.

    Attributes
    ----------
    feature_id : id of the feature file (data, encoder and their provenance, but not their paths)
    layers : names of the layers read, in the order of their columns
    protocol_hash : hash of the protocol with all defaults, including the grid of C
    split_hash : hash of the row ids of train, val and test
    subset_hash : hash of the training rows used and their weights
    seed : 0 is the stored split; other seeds redraw it
    dtype, backend, solver_version : what computed it
    method : "" for the protocol's own kind of probe, else the kind
    """

    feature_id: Hash
    layers: tuple[Name, ...]
    protocol_hash: Hash
    split_hash: Hash
    subset_hash: Hash
    seed: Count
    dtype: Name
    backend: Name
    solver_version: Name
    method: Name = ""

    @property
    def key(self) -> str:
        """32 hexadecimal digits."""
        return hash_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)} | {"layers": list(self.layers)}
        if not self.method:
            del named["method"]  # records from before there were methods keep their keys
        return named

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Identity":
        return cls(**{**value, "layers": tuple(value["layers"])})


@dataclass(frozen=True, repr=False)
class Record:
    """A finished probe. `to_dict()` is its line in results.jsonl; lists over C run along the protocol's grid.

    Attributes
    ----------
    identity : what was computed; `key` is its hash
    kind : "layer" (a point of the depth curve) or "concat" (the same kind of probe on several layers), else as `probe`
    probe : the kind of probe, a name of `probekit.probes.PROBES`
    reads, tunes : input of that kind ("layer", "layers" or "tokens") and the parameter of its grid ("C", "k" or "lr")
    series : which curve the record belongs to ("igpt", "pixels", ...)
    depth : index of the layer, None for several
    n_layers : number of layers of the feature file
    width : number of feature columns D
    Cs : the grid: penalties; learning rates of an SGD protocol, numbers of neighbours of "knn"
    l2s, val_accuracy, val_log_loss, n_iter, converged, grad_rel, gap : lists of n_C, from the choice of C;
        with cross-validation the worst over the folds (certificates) or pooled over the folds (accuracy, log-loss)
    selection : "val" or "cv5"
    chosen_index, chosen_C : the penalty chosen, without the test split
    at_grid_edge : the chosen C is the first or the last of the grid
    refit : certificate of the fit on train + val: converged, n_iter, grad_rel, gap, stop_reason, and
        in newer ones `kind`, the bound that the gap is (docs/explanation/solver.md)
    train_accuracy : of the refit, on the rows it was fitted on
    metrics : on the test split: top1, top5 (None up to 5 classes), mean_per_class, log_loss, n_test, top1_low,
        top1_high (Wilson, 95 %), ...
    tests : the same on further test sets, by name
    probe_file : coefficients and per-row test predictions, relative to the results file
    train_rows : requested size of the training subset, None for all rows
    per_class : rows of each class, if they were drawn by class (few-shot)
    rankme : effective rank of the layer's training features, None where it was not computed
    plan : a sentence on how the solver fitted the grid; empty for other probes
    candidates : how layers, bands, mixes or checks were chosen: number tried, and held-out score of each
    feature_file : relative to the results file where possible
    folder : folder of the results file; not stored
    test : test set of `metrics` and the per-row predictions; not stored, see `on`
    """

    identity: Identity
    kind: Name
    series: Name
    depth: Depth | None
    n_layers: Annotated[int, Int(1, MOST_LAYERS + 1)]
    width: Annotated[int, Int(1, 1 << 40)]
    encoder: Annotated[dict[str, Any], _ENCODER]
    dataset: Annotated[dict[str, Any], _DATASET]
    protocol: Annotated[dict[str, Any], {"name": _NAME, "tol?": _NUMBER, "solver?": (str, None)}]
    feature_file: Annotated[str, Text()]
    Cs: list[Tried]
    l2s: list[Positive]
    val_accuracy: list[Share]
    val_log_loss: list[float]
    n_iter: list[Count]
    converged: list[bool]
    grad_rel: list[Positive | None]
    gap: list[float | None]
    selection: Name
    chosen_index: Count
    chosen_C: Tried  # noqa: N815 - C as scikit-learn spells it
    at_grid_edge: bool
    refit: Annotated[dict[str, Any], _REFIT]
    train_accuracy: Share
    metrics: Annotated[dict[str, Any], _METRICS]
    probe_file: Annotated[str, Text()]
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    probe: Name = "linear"
    reads: Name = "layer"
    tunes: Name = "C"
    train_rows: Rows | None = None
    per_class: Rows | None = None
    candidates: Annotated[dict[str, Any] | None, (None, {"found_by?": [{"rule": str}]})] = None
    rankme: Positive | None = None
    plan: Annotated[str, Text(10_000)] = ""
    seconds: Positive = 0.0
    created: Annotated[str, Text(100)] = ""
    versions: dict[str, str] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)
    test: str = "test"

    def load_probe(self, device: str = "cpu") -> Any:
        """The fitted probe, read from disk: a `FittedProbe` with `predict_log_proba(X)`."""
        return import_module("probekit.evaluate.predict").load_fitted(self, device)

    def __repr__(self) -> str:
        name = f"{self.series} {'+'.join(self.layers)}"
        return f"Record({name}, {self.kind}, C {self.chosen_C:g}, test accuracy {100 * self.accuracy:.1f} %)"

    @property
    def key(self) -> str:
        return self.identity.key

    @property
    def layers(self) -> tuple[str, ...]:
        return self.identity.layers

    @property
    def seed(self) -> int:
        return self.identity.seed

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy on the test split."""
        return float(self.metrics["top1"])

    @property
    def is_converged(self) -> bool:
        """Whether both the chosen penalty's fit and the refit are certified."""
        return bool(self.converged[self.chosen_index]) and bool(self.refit["converged"])

    @property
    def selection_score(self) -> tuple[float, float]:
        """Criterion for choosing layers: held-out accuracy, then (negated) held-out log-loss; larger is better."""
        return self.val_accuracy[self.chosen_index], -self.val_log_loss[self.chosen_index]

    def on(self, test: str) -> "Record":
        """The record with the metrics of another test set; "test" is the data set's own.

        Raises
        ------
        UserError
            The probe was not tested on it.
        """
        if test == self.test:
            return self
        if test not in self.tests:
            known = ", ".join(["test", *self.tests])
            raise UserError(
                f"{self.series}, layer {'+'.join(self.layers)} was not tested on {test!r}, only on {known}."
            )
        return replace(self, metrics=self.tests[test], test=test, probe_file=test_file(self.probe_file, test))

    def to_dict(self) -> dict[str, Any]:
        """The record's line in results.jsonl, as plain JSON values."""
        body = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_STORED}
        return {"schema": SCHEMA, "key": self.key, "identity": self.identity.to_dict(), **body}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], folder: str | Path | None = None, where: str = "A record") -> "Record":
        """Read a line back; one of another schema, or whose key does not fit the identity, raises `UserError`."""
        line, known = read_line(value, where), {f.name for f in fields(cls)} - _NOT_STORED
        body = {name: item for name, item in line.items() if name in known}
        return cls(Identity.from_dict(line["identity"]), folder=Path(folder) if folder else None, **body)


_IN_MEMORY = {"folder", "test"}
_NOT_STORED = {"identity", *_IN_MEMORY}


def schema_of(hint: Any) -> Any:
    """The schema in JSON (`igpt_model.checked_json`) of a type; a dataclass's fields with a default may be absent."""
    if get_origin(hint) is Annotated:
        return hint.__metadata__[0]
    if is_dataclass(hint):
        stored = [f for f in fields(hint) if f.name not in _IN_MEMORY]
        absent = {f.name: "?" * (f.default is not MISSING or f.default_factory is not MISSING) for f in stored}
        hints = get_type_hints(hint, include_extras=True)
        return {name + sign: schema_of(hints[name]) for name, sign in absent.items()}
    if get_origin(hint) in (list, tuple):
        return [schema_of(get_args(hint)[0])]
    if get_origin(hint) in (Union, UnionType):
        return tuple(None if one is NoneType else schema_of(one) for one in get_args(hint))
    return get_origin(hint) or hint


_RECORD = {"key": Text(32), **schema_of(Record)}
_CHOICE = {name: schema for name, schema in _RECORD.items() if name != "metrics"}
_LISTS = ("Cs", "l2s", "val_accuracy", "val_log_loss", "n_iter", "converged", "grad_rel", "gap")


def check_recordable(store: Any) -> None:
    """Refuse features whose records could not be read back, or whose test rows contradict their description.

    Raises
    ------
    UserError
        Before anything is fitted: it says what is wrong.
    """
    check_json(dict(store.encoder), "The description of the encoder", _ENCODER)
    check_json(dict(store.dataset), "The description of the dataset", _DATASET)
    described = store.dataset.get("tests", {})
    for split in store.splits:
        if not re.fullmatch(TEST_NAME, split):
            raise UserError(
                f"{split[:200]!r} is not a valid name of a test set; use letters, digits, '.', '+', '-', '_'."
            )
        known = described.get(split, {}).get("labels")
        if known is not None and len(other := np.setdiff1d(store.labels(split), known)):
            raise UserError(
                f"The {split} split has the label {other[0]}, which its description leaves out; extract again."
            )


def read_line(line: Mapping[str, Any], where: str, tested: bool = True) -> dict[str, Any]:
    """Check and upgrade a line of results.jsonl, or of choices.jsonl, whose probes are not `tested` yet.

    Older ones lack `probe`, `reads` and `tunes`.

    Raises
    ------
    UserError
        It is no such line; the message names it (`where`), the key, and what was expected there.
    """
    schema = line.get("schema") if isinstance(line, Mapping) else None
    if type(schema) is not int:
        raise UserError(f"{where} is not a probekit record (it has no schema); remove it.")
    if schema != SCHEMA:
        raise UserError(f"{where} has schema {schema}, but this probekit reads schema {SCHEMA}: upgrade probekit.")
    problem = mismatch(line, _RECORD if tested else _CHOICE) or _inconsistency(line)
    if problem:
        raise UserError(f"{where} is not a valid record ({problem}); remove it and run the sweep again.")
    own = "sgd" if line["protocol"].get("solver") == "sgd" else "linear"
    probe = own if line["kind"] in ("layer", "concat") else line["kind"]
    reads = {"banded": "layers", "mix": "layers", "attentive": "tokens"}.get(probe, "layer")
    tunes = {"knn": "k", "attentive": "lr", "sgd": "lr"}.get(probe, "C")
    return {"probe": probe, "reads": reads, "tunes": tunes, **line}


def _inconsistency(line: Mapping[str, Any]) -> str | None:
    """A contradiction between values of a record, or None."""
    n, index, layers = len(line["Cs"]), line["chosen_index"], line["identity"]["layers"]
    wrong = [name for name in _LISTS if len(line[name]) != n]
    if wrong or not 1 <= n <= 100_000:
        return f"{', '.join(wrong) or 'Cs'} must have as many entries as Cs has, 1 to 100,000, and Cs has {n}"
    if index >= n:
        return f"chosen_index is {index}, expected less than {n}"
    if not math.isclose(line["chosen_C"], line["Cs"][index], rel_tol=1e-9):
        return f"chosen_C is {line['chosen_C']:g}, expected {line['Cs'][index]:g}, entry {index} of Cs"
    scores = {"metrics": line["metrics"]} if "metrics" in line else {}
    for name, metrics in line.get("tests", {}).items():
        if name == "test" or not re.fullmatch(TEST_NAME, name):
            return f"tests holds {name[:60]!r}, expected the name of a test set"
        scores[f"tests.{name}"] = metrics
    for place, metrics in scores.items():
        if problem := mismatch(metrics, _METRICS, place) or mismatch(metrics, _NUMBERS, place):
            return problem
        low, top1, high = (metrics[key] for key in ("top1_low", "top1", "top1_high"))
        top5 = metrics["top5"]
        # Wilson's limits for all rows or none have rounding errors
        if not low - 1e-9 <= top1 <= high + 1e-9 or (top5 is not None and top5 < top1 - 1e-9):
            return f"{place} has top1 {top1:g} with limits {low:g} and {high:g} and top5 {top5}, out of their order"
    if (key := Identity.from_dict(line["identity"]).key) != line["key"]:
        return f"its key is {line['key']}, but its contents have the key {key}: it was edited"
    if not 1 <= len(layers) <= MOST_LAYERS:
        return f"identity.layers has {len(layers)} entries, expected 1 to {MOST_LAYERS:,}"
    kind = line["identity"].get("method") or ("layer" if len(layers) == 1 else "concat")
    if line["kind"] != kind:
        return f"kind is {line['kind'][:60]!r}, expected {kind[:60]!r}, by its identity"
    if (line["depth"] is None) == (len(layers) == 1):
        return f"depth is {line['depth']} and identity.layers has {len(layers)} entries, expected one layer's depth"
    depths = line["encoder"].get("depths", range(line["n_layers"]))
    last = line["encoder"].get("last_depth", max(depths, default=0))
    if line["depth"] is not None and not (line["depth"] in depths and line["depth"] <= last):
        return f"depth is {line['depth']}, expected one of the encoder's, at most {last}"
    if len(depths) != line["n_layers"]:
        return f"n_layers is {line['n_layers']}, and the encoder has {len(depths)} depths"
    parts = line["probe_file"].replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or parts[-1] != f"{line['key']}.safetensors":
        return f"probe_file is {line['probe_file'][:60]!r}, expected KEY.safetensors in the folder of the results"
    return None


def test_file(probe_file: str, test: str) -> str:
    """The file of a probe's per-row predictions on a further test set, next to its probe file."""
    return f"{probe_file.removesuffix('.safetensors')}.{test}.safetensors"


def results_path(path: str | Path) -> Path:
    """The path of a results file, given as the file or its folder."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path is a {type(path).__name__}; expected the path of a results file or of its folder.")
    path = Path(path)
    return path / RESULTS_NAME if path.is_dir() or not path.suffix else path


def parse_lines(content: bytes, name: str | Path = RESULTS_NAME, first: int = 1) -> tuple[list[tuple[str, Any]], int]:
    """The JSON lines of a journal, each with its location, and the end of the last complete one.

    A last line that a kill or power cut has torn is left out: it lacks its line break, or holds zeros. `first` is the
    number of the first line.
    """
    parsed: list[tuple[str, Any]] = []
    end = 0
    for number, line in enumerate(content.split(b"\n"), first):
        try:
            if line.strip():
                parsed.append((f"Line {number} of {name}", parse_json(line, f"Line {number} of {name}")))
        except UserError as error:
            ours = line.lstrip(b"\0 \r")[:1] in (b"", b"{")
            rest = content[end + len(line) :]
            if ours and not rest.strip(b"\0 \r\n") and (not rest or b"\0" in line):
                return parsed, end
            if first == 1 and not parsed and not ours:
                raise UserError(
                    f"{name} is not a results file (its first line is not JSON): "
                    f"give a folder that contains {RESULTS_NAME}."
                ) from None
            raise UserError(f"{str(error).rstrip('.')}; remove or repair it.") from None
        end += len(line) + 1
    return parsed, len(content)


def _study_folders(path: str | Path) -> Sequence[str | Path]:
    """The results folders of a study of several data sets; otherwise the path itself."""
    folder = Path(path) if isinstance(path, str | PathLike) else Path()
    if (folder / "study.json").is_file() and not (folder / RESULTS_NAME).exists():
        return sorted(file.parent for file in folder.glob(f"*/{RESULTS_NAME}")) or [path]
    return [path]


def read_records(*paths: str | Path) -> list[Record]:
    """The records of results files or folders, in the order in which they were finished; each key once.

    Raises
    ------
    UserError
        The file does not exist, a line cannot be read, or two records with the same key differ.
    """
    found: dict[str, tuple[str, Record]] = {}
    for path in (folder for given in paths for folder in _study_folders(given)):
        file = results_path(path)
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a regular file; give a folder that contains {RESULTS_NAME}.")
        if not file.is_file():
            if not Path(path).exists():
                raise UserError(
                    f"{path} does not exist; give a folder with a {RESULTS_NAME}, as `probekit sweep` makes."
                )
            beside = Path(path).parent / RESULTS_NAME
            found_at = f"give {beside.parent}, which does" if beside.is_file() else "make it with `probekit sweep`"
            raise UserError(f"{path} contains no {RESULTS_NAME}; {found_at}.")
        for where, line in parse_lines(read_bytes(file, MOST_BYTES), file)[0]:
            record = Record.from_dict(line, file.parent, where)
            first, same = found.setdefault(record.key, (where, record))
            here = same.folder == record.folder
            if _scores(same) != _scores(record) or (here and figures(same.to_dict()) != figures(record.to_dict())):
                raise UserError(f"{first} and {where} have the same key {record.key} but differ; remove one.")
    return [record for _, record in found.values()]


def _scores(record: Record) -> list[Any]:
    """The values that must be equal in records with the same key from different machines, apart from rounding."""
    return [record.chosen_C, *((name, on["top1"], on["n_test"]) for name, on in record.tests.items()), record.accuracy]


def figures(line: Mapping[str, Any]) -> dict[str, Any]:
    """The values that must be equal in two lines with the same key: all except times and versions."""
    return {name: value for name, value in line.items() if name not in ("created", "seconds", "versions")}
