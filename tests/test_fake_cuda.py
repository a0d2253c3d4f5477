"""Fit, encode, train and sweep on a GPU that is not there: no mixed devices, and a ceiling on kernels and syncs.

Ceilings are what was counted and a third as much again: they hold a change that adds a wait or a small kernel to an
inner loop, and are to be lowered with each change that removes some.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from igpt_model.config import ModelConfig
from igpt_model.features import encode
from igpt_model.model import IGPT
from igpt_model.process_group import Ranks
from igpt_model.training.config import TrainConfig
from igpt_model.training.engine import Engine
from probekit.evaluate.concat import concat
from probekit.evaluate.layer_geometry import linear_cka, two_nn_dimension
from probekit.evaluate.sweep import sweep
from probekit.features.inspect import rankme
from probekit.probes import LinearProbe, fit_path, get_protocol
from probekit.probes.knn import knn_proba
from probekit.probes.ridge import fit_ridge
from probekit.selection.protocol import SGDConfig
from probekit.solver.data import STREAM_ROWS, WeightedData
from probekit.solver.mean_loss import _tensor_cores
from tests.fake_cuda import fake_cuda, is_fake
from tests.probekit.feature_doubles import MemoryStore

rng = np.random.default_rng(0)
Y = np.arange(240) % 3
X = (rng.normal(size=(240, 6)) + rng.normal(size=(3, 6))[Y]).astype(np.float32)
CS = np.array([1e-2, 1.0])

ONE_ROUND = get_protocol("igpt").with_(name="one round", selection="val")

# counted: 3,589 and 67 a path of two penalties, 144 waits of one of twelve (13,161 before they were batched);
# 55 and 0; 100 and 1; 51,062 and 1,143 a sweep of three layers
KERNELS = {"path": 4800, "checks": 80, "encode": 70, "update": 130, "sweep": 63_000}
SYNCS = {"path": 100, "weak path": 220, "checks": 5, "encode": 0, "update": 1, "sweep": 1700}
HOST_BYTES = {"checks": 2400, "sweep": 22_000}  # 1,776 and 16,590: coefficients, certificates, sums, test predictions


def test_the_fake_device_is_as_strict_as_a_real_one():
    with fake_cuda() as counts:
        a = torch.ones(3, device="cuda")
        assert a.device == torch.device("cuda:0")
        assert is_fake(a * 2)
        with pytest.raises(RuntimeError, match="same device"):
            a + torch.ones(3)
        assert is_fake(a + torch.tensor(1.0))  # a number is no array
        for read in (lambda: a.numpy(), lambda: np.asarray(a)):
            with pytest.raises(TypeError, match="device type tensor"):
                read()
        before = counts.n_syncs
        assert float(a.sum()) == 3
        assert not is_fake(a.cpu())
        assert counts.n_syncs == before + 2
        assert counts.host_bytes == 12  # three float32 numbers
        module = torch.nn.Linear(3, 2).to("cuda")
        module(a).sum().backward()
        assert is_fake(module.weight.grad)
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "FAKE"


def test_the_fake_device_sees_a_stream_that_does_not_wait():
    with fake_cuda():
        a = torch.ones(3, device="cuda")
        late, patient = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(late), pytest.raises(RuntimeError, match="has not waited"):
            a * 2
        patient.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(patient):
            b = a * 2
        with pytest.raises(RuntimeError, match="has not waited"):
            b + 1
        patient.synchronize()
        assert float((b + 1).sum()) == 9


def test_rows_that_are_read_ahead_belong_to_the_callers_stream_and_on_a_cpu_cuda_is_not_touched(monkeypatch):
    many = np.ones((2 * STREAM_ROWS, 2), np.float32)

    def total(device):
        where = torch.device(device)
        y, weights = torch.zeros(len(many), dtype=torch.int64), torch.ones(len(many), dtype=torch.float64)
        rows = WeightedData(many, y.to(where), weights.to(where), 2, torch.float64, where)
        return sum(float(X.sum()) for X, _, _ in rows.blocks(STREAM_ROWS))

    expected = 3.0 * len(many)  # two columns and the intercept's
    with fake_cuda(), torch.cuda.stream(torch.cuda.Stream()):
        assert total("cuda") == expected
    for name in ("stream", "current_stream"):  # either starts CUDA where there is one
        monkeypatch.delattr(torch.cuda, name)
    assert total("cpu") == expected


@pytest.mark.parametrize("standardize", [False, True])
def test_a_path_on_the_gpu_is_the_cpus(standardize):
    with fake_cuda() as counts:
        path = fit_path(X, Y, CS, device="cuda", standardize=standardize)
        kernels, syncs = counts.n_kernels, counts.n_syncs
        given = torch.from_numpy(X).to("cuda")
        probe = LinearProbe(device="cuda").fit(given, torch.from_numpy(Y).to("cuda"))
        proba = probe.predict_proba(given)
    assert path.converged.all()
    expected = fit_path(X, Y, CS, standardize=standardize)
    # both certified to a relative gap of 1e-4
    np.testing.assert_allclose(path.predict_proba(X), expected.predict_proba(X), atol=0.02)
    np.testing.assert_allclose(proba, LinearProbe().fit(X, Y).predict_proba(X), atol=0.02)
    assert kernels <= KERNELS["path"]
    assert syncs <= SYNCS["path"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(
    "options", [{}, {"standardize": True}, {"dtype": "float64"}, {"standardize": True, "dtype": "float32"}], ids=str
)
def test_streamed_rows_go_to_the_gpu_as_they_are_stored_and_pinned(dtype, options):
    values = np.round(40 + 8 * X).astype(dtype)

    class Source:  # as an HDF5 dataset: rows by slices alone
        shape, dtype = values.shape, values.dtype

        def __getitem__(self, rows):
            return values[rows]

    with fake_cuda() as counts:
        path = fit_path(Source(), Y, CS, device="cuda", **options)
    rows = [(kind, pinned) for kind, shape, pinned in counts.to_device if shape[1:] == X.shape[1:]]
    assert len(rows) >= 1 + 2 * bool(options.get("standardize"))  # mean, deviation, and the copy that is fitted
    assert set(rows) == {(torch.from_numpy(values).dtype, True)}
    expected = fit_path(values, Y, CS, **options)
    np.testing.assert_allclose(
        path.predict_proba(values), expected.predict_proba(values), atol=0.02
    )  # both certified to 1e-4


def test_weak_penalties_wait_for_the_gpu_a_few_times_each():
    random = np.random.default_rng(0)
    labels = np.arange(3000) % 5
    rows = (random.normal(size=(3000, 40)) + 0.4 * random.normal(size=(5, 40))[labels]).astype(np.float32)
    with fake_cuda() as counts:
        path = fit_path(rows, labels, np.logspace(-4, 4, 12), device="cuda", dtype="float32")
    assert path.converged.all()
    assert counts.n_syncs <= SYNCS["weak path"]


class MatmulPrecisions(TorchFunctionMode):
    """What float32 products are told of TF32, by the device that they are on."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.addmm_ and args[0].dtype == torch.float32:
            self.seen.add((args[0].device.type, torch.get_float32_matmul_precision()))
        return func(*args, **(kwargs or {}))


