"""Stages that tests run where batches are read: a Ray worker imports them, so no test file can hold them."""

import time

from voxray.core.batch import Columns


def mean_of_x(columns: Columns) -> Columns:
    """Add each row's mean of `x`."""
    return {**columns, "mean": columns["x"].mean(axis=(1, 2))}


def slow(columns: Columns) -> Columns:
    """Take a while over a batch, so that it can be killed in the middle."""
    time.sleep(0.15)
    return dict(columns)
