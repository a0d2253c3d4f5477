"""Verify a feature file: every byte of every block against its checksum, and the file against its data set.

Errors mean that the file must not be used; warnings do not.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from igpt_model.arguments import checked
from igpt_model.checked_json import parse_json
from igpt_model.differences import differences
from probekit.datasets import Dataset
from probekit.features import format as layout
from probekit.features.format import Header
from probekit.features.store import FeatureStore
from probekit.features.validate import attribute, read_classes, read_header, reading
from probekit.runtime.errors import UserError

READ_BYTES = 64 << 20


@dataclass
class VerifyReport:
    """Result of `verify`: `errors` (the file must not be used) and `warnings`, one sentence each."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors


@checked
def verify(path: str | Path, data: Dataset | None = None) -> VerifyReport:
    """Check a feature file, a parent of shards, or an unfinished file.

    Parameters
    ----------
    path : the feature file
    data : Dataset, optional; if given, compared by labels, row ids, image hashes and provenance

    Raises
    ------
    UserError
        The file does not exist. All other problems are in the report.
    """
    path = Path(path)
    report = VerifyReport()
    if not path.is_file():
        raise UserError(f"Feature file {path} does not exist; give the path of a file made by `probekit extract`.")
    try:
        with reading(path) as file:
            header = read_header(file)
            _check_identity(file, header, report)
            for split in header.splits:
                _check_row_columns(file, header, split, report)
            if attribute(file, "shards"):
                _check_shards(path, report)
            else:
                for split in header.splits:
                    _check_layers(file, header, split, report)
            if report.ok:
                _look_for_leaks(file, header, report)
                if data is not None:
                    _compare_with(file, header, data, report)
    except UserError as error:
        report.errors.append(str(error))
    return report


def skipped_corrupt(path: str | Path) -> bool:
    """Whether undecodable images were skipped when a feature file, complete or not, was made."""
    try:
        with reading(path) as file:
            return bool(read_header(file).dataset.get("skipped"))
    except UserError:
        return False  # `verify` reports what is wrong with the file


def _check_identity(file: h5py.File, header: Header, report: VerifyReport) -> None:
    ledgers = {split: file[layout.ledger_path(split)][()] for split in header.splits}
    for split, ledger in ledgers.items():
        missing = np.flatnonzero(~layout.done_blocks(ledger))
        if len(missing):
            report.errors.append(
                f"{len(missing)} of {len(ledger)} blocks of {split} are missing or incomplete; the first begins at row "
                f"{header.rows(split, int(missing[0])).start}."
            )
    classes = read_classes(file)
    if attribute(file, "complete") != 1:
        report.errors.append("The file is not marked complete; run the same `probekit extract` again to finish it.")
    elif attribute(file, "id") != layout.file_id(header, ledgers, classes):
        report.errors.append("The id does not match provenance and checksums, one of which was altered after writing.")
    for split in header.splits if classes else ():
        labels = file[layout.column_path(split, "labels")][()]
        if labels.min() < 0 or labels.max() >= len(classes):
            report.warnings.append(
                f"Labels of {split} run from {labels.min()} to {labels.max()}, but there are {len(classes)} classes."
            )


_MAPPINGS = """
import h5py, json, sys
with h5py.File(sys.argv[1], locking=False) as file:
    for name in json.load(sys.stdin):
        print(json.dumps([name, sorted(
            [s.file_name, s.dset_name, *s.vspace.get_select_bounds(), s.vspace.get_select_npoints(),
             s.src_space.get_select_type() == h5py.h5s.SEL_ALL] for s in file[name].virtual_sources()
        )]))
"""
"""Run in a separate process, because mappings have no checksum and HDF5 may crash on a damaged one.

It runs with -P so that modules of these names in the user's folder are not imported.
"""


def _check_shards(path: Path, report: VerifyReport) -> None:
    store = FeatureStore(path)
    shards = store.shards()
    for shard, _ in shards:
        found = verify(shard.path)
        report.errors += [f"{shard.path.name}: {text}" for text in found.errors]
        report.warnings += [f"{shard.path.name}: {text}" for text in found.warnings]
    if not report.ok:
        return
    wanted = {}
    for split in store.splits:
        for layer, width in zip(store.layers, store.widths, strict=True):
            name = layout.layer_path(split, layer)
            wanted[name] = sorted(
                [s.path.name, name, [at, 0], [at + n - 1, width - 1], n * width, True]
                for s, at, n in ((s, first[split], s.header.splits[split]) for s, first in shards if split in first)
            )
    command = [sys.executable, "-P", "-c", _MAPPINGS, str(path)]
    answer = subprocess.run(command, input=json.dumps(list(wanted)), capture_output=True, text=True, check=False)
    there = {} if answer.returncode else dict(parse_json(line, path, list) for line in answer.stdout.splitlines())
    wrong = [name for name in wanted if there.get(name) != wanted[name]]
    if wrong:
        report.errors.append(f"The virtual dataset {wrong[0]} does not match the shards; extract again.")


