"""Each named protocol, swept on a feature file, against a direct computation of its own convention in float64.

The direct computations know the conventions (docs/explanation/protocols.md) and nothing of the solver: scikit-learn's
Newton-Cholesky, for `kornblith` SciPy on linear_eval's own objective, for `sgd-imagenet` a plain loop.

How near the answers must be: at the minimum of a summed softmax loss with a penalty, the objective's gap of any other
probe is the sum over the fitted rows of KL(p*, p) plus the penalty of the difference in W. So the protocol's tolerance
(relative gap 1e-4) bounds the mean KL, and by Pinsker's inequality the total variation. The same sweep at tol = 1e-10
leaves so little that choices, held-out accuracies and coefficients must be the same.
"""

from functools import cache

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from probekit.evaluate.sweep import sweep
from probekit.features.store import FeatureStore
from probekit.probes import get_protocol
from probekit.probes.sgd import epoch_order
from probekit.results.predictions import load_probe

GRID_45 = 10.0 ** np.linspace(-6, 5, 45)
LAMBDAS = 10.0 ** np.arange(-6, 7, 2)
HALVINGS = (1, 1 / 2, 1 / 4, 1 / 8)  # decades: a grid of two decades, halved four times
N_VAL = 600
RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


def make_rows(n_classes, n_train, strengths, spread):
    """X (n, 12) float32 of each layer and y (n,) by split; columns differ in scale and mean unless `spread` is 1."""
    rng = np.random.default_rng(5)
    scale, shift = spread ** rng.uniform(-1, 1, 12), np.log(spread) * rng.normal(size=12)
    centres, splits = rng.normal(size=(n_classes, 12)), {}
    for name, n in {"train": n_train, "val": N_VAL, "test": 200}.items():
        y = rng.integers(0, n_classes, n)
        layers = [(strength * centres[y] + rng.normal(size=(n, 12))) * scale + shift for strength in strengths]
        splits[name] = ([X.astype(np.float32) for X in layers], y)
    return splits


@cache
def rows(n_classes):
    return make_rows(n_classes, 100, (0.6,), 5.0)


def part(n_classes, *names):
    """X in float64 and y of the named splits joined."""
    splits = [rows(n_classes)[name] for name in names]
    return np.concatenate([layers[0] for layers, _ in splits]).astype(float), np.concatenate([y for _, y in splits])


def log_proba(X, coef, intercept):
    scores = X @ coef.T + intercept
    return log_softmax(np.column_stack([0 * scores, scores]) if scores.shape[1] == 1 else scores, axis=1)


def figures(log_p, y):
    """Accuracy and mean cross-entropy."""
    return (log_p.argmax(axis=1) == y).mean(), -log_p[np.arange(len(y)), y].mean()


def logistic(X, y, C):
    """Coefficients and intercept of scikit-learn's objective."""
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=500).fit(X, y)
    return model.coef_, model.intercept_


def linear_eval(X, y, C):
    """Minimum of lambda ||W||^2 + summed cross-entropy over K rows of W and free intercepts.

    lambda is 1/(2 C). With two classes it is 1/C, the two rows ending at -w/2 and w/2; the named grid, whose C is
    1/(2 lambda) always, has there twice the lambdas of linear_eval (docs/explanation/protocols.md).
    """
    K, (n, D) = len(np.unique(y)), X.shape
    lam = 1 / C if K == 2 else 1 / (2 * C)
    scale = np.abs(X).max(axis=0)  # better conditioned variables, the same problem
    Z = np.column_stack([X / scale, np.ones(n)])
    penalty = np.tile(np.append(2 * lam / scale**2, 0.0), K)
    targets = np.eye(K)[y]

    def value_and_gradient(flat):
        log_p = log_softmax(Z @ flat.reshape(K, D + 1).T, axis=1)
        gradient = ((np.exp(log_p) - targets).T @ Z).ravel() + penalty * flat
        return 0.5 * penalty @ flat**2 - (targets * log_p).sum(), gradient

    def hessian(flat):
        p = np.exp(log_softmax(Z @ flat.reshape(K, D + 1).T, axis=1))
        blocks = [[(Z.T * (p[:, i] * ((i == j) - p[:, j]))) @ Z for j in range(K)] for i in range(K)]
        return np.block(blocks) + np.diag(penalty)

    zero = np.zeros(K * (D + 1))
    found = minimize(value_and_gradient, zero, jac=True, hess=hessian, method="trust-ncg", options={"gtol": 1e-9})
    theta = found.x.reshape(K, D + 1)
    coef, intercept = theta[:, :-1] / scale, theta[:, -1] - theta[:, -1].mean()
    return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if K == 2 else (coef, intercept)


