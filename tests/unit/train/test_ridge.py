"""Ridge from sums against scikit-learn's `Ridge`, `GridSearchCV`, `RidgeCV`; numpy's condition number."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, PredefinedSplit

from voxray.config.errors import InputError
from voxray.train.ridge import system as ridge_system
from voxray.train.ridge.dual import Rows, solve_dual
from voxray.train.ridge.statistics import Statistics, solve
from voxray.train.ridge.system import Solution

ALPHAS = (0.01, 0.3, 10.0, 300.0, 1e4)
FORMS = ("primal", "dual")


def problem(num_rows: int = 400, num_features: int = 30, seed: int = 0):
    """Correlated features with a mean, noisy targets, folds of uneven size."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((num_features, num_features)) * np.linspace(0.1, 2, num_features)
    x = generator.standard_normal((num_rows, num_features)) @ mixing + 5
    weight = generator.standard_normal((num_features, 4)) * (0.02, 0.2, 1, 5)
    y = x @ weight + 2 + 20 * generator.standard_normal((num_rows, 4))
    fold = generator.choice(5, num_rows, p=(0.1, 0.15, 0.2, 0.25, 0.3))
    return x, y, fold


def fitted(x, y, fold, alphas, form="primal", per_target=False, fit_intercept=True) -> Solution:
    num_folds = 1 if fold is None else 5
    fold_B = torch.zeros(len(x), dtype=torch.int64) if fold is None else torch.from_numpy(fold)
    x, y = torch.tensor(x), torch.tensor(y)
    if form == "dual":
        return solve_dual(Rows(x, y.double(), fold_B), num_folds, alphas, per_target, fit_intercept)
    statistics = Statistics(x.shape[1], y.shape[1], num_folds)
    for part in torch.arange(len(x)).split(37):
        statistics.add(x[part], y[part], fold_B[part] if num_folds > 1 else None)
    return solve(statistics, alphas, per_target, fit_intercept)


def predictions(solution: Solution, x) -> np.ndarray:
    return x.astype(np.float64) @ solution.coef_OD.numpy().T + solution.intercept_O.numpy()


def held_out(solution: Solution) -> np.ndarray:
    assert solution.mse_AT is not None
    return solution.mse_AT.numpy()


