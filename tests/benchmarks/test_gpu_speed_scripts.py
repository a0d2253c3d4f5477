"""The speed scripts for a GPU, at toy size on the CPU: what they measure, that it adds up, and that they resume."""

import gzip
import importlib.util
import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from tests.benchmarks.scripts import GPU, rows, start, the


@pytest.fixture(scope="module")
def modules():
    """Functions of the scripts, without running them."""
    before = list(sys.path)
    sys.path[:0] = [str(GPU.parent), str(GPU)]

    def load(name):
        spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    yield {name: load(name) for name in ("path_speed", "overlap", "parts", "train_speed", "objectives")}
    sys.path[:] = before


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    results = tmp_path_factory.mktemp("paths") / "results"
    done = start(results, "path_speed.py")
    said = done.stdout + done.stderr
    return results, said, rows(results / "gpu" / "path_speed_toy.csv")


def test_paths_are_certified_and_the_peer_is_held_to_the_same_objective(paths):
    _, _, found = paths
    assert the(found, "share of fits certified", "3 layers") == 1
    assert the(found, "ours, largest relative gap") <= 1e-5
    ours, peer = the(found, "3 layers", "ours, s (goal"), "made-up features: torch.optim.LBFGS"
    for how in ("cold", "warm"):
        theirs = the(found, f"{peer} {how}, s (")
        assert the(found, f"{peer} {how}, ratio") == pytest.approx(theirs / ours, rel=2e-3)
        # within 1e-5 of ours, or stopped by its own tolerances above that: never better by more than our own gap
        assert -1e-2 < the(found, f"{peer} {how}, objective excess") <= 2e-5
        assert 0.5 < the(found, f"{peer} {how}, share that came within 1e-5") <= 1
    # a start from the penalty before saves evaluations
    assert the(found, f"{peer} warm, evaluations") < the(found, f"{peer} cold, evaluations")
    assert the(found, "cuML is installed") == 0


def test_the_wide_layer_grows_and_says_its_slope(paths):
    _, _, found = paths
    seconds = [the(found, f"{n}x24, 12 classes", "ours, s") for n in (400, 800, 1600)]
    slope = the(found, "slope of log seconds over log rows")
    assert slope == pytest.approx(np.log(seconds[2] / seconds[1]) / np.log(2), abs=0.02)
    assert the(found, "1600 rows, s (measured") == pytest.approx(seconds[2], rel=1e-3)
    assert all(the(found, f"{n}x24", "share of fits certified") == 1 for n in (400, 800, 1600))


