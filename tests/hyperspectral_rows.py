"""Small cubes of smooth spectra with classes, background and labels, and the task on them: no files."""

from typing import Any

import numpy as np

from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.tasks.hyperspectral.config import Config
from voxray.tasks.hyperspectral.task import Hyperspectral

NUM_BANDS, SIDE, NUM_CLASSES = 6, 12, 3
LABELS = ("AMD", "GA", "All")
SMALL = {
    "name": "mae_tiny",
    "patch_size": [4, 2],
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}


def cube_rows(num_rows: int, seed: int, side: int = SIDE, bands: int = NUM_BANDS) -> dict[str, np.ndarray]:
    """Return columns whose spectra are those of three classes in blocks of pixels, and noise."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(0)
    endmembers = world.uniform(0.1, 0.9, (NUM_CLASSES, bands))
    coarse = rng.integers(0, NUM_CLASSES, (num_rows, side // 4, side // 4))
    classes = coarse.repeat(4, 1).repeat(4, 2)
    cube = np.moveaxis(endmembers[classes], -1, 1) + 0.02 * rng.standard_normal((num_rows, bands, side, side))
    measured = np.ones((num_rows, side, side), np.uint8)
    measured[:, :, :2] = 0
    known = np.where(rng.random(classes.shape) < 0.5, classes + 1, 0)
    names = np.array([f"{seed}_{i:05d}" for i in range(num_rows)], dtype=object)
    labels = rng.integers(0, len(LABELS), num_rows)
    cube[labels == 0] *= 0.7  # what a cube's label shows in
    return {
        "sample_id": names,
        "group": names,
        "patient_id": names,
        "label": np.array(LABELS, dtype=object)[labels],
        "cube": cube.astype(np.float32),
        "wavelengths_nm": np.tile(np.linspace(450, 700, bands, dtype=np.float32), (num_rows, 1)),
        "measured": measured,
        "classes": known.astype(np.int16),
        "rgb": np.array([b""] * num_rows, dtype=object),
    }


def hyperspectral_task(values: dict[str, Any], side: int = SIDE, bands: int = NUM_BANDS) -> Hyperspectral:
    """Return the task of a config on such rows."""
    texts = {name: Column(TEXT) for name in ("sample_id", "group", "patient_id", "label")}
    numbers = {
        "cube": Column("float32", (bands, side, side)),
        "wavelengths_nm": Column("float32", (bands,)),
        "measured": Column("uint8", (side, side)),
        "classes": Column("int16", (side, side)),
    }
    schema = Schema({**texts, **numbers, "rgb": Column(BYTES)}, group="group")
    bands_seen = {"band_mean": [0.5] * bands, "band_std": [0.2] * bands}
    return Hyperspectral(Config.model_validate(values), {"cube": bands_seen}, schema)
