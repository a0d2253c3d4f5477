"""The estimators are scikit-learn citizens: its own checks, its own answers, its own habits of saving."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data, parametrize_with_checks

from probekit.probes import LinearProbe, LinearProbeCV, fit_path
from probekit.runtime.errors import UserError
from probekit.selection.choose_C import choose

WEIGHTS = "check_sample_weight_equivalence_on_dense_data"


@parametrize_with_checks([LinearProbe(), LinearProbeCV(Cs=(0.1, 1.0), cv=2)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([LinearProbe(standardize=True), LinearProbe(C=100, tol=1e-6), LinearProbeCV()])
def test_scikit_learns_own_checks_with_other_settings(estimator, check):
    if type(estimator) is LinearProbeCV and check.func.__name__ == WEIGHTS:
        pytest.skip("run by test_weights_choose_like_repeated_rows_on_the_default_grid")
    check(estimator)


def test_weights_choose_like_repeated_rows_on_the_default_grid():
    """The suite had checked two penalties only, among which weights hardly ever change the choice."""
    check_sample_weight_equivalence_on_dense_data("LinearProbeCV", LinearProbeCV())


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = rng.normal(size=(90, 5)) + np.eye(5)[y] * 1.5
    return X, y, rng.integers(0, 4, 90).astype(float)


def test_sample_weights_are_scikit_learns(rows):
    X, y, weights = rows
    ours = LinearProbe(0.3, tol=1e-12).fit(X, y, weights)
    oracle = LogisticRegression(C=0.3, tol=1e-10, max_iter=5000).fit(X, y, weights)
    np.testing.assert_allclose(ours.coef_, oracle.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, oracle.intercept_ - oracle.intercept_.mean(), atol=1e-5)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 1.0, 2: 0.5}])
def test_class_weights_are_scikit_learns(rows, class_weight):
    X, y, weights = rows
    for sample_weight in (None, weights):
        ours = LinearProbe(0.3, class_weight=class_weight, tol=1e-12).fit(X, y, sample_weight)
        oracle = LogisticRegression(C=0.3, class_weight=class_weight, tol=1e-10, max_iter=5000)
        np.testing.assert_allclose(ours.coef_, oracle.fit(X, y, sample_weight).coef_, atol=1e-5)


def test_two_classes_are_scikit_learns_sigmoid(rows):
    X, y, _ = rows
    X, names = X[y < 2], np.array(["cat", "dog"])[y[y < 2]]
    ours = LinearProbe(2.0, tol=1e-12).fit(X, names)
    oracle = LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(X, names)
    assert ours.coef_.shape == oracle.coef_.shape == (1, 5)
    assert ours.decision_function(X).shape == (len(X),)
    np.testing.assert_allclose(ours.coef_, oracle.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), oracle.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(ours.predict_log_proba(X), oracle.predict_log_proba(X), atol=1e-4)
    np.testing.assert_array_equal(ours.predict(X), oracle.predict(X))


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_kind_of_input_gives_one_answer(rows, kind, bits, n_classes):
    X, y = rows[0][rows[1] < n_classes], rows[1][rows[1] < n_classes]
    X = X.astype(np.float16)  # so that every width holds the same numbers
    expected = LinearProbe(tol=1e-12).fit(X.astype(np.float64), y)
    given = X.astype(f"float{bits}")
    labels = y
    if kind == "torch":
        given, labels = torch.from_numpy(given), torch.from_numpy(y)
    probe = LinearProbe(tol=1e-8).fit(given, labels)
    np.testing.assert_allclose(probe.coef_, expected.coef_, atol=1e-3)
    np.testing.assert_allclose(probe.predict_proba(given), expected.predict_proba(X), atol=1e-3)
    assert probe.score(given, labels) == expected.score(X, y)
    assert probe.certificate_["grad_rel"] < 1e-2
    chosen = LinearProbeCV(Cs=(0.1, 1.0), cv=2).fit(given, labels)
    assert chosen.converged_
    assert chosen.C_ in (0.1, 1.0)


@pytest.mark.gpu
def test_a_tensor_on_a_gpu_stays_there(rows):
    X, y, _ = rows
    probe = LinearProbe(device="cuda").fit(torch.from_numpy(X).cuda(), torch.from_numpy(y).cuda())
    np.testing.assert_allclose(probe.coef_, LinearProbe(tol=1e-10).fit(X, y).coef_, atol=1e-2)


def test_pickled_and_saved_probes_say_the_same(rows, tmp_path):
    X, y, _ = rows
    for labels in (y, np.array(["ab", "c", "def"])[y], np.array(["ab", "c", "def"], dtype=object)[y]):
        probe = LinearProbe(0.5, standardize=True).fit(X, labels)
        (tmp_path / "probe.safetensors").unlink(missing_ok=True)
        probe.save(tmp_path / "probe.safetensors")
        for again in (pickle.loads(pickle.dumps(probe)), LinearProbe.load(tmp_path / "probe.safetensors")):
            np.testing.assert_array_equal(again.predict_proba(X), probe.predict_proba(X))
            np.testing.assert_array_equal(again.predict(X), probe.predict(X))
            assert again.get_params() == probe.get_params()
            assert again.certificate_ == probe.certificate_
            assert again.converged_ is probe.converged_
    chosen = LinearProbeCV(Cs=(0.1, 1.0), cv=3).fit(X, y)
    chosen.save(tmp_path / "cv.safetensors")
    np.testing.assert_array_equal(LinearProbe.load(tmp_path / "cv.safetensors").coef_, chosen.coef_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(chosen)).coef_, chosen.coef_)


def test_numpy_parameters_and_class_weights_survive_saving(rows, tmp_path):
    X, y, _ = rows
    probe = LinearProbe(np.float64(0.5), class_weight={0: 2.0, 1: 1.0, 2: np.float32(0.5)}).fit(X, y)
    probe.save(tmp_path / "probe.safetensors")
    again = LinearProbe.load(tmp_path / "probe.safetensors")
    assert again.class_weight == {0: 2.0, 1: 1.0, 2: 0.5}
    np.testing.assert_allclose(again.fit(X, y).coef_, probe.coef_, atol=1e-7)


def test_a_file_that_is_no_probe_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a probe")
    with pytest.raises(UserError, match="not a probe file"):
        LinearProbe.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        LinearProbe.load(tmp_path / "absent.safetensors")


def test_pipelines_grid_searches_and_clones_take_it(rows):
    X, y, _ = rows
    search = GridSearchCV(make_pipeline(StandardScaler(), LinearProbe()), {"linearprobe__C": [0.01, 1.0]}, cv=3)
    assert search.fit(X, y).best_score_ > 0.6
    assert clone(LinearProbe(7.0, standardize=True)).get_params() == LinearProbe(7.0, standardize=True).get_params()


@pytest.mark.parametrize("cv", [4, KFold(3)])
def test_the_choice_of_C_is_a_plain_loops(rows, cv):
    X, y, weights = rows
    Cs = np.logspace(-3, 1, 5)
    chosen = LinearProbeCV(Cs=Cs, cv=cv, tol=1e-6).fit(X, y, weights)
    means = np.zeros(5)
    folds = StratifiedKFold(cv, shuffle=True, random_state=0) if isinstance(cv, int) else cv
    for train, held in folds.split(X, y):
        for i, C in enumerate(Cs):
            model = LogisticRegression(C=C, tol=1e-9, max_iter=5000).fit(X[train], y[train], weights[train])
            means[i] += model.score(X[held], y[held], weights[held])
    np.testing.assert_allclose(chosen.accuracies_.sum(axis=0), means)
    assert chosen.C_ in Cs[means == means.max()]
    np.testing.assert_allclose(chosen.coef_, LinearProbe(chosen.C_, tol=1e-6).fit(X, y, weights).coef_)


def test_rows_of_weight_zero_choose_like_rows_removed():
    """Rows that are wrong and weigh nothing stand in the held-out part: the log-loss that breaks ties ignores them."""
    rng = np.random.default_rng(0)
    X, weights = rng.normal(size=(120, 2)), np.ones(120)
    y = (X[:, 0] > 0).astype(int)
    X[:, 0] += np.where(y, 3, -3)
    X[80:, 0] *= -1
    weights[80:] = 0
    train = np.arange(40)
    with_them = LinearProbeCV([1e-2, 1.0, 1e2], cv=[(train, np.arange(40, 120))]).fit(X, y, sample_weight=weights)
    without = LinearProbeCV([1e-2, 1.0, 1e2], cv=[(train, np.arange(40, 80))]).fit(X[:80], y[:80])
    assert with_them.C_ == without.C_ == 100.0
    np.testing.assert_array_equal(with_them.accuracies_, without.accuracies_)
    np.testing.assert_allclose(with_them.log_losses_, without.log_losses_, rtol=1e-12)


def test_ties_up_to_rounding_go_to_the_log_loss_and_then_to_the_smaller_C():
    folds = np.array([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])  # both 0.2 on average, but 5.6e-17 apart as computed
    Cs, every = np.array([1.0, 2.0]), np.ones(2, bool)
    assert folds.mean(axis=0)[0] != folds.mean(axis=0)[1]
    assert choose(folds.mean(axis=0), np.array([9.0, 1.0]), Cs, every) == 1
    assert choose(folds.mean(axis=0)[::-1], np.array([1.0, 9.0]), Cs, every) == 0
    assert choose(folds.mean(axis=0), np.array([1.0, 1.0 - 1e-15]), Cs, every) == 0
    assert choose(np.array([0.5, 0.5 + 1e-6]), np.array([1.0, 9.0]), Cs, every) == 1  # one row of a million is no tie
    assert choose(np.array([0.5, 0.6]), np.array([1.0, 1.0]), Cs, np.array([True, False])) == 0


@settings(max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.permutations(range(5)), st.floats(0.5, 2.0))
def test_the_order_of_folds_and_of_penalties_does_not_choose(counts, order, loss):
    """Every penalty has the same hits, in another order of folds: all tie, whatever rounding the mean has."""
    folds = np.stack([np.random.default_rng(i).permutation(counts) for i in range(5)], axis=1) / 7
    Cs, order = np.arange(1.0, 6.0), np.array(order)
    assert Cs[order][choose(folds[:, order].mean(axis=0), np.full(5, loss), Cs[order], np.ones(5, bool))] == 1.0


def test_a_fraction_holds_out_one_stratified_part(rows):
    X, y, _ = rows
    chosen = LinearProbeCV(Cs=[0.1, 1.0], cv=0.2, random_state=3).fit(X, y)
    assert chosen.accuracies_.shape == (1, 2)
    assert chosen.at_grid_edge_


def test_what_fit_path_and_the_estimator_say_is_the_same(rows):
    X, y, _ = rows
    path = fit_path(X, y, [0.1, 2.0])
    probe = path.probe(1)
    np.testing.assert_array_equal(probe.coef_, path.coef[1])
    np.testing.assert_array_equal(probe.predict(X), path.predict(X)[1])
    assert probe.C == 2.0