def standardised(fit, X, y, C):
    """`fit` on standardised X, its coefficients on X as it was."""
    scaler = StandardScaler().fit(X)
    coef, intercept = fit(scaler.transform(X), y, C)
    return coef / scaler.scale_, intercept - coef / scaler.scale_ @ scaler.mean_


FITS = {
    "igpt": lambda X, y, C: standardised(logistic, X, y, C),
    "dinov2-45": logistic,
    "clip-coarse-fine": logistic,
    "kornblith": linear_eval,
}


@cache
def held_out(name, n_classes, C):
    """Accuracy and log-loss of a penalty: igpt by five folds of train + val, the others on val."""
    if name != "igpt":
        X, y = part(n_classes, "val")
        return figures(log_proba(X, *FITS[name](*part(n_classes, "train"), C)), y)
    X, y = part(n_classes, "train", "val")
    log_p = np.zeros((len(y), n_classes))
    for fit, held in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
        log_p[held] = log_proba(X[held], *FITS[name](X[fit], y[fit], C))
    return figures(log_p, y)


def searched(name, n_classes):
    """Every C that the convention tries, and its choice: accuracy, then log-loss, then the smaller C."""

    def best():
        return min(tried, key=lambda C: (-held_out(name, n_classes, C)[0], held_out(name, n_classes, C)[1], C))

    tried = {"clip-coarse-fine": 1 / LAMBDAS, "kornblith": 1 / (2 * LAMBDAS)}.get(name, GRID_45).tolist()
    for decades in HALVINGS if len(tried) == 7 else ():
        around = best() * 10.0 ** np.array([-decades, decades])
        tried += [C for C in around if not np.isclose(C, tried).any()]
    return sorted(tried), best()


def swept(folder, splits, protocol):
    """Records and probe files, a layer each."""
    FeatureStore.from_arrays(folder / "features.h5", splits, encoder={"name": "toy"}, dataset={"name": "blobs"})
    results = sweep(folder / "features.h5", protocol=protocol)
    return [(record, load_probe(folder / record.probe_file)) for record in results]


@pytest.mark.parametrize(("name", "n_classes"), [*((name, 3) for name in FITS), ("dinov2-45", 2), ("kornblith", 2)])
def test_solved_tightly_every_figure_is_the_conventions(tmp_path, name, n_classes):
    ((record, probe),) = swept(tmp_path, rows(n_classes), get_protocol(name).with_(tol=1e-10))
    tried, chosen = searched(name, n_classes)
    np.testing.assert_allclose(record.Cs, tried, rtol=1e-9)
    assert record.chosen_C == pytest.approx(chosen, rel=1e-9)
    assert all(record.converged)
    expected = np.array([held_out(name, n_classes, C) for C in tried])
    np.testing.assert_allclose(record.val_accuracy, expected[:, 0], atol=1e-12)
    # a gap of 1e-10 moves scores by sqrt(2e-10) = 1.4e-5, root mean square over the fitted rows
    np.testing.assert_allclose(record.val_log_loss, expected[:, 1], rtol=1e-4)
    assert np.abs(np.diff(np.log(expected[:, 1]))).max() > 0.01  # neighbouring penalties differ by more
    coef, intercept = FITS[name](*part(n_classes, "train", "val"), chosen)
    np.testing.assert_allclose(probe["coef"], coef, atol=1e-5 * np.abs(coef).max())
    np.testing.assert_allclose(probe["intercept"], intercept, atol=1e-5 * np.abs(intercept).max())
    X, y = part(n_classes, "test")
    assert record.metrics["top1"] == figures(log_proba(X, coef, intercept), y)[0]


@pytest.mark.parametrize("name", FITS)
def test_as_named_every_figure_is_the_conventions_within_the_protocols_tolerance(tmp_path, name):
    n_classes = 3
    ((record, probe),) = swept(tmp_path, rows(n_classes), name)
    assert record.selection == ("cv5" if name == "igpt" else "val")
    mean_kl = get_protocol(name).tol * np.log(n_classes)  # the objective at its minimum is log K a row at most
    expected = np.array([held_out(name, n_classes, C) for C in record.Cs])
    # only rows that are undecided between two classes can change sides: as many as the total variation allows
    tie = np.sqrt(mean_kl / 2)
    np.testing.assert_allclose(record.val_accuracy, expected[:, 0], atol=tie)
    np.testing.assert_allclose(record.val_log_loss, expected[:, 1], atol=np.sqrt(2 * mean_kl))
    assert held_out(name, n_classes, record.chosen_C)[0] >= expected[:, 0].max() - 2 * tie
    X, y = part(n_classes, "train", "val")
    wanted = log_proba(X, *FITS[name](X, y, record.chosen_C))

    def kl(coef, intercept):
        return (np.exp(wanted) * (wanted - log_proba(X, coef, intercept))).sum(axis=1).mean()

    assert kl(probe["coef"], probe["intercept"]) <= mean_kl
    assert kl(*FITS[name](*part(n_classes, "train"), record.chosen_C)) > 10 * mean_kl  # a fit on train alone is seen


