"""What a task's own figures are made from (`RunView`) and what they are (`Figure`). No torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
    """One figure: a plotly figure as plain JSON-able values (`data`, `layout`), a grid of pictures, or one
    picture at its own size (PNG bytes).

    A user's text that goes into `plot` must pass through `html.escape`: plotly reads a few tags.
    """

    title: str
    caption: str = ""
    plot: dict[str, Any] | None = None
    tiles: tuple[Tile, ...] = ()
    picture: bytes = b""
    wide: bool = True  # False: two of them stand side by side


@dataclass(frozen=True)
class Predictions:
    """What an evaluated split's rows were given: N rows, K probabilities each; NaN labels are unknown."""

    sample_id: list[str]
    group_id: list[str]
    scores_NK: np.ndarray
    labels_NK: np.ndarray


class SplitRows(Protocol):
    """The rows of one split: called with sample ids it returns their columns, in the order of the ids."""

    @property
    def sample_ids(self) -> Sequence[str]:
        """The ids of all rows of the split."""
        ...

    def __call__(self, sample_ids: Sequence[str], /) -> Mapping[str, np.ndarray]:
        """Return the columns of rows. Raises InputError for an id that the split does not have."""
        ...


@dataclass(frozen=True)
class RunView:
    """One evaluated split of a run, as its files tell it.

    `take` fetches the split's columns for sample ids, in their order; None where it cannot be read. `load`
    gives the trained run on the CPU (`voxray.load`) and `open_train` the training split's rows; both raise
    InputError or RunError where that cannot be done, and are None where a page has no run. `columns` reads
    all columns of the predictions file, for tasks that predict no scores; None where there is no file.
    """

    run_dir: Path
    config: Mapping[str, Any]
    split: str
    evaluation: Mapping[str, Any]
    predictions: Predictions | None = None
    take: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None
    load: Callable[[], Any] | None = None
    open_train: Callable[[], SplitRows] | None = None
    columns: Callable[[], Mapping[str, np.ndarray]] | None = None


@dataclass(frozen=True)
class TrainingView:
    """A run's training, as its files tell it: the config, the records of its log, and the statistics of the
    training rows per column (`data/statistics.py`; empty where they are not known).
    """

    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    statistics: Mapping[str, Any] = field(default_factory=dict[str, Any])
