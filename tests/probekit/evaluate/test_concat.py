"""Joined layers: the window, the greedy choice, honesty about both, and resumption."""

import json

import numpy as np
import pytest

from probekit.evaluate.concat import concat
from probekit.evaluate.sweep import sweep
from probekit.results.predictions import load_probe
from probekit.runtime.errors import UserError
from tests.probekit.feature_doubles import MemoryStore, SealedStore

CS = np.logspace(-2, 0, 3)


class TwoHalves(MemoryStore):
    """Layers 1 and 3 each hold what the other lacks; layer 2 is a copy of layer 1; 0 and 4 are noise."""

    def __post_init__(self):
        super().__post_init__()
        for split in self.splits:
            rng = np.random.default_rng(len(split))
            bits = np.stack([self.y[split] & 1, self.y[split] >> 1], axis=1)
            views = [np.zeros_like(bits), bits * [1, 0], bits * [1, 0], bits * [0, 1], np.zeros_like(bits)]
            for name, view in zip(self.layers, views, strict=True):
                noise = 0.3 * rng.normal(size=(len(bits), self.width))
                noise[:, :2] += view
                self.X[split][name] = noise.astype(np.float32)
            self.X[split]["02"] = self.X[split]["01"] * 1.0


def halves(**options):
    return TwoHalves(strength=(0.0,) * 5, n_classes=4, **options)


def test_greedy_finds_the_two_layers_that_complement_each_other(tmp_path):
    results = concat(halves(), tmp_path, Cs=CS, window=3, greedy_width=8)
    greedy = next(r for r in results.of(kind="concat") if "greedy" in r.candidates["found_by"][0]["rule"])
    assert greedy.layers in (("01", "03"), ("02", "03"))
    assert greedy.width == 8
    assert greedy.accuracy > results.best().accuracy + 0.2
    how = greedy.candidates["found_by"][0]
    assert how["tried"] == 5 + 4  # the budget holds two layers: all singles, then the best with each other one
    assert [len(step["layers"]) for step in how["steps"]] == [1, 2]
    assert how["steps"][0]["val_accuracy"] < how["steps"][1]["val_accuracy"]


def test_the_window_is_the_paper_s(tmp_path):
    results = concat(MemoryStore(strength=(0, 0, 0.5, 1.5, 0.5, 0, 0)), tmp_path, Cs=CS, greedy_width=0)
    (window,) = results.of(kind="concat")
    assert window.layers == ("01", "02", "03", "04", "05")
    assert window.depth is None
    assert window.width == 20
    assert load_probe(tmp_path / window.probe_file)["coef"].shape == (3, 20)
    assert window.candidates["found_by"] == [{"rule": "window of 5 around layer 03", "tried": 7}]


def test_several_windows_and_the_end_of_the_network(tmp_path):
    results = concat(MemoryStore(strength=(0, 0, 0, 1.5)), tmp_path, Cs=CS, window=(2, 3), greedy_width=0)
    assert [r.layers for r in results.of(kind="concat")] == [("02", "03"), ("01", "02", "03")]


def test_a_window_of_one_layer_leaves_single_layers(tmp_path):
    results = concat(MemoryStore(strength=(0.5, 1.0, 0.5)), tmp_path, Cs=CS, window=1, greedy_width=0)
    assert [r.kind for r in results] == ["layer"] * 3


def test_a_set_found_twice_is_one_record_with_both_rules(tmp_path):
    results = concat(MemoryStore(strength=(1.0, 1.0)), tmp_path, Cs=CS, window=2)
    records = results.of(kind="concat")
    assert len(records) <= 1  # greedy may stop at one layer
    if len(records[0].candidates["found_by"]) == 2:
        assert records[0].layers == ("00", "01")


def test_joined_sets_are_chosen_before_test_rows_are_read(tmp_path):
    store = SealedStore(strength=(0.5, 1.0, 0.5))
    store.opened = lambda: True  # the sweep may finish
    sweep(store, tmp_path, Cs=CS)
    chosen = tmp_path / "choices.jsonl"
    store.opened = lambda: sum(json.loads(line)["kind"] == "concat" for line in chosen.open()) >= 1
    assert concat(store, tmp_path, Cs=CS, window=3).of(kind="concat")


def test_choices_do_not_depend_on_test_labels(tmp_path):
    chosen = []
    for name in ("as_is", "permuted"):
        store = halves()
        if name == "permuted":
            store.y["test"] = np.random.default_rng(1).permutation(store.y["test"])
        records = concat(store, tmp_path / name, Cs=CS, window=3, greedy_width=8).of(kind="concat")
        chosen.append([(r.layers, r.chosen_C, r.val_accuracy, r.candidates) for r in records])
    assert chosen[0] == chosen[1]


def test_a_killed_search_goes_on(tmp_path):
    def stop(done, total):
        if done == 7:  # five single layers, which the sweep has scored, and two sets
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        concat(halves(), tmp_path, Cs=CS, window=3, greedy_width=8, progress=stop)
    examined = (tmp_path / "candidates.jsonl").read_text().splitlines()
    assert len(examined) == 2
    shown = []
    concat(
        halves(), tmp_path, Cs=CS, window=3, greedy_width=8, progress=lambda done, total: shown.append((done, total))
    )
    assert (tmp_path / "candidates.jsonl").read_text().splitlines()[:2] == examined
    assert shown[-1] == (9, 9)
    before = (tmp_path / "results.jsonl").read_bytes()
    concat(halves(), tmp_path, Cs=CS, window=3, greedy_width=8)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_requests_that_concatenate_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="has only one layer"):
        concat(MemoryStore(strength=(1.0,)), tmp_path / "one", Cs=CS)
    with pytest.raises(UserError, match="budget of 3 columns"):
        concat(MemoryStore(), tmp_path / "narrow", Cs=CS, greedy_width=3)
    with pytest.raises(UserError, match="at least 1 layer"):
        concat(MemoryStore(), tmp_path / "window", Cs=CS, window=[3, 0])
    with pytest.raises(UserError, match="window is an empty list"):
        concat(MemoryStore(), tmp_path / "none", Cs=CS, window=[])
    assert not list(tmp_path.rglob("*.jsonl"))  # no single layer was fitted before
