"""Average precision against scikit-learn, and what it shares with AUROC: order alone counts."""

import math
import resource
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from voxray.metrics.auroc import auroc_of, auroc_per_class
from voxray.metrics.average_precision import (
    average_precision,
    average_precision_of,
    average_precision_per_class,
)
from voxray.metrics.bootstrap import group_weights
from voxray.metrics.ranking import BLOCK, per_class
from voxray.metrics.thresholded import accuracy, macro_f1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("num_scores", [2, 12, 10**6])
def test_weighted_it_equals_scikit_learn_with_ties(seed: int, num_scores: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random(60) < 0.3).astype(int)
    scores = rng.integers(0, num_scores, 60) / num_scores
    weights = np.concatenate([rng.integers(0, 4, (3, 60)).astype(float), rng.random((2, 60))])
    ours = average_precision(torch.tensor(labels), torch.tensor(scores), torch.tensor(weights))
    expected = [average_precision_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_the_best_and_the_worst_ranking() -> None:
    labels, ones = torch.tensor([0, 0, 0, 1, 1]), torch.ones(1, 5)
    assert average_precision(labels, torch.arange(5.0), ones).tolist() == [1.0]
    worst = (1 / 4 + 2 / 5) / 2
    assert average_precision(labels, -torch.arange(5.0), ones).tolist() == pytest.approx([worst])
    assert average_precision(labels, torch.zeros(5), ones).tolist() == pytest.approx([2 / 5])


def test_unknown_labels_are_left_out_and_a_class_without_positives_is_nan() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 5)) < 0.3).astype(np.float32)
    scores = rng.random((80, 5)).astype(np.float32)
    labels[::3, 1] = np.nan
    labels[:, 2] = 0  # no positive
    labels[:, 3] = np.nan  # nothing known
    labels[:, 4] = 1  # no negative
    values = average_precision_per_class(torch.tensor(labels), torch.tensor(scores))[0].tolist()
    for k in (0, 1, 4):
        known = ~np.isnan(labels[:, k])
        assert values[k] == pytest.approx(average_precision_score(labels[known, k], scores[known, k]))
    assert math.isnan(values[2])
    assert math.isnan(values[3])


def test_a_score_that_is_no_number_makes_its_class_undefined() -> None:
    """scikit-learn refuses it; sorted anywhere, a diverged model could look perfect."""
    labels, scores = torch.tensor([[0.0, 0], [1, 1], [1, 0]]), torch.rand(3, 2)
    scores[1, 0] = math.nan
    for measured in (auroc_per_class, average_precision_per_class):
        assert measured(labels, scores)[0].isnan().tolist() == [True, False]


def test_no_rows_at_all_are_undefined() -> None:
    for measured in (auroc_per_class, average_precision_per_class):
        assert measured(torch.zeros(0, 3), torch.zeros(0, 3)).isnan().all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_scores=st.sampled_from([3, 20, 10**6]))
def test_they_do_not_change_under_a_monotone_transform(seed: int, num_scores: int) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.tensor((rng.random((50, 3)) < 0.4).astype(float))
    scores = torch.tensor(rng.integers(0, num_scores, (50, 3)) / num_scores)
    for measured in (auroc_per_class, average_precision_per_class):
        expected = measured(labels, scores)
        for transformed in ((3 * scores).exp(), scores**3, (scores + 1).log()):
            assert torch.equal(measured(labels, transformed).nan_to_num(), expected.nan_to_num())


def test_a_resample_is_the_metric_of_the_rows_that_were_drawn() -> None:
    """A patient who is drawn twice comes twice: weights beside rows repeated, over more than one block."""
    rng = np.random.default_rng(3)
    labels, scores = (rng.random((60, 2)) < 0.4).astype(float), rng.integers(0, 30, (60, 2)) / 30
    labels[rng.random((60, 2)) < 0.2] = np.nan
    weights = group_weights(torch.tensor(np.arange(60) // 3), BLOCK + 20, seed=1)
    areas, precisions = per_class(
        [auroc_of, average_precision_of], torch.tensor(labels), torch.tensor(scores), weights
    )
    assert areas.shape == precisions.shape == (BLOCK + 20, 2)
    for r in (0, BLOCK - 1, BLOCK, BLOCK + 19):
        drawn = np.repeat(np.arange(60), weights[r].long().numpy())
        for k in range(2):
            rows = drawn[~np.isnan(labels[drawn, k])]
            truth, found = labels[rows, k], scores[rows, k]
            assert areas[r, k].item() == pytest.approx(roc_auc_score(truth, found), abs=1e-12)
            assert precisions[r, k].item() == pytest.approx(average_precision_score(truth, found), abs=1e-12)


def test_a_thousand_resamples_of_a_large_split_take_seconds_and_little_memory() -> None:
    """NIH's test list has 25,596 rows: 2 s and 0.2 GB on one free core; here it is a tenth of its rows."""
    rng = torch.Generator().manual_seed(0)
    labels = (torch.rand(2560, 14, generator=rng) < 0.1).float()
    scores = torch.rand(2560, 14, generator=rng)
    weights = group_weights(torch.arange(2560) // 9, 1000, seed=0)
    before_kb, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    per_class([auroc_of, average_precision_of], labels, scores, weights)
    assert time.process_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


def test_decisions_at_one_half_are_scikit_learns() -> None:
    rng = np.random.default_rng(5)
    labels, scores = (rng.random((70, 6)) < 0.4).astype(float), rng.random((70, 6))
    labels[:, 2], scores[:, 2] = 0, 0.1  # neither there nor found: F1 has no value
    labels[:, 3] = 0  # found, but never there: F1 is 0
    found = (scores > 0.5).astype(int)
    undefined: Any = np.nan  # scikit-learn's annotation knows its text values only
    expected = f1_score(labels, found, average="macro", zero_division=undefined)
    assert macro_f1(torch.tensor(labels), torch.tensor(scores)) == pytest.approx(expected)
    expected = accuracy_score(labels.ravel(), found.ravel())
    assert accuracy(torch.tensor(labels), torch.tensor(scores)) == pytest.approx(expected)


def test_decisions_leave_out_unknown_labels() -> None:
    labels = torch.tensor([[1.0, math.nan], [math.nan, 0.0], [0.0, 1.0]])
    scores = torch.tensor([[0.9, 0.9], [0.9, 0.2], [0.7, 0.6]])
    assert accuracy(labels, scores) == pytest.approx(3 / 4)
    assert macro_f1(labels, scores) == pytest.approx((2 / 3 + 1) / 2)
