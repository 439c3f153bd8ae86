"""Ridge on principal components against scikit-learn's pipeline of `PCA` and `Ridge`; leading eigenpairs and
condition numbers of matrices with known ones.
"""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import Pipeline

from voxray.config.errors import InputError
from voxray.train.ridge import spectrum
from voxray.train.ridge import system as ridge_system
from voxray.train.ridge.dual import Rows, solve_dual
from voxray.train.ridge.statistics import Statistics, solve
from voxray.train.ridge.system import Solution, System

ALPHAS = (0.1, 10.0, 1e3, 1e5)
FORMS = ("primal", "dual")
DROP_1E5 = 1e-5


def problem(num_rows: int, num_features: int, seed: int = 0, floor: float = 0.05):
    """Features with a decaying spectrum and a mean, targets of their directions, five folds."""
    generator = np.random.default_rng(seed)
    scale = np.geomspace(10, floor, num_features)
    rotation = np.linalg.qr(generator.standard_normal((num_features, num_features)))[0]
    x = (generator.standard_normal((num_rows, num_features)) * scale) @ rotation + 3
    weight = rotation.T @ generator.standard_normal((num_features, 3))
    y = x @ weight + (1, 4, 20) * generator.standard_normal((num_rows, 3)) - 2
    return x, y, generator.choice(5, num_rows, p=(0.1, 0.15, 0.2, 0.25, 0.3))


def fitted(x, y, fold, alphas, components, form="primal", per_target=False, fit_intercept=True) -> Solution:
    fold_B = torch.from_numpy(fold)
    x, y = torch.tensor(x), torch.tensor(y)
    if form == "dual":
        return solve_dual(Rows(x, y.double(), fold_B), 5, alphas, per_target, fit_intercept, components)
    statistics = Statistics(x.shape[1], y.shape[1], 5)
    for part in torch.arange(len(x)).split(61):
        statistics.add(x[part], y[part], fold_B[part])
    return solve(statistics, alphas, per_target, fit_intercept, components)


def pipeline(components: int, alpha: float = 1.0, fit_intercept: bool = True) -> Pipeline:
    ridge = Ridge(alpha=alpha, fit_intercept=fit_intercept)
    return Pipeline([("pca", PCA(components, svd_solver="full")), ("ridge", ridge)])


def search(x, y, fold, components: int, alphas=ALPHAS, fit_intercept: bool = True) -> GridSearchCV:
    return GridSearchCV(
        pipeline(components, fit_intercept=fit_intercept),
        {"ridge__alpha": alphas},
        scoring="neg_mean_squared_error",
        cv=PredefinedSplit(fold),
    ).fit(x, y)


def difference(solution: Solution, theirs, x) -> float:
    ours = x.astype(np.float64) @ solution.coef_OD.numpy().T + solution.intercept_O.numpy()
    return float(np.abs(ours - theirs.predict(x)).max() / np.abs(theirs.predict(x)).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(300, 40), (60, 90)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_scores_choice_and_predictions_equal_a_pipeline_in_grid_search(form, shape, fit_intercept):
    x, y, fold = problem(*shape)
    for components in (1, 7, 25):
        ours = fitted(x, y, fold, ALPHAS, components, form, fit_intercept=fit_intercept)
        theirs = search(x, y, fold, components, fit_intercept=fit_intercept)
        assert ours.mse_AT is not None
        np.testing.assert_allclose(ours.mse_AT[:, 0], -theirs.cv_results_["mean_test_score"], rtol=1e-8)
        assert ours.alpha_T.tolist() == [theirs.best_params_["ridge__alpha"]]
        assert difference(ours, theirs, x) < 1e-8
        assert ours.train_mse == pytest.approx(np.square(theirs.predict(x) - y).mean(), rel=1e-8)
        pca = theirs.best_estimator_["pca"]
        assert ours.explained_variance == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-9)
        values = pca.explained_variance_ * (len(x) - 1) + ours.alpha_T.item()
        assert ours.condition_number == pytest.approx(values[0] / values[-1], rel=1e-8)
        assert (ours.components, ours.warning) == (components, "")