def test_tf32_is_for_hessian_products_on_a_gpu_alone():
    assert torch.get_float32_matmul_precision() == "highest"
    rows, labels = np.repeat(X, 20, axis=0) + rng.normal(size=(4800, 6)).astype(np.float32), np.repeat(Y, 20)
    with fake_cuda(), MatmulPrecisions() as precisions:
        path = fit_path(rows, labels, CS, device="cuda", dtype="float32")
        assert torch.get_float32_matmul_precision() == "highest"
    assert path.converged.all()
    assert ("cuda", "high") in precisions.seen
    with MatmulPrecisions() as precisions:
        fit_path(rows, labels, np.logspace(-3, 3, 5), dtype="float32")
    assert "high" not in {precision for _, precision in precisions.seen}


def test_precision_is_as_it_was_when_layers_solved_side_by_side_overlap():
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    first, second = _tensor_cores(on_gpu), _tensor_cores(on_gpu)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "high"  # the second still multiplies
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_model_on_the_gpu_encodes_as_on_the_cpu():
    model = IGPT(ModelConfig(n_layer=2, n_embd=16, n_head=2, vocab_size=11, n_positions=16), seed=1)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 16)).astype(np.uint16)
    expected = encode(model, tokens)
    with fake_cuda() as counts:
        features = encode(model.to("cuda"), tokens)
        assert all(is_fake(feature) for feature in features)
        syncs = counts.n_syncs
        found = [feature.cpu() for feature in features]
        kernels = counts.n_kernels
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert kernels <= KERNELS["encode"]
    assert syncs <= SYNCS["encode"]


def test_an_update_on_the_gpu_is_the_cpus():
    config = TrainConfig(n_layer=2, n_embd=16, n_head=2, resolution=4, n_colours=11, batch_size=4)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 16))
    there = Engine(config, Ranks())
    expected = [there.update(tokens, None, 1e-2) for _ in range(2)]
    with fake_cuda() as counts:
        engine = Engine(config, Ranks(device=torch.device("cuda", 0)))
        engine.update(tokens, None, 1e-2)
        kernels, syncs = counts.n_kernels, counts.n_syncs
        found = engine.update(tokens, None, 1e-2)
        kernels, syncs = counts.n_kernels - kernels, counts.n_syncs - syncs
        # the second loss is of weights that the first update moved
        assert float(found[0]) == pytest.approx(float(expected[1][0]), rel=1e-4)
        assert float(found[1]) == pytest.approx(float(expected[1][1]), rel=1e-3)
    assert kernels <= KERNELS["update"]
    assert syncs <= SYNCS["update"]


