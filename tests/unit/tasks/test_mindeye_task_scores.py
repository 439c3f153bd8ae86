"""MindEye's retrieval against a count by hand, its intervals, and what is refused."""

import re
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from mindeye_rows import SMALL, mindeye_rows, mindeye_task
from voxray.config.errors import InputError
from voxray.core.evaluation import Evaluation, Rows
from voxray.losses.contrastive import info_nce
from voxray.tasks.mindeye import scores
from voxray.tasks.mindeye.config import MindEyeObjectiveConfig
from voxray.train.dry_run.first_batch import try_batch

NUM, DIM = 60, 8


def rows(noise: float = 0.6, per_picture: int = 1) -> Rows:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((NUM, DIM)).astype(np.float32)
    names = [f"nsd{i // per_picture:05d}" for i in range(NUM)]
    columns = {
        "embedding": true + noise * rng.standard_normal((NUM, DIM)).astype(np.float32),
        "target": true,
        "stimulus_id": np.array(names, dtype=object),
    }
    return Rows([f"{i:03d}" for i in range(NUM)], names, columns)


def own(**values: Any) -> MindEyeObjectiveConfig:
    return MindEyeObjectiveConfig.model_validate(values)


def test_retrieval_over_all_pictures_is_that_by_hand():
    """Upstream's: unit rows, similarities, the largest of a row (brain → image) and of a column."""
    found = scores.gallery_values(rows(), own(gallery="all"))
    pred, true = (F.normalize(torch.tensor(rows().columns[name]), dim=-1) for name in ("embedding", "target"))
    similarity = pred @ true.T
    own_place = torch.arange(NUM)
    image, brain = (similarity.argmax(axis) == own_place for axis in (1, 0))
    two_way = (similarity.diagonal()[:, None] > similarity).sum() / (NUM * (NUM - 1))
    expected = [image.double().mean(), brain.double().mean(), two_way]
    assert list(found) == ["image_r1_of_all", "brain_r1_of_all", "two_way_of_all"]
    assert [float(value.mean()) for value in found.values()] == pytest.approx(list(map(float, expected)))
    assert expected[0] != expected[1]


def test_galleries_hold_distinct_pictures_and_are_the_same_for_every_order():
    names = rows(per_picture=2).columns["stimulus_id"]
    drawn = scores.drawn_galleries(names, own(gallery=20, num_galleries=5))
    assert len(drawn) == 5
    for chosen in drawn:
        assert len(set(names[chosen])) == 20
    others = {tuple(sorted(names[chosen])) for chosen in drawn}
    assert len(others) == 5
    assert {
        tuple(sorted(names[::-1][c]))
        for c in scores.drawn_galleries(names[::-1], own(gallery=20, num_galleries=5))
    } == others


def test_the_interval_is_the_mean_of_the_galleries_and_their_standard_error():
    values = own(gallery=20, num_galleries=30)
    found = scores.intervals(rows(), values, False, 0)
    each = scores.gallery_values(rows(), values)["image_r1_of_20"].numpy()
    half = 1.96 * each.std(ddof=1) / 30**0.5
    assert found["image_r1_of_20"] == [pytest.approx((each.mean() - half, each.mean() + half))]
    low, high = found["cosine_similarity"][0]
    assert low < float(scores.cosines(rows()).mean()) < high


@pytest.mark.parametrize("gallery", ["all", NUM])
def test_a_gallery_of_all_pictures_stays_whole_and_its_interval_is_scipys_bootstrap(gallery):
    pred, true = (F.normalize(torch.tensor(rows().columns[name]), dim=-1) for name in ("embedding", "target"))
    hits = ((pred @ true.T).argmax(1) == torch.arange(NUM)).double().numpy()
    expected = scipy.stats.bootstrap((hits,), np.mean, method="percentile", n_resamples=9999, rng=0)
    found = scores.intervals(rows(), own(gallery=gallery), False, 0)
    assert found[f"image_r1_of_{gallery}"][0] == pytest.approx(expected.confidence_interval, abs=1.5 / NUM)
    assert set(found) == {"cosine_similarity", *scores.gallery_names(own(gallery=gallery))}