def _check_row_columns(file: h5py.File, header: Header, split: str, report: VerifyReport) -> None:
    """Check labels, row ids and image hashes; a parent stores copies of its shards' values."""
    ledger = file[layout.ledger_path(split)][()]
    columns = [file[layout.column_path(split, name)][()].view(np.uint64) for name in layout.ROW_COLUMNS]
    for block in map(int, np.flatnonzero(layout.done_blocks(ledger))):
        rows = header.rows(split, block)
        if layout.checksum(np.concatenate([column[rows] for column in columns])) != ledger[block, 0]:
            report.errors.append(f"Labels, row ids or image hashes of {split}, {_named(rows)}, fail their checksum.")


def _check_layers(file: h5py.File, header: Header, split: str, report: VerifyReport) -> None:
    ledger = file[layout.ledger_path(split)][()]
    done = layout.done_blocks(ledger)
    for index, layer in enumerate(header.layers):
        lowest: np.ndarray | None = None
        highest: np.ndarray | None = None
        for rows, first_block, X in _blocks(file, header, split, layer, done):
            for block in range(first_block, first_block + -(-len(X) // header.batch_size)):
                own = header.rows(split, block)
                part = X[own.start - rows.start : own.stop - rows.start]
                if not done[block]:
                    continue
                if layout.checksum(part) != ledger[block, index + 1]:
                    report.errors.append(f"Layer {layer} of {split}, {_named(own)}, fails its checksum.")
                elif not np.isfinite(part).all():
                    report.errors.append(f"Layer {layer} of {split}, {_named(own)}, contains NaN or infinity.")
            low, high = X.min(axis=0), X.max(axis=0)
            lowest = low if lowest is None else np.minimum(lowest, low)
            highest = high if highest is None else np.maximum(highest, high)
        # unwritten rows would make columns look constant and layers equal
        if lowest is not None and highest is not None and header.splits[split] > 1 and done.all():
            constant = int((lowest == highest).sum())
            if constant:
                report.warnings.append(f"Layer {layer} of {split} has {constant} constant columns of {len(lowest)}.")
    for a, b in combinations(range(len(header.layers)), 2):
        if done.all() and np.array_equal(ledger[:, a + 1], ledger[:, b + 1]):
            report.warnings.append(f"Layers {header.layers[a]} and {header.layers[b]} of {split} are equal.")


def _blocks(
    file: h5py.File, header: Header, split: str, layer: str, done: np.ndarray
) -> Iterator[tuple[slice, int, np.ndarray]]:
    """Yield runs of whole blocks of about READ_BYTES that contain a done block: rows, first block number, features."""
    name, n = layout.layer_path(split, layer), header.splits[split]
    block_bytes = header.batch_size * file[name].shape[1] * file[name].dtype.itemsize
    step = max(1, READ_BYTES // max(1, block_bytes)) * header.batch_size
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        first = start // header.batch_size
        if done[first : first + step // header.batch_size].any():
            yield rows, first, layout.read_rows(file, name, rows)


def _named(rows: slice) -> str:
    return f"rows {rows.start} to {rows.stop - 1}"


def _look_for_leaks(file: h5py.File, header: Header, report: VerifyReport) -> None:
    hashes = {split: file[layout.column_path(split, "image_hashes")][()] for split in header.splits}
    for a, b, shared in layout.shared_images(hashes):
        if shared.any():
            ids = file[layout.column_path(b, "row_ids")][()][shared][:3]
            report.warnings.append(
                f"{shared.sum()} images of {b} are also in {a}, pixel for pixel (row ids {', '.join(map(str, ids))}"
                f"{', ...' if shared.sum() > 3 else ''})."
            )


def _compare_with(file: h5py.File, header: Header, data: Any, report: VerifyReport) -> None:
    # further test sets are compared only if the data set was given with them
    splits = [split for split in header.splits if split in data.splits or split not in header.dataset.get("tests", {})]
    # the skipped images are known only once the splits have been made
    for split in splits:
        len(data.splits[split])
    for text in differences({k: header.dataset.get(k) for k in data.provenance}, data.provenance, "dataset"):
        report.errors.append(f"The file was made from different data: {text}.")
    for split in splits:
        part = data.splits[split].limit(header.dataset.get("limit"))
        for column in layout.ROW_COLUMNS:
            there, now = file[layout.column_path(split, column)][()], getattr(part, column)
            if len(there) != len(now):
                report.errors.append(f"Split {split} has {len(there)} rows in the file and {len(now)} in the data.")
                break
            if not np.array_equal(there, now):
                first = int(np.flatnonzero(there != now)[0])
                report.errors.append(
                    f"The {column} of {split} differ from the data's from row {first} on; is the order different?"
                )
