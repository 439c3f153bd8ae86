"""The NIH ChestX-ray14 layout: a `Data_Entry*.csv` beside images in one or many folders → raw rows.

Both header variants are read: 2017 (a 12th, empty column; ages such as `058Y`) and 2020. The official lists
`train_val_list.txt` and `test_list.txt`, one file name per line, declare the splits where they lie beside the
table. A folder of NIH's images without the table can be read as unlabelled: a file's name tells the patient.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.cxr_table import (
    NO_FINDING,
    UNKNOWN_FOLLOW_UP,
    ImageIndex,
    label_vector,
    parse_age,
    parse_follow_up,
    projection_of,
    read_rows,
)

LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

_COLUMNS: dict[str, tuple[str, ...]] = {
    "image": ("Image Index",),
    "labels": ("Finding Labels",),
    "follow_up": ("Follow-up #",),
    "patient": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}
_IMAGE_NAME = re.compile(r"(\d{8})_\d{3}")


def find_nih_tables(source: Path) -> list[Path]:
    """Return the folder's tables in this layout."""
    return sorted(source.glob("Data_Entry*.csv"))


def read_nih(source: Path, labels: tuple[str, ...]) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per line of the table; see `cxr.read_radiographs`."""
    tables = find_nih_tables(source)
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables)
        raise InputError(
            f"'{source}' must hold exactly one table Data_Entry*.csv, it holds {len(tables)} ({names})"
        )
    images, lists = ImageIndex(source), _read_lists(source)

    def read(cells: Mapping[str, str]) -> RawRow:
        name = cells["image"]
        row: RawRow = {
            "sample_id": name,
            "path": images.find(name),
            "patient_id": cells["patient"],
            "labels": _parse_labels(cells["labels"], labels),
            "view": cells["view"],
            "projection": projection_of(cells["view"]),
            "sex": cells["sex"],
            "age_years": parse_age("Patient Age", cells["age"]),
            "follow_up": parse_follow_up("Follow-up #", cells["follow_up"]),
        }
        if not row["patient_id"]:
            raise ValueError(f"image '{name}' has no Patient ID; without it no split by patient can be made")
        return row if lists is None else row | {"split": _declared_split(name, lists)}

    yield from read_rows(tables[0], _COLUMNS, {}, read)


def read_unlabelled_nih(source: Path, labels: tuple[str, ...]) -> Iterator[RawRow | BadRow]:
    """Yield a raw row per image below the folder, all labels unknown; tables are not looked at.

    The patient comes from NIH's way of naming, `<patient, 8 digits>_<image, 3 digits>.png`. The second number
    is not the visit: the table of 2020 gives 00000003_001.png the follow-up 0.
    """
    images = ImageIndex(source)
    for name in sorted(images.paths):
        stem, suffix = Path(name).stem, Path(name).suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            continue
        match = _IMAGE_NAME.fullmatch(stem)
        try:
            if match is None:
                raise ValueError(
                    f"image '{name}' is not named like 00000003_001.png, so its patient is not known; list "
                    "it in a table labels.csv with the columns Image and PatientId"
                )
            yield {
                "sample_id": name,
                "path": images.find(name),
                "patient_id": str(int(match[1])),
                "labels": label_vector({}, labels),
                "view": "",
                "projection": "",
                "sex": "",
                "age_years": float("nan"),
                "follow_up": UNKNOWN_FOLLOW_UP,
                "origin": name,
            }
        except ValueError as error:
            yield BadRow(name, str(error))


def _read_lists(source: Path) -> dict[str, set[str]] | None:
    """Return the official lists' file names by list; None where the folder has none of them."""
    present = [name for name in LISTS if (source / name).is_file()]
    if not present:
        return None
    if missing := [name for name in LISTS if name not in present]:
        raise InputError(f"'{source}' holds {present[0]} but no {missing[0]}; add it, or remove {present[0]}")
    return {name: set((source / name).read_text(encoding="utf-8-sig").split()) for name in LISTS}


def _parse_labels(cell: str, labels: tuple[str, ...]) -> np.ndarray:
    """Return [K] float32: a blank cell means that nobody looked, NaN for all labels."""
    if not cell:
        return label_vector({}, labels)
    found = [name.strip() for name in cell.split("|")]
    if NO_FINDING in found and len(found) > 1:
        raise ValueError(f"'{cell}': '{NO_FINDING}' excludes every other label; remove one side")
    for name in found:
        if name not in labels and name != NO_FINDING:
            known = (*labels, NO_FINDING)
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"
            raise ValueError(f"unknown label '{name}'; {hint}")
    return label_vector({name: float(name in found) for name in labels}, labels)


def _declared_split(name: str, lists: Mapping[str, set[str]]) -> str:
    found = [file for file, names in lists.items() if name in names]
    if len(found) == 1:
        return LISTS[found[0]]
    where = "neither" if not found else "both"
    raise ValueError(f"image '{name}' is in {where} of {' and '.join(lists)}; it must be in one of them")