def test_a_sweep_on_the_gpu_has_the_records_of_the_cpus(tmp_path):
    with fake_cuda() as counts:
        ours = sweep(MemoryStore(), tmp_path / "gpu", Cs=CS, device="cuda")
        kernels, syncs = counts.n_kernels, counts.n_syncs
    theirs = sweep(MemoryStore(), tmp_path / "cpu", Cs=CS)
    same_records(ours, theirs)
    assert kernels <= KERNELS["sweep"]
    assert syncs <= SYNCS["sweep"]
    assert counts.host_bytes <= HOST_BYTES["sweep"]


def same_records(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.kind, mine.layers, mine.chosen_C) == (other.kind, other.layers, other.chosen_C)
        assert mine.accuracy == pytest.approx(other.accuracy, abs=0.025)
        assert mine.rankme == pytest.approx(other.rankme, rel=1e-6) if other.rankme else mine.rankme is None


@pytest.mark.parametrize(
    ("kinds", "protocol"),
    [
        ({"checks": ["knn", "ridge", "class-mean"]}, ONE_ROUND),
        ({"Cs": None}, get_protocol("sgd-imagenet").with_(name="short", sgd=SGDConfig((1.0, 0.1), 2, 64))),
    ],
)
def test_no_rows_of_a_sweep_come_back_to_the_host(tmp_path, kinds, protocol):
    """Every tensor that leaves the device is smaller than the smallest set of rows that was moved to it."""
    options = {"Cs": CS, "protocol": protocol, "layers": ["01"]} | kinds
    store = MemoryStore(width=40, n_train=300, n_val=60, n_test=60)
    with fake_cuda() as counts:
        ours = sweep(store, tmp_path / "gpu", device="cuda", **options)
    same_records(ours, sweep(store, tmp_path / "cpu", **options))
    fold = store.n_test * store.width * 4  # the test rows are as few as those of the smallest fold
    assert max(size for _, size in counts.to_host) < fold


@pytest.mark.slow
def test_concatenated_layers_stay_on_the_gpu(tmp_path):
    store = MemoryStore(width=40, n_train=300, n_val=60, n_test=60)
    options = {"Cs": CS[:1], "protocol": ONE_ROUND, "window": 2, "probes": ["mix", "banded"], "greedy_width": 80}
    with fake_cuda() as counts:
        ours = concat(store, tmp_path / "gpu", device="cuda", **options)
    same_records(ours, concat(store, tmp_path / "cpu", **options))
    assert max(size for _, size in counts.to_host) < store.n_test * store.width * 4


def test_figures_without_labels_are_the_cpus():
    Z = np.maximum(X @ rng.normal(size=(6, 9)), 0)
    with fake_cuda() as counts:
        there = torch.from_numpy(X).to("cuda"), torch.from_numpy(Z).to("cuda")
        found = [linear_cka(*there, "cuda"), two_nn_dimension(there[0], device="cuda"), rankme(there[1], "cuda")]
        largest = max((size for _, size in counts.to_host), default=0)
    assert found == pytest.approx([linear_cka(X, Z), two_nn_dimension(X), rankme(Z)], rel=1e-6)
    assert largest <= 2 * 8 * len(X)  # two distances a row


def test_checks_of_a_layer_on_the_gpu_are_the_cpus():
    queries = rng.normal(size=(30, 6)).astype(np.float32)
    with fake_cuda() as counts:
        votes = knn_proba(X, Y, queries, ks=(5, 500), device="cuda")
        coef, intercept = fit_ridge(X, Y, [0.1, 10.0], device="cuda")
        rank = rankme(X, device="cuda")
        kernels, syncs = counts.n_kernels, counts.n_syncs
    np.testing.assert_allclose(votes, knn_proba(X, Y, queries, ks=(5, 500)), atol=1e-5)
    np.testing.assert_allclose(coef, fit_ridge(X, Y, [0.1, 10.0])[0], atol=1e-8)
    np.testing.assert_allclose(intercept, fit_ridge(X, Y, [0.1, 10.0])[1], atol=1e-8)
    assert rank == pytest.approx(rankme(X), rel=1e-9)
    assert kernels <= KERNELS["checks"]
    assert syncs <= SYNCS["checks"]
    assert counts.host_bytes <= HOST_BYTES["checks"]
