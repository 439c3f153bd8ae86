"""The NIH ChestX-ray14 layout: a `Data_Entry*.csv` beside images in one or many folders → raw rows.

Both header variants are read: 2017 (a 12th, empty column; ages such as `058Y`) and 2020. The official lists
`train_val_list.txt` and `test_list.txt`, one file name per line, declare the splits where they lie beside the
table.
"""

import csv
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.radiograph import median_short_side
from voxray.data.formats.rows import one_split_per_group

NO_FINDING = "No Finding"
MAX_AUTO_IMAGE_SIZE = 224
UNKNOWN_FOLLOW_UP = -1
LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}

# Our name → the table's, in either variant.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("Image Index",),
    "labels": ("Finding Labels",),
    "follow_up": ("Follow-up #",),
    "patient": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}
_AGE = re.compile(r"(\d+)([YMWD]?)")
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
# The 2017 table holds ages up to 414: slips of the pen, taken as unknown.
_MAX_AGE_YEARS = 120


def read_nih(
    source: Path, labels: Sequence[str], image_size: int | Literal["auto"]
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per line of the table.

    A row has sample_id (the file's name), patient_id, path, image_size, labels [K] float32 in the order of
    `labels` (1, 0, NaN = unknown), view, sex, age_years, follow_up, and split where it is declared.

    `auto` is the median short side of up to 256 images, at most 224, so that no typical image is enlarged.
    Raises InputError when there is no table or several, a column is missing, or a patient is in two declared
    splits.
    """
    table = _find_table(source)
    reader = _RowReader(source, table.name, tuple(labels), _ImageIndex(source), _read_lists(source))
    rows = [reader.read(number, cells) for number, cells in _read_table(table)]
    good = [row for row in rows if not isinstance(row, BadRow)]
    one_split_per_group(good, "patient_id", table.name, "patient", "mend the lists")
    if image_size == "auto":
        image_size = min(
            MAX_AUTO_IMAGE_SIZE, median_short_side([row["path"] for row in good]) or MAX_AUTO_IMAGE_SIZE
        )
    for row in rows:
        yield row if isinstance(row, BadRow) else row | {"image_size": image_size}


def _find_table(source: Path) -> Path:
    if not source.is_dir():
        raise InputError(
            f"'{source}' is no folder; name the folder that holds Data_Entry*.csv and the images"
        )
    tables = sorted(source.glob("Data_Entry*.csv"))
    if len(tables) != 1:
        found = f"{len(tables)} ({', '.join(table.name for table in tables)})" if tables else "none"
        raise InputError(f"'{source}' must hold exactly one table Data_Entry*.csv, it holds {found}")
    return tables[0]


def _read_table(table: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield each line's number (the header is row 1) and its cells under our names; None where it ends."""
    number = 0
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            positions = _find_columns(table, next(reader, []))
            for cells in reader:
                number = reader.line_num
                if any(cell.strip() for cell in cells):
                    yield (
                        number,
                        {n: cells[i].strip() if i < len(cells) else None for n, i in positions.items()},
                    )
    except UnicodeDecodeError:
        raise InputError(
            f"{table} after row {number}: this is not UTF-8 text; save the table as UTF-8"
        ) from None
    except csv.Error as error:
        raise InputError(f"{table} after row {number}: {error}; the table is no CSV or is damaged") from None


def _find_columns(table: Path, header: list[str]) -> dict[str, int]:
    header = [name.strip() for name in header]
    positions, problems = {}, []
    for ours, names in _COLUMNS.items():
        found = [header.index(name) for name in names if name in header]
        if found:
            positions[ours] = found[0]
            continue
        near = difflib.get_close_matches(names[0], header, 1)
        hint = (
            f"is '{near[0]}' meant? rename it"
            if near
            else f"the header has: {', '.join(filter(None, header))}"
        )
        spelled = "' or '".join(names)
        problems.append(f"{table}: column '{spelled}' is missing; {hint}")
    if problems:
        raise InputError(*problems)
    return positions


def _read_lists(source: Path) -> dict[str, set[str]] | None:
    """Return the official lists' file names by list; None where the folder has none of them."""
    present = [name for name in LISTS if (source / name).is_file()]
    if not present:
        return None
    if missing := [name for name in LISTS if name not in present]:
        raise InputError(f"'{source}' holds {present[0]} but no {missing[0]}; add it, or remove {present[0]}")
    return {name: set((source / name).read_text(encoding="utf-8-sig").split()) for name in LISTS}


class _ImageIndex:
    """Where each file name lies below a folder. Links that lead out of it are not followed."""

    def __init__(self, source: Path) -> None:
        self.paths: dict[str, list[str]] = {}
        self.links_outside: list[str] = []
        self._source, self._root = source, source.resolve()
        self._scan(str(source))

    def _scan(self, folder: str) -> None:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_symlink() and not self._stays_inside(entry):
                self.links_outside.append(os.path.relpath(entry.path, self._source))
            elif entry.is_dir(follow_symlinks=False):
                self._scan(entry.path)
            elif entry.is_file():
                self.paths.setdefault(entry.name, []).append(entry.path)

    def _stays_inside(self, entry: os.DirEntry[str]) -> bool:
        target = Path(entry.path).resolve()
        return target.is_relative_to(self._root) and target.is_file()

    def find(self, name: str) -> str:
        """Return the one path of a file name. Raises ValueError with the reason when there is no such one."""
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise ValueError(f"'{name}' is no plain file name; write the image's name without a folder")
        paths = self.paths.get(name, [])
        if len(paths) > 1:
            folders = " and ".join(
                f"'{os.path.dirname(os.path.relpath(path, self._source)) or '.'}'" for path in paths
            )
            raise ValueError(f"image '{name}' lies in {folders}; keep one of them")
        if not paths:
            links = f" (links out of it are not followed: {', '.join(self.links_outside[:3])})"
            where = f"'{self._source}'{links if self.links_outside else ''}"
            raise ValueError(f"image '{name}' is in no folder below {where}; add the file or remove the row")
        return paths[0]


@dataclass(frozen=True)
class _RowReader:
    """Turns a line of the table into a raw row, or a BadRow that says why not."""

    source: Path
    table: str
    labels: tuple[str, ...]
    images: _ImageIndex
    lists: dict[str, set[str]] | None

    def read(self, number: int, cells: Mapping[str, str | None]) -> RawRow | BadRow:
        origin = f"{self.table} row {number}"
        try:
            return self._read({name: _present(name, cell) for name, cell in cells.items()}) | {
                "origin": origin
            }
        except ValueError as error:
            return BadRow(origin, str(error))

    def _read(self, cells: Mapping[str, str]) -> RawRow:
        name = cells["image"]
        row: RawRow = {
            "sample_id": name,
            "path": self.images.find(name),
            "patient_id": cells["patient"],
            "labels": _parse_labels(cells["labels"], self.labels),
            "view": cells["view"],
            "sex": cells["sex"],
            "age_years": _parse_age(cells["age"]),
            "follow_up": _parse_follow_up(cells["follow_up"]),
        }
        if not row["patient_id"]:
            raise ValueError(f"image '{name}' has no Patient ID; without it no split by patient can be made")
        return row if self.lists is None else row | {"split": _declared_split(name, self.lists)}


def _present(name: str, cell: str | None) -> str:
    if cell is None:
        raise ValueError(f"the row ends before the column '{_COLUMNS[name][0]}'; it has too few cells")
    return cell


def _parse_labels(cell: str, labels: tuple[str, ...]) -> np.ndarray:
    """Return [K] float32: a blank cell means that nobody looked, NaN for all labels."""
    if not cell:
        return np.full(len(labels), np.nan, dtype=np.float32)
    found = [name.strip() for name in cell.split("|")]
    if NO_FINDING in found and len(found) > 1:
        raise ValueError(f"'{cell}': '{NO_FINDING}' excludes every other label; remove one side")
    values = np.zeros(len(labels), dtype=np.float32)
    for name in found:
        if name in labels:
            values[labels.index(name)] = 1.0
        elif name != NO_FINDING:
            known = (*labels, NO_FINDING)
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"
            raise ValueError(f"unknown label '{name}'; {hint}")
    return values


def _parse_age(cell: str) -> float:
    """Return years; NaN for a blank or impossible age. The 2017 spelling is `058Y`, `011M`, `004D`."""
    if not cell:
        return float("nan")
    match = _AGE.fullmatch(cell.upper())
    if match is None:
        raise ValueError(
            f"Patient Age '{cell}' is no number of years and not like '058Y'; leave it blank if unknown"
        )
    years = int(match[1]) * _YEARS[match[2]]
    return years if years <= _MAX_AGE_YEARS else float("nan")


def _parse_follow_up(cell: str) -> int:
    if not cell:
        return UNKNOWN_FOLLOW_UP
    if not re.fullmatch(r"\d{1,6}", cell):
        raise ValueError(f"Follow-up # '{cell}' is no whole number; leave it blank if unknown")
    return int(cell)


def _declared_split(name: str, lists: Mapping[str, set[str]]) -> str:
    found = [file for file, names in lists.items() if name in names]
    if len(found) == 1:
        return LISTS[found[0]]
    where = "neither" if not found else "both"
    raise ValueError(f"image '{name}' is in {where} of {' and '.join(lists)}; it must be in one of them")