def relative_difference(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture(params=["cholesky", "eigh"])
def method(request, monkeypatch) -> str:
    monkeypatch.setattr(ridge_system, "EIGH_ALPHAS", 1 if request.param == "eigh" else 1000)
    return request.param


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_predictions_equal_scikit_learn_for_every_alpha(method, form, fit_intercept):
    x, y, _ = problem()
    for alpha in ALPHAS:
        ours = fitted(x, y, None, [alpha], form, fit_intercept=fit_intercept)
        theirs = Ridge(alpha=alpha, fit_intercept=fit_intercept).fit(x, y)
        assert relative_difference(predictions(ours, x), theirs.predict(x)) < 1e-8
        assert ours.train_mse == pytest.approx(np.square(theirs.predict(x) - y).mean(), rel=1e-8)
        assert (ours.form, ours.method, ours.warning) == (form, method, "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(20, 300), (30, 30), (31, 30)])
def test_fewer_rows_than_features(method, form, shape):
    x, y, _ = problem(*shape)
    for alpha in (0.3, 300.0):
        theirs = Ridge(alpha=alpha).fit(x, y).predict(x)
        assert relative_difference(predictions(fitted(x, y, None, [alpha], form), x), theirs) < 1e-7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_held_out_errors_and_choice_equal_a_loop_over_scikit_learn(method, form, fit_intercept):
    x, y, fold = problem(200)
    ours = fitted(x, y, fold, ALPHAS, form, fit_intercept=fit_intercept)
    search = GridSearchCV(
        Ridge(fit_intercept=fit_intercept),
        {"alpha": ALPHAS},
        scoring="neg_mean_squared_error",
        cv=PredefinedSplit(fold),
    ).fit(x, y)
    np.testing.assert_allclose(held_out(ours)[:, 0], -search.cv_results_["mean_test_score"], rtol=1e-8)
    assert ours.alpha_T.tolist() == [search.best_params_["alpha"]]
    assert relative_difference(predictions(ours, x), search.predict(x)) < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_an_alpha_for_each_target_is_that_of_the_target_alone(method, form):
    x, y, fold = problem(120)
    ours = fitted(x, y, fold, ALPHAS, form, per_target=True)
    assert len(set(ours.alpha_T.tolist())) > 1
    for target in range(y.shape[1]):
        search = GridSearchCV(
            Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_squared_error", cv=PredefinedSplit(fold)
        ).fit(x, y[:, target])
        assert ours.alpha_T[target].item() == search.best_params_["alpha"]
        assert relative_difference(predictions(ours, x)[:, target], search.predict(x)) < 1e-8


def test_predictions_equal_ridge_cv_over_the_same_groups():
    x, y, _ = problem()
    splits = list(GroupKFold(5).split(x, groups=np.arange(len(x)) // 7))
    fold = np.empty(len(x), np.int64)
    for number, (_, rows) in enumerate(splits):
        fold[rows] = number
    theirs = RidgeCV(ALPHAS, cv=splits, scoring="neg_mean_squared_error").fit(x, y)
    ours = fitted(x, y, fold, ALPHAS)
    assert ours.alpha_T.tolist() == [theirs.alpha_]
    assert relative_difference(predictions(ours, x), theirs.predict(x)) < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_means_of_ten_thousand_spreads_and_more_cost_no_digits(form):
    x, y, fold = problem(300, 20)
    far = 1e6 * x.std(0)
    for there in ((x + 1e4 * x.std(0)).astype(np.float32), x + far):
        near = there - there[0].astype(np.float64)  # the same problem about another origin, hardly rounded
        expected = fitted(near, y, fold, ALPHAS, form)
        ours = fitted(there, y, fold, ALPHAS, form)
        assert relative_difference(ours.coef_OD.numpy(), expected.coef_OD.numpy()) < 1e-9
        np.testing.assert_allclose(held_out(ours), held_out(expected), rtol=1e-9)
    # What plain sums would have left of it:
    mean = there.mean(0)
    gram = there.T @ there - len(there) * np.outer(mean, mean) + expected.alpha_T.item() * np.eye(20)
    plain = np.linalg.solve(gram, there.T @ y - len(there) * np.outer(mean, y.mean(0)))
    assert relative_difference(plain.T, expected.coef_OD.numpy()) > 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_float32_products_of_large_systems_keep_five_digits(form, monkeypatch):
    monkeypatch.setattr(ridge_system, "FLOAT64_SIZE", 8)
    x, y, fold = problem(3000 if form == "primal" else 300, 60)
    ours = fitted(x.astype(np.float32), y.astype(np.float32), fold, ALPHAS[1:], form)
    theirs = GridSearchCV(
        Ridge(), {"alpha": ALPHAS[1:]}, scoring="neg_mean_squared_error", cv=PredefinedSplit(fold)
    ).fit(x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64))
    assert ours.alpha_T.tolist() == [theirs.best_params_["alpha"]]
    assert relative_difference(predictions(ours, x), theirs.predict(x)) < 1e-5
    assert relative_difference(predictions(ours, x), theirs.predict(x)) > 1e-12  # they were float32


def test_systems_of_several_panels_and_blocks_are_the_same(monkeypatch):
    monkeypatch.setattr(ridge_system, "_PANEL", 7)
    monkeypatch.setattr("voxray.train.ridge.statistics._BLOCK_BYTES", 1)
    x, y, _ = problem(1000)
    theirs = Ridge(alpha=0.3).fit(x, y).predict(x)
    for form in FORMS:
        assert relative_difference(predictions(fitted(x, y, None, [0.3], form), x), theirs) < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_without_a_penalty_repeated_features_share_their_weight(form):
    x, y, _ = problem(200 if form == "primal" else 20, 30)
    x = np.hstack([x, x[:, :5]])
    ours = fitted(x, y, None, [0.0], form)
    least_norm = np.linalg.pinv(x - x.mean(0), rcond=1e-9) @ (y - y.mean(0))
    np.testing.assert_allclose(ours.coef_OD.numpy().T, least_norm, rtol=1e-5, atol=1e-6)


def test_the_condition_number_is_numpys(method):
    x, y, _ = problem()
    for alpha in (0.01, 300.0):
        centred = x - x.mean(0)
        expected = np.linalg.cond(centred.T @ centred + alpha * np.eye(x.shape[1]))
        assert fitted(x, y, None, [alpha]).condition_number == pytest.approx(expected, rel=1e-8)
        raw = np.linalg.cond(x.T @ x + alpha * np.eye(x.shape[1]))
        ours = fitted(x, y, None, [alpha], fit_intercept=False)
        assert ours.condition_number == pytest.approx(raw, rel=1e-8)
        wide, wide_y, _ = problem(20, 50)
        dual = fitted(wide, wide_y, None, [alpha], "dual", fit_intercept=False)
        kernel = wide @ wide.T + alpha * np.eye(20)
        assert dual.condition_number == pytest.approx(np.linalg.cond(kernel), rel=1e-6)


def test_too_few_digits_are_told(monkeypatch):
    x, y, _ = problem()
    repeated = np.hstack([x, x[:, :3]])
    told = fitted(repeated, y, None, [1e-9])
    assert 1e12 < told.condition_number < 1e17
    assert "condition number" in told.warning
    assert "float64" in told.warning
    assert fitted(repeated, y, None, [1.0]).warning == ""
    assert math.isinf(ridge_system.System(torch.zeros(2, 2), torch.zeros(2, 1), 1).condition_number(0.0))
    monkeypatch.setattr(ridge_system, "FLOAT64_SIZE", 8)
    assert "float32" in fitted(x, y, None, [0.01]).warning


def test_the_dual_form_makes_no_matrix_of_the_features():
    x = torch.randn(12, 300_000, generator=torch.Generator().manual_seed(0))
    y = x[:, :2].double()
    solution = solve_dual(Rows(x, y, torch.arange(12) % 3), 3, [1.0, 1e3])  # D × D would take 720 GB
    assert solution.coef_OD.shape == (2, 300_000)


def test_memory_does_not_grow_with_the_rows():
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    statistics = Statistics(100, 20, 5)
    generator = torch.Generator().manual_seed(0)
    x_BD, y_BO = torch.randn(4000, 100, generator=generator), torch.randn(4000, 20, generator=generator)
    fold_B = torch.arange(4000) % 5
    for _ in range(10):
        statistics.add(x_BD + 1, y_BO, fold_B)
    before = resident_mb()
    for _ in range(150):  # 290 MB of float32
        statistics.add(x_BD + 1, y_BO, fold_B)
    assert resident_mb() - before < 30
    assert sum(statistics.rows_per_fold) == 160 * 4000


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_choose_by_is_an_input_error(form):
    x, y, _ = problem(40)
    with pytest.raises(InputError, match="1 of the 5 folds"):
        fitted(x, y, np.full(40, 2), ALPHAS, form)
    two_of_five = np.arange(40) % 2 * 3
    search = GridSearchCV(
        Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_squared_error", cv=PredefinedSplit(two_of_five)
    ).fit(x, y)
    ours = fitted(x, y, two_of_five, ALPHAS, form)
    np.testing.assert_allclose(held_out(ours)[:, 0], -search.cv_results_["mean_test_score"], rtol=1e-8)
