"""Repeats of a stimulus as one row: the mean of its trials, or all of them in a stack."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from voxray.core.batch import Columns
from voxray.core.prepared_rows import Merge
from voxray.core.schema import Column
from voxray.core.task import RawRow

# Shape letters: n trials of a row, R the most of any row, V voxels.
NUM_TRIALS = "num_trials"
NO_SESSION = {"session": -1, "session_id": ""}  # of a row with trials of several


def merge_of(how: Literal["averaged", "stacked"], group: str) -> Merge:
    """Return the merge of trials of one subject and stimulus; of one session too, where it is the group."""
    key = ("subject", "stimulus_id") + (("session_id",) if group == "session_id" else ())
    function = partial(merged_trials, how=how, key=key)
    return Merge(key, function, partial(merged_columns, how=how))


def merged_columns(columns: Mapping[str, Column], largest: int, how: str) -> dict[str, Column]:
    """Return the columns of merged rows: x [V] or [R, V], NaN after a row's trials; num_trials."""
    x = columns["x"]
    if how == "stacked":
        x = replace(x, shape=(largest, *x.shape), unit=f"{x.unit}; NaN after the last trial")
    return {**columns, "x": x, NUM_TRIALS: Column("int32", unit="trials in the row")}


def merged_trials(columns: Columns, largest: int, how: str, key: tuple[str, ...]) -> RawRow:
    """Return one row of n trials. What a stimulus determines (targets, picture, label) is the first one's."""
    row: RawRow = {name: values[0] for name, values in columns.items()}
    x_nV = columns["x"]
    if how == "averaged":
        row["x"] = x_nV.mean(axis=0, dtype=np.float64).astype(np.float32)
    else:
        row["x"] = np.full((largest, x_nV.shape[1]), np.nan, np.float32)
        row["x"][: len(x_nV)] = x_nV
    for name, none in NO_SESSION.items():
        if (columns[name] != columns[name][0]).any():
            row[name] = none
    row["sample_id"] = "/".join(row[name] for name in key)
    row[NUM_TRIALS] = len(x_nV)
    return row
