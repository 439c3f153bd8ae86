"""torch's DataLoader on the original files, with 0 and 2 workers.

The originals: fMRI and 224² X-rays one HDF5 file, trials a group each as in the T15 files
(`trial_0000/input_features`), cubes a file each with `/Cube/Images`, 1024² X-rays JPEG files. Settings of
https://docs.pytorch.org/docs/stable/data.html and
https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html: batches made in the workers, which
persist and stay 4 batches ahead; files are opened once per worker.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ingest_parts.measure import Delivered, Way
from ingest_parts.modalities import Modality, decode_jpeg, jpeg_file, pad

_WRITTEN_TOGETHER = 64


class HDF5Rows(Dataset):
    """Rows of one HDF5 file with a dataset per column."""

    def __init__(self, file: Path, modality: Modality) -> None:
        self.file, self.modality = file, modality
        self.columns: dict[str, h5py.Dataset] = {}

    def __len__(self) -> int:
        return self.modality.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.columns:
            file = h5py.File(self.file, "r")
            self.columns = {name: file[name] for name in self.modality.stored[1:]}
        return {"number": index, **{name: column[index] for name, column in self.columns.items()}}


class HDF5Trials(HDF5Rows):
    """Trials of a T15 file: a group each."""

    def __init__(self, file: Path, modality: Modality) -> None:
        super().__init__(file, modality)
        self.handle: h5py.File | None = None

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.handle = self.handle or h5py.File(self.file, "r")
        return {"number": index, "x": self.handle[f"trial_{index:04d}"]["input_features"][:]}


class HDF5Cubes(HDF5Rows):
    """Cubes: a file each."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        with h5py.File(self.file / f"{index:06d}.h5", "r") as file:
            return {"number": index, "x": file["/Cube/Images"][:]}


class JPEGFiles(HDF5Rows):
    """Images: a JPEG file each, decoded."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"number": index, "x": decode_jpeg(jpeg_file(self.file, index).read_bytes())}


def ways(modality: Modality, folder: Path) -> list[Way]:
    """Write the original files and return the two ways to load them."""
    dataset = _write(modality, folder / "original")
    return [_way(dataset, modality, num_workers) for num_workers in (0, 2)]


def collate_trials(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a padded batch of trials, as tensors."""
    padded, lengths = pad([row["x"] for row in rows])
    return {
        "number": torch.tensor([row["number"] for row in rows]),
        "x": torch.from_numpy(padded),
        "length": torch.from_numpy(lengths),
    }


def _way(dataset: HDF5Rows, modality: Modality, num_workers: int) -> Way:
    loader = DataLoader(
        dataset,
        batch_size=modality.batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        collate_fn=collate_trials if modality.ragged else None,
    )

    def epoch(number: int) -> Iterator[Delivered]:
        torch.manual_seed(number)
        yield from loader

    return Way(f"DataLoader on the original, {num_workers} workers", dataset.file, epoch)


def _write(modality: Modality, path: Path) -> HDF5Rows:
    if modality.jpeg_folder is not None:
        return JPEGFiles(modality.jpeg_folder, modality)
    if modality.name == "cubes":
        path.mkdir()
        for row in modality.rows():
            with h5py.File(path / f"{row['number']:06d}.h5", "w") as file:
                file["/Cube/Images"] = row["x"]
        return HDF5Cubes(path, modality)
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        if modality.ragged:
            for row in modality.rows():
                group = file.create_group(f"trial_{row['number']:04d}")
                group["input_features"] = row["x"]
                group.attrs["n_time_steps"] = len(row["x"])
            return HDF5Trials(path.with_suffix(".h5"), modality)
        shapes = {"x": (modality.dtype, modality.shape), "y": ("float32", modality.target_shape)}
        for name in modality.stored[1:]:
            dtype, shape = shapes[name]
            column = file.create_dataset(name, (modality.num_rows, *shape), dtype)
            for start in range(0, modality.num_rows, _WRITTEN_TOGETHER):
                numbers = range(start, min(start + _WRITTEN_TOGETHER, modality.num_rows))
                column[numbers.start : numbers.stop] = np.stack([modality.row(i)[name] for i in numbers])
    return HDF5Rows(path.with_suffix(".h5"), modality)
