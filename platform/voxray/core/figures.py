"""What a task's own figures are made from (`RunView`) and what they are (`Figure`). No torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Okabe & Ito's colours, which colour-blind readers can tell apart; yellow is too faint on white.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6B7280",
)


@dataclass(frozen=True)
class Tile:
    """One picture of a grid: PNG bytes, a heading and the lines below it."""

    png: bytes
    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """One figure: a plotly figure as plain JSON-able values (`data`, `layout`), or a grid of pictures.

    A user's text that goes into `plot` must pass through `html.escape`: plotly reads a few tags.
    """

    title: str
    caption: str = ""
    plot: dict[str, Any] | None = None
    tiles: tuple[Tile, ...] = ()
    wide: bool = True  # False: two of them stand side by side


@dataclass(frozen=True)
class Predictions:
    """What an evaluated split's rows were given: N rows, K probabilities each; NaN labels are unknown."""

    sample_id: list[str]
    group_id: list[str]
    scores_NK: np.ndarray
    labels_NK: np.ndarray


@dataclass(frozen=True)
class RunView:
    """One evaluated split of a run, as its files tell it.

    `take` fetches the split's columns for sample ids, in their order; None where it cannot be read. `log`
    holds the records of the run's log, `load` gives the trained run on the CPU (`voxray.load`), and
    `take_train` is `take` for the training split; None where a page has no run.
    """

    run_dir: Path
    config: Mapping[str, Any]
    split: str
    evaluation: Mapping[str, Any]
    predictions: Predictions | None = None
    take: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None
    take_train: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None
    log: Sequence[Mapping[str, Any]] = ()
    load: Callable[[], Any] | None = None
