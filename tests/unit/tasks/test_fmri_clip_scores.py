"""What `evaluate` and `summarize` of fmri_clip tell, against scikit-learn and numpy on the predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import top_k_accuracy_score

from fmri_rows import NCSNR, fmri_rows, fmri_task
from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.core.evaluation import Evaluation, merge
from voxray.metrics.retrieval import galleries
from voxray.tasks.fmri_clip import scores
from voxray.tasks.fmri_clip.config import FmriClipObjectiveConfig
from voxray.tasks.fmri_clip.data import FmriClipBatch
from voxray.tasks.fmri_clip.task import FmriClip
from voxray.testing.sources import ArraySource

TWO_STAGE = {"architecture": "two_stage", "latent_dim": 16, "n_blocks": 1, "layers": ["layer_4", "layer_8"]}
INVERSE = {"architecture": "clip2fmri", "inverse_dim": 16, "min_reliability": 0.5}


def batches(task: FmriClip, rows: dict[str, np.ndarray], size: int = 16) -> list[FmriClipBatch]:
    request = EpochRequest("val", size, seed=0, shuffle=False)
    return [task.collate(columns) for columns in ArraySource({"val": rows}).batches(request)]


@torch.no_grad()
def evaluated(task: FmriClip, model: torch.nn.Module, rows: dict[str, np.ndarray]) -> Evaluation:
    stage = task.config.resolved_stages()[-1]
    return merge([task.evaluate(model, batch, stage) for batch in batches(task, rows)])


def linear(objective: dict) -> tuple[FmriClip, torch.nn.Module]:
    """The task, and a ridge model with the least-squares map from voxels to targets."""
    task = fmri_task({"model": {"architecture": "ridge"}, "objective": objective})
    model, train = task.build_model().eval(), fmri_rows(300, 1)
    unit_ND = train["clip_final"] / np.linalg.norm(train["clip_final"], axis=1, keepdims=True)
    coef_VD = np.linalg.lstsq(train["x"], unit_ND, rcond=None)[0]
    task.set_closed_form(model, torch.tensor(coef_VD.T), torch.zeros(12))
    return task, model


def test_retrieval_among_all_stimuli_is_scikit_learns() -> None:
    task, model = linear({"gallery": "all", "ranks": [1, 5], "mse": 0.5})
    rows = fmri_rows(90, 2, num_stimuli=30, noise=2.0)
    merged = evaluated(task, model, rows)
    found = task.summarize(merged)
    assert merged.rows is not None
    pred_ND, true_ND = merged.rows.columns["embedding"], merged.rows.columns["target"]
    names, first, truth_N = np.unique(
        merged.rows.columns["stimulus_id"].astype(str), return_index=True, return_inverse=True
    )
    similarity_NG = pred_ND @ true_ND[first].T
    for k in (1, 5):
        expected = top_k_accuracy_score(truth_N, similarity_NG, k=k, labels=np.arange(30))
        assert found[f"r{k}_of_all"] == pytest.approx(expected)
    own_N = similarity_NG[np.arange(90), truth_N]
    rank_N = 1 + (similarity_NG > own_N[:, None]).sum(1)
    assert found["median_rank_of_all"] == np.median(rank_N)
    assert found["mrr_of_all"] == pytest.approx((1 / rank_N).mean())
    assert found["two_way"] == pytest.approx(((30 - rank_N) / 29).mean())
    assert found["cosine_similarity"] == pytest.approx((pred_ND * true_ND).sum(1).mean(), abs=1e-6)
    wrong = 0.5 * ((pred_ND - true_ND) ** 2).mean() + (1 - (pred_ND * true_ND).sum(1)).mean()
    assert found["loss"] == pytest.approx(wrong, abs=1e-6)
    assert found["num_stimuli"] == len(names) == 30


def test_with_several_targets_the_predicted_one_is_looked_up() -> None:
    task = fmri_task({"model": TWO_STAGE, "objective": {"gallery": "all", "info_nce": 0.4}})
    torch.manual_seed(0)
    model, rows = task.build_model().eval(), fmri_rows(90, 2, num_stimuli=60)
    merged = evaluated(task, model, rows)
    found = task.summarize(merged)
    with torch.no_grad():
        pred_ND = model(torch.from_numpy(rows["x"]))["final"].numpy()
    names, first, truth_N = np.unique(rows["stimulus_id"].astype(str), return_index=True, return_inverse=True)
    true_GD = rows["clip_final"][first]
    similarity_NG = pred_ND @ (true_GD / np.linalg.norm(true_GD, axis=1, keepdims=True)).T
    for k in (1, 5, 10, 50):
        expected = top_k_accuracy_score(truth_N, similarity_NG, k=k, labels=np.arange(60))
        assert found[f"r{k}_of_all"] == pytest.approx(expected)
    assert 0.5 < found["r50_of_all"] < 1
    assert found["num_stimuli"] == len(names)


def test_smaller_galleries_are_easier_and_leave_nothing_else_out() -> None:
    rows = fmri_rows(90, 2, num_stimuli=30, noise=2.0)
    found = {}
    for gallery in (7, 30):
        task, model = linear({"gallery": gallery, "ranks": [1, 5, 10]})
        found[gallery] = task.summarize(evaluated(task, model, rows))
    assert found[7]["r1_of_7"] > found[30]["r1_of_30"]
    assert found[7]["cosine_similarity"] == found[30]["cosine_similarity"]
    assert "r10_of_7" not in found[7]
    assert "r10_of_30" in found[30]
    task, model = linear({"gallery": 31})
    merged = evaluated(task, model, rows)
    with pytest.raises(
        InputError, match=r"gallery=31, but what is evaluated has 30 stimuli; set objective\.gallery=30 or"
    ):
        task.summarize(merged)


def test_a_short_run_may_have_too_few_stimuli_for_a_gallery() -> None:
    """`--fast-dev-run` and `data.limit_samples`: what is undefined is NaN, the cosine is not."""
    task = fmri_task({"data": {"limit_samples": 20}, "objective": {"gallery": 30, "ranks": [1]}})
    merged = evaluated(task, task.build_model().eval(), fmri_rows(20, 2))
    found, intervals = task.summarize(merged), task.intervals(merged, 0)
    undefined = {name for name, value in found.items() if np.isnan(value)}
    assert undefined == {"r1_of_30", "mrr_of_30", "median_rank_of_30", "two_way"}
    assert {name for name, bounds in intervals.items() if np.isnan(bounds[0]).all()} == undefined


def test_metrics_do_not_depend_on_the_order_of_rows() -> None:
    task, model = linear({"gallery": 7})
    rows = fmri_rows(60, 2, num_stimuli=30)
    order = np.random.default_rng(0).permutation(60)
    moved = {name: values[order] for name, values in rows.items()}
    moved["sample_id"] = rows["sample_id"]
    expected, found = (task.summarize(evaluated(task, model, these)) for these in (rows, moved))
    assert found == pytest.approx(expected)


def test_padding_rows_count_nowhere() -> None:
    for values in ({"model": {"architecture": "mlp"}, "objective": {"gallery": "all"}}, {"model": INVERSE}):
        task = fmri_task(values)
        model, stage = task.build_model().eval(), task.config.resolved_stages()[-1]
        rows = fmri_rows(20, 2)
        expected = task.summarize(evaluated(task, model, {name: each[:13] for name, each in rows.items()}))
        (whole,) = batches(task, rows, 20)
        padded = replace(whole, valid_B=torch.arange(20) < 13)
        with torch.no_grad():
            found = task.summarize(merge([task.evaluate(model, padded, stage)]))
        assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("info_nce", [0.0, 0.4])
def test_the_loss_of_a_split_is_that_of_training(info_nce: float) -> None:
    """InfoNCE too, over targets of several widths, where the split is one batch."""
    own = {"info_nce": info_nce, "mse": 0.1, "gallery": 10}
    task = fmri_task({"model": TWO_STAGE, "objective": own, "training": {"batch_size": 32}})
    model, rows = task.build_model().eval(), fmri_rows(32, 2, num_stimuli=16)
    stage = task.config.resolved_stages()[-1]
    (batch,) = batches(task, rows, 32)
    counts, terms = task.normalizers(batch, stage), task.loss(model, batch, stage)
    expected = sum(float((term.weight * term.sum / counts[name]).detach()) for name, term in terms.items())
    merged = evaluated(task, model, rows)
    assert task.summarize(merged)["loss"] == pytest.approx(expected, rel=1e-5)
    assert set(task.predictions(merged)) == {"embedding", "stimulus_id"}


def test_intervals_are_by_stimulus_and_hold_the_value() -> None:
    """Thirty stimuli of three trials each: wider than if the 90 rows were drawn one by one."""
    task, model = linear({"gallery": 10, "ranks": [1, 5]})
    merged = evaluated(task, model, fmri_rows(90, 2, num_stimuli=30, noise=0.5))
    found, summary = task.intervals(merged, 0), task.summarize(merged)
    assert set(found) == set(summary) - {"loss", "num_stimuli"}
    for name, ((low, high),) in found.items():
        assert low <= summary[name] <= high, name
    assert merged.rows is not None
    values = scores.retrieval_rows(merged.rows, task.config.objective)
    one_by_one = scores.intervals(values, merged.rows.sample_id, 0)
    assert np.subtract(*found["r1_of_10"][0]) < np.subtract(*one_by_one["r1_of_10"][0])
    cosine_N = values["cosine_similarity"].numpy()
    rng = np.random.default_rng(0)
    by_stimulus = [np.nonzero(merged.rows.columns["stimulus_id"] == s)[0] for s in set(merged.rows.group_id)]
    drawn = [
        cosine_N[np.concatenate([by_stimulus[i] for i in rng.integers(30, size=30)])].mean()
        for _ in range(4000)
    ]
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(found["cosine_similarity"][0], expected, atol=0.15 * np.ptp(expected))


def test_queries_of_left_over_stimuli_are_left_out_of_retrieval_alone() -> None:
    task, model = linear({"gallery": 20, "ranks": [1]})
    merged = evaluated(task, model, fmri_rows(60, 2, num_stimuli=30))
    assert merged.rows is not None
    values = scores.retrieval_rows(merged.rows, task.config.objective)
    names = sorted(set(merged.rows.columns["stimulus_id"]))
    left_out = {name for name, gallery in zip(names, galleries(names, 20), strict=True) if gallery < 0}
    is_out_N = np.isin(merged.rows.columns["stimulus_id"].astype(str), sorted(left_out))
    assert is_out_N.sum() == 20
    for name, value_N in values.items():
        assert value_N.isnan().tolist() == (
            [False] * 60 if name == "cosine_similarity" else is_out_N.tolist()
        )


def test_a_prediction_that_is_not_a_number_is_not_hidden() -> None:
    task, model = linear({"gallery": "all", "ranks": [1]})
    merged = evaluated(task, model, fmri_rows(20, 2, num_stimuli=10))
    assert merged.rows is not None
    merged.rows.columns["embedding"][3] = np.nan
    found = task.summarize(merged)
    assert np.isnan(found["cosine_similarity"])
    assert 0 < found["r1_of_all"] < 1


@pytest.mark.parametrize("stacked", [False, True])
def test_clip2fmri_is_judged_by_numpys_correlations_and_the_noise_ceiling(stacked: bool) -> None:
    task = fmri_task({"model": INVERSE}, stacked)
    model, rows = task.build_model().eval(), fmri_rows(40, 2, stacked=stacked)
    merged = evaluated(task, model, rows)
    found = task.summarize(merged)
    (batch,) = batches(task, rows, 40)
    with torch.no_grad():
        pred_BV = model(batch.targets["final"]).double().numpy()
    true_BV = batch.x_BV[:, -10:].double().numpy()
    by_voxel = [np.corrcoef(pred, true)[0, 1] for pred, true in zip(pred_BV.T, true_BV.T, strict=True)]
    by_row = [np.corrcoef(pred, true)[0, 1] for pred, true in zip(pred_BV, true_BV, strict=True)]
    assert found["voxel_r"] == pytest.approx(np.mean(by_voxel), abs=1e-6)
    assert found["sample_r"] == pytest.approx(np.mean(by_row), abs=1e-6)
    assert found["loss"] == pytest.approx(((pred_BV - true_BV) ** 2).mean(), rel=1e-5)
    assert found["num_constant"] == 0
    inverse_trials = (1 / rows["num_trials"]).mean() if stacked else 1
    ceiling = np.sqrt(NCSNR[-10:] ** 2 / (NCSNR[-10:] ** 2 + inverse_trials))
    assert found["voxel_r_ceiling"] == pytest.approx(ceiling.mean(), abs=1e-6)
    ((low, high),) = task.intervals(merged, 0)["sample_r"]
    assert low <= found["sample_r"] <= high


def test_without_repeats_there_is_no_ceiling() -> None:
    task = fmri_task({"model": {"architecture": "clip2fmri"}}, measured=False)
    model, rows = task.build_model().eval(), fmri_rows(20, 2)
    rows["x"][:, 5] = 3.0
    found = task.summarize(evaluated(task, model, rows))
    assert np.isnan(found["voxel_r_ceiling"])
    assert found["num_constant"] == 1
    assert np.isfinite(found["voxel_r"])


@pytest.mark.parametrize("values", [{"gallery": 1}, {"ranks": [0]}, {"layer_weights": {"final": 0}}])
def test_a_gallery_has_two_pictures_and_a_target_a_weight(values: dict) -> None:
    with pytest.raises(ValidationError):
        FmriClipObjectiveConfig.model_validate(values)
