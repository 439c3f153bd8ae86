"""One radiograph's file → a square 8-bit grey image: PNG, JPEG, or DICOM through pydicom.

Files are judged by their bytes, not their names. A truncated file is refused, never half read, and so is one
whose header claims more than about 89 million pixels (Pillow's limit against decompression bombs).
"""

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from voxray.core.task import BadRowError
from voxray.data.formats.rows import first_line

_FORMATS = ("PNG", "JPEG")
_DICOM_PREAMBLE = 128
_DICOM_SUFFIXES = (".dcm", ".dicom")
_MAX_SIZED_IMAGES = 256
_MAX_FRAMES = 1


def decode_image(path: str | Path, size: int) -> np.ndarray:
    """Return uint8 [1, size, size]: grey, centre-cropped to a square, resized with antialiasing (bicubic).

    Colour becomes luminance, transparency is dropped, 16 bits are scaled to 8, DICOM is shown as its window
    says. Raises BadRowError, naming the file, when it is missing, truncated, or no image of these kinds.
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
        return Image.fromarray(pixels.astype(np.uint8)).convert("L")
    values = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(np.float64)
    low, high = values.min(), values.max()
    grey = np.round((values - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)
    return Image.fromarray(255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey)
