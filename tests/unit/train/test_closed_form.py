"""The closed-form stepper against scikit-learn on the same rows, on one process and on two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline

from voxray.config.errors import InputError
from voxray.testing.ridge import RidgeTiny, RidgeTinyConfig, ridge_rows
from voxray.testing.sources import ArraySource
from voxray.testing.spawn import spawn
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train import loop
from voxray.train.checkpoints import checkpoint
from voxray.train.ridge.closed_form import ClosedFormReport, fit_stage, fold_of
from voxray.train.run_folder import RunFolder

CPU = torch.device("cpu")
ALPHAS = (0.1, 3.0, 100.0, 3000.0)


def config(num_features: int = 8, **closed_form) -> RidgeTinyConfig:
    values = {"stepper": "closed_form", "closed_form": closed_form, "seed": 7}
    return RidgeTinyConfig.model_validate({"model": {"num_features": num_features}, "training": values})


def batches(task, columns, size: int = 16, padding: int = 0):
    """Cut columns into batches, the last `padding` rows of each a copy that pads it."""
    for start in range(0, len(columns["sample_id"]), size):
        part = {name: values[start : start + size] for name, values in columns.items()}
        part = {name: np.concatenate([values, values[:padding]]) for name, values in part.items()}
        num_rows = len(part["sample_id"])
        valid = np.arange(num_rows) < min(size, len(columns["sample_id"]) - start)
        yield task.collate({**part, "valid": valid, "position": np.arange(num_rows)})


def fit(run_config, columns, size: int = 16, padding: int = 0, given=None):
    task = RidgeTiny(run_config)
    torch.manual_seed(0)
    model = task.build_model()
    parts = batches(task, columns, size, padding) if given is None else given(task)
    report = fit_stage(task, model, parts, run_config.training, CPU)
    return model, report


def predictions(model, columns) -> np.ndarray:
    return model(torch.tensor(columns["x"])).detach().numpy()


@pytest.mark.parametrize(("size", "padding"), [(16, 0), (7, 3), (1000, 1)])
@pytest.mark.parametrize("num_rows", [8, 9, 200])  # as many rows as features, one more, many more
def test_predictions_equal_scikit_learn_however_rows_are_batched(num_rows, size, padding):
    columns = ridge_rows(num_rows, 1)
    model, report = fit(config(alphas=(3.0,)), columns, size, padding)
    theirs = Ridge(alpha=3.0).fit(columns["x"].astype(np.float64), columns["y"].astype(np.float64))
    np.testing.assert_allclose(predictions(model, columns), theirs.predict(columns["x"]), atol=1e-5)
    assert report.num_rows == num_rows
    assert report.solver == ("dual cholesky" if num_rows <= 8 else "primal cholesky")
    assert report.alpha == (3.0,)
    assert report.held_out_mse == report.fold_mse == ()


@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("num_features", [8, 150])
def test_the_choice_is_that_of_a_loop_over_groups_of_rows(num_features, per_target):
    columns = ridge_rows(120, 1, num_features, num_groups=30)
    values = {"alphas": ALPHAS, "folds": 4, "per_target": per_target}
    _, report = fit(config(num_features, **values), columns)
    fold = np.array([fold_of(group, 4, seed=7) for group in columns["group"]])
    assert set(fold) == {0, 1, 2, 3}
    x, y = columns["x"].astype(np.float64), columns["y"].astype(np.float64)
    errors = np.zeros((len(ALPHAS), 4, 3))
    for row, alpha in enumerate(ALPHAS):
        for held_out in range(4):
            theirs = Ridge(alpha=alpha).fit(x[fold != held_out], y[fold != held_out])
            missed = theirs.predict(x[fold == held_out]) - y[fold == held_out]
            errors[row, held_out] = np.square(missed).mean(0)
    expected = errors.mean(1) if per_target else errors.mean((1, 2))[:, None]
    np.testing.assert_allclose(np.array(report.held_out_mse), expected, rtol=1e-7)
    np.testing.assert_allclose(np.array(report.fold_mse), errors.mean(2).T, rtol=1e-7)
    assert report.record()["fold_mse"] == [list(fold) for fold in report.fold_mse]
    assert report.alpha == tuple(ALPHAS[row] for row in expected.argmin(0))
    assert report.solver.startswith("primal" if num_features == 8 else "dual")


def test_folds_follow_the_group_and_the_seed_alone():
    columns = ridge_rows(200, 1)
    order = np.random.default_rng(0).permutation(200)
    shuffled = {name: values[order] for name, values in columns.items()}
    values = {"alphas": ALPHAS, "folds": 3}
    _, ordered = fit(config(**values), columns)
    _, other = fit(config(**values), shuffled, 50)
    np.testing.assert_allclose(ordered.held_out_mse, other.held_out_mse, rtol=1e-10)
    many = [fold_of(f"patient{number}", 5, seed=0) for number in range(5000)]
    assert np.bincount(many).min() > 900
    assert many[:50] != [fold_of(f"patient{number}", 5, seed=1) for number in range(50)]


def test_the_report_is_a_record_and_the_model_keeps_its_mode():
    columns = ridge_rows(120, 1)
    model, report = fit(config(alphas=ALPHAS, per_target=True), columns)
    record = json.loads(json.dumps(report.record()))
    assert sum(record["alpha"].values()) == 3
    assert len(record["held_out_mse"]) == len(ALPHAS)
    assert model.training
    missed = predictions(model, columns) - columns["y"]
    assert record["train/mse"] == pytest.approx(np.square(missed).mean(), rel=1e-5)
    assert record["warning"] == ""


CASES = {
    "sums": (400, 8, 0.4, {"alphas": ALPHAS, "folds": 4}),
    "sums, a worker without rows": (90, 8, 0.0, {"alphas": (1.0,)}),
    "a worker that keeps its rows": (90, 8, 0.95, {"alphas": ALPHAS, "per_target": True}),
    "rows": (90, 120, 0.7, {"alphas": ALPHAS, "folds": 3}),
    "rows, a worker without": (90, 120, 1.0, {"alphas": (1.0,), "fit_intercept": False}),
    "sums of rows that both had kept": (12, 8, 0.5, {"alphas": (1.0,)}),
    "components of sums": (400, 8, 0.4, {"alphas": ALPHAS, "folds": 4, "components": 5}),
    "components of rows": (90, 120, 0.7, {"alphas": ALPHAS, "folds": 3, "components": 20}),
}


def as_doubles(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def case(name: str, rank: int | None = None) -> dict[str, object]:
    """Fit a case's rows, or the share of them that one of two workers has."""
    num_rows, num_features, share, values = CASES[name]
    columns = ridge_rows(num_rows, 3, num_features)
    cut = round(share * num_rows)
    part = slice(None) if rank is None else (slice(cut), slice(cut, None))[rank]
    mine = {column: values_of[part] for column, values_of in columns.items()}
    captured: dict[str, object] = {}

    class Capturing(RidgeTiny):
        def set_closed_form(self, model, coef_OD, intercept_O):
            captured.update(coef=coef_OD, intercept=intercept_O)

    run_config = config(num_features, **values)
    task = Capturing(run_config)
    report = fit_stage(task, task.build_model(), batches(task, mine), run_config.training, CPU)
    numbers = [report.num_rows, *report.alpha, report.condition_number, report.train_mse]
    return {**captured, "mse": as_doubles(report.held_out_mse), "numbers": as_doubles(numbers)}


