"""Batches of streams kept and compared."""

import numpy as np


def copies(batches):
    """Return the batches with their arrays copied out of the reused buffers."""
    return [{name: values.copy() for name, values in batch.items()} for batch in batches]


def same(ours, theirs):
    """Assert that two epochs have the same batches, columns, dtypes and values."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, values in mine.items():
            np.testing.assert_array_equal(values, other[name])
            assert other[name].dtype == values.dtype, name
