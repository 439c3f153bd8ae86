"""Radiographs with a table of our own layout: `labels.csv`, a column per finding → raw rows.

The columns `Image` (a file name, found in any folder below) and `PatientId` are needed; `Age`, `Sex`, `View`,
`FollowUp` and `Split` (train, val, test) may be there. Every column that is called like one of the task's
labels holds 1, 0, -1 (uncertain) or nothing; labels without a column are unknown in all rows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.cxr_table import (
    ImageIndex,
    Uncertain,
    header_of,
    label_vector,
    parse_age,
    parse_follow_up,
    parse_label,
    parse_sex,
    projection_of,
    read_rows,
)

NAME = "labels.csv"
_COLUMNS = {"image": ("Image",), "patient": ("PatientId",)}
_OPTIONAL = {
    "age": ("Age",),
    "sex": ("Sex",),
    "view": ("View",),
    "follow_up": ("FollowUp",),
    "split": ("Split",),
}


def find_label_tables(source: Path) -> list[Path]:
    """Return the folder's table in this layout, if it has one."""
    return [source / NAME] if (source / NAME).is_file() else []


def read_label_table(
    source: Path, labels: tuple[str, ...], uncertain: Uncertain
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per line of the table; see `cxr.read_radiographs`."""
    table = source / NAME
    header = header_of(table)
    known = [name for name in labels if name in header]
    if not known:
        raise InputError(
            f"{table}: no column is called like a label ({', '.join(labels)}); add those that are known"
        )
    images, with_split = ImageIndex(source), "Split" in header

    def read(cells: Mapping[str, str]) -> RawRow:
        name = cells["image"]
        row: RawRow = {
            "sample_id": name,
            "path": images.find(name),
            "patient_id": cells["patient"],
            "labels": label_vector(
                {label: parse_label(label, cells[label], uncertain) for label in known}, labels
            ),
            "view": cells["view"],
            "projection": projection_of(cells["view"]),
            "sex": parse_sex(cells["sex"]),
            "age_years": parse_age("Age", cells["age"]),
            "follow_up": parse_follow_up("FollowUp", cells["follow_up"]),
        }
        if not row["patient_id"]:
            raise ValueError(f"image '{name}' has no PatientId; without it no split by patient can be made")
        if with_split and cells["split"] not in SPLITS:
            raise ValueError(f"Split '{cells['split']}' is none of {', '.join(SPLITS)}; mend the row")
        return row | ({"split": cells["split"]} if with_split else {})

    yield from read_rows(table, {**_COLUMNS, **{name: (name,) for name in known}}, _OPTIONAL, read)