@pytest.mark.parametrize(
    ("words", "answer"),
    [(["nothing", "--device", "cpu"], "unknown parts nothing; choose among layers, cuml"),
     (["--device", "cuda"], "The device cuda cannot be used")],
)  # fmt: skip
def test_refusals_are_one_sentence(modules, words, answer, capsys):
    if words[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    parts = ("layers", "cuml")
    with pytest.raises(SystemExit) as stopped:
        modules["parts"].read(modules["parts"].command_line("", parts), parts, words)
    assert stopped.value.code == 2
    assert answer in capsys.readouterr().err.splitlines()[-1]


def test_a_part_that_fails_does_not_cost_the_next_one_and_a_finished_one_is_skipped(
    modules, monkeypatch, tmp_path, capsys
):
    parts = modules["parts"]
    monkeypatch.setattr(parts, "RESULTS", tmp_path)
    monkeypatch.setattr(sys.modules["rows"], "RESULTS", tmp_path)

    def broken():
        yield "before", 1.0
        raise RuntimeError("out of memory")

    given = parts.read(parts.command_line("", ("one", "two")), ("one", "two"), ["--device", "cpu"])
    assert parts.run("x", {"one": broken, "two": lambda: [("after", 2.0)]}, given) == 1
    assert "out of memory" in capsys.readouterr().err
    found = rows(tmp_path / "x.csv")
    assert found["one: before"] == 1
    assert found["two: after"] == 2
    assert "two: finished, s" in found
    assert "one: finished, s" not in found
    calls = []
    again = {"one": lambda: calls.append("one") or [], "two": lambda: calls.append("two") or []}
    assert parts.run("x", again, given) == 0
    assert calls == ["one"]
    assert parts.run("x", again, Namespace(**{**vars(given), "again": True})) == 0
    assert calls == ["one", "one", "two"]


def test_updates_of_ours_alone(modules):
    script = modules["train_speed"]
    found = dict(script.figures("L", script.config_l(True, "cpu"), 1, 1e9))
    # 3 blocks x 32 on 64 tokens of 16 colours, 4 pictures: products of 24 D^2 a token, attention of 4 T D, output 2 V D
    flops = 3 * 4 * 64 * (3 * (24 * 32**2 + 4 * 64 * 32) + 2 * 16 * 32)
    assert found["L: share of the measured matrix rate (goal 0.5)"] == pytest.approx(
        flops / 1e9 * found["L: tokens/s"] / (4 * 64)
    )


def test_the_four_networks_differ_in_what_is_asked(modules):
    script, given = modules["objectives"], Namespace(toy=False, seed=0, device="cpu")
    configs = {name: script.config_of(name, given, 32, 512) for name in ("ar", "bert", "half", "quarter")}
    assert configs["bert"].objective == "bert"
    assert {config.objective for name, config in configs.items() if name != "bert"} == {"autoregressive"}
    assert [config.n_embd for config in configs.values()] == [256, 256, 128, 64]
    # a start vector is all that BERT lacks
    assert configs["ar"].model_config.n_params - configs["bert"].model_config.n_params == 256
    assert len({(c.batch_size, c.seed, c.lr, c.n_layer, c.augment) for c in configs.values()}) == 1


def test_one_objective_for_both_solvers(modules):
    """Against a float64 loop."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    coef, intercept, l2 = rng.normal(size=(3, 5)), rng.normal(size=3), 0.3
    expected = 0.0
    for x, label in zip(X, y, strict=True):
        z = [float(w @ x + b) for w, b in zip(coef, intercept, strict=True)]
        expected += (np.log(sum(np.exp(value) for value in z)) - z[label]) / len(X)
    expected += 0.5 * l2 * float((coef**2).sum())
    found = modules["path_speed"].objective(torch.from_numpy(X), torch.from_numpy(y), coef, intercept, l2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_made_up_features_depend_on_seed_and_layer_alone(modules):
    made = modules["path_speed"].made_up
    (X, y), (again, y_again) = made(300, 16, 5, "cpu"), made(300, 16, 5, "cpu")
    other, y_other = made(300, 16, 5, "cpu", layer=1)
    assert torch.equal(X, again)
    assert torch.equal(y, y_again)
    assert torch.equal(y, y_other)
    assert not torch.allclose(X, other)
    assert X.min() == 0
    assert set(y.tolist()) == set(range(5))


def test_the_peer_stops_as_soon_as_it_is_good_enough(modules):
    X, y = modules["path_speed"].made_up(500, 8, 3, "cpu")
    W, b, calls, reached = modules["path_speed"].lbfgs(X, y, 3, 1e-3, 0.0, 100)
    least = modules["path_speed"].objective(X, y, W, b, 1e-3)
    assert not reached
    W, b, fewer, reached = modules["path_speed"].lbfgs(X, y, 3, 1e-3, least * 1.05, 100)
    assert reached
    assert fewer < calls
    # the parameters are those whose loss stopped it, not the ones before
    assert modules["path_speed"].objective(X, y, W, b, 1e-3) <= least * 1.05 * (1 + 1e-6)


def test_overlap_of_intervals(modules):
    overlap = modules["overlap"]
    kernels = [(0.0, 1.0), (0.5, 2.0), (4.0, 5.0)]
    assert overlap.union(kernels) == [[0.0, 2.0], [4.0, 5.0]]
    assert overlap.length(kernels) == 3.0
    assert overlap.common(kernels, [(1.5, 4.5)]) == pytest.approx(1.0)
    spans = overlap.Spans()
    spans.by_name = {"writing": [(1.5, 4.5), (6.0, 10.0)]}
    shares = dict(overlap.shares(spans, {"computing": kernels, "copying on the GPU": []}))
    assert shares["share of the time in which the GPU computes"] == pytest.approx(0.3)
    assert shares["writing, share of it while the GPU computes"] == pytest.approx(1 / 7)


def test_a_trace_gets_the_spans_on_its_own_clock(modules):
    overlap = modules["overlap"]
    trace = {
        "traceEvents": [
            {"name": overlap.MARK, "ts": 5_000_000.0, "dur": 1.0},
            {"cat": "kernel", "name": "gemm", "ts": 5_500_000.0, "dur": 250_000.0},
            {"cat": "gpu_memcpy", "name": "HtoD", "ts": 5_100_000.0, "dur": 100_000.0},
        ]
    }
    spans = overlap.Spans()
    spans.by_name = {"writing": [(100.25, 100.75)]}
    found = overlap.lay_over(trace, spans, marked=100.0)
    assert found["computing"] == [pytest.approx((100.5, 100.75))]
    assert found["copying on the GPU"] == [pytest.approx((100.1, 100.2))]
    assert trace["traceEvents"][-1] | {"pid": 0} == {
        "ph": "X", "name": "writing", "cat": "extract", "pid": 0, "tid": 0, "ts": pytest.approx(5_250_000.0),
        "dur": pytest.approx(500_000.0),
    }  # fmt: skip


def test_forward_passes_are_measured_beside_their_peers(tmp_path):
    results = tmp_path / "results"
    start(results, "extract_speed.py", "forward")
    found = rows(results / "gpu" / "extract_speed_toy.csv")
    best = the(found, "best: images/s")
    plain = [the(found, f"plain, batch {batch}", "bfloat16", "images/s") for batch in (4, 8)]
    assert best == max(plain)
    for peer in ("HF eager float32", "HF eager bfloat16", "HF GPT-2 SDPA bfloat16"):
        assert the(found, f"best to {peer}") == pytest.approx(best / the(found, f"{peer}, batch"), rel=2e-3)
    whole, halved = the(found, "best: share", "(goal"), the(found, "causal attention counted")
    # 2 layers x 32 on 64 tokens: 12 D^2 against 2 T D of attention, or half of it
    assert halved / whole == pytest.approx((12 * 32 + 64) / (12 * 32 + 2 * 64), rel=5e-3)


@pytest.mark.slow
def test_extraction_writing_and_trace(tmp_path):
    results = tmp_path / "results"
    start(results, "extract_speed.py", "writing", "trace")
    found = rows(results / "gpu" / "extract_speed_toy.csv")
    assert all(
        the(found, "batch 4, 24 pictures", f"{name}, images/s") > 0 for name in ("no file", "float32", "float16")
    )
    with gzip.open(results / "gpu" / "extract_trace_toy.json.gz", "rt") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "extract"]
    # 48 pictures in batches of four, a batch within one split
    assert names.count("launching") == names.count("writing") == names.count("copying to the host") == 13
    assert names.count("reading") == 48
    assert 0 < the(found, "share of the time in which the GPU computes") <= 1


@pytest.mark.slow
def test_extraction_formats_and_compiled_blocks(tmp_path):
    start(tmp_path / "results", "extract_speed.py", "forward", "formats", "--compile", "yes")
    found = rows(tmp_path / "results" / "gpu" / "extract_speed_toy.csv")
    assert the(found, "compiled, batch 4", "images/s") > 0
    assert the(found, "formats: float32", "relative distance") == 0
    assert 1e-4 < the(found, "formats: bfloat16 arithmetic, layer", "relative distance") < 2e-2
    assert 1e-5 < the(found, "formats: float16 storage", "relative distance") < 1e-3


@pytest.mark.slow
def test_training_steps_are_measured_in_every_part(tmp_path):
    start(tmp_path / "results", "train_speed.py", "ratio", "batches", "L")
    found = rows(tmp_path / "results" / "gpu" / "train_speed_toy.csv")
    assert the(found, "ratio:", "ratio to HF ImageGPT") > 0
    assert the(found, "batches:", "batch 4: tokens/s") > 0
    once, twice = the(found, "L:", "share of the measured matrix rate"), the(found, "L:", "recomputing counted")
    assert twice == pytest.approx(4 / 3 * once, rel=2e-3)


@pytest.mark.slow
def test_plans_are_held_against_what_happens(tmp_path):
    start(tmp_path / "results", "train_speed.py", "plan")
    found = rows(tmp_path / "results" / "gpu" / "train_speed_toy.csv")
    for what in ("iGPT-S, s an update", "iGPT-L, s an update", "extract, s", "sweep, s"):
        planned, real = found[f"plan: {what}: planned"], found[f"plan: {what}: real"]
        assert the(found, f"{what}: planned over real") == pytest.approx(planned / real, rel=5e-3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_objectives_and_sizes_on_the_same_pictures_and_a_second_call_that_trains_nothing(tmp_path):
    where = ["--out", tmp_path / "runs", "--archives", tmp_path / "none"]
    start(tmp_path / "results", "objectives.py", *where)
    found = rows(tmp_path / "results" / "gpu" / "objectives_toy.csv")
    steps = json.loads((tmp_path / "runs" / "plan.json").read_text())["steps"]
    assert [the(found, f"{name}: updates") for name in ("ar", "bert", "half", "quarter")] == [steps] * 4
    assert the(found, "ar: parameters") > the(found, "half: parameters") > the(found, "quarter: parameters")
    for name in ("ar", "bert", "half", "quarter"):
        accuracies = [the(found, f"{name}: layer {k:02d}: test accuracy") for k in range(4)]
        best = int(the(found, f"compare: {name}: best layer"))
        assert the(found, f"compare: {name}: its test accuracy") == pytest.approx(100 * accuracies[best], abs=0.05)
    gain = found["compare: ar above bert, points"]
    ar, bert = (the(found, f"compare: {name}: its test accuracy") for name in ("ar", "bert"))
    assert gain == pytest.approx(ar - bert, abs=0.1)
    assert found["compare: ar above bert, points, low end of 95 %"] <= gain
    again = start(tmp_path / "results", "objectives.py", *where)
    assert (again.stdout + again.stderr).count("finished before") == 5
