"""Stimulus pictures in their raw homes (a file, an HDF5 brick, an array, a tar) → RGB of one square size.

Like CLIP's own preprocessing, the short side is resized (bicubic, antialiased) and the centre is kept.
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.task import BadRowError, RawRow
from voxray.data.formats.folder import find_files
from voxray.data.formats.npy import ArrayError, NpzArray
from voxray.data.formats.safe_hdf5 import child_array, damage_named, open_hdf5

_FORMATS = ("JPEG", "PNG")
_STIMULI, _BRICK = "nsd_stimuli.hdf5", "imgBrick"  # NSD's 73,000 pictures, [73000, 425, 425, 3]


class Picture(Protocol):
    """Where a picture lies. `read` returns uint8 [H, W, 3] and raises BadRowError that names the file."""

    def read(self) -> np.ndarray:
        """Return the pixels, RGB."""
        ...


@dataclass(frozen=True)
class FilePicture:
    """A JPEG or PNG file."""

    path: str

    def read(self) -> np.ndarray:
        """Return uint8 [H, W, 3]."""
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:
            raise BadRowError(f"image '{self.path}' cannot be read: {error.strerror}; put it back") from error
        return decode_rgb(content, f"'{self.path}'")


@dataclass(frozen=True)
class BrickPicture:
    """Entry `index` of an HDF5 dataset uint8 [pictures, H, W, 3], like NSD's `imgBrick`."""

    path: str
    dataset: str
    index: int

    def read(self) -> np.ndarray:
        """Return uint8 [H, W, 3]."""
        try:
            with open_hdf5(self.path) as file:
                brick: Any = child_array(file, self.dataset, "u")
                if brick.dtype != np.uint8 or brick.ndim != 4 or brick.shape[3] != 3:
                    raise ValueError(
                        f"'{self.dataset}' is {brick.dtype} {list(brick.shape)}, no RGB pictures"
                    )
                if not self.index < len(brick):
                    raise ValueError(f"'{self.dataset}' holds {len(brick)} pictures, none is {self.index}")
                with damage_named():
                    return brick[self.index]
        except ValueError as error:
            raise BadRowError(f"'{self.path}': {error}") from error


@dataclass(frozen=True)
class ArrayPicture:
    """Row `index` of an array uint8 [pictures, H, W] in an `.npz`, grey."""

    array: NpzArray
    index: int

    def read(self) -> np.ndarray:
        """Return uint8 [H, W, 3]."""
        try:
            grey_HW = self.array.read_row(self.index, 2)
        except (ArrayError, OSError) as error:
            raise BadRowError(f"'{self.array.path}': {error}") from error
        return np.repeat(grey_HW[..., None], 3, axis=2)


class NsdPictures:
    """The pictures of NSD, where `nsd_stimuli.hdf5` lies below a folder."""

    def __init__(self, source: Path) -> None:
        self._files = find_files(source, _STIMULI)

    def add_to(self, row: RawRow) -> RawRow:
        """Return the row with its picture; itself where there are none."""
        if not self._files:
            return row
        return row | {"picture": BrickPicture(str(self._files[0]), _BRICK, row["nsd_id"])}


def decode_rgb(content: bytes, place: str) -> np.ndarray:
    """Return uint8 [H, W, 3] from JPEG or PNG bytes. Raises BadRowError, which begins with `place`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise BadRowError(f"{place}: the image cannot be read ({error}); replace it") from error


def square(pixels_HWC: np.ndarray, side: int) -> np.ndarray:
    """Return uint8 [side, side, 3]: short side resized, centre kept; itself where it has that size."""
    height, width, _ = pixels_HWC.shape
    if height == width == side:
        return pixels_HWC
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    image = Image.fromarray(pixels_HWC)
    resized = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short))
    return np.asarray(resized)


def read_picture(row: RawRow) -> RawRow:
    """Return the row with pixels: the picture as it is in its home, uint8 [H, W, 3], RGB."""
    return row | {"pixels": row["picture"].read()}


def store_picture(row: RawRow, side: int, encoded: bool) -> RawRow:
    """Return the row with image: PNG bytes of a square picture, or its uint8 [3, side, side], of `pixels`."""
    pixels_HWC = square(row["pixels"], side)
    if not encoded:
        return row | {"image": np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))}
    return row | {"image": as_png(pixels_HWC)}


def as_png(pixels_HWC: np.ndarray) -> bytes:
    """Return a picture, uint8 [H, W, 3], as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


def decode_column(images: np.ndarray, side: int | None = None) -> np.ndarray:
    """Return uint8 [B, 3, side, side] of encoded images [B], in their own size where `side` is None.

    An empty entry, of a row that only pads a batch, is black. Raises BadRowError for a damaged image.
    """
    decoded = [
        decode_rgb(content, f"image {i} of the batch") if content else None
        for i, content in enumerate(images)
    ]
    side = side or next((len(pixels) for pixels in decoded if pixels is not None), 1)
    out_BCHW = np.zeros((len(decoded), 3, side, side), np.uint8)
    for image_CHW, pixels in zip(out_BCHW, decoded, strict=True):
        if pixels is not None:
            image_CHW[:] = square(pixels, side).transpose(2, 0, 1)
    return out_BCHW


def stored_pictures(columns: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the dataset's own pictures, uint8 [H, W, 3]; empty where it stores none.

    Raises InputError for one that cannot be decoded.
    """
    images = columns.get("image")
    if images is None:
        return []
    if images.dtype == object:
        try:
            return [np.array(decode_rgb(content, "a picture of the dataset")) for content in images]
        except BadRowError as error:
            raise InputError(str(error)) from error
    return [np.ascontiguousarray(image_CHW.transpose(1, 2, 0)) for image_CHW in images]
