"""The ways to fit a path of l2 penalties that a user has today: scikit-learn's, and torch's L-BFGS.

A peer is a generator `peer(X, y, Cs)` over penalties from strong to weak (Cs ascending, scikit-learn's convention) that
yields (index, coef (R, d), intercept (R,)), R = 1 for two classes; whoever iterates takes the time of each step. X is
float32 (n, d), y int64 (n,) from 0 to K - 1.
"""

import inspect
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

MAX_ITER = 1000


def scikit_learn(X, y, Cs, solver, warm_start=False, tol=1e-4):
    """`LogisticRegression` for each penalty, from zero or from the penalty before; float64 rows for a tighter `tol`."""
    X = X if tol >= 1e-4 else X.astype(np.float64)
    model = LogisticRegression(solver=solver, warm_start=warm_start, max_iter=MAX_ITER, tol=tol)
    for index, C in enumerate(Cs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_params(C=C).fit(X, y)
        yield index, model.coef_, model.intercept_


def logistic_regression_cv(X, y, Cs):
    """`LogisticRegressionCV`, one fold of all rows and no refit: its own warm-started path, timed as a whole."""
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
    for index in range(len(Cs)):
        theta = np.stack([path[index] for path in paths])
        yield index, theta[:, :-1], theta[:, -1]


def torch_lbfgs(X, y, Cs, warm_start):
    """`torch.optim.LBFGS`, float32, strong Wolfe: cold with history 10 as torchgeo-bench, or warm-started as elk."""
    features, labels = torch.from_numpy(X), torch.from_numpy(y)
    n, K = len(y), int(y.max()) + 1
    R = 1 if K == 2 else K
    W = torch.zeros(R, X.shape[1], requires_grad=True)
    b = torch.zeros(R, requires_grad=True)
    for index, C in enumerate(Cs):
        if not warm_start:
            with torch.no_grad():
                W.zero_(), b.zero_()
        optimizer = torch.optim.LBFGS(
            [W, b], max_iter=MAX_ITER, history_size=100 if warm_start else 10, line_search_fn="strong_wolfe"
        )

        def closure(optimizer=optimizer, C=C):
            optimizer.zero_grad()
            scores = torch.addmm(b, features, W.T)
            if R == 1:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype))
            else:
                loss = torch.nn.functional.cross_entropy(scores, labels)
            loss = loss + W.square().sum() / (2 * n * C)
            loss.backward()
            return loss

        optimizer.step(closure)
        yield index, W.detach().double().numpy().copy(), b.detach().double().numpy().copy()


PEERS = {
    "lbfgs cold": partial(scikit_learn, solver="lbfgs"),
    "lbfgs warm": partial(scikit_learn, solver="lbfgs", warm_start=True),
    "newton-cg cold": partial(scikit_learn, solver="newton-cg"),
    "newton-cg warm": partial(scikit_learn, solver="newton-cg", warm_start=True),
    "newton-cholesky cold": partial(scikit_learn, solver="newton-cholesky"),
    "newton-cholesky warm": partial(scikit_learn, solver="newton-cholesky", warm_start=True),
    "lbfgs warm, tol=1e-6": partial(scikit_learn, solver="lbfgs", warm_start=True, tol=1e-6),
    "newton-cg warm, tol=1e-6": partial(scikit_learn, solver="newton-cg", warm_start=True, tol=1e-6),
    "newton-cg warm, tol=1e-8": partial(scikit_learn, solver="newton-cg", warm_start=True, tol=1e-8),
    "LogisticRegressionCV": logistic_regression_cv,
    "torch L-BFGS cold": partial(torch_lbfgs, warm_start=False),
    "torch L-BFGS warm": partial(torch_lbfgs, warm_start=True),
}
