"""AUROC and its bootstrap against scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from voxray.metrics.auroc import auroc, auroc_per_class
from voxray.metrics.bootstrap import group_weights, percentile_interval


@pytest.mark.parametrize("seed", range(5))
def test_weighted_auroc_equals_scikit_learn_with_ties(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    scores = rng.integers(0, 12, 60) / 12  # many ties
    weights = rng.integers(0, 4, (3, 60)).astype(float)
    ours = auroc(torch.tensor(labels), torch.tensor(scores), torch.tensor(weights))
    for row, value in zip(weights, ours.tolist(), strict=True):
        assert value == pytest.approx(roc_auc_score(labels, scores, sample_weight=row), abs=1e-12)


def test_per_class_leaves_out_unknown_labels_and_undefined_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (80, 4)).astype(np.float32)
    scores = rng.random((80, 4)).astype(np.float32)
    labels[::3, 1] = np.nan
    labels[:, 2] = 0  # no positive
    labels[:, 3] = np.nan  # nothing known
    areas = auroc_per_class(torch.tensor(labels), torch.tensor(scores))[0]
    for k in (0, 1):
        known = ~np.isnan(labels[:, k])
        reference = binary_auroc(torch.tensor(scores[known, k]), torch.tensor(labels[known, k]).int())
        assert float(areas[k]) == pytest.approx(float(reference), abs=1e-6)
    assert math.isnan(areas[2])
    assert math.isnan(areas[3])


def test_auroc_does_not_change_under_a_monotone_transform():
    rng = np.random.default_rng(1)
    labels, scores = torch.tensor(rng.integers(0, 2, 50)), torch.tensor(rng.standard_normal(50))
    ones = torch.ones(1, 50)
    assert torch.equal(auroc(labels, scores, ones), auroc(labels, scores.exp() * 3 + 1, ones))


def test_groups_are_drawn_whole_and_as_often_as_there_are_groups():
    group_N = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weights_RN = group_weights(group_N, 200, seed=3)
    for g in range(4):
        members = weights_RN[:, group_N == g]
        assert (members == members[:, :1]).all()
    one_per_group = weights_RN[:, [0, 2, 3, 6]]
    assert (one_per_group.sum(1) == 4).all()
    assert one_per_group.mean() == pytest.approx(1.0)


def test_interval_is_wider_when_patients_have_many_images():
    rng = np.random.default_rng(2)
    patient_score = rng.standard_normal(40)
    patient_label = (patient_score + rng.standard_normal(40) > 0).astype(np.float32)
    labels = torch.tensor(np.repeat(patient_label, 10))
    scores = torch.tensor(np.repeat(patient_score, 10))
    by_patient = auroc(labels, scores, group_weights(torch.arange(40).repeat_interleave(10), 400, 0))
    by_image = auroc(labels, scores, group_weights(torch.arange(400), 400, 0))
    width = [high - low for low, high in (percentile_interval(by_patient), percentile_interval(by_image))]
    assert width[0] > 2 * width[1]


def test_percentile_interval_equals_numpy_over_the_defined_values():
    values = torch.tensor([*np.linspace(0, 1, 101), math.nan])
    assert percentile_interval(values) == pytest.approx(
        tuple(np.quantile(np.linspace(0, 1, 101), [0.025, 0.975]))
    )
