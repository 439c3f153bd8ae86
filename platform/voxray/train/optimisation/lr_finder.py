"""The learning-rate finder: train while the rate grows from update to update, and read a rate off the losses.

The four rules are fastai's (callback/schedule.py). Whoever calls `find` puts model and optimiser back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["valley", "minimum", "steep", "slide"]

SMOOTHING = 0.98  # weight of the past in the smoothed loss
DIVERGED = 4.0  # times the best smoothed loss
ROUNDING = 1e-6  # a fall by less than this share of the loss is none
SKIPPED_END = 5  # updates, where the loss shoots up
SLIDE_WIDTH, SLIDE_THRESHOLD = 15, 0.005  # fastai's lr_diff and thresh


@dataclass(frozen=True)
class Curve:
    """Rates that were tried, the smoothed losses there, and the one that the rule `kind` suggests, if any."""

    kind: Kind
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    rate: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a record of the log."""
        return {
            "rule": self.kind,
            "rate": self.rate,
            "rates": list(self.rates),
            "losses": [round(loss, 6) for loss in self.losses],
        }


def find(
    kind: Kind,
    update: Callable[[float], float],
    *,
    start: float = 1e-7,
    end: float = 10.0,
    num_updates: int = 100,
) -> Curve:
    """Make up to `num_updates` updates at rates start · (end/start)^(i/num_updates), and suggest one of them.

    `update(rate)` makes one update and returns its loss. The search ends early when the smoothed loss passes
    4 × its lowest or a loss is not finite (that one is not kept). The first tenth of the points and the last
    five are left out of the suggestion where enough remain.
    """
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for index in range(num_updates):
        rate = start * (end / start) ** (index / num_updates)
        loss = update(rate)
        if not math.isfinite(loss):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(average / (1 - SMOOTHING ** (index + 1)))
        if losses[-1] > _limit(losses[0], min(losses)):
            break
    skipped = num_updates // 10
    kept = slice(skipped, -SKIPPED_END) if len(losses) >= 2 * (skipped + SKIPPED_END) else slice(None)
    return Curve(kind, tuple(rates), tuple(losses), suggest(kind, rates[kept], losses[kept]))


def suggest(kind: Kind, rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate that a rule reads off a curve, up to its first loss that is not finite; None where the
    losses never fall or the rule finds no place.

    valley: about half way down the longest fall, i.e. fastai's ⌊n/3⌋ + ⌊n/6⌋ from its start. minimum: a tenth
    of the rate with the lowest loss. steep: where the loss falls fastest per log rate. slide: seen from the
    right, the first rate from which slopes 15 points apart are alike again.
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    x, y = np.asarray(rates[:finite], float), np.asarray(losses[:finite], float)
    if finite < 2 or (np.maximum.accumulate(y) - y).max() <= ROUNDING * np.abs(y).max():
        return None
    index = _RULES[kind](x, y)
    if index is None:
        return None
    return float(x[index]) / (10 if kind == "minimum" else 1)


def draw(curve: Curve, path: Path) -> None:
    """Write the curve as a PNG picture, with the suggested rate marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, color="tab:blue", marker="" if len(curve.rates) > 1 else "o")
    if curve.rate is not None:
        axes.axvline(curve.rate, color="tab:red", linestyle="--")
        title = f"{curve.kind} suggests {curve.rate:.3g}"
    else:
        title = f"{curve.kind} suggests no rate"
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss", title=title)
    before_end = curve.losses[:-SKIPPED_END]
    if before_end and min(before_end) < max(before_end):  # the last losses would flatten all others
        margin = 0.05 * (max(before_end) - min(before_end))
        axes.set_ylim(min(before_end) - margin, max(before_end) + margin)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path)


def _limit(first: float, best: float) -> float:
    """The smoothed loss from which training has diverged: 4 × the lowest, where that is above 0."""
    if best > 0:
        return DIVERGED * best
    return best + (DIVERGED - 1) * max(-best, first - best)


def _valley(rates: np.ndarray, losses: np.ndarray) -> int:
    """The longest falling subsequence, in O(points²); fastai counts its start back from its end, so that it
    may lie one before the first point.
    """
    length = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        below = losses[:i] > losses[i]
        if below.any():
            length[i] = length[:i][below].max() + 1
    end = int(length.argmax())
    start = end - int(length[end])
    third = (end - start) / 3
    return max(0, start + int(third) + int(third / 2))


def _minimum(rates: np.ndarray, losses: np.ndarray) -> int | None:
    lowest = int(losses.argmin())
    return lowest or None


def _steep(rates: np.ndarray, losses: np.ndarray) -> int:
    return int((np.diff(losses) / np.diff(np.log(rates))).argmin())


def _slide(rates: np.ndarray, losses: np.ndarray) -> int | None:
    slope = np.gradient(losses)
    left = len(losses) - 1 - SLIDE_WIDTH
    if left < 0:
        return None
    found = left
    while left >= 0 and abs(slope[left + SLIDE_WIDTH] - slope[left]) > SLIDE_THRESHOLD:
        found = left
        left -= 1
    return found


_RULES: dict[Kind, Callable[[np.ndarray, np.ndarray], int | None]] = {
    "valley": _valley,
    "minimum": _minimum,
    "steep": _steep,
    "slide": _slide,
}