def test_linear_evals_own_order_of_search_ends_at_the_same_lambda():
    """It tries the upper half-step only where the lower did not gain, and moves for a gain in accuracy only.

    So ties, where ours goes on to the smaller log-loss, can part the two; these rows have none that matters.
    """

    def accuracy(value):
        return held_out("kornblith", 3, 1 / (2 * value))[0]

    best = max(LAMBDAS, key=accuracy)
    for decades in HALVINGS:
        gains = (best * 10.0**step for step in (-decades, decades) if accuracy(best * 10.0**step) > accuracy(best))
        best = next(gains, best)
    assert 1 / (2 * best) == pytest.approx(searched("kornblith", 3)[1], rel=1e-9)
    assert best not in LAMBDAS  # the halvings moved it


def momentum_sgd(X, y, n_classes, rate):
    """Heads (K, D), (K,) after 30 epochs of batches of 256, momentum 0.9, a cosine to zero, no decay, from zero.

    Only the order of rows, which no convention fixes, is the package's.
    """
    coef, intercept = np.zeros((n_classes, X.shape[1])), np.zeros(n_classes)
    speed, speed_of_intercept, step = 0 * coef, 0 * intercept, 0
    size = min(256, len(y))
    per_epoch = len(y) // size
    for epoch in range(30):
        order = epoch_order(len(y), len(y), 0, epoch)
        for batch in order[: per_epoch * size].reshape(per_epoch, size):
            residual = np.exp(log_softmax(X[batch] @ coef.T + intercept, axis=1)) - np.eye(n_classes)[y[batch]]
            speed = 0.9 * speed + residual.T @ X[batch] / size
            speed_of_intercept = 0.9 * speed_of_intercept + residual.mean(axis=0)
            now = rate * (1 + np.cos(np.pi * step / (30 * per_epoch))) / 2
            coef, intercept, step = coef - now * speed, intercept - now * speed_of_intercept, step + 1
    return coef, intercept


@pytest.mark.parametrize(("n_classes", "n_train"), [(3, 600), (2, 256)])  # 256: one batch, whose order is nothing
def test_sgd_imagenet_is_a_plain_loop_for_every_layer_and_rate(tmp_path, n_classes, n_train):
    splits = make_rows(n_classes, n_train, (0.3, 0.6), 1.0)
    y, y_val, y_test = (splits[name][1] for name in ("train", "val", "test"))
    for layer, (record, probe) in enumerate(swept(tmp_path, splits, "sgd-imagenet")):
        X, X_val, X_test = (splits[name][0][layer].astype(float) for name in ("train", "val", "test"))
        heads = {rate: momentum_sgd(X, y, n_classes, rate) for rate in RATES}
        tried = {rate: figures(log_proba(X_val, *head), y_val) for rate, head in heads.items()}
        expected = np.array(list(tried.values()))
        np.testing.assert_array_equal(record.Cs, RATES)
        np.testing.assert_allclose(record.val_accuracy, expected[:, 0], atol=1.01 / N_VAL)  # a row, for rounding
        # heads are float32 (6e-8); rates of 10 and 30 overshoot at first, which magnifies rounding some hundred times
        np.testing.assert_allclose(record.val_log_loss, expected[:, 1], rtol=2e-4)
        chosen = min(RATES, key=lambda rate: (-tried[rate][0], tried[rate][1], rate))
        assert record.chosen_C == chosen
        assert RATES[-1] < chosen < RATES[0]  # rates that are too large and too small lose
        coef, intercept = heads[chosen]
        if n_classes == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        np.testing.assert_allclose(probe["coef"], coef, atol=2e-5 * np.abs(coef).max())
        np.testing.assert_allclose(probe["intercept"], intercept, atol=2e-5 * np.abs(coef).max())
        assert record.metrics["top1"] == figures(log_proba(X_test, coef, intercept), y_test)[0]
        assert not any(record.converged)
