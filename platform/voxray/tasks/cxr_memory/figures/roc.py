"""ROC and precision–recall curves per finding, from an evaluated split's predictions.

Shapes: N images, K findings, P points of a curve.
"""

from typing import Any

import numpy as np

from voxray.core.figures import BLUE, GREY, Figure, Predictions
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.figures.panels import Panel, grid

MAX_POINTS = 200  # of a drawn curve; thinning moves it by less than a screen's pixel in a panel


def curve_figures(predictions: Predictions, split: str) -> list[Figure]:
    """Return the ROC and the precision–recall curves; none where no finding has both classes."""
    roc, pr, missing = [], [], []
    for label, name in enumerate(LABELS):
        labels_N, scores_N = known_labels(predictions, label)
        positives = int(labels_N.sum())
        if not 0 < positives < len(labels_N):
            missing.append(name)
            continue
        shown = name.replace("_", " ")
        roc.append(_roc_panel(shown, labels_N, scores_N))
        pr.append(_pr_panel(shown, labels_N, scores_N))
    if not roc:
        return []
    left_out = f" Without positives or negatives here: {', '.join(missing)}." if missing else ""
    return [
        Figure(
            f"ROC per finding, {split}",
            "In each heading the AUROC and, in brackets, the positive images. Dashed: chance. Images of "
            "equal probability make a slanted step." + left_out,
            grid(roc, "false positive rate", "true positive rate"),
        ),
        Figure(
            f"Precision and recall per finding, {split}",
            "In each heading the average precision (the area below the steps) and, in brackets, the "
            "positive images. Dashed: their share, which is the precision of chance." + left_out,
            grid(pr, "recall", "precision"),
        ),
    ]


def known_labels(predictions: Predictions, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (0 or 1) and probabilities of the images whose label is known, of one finding."""
    known_N = ~np.isnan(predictions.labels_NK[:, label])
    return predictions.labels_NK[known_N, label], predictions.scores_NK[known_N, label]


def roc_curve(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates [P] from (0, 0) to (1, 1), one point per distinct score."""
    true_P, false_P = _counts(labels_N, scores_N)
    return np.r_[0.0, false_P / false_P[-1]], np.r_[0.0, true_P / true_P[-1]]


def precision_recall(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recalls and precisions [P], the recall rising from point to point: of equal recalls the one with
    the highest threshold. Σ precision · rise of recall is the average precision.
    """
    true_P, false_P = _counts(labels_N, scores_N)
    rises_P = np.diff(true_P, prepend=0) > 0
    recall_P, precision_P = true_P / true_P[-1], true_P / (true_P + false_P)
    return recall_P[rises_P], precision_P[rises_P]


def _counts(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return true and false positives [P] at each distinct score taken as the threshold, highest first."""
    order_N = np.argsort(-scores_N, kind="stable")
    last_P = np.r_[np.flatnonzero(np.diff(scores_N[order_N])), len(order_N) - 1]
    true_P = np.cumsum(labels_N[order_N])[last_P]
    return true_P, last_P + 1 - true_P


def thinned(x_P: np.ndarray, y_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most MAX_POINTS points of a curve on which x never falls, both ends included.

    Of each stretch of equal length, measured as the sum of |Δx| and |Δy|, the first point stays: no dropped
    point is farther from its stretch's first than the stretch is long.
    """
    if len(x_P) <= MAX_POINTS:
        return x_P, y_P
    length_P = np.r_[0.0, np.cumsum(np.abs(np.diff(x_P)) + np.abs(np.diff(y_P)))]
    stretch_P = np.floor(length_P / length_P[-1] * (MAX_POINTS - 1)).astype(int)
    keep_P = np.diff(stretch_P, prepend=-1) > 0
    keep_P[-1] = True
    return x_P[keep_P], y_P[keep_P]


def _roc_panel(name: str, labels_N: np.ndarray, scores_N: np.ndarray) -> Panel:
    false_P, true_P = roc_curve(labels_N, scores_N)
    area = float(np.trapezoid(true_P, false_P))
    x_P, y_P = thinned(false_P, true_P)
    hover = f"{name}<br>true positives %{{y:.1%}}<br>false positives %{{x:.1%}}<extra></extra>"
    return Panel(
        f"{name} <b>{area:.2f}</b> ({int(labels_N.sum())})",
        (_dashed([0, 1], [0, 1]), _curve(x_P, y_P, hover, "linear")),
    )


def _pr_panel(name: str, labels_N: np.ndarray, scores_N: np.ndarray) -> Panel:
    recall_P, precision_P = precision_recall(labels_N, scores_N)
    average = float(np.sum(np.diff(recall_P, prepend=0) * precision_P))
    x_P, y_P = thinned(np.r_[0.0, recall_P], np.r_[precision_P[0], precision_P])
    share = float(labels_N.mean())
    hover = f"{name}<br>precision %{{y:.1%}}<br>recall %{{x:.1%}}<extra></extra>"
    return Panel(
        f"{name} <b>{average:.2f}</b> ({int(labels_N.sum())})",
        # vh: the height of a step is the precision at its right end, as the average precision counts it.
        (_dashed([0, 1], [share, share]), _curve(x_P, y_P, hover, "vh")),
    )


def _curve(x_P: np.ndarray, y_P: np.ndarray, hover: str, shape: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": np.round(x_P, 4),
        "y": np.round(y_P, 4),
        "line": {"color": BLUE, "width": 2, "shape": shape},
        "hovertemplate": hover,
    }


def _dashed(x: list[float], y: list[float]) -> dict[str, Any]:
    line = {"color": GREY, "width": 1, "dash": "dash"}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip"}