def on_one_rank(folder: str) -> None:
    results: dict[str, object] = {name: case(name, dist.get_rank()) for name in CASES}
    columns = ridge_rows(40, 1)
    columns["y"][33, 1] = np.nan  # a row of the second worker
    try:
        mine = {name: values[20 * dist.get_rank() :][:20] for name, values in columns.items()}
        fit(config(), mine)
    except InputError as error:
        results["error"] = str(error)
    torch.save(results, f"{folder}/{dist.get_rank()}.pt")


def test_two_processes_give_the_coefficients_of_one(tmp_path: Path):
    spawn(2, on_one_rank, str(tmp_path))
    ours = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in CASES:
        alone = case(name)
        for which, value in alone.items():
            assert torch.equal(ours[0][name][which], ours[1][name][which]), (name, which)
            torch.testing.assert_close(
                ours[0][name][which], value, rtol=1e-9, atol=1e-12, msg=f"{name}: {which}"
            )
    assert "'row00033'" in ours[0]["error"]
    assert ours[0]["error"] == ours[1]["error"]


@pytest.mark.parametrize(("column", "value"), [("x", np.inf), ("y", np.nan)])
def test_a_row_that_is_not_finite_is_named_unless_it_pads(column, value):
    columns = ridge_rows(40, 1)
    columns[column][21, 2] = value
    what = {"x": "features", "y": "targets"}[column]
    with pytest.raises(InputError, match=f"the {what} of sample 'row00021' are not all finite"):
        fit(config(), columns)

    def padded_with_it(task):
        part = {name: values[18:22] for name, values in columns.items()}
        yield task.collate({**part, "valid": np.arange(4) < 3, "position": np.arange(4)})

    assert fit(config(), columns, given=padded_with_it)[1].num_rows == 3


