"""Small fMRI rows with CLIP targets of several widths, and the task on them: no files."""

from typing import Any

import numpy as np

from voxray.core.schema import TEXT, Column, Schema
from voxray.tasks.fmri_clip.config import Config
from voxray.tasks.fmri_clip.task import FmriClip

NUM_VOXELS, MOST_TRIALS = 24, 3
WIDTHS = {"final": 12, "layer_4": 12, "layer_8": 10, "sd_final": 20}
NCSNR = np.linspace(0, 2, NUM_VOXELS)


def fmri_rows(
    num_rows: int, seed: int, num_stimuli: int = 1000, noise: float = 0.5, stacked: bool = False
) -> dict[str, np.ndarray]:
    """Return columns whose voxels are a linear map of the `final` target, and noise."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(0)
    targets = {name: world.standard_normal((num_stimuli, width)) for name, width in WIDTHS.items()}
    mixing_DV = world.standard_normal((WIDTHS["final"], NUM_VOXELS))
    shown_N = rng.permutation(np.arange(num_rows) % num_stimuli)
    voxels_NV = targets["final"][shown_N] @ mixing_DV / WIDTHS["final"] ** 0.5
    x_NRV = voxels_NV[:, None] + noise * rng.standard_normal((num_rows, MOST_TRIALS, NUM_VOXELS))
    num_trials_N = rng.integers(1, MOST_TRIALS + 1, num_rows)
    x_NRV[np.arange(MOST_TRIALS) >= num_trials_N[:, None]] = np.nan
    columns = {
        "sample_id": [f"{seed}_{i:05d}" for i in range(num_rows)],
        "stimulus_id": [f"nsd{stimulus:05d}" for stimulus in shown_N],
        "subject": ["subj01"] * num_rows,
        "label": [""] * num_rows,
    }
    texts = {name: np.array(values, dtype=object) for name, values in columns.items()}
    numbers = {"nsd_id": shown_N, "session": np.zeros(num_rows, np.int32)}
    numbers |= {f"clip_{name}": rows[shown_N].astype(np.float32) for name, rows in targets.items()}
    numbers["x"] = (x_NRV if stacked else x_NRV[:, 0]).astype(np.float32)
    return {**texts, **numbers, **({"num_trials": num_trials_N} if stacked else {})}


def fmri_task(values: dict[str, Any], stacked: bool = False, measured: bool = True) -> FmriClip:
    """Return the task of a config on such rows; with `measured`, voxels have a reliability and an ncsnr."""
    texts = {name: Column(TEXT) for name in ("sample_id", "stimulus_id", "subject", "label")}
    shape = (MOST_TRIALS, NUM_VOXELS) if stacked else (NUM_VOXELS,)
    numbers = {"nsd_id": Column("int64"), "session": Column("int32"), "x": Column("float32", shape)}
    targets = {f"clip_{name}": Column("float32", (width,)) for name, width in WIDTHS.items()}
    trials = {"num_trials": Column("int32")} if stacked else {}
    schema = Schema({**texts, **numbers, **targets, **trials}, group="stimulus_id")
    x = {"reliability": np.linspace(-0.1, 0.9, NUM_VOXELS).tolist(), "ncsnr": NCSNR.tolist()}
    return FmriClip(Config.model_validate(values), {"x": x} if measured else {}, schema)
