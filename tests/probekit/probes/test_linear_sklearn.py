"""scikit-learn's own tests of LogisticRegression, run from its wheel with `LinearProbe` in its place.

A test's function is run with other globals: `LogisticRegression` stands for `LinearProbe` where the named solvers are
asked for, and stays scikit-learn's otherwise, so that tests which compare solvers compare ours with theirs.
"""

import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature

import numpy as np
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression

from probekit.probes import LinearProbe

pytestmark = [
    pytest.mark.skipif(
        find_spec("sklearn.linear_model.tests.test_logistic") is None, reason="scikit-learn came without its tests"
    ),
    pytest.mark.filterwarnings("ignore:The default value.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_legacy_attributes.*:FutureWarning"),
    # scikit-learn's own solvers, where a test compares them with ours
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning:sklearn.*"),
]

SEED = {"global_random_seed": 42}
DENSE = {"csr_container": lambda X, **dtype: np.asarray(X, **dtype)}
BOTH = [{"fit_intercept": False}, {"fit_intercept": True}]

# name of the test -> the solvers that LinearProbe stands for, and the test's arguments, one set a run
RUN: dict[str, tuple[tuple[str, ...], list[dict]]] = {
    "test_predict_2_classes": (("lbfgs",), [DENSE]),
    "test_predict_3_classes": (("lbfgs",), [DENSE]),
    "test_logistic_glmnet": (("lbfgs",), [{"solver": "lbfgs"}]),
    "test_inconsistent_input": (("lbfgs",), [{}]),
    "test_write_parameters": (("lbfgs",), [{}]),
    "test_nan": (("lbfgs",), [{}]),
    "test_consistency_path": (("lbfgs", "newton-cg", "newton-cholesky"), [SEED]),
    "test_multinomial_logistic_regression_string_inputs": (("lbfgs",), [{}]),
    "test_logistic_cv_folds_with_classes_missing": (
        ("lbfgs",),
        [{"enable_metadata_routing": False, "n_classes": n_classes} for n_classes in (2, 3)],
    ),
    "test_logistic_regression_solvers": (("lbfgs",), [SEED]),
    "test_logistic_regression_solvers_multiclass": (("lbfgs",), BOTH),
    "test_logistic_regression_sample_weights": (("lbfgs",), [SEED | {"problem": "single", "solver": "lbfgs"}]),
    "test_logistic_regression_solver_class_weights": (("lbfgs",), [SEED | {"solver": "lbfgs"}]),
    "test_logistic_regression_class_weights": (("lbfgs",), [SEED | {"csr_container": lambda X: X}]),
    "test_liblinear_decision_function_zero": (("liblinear",), [SEED]),
    "test_logreg_intercept_scaling_zero": (("lbfgs",), [{}]),
    "test_logistic_regression_cv_refit": (("saga",), [SEED | {"l1_ratio": 0}]),
    "test_n_iter": (("lbfgs",), [{"solver": "lbfgs", "use_legacy_attributes": False}]),
    "test_LogisticRegressionCV_on_folds": (("newton-cholesky",), [{}]),
    "test_logisticregression_liblinear_sample_weight": (("liblinear",), [SEED | {"params": {"tol": 1e-12}}]),
    "test_multinomial_identifiability_on_iris": (("lbfgs",), [SEED | one | {"solver": "lbfgs"} for one in BOTH]),
    "test_sample_weight_not_modified": (
        ("lbfgs",),
        [SEED | {"class_weight": {0: 1.0, 1: 10.0, 2: 1.0}}, SEED | {"class_weight": "balanced"}],
    ),
    "test_single_feature_newton_cg": (("newton-cg",), [{}]),
}

