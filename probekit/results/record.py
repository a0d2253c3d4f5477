"""One record: one line of results.jsonl, the whole account of one probe (a layer or a concatenation of layers).

n_C penalties of the path, N test rows, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from igpt_model.checked_json import parse_json, read_bytes
from igpt_model.hashing import hash_json
from probekit.results.schema import check_record
from probekit.runtime.errors import UserError

SCHEMA = 1
RESULTS_NAME = "results.jsonl"
MOST_BYTES = 8 << 30
"""Largest results file that is read: some millions of records."""


@dataclass(frozen=True)
class Identity:
    """Everything that decides a record's numbers; its hash is the record's key.

    Attributes
    ----------
    feature_id : the feature file (data, encoder and their provenance, but not where they lie)
    layers : names of the layers read, in the order of their columns
    protocol_hash : the protocol with every default spelled out, the grid of C included
    split_hash : row ids of train, val and test
    subset_hash : the training rows used and how often each counts
    seed : 0 is the stored split; other seeds redraw it
    dtype, backend, solver_version : what computed it
    method : "" for the protocol's own kind of probe, else the kind
    """

    feature_id: str
    layers: tuple[str, ...]
    protocol_hash: str
    split_hash: str
    subset_hash: str
    seed: int
    dtype: str
    backend: str
    solver_version: str
    method: str = ""

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
    reads, tunes : what that kind reads ("layer", "layers" or "tokens") and what its grid holds ("C", "k" or "lr")
    series : which curve the record belongs to ("igpt", "pixels", ...)
    depth : index of the layer, None for several
    n_layers : number of layers of the feature file
    width : number of feature columns D
    Cs : the grid: penalties; learning rates of an SGD protocol, numbers of neighbours of "knn"
    l2s, val_accuracy, val_log_loss, n_iter, converged, grad_rel, gap : lists of n_C, from the choice of C;
        with cross-validation the worst over the folds (certificates) or pooled over the folds (accuracy, log-loss)
    selection : "val" or "cv5"
    chosen_index, chosen_C : the penalty chosen; never by the test split
    at_grid_edge : the chosen C is the first or the last of the grid
    refit : certificate of the fit on train + val: converged, n_iter, grad_rel, gap, stop_reason, and
        in newer ones `kind`, the bound that the gap is (docs/explanation/solver.md)
    train_accuracy : of the refit, on the rows it was fitted on
    metrics : on the test split: top1, top5 (None up to 5 classes), mean_per_class, log_loss, n_test, top1_low,
        top1_high (Wilson, 95 %), ...
    tests : the same on further test sets, by name
    probe_file : coefficients and per-row test predictions, relative to the results file
    train_rows : size of the training subset that was asked for, None for all rows
    per_class : rows of each class in it, where it was drawn so (few-shot)
    rankme : effective rank of the layer's training features (`probes.rank`), None where it was not computed
    plan : how the solver went about the grid, in a sentence; empty for other probes
    candidates : how layers, bands, mixes or checks were found; how many were tried, how each did held out
    feature_file : relative to the results file where possible
    folder : folder of the results file; not stored
    test : which test set `metrics` and the per-row predictions are of; not stored, see `on`
    """

    identity: Identity
    kind: str
    series: str
    depth: int | None
    n_layers: int
    width: int
    encoder: dict[str, Any]
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    feature_file: str
    Cs: list[float]
    l2s: list[float]
    val_accuracy: list[float]
    val_log_loss: list[float]
    n_iter: list[int]
    converged: list[bool]
    grad_rel: list[float]
    gap: list[float]
    selection: str
    chosen_index: int
    chosen_C: float  # noqa: N815 - C as scikit-learn spells it
    at_grid_edge: bool
    refit: dict[str, Any]
    train_accuracy: float
    metrics: dict[str, Any]
    probe_file: str
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    probe: str = "linear"
    reads: str = "layer"
    tunes: str = "C"
    train_rows: int | None = None
    per_class: int | None = None
    candidates: dict[str, Any] | None = None
    rankme: float | None = None
    plan: str = ""
    seconds: float = 0.0
    created: str = ""
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
        """What layers are chosen by: held-out accuracy, then (negated) held-out log-loss; larger is better."""
        return self.val_accuracy[self.chosen_index], -self.val_log_loss[self.chosen_index]

    def on(self, test: str) -> "Record":
        """The record as its probe does on another test set; "test" is the data set's own.

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
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, Mapping) else None
            if not isinstance(found, int):
                raise UserError(f"{where} is not a record of probekit: it names no schema; remove it.")
            raise UserError(f"{where} has schema {found}, but this probekit reads schema {SCHEMA}: upgrade probekit.")
        check_record(value, where)
        value = migrate(value)
        known = {f.name for f in fields(cls)} - _NOT_STORED
        body = {name: item for name, item in value.items() if name in known}
        record = cls(identity=Identity.from_dict(value["identity"]), folder=Path(folder) if folder else None, **body)
        if record.key != value["key"]:
            raise UserError(
                f"Record {value['key']} does not match its own identity (hash {record.key}): the line was edited."
            )
        return record


_NOT_STORED = {"identity", "folder", "test"}


def test_file(probe_file: str, test: str) -> str:
    """The file of a probe's per-row predictions on a further test set, beside its own."""
    return f"{probe_file.removesuffix('.safetensors')}.{test}.safetensors"


