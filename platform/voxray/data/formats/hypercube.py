"""Hyperspectral cubes, one HDF5 file each, and the CSV table that lists them → raw rows.

The table has the columns `ID,label,hs_file,rgb_file`, as SpectralEye's has; a column `split` declares splits,
others are ignored. `ID` names the patient. A cube is the dataset `/Cube/Images`, [bands, height, width], with
its wavelengths in nm beside it as `/Cube/Wavelength`, the layout that the camera's software writes.
"""

import csv
import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath

import h5py
import numpy as np
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.cube_hdf5 import find_array, open_hdf5, to_float32
from voxray.data.formats.rows import first_line, one_split_per_group
from voxray.data.formats.scene_tiles import window

CUBE = "/Cube/Images"
WAVELENGTH = "Wavelength"
# What SpectralEye takes of a camera's 80 and more bands: 29 + 1 = 30.
SPECTRALEYE_BANDS = (*range(0, 58, 2), 80)

_COLUMNS = ("ID", "label", "hs_file", "rgb_file")
_RGB_MODES = ("RGB", "RGBA", "L", "P")
# Ultraviolet to long-wave infrared; wavelengths in µm or m fall outside.
MIN_NM, MAX_NM = 100.0, 20_000.0


def read_hypercubes(
    source: Path, table: str | None = None, bands: Sequence[int] | None = None, dataset: str = CUBE
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per line of the table; no cube is opened.

    A row has sample_id (the cube's path below `source`), patient_id, label, path, rgb_path
    (blank where the table has none), dataset, bands (indices to read, None = all), and split where declared.
    `table` names the CSV file, needed only where `source` holds several; `hs_file` and `rgb_file` are
    relative to `source`.

    Raises InputError when there is no table, a column is missing, `bands` is no increasing list of indices,
    or a patient is in two declared splits.
    """
    _check_bands(bands)
    path = _find_table(source, table)
    reader = _RowReader(source.resolve(), path.name, None if bands is None else tuple(bands), dataset)
    rows = [reader.read(number, cells) for number, cells in _read_table(path)]
    good = [row for row in rows if not isinstance(row, BadRow)]
    one_split_per_group(good, "patient_id", path.name, "patient", "mend the column")
    yield from rows


def load_hypercube(row: RawRow) -> RawRow:
    """Return the row with cube float32 [bands, height, width], as stored, and wavelengths_nm float32 [bands].

    Of a row with top, left, height and width (a tile) only the part of it that lies in the cube is read. The
    wavelengths are NaN where the file has none. Raises BadRowError, naming the file, when it is missing,
    cut short, damaged, keeps its data elsewhere, has no such dataset or band, or holds values that are not
    finite.
    """
    with open_hdf5(row["path"]) as file:
        dataset = find_array(file, row["dataset"], num_axes=3)
        wavelengths = _read_wavelengths(file, row["dataset"], dataset.shape[0])
        bands = row["bands"]
        if bands is not None:
            if bands[-1] >= dataset.shape[0]:
                raise BadRowError(
                    f"'{row['path']}': band {bands[-1]} is asked for, but the cube has {dataset.shape[0]} "
                    "bands (numbered from 0); choose others"
                )
            wavelengths = wavelengths[list(bands)]
        chosen = slice(None) if bands is None else list(bands)
        values = dataset[(chosen, *window(row))]
    return row | {"cube": to_float32(values, f"'{row['path']}'"), "wavelengths_nm": wavelengths}


def hypercube_size(row: RawRow) -> tuple[int, int]:
    """Return height and width of the row's cube in pixels. Raises BadRowError as `load_hypercube` does."""
    with open_hdf5(row["path"]) as file:
        _, height, width = find_array(file, row["dataset"], num_axes=3).shape
    return int(height), int(width)


def load_rgb(row: RawRow) -> RawRow:
    """Return the row with rgb uint8 [3, height, width], the 8-bit PNG of `rgb_path`.

    Raises BadRowError when the row has none, or the file is no whole PNG.
    """
    path = row["rgb_path"]
    if not path:
        raise BadRowError(f"'{row['path']}' has no rgb_file in its table; add it, or do not load RGB images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in _RGB_MODES:
                    raise ValueError(f"its mode is {image.mode}; 8 bits per channel are read")
                pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises almost anything on damaged bytes
        raise BadRowError(f"'{path}' cannot be read as PNG: {first_line(error)}; replace it") from error
    return row | {"rgb": np.ascontiguousarray(np.moveaxis(pixels, -1, 0))}


def _read_wavelengths(file: h5py.File, dataset: str, num_bands: int) -> np.ndarray:
    """Return [bands] float32 nm from the dataset `Wavelength` beside the cube; NaN where there is none."""
    name = str(PurePosixPath(dataset).parent / WAVELENGTH)
    parent = file[str(PurePosixPath(dataset).parent)]
    assert isinstance(parent, h5py.Group), "the cube lies in a group"
    if WAVELENGTH not in list(parent):
        return np.full(num_bands, np.nan, dtype=np.float32)
    values = np.asarray(find_array(file, name, num_axes=1)[...], dtype=np.float32)
    if len(values) != num_bands:
        raise BadRowError(
            f"'{file.filename}': '{dataset}' has {num_bands} bands on its first axis, but '{name}' has "
            f"{len(values)} wavelengths; store the cube as [bands, height, width]"
        )
    if not ((values >= MIN_NM) & (values <= MAX_NM)).all():
        raise BadRowError(
            f"'{file.filename}': '{name}' runs from {values.min():g} to {values.max():g}, which are no "
            "nanometres; store nm"
        )
    return values


# --- the table
# ------------------------------------------------------------------------------------------------------------


def _check_bands(bands: Sequence[int] | None) -> None:
    if bands is None:
        return
    increasing = all(low < high for low, high in pairwise(bands))
    if not bands or bands[0] < 0 or not increasing:
        raise InputError(f"bands {list(bands)} must be increasing indices from 0 on, at least one")


def _find_table(source: Path, table: str | None) -> Path:
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the table and the cubes")
    found = sorted(path.name for path in source.glob("*.csv"))
    if table is None and len(found) == 1:
        return source / found[0]
    if table in found:
        return source / str(table)
    held = ", ".join(found) or "none"
    if table is None:
        raise InputError(f"'{source}' must hold one table *.csv, or one must be named; it holds: {held}")
    raise InputError(f"'{source}' has no table '{table}'; it holds: {held}")


def _read_table(table: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield each line's number (the header is row 1) and its cells by column."""
    number = 0
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="")
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            _check_columns(table, reader.fieldnames)
            for cells in reader:
                number = reader.line_num
                if any(str(cell).strip() for cell in cells.values() if cell):
                    yield number, {name: cells[name] for name in reader.fieldnames if name}
    except UnicodeDecodeError:
        raise InputError(
            f"{table} after row {number}: this is not UTF-8 text; save the table as UTF-8"
        ) from None
    except csv.Error as error:
        raise InputError(f"{table} after row {number}: {error}; the table is no CSV or is damaged") from None


def _check_columns(table: Path, header: Sequence[str]) -> None:
    problems = []
    for name in _COLUMNS:
        if header.count(name) == 1:
            continue
        near = difflib.get_close_matches(name, header, 1)
        hint = f"is '{near[0]}' meant? rename it" if near else f"the header has: {', '.join(header)}"
        wrong = "comes several times; keep one" if name in header else f"is missing; {hint}"
        problems.append(f"{table}: column '{name}' {wrong}")
    if problems:
        raise InputError(*problems)


@dataclass(frozen=True)
class _RowReader:
    """Turns a line of the table into a raw row, or a BadRow that says why not."""

    root: Path
    table: str
    bands: tuple[int, ...] | None
    dataset: str

    def read(self, number: int, cells: Mapping[str, str | None]) -> RawRow | BadRow:
        origin = f"{self.table} row {number}"
        try:
            return self._read(cells) | {"origin": origin}
        except ValueError as error:
            return BadRow(origin, str(error))

    def _read(self, cells: Mapping[str, str | None]) -> RawRow:
        short = [name for name in _COLUMNS if cells[name] is None]
        if short:
            raise ValueError(f"the row ends before the column '{short[0]}'; it has too few cells")
        patient, label, hs_file, rgb_file = (str(cells[name]).strip() for name in _COLUMNS)
        if not patient:
            raise ValueError(f"cube '{hs_file}' has no ID; without it no split by patient can be made")
        path = self._inside("hs_file", hs_file)
        row: RawRow = {
            "sample_id": path.relative_to(self.root).as_posix(),
            "patient_id": patient,
            "label": label,
            "path": str(path),
            "rgb_path": str(self._inside("rgb_file", rgb_file)) if rgb_file else "",
            "dataset": self.dataset,
            "bands": self.bands,
        }
        split = (cells.get("split") or "").strip()
        if split and split not in SPLITS:
            raise ValueError(f"split '{split}' is unknown; write {', '.join(SPLITS)}, or leave it blank")
        return row | {"split": split} if split else row

    def _inside(self, column: str, cell: str) -> Path:
        """Return the file's path. Windows' backslashes are read; nothing outside the folder is."""
        written = PureWindowsPath(cell)
        if not cell or "\0" in cell or written.anchor or ".." in written.parts:
            raise ValueError(
                f"{column} '{cell}' must be a path relative to the raw folder, without drive or '..'"
            )
        path = self.root / written.as_posix()
        if not path.is_file():
            raise ValueError(f"{column} '{cell}' is not below '{self.root}'; add the file or remove the row")
        if not path.resolve().is_relative_to(self.root):
            raise ValueError(f"{column} '{cell}' is a link out of '{self.root}'; put the file itself there")
        return path