L1 = "an l1 penalty, or a mix with it"
CV = "LogisticRegressionCV's own arguments and attributes (scorers, l1 ratios, coefs_paths_)"
UNPENALISED = "no penalty (C = inf), which LinearProbe refuses: separable classes then have no finite fit"
OWN_WORDS = "the words or the count of iterations of scikit-learn's solvers"
WARM = "warm starts, of which LinearProbe has no need: a path is fitted at once"
SPARSE = "sparse features or coefficients, which are refused"
PRIVATE = "private functions of scikit-learn"
DEPRECATED = "arguments of scikit-learn that are being removed"
DEVICES = "the array API and callbacks of scikit-learn; tensors are tested in test_linear_odd_inputs"
NOT_RUN = {
    "test_check_solver_option": L1,
    "test_elasticnet_l1_ratio_err_helpful": L1,
    "test_sparsify": SPARSE,
    "test_logistic_regression_path_convergence_fail": PRIVATE,
    "test_liblinear_dual_random_state": "the dual problem, which depends on a random state",
    "test_logistic_cv": CV,
    "test_logistic_cv_refit_false_non_elasticnet": CV,
    "test_logistic_cv_mock_scorer": CV,
    "test_logistic_cv_multinomial_score": CV,
    "test_multinomial_cv_iris": CV,
    "test_logistic_regression_solvers_multiclass_unpenalized": UNPENALISED,
    "test_logistic_cv_sparse": SPARSE,
    "test_logistic_regressioncv_class_weights": CV,
    "test_sample_and_class_weight_equivalence_liblinear": L1,
    "test_logreg_l1": L1,
    "test_logreg_predict_proba_multinomial": PRIVATE,
    "test_max_iter": OWN_WORDS,
    "test_warm_start": WARM,
    "test_warm_start_newton_solver": WARM,
    "test_saga_vs_liblinear": SPARSE,
    "test_dtype_match": "coef_ in float32: LinearProbe's are float64, as its certificate is",
    "test_warm_start_converge_LR": WARM,
    "test_elastic_net_coeffs": L1,
    "test_elastic_net_l1_l2_equivalence": L1,
    "test_elastic_net_vs_l1_l2": L1,
    "test_LogisticRegression_elastic_net_objective": L1,
    "test_LogisticRegressionCV_GridSearchCV_elastic_net": L1,
    "test_LogisticRegressionCV_no_refit": CV,
    "test_LogisticRegressionCV_elasticnet_attribute_shapes": L1,
    "test_l1_ratio_non_elasticnet": L1,
    "test_elastic_net_versus_sgd": L1,
    "test_logistic_regression_path_coefs_multinomial": PRIVATE,
    "test_logistic_regression_path_init_coefs": PRIVATE,
    "test_penalty_none": UNPENALISED,
    "test_c_inf_no_warning": UNPENALISED,
    "test_scores_attribute_layout_elasticnet": L1,
    "test_large_sparse_matrix": SPARSE,
    "test_liblinear_with_large_values": OWN_WORDS,
    "test_liblinear_not_stuck": L1,
    "test_lr_cv_scores_differ_when_sample_weight_is_requested": CV,
    "test_lr_cv_scores_without_enabling_metadata_routing": CV,
    "test_zero_max_iter": "max_iter = 0, which is refused",
    "test_passing_params_without_enabling_metadata_routing": CV,
    "test_newton_cholesky_fallback_to_lbfgs": OWN_WORDS,
    "test_liblinear_multiclass_raises": OWN_WORDS,
    "test_penalty_deprecated": DEPRECATED,
    "test_logisticregressioncv_warns_with_use_legacy_attributes": DEPRECATED,
    "test_l1_ratio_None_deprecated": DEPRECATED,
    "test_logisticregression_warns_with_n_jobs": DEPRECATED,
    "test_logistic_regression_array_api_compliance": DEVICES,
    "test_lr_penalty_l1ratio_incompatible": L1,
    "test_lr_scoring_warns": DEPRECATED,
    "test_get_default_scorer": PRIVATE,
    "test_logistic_regression_array_api_warm_start": DEVICES,
    "test_logistic_regression_callback_support": DEVICES,
    "test_logistic_regression_callback_fitted_estimator": DEVICES,
    "test_logistic_regression_callback_support_warning": DEVICES,
}


def substitute(solvers: tuple[str, ...], made: list) -> Callable:
    """What a test is handed as `LogisticRegression`."""

    class Probe(LinearProbe):
        def set_params(self, **params):  # scikit-learn's limits count other iterations, and its tol is another figure
            for name in ("tol", "max_iter"):
                params.pop(name, None)
            return super().set_params(**params)

    def make(C=1.0, *, solver="lbfgs", fit_intercept=True, class_weight=None, tol=1e-4, **others):
        if solver not in solvers:
            return LogisticRegression(
                C=C, solver=solver, fit_intercept=fit_intercept, class_weight=class_weight, tol=tol, **others
            )
        assert not others.pop("l1_ratio", 0)
        assert not others.get("warm_start")
        unknown = set(others) - {"max_iter", "random_state", "intercept_scaling", "dual", "verbose", "warm_start"}
        assert not unknown, f"LinearProbe has no {unknown}"
        made.append(solver)
        # scikit-learn's tol bounds the gradient; the gap, which ours bounds, goes with its square
        return Probe(C, fit_intercept=fit_intercept, class_weight=class_weight, tol=min(max(tol**2, 1e-14), 1e-8))

    return make


def scikit_learns() -> types.ModuleType:
    return pytest.importorskip("sklearn.linear_model.tests.test_logistic")


@pytest.mark.parametrize(
    ("name", "solvers", "arguments"),
    [
        pytest.param(name, solvers, arguments, id=f"{name}-{number}")
        for name, (solvers, runs) in RUN.items()
        for number, arguments in enumerate(runs)
    ],
)
def test_scikit_learns_test_passes_with_linear_probe(name, solvers, arguments):
    module = scikit_learns()
    test = getattr(module, name, None)
    if test is None:
        pytest.skip(f"scikit-learn {sklearn.__version__} has no {name}")
    made: list = []
    others = {**vars(module), "LogisticRegression": substitute(solvers, made)}
    again = types.FunctionType(test.__code__, others, name, test.__defaults__, test.__closure__)
    again.__kwdefaults__ = test.__kwdefaults__
    parameters = signature(test).parameters
    # an older test without, say, a random seed is run without it
    given = {key: value for key, value in arguments.items() if key in parameters}
    missing = {key for key, one in parameters.items() if one.default is one.empty} - set(given)
    if missing:
        pytest.skip(f"in scikit-learn {sklearn.__version__} {name} has other arguments: {', '.join(sorted(missing))}")
    again(**given)
    assert made, "the test made no LinearProbe"


def test_every_test_of_scikit_learns_is_run_or_has_its_reason():
    module = scikit_learns()
    if not sklearn.__version__.startswith("1.9."):
        pytest.skip("the list is of scikit-learn 1.9")
    there = {name for name in vars(module) if name.startswith("test_")}
    assert not set(RUN) & set(NOT_RUN)
    assert there == set(RUN) | set(NOT_RUN)
    assert sys.modules[LogisticRegression.__module__].LogisticRegression is LogisticRegression  # nothing was patched
