"""What a row of a dataset is: its columns with dtypes, shapes and units, and the group that no split may
share.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TEXT = "text"
BYTES = "bytes"  # encoded: a JPEG, a PNG
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Column:
    """One column: `dtype` is a numpy name, `text` or `bytes`; `shape` is one row's shape, () for a scalar.

    A `None` in `shape` is a size that only the raw files tell; the manifest holds the size that was found.
    With `ragged` the first axis differs from row to row (the bins of a trial): its size is always None.
    A batch has a ragged column padded with zeros to its longest row, and the lengths as `<name>.length`.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    unit: str = ""
    names: tuple[str, ...] = ()  # what the entries of the last axis are called, e.g. the labels
    ragged: bool = False

    @property
    def is_tensor(self) -> bool:
        """Whether the values are numbers, not text or encoded bytes."""
        return self.dtype not in (TEXT, BYTES)


@dataclass(frozen=True)
class Schema:
    """The columns of a dataset's rows. `sample_id` names a row, `group` the unit that splits are made of."""

    columns: Mapping[str, Column]
    group: str
    sample_id: str = "sample_id"