def migrate(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line of results.jsonl or choices.jsonl with `probe`, `reads` and `tunes`, which older ones lack."""
    if "probe" in line:
        return line
    own = "sgd" if line["protocol"].get("solver") == "sgd" else "linear"
    probe = own if line["kind"] in ("layer", "concat") else line["kind"]
    reads = {"banded": "layers", "mix": "layers", "attentive": "tokens"}.get(probe, "layer")
    return {
        **line,
        "probe": probe,
        "reads": reads,
        "tunes": {"knn": "k", "attentive": "lr", "sgd": "lr"}.get(probe, "C"),
    }


def results_path(path: str | Path) -> Path:
    """A results file given by itself or by its folder."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path is a {type(path).__name__}; expected the path of a results file or of its folder.")
    path = Path(path)
    return path / RESULTS_NAME if path.is_dir() or not path.suffix else path


def parse_lines(content: bytes, name: str | Path = RESULTS_NAME) -> list[dict[str, Any]]:
    """The JSON lines of a journal; a last line that a kill or power cut has torn is left out."""
    lines = content.split(b"\n")
    parsed = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            parsed.append(parse_json(line, f"Line {number + 1} of {name}"))
        except UserError as error:
            if any(rest.strip(b"\0 \r") for rest in lines[number + 1 :]):
                if not parsed:
                    raise UserError(
                        f"{name} is not a results file (its first line is not JSON): "
                        f"give a folder that contains {RESULTS_NAME}."
                    ) from None
                raise UserError(f"{str(error).rstrip('.')}, and lines follow it: remove or repair it.") from None
    return parsed


def _study_folders(path: str | Path) -> Sequence[str | Path]:
    """The folders of a study of several data sets, which each have results of their own; else the path itself."""
    folder = Path(path) if isinstance(path, str | PathLike) else Path()
    if (folder / "study.json").is_file() and not (folder / RESULTS_NAME).exists():
        return sorted(file.parent for file in folder.glob(f"*/{RESULTS_NAME}")) or [path]
    return [path]


def read_records(*paths: str | Path) -> list[Record]:
    """The records of results files or folders, in the order in which they were finished; each key once.

    Raises
    ------
    UserError
        There is no such file, a line cannot be read, or two records of one key have other figures.
    """
    found: dict[str, tuple[str, Record]] = {}
    for path in (folder for given in paths for folder in _study_folders(given)):
        file = results_path(path)
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a regular file; give a folder that contains {RESULTS_NAME}.")
        if not file.is_file():
            raise UserError(f"{path} contains no {RESULTS_NAME}; make it with `probekit sweep`.")
        for number, line in enumerate(parse_lines(read_bytes(file, MOST_BYTES), file), start=1):
            where = f"Record {number} of {file}"
            record = Record.from_dict(line, file.parent, where)
            first, same = found.setdefault(record.key, (where, record))
            agrees = _figures if same.folder == record.folder else _scores
            if agrees(same) != agrees(record):
                raise UserError(
                    f"{first} and record {number} of {file} have the same key {record.key} and other figures: "
                    "remove one."
                )
    return [record for _, record in found.values()]


def _scores(record: Record) -> list[Any]:
    """What must agree between records of one key that two machines made, whose last bits may differ."""
    return [record.chosen_C, *((name, on["top1"], on["n_test"]) for name, on in record.tests.items()), record.accuracy]


def _figures(record: Record) -> dict[str, Any]:
    """What must agree between two records of one key; when, and how fast, they were made may differ."""
    return {name: value for name, value in record.to_dict().items() if name not in ("created", "seconds", "versions")}


def select_records(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records whose named fields have the wanted values: `select_records(records, kind="layer", seed=0)`."""
    return [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]
