"""Writes small folders in the T15 layout with h5py, whole or broken on purpose."""

from pathlib import Path

import h5py
import numpy as np

SESSION = "t15.2023.08.11"


def trial_features(seed: int, num_time_steps: int = 30, num_features: int = 512) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_time_steps, num_features)).astype(np.float32)


def padded(values: list[int], size: int = 500) -> np.ndarray:
    return np.pad(np.array(values, dtype=np.int32), (0, size - len(values)))


def write_trial(
    file: h5py.File,
    index: int,
    features: np.ndarray,
    text: str | None = "Bring it closer.",
    phonemes: tuple[int, ...] = (7, 28, 17, 24, 40),
    session: str = SESSION,
    block: int = 2,
) -> h5py.Group:
    """Write one trial; without `text` it has no labels, as in the test files."""
    group = file.create_group(f"trial_{index:04d}")
    group["input_features"] = features
    group.attrs.update(n_time_steps=len(features), session=session, block_num=block, trial_num=index)
    if text is not None:
        group["seq_class_ids"] = padded(list(phonemes))
        group["transcription"] = padded(list(text.encode()))
        group.attrs.update(seq_len=len(phonemes), sentence_label=text)
    return group


def write_file(folder: Path, session: str = SESSION, split: str = "train", num_trials: int = 2) -> Path:
    """Write a whole file; trial i has 30 + i time steps and the features of seed i. Return its path."""
    path = folder / session / f"data_{split}.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for index in range(num_trials):
            text = None if split == "test" else f"Sentence {index}."
            write_trial(file, index, trial_features(index, 30 + index), text, session=session)
    return path
