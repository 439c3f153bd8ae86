"""What the readers of chest X-ray collections share: tables by column name, their cells, the images."""

import csv
import difflib
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow

NO_FINDING = "No Finding"
UNKNOWN_FOLLOW_UP = -1
Uncertain = Literal["ignore", "zeros", "ones"]
Views = Literal["all", "frontal", "lateral"]
# Our name → the table's, whichever it has.
Names = Mapping[str, tuple[str, ...]]

_UNCERTAIN_VALUES: dict[Uncertain, float] = {"ignore": float("nan"), "zeros": 0.0, "ones": 1.0}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([YMWD]?)")
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
# NIH's table of 2017 holds ages up to 414: slips of the pen, taken as unknown.
_MAX_AGE_YEARS = 120
_SEXES = {"MALE": "M", "FEMALE": "F", "UNKNOWN": ""}
_LATERAL_WORDS = {"L", "LL", "RL", "LATERAL"}


def read_rows(
    table: Path, columns: Names, optional: Names, read: Callable[[dict[str, str]], RawRow]
) -> Iterator[RawRow | BadRow]:
    """Yield what `read` makes of each line's cells, or a BadRow with the message of its ValueError.

    `read` gets the stripped cells under our names; an optional column that the table lacks is blank.
    """
    for number, cells in read_table(table, columns, optional):
        origin = f"{table.name} row {number}"
        try:
            yield read(cells) | {"origin": origin}
        except ValueError as error:
            yield BadRow(origin, str(error))


def read_table(table: Path, columns: Names, optional: Names) -> Iterator[tuple[int, "Cells"]]:
    """Yield each line's number (the header is row 1) and its cells; `.gz` tables are unpacked on the way.

    Raises InputError for a table that is no UTF-8 CSV, is damaged, or lacks one of `columns`.
    """
    number = 0
    try:
        with _open_text(table) as file:
            reader = csv.reader(file)
            positions = _find_columns(table, next(reader, []), columns, optional)
            for cells in reader:
                number = reader.line_num
                if any(cell.strip() for cell in cells):
                    yield number, Cells(cells, positions, optional)
    except UnicodeDecodeError:
        raise InputError(
            f"{table} after row {number}: this is not UTF-8 text; save the table as UTF-8"
        ) from None
    except csv.Error as error:
        raise InputError(f"{table} after row {number}: {error}; the table is no CSV or is damaged") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{table} after row {number}: {error}; download the table again") from None


def header_of(table: Path) -> list[str]:
    """Return the names in the first line; none for a file that is no text."""
    try:
        with _open_text(table) as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile):
        return []


class Cells(dict[str, str]):
    """A line's stripped cells under our names. A cell that the line is too short for raises ValueError."""

    def __init__(self, cells: Sequence[str], positions: Mapping[str, tuple[int, str]], blank: Names) -> None:
        super().__init__(dict.fromkeys(blank, ""))
        self._missing = {ours: theirs for ours, (at, theirs) in positions.items() if at >= len(cells)}
        self.update({ours: cells[at].strip() for ours, (at, _) in positions.items() if at < len(cells)})
        for name in self._missing:
            self.pop(name, None)

    def __missing__(self, name: str) -> str:
        assert name in self._missing, name
        raise ValueError(f"the row ends before the column '{self._missing[name]}'; it has too few cells")


def _open_text(table: Path) -> IO[str]:
    if table.suffix == ".gz":
        return gzip.open(table, "rt", encoding="utf-8-sig", newline="")
    return table.open(encoding="utf-8-sig", newline="")


def _find_columns(
    table: Path, header: Sequence[str], columns: Names, optional: Names
) -> dict[str, tuple[int, str]]:
    """Return our name → position and the table's name."""
    header = [name.strip() for name in header]
    positions, problems = {}, []
    for ours, names in {**columns, **optional}.items():
        found = [name for name in names if name in header]
        if found:
            positions[ours] = header.index(found[0]), found[0]
        elif ours in columns:
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


# --- cells
# --------------------------------------------------------------------------------------------------------


def parse_label(name: str, cell: str, uncertain: Uncertain) -> float:
    """Return 1, 0, or NaN for a blank cell; -1 (uncertain) becomes what the policy says.

    `ignore` is NaN; `zeros` and `ones` are U-Zeros and U-Ones of CheXpert (Irvin et al. 2019,
    arXiv:1901.07031).
    """
    if not cell:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("inf")
    if value not in (-1.0, 0.0, 1.0):
        raise ValueError(f"'{name}' is '{cell}'; a label is 1, 0, -1 (uncertain) or blank")
    return _UNCERTAIN_VALUES[uncertain] if value == -1 else value


def parse_age(name: str, cell: str) -> float:
    """Return years; NaN for a blank or impossible age. NIH's spelling of 2017 is `058Y`, `011M`, `004D`."""
    if not cell:
        return float("nan")
    match = _AGE.fullmatch(cell.upper())
    if match is None:
        raise ValueError(f"{name} '{cell}' is no number of years and not like '058Y'; blank it if unknown")
    years = float(match[1]) * _YEARS[match[2]]
    return years if years <= _MAX_AGE_YEARS else float("nan")


def parse_follow_up(name: str, cell: str) -> int:
    """Return the number of the visit, -1 for a blank cell."""
    if not cell:
        return UNKNOWN_FOLLOW_UP
    if not re.fullmatch(r"\d{1,6}", cell):
        raise ValueError(f"{name} '{cell}' is no whole number; leave it blank if unknown")
    return int(cell)


def parse_sex(cell: str) -> str:
    """Return M or F for the words too; blank when unknown."""
    return _SEXES.get(cell.upper(), cell)


def projection_of(view: str) -> str:
    """Return frontal or lateral for a view position such as `AP Supine`, `LL`, `XTABLE LATERAL`, else ''."""
    words = view.upper().split()
    if words[:1] in (["AP"], ["PA"]):
        return "frontal"
    return "lateral" if _LATERAL_WORDS.intersection(words) else ""


def label_vector(values: Mapping[str, float], labels: Sequence[str]) -> np.ndarray:
    """Return [K] float32 in the order of `labels`; NaN for those that the collection does not have."""
    return np.array([values.get(name, np.nan) for name in labels], dtype=np.float32)


# --- images
# -------------------------------------------------------------------------------------------------------


class ImageFolder:
    """A raw folder whose images are named by their relative paths."""

    def __init__(self, source: Path) -> None:
        self._source, self._root = source, os.path.realpath(source)

    def find(self, relative: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return the first path that exists. Raises ValueError when none does or it is a link out of the
        folder.
        """
        for suffix in suffixes:
            path = os.path.join(self._source, relative + suffix)
            if not os.path.isfile(path):
                continue
            if not os.path.realpath(path).startswith(self._root + os.sep):
                raise ValueError(
                    f"image '{relative}{suffix}' is a link out of '{self._source}'; copy the file in"
                )
            return path
        raise ValueError(
            f"image '{relative}{suffixes[0]}' is not in '{self._source}'; add it, or drop the row"
        )


class ImageIndex:
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
