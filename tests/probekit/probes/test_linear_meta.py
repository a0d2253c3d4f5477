"""What scikit-learn's meta-estimators make of `LinearProbe` is what they make of `LogisticRegression`."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.feature_selection import RFE
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekit import LinearProbe, LinearProbeCV, UserError

X, y = make_classification(120, 8, n_informative=5, n_classes=3, random_state=0)
NAMES = np.array(["ant", "bee", "cat"])[y]
FRAME = pd.DataFrame(X, columns=list("abcdefgh"))
GROUPS = np.random.default_rng(0).integers(0, 12, 120)
WEIGHTS = np.random.default_rng(1).random(120) * (np.arange(120) % 7 > 0)


def theirs(**settings):
    return LogisticRegression(tol=1e-8, max_iter=5000, **settings)


def ours(**settings):
    return LinearProbe(tol=1e-9, **settings)


def one_penalty(C=1.0, **settings):
    return LinearProbeCV(Cs=[C], cv=3, tol=1e-9, **settings)


def routed(make):
    with sklearn.config_context(enable_metadata_routing=True):
        probe = make().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        scores = cross_validate(probe, X, y, params={"sample_weight": WEIGHTS})["test_score"]
        return scores, make_pipeline(scaler, probe).fit(X, y, sample_weight=WEIGHTS).predict_proba(X)


def searched(make):
    names = ("neg_log_loss", "f1_macro", "roc_auc_ovr")
    grid = {"C": [1e-2, 1], "class_weight": [None, "balanced", {"ant": 2, "bee": 1, "cat": 0.5}]}
    search = GridSearchCV(make(), grid, scoring=names, refit="f1_macro", cv=3).fit(X, NAMES)
    return [search.cv_results_[f"mean_test_{name}"] for name in names]


CASES = {
    "pipeline, frames and weights": lambda make: (
        make_pipeline(StandardScaler().set_output(transform="pandas"), clone(make()))
        .fit(
            FRAME,
            pd.Series(NAMES, index=range(120, 0, -1)),
            **{f"{type(make()).__name__.lower()}__sample_weight": WEIGHTS},
        )
        .predict_proba(FRAME)
    ),
    "groups": lambda make: cross_val_score(make(), X, y, groups=GROUPS, cv=GroupKFold(3), scoring="f1_macro"),
    "a class that a fold has not": lambda make: cross_val_predict(
        make(), X[:60], y[:60] * (np.arange(60) < 40), cv=3, method="decision_function"
    ),
    "calibrated": lambda make: CalibratedClassifierCV(make(), cv=3).fit(X, NAMES, WEIGHTS).predict_proba(X),
    "one against the rest": lambda make: OneVsRestClassifier(make()).fit(X, NAMES).decision_function(X),
    "bagged": lambda make: BaggingClassifier(make(), 3, random_state=0).fit(X, y).predict_proba(X),
    "stacked": lambda make: StackingClassifier([("a", make())], make(C=0.1), cv=3).fit(X, NAMES).predict_proba(X),
    "votes": lambda make: (
        VotingClassifier([("a", make()), ("b", make(C=0.1))], voting="soft").fit(X, y).predict_proba(X)
    ),
    "eliminated": lambda make: RFE(make(), n_features_to_select=3).fit(X, y).ranking_,
    "routed": routed,
}


@pytest.mark.parametrize("make", [ours, one_penalty])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_a_meta_estimator_gives_what_it_gives_with_logistic_regression(case, make):
    # both are within 1e-8 of the optimum of a loss of order 1, so scores agree to some 1e-4
    for mine, expected in zip(CASES[case](make), CASES[case](theirs), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-3)


def test_a_search_ranks_as_with_logistic_regression():
    np.testing.assert_allclose(searched(ours), searched(theirs), atol=1e-3)


def test_groups_reach_the_folds_of_a_probe_within_cross_validation():
    with sklearn.config_context(enable_metadata_routing=True):
        probe = LinearProbeCV(Cs=[0.1, 1], cv=GroupKFold(3)).set_fit_request(groups=True)
        found = cross_validate(probe, X, y, params={"groups": GROUPS}, cv=GroupKFold(3), return_estimator=True)
    assert all(one.accuracies_.shape == (3, 2) for one in found["estimator"])


@pytest.mark.parametrize("C", [-1, np.inf, None, "a", np.nan])
def test_a_refused_penalty_has_the_name_of_its_parameter(C):
    with pytest.raises(UserError, match=r"^C must be a positive finite number"):
        LinearProbe(C=C).fit(X, y)
    with pytest.raises(UserError, match=r"^Cs must be positive finite numbers"):
        LinearProbeCV(Cs=[C]).fit(X, y)
