"""A few rows to run a model on: real ones where the dataset is there, else made up from its schema."""

from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.batch import Batch, BatchRules, Columns, EpochRequest
from voxray.core.schema import SPLITS, TEXT, Schema
from voxray.train.trained.load import Trained

RAGGED_LENGTH = 16  # of a made-up row


def example_batch(trained: Trained, num_rows: int, data: str | Path | None = None) -> tuple[Batch, bool]:
    """Return a batch of up to `num_rows` rows, at least 2, on the CPU, and whether its rows are real.

    Raises InputError where `data` is named and cannot be read, or where no rows can be made up.
    """
    columns = _real_columns(trained, num_rows, data)
    if columns is not None:
        return trained.task.collate(columns), True
    made: Columns = made_columns(trained.facts.schema, num_rows)
    for stage in trained.task.read_stages():
        made = stage.function(made)
    return trained.task.collate(made), False


def _real_columns(trained: Trained, num_rows: int, data: str | Path | None) -> Columns | None:
    """Return rows of the first split that has 2; None where the run's own dataset has none or is gone."""
    problem = InputError(f"{data} has no split of 2 rows")
    for split in (SPLITS[1], SPLITS[2], SPLITS[0]):
        try:
            source = trained.rows(split, data)
        except InputError as error:
            problem = error
            continue
        request = EpochRequest(split, num_rows, seed=0, shuffle=False, rules=BatchRules(limit=num_rows))
        if source.num_rows(split) >= 2:
            return next(iter(source.batches(request)))
    if data is not None:
        raise problem
    return None


def made_columns(schema: Schema, num_rows: int) -> Columns:
    """Return columns as a source yields them: seeded numbers of the schema's dtypes and shapes, NaN labels.

    Raises InputError for a column of encoded bytes or of an unknown size.
    """
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {}
    for name, column in schema.columns.items():
        shape = (RAGGED_LENGTH, *column.shape[1:]) if column.ragged else column.shape
        if column.dtype == TEXT:
            columns[name] = np.array([f"{name}{row}" for row in range(num_rows)], dtype=object)
            continue
        if not column.is_tensor or None in shape:
            raise InputError(
                f"no row can be made up: column '{name}' is encoded or of an unknown size; "
                "name a dataset with --data"
            )
        size = (num_rows, *(int(length) for length in shape if length is not None))
        columns[name] = _made_values(rng, np.dtype(column.dtype), size, is_label=bool(column.names))
        if column.ragged:
            columns[f"{name}.length"] = np.full(num_rows, RAGGED_LENGTH, np.int64)
    return {**columns, "valid": np.ones(num_rows, bool), "position": np.arange(num_rows)}


def _made_values(
    rng: np.random.Generator, dtype: np.dtype, size: tuple[int, ...], is_label: bool
) -> np.ndarray:
    if dtype == np.uint8:
        return rng.integers(0, 256, size, dtype=np.uint8)
    if dtype.kind != "f":
        return np.zeros(size, dtype)
    return np.full(size, np.nan, dtype) if is_label else rng.standard_normal(size).astype(dtype)
