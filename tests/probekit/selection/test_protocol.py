"""Each protocol's penalties against a direct minimisation of its own source's objective."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from probekit.probes import PROTOCOLS, fit_path, get_protocol
from probekit.runtime.errors import UserError
from probekit.selection.protocol import SGDConfig, grid_words, kornblith_lambda_to_C, refine_grid
from probekit.solver.objective import l2_to_C

N, D = 80, 4


def rows(n_classes):
    rng = np.random.default_rng(n_classes)
    y = rng.integers(0, n_classes, N)
    return rng.normal(size=(N, D)) + 0.7 * np.eye(D)[y], y


def minimised(X, y, n_classes, penalty, mean):
    """Probabilities at the minimum of penalty(W) + the sum or mean of cross-entropies; K rows, intercepts free."""

    def objective(flat):
        W, b = flat[: n_classes * D].reshape(n_classes, D), flat[n_classes * D :]
        scores = X @ W.T + b
        losses = logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]
        return penalty(W) + (losses.mean() if mean else losses.sum())

    flat = minimize(objective, np.zeros(n_classes * (D + 1)), tol=1e-12, options={"maxiter": 4000}).x
    scores = X @ flat[: n_classes * D].reshape(n_classes, D).T + flat[n_classes * D :]
    return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))


# each objective as its source writes it, and the conversion that should find the same minimum
CONVENTIONS = {
    "linear_eval: lambda W^2 + sum": (lambda W: 0.8 * (W**2).sum(), False, lambda K: kornblith_lambda_to_C(0.8, K)),
    "CLIP: C = 1/lambda of scikit-learn": (lambda W: 0.4 * (W**2).sum(), False, lambda K: np.array(1 / 0.8)),
    "elk: lambda/2 W^2 + mean": (lambda W: 0.01 * (W**2).sum(), True, lambda K: l2_to_C(0.02, N)),
    "cyanure: lambda/(2N) W^2 + mean": (lambda W: 0.4 / N * (W**2).sum(), True, lambda K: np.array(1 / 0.8)),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_converted_C_has_the_same_minimum(name):
    penalty, mean, to_C = CONVENTIONS[name]
    X, y = rows(3)
    expected = minimised(X, y, 3, penalty, mean)
    path = fit_path(X, y, to_C(3), tol=1e-10)
    np.testing.assert_allclose(path.predict_proba(X)[0], expected, atol=1e-4)
    ten_times = fit_path(X, y, 10 * to_C(3), tol=1e-10).predict_proba(X)[0]
    assert np.abs(ten_times - expected).max() > 0.01  # the comparison can tell penalties apart


def test_two_rows_for_two_classes_halve_linear_evals_penalty():
    X, y = rows(2)
    expected = minimised(X, y, 2, lambda W: 0.8 * (W**2).sum(), False)
    path = fit_path(X, y, kornblith_lambda_to_C(0.8, 2), tol=1e-10)
    np.testing.assert_allclose(path.predict_proba(X)[0], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["igpt", "dinov2-45", "clip-coarse-fine", "kornblith"])
def test_a_protocols_C_means_what_scikit_learns_does(name):
    X, y = rows(3)
    protocol = get_protocol(name)
    C = protocol.Cs[len(protocol.Cs) // 2]
    scaled = (X - X.mean(axis=0)) / X.std(axis=0) if protocol.standardize else X
    oracle = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(scaled, y)
    path = fit_path(X, y, [C], standardize=protocol.standardize, tol=1e-10)
    np.testing.assert_allclose(path.predict_proba(X)[0], oracle.predict_proba(scaled), atol=1e-4)


def test_the_grids_are_those_of_their_sources():
    for name in ("igpt", "dinov2-45"):
        np.testing.assert_allclose(np.log10(PROTOCOLS[name].Cs), np.linspace(-6, 5, 45))
    np.testing.assert_allclose(1 / np.array(PROTOCOLS["clip-coarse-fine"].Cs)[::-1], 10.0 ** np.arange(-6, 7, 2))
    np.testing.assert_allclose(0.5 / np.array(PROTOCOLS["kornblith"].Cs)[::-1], 10.0 ** np.arange(-6, 7, 2))
    assert PROTOCOLS["sgd-imagenet"].sgd.learning_rates[:3] == (30.0, 10.0, 3.0)
    assert PROTOCOLS["sgd-imagenet"].sgd.momentum == 0.9


def test_four_halvings_end_at_eight_steps_a_decade():
    Cs = PROTOCOLS["clip-coarse-fine"].Cs
    spacings = [np.log10(refine_grid(Cs, 3, step)[1] / Cs[3]) for step in (1, 2, 3, 4)]
    np.testing.assert_allclose(spacings, [1, 1 / 2, 1 / 4, 1 / 8])
    low, high = refine_grid(Cs, 3, 1)
    np.testing.assert_allclose([low * high, 3], [Cs[3] ** 2, 3])


def test_a_protocols_hash_depends_on_its_settings_and_not_on_its_source():
    hashes = {name: protocol.hash for name, protocol in PROTOCOLS.items()}
    assert len(set(hashes.values())) == len(hashes)
    igpt = PROTOCOLS["igpt"]
    assert igpt.with_(source="elsewhere").hash == igpt.hash
    assert igpt.with_(Cs=[1.0]).hash != igpt.hash
    assert igpt.with_(Cs=[1.0]).name == "igpt*"
    assert "sgd" not in igpt.resolved()
    for protocol in PROTOCOLS.values():
        assert json.loads(json.dumps(protocol.resolved())) == protocol.resolved()
    with pytest.raises(UserError, match="choose one of igpt, dinov2-45, clip-coarse-fine, kornblith, sgd-imagenet"):
        get_protocol("nobody")


def test_every_protocol_is_shown_in_one_line_with_its_grid():
    assert repr(PROTOCOLS["dinov2-45"]) == "Protocol('dinov2-45': 45 C from 1e-06 to 100000)"
    assert "9 learning rates" in repr(PROTOCOLS["sgd-imagenet"])
    assert all("\n" not in repr(protocol) for protocol in PROTOCOLS.values())
    assert [grid_words(Cs) for Cs in ((), (0.5,), (0.01, 1))] == ["no C", "C = 0.5", "2 C from 0.01 to 1"]


@pytest.mark.parametrize("Cs", ["12", b"12", np.array([1 + 1j]), [1j], [10**400], 1.0], ids=repr)
def test_penalties_of_a_protocol_are_a_list_of_real_numbers(Cs):
    with pytest.raises(UserError, match=r"Cs is .*; give positive numbers such as \[0\.01, 0\.1, 1\]"):
        PROTOCOLS["igpt"].with_(Cs=Cs)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"learning_rates": ()}, "learning_rates is empty"),
        ({"learning_rates": (0.1, float("nan"))}, "learning_rates is nan; expected a number above 0"),
        ({"epochs": 0}, "epochs is 0; expected a number from 1"),
        ({"batch_size": 0}, "batch_size is 0; expected a number from 1"),
        ({"momentum": 2.0}, "momentum is 2; expected a number from 0 to 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1; expected a number from 0"),
        ({"seed": -1}, "seed is -1; expected a number from 0"),
        ({"epochs": True}, "epochs is True; SGDConfig expected a whole number"),
    ],
    ids=str,
)
def test_settings_of_sgd_out_of_range_are_refused(setting, problem):
    with pytest.raises(UserError, match=problem):
        SGDConfig(**setting)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"selection": "VAL"}, "selection is 'VAL'; choose auto or val or cv5"),
        ({"selection": "cv10"}, "selection is 'cv10'; choose auto or val or cv5"),
        ({"refit": "training"}, r"refit is 'training'; choose train\+val or train"),
        ({"refine": -1}, "refine is -1; expected a number from 0"),
    ],
    ids=str,
)
def test_rules_of_a_protocol_that_do_not_exist_are_refused(setting, problem):
    with pytest.raises(UserError, match=problem):
        PROTOCOLS["igpt"].with_(**setting)
