"""Per-column statistics of training rows: plain sums that add up over shards, then what the manifest keeps.

A column with names (labels) is counted per name: positives (1), negatives (0), unknown (NaN). Any other
numeric column has mean, std and count over its values that are not NaN, in float64; uint8 is taken as 0 … 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from voxray.core.schema import Column, Schema

UINT8_SCALE = 255.0

# Per column: name of the sum → a number, or one number per label.
Sums = dict[str, dict[str, Any]]


def row_sums(row: Mapping[str, Any], schema: Schema) -> Sums:
    """Return one row's contribution. uint8 is summed in integers: any grouping of rows agrees exactly."""
    return {
        name: _column_sums(np.asarray(row[name]), column)
        for name, column in schema.columns.items()
        if column.is_tensor
    }


def add(total: Sums, part: Sums) -> Sums:
    """Return total + part; an empty total is zero."""
    if not total:
        return part
    return {
        column: {
            name: [a + b for a, b in zip(value, part[column][name], strict=True)]
            if isinstance(value, list)
            else value + part[column][name]
            for name, value in sums.items()
        }
        for column, sums in total.items()
    }


def statistics_of(sums: Sums, schema: Schema) -> dict[str, Any]:
    """Return the manifest's statistics, {mean, std, count} or {positives, negatives, unknown} per column.

    The standard deviation is the population's. A column without a single known value has mean 0 and std 1.
    """
    return {name: _statistics(part, schema.columns[name]) for name, part in sums.items()}


def label_counts(labels: np.ndarray) -> dict[str, list[int]]:
    """Return positives, negatives and unknown per label of [N, K] labels."""
    masks = {"positives": labels == 1, "negatives": labels == 0, "unknown": np.isnan(labels)}
    return {name: mask.sum(axis=0).tolist() for name, mask in masks.items()}


def _column_sums(values: np.ndarray, column: Column) -> dict[str, Any]:
    if column.names:
        return label_counts(values.reshape(-1, len(column.names)))
    if values.dtype == np.uint8:
        wide = values.astype(np.uint32)
        return {
            "sum": int(wide.sum(dtype=np.uint64)),
            "squares": int((wide * wide).sum(dtype=np.uint64)),
            "count": values.size,
        }
    known = (
        values[~np.isnan(values)].astype(np.float64)
        if values.dtype.kind == "f"
        else values.astype(np.float64)
    )
    return {"sum": float(known.sum()), "squares": float((known * known).sum()), "count": known.size}


def _statistics(sums: Mapping[str, Any], column: Column) -> dict[str, Any]:
    if column.names:
        return dict(sums)
    count = sums["count"]
    if count == 0:
        return {"mean": 0.0, "std": 1.0, "count": 0}
    scale = UINT8_SCALE if column.dtype == "uint8" else 1.0
    mean = sums["sum"] / count
    variance = max(0.0, sums["squares"] / count - mean * mean)
    return {"mean": mean / scale, "std": variance**0.5 / scale, "count": count}