def test_a_split_without_a_whole_gallery_is_refused_unless_it_was_cut():
    with pytest.raises(InputError, match="a gallery of 300 needs as many pictures, and there are 60"):
        scores.gallery_values(rows(), own())
    cut = scores.gallery_values(rows(), own(), is_cut=True)
    assert all(value.isnan().all() for value in cut.values())


def test_the_loss_of_a_split_is_alpha_mse_and_info_nce():
    task = mindeye_task(
        {
            "model": SMALL,
            "objective": {"gallery": "all", "alpha": 0.3, "tau": 0.2},
            "training": {"batch_size": 64},
        }
    )
    merged = Evaluation({}, rows())
    summary = task.summarize(merged)
    pred, true = scores.unit_embeddings(rows())
    nce = float(info_nce(pred, true, 0.2))
    assert summary["loss"] == pytest.approx(nce, rel=1e-5)


def test_an_augmented_row_is_one_of_its_repeats_and_each_comes_a_third_of_the_time():
    task = mindeye_task({"model": SMALL})
    columns = mindeye_rows(300, 0) | {"valid": np.ones(300, bool), "position": np.arange(300)}
    batch = task.collate(columns)
    seen = task.augment(batch, 7).voxels_BV
    is_repeat_BR = (batch.voxels_BRV == seen[:, None]).all(-1)
    assert (is_repeat_BR.sum(1) == 1).all()
    assert is_repeat_BR.double().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.08)
    torch.testing.assert_close(batch.voxels_BV, torch.tensor(columns["voxels"].mean(1)))


def test_a_target_that_the_dataset_lacks_is_refused():
    with pytest.raises(InputError, match="the dataset has no target 'layer_8'; it has: final, hidden"):
        mindeye_task({"model": {**SMALL, "target": "layer_8"}}).build_model()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"combine_models": False, "prior": {"enabled": False}}}, "trains the prior alone"),
        (
            {"model": {"prior": {"enabled": False}}, "objective": {"combine_losses": False}},
            "prior's loss alone",
        ),
        ({"objective": {"nce_weight": "1 - alpha", "alpha": 30}}, "below 0 with alpha=30"),
        ({"training": {"stepper": "closed_form"}}, "no closed form"),
    ],
)
def test_values_that_leave_nothing_to_train_are_refused(values: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        mindeye_task(values)


def test_with_clips_own_norm_the_two_terms_begin_alike():
    """The guide: with alpha = 0.01 the two terms are weighted roughly equally at the beginning."""
    task = mindeye_task(
        {
            "model": SMALL,
            "objective": {"alpha": 0.01, "tau": 0.1, "contrast": "info_nce", "mixco_fraction": 0},
        }
    )
    torch.manual_seed(0)
    model = task.build_model()
    columns = mindeye_rows(64, 0) | {"valid": np.ones(64, bool), "position": np.arange(64)}
    target = columns["clip_final"]
    columns["clip_final"] = 16 * target / np.linalg.norm(target, axis=1, keepdims=True)
    (stage,) = task.config.resolved_stages()
    terms = task.loss(model, task.augment(task.collate(columns), 0), stage)
    mse, nce = (float(terms[name].weight * terms[name].sum.detach()) for name in ("mse", "nce"))
    assert 0.1 < mse / nce < 10
    task.after_step(model, terms)
    assert task.state_numbers(model)["mse_to_nce"] == pytest.approx(mse / nce)


def test_a_dry_run_tells_both_terms_of_the_first_batch():
    task = mindeye_task({"model": SMALL})
    columns = mindeye_rows(4, 0) | {"valid": np.ones(4, bool), "position": np.arange(4)}
    (stage,) = task.config.resolved_stages()
    said = try_batch(task, task.collate(columns), stage, torch.device("cpu"), None, print)
    found = re.fullmatch(r"loss (\S+) = mse (\S+) \+ nce (\S+) of 4 rows", said)
    assert found is not None, said
    assert float(found[1]) == pytest.approx(float(found[2]) + float(found[3]), rel=1e-3)
