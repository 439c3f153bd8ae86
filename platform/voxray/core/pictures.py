"""Pictures that a model's predictions become: what a task offers to `voxray predict --images`. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Take = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
NO_TRUTHS = "the dataset stores no pictures (data.prepare.images), so none stand beside these"


@dataclass(frozen=True)
class Picture:
    """RGB pixels, uint8 [H, W, 3], and the lines that stand below them."""

    pixels_HWC: np.ndarray
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class PicturedRow:
    """One row's pictures; `truth` is the picture that was shown, where the dataset stores it."""

    sample_id: str
    title: str
    made: tuple[Picture, ...]
    truth: Picture | None = None


@dataclass(frozen=True)
class Pictures:
    """What a picture maker made: rows, and what the user should be told about them."""

    rows: tuple[PicturedRow, ...]
    notes: tuple[str, ...] = ()


def chosen_rows(sample_ids: Sequence[str], stimulus_ids: Sequence[str], num: int) -> list[int]:
    """Return the places of the first rows by sample id, one per stimulus, at most `num`."""
    first: dict[str, int] = {}
    for row in sorted(range(len(sample_ids)), key=lambda row: sample_ids[row]):
        first.setdefault(stimulus_ids[row], row)
    return list(first.values())[:num]


def pictured_rows(
    predictions: Mapping[str, Any],
    chosen: Sequence[int],
    made: Sequence[Sequence[Picture]],
    truths: Sequence[np.ndarray],
) -> tuple[PicturedRow, ...]:
    """Return the `chosen` rows of predictions with what was made for each; `truths` may be empty."""
    return tuple(
        PicturedRow(
            predictions["sample_id"][row],
            str(predictions["stimulus_id"][row]),
            tuple(made[place]),
            Picture(truths[place]) if truths else None,
        )
        for place, row in enumerate(chosen)
    )


class PictureMaker(Protocol):
    """Turns predictions into pictures. It is made before anything is predicted, and refuses then what it
    cannot do; it loads what it needs when it is called.
    """

    def __call__(self, predictions: Mapping[str, Any], take: Take | None) -> Pictures:
        """Return pictures of some rows: which ones, the task's config says.

        `predictions` are the columns of a predictions file, tensors [N, …] and lists of text; `take` fetches
        the dataset's columns for sample ids, None where it cannot.
        """
        ...
