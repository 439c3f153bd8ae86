"""Hyperspectral scenes as ENVI files (a text header `.hdr` beside raw numbers) → raw rows, whole or in tiles.

Headers and numbers are read by the library spectral (extra `envi`): BSQ, BIL, BIP, both byte orders. Values
are divided by the header's `reflectance scale factor`, pixels whose bands all have its `data ignore value`
are not measured. `<scene>_gt.hdr` beside `<scene>.hdr` holds the class map, one band, 0 = unlabelled.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.cube_hdf5 import MAX_ARRAY_BYTES, to_float32
from voxray.data.formats.hypercube import MAX_NM, MIN_NM
from voxray.data.formats.rows import first_line
from voxray.data.formats.scene_tiles import as_classes, pad, scene_rows

ENVI_SUFFIX = ".hdr"
_MAX_HEADER_BYTES = 16 * 2**20  # wavelengths and map data of a thousand bands take some 100 KiB
_INTERLEAVES = ("bsq", "bil", "bip")
_NM_PER_UNIT = {
    **dict.fromkeys(("nanometers", "nanometer", "nm"), 1.0),
    **dict.fromkeys(("micrometers", "micrometer", "microns", "um", "µm"), 1e3),
}
_NO_UNIT = ("", "none", "unknown")


def read_envi_scenes(source: Path, tile: int | None = None) -> Iterator[RawRow | BadRow]:
    """Return a raw row per scene, or per tile of `tile` × `tile` pixels; only headers are read.

    A row has sample_id (the header's path below `source` without suffix), scene (the group: the same without
    `_corrected`), path (of the header), labels_path (blank without ground truth), top, left, height, width
    (pixels). Tiles do not overlap; those at the lower and right edge reach over it, and are
    padded by `load_envi`.

    Raises InputError when spectral is not installed, there is no header, or `tile` is below 1.
    """
    library()
    return scene_rows(source, ENVI_SUFFIX, lambda path, truth: _scene(source, path, truth), tile)


def load_envi(row: RawRow) -> RawRow:
    """Return the row with cube float32 [bands, height, width], wavelengths_nm float32 [bands], labels int16
    and valid bool [height, width].

    Wavelengths are NaN where the header has none or no unit of length. Outside the scene (a tile at its edge)
    and at ignored pixels the cube is 0 and valid is False. Labels are 0 without ground truth.

    Raises BadRowError, naming the file, when it is missing, cut short, damaged, compressed, or holds complex
    or non-finite values, or labels that are no classes.
    """
    path = Path(row["path"])
    image = _open(path)
    crop = _window(path, image, row)
    valid = np.ones(crop.shape[1:], dtype=bool)
    ignored = image.metadata.get("data ignore value")
    if ignored is not None:
        valid = ~(crop == _number(path, "data ignore value", ignored)).all(axis=0)
    cube = np.where(valid, crop, 0) / _scale_factor(path, image.metadata)
    labels = np.zeros(crop.shape[1:], dtype=np.int16)
    if row["labels_path"]:
        truth = Path(row["labels_path"])
        labels = as_classes(str(truth), _window(truth, _open(truth), row)[0])
    return row | {
        "cube": pad(to_float32(cube, f"'{path}'"), row),
        "wavelengths_nm": _wavelengths(path, image),
        "labels": pad(labels, row),
        "valid": pad(valid, row),
    }


def library() -> Any:
    """Return the module `spectral.io.envi`. Raises InputError where it is not installed."""
    try:
        return import_module("spectral.io.envi")
    except ImportError as error:
        raise InputError("ENVI files need spectral; install it with `pip install 'voxray[envi]'`") from error


# --- what there is
# ------------------------------------------------------------------------------------------------------------


def _scene(source: Path, path: Path, truth: Path | None) -> RawRow:
    for header in (path, truth):
        if header is not None:
            _refuse_links_out(source, header)
    rows, columns, _ = _open(path).shape
    if truth is not None and (shape := _open(truth).shape) != (rows, columns, 1):
        raise BadRowError(
            f"ground truth '{truth}' has the shape {shape}, the scene {(rows, columns)}; it is to have one "
            "band of as many rows and columns"
        )
    return {
        "sample_id": path.relative_to(source).with_suffix("").as_posix(),
        "path": str(path),
        "labels_path": "" if truth is None else str(truth),
        "top": 0,
        "left": 0,
        "height": rows,
        "width": columns,
    }


def _refuse_links_out(source: Path, header: Path) -> None:
    """Look at all files that the library may take for the header's numbers: those of the same stem."""
    root = source.resolve()
    for path in header.parent.iterdir():
        if path.name.startswith(header.stem) and not path.resolve().is_relative_to(root):
            raise BadRowError(f"'{path}' is a link out of '{source}'; put the file itself there")


