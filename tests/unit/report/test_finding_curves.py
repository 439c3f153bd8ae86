"""ROC, precision–recall and calibration of the chest X-ray figures: sklearn's and scipy's numbers."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)
from sklearn.metrics import (
    roc_curve as sklearn_roc_curve,
)

from voxray.core.figures import Figure, Predictions
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.figures.calibration import calibration_figures, reliability, wilson
from voxray.tasks.cxr_memory.figures.roc import (
    MAX_POINTS,
    curve_figures,
    precision_recall,
    roc_curve,
    thinned,
)

NUM_LABELS = len(LABELS)


def draw(num: int, seed: int = 0, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities; few decimals make many ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, num) + labels)))
    return labels, np.round(scores, decimals)


def predictions_of(labels_NK: np.ndarray, scores_NK: np.ndarray) -> Predictions:
    ids = [f"{row}.png" for row in range(len(labels_NK))]
    return Predictions(ids, ids, scores_NK, labels_NK)


def plot_of(figure: Figure) -> dict[str, Any]:
    assert figure.plot is not None
    return figure.plot


@pytest.mark.parametrize("decimals", [1, 8])
def test_the_roc_curve_is_sklearns_and_its_area_the_auroc(decimals: int) -> None:
    labels, scores = draw(300, decimals=decimals)
    false, true = roc_curve(labels, scores)
    theirs = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, theirs[0])
    np.testing.assert_allclose(true, theirs[1])
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("decimals", [1, 8])
def test_the_steps_area_is_sklearns_average_precision(decimals: int) -> None:
    labels, scores = draw(300, decimals=decimals)
    recall, precision = precision_recall(labels, scores)
    area = np.sum(np.diff(recall, prepend=0) * precision)
    assert area == pytest.approx(average_precision_score(labels, scores))
    theirs = set(zip(*np.round(precision_recall_curve(labels, scores)[1::-1], 9), strict=True))
    assert set(zip(np.round(recall, 9), np.round(precision, 9), strict=True)) <= theirs
    assert (np.diff(recall) > 0).all()


def test_a_thinned_curve_keeps_its_ends_and_its_shape() -> None:
    labels, scores = draw(20_000, decimals=8)
    false, true = roc_curve(labels, scores)
    x, y = thinned(false, true)
    assert len(x) <= MAX_POINTS < len(false)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    # No dropped point is farther from the kept ones than a stretch is long: 2 / 199.
    distance = np.abs(false[:, None] - x) + np.abs(true[:, None] - y)
    assert distance.min(1).max() <= 2 / (MAX_POINTS - 1) + 1e-9
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    few = roc_curve(*draw(50, decimals=8))
    assert thinned(*few)[0] is few[0]


def test_each_panel_shows_its_own_finding() -> None:
    labels_N, scores_N = draw(200)
    labels_NK, scores_NK = np.zeros((200, NUM_LABELS)), np.zeros((200, NUM_LABELS))
    labels_NK[:, 3], scores_NK[:, 3] = labels_N, scores_N
    labels_NK[:, 5], scores_NK[:, 5] = labels_N, 1 - scores_N
    labels_NK[:150, 5] = np.nan  # unknown labels count nowhere
    roc, pr = curve_figures(predictions_of(labels_NK, scores_NK), "val")
    areas = roc_auc_score(labels_N, scores_N), roc_auc_score(labels_N[150:], 1 - scores_N[150:])
    positives = int(labels_N.sum()), int(labels_N[150:].sum())
    headings = [note["text"] for note in plot_of(roc)["layout"]["annotations"]]
    assert headings == [
        f"{LABELS[label]} <b>{area:.2f}</b> ({num})"
        for label, area, num in zip((3, 5), areas, positives, strict=True)
    ]
    dashed, curve = plot_of(roc)["data"][2:]
    assert (dashed["x"], dashed["y"], curve["xaxis"]) == ([0, 1], [0, 1], "x2")
    np.testing.assert_allclose(
        curve["x"], sklearn_roc_curve(labels_N[150:], 1 - scores_N[150:])[0], atol=1e-4
    )
    share, steps = plot_of(pr)["data"][:2]
    assert share["y"] == pytest.approx([labels_N.mean()] * 2)
    assert steps["line"]["shape"] == "vh"  # each step as high as its right end
    drawn = np.sum(np.diff(steps["x"]) * steps["y"][1:])
    assert drawn == pytest.approx(average_precision_score(labels_N, scores_N), abs=1e-3)
    assert "Without positives or negatives here: Atelectasis, Consolidation" in roc.caption


def test_bins_are_sklearns_by_quantiles_and_leave_no_label_out() -> None:
    for decimals in (1, 8):  # with ties, bins are empty and fall out
        labels, scores = draw(1000, decimals=decimals)
        bins = reliability(labels, scores)
        share, mean = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
        np.testing.assert_allclose(bins.share_S, share)
        np.testing.assert_allclose(bins.mean_S, mean)
        assert bins.num_S.sum() == 1000
    assert (bins.num_S == 100).all()


def test_intervals_are_wilsons() -> None:
    counts = [(0, 10), (3, 10), (10, 10), (250, 1000)]
    low, high = wilson(np.array([k / n for k, n in counts]), np.array([n for _, n in counts]))
    for number, (k, n) in enumerate(counts):
        theirs = binomtest(k, n).proportion_ci(method="wilson")
        assert (low[number], high[number]) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_the_calibration_error_is_its_definition() -> None:
    # 75 labels at p = 0.1, of which 15 are present, and 25 at p = 0.9, of which 10 are: |0.2 − 0.1| for three
    # quarters of the labels and |0.4 − 0.9| for one.
    labels = np.r_[np.arange(75) < 15, np.arange(25) < 10].astype(float)
    assert reliability(labels, np.repeat([0.1, 0.9], [75, 25])).error == pytest.approx(
        0.75 * 0.1 + 0.25 * 0.5
    )
    calibrated = np.r_[np.arange(25) < 5, np.arange(25) < 20].astype(float)
    assert reliability(calibrated, np.repeat([0.2, 0.8], 25)).error == pytest.approx(0, abs=1e-12)


def test_unknown_labels_count_in_no_bin_and_in_no_histogram() -> None:
    labels_NK = np.full((60, NUM_LABELS), np.nan)
    labels_NK[:50, 2] = np.arange(50) % 2
    pooled, histogram, per_finding = calibration_figures(
        predictions_of(labels_NK, np.full(labels_NK.shape, 0.5)), "val"
    )
    assert pooled.caption.startswith("All findings together, 50 known labels in bins of equal size (1)")
    assert sum(trace["customdata"][:-1].sum() for trace in plot_of(histogram)["data"]) == 50
    assert [note["text"] for note in plot_of(per_finding)["layout"]["annotations"]] == [
        "Infiltration <b>0.000</b>"
    ]


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_one_class_only_draws_no_curve(value: float) -> None:
    given = predictions_of(np.full((4, NUM_LABELS), value), np.full((4, NUM_LABELS), 0.3))
    assert curve_figures(given, "val") == []
    assert len(calibration_figures(given, "val")) == (0 if np.isnan(value) else 3)


def test_two_rows_are_enough() -> None:
    labels_NK = np.zeros((2, NUM_LABELS))
    labels_NK[1, 0] = 1
    scores_NK = np.linspace(0, 1, 2 * NUM_LABELS).reshape(2, NUM_LABELS)
    roc, pr = curve_figures(predictions_of(labels_NK, scores_NK), "test")
    assert plot_of(roc)["layout"]["annotations"][0]["text"] == "Atelectasis <b>1.00</b> (1)"
    assert len(plot_of(pr)["data"]) == 2
    assert len(calibration_figures(predictions_of(labels_NK, scores_NK), "test")) == 3
