"""Sums over rows, in any grouping, are numpy's mean and std of all values."""

import numpy as np
import pytest

from voxray.core.schema import TEXT, Column, Schema
from voxray.data.statistics import add, row_sums, statistics_of

SCHEMA = Schema(
    {
        "id": Column(TEXT),
        "image": Column("uint8", (1, 8, 8)),
        "age": Column("float32"),
        "never": Column("float32"),
        "visit": Column("int32"),
        "labels": Column("float32", (2,), names=("a", "b")),
    },
    group="id",
)


def test_against_numpy() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    ages = rng.normal(50, 20, 20).astype(np.float32)
    ages[3] = np.nan
    labels = rng.choice([0, 1, np.nan], (20, 2)).astype(np.float32)
    parts = [
        row_sums(
            {"image": images[i], "age": ages[i], "never": np.nan, "visit": i, "labels": labels[i]}, SCHEMA
        )
        for i in range(20)
    ]
    halves = [{}, {}]
    for i, part in enumerate(parts):
        halves[i % 2] = add(halves[i % 2], part)
    found = statistics_of(add(*halves), SCHEMA)
    assert list(found) == ["image", "age", "never", "visit", "labels"]
    for name, values in (
        ("image", images / 255),
        ("age", ages[~np.isnan(ages)].astype(float)),
        ("visit", np.arange(20)),
    ):
        assert found[name]["mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert found[name]["std"] == pytest.approx(values.std(), rel=1e-9)
        assert found[name]["count"] == values.size
    assert found["never"] == {"mean": 0.0, "std": 1.0, "count": 0}
    assert found["labels"] == {
        "positives": (labels == 1).sum(0).tolist(),
        "negatives": (labels == 0).sum(0).tolist(),
        "unknown": np.isnan(labels).sum(0).tolist(),
    }