@pytest.mark.parametrize("form", FORMS)
def test_an_alpha_for_each_target_and_no_penalty(form):
    x, y, fold = problem(120, 40)
    ours = fitted(x, y, fold, ALPHAS, 12, form, per_target=True)
    assert len(set(ours.alpha_T.tolist())) > 1
    for target in range(3):
        theirs = search(x, y[:, target], fold, 12)
        assert ours.alpha_T[target].item() == theirs.best_params_["ridge__alpha"]
    assert difference(fitted(x, y, fold, [0.0], 12, form), pipeline(12, 0.0).fit(x, y), x) < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_more_components_than_directions_are_all_of_them_and_told(form):
    x, y, fold = problem(200 if form == "primal" else 30, 20)
    x = np.hstack([x, x[:, :10] * 2])
    ours = fitted(x, y, fold, [3.0], 28, form)
    assert difference(ours, Ridge(alpha=3.0).fit(x, y), x) < 1e-8
    assert ours.components == 20
    assert "components is 28, but the training rows vary in 20 directions only" in ours.warning
    assert ours.explained_variance == pytest.approx(1)
    few, few_y, few_fold = problem(15, 40)
    found = fitted(few, few_y, few_fold, ALPHAS, 3072, form)
    assert found.components == 14  # centred rows
    assert difference(found, search(few, few_y, few_fold, 9), few) > DROP_1E5
    assert difference(found, Ridge(alpha=found.alpha_T.item()).fit(few, few_y), few) < 1e-7


def test_features_that_do_not_differ_have_no_components():
    with pytest.raises(InputError, match=r"closed_form\.components: no feature differs"):
        fitted(np.ones((40, 5)), np.arange(40.0)[:, None], np.arange(40) % 5, [1.0], 2)


def test_float32_products_of_large_systems_keep_five_digits(monkeypatch):
    monkeypatch.setattr(ridge_system, "FLOAT64_SIZE", 8)
    x, y, fold = problem(3000, 60)
    x, y = x.astype(np.float32), y.astype(np.float32)
    ours, theirs = fitted(x, y, fold, ALPHAS, 20), search(x.astype(float), y.astype(float), fold, 20)
    assert ours.alpha_T.tolist() == [theirs.best_params_["ridge__alpha"]]
    assert 1e-12 < difference(ours, theirs, x) < DROP_1E5


@pytest.mark.parametrize("form", FORMS)
def test_components_found_by_lanczos_predict_what_all_eigenvectors_do(form, monkeypatch):
    monkeypatch.setattr(spectrum, "LEAST_SIZE", 300)
    monkeypatch.setattr(spectrum, "_BASIS_SHARE", 0.6)
    x, y, fold = problem(*((700, 500) if form == "primal" else (480, 700)), floor=1e-8)
    used = []
    leading = spectrum.leading
    monkeypatch.setattr(spectrum, "leading", lambda *args: (used.append(leading(*args)), used[-1])[1])
    ours = fitted(x, y, fold, ALPHAS[:2], 9, form)
    assert len([found for found in used if found is not None and len(found.value_K) == 9]) == 6
    theirs = search(x, y, fold, 9, ALPHAS[:2])
    assert ours.alpha_T.tolist() == [theirs.best_params_["ridge__alpha"]]
    assert difference(ours, theirs, x) < 1e-6