# --- one file
# ------------------------------------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    """Return the library's image, checked against the size of the file with its numbers."""
    envi = library()
    try:
        if (num_bytes := path.stat().st_size) > _MAX_HEADER_BYTES:
            raise BadRowError(f"'{path}' has {num_bytes:,} bytes, which is no header; move the file away")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys in capital letters, which it reads too
            image = envi.open(str(path.resolve()))
    except BadRowError:
        raise
    except Exception as error:  # the library raises many kinds on damaged text
        reason = first_line(error) or type(error).__name__
        raise BadRowError(f"'{path}' cannot be read as an ENVI header: {reason}; replace it") from error
    _check(path, image)
    return image


def _check(path: Path, image: Any) -> None:
    """Raise BadRowError for what the library would read as other numbers than were written."""
    header = image.metadata
    shape = getattr(image, "shape", ())  # a spectral library has none
    interleave = str(header.get("interleave", "")).lower()
    if len(shape) != 3 or min(shape) < 1 or interleave not in _INTERLEAVES or image.offset < 0:
        raise BadRowError(f"'{path}' describes no image of lines, samples and bands; move it away")
    if str(header.get("file compression", "0")) != "0":
        raise BadRowError(f"'{path}': its numbers are compressed; save them without compression")
    if np.dtype(image.dtype).kind not in "iuf":
        raise BadRowError(f"'{path}' holds {np.dtype(image.dtype)}, not real numbers; save its real part")
    needed = image.offset + math.prod(map(int, shape)) * np.dtype(image.dtype).itemsize
    size = Path(image.filename).stat().st_size
    if size < needed:
        raise BadRowError(
            f"'{image.filename}' is cut short: {size:,} bytes are there, its header needs {needed:,}; copy "
            "it again"
        )


def _window(path: Path, image: Any, row: Mapping[str, Any]) -> np.ndarray:
    """Return the part of the row's window that lies in the scene, as stored: [bands, rows, columns]."""
    top, left = row["top"], row["left"]
    values_RWC = image.open_memmap(interleave="bip")[top : top + row["height"], left : left + row["width"]]
    if values_RWC.nbytes > MAX_ARRAY_BYTES:
        raise BadRowError(
            f"'{path}' has {values_RWC.nbytes / 2**30:,.1f} GiB; up to {MAX_ARRAY_BYTES / 2**30:g} GiB are "
            "read at once; set tile="
        )
    return np.moveaxis(np.array(values_RWC), -1, 0)


def _number(path: Path, key: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise BadRowError(f"'{path}': '{key}' is '{value}', no number; mend the header") from None


def _scale_factor(path: Path, header: Mapping[str, Any]) -> float:
    key = "reflectance scale factor"
    factor = _number(path, key, header.get(key, 1.0))
    if not (math.isfinite(factor) and factor > 0):
        raise BadRowError(f"'{path}': '{key}' is {factor:g}; values are divided by it, so it is above 0")
    return factor


def _wavelengths(path: Path, image: Any) -> np.ndarray:
    """Return [bands] float32 nm. Without a unit, numbers that can be nm are."""
    num_bands = image.shape[2]
    centers = np.asarray(image.bands.centers if image.bands.centers is not None else (), np.float64)
    unit = str(image.bands.band_unit or "").strip().lower()
    if not len(centers) or unit not in (*_NM_PER_UNIT, *_NO_UNIT):
        return np.full(num_bands, np.nan, np.float32)
    if len(centers) != num_bands:
        raise BadRowError(f"'{path}' has {num_bands} bands, but {len(centers)} wavelengths; mend the header")
    values = centers * _NM_PER_UNIT.get(unit, 1.0)
    if ((values >= MIN_NM) & (values <= MAX_NM)).all():
        return values.astype(np.float32)
    if unit in _NO_UNIT:
        return np.full(num_bands, np.nan, np.float32)
    raise BadRowError(
        f"'{path}': its wavelengths run from {centers.min():g} to {centers.max():g} {unit}, which no camera "
        "has; mend `wavelength units`"
    )
