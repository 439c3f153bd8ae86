"""Rows of a dataset that is being prepared: what a task may ask of the training rows, and rows that merge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from voxray.core.batch import Columns
from voxray.core.schema import Column


class PreparedRows(Protocol):
    """The rows of one split, by their number in the order of the shards; they need not fit in memory."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return a whole column, rows first: for texts and single numbers."""
        ...

    def take(self, rows: Sequence[int] | np.ndarray[Any, Any], names: Sequence[str]) -> Columns:
        """Return columns of some rows, in the order that is asked for."""
        ...


@dataclass(frozen=True)
class Merge:
    """Rows of a split that become one: those that are equal in all `key` columns, which are texts.

    `function` makes a row of the columns [n, …] of n rows and the largest n that there is; `columns` makes
    the schema's columns of merged rows. The group column is one of `key`, or the same wherever they are.
    """

    key: tuple[str, ...]
    function: Callable[[Columns, int], dict[str, Any]]
    columns: Callable[[Mapping[str, Column], int], dict[str, Column]]
