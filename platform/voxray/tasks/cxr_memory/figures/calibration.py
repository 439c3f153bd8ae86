"""Whether probabilities are what they say: reliability over all findings and per finding.

Shapes: N known labels, S bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure, Predictions
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.figures.panels import Panel, grid
from voxray.tasks.cxr_memory.figures.roc import known_labels

MAX_BINS = 10
LABELS_PER_BIN = 25  # fewer labels make fewer bins
NORMAL_95 = 1.959964  # the normal distribution's 97.5 % point
HISTOGRAM_BINS = 25
BELOW_ONE = 0.5  # where a logarithmic axis draws a bin that holds nothing: below its lower end


@dataclass(frozen=True)
class Bins:
    """Labels in bins of equal mass by probability: per bin the mean probability, the share of positives with
    its 95 % interval (Wilson 1927), and the number of labels [S].
    """

    mean_S: np.ndarray
    share_S: np.ndarray
    low_S: np.ndarray
    high_S: np.ndarray
    num_S: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: |mean probability − share of positives| averaged over labels."""
        return float(np.average(np.abs(self.mean_S - self.share_S), weights=self.num_S))


def calibration_figures(predictions: Predictions, split: str) -> list[Figure]:
    """Return reliability and histogram over all findings, then reliability per finding; none without known
    labels.
    """
    known_NK = ~np.isnan(predictions.labels_NK)
    if not known_NK.any():
        return []
    labels_N, scores_N = predictions.labels_NK[known_NK], predictions.scores_NK[known_NK]
    bins = reliability(labels_N, scores_N)
    panels = [
        _panel(name.replace("_", " "), reliability(*known))
        for label, name in enumerate(LABELS)
        if len((known := known_labels(predictions, label))[0])
    ]
    return [
        Figure(
            f"Calibration, {split}",
            f"All findings together, {len(labels_N):,} known labels in bins of equal size "
            f"({len(bins.num_S)}). Expected calibration error {bins.error:.3f}: the distance of a dot "
            "from the dashed line, averaged over labels. Whiskers: 95 % intervals (Wilson), as if labels "
            "were independent.",
            _pooled_plot(bins),
            wide=False,
        ),
        Figure(
            f"Probabilities, {split}",
            "How often the model gives which probability to findings that are there and that are not. The "
            "scale is logarithmic.",
            _histogram(labels_N, scores_N),
            wide=False,
        ),
        Figure(
            f"Calibration per finding, {split}",
            "In each heading the expected calibration error. Dots above the dashed line: the finding is more "
            "frequent than the model says. Each panel has its own scale.",
            grid(panels, "mean probability", "share of positives", own_ticks=True),
        ),
    ]


def reliability(labels_N: np.ndarray, scores_N: np.ndarray) -> Bins:
    """Return up to MAX_BINS bins whose edges are quantiles of the probabilities; equal ones share a bin."""
    num_bins = int(np.clip(len(labels_N) // LABELS_PER_BIN, 1, MAX_BINS))
    inner_edges = np.quantile(scores_N, np.linspace(0, 1, num_bins + 1)[1:-1])
    bin_N = np.searchsorted(inner_edges, scores_N)
    num_S = np.bincount(bin_N, minlength=num_bins)
    used_S = num_S > 0
    num_S = num_S[used_S]
    mean_S = np.bincount(bin_N, scores_N, num_bins)[used_S] / num_S
    share_S = np.bincount(bin_N, labels_N, num_bins)[used_S] / num_S
    low_S, high_S = wilson(share_S, num_S)
    return Bins(mean_S, share_S, low_S, high_S, num_S)


def wilson(share: np.ndarray, num: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of a share's 95 % interval by Wilson's score (1927), without continuity correction."""
    square = NORMAL_95**2
    center = (share + square / (2 * num)) / (1 + square / num)
    half = NORMAL_95 / (1 + square / num) * np.sqrt(share * (1 - share) / num + square / (4 * num**2))
    return center - half, center + half


def _pooled_plot(bins: Bins) -> dict[str, Any]:
    end = _end(bins)
    axis = {"range": [-0.02 * end, 1.03 * end]}
    return {
        "data": [*_traces(bins, end, "", 9)],
        "layout": {
            "height": 380,
            "xaxis": axis | {"title": {"text": "mean probability"}},
            "yaxis": axis | {"title": {"text": "share of positives"}},
            "hovermode": "closest",
            "showlegend": False,
            "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        },
    }


def _panel(name: str, bins: Bins) -> Panel:
    end = _end(bins)
    return Panel(f"{name} <b>{bins.error:.3f}</b>", tuple(_traces(bins, end, f"{name}<br>", 6)), end)


def _end(bins: Bins) -> float:
    """Return where the axes end: at the largest probability or interval, as rare findings stay near 0."""
    return float(min(1.0, max(bins.mean_S.max(), bins.high_S.max())))


def _traces(bins: Bins, end: float, name: str, size: int) -> list[dict[str, Any]]:
    hover = f"{name}probability %{{x:.1%}}<br>positives %{{y:.1%}} of %{{customdata:,}}<extra></extra>"
    diagonal = {"x": [0, end], "y": [0, end], "line": {"color": GREY, "width": 1, "dash": "dash"}}
    dots = {
        "x": np.round(bins.mean_S, 5),
        "y": np.round(bins.share_S, 5),
        "customdata": bins.num_S,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": np.round(bins.high_S - bins.share_S, 5),
            "arrayminus": np.round(bins.share_S - bins.low_S, 5),
            "color": BLUE,
            "thickness": 1.2,
            "width": 0,
        },
        "marker": {"color": BLUE, "size": size},
        "hovertemplate": hover,
    }
    return [
        {"type": "scatter", "mode": "lines", "hoverinfo": "skip"} | diagonal,
        {"type": "scatter", "mode": "markers"} | dots,
    ]


def _histogram(labels_N: np.ndarray, scores_N: np.ndarray) -> dict[str, Any]:
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    traces = []
    for name, value, color in (("absent", 0, BLUE), ("present", 1, VERMILLION)):
        counts = np.histogram(scores_N[labels_N == value], edges)[0]
        counts = np.append(counts, counts[-1])  # the last edge closes the last step
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": np.round(edges, 3),
                "y": np.maximum(counts, BELOW_ONE),
                "customdata": counts,
                "line": {"color": color, "width": 2, "shape": "hv"},
                "hovertemplate": f"{name}: %{{customdata:,}} labels<extra></extra>",
            }
        )
    top = np.log10(max(10, *(trace["y"].max() for trace in traces))) + 0.1
    return {
        "data": traces,
        "layout": {
            "height": 380,
            "xaxis": {"title": {"text": "probability"}, "range": [0, 1]},
            "yaxis": {
                "title": {"text": "labels"},
                "type": "log",
                "dtick": 1,
                "range": [np.log10(BELOW_ONE) + 0.1, top],
            },
        },
    }
