"""Small MindEye rows whose targets the voxels tell, and the task on them: no files."""

from typing import Any

import numpy as np

from voxray.core.schema import TEXT, Column, Schema
from voxray.tasks.mindeye.config import Config
from voxray.tasks.mindeye.task import MindEyeTask

NUM_VOXELS, NUM_REPEATS, DIM, TOKENS = 24, 3, 16, 3
LATENT_SHAPE = (4, 8, 8)
# Sizes with which a test costs nothing; dropout is off.
SMALL: dict[str, Any] = {
    "voxel2clip": {"hidden_dim": 32, "n_blocks": 1, "projector_dim": 32, "dropout": 0.0, "dropout_in": 0.0},
    "prior": {"depth": 1, "heads": 2, "dim_head": 8, "timesteps": 20, "num_padding": 2},
}
SMALL_LOW_LEVEL: dict[str, Any] = {
    "enabled": True,
    "hidden_dim": 32,
    "n_blocks": 1,
    "dropout": 0.0,
    "dropout_in": 0.0,
    "map_channels": 8,
    "channels": [8, 16],
    "norm_groups": 4,
}


def mindeye_rows(num_rows: int, seed: int, noise: float = 0.3) -> dict[str, np.ndarray]:
    """Return columns: voxels are a linear map of the target `final`, with other noise in each repeat."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(0)
    mixing_DV = world.standard_normal((DIM, NUM_VOXELS)) / DIM**0.5
    final_ND = rng.standard_normal((num_rows, DIM))
    noise_NRV = noise * rng.standard_normal((num_rows, NUM_REPEATS, NUM_VOXELS))
    nsd_id_N = rng.permutation(73_000)[:num_rows]
    texts = {
        "sample_id": [f"{seed}_{i:05d}" for i in range(num_rows)],
        "stimulus_id": [f"nsd{stimulus:05d}" for stimulus in nsd_id_N],
        "subject": ["subj01"] * num_rows,
    }
    return {
        **{name: np.array(values, dtype=object) for name, values in texts.items()},
        "nsd_id": nsd_id_N,
        "num_unique": np.full(num_rows, NUM_REPEATS, np.int32),
        "voxels": ((final_ND @ mixing_DV)[:, None] + noise_NRV).astype(np.float32),
        "clip_final": final_ND.astype(np.float32),
        "clip_hidden": rng.standard_normal((num_rows, TOKENS, DIM)).astype(np.float32),
        "vae_latent": rng.standard_normal((num_rows, *LATENT_SHAPE)).astype(np.float32),
    }


def of_two_subjects(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Every second row is of a subject whose last four voxels are padding."""
    rows = mindeye_rows(num_rows, seed)
    rows["subject"][1::2] = "subj02"
    rows["voxels"][1::2, :, -4:] = 0
    return rows


def mindeye_task(values: dict[str, Any]) -> MindEyeTask:
    """Return the task of a config on such rows."""
    texts = {name: Column(TEXT) for name in ("sample_id", "stimulus_id", "subject")}
    numbers = {
        "nsd_id": Column("int64"),
        "num_unique": Column("int32"),
        "voxels": Column("float32", (NUM_REPEATS, NUM_VOXELS)),
        "clip_final": Column("float32", (DIM,)),
        "clip_hidden": Column("float32", (TOKENS, DIM)),
        "vae_latent": Column("float32", LATENT_SHAPE),
    }
    schema = Schema({**texts, **numbers}, group="stimulus_id")
    return MindEyeTask(Config.model_validate(values), {}, schema)
