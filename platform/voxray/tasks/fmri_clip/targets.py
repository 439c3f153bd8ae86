"""Targets made when raw files are prepared: a stimulus' label as a vector."""

from collections.abc import Sequence

import numpy as np

from voxray.core.task import RawRow

LABEL = "label"  # among `data.prepare.targets`: the stimulus' category
LABEL_COLUMN = "clip_label"


def add_label(row: RawRow, labels: Sequence[str]) -> RawRow:
    """Return the row with clip_label float32 [labels]: 1 at its own label, 0 elsewhere."""
    vector = np.zeros(len(labels), np.float32)
    vector[labels.index(row["label"])] = 1
    return row | {LABEL_COLUMN: vector}
