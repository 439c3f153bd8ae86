"""One radiograph's file → a square 8-bit grey image: PNG, JPEG, or DICOM through pydicom.

Files are judged by their bytes, not their names. A truncated file is refused, never half read, and so is one
whose header claims more than about 89 million pixels (Pillow's limit against decompression bombs).
"""

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from voxray.core.task import BadRowError
from voxray.data.formats.rows import first_line

_FORMATS = ("PNG", "JPEG")
_DICOM_PREAMBLE = 128
_DICOM_SUFFIXES = (".dcm", ".dicom")
_MAX_SIZED_IMAGES = 256
_MAX_FRAMES = 1
_FAR_OUTSIDE = 1e9  # of every stored value, 16 bits and their rescaling


def decode_image(path: str | Path, size: int) -> np.ndarray:
    """Return uint8 [1, size, size]: grey, centre-cropped to a square, resized with antialiasing (bicubic).

    Colour becomes luminance, transparency is dropped, 16 bits are scaled to 8. DICOM is shown as its window
    says, or else from its darkest to its brightest pixel; what only pads the frame is black.
    Raises BadRowError, naming the file, when it is missing, truncated, or no image of these kinds.
    """
    try:
        grey = _dicom_to_grey(path) if _is_dicom(path) else _raster_to_grey(path)
    except BadRowError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise BadRowError(f"image '{path}' cannot be read: {first_line(error)}; replace the file") from error
    side = min(grey.size)
    left, top = (grey.width - side) // 2, (grey.height - side) // 2
    square = grey.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return np.asarray(square)[None]


def median_short_side(paths: Sequence[str | Path]) -> int | None:
    """Return the median short side in pixels of up to 256 evenly spaced files, from their headers alone.

    Files that cannot be read are left out; None when none can.
    """
    step = max(1, -(-len(paths) // _MAX_SIZED_IMAGES))
    sides = [side for path in paths[::step] if (side := _short_side(path)) is not None]
    return statistics.median_low(sides) if sides else None


def _short_side(path: str | Path) -> int | None:
    try:
        if _is_dicom(path):
            from pydicom import dcmread

            header = dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(min(header.Rows, header.Columns))
        with Image.open(path, formats=_FORMATS) as image:
            return min(image.size)
    except Exception:  # decode_image will name this file and the reason
        return None


def _is_dicom(path: str | Path) -> bool:
    with Path(path).open("rb") as file:
        start = file.read(_DICOM_PREAMBLE + 4)
    return start[_DICOM_PREAMBLE:] == b"DICM" or str(path).lower().endswith(_DICOM_SUFFIXES)


def _raster_to_grey(path: str | Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
            if image.mode.startswith("I"):
                return Image.fromarray((np.asarray(image).astype(np.uint32) / 257.0 + 0.5).astype(np.uint8))
            return image.convert("L")


def _dicom_to_grey(path: str | Path) -> Image.Image:
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    dataset = dcmread(path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    num_pixels = int(dataset.Rows) * int(dataset.Columns)
    if frames > _MAX_FRAMES or num_pixels > (Image.MAX_IMAGE_PIXELS or num_pixels):
        raise BadRowError(
            f"image '{path}' has {frames} frames of {num_pixels} pixels; one ordinary frame is read"
        )
    pixels = dataset.pixel_array
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise BadRowError(f"image '{path}' is in colours of {pixels.dtype}; 8 bits a colour are read")
        return Image.fromarray(pixels).convert("L")
    padded = _padding(pixels, dataset)
    values = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(np.float64)
    if "WindowCenter" in dataset and "VOILUTSequence" not in dataset:
        # Black and white are the window's, also for an image that does not reach them.
        low, high = apply_voi_lut(np.array([-_FAR_OUTSIDE, _FAR_OUTSIDE]), dataset)
    else:
        shown = values[~padded] if not padded.all() else values
        low, high = shown.min(), shown.max()
    grey = np.round((values - low) * (255.0 / (high - low) if high > low else 0.0)).clip(0, 255)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(np.where(padded, 0, grey).astype(np.uint8))


def _padding(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    """Return where the stored values only fill up the frame (DICOM PS3.3 C.7.5.1.1.2), [H, W] bool."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, dtype=bool)
    first = int(dataset.PixelPaddingValue)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    return (pixels >= min(first, last)) & (pixels <= max(first, last))
