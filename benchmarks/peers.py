"""The ways to fit a path of l2 penalties that a user has today: scikit-learn's, and torch's L-BFGS.

`PEERS[name](X, y)` returns `fit(C, tol, cold)`, which returns (coef (R, d), intercept (R,)), R = 1 for two classes: it
starts from zero if `cold`, else from what the call before it returned. C is scikit-learn's; X is float32 (n, d), y
int64 (n,) from 0 to K - 1. At tol=1e-4, every solver's default, rows stay float32; below that they are float64.
"""

import inspect
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

MAX_ITER = 1000  # of the fits at the default tolerance; tighter ones have ten times as many


def scikit_learn(X, y, solver):
    """`LogisticRegression`, warm-started by itself."""
    model = LogisticRegression(solver=solver, warm_start=True)
    rows: dict[type, np.ndarray] = {np.float32: X}

    def fit(C, tol, cold):
        dtype = np.float64 if tol < 1e-4 else np.float32
        if dtype not in rows:
            rows[dtype] = X.astype(dtype)
        if cold and hasattr(model, "coef_"):
            del model.coef_
        model.set_params(C=C, tol=tol, max_iter=MAX_ITER if tol >= 1e-4 else 10 * MAX_ITER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(rows[dtype], y)
        return model.coef_, model.intercept_

    return fit


def torch_lbfgs(X, y, history):
    """`torch.optim.LBFGS`, strong Wolfe, its tolerances those of its documentation at tol=1e-4 and in proportion below.

    With history 10 and cold starts it is torchgeo-bench's, with history 100 and warm starts elk's.
    """
    n, K = len(y), int(y.max()) + 1
    R = 1 if K == 2 else K
    labels = torch.from_numpy(y)
    features = {torch.float32: torch.from_numpy(X)}
    before = [torch.zeros(R, X.shape[1]), torch.zeros(R)]

    def fit(C, tol, cold):
        dtype = torch.float64 if tol < 1e-4 else torch.float32
        if dtype not in features:
            features[dtype] = features[torch.float32].to(dtype)
        W, b = (part.to(dtype).mul(0 if cold else 1).clone().requires_grad_() for part in before)
        optimizer = torch.optim.LBFGS(
            [W, b],
            max_iter=MAX_ITER if tol >= 1e-4 else 10 * MAX_ITER,
            tolerance_grad=1e-3 * tol,
            tolerance_change=1e-5 * tol,
            history_size=history,
            line_search_fn="strong_wolfe",
        )

        def closure():
            optimizer.zero_grad()
            scores = torch.addmm(b, features[dtype], W.T)
            if R == 1:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], labels.to(dtype))
            else:
                loss = torch.nn.functional.cross_entropy(scores, labels)
            loss = loss + W.square().sum() / (2 * n * C)
            loss.backward()
            return loss

        optimizer.step(closure)
        before[:] = W.detach(), b.detach()
        return W.detach().double().numpy(), b.detach().double().numpy()

    return fit


def logistic_regression_cv(X, y, Cs):
    """(coef, intercept) of each C by `LogisticRegressionCV`'s own warm-started path: one fold of all rows, no refit."""
    every, few = np.arange(len(y)), np.unique(y, return_index=True)[1]  # a handful is held out: scoring costs nothing
    options = {"use_legacy_attributes": True, "l1_ratios": (0,), "scoring": "accuracy"}
    known = inspect.signature(LogisticRegressionCV).parameters
    options = {name: value for name, value in options.items() if name in known}
    model = LogisticRegressionCV(Cs=Cs, cv=[(every, few)], refit=False, max_iter=MAX_ITER, tol=1e-4, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
    # a dict of classes: (folds, penalties, features + 1), with an axis of l1 ratios at its end in some versions
    paths = [np.asarray(path).reshape(len(Cs), X.shape[1] + 1) for path in model.coefs_paths_.values()]
    thetas = [np.stack([path[index] for path in paths]) for index in range(len(Cs))]
    return [(theta[:, :-1], theta[:, -1]) for theta in thetas]


PEERS = {solver: partial(scikit_learn, solver=solver) for solver in ("lbfgs", "newton-cg", "newton-cholesky")} | {
    "torch L-BFGS": partial(torch_lbfgs, history=100),
    "torch L-BFGS, history 10": partial(torch_lbfgs, history=10),
}
