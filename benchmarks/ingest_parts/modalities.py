"""The five kinds of rows that are measured, made on the fly: row i is the same on every side.

Values are slices of one bank of random numbers, so that gigabytes are written without being held, and no
two rows are equal. A row has `number` (its index) and what the modality is about; `x` is the large one.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from voxray.core.schema import BYTES, TEXT, Column, Schema

Row = dict[str, Any]
SIDE, JPEG_SIDE = 224, 1024
MAX_BINS, NUM_CHANNELS = 1_500, 512
_SHARD_BYTES, _MIN_SHARDS = 126_000_000, 4
_BANK_BYTES = 64 << 20
_STRIDE = 7_919  # a prime: rows begin at places that do not repeat
_SEED = 20_240_817
_DECODE_S = 0.004  # of one thread, for one JPEG


@dataclass(frozen=True)
class Modality:
    """One kind of rows. `shape` is one row's `x` as it is delivered; a ragged one has its longest."""

    name: str
    num_rows: int
    batch_size: int
    dtype: str
    shape: tuple[int, ...]
    unit: str
    target_shape: tuple[int, ...] = ()  # of a second float32 column `y`
    ragged: bool = False
    jpeg_folder: Path | None = None  # where `x` is stored as JPEG and decoded when read

    @property
    def step_s(self) -> float:
        """A training step as long as one thread decodes a batch; 0 where nothing is decoded."""
        return self.batch_size * _DECODE_S if self.jpeg_folder is not None else 0.0

    @property
    def stored(self) -> tuple[str, ...]:
        """The columns of a row, `number` first."""
        return ("number", "x", "y") if self.target_shape else ("number", "x")

    @property
    def schema(self) -> Schema:
        """The columns as voxray stores them."""
        if self.jpeg_folder is not None:
            x = Column(BYTES)
        elif self.ragged:
            x = Column(self.dtype, (None, *self.shape[1:]), self.unit, ragged=True)
        else:
            x = Column(self.dtype, self.shape, self.unit)
        columns = {"sample_id": Column(TEXT), "number": Column("int64"), "x": x}
        if self.target_shape:
            columns["y"] = Column("float32", self.target_shape)
        return Schema(columns, group="sample_id")

    @property
    def delivered_bytes(self) -> int:
        """The bytes of all rows as they are delivered, without padding and `number`."""
        values = self.num_rows * prod(self.shape)
        if self.ragged:
            values = sum(map(self.length, range(self.num_rows))) * prod(self.shape[1:])
        return values * np.dtype(self.dtype).itemsize + self.num_rows * prod(self.target_shape or (0,)) * 4

    @property
    def stored_bytes(self) -> int:
        """The bytes of all rows as they are stored."""
        if self.jpeg_folder is not None:
            return sum(file.stat().st_size for file in self.jpeg_folder.iterdir())
        return self.delivered_bytes

    @property
    def shard_bytes(self) -> int:
        """The size of a shard: 126 MB, less where that would make fewer than four."""
        return min(_SHARD_BYTES, self.stored_bytes // _MIN_SHARDS)

    @property
    def rows_per_shard(self) -> int:
        """How many rows make about a shard."""
        return max(1, self.shard_bytes * self.num_rows // self.stored_bytes)

    def length(self, number: int) -> int:
        """Return the bins of a trial: 200 … 1,500, about 850 in the mean."""
        return 200 + (number * _STRIDE) % (MAX_BINS - 199)

    def row(self, number: int) -> Row:
        """Return row `number`; arrays are read-only views of the bank."""
        if self.jpeg_folder is not None:
            return {"number": number, "x": jpeg_file(self.jpeg_folder, number).read_bytes()}
        shape = (self.length(number), *self.shape[1:]) if self.ragged else self.shape
        row: Row = {"number": number, "x": _values(self.dtype, shape, number)}
        if self.target_shape:
            row["y"] = _values("float32", self.target_shape, number + self.num_rows)
        return row

    def rows(self) -> Iterator[Row]:
        """Yield all rows in the order of their numbers."""
        return map(self.row, range(self.num_rows))


def modalities(folder: Path, quick: bool) -> dict[str, Modality]:
    """Return the modalities by name: about 3 GB each (1024² JPEG: 4,000 images), or as `--quick` measures."""
    fmri = Modality("fmri", 45_500, 64, "float32", (15_724,), "z", (768,))
    trials = Modality("trials", 1_720, 64, "float32", (MAX_BINS, NUM_CHANNELS), "z", ragged=True)
    cubes = Modality("cubes", 100, 4, "float32", (30, 500, 500), "reflectance")
    xray = Modality("xray", 60_000, 64, "uint8", (SIDE, SIDE), "grey level")
    jpeg = Modality("xray_jpeg", 4_000, 64, "uint8", (SIDE, SIDE), "grey level", jpeg_folder=folder / "jpeg")
    all_of_them = (fmri, trials, cubes, xray, jpeg)
    if quick:
        sizes = {"fmri": 1_536, "trials": 64, "cubes": 8, "xray": 1_536, "xray_jpeg": 64}
        batches = {"trials": 16, "cubes": 2, "xray_jpeg": 16}
        all_of_them = tuple(
            replace(
                modality,
                num_rows=sizes[modality.name],
                batch_size=batches.get(modality.name, modality.batch_size),
            )
            for modality in all_of_them
        )
    return {modality.name: modality for modality in all_of_them}


def write_jpegs(modality: Modality) -> None:
    """Write the images of `jpeg_folder`: 1024² grey JPEG of quality 90, smooth shapes under fine noise."""
    assert modality.jpeg_folder is not None
    modality.jpeg_folder.mkdir()
    axis = np.linspace(-1.0, 1.0, JPEG_SIDE, dtype=np.float32)
    noise = np.random.default_rng(_SEED).normal(0, 6, (2 * JPEG_SIDE, JPEG_SIDE)).astype(np.float32)
    for number in range(modality.num_rows):
        phase = number * 0.37
        smooth = 128 + np.outer(60 * np.sin(2 * axis - phase), np.cos(3 * axis + phase))
        start = (number * _STRIDE) % JPEG_SIDE
        grey = np.clip(smooth + noise[start : start + JPEG_SIDE], 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(jpeg_file(modality.jpeg_folder, number), quality=90)


def jpeg_file(folder: Path, number: int) -> Path:
    """Return the file of one image."""
    return folder / f"{number:06d}.jpg"


def decode_jpeg(data: bytes) -> np.ndarray:
    """Return uint8 [224, 224] from an encoded image; the one decoder of all sides.

    libjpeg's draft mode decodes at a quarter of 1024², which is nearly twice as fast, then bicubic resizing.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft("L", (SIDE, SIDE))
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def decode_batch(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a batch's columns with `x` decoded: bytes [B] → uint8 [B, 224, 224]."""
    return {**columns, "x": np.stack([decode_jpeg(data) for data in columns["x"]])}


def pad(trials: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return trials [T_i, C] padded with zeros to [B, T_max, C], and their lengths int64 [B]."""
    lengths = np.array([len(trial) for trial in trials], dtype=np.int64)
    padded = np.zeros((len(trials), int(lengths.max()), *trials[0].shape[1:]), trials[0].dtype)
    for row, trial in zip(padded, trials, strict=True):
        row[: len(trial)] = trial
    return padded, lengths


def _values(dtype: str, shape: tuple[int, ...], number: int) -> np.ndarray:
    bank = _bank(dtype)
    size = prod(shape)
    start = number * _STRIDE % (len(bank) - size)
    return bank[start : start + size].reshape(shape)


@cache
def _bank(dtype: str) -> np.ndarray:
    generator = np.random.default_rng(_SEED)
    if dtype == "uint8":
        bank = generator.integers(0, 256, _BANK_BYTES, dtype=np.uint8)
    else:
        bank = generator.standard_normal(_BANK_BYTES // 4, dtype=np.float32)
    bank.flags.writeable = False
    return bank