def test_what_cannot_be_fitted_is_an_input_error():
    columns = ridge_rows(40, 1, num_groups=1)
    with pytest.raises(InputError, match="1 of the 5 folds"):
        fit(config(alphas=ALPHAS), columns)
    with pytest.raises(InputError, match="no rows to fit"):
        fit(config(), {name: values[:0] for name, values in columns.items()})
    task = Tiny(TinyConfig())
    with pytest.raises(InputError, match=r"does not offer a closed form; set training\.stepper=gradient"):
        fit_stage(task, task.build_model(), batches(task, tiny_rows(8, 0)), TinyConfig().training, CPU)


def test_a_penalty_below_0_is_refused_with_the_config():
    with pytest.raises(ValidationError, match="alphas are penalties of 0 or more, and -1 is less"):
        config(alphas=(1.0, -1.0))


def test_components_without_a_closed_form_are_refused():
    values = {"closed_form": {"components": 3}}
    with pytest.raises(ValidationError, match=r"set training\.stepper=closed_form too"):
        RidgeTinyConfig.model_validate({"training": values})
    stages = [{"epochs": 1}, {"stepper": "closed_form"}]
    assert RidgeTinyConfig.model_validate({"training": values, "stages": stages}).stages


def test_the_record_tells_the_components_and_their_share_of_the_variance():
    columns = ridge_rows(200, 1)
    model, report = fit(config(alphas=(3.0,), components=5), columns)
    pca = PCA(5, svd_solver="full").fit(columns["x"].astype(np.float64))
    theirs = Pipeline([("pca", PCA(5, svd_solver="full")), ("ridge", Ridge(alpha=3.0))])
    theirs.fit(columns["x"].astype(np.float64), columns["y"].astype(np.float64))
    np.testing.assert_allclose(predictions(model, columns), theirs.predict(columns["x"]), atol=1e-5)
    record = report.record()
    assert record["components"] == 5
    assert record["explained_variance"] == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-6)
    assert "components" not in fit(config(alphas=(3.0,)), columns)[1].record()


def test_the_loop_runs_it_as_a_stage_after_gradients(tmp_path):
    values = {"batch_size": 16, "seed": 7}
    stages = [{"epochs": 1}, {"stepper": "closed_form", "closed_form": {"alphas": [2.0]}}]
    run_config = RidgeTinyConfig.model_validate({"training": values, "stages": stages})
    source = ArraySource({"train": ridge_rows(200, 1), "val": ridge_rows(60, 2)})
    run = RunFolder(tmp_path)
    loop.fit(RidgeTiny(run_config), source, run_config, run, lambda metrics: None, CPU)
    newest = checkpoint.newest(run.checkpoints, print)
    assert newest is not None
    saved = load_file(newest / "model.safetensors")
    columns = ridge_rows(200, 1)
    theirs = Ridge(alpha=2.0).fit(columns["x"].astype(np.float64), columns["y"].astype(np.float64))
    np.testing.assert_allclose(saved["weight"], theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(saved["bias"], theirs.intercept_, atol=1e-5)
    (record,) = [record for record in run.records() if record["kind"] == "closed_form"]
    assert (record["stage"], record["rows"], record["alpha"]) == ("stage1", 200, 2.0)


def test_a_report_says_how_it_was_solved():
    columns = ridge_rows(200, 1)
    alphas = tuple(float(alpha) for alpha in np.geomspace(1e-2, 1e4, 25))
    _, report = fit(config(alphas=alphas), columns)
    assert isinstance(report, ClosedFormReport)
    assert report.solver == "primal eigh"
    assert len(report.held_out_mse) == 25