def matrix_of(values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a symmetric matrix with these eigenvalues, and the eigenvectors."""
    rotation = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(1)).double()
    vector_SS = torch.linalg.qr(rotation).Q
    return (vector_SS * torch.from_numpy(values)) @ vector_SS.T, vector_SS


SPECTRA = {
    "a planted few above a flat floor": np.r_[np.geomspace(1e4, 50, 16), np.linspace(1.1, 0.9, 584)],
    "nine decades": np.geomspace(1e6, 1e-3, 600),
    "no gap": np.linspace(1, 0, 600) + 1e-3,
    "repeated": np.r_[np.full(10, 7.0), np.full(12, 5.0), np.linspace(1, 0.5, 578)],
    "low rank": np.r_[np.geomspace(100, 1, 30), np.zeros(570)],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("num", [1, 10, 16])
def test_leading_pairs_span_the_right_space(name, num):
    values = SPECTRA[name]
    matrix_SS, vector_SS = matrix_of(values)
    found = spectrum.principal(matrix_SS, num, 1e-12)
    np.testing.assert_allclose(found.value_K, values[:num], rtol=1e-9)
    gram_KK = found.vector_SK.T @ found.vector_SK
    torch.testing.assert_close(gram_KK, torch.eye(num).double(), rtol=0, atol=1e-12)
    if values[num - 1] > values[num]:
        outside_SK = found.vector_SK - vector_SS[:, :num] @ (vector_SS[:, :num].T @ found.vector_SK)
        assert float(torch.linalg.matrix_norm(outside_SK, 2)) <= spectrum.ANGLE


def test_lanczos_takes_a_share_of_the_vectors_and_is_the_same_twice():
    matrix_SS, _ = matrix_of(SPECTRA["a planted few above a flat floor"])
    columns = []

    def apply(block_SB: torch.Tensor) -> torch.Tensor:
        columns.append(block_SB.shape[1])
        return matrix_SS @ block_SB

    found = [spectrum.leading(apply, matrix_SS[:, :0], 16, spectrum._spans) for _ in range(2)]
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0].vector_SK, found[1].vector_SK)
    assert sum(columns) <= 2 * 160


@pytest.mark.parametrize("name", SPECTRA)
def test_condition_numbers_of_large_systems(name):
    values = SPECTRA[name]
    matrix_SS, _ = matrix_of(values)
    for alpha in (0.01, 1e3):
        system = System(matrix_SS, matrix_SS[:, :1], 1)
        expected = (values.max() + alpha) / (values.min() + alpha)
        assert system.condition_number(alpha) == pytest.approx(expected, rel=2e-2)


def test_a_randomized_range_finds_what_falls_off_and_explains_as_much_as_scikit_learns():
    x, *_ = problem(900, 400, floor=1e-3)
    centred = torch.tensor(x - x.mean(0))
    matrix = centred.T @ centred
    found = spectrum.randomized(matrix, 30)
    value = torch.linalg.eigvalsh(matrix).flip(0)[:30]
    torch.testing.assert_close(found.value_K, value, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.value_K[:10], value[:10], rtol=1e-8, atol=0)
    # An eigenvalue lies within the residual of each approximate pair (Parlett 1998, theorem 4.5.1).
    assert bool(((found.value_K - value).abs() <= found.residual_K + 1e-9 * value[0]).all())
    flat = np.random.default_rng(1).standard_normal((900, 400))
    centred = torch.tensor(flat - flat.mean(0))
    ours = spectrum.randomized(centred.T @ centred, 80).value_K.sum() / centred.square().sum()
    theirs = PCA(80, svd_solver="randomized", random_state=0).fit(flat).explained_variance_ratio_.sum()
    best = PCA(80, svd_solver="full").fit(flat).explained_variance_ratio_.sum()
    assert theirs - 2e-3 < float(ours) <= best + 1e-12


def test_many_components_of_many_features_are_found_by_it(monkeypatch):
    x, y, fold = problem(900, 600)
    exact = fitted(x, y, fold, (10.0,), 100)
    monkeypatch.setattr(spectrum, "MOST_EXACT", 512)
    monkeypatch.setattr(spectrum, "_by_lapack", None)
    near = fitted(x, y, fold, (10.0,), 100)
    assert near.explained_variance == pytest.approx(exact.explained_variance, rel=2e-3)
    gap = torch.tensor(x) @ (near.coef_OD - exact.coef_OD).T
    assert gap.std() < 0.1 * (torch.tensor(x) @ exact.coef_OD.T).std()
