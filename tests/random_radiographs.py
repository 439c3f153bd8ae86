"""Rows of the chest X-ray task without any meaning, for tests."""

import numpy as np

from voxray.tasks.cxr_memory.config import LABELS


def random_radiographs(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return columns of random images of 32 pixels, a patient each; a tenth of the labels is unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, len(LABELS))) < 0.3).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    names = np.array([f"{seed}_{i:04d}.png" for i in range(num_rows)], dtype=object)
    image = rng.integers(0, 256, (num_rows, 1, 32, 32), dtype=np.uint8)
    return {"sample_id": names, "patient_id": names, "image": image, "labels": labels}
