"""NIfTI volumes through nibabel (the extra `fmri`): a mask, and the voxels inside it of a 4-D series.

A series is read in blocks of volumes in the file's order, so that memory holds one block and the voxels
inside the mask. A compressed file is read to its end, where its checksum stands. All functions raise
VolumeError with the reason and the mend; the caller adds the file's name.
"""

import gzip
import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.data.formats.rows import first_line

MAX_MASKED_BYTES = 4 << 30  # float32 voxels inside the mask of one file; an NSD session takes 47 MB
MAX_VOLUME_BYTES = 1 << 30  # one volume in float64; NSD's takes 5.6 MB
BLOCK_BYTES = 64 << 20
_CLASSES = {348: "Nifti1Image", 540: "Nifti2Image"}  # by the size of the header, the file's first number
_CHUNK_BYTES = 1 << 20
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}


class VolumeError(ValueError):
    """A file of volumes cannot be read, or does not fit: the reason with the mend."""


@dataclass(frozen=True)
class SeriesHeader:
    """Size [X, Y, Z] of a volume, how many there are, and seconds from one to the next (0: not said).

    `is_integer`: values are stored as whole numbers, and the header has no slope that scales them.
    """

    shape: tuple[int, int, int]
    num_volumes: int
    repetition_s: float
    is_integer: bool


def read_header(path: Path) -> SeriesHeader:
    """Return what the header says of a 3-D or 4-D file."""
    with _open(path) as (image, _):
        shape = _checked_shape(image)
        zooms = image.header.get_zooms()
        unit = image.header.get_xyzt_units()[1]
        unscaled = (float(image.dataobj.slope), float(image.dataobj.inter)) == (1.0, 0.0)
        is_integer = unscaled and image.get_data_dtype().kind in "iu"
    repetition_s = float(zooms[3]) * _SECONDS.get(unit, 0.0) if len(zooms) > 3 else 0.0
    return SeriesHeader(shape[:3], shape[3], repetition_s, is_integer)


def read_mask(path: Path) -> np.ndarray:
    """Return bool [X, Y, Z], True where the value is above 0; NSD's ROIs have -1 outside of cortex."""
    with _open(path) as (image, file):
        shape = _checked_shape(image)
        if shape[3] != 1:
            raise VolumeError(f"it holds {shape[3]} volumes, a mask is one; name another file")
        mask = np.asarray(image.dataobj).reshape(shape[:3]) > 0
        _read_to_end(file)
    if not mask.any():
        raise VolumeError("no voxel is above 0, so the mask is empty; name another file")
    return mask


def read_affine(path: Path) -> tuple[np.ndarray, int]:
    """Return the affine [4, 4] from voxel indices to millimetres and the code of its coordinate system: the
    sform's, else the qform's; 0 where the header sets neither, and the affine holds voxel sizes alone.
    """
    with _open(path) as (image, _):
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        return np.asarray(image.affine, np.float64), codes[0] or codes[1]


def read_masked(path: Path, mask_XYZ: np.ndarray) -> np.ndarray:
    """Return float32 [volumes, voxels]: the voxels where the mask is True, x slowest and z fastest.

    Values are scaled by the header's slope and intercept. Raises VolumeError when the mask has another shape,
    the file is damaged, or more than MAX_MASKED_BYTES would be needed.
    """
    with _open(path) as (image, file):
        shape = _checked_shape(image)
        check_mask(shape, mask_XYZ)
        values_NV = np.empty((shape[3], int(mask_XYZ.sum())), np.float32)
        for start, stop in blocks(shape):
            block = image.dataobj[..., start:stop] if len(image.shape) == 4 else image.dataobj[..., None]
            values_NV[start:stop] = np.reshape(block, (*shape[:3], stop - start))[mask_XYZ].T
        _read_to_end(file)
    return values_NV


def check_mask(shape: tuple[int, int, int, int], mask_XYZ: np.ndarray) -> None:
    """Raise VolumeError unless the mask fits volumes of `shape` and what is inside it fits into memory."""
    if mask_XYZ.shape != shape[:3]:
        raise VolumeError(
            f"its volumes are {_by(shape[:3])}, the mask is {_by(mask_XYZ.shape)}; name the mask that fits"
        )
    if (num_bytes := 4 * shape[3] * int(mask_XYZ.sum())) > MAX_MASKED_BYTES:
        raise VolumeError(
            f"{num_bytes:,} bytes lie inside the mask, more than {MAX_MASKED_BYTES:,}; take a smaller mask"
        )


def blocks(shape: tuple[int, int, int, int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) volumes that take about BLOCK_BYTES as float64."""
    step = max(1, BLOCK_BYTES // (8 * prod(shape[:3])))
    yield from ((start, min(start + step, shape[3])) for start in range(0, shape[3], step))


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, io.BufferedIOBase]]:
    """Open image and stream; what nibabel and zlib raise on damaged bytes becomes a VolumeError."""
    nibabel = nibabel_module()
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            start = file.read(4)
            size = next((n for n in _CLASSES for order in ("<i4", ">i4") if start == _as_bytes(n, order)), 0)
            if size == 0:
                raise VolumeError("its start is not that of a NIfTI file; replace it")
            file.seek(0)
            yield getattr(nibabel, _CLASSES[size]).from_stream(file), file
    except VolumeError:
        raise
    except Exception as error:  # nibabel, numpy and zlib raise almost anything on damaged bytes
        raise VolumeError(f"cannot be read: {first_line(error)}; copy or download the file again") from error


def nibabel_module() -> Any:
    """Return nibabel. Raises InputError, with the extra that installs it, where it is not there."""
    try:
        return importlib.import_module("nibabel")
    except ImportError as error:
        raise InputError("NIfTI files need nibabel; install it with `pip install 'voxray[fmri]'`") from error


def _as_bytes(number: int, order: str) -> bytes:
    return np.array(number, order).tobytes()


def _checked_shape(image: Any) -> tuple[int, int, int, int]:
    """Return [X, Y, Z, volumes]. Raises VolumeError for other ranks, colours, and volumes beyond bounds."""
    kind = image.get_data_dtype().kind
    if len(image.shape) not in (3, 4) or 0 in image.shape or kind not in "iuf":
        raise VolumeError(
            f"it holds {image.get_data_dtype()} {list(image.shape)}, not numbers [x, y, z] or [x, y, z, time]"
        )
    x, y, z, *time = (int(size) for size in image.shape)
    if (num_bytes := 8 * x * y * z) > MAX_VOLUME_BYTES:
        raise VolumeError(
            f"its header claims volumes of {num_bytes:,} bytes; the file is damaged, replace it"
        )
    return x, y, z, time[0] if time else 1


def _read_to_end(file: io.BufferedIOBase) -> None:
    while file.read(_CHUNK_BYTES):
        pass


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
