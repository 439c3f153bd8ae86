"""CheXpert and MIMIC-CXR-JPG: two layouts with one labeller's 14 columns → raw rows.

Labels are 1, 0, -1 (uncertain) or blank (not mentioned in the report). They are mapped by name; `Pleural
Effusion` is NIH's `Effusion`. What the labeller does not know (Hernia, Mass, …) stays unknown. Where `No
Finding` is 1, the labeller's other findings are absent, except `Support Devices` (as torchxrayvision reads
both collections).

CheXpert (Irvin et al. 2019, arXiv:1901.07031): `train.csv`, `valid.csv`, `test.csv` beside
`train/patient00001/study1/view1_frontal.jpg`; each table is its split, `valid` is val.
MIMIC-CXR-JPG (Johnson et al. 2019, arXiv:1901.07042): `mimic-cxr-2.0.0-{chexpert,split,metadata}.csv[.gz]`
beside `files/p10/p10000032/s50414267/<dicom_id>.jpg`; `validate` is val.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.cxr_table import (
    NO_FINDING,
    UNKNOWN_FOLLOW_UP,
    ImageFolder,
    Uncertain,
    header_of,
    label_vector,
    parse_age,
    parse_label,
    parse_sex,
    projection_of,
    read_rows,
    read_table,
)

FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
NIH_NAMES = {"Pleural Effusion": "Effusion"}
CHEXPERT_SPLITS = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}
MIMIC_SPLITS = {"train": "train", "validate": "val", "test": "test"}
MIMIC_TABLES = ("split", "chexpert", "metadata")

_NOT_A_FINDING = "Support Devices"
_LABEL_COLUMNS = {name: (name,) for name in (NO_FINDING, *FINDINGS)}
_CHEXPERT_OPTIONAL = {
    "sex": ("Sex",),
    "age": ("Age",),
    "projection": ("Frontal/Lateral",),
    "view": ("AP/PA",),
}
# Whatever folder stands before the split's (`CheXpert-v1.0-small/`) is the raw folder itself.
_CHEXPERT_PATH = re.compile(
    r"(?:.*/)?((?:train|valid|test)/(patient\d+)/study\d+/view\d+_(frontal|lateral)\.\w+)"
)
_MIMIC_IDS = {"subject": r"\d{8}", "study": r"\d{8}", "dicom": r"[0-9A-Za-z-]+"}
_MIMIC_KEYS = {"subject": ("subject_id",), "study": ("study_id",)}
_MIMIC_SUFFIXES = (".jpg", ".png", ".dcm")


def find_chexpert_tables(source: Path) -> list[Path]:
    """Return the folder's tables in CheXpert's layout; another `train.csv` has no column `Path`."""
    tables = [source / name for name in CHEXPERT_SPLITS]
    return [table for table in tables if table.is_file() and "Path" in header_of(table)]


def read_chexpert(source: Path, labels: tuple[str, ...], uncertain: Uncertain) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per line of the tables; see `cxr.read_radiographs`."""
    images = ImageFolder(source)
    for table in find_chexpert_tables(source):
        split = CHEXPERT_SPLITS[table.name]

        def read(cells: Mapping[str, str], split: str = split) -> RawRow:
            match = _CHEXPERT_PATH.fullmatch(cells["path"])
            if match is None:
                raise ValueError(
                    f"Path '{cells['path']}' is not like train/patient00001/study1/view1_frontal.jpg"
                )
            projection = cells["projection"].lower() or match[3]
            if projection not in ("frontal", "lateral"):
                raise ValueError(f"'{cells['projection']}' is neither Frontal nor Lateral; mend the row")
            return {
                "sample_id": match[1],
                "path": images.find(match[1]),
                "patient_id": match[2],
                "labels": _labels(cells, labels, uncertain),
                "view": cells["view"] or projection.upper(),
                "projection": projection,
                "sex": parse_sex(cells["sex"]),
                "age_years": parse_age("Age", cells["age"]),
                "follow_up": UNKNOWN_FOLLOW_UP,
                "split": split,
            }

        yield from read_rows(table, {"path": ("Path",), **_LABEL_COLUMNS}, _CHEXPERT_OPTIONAL, read)


def find_mimic_tables(source: Path) -> list[Path]:
    """Return the folder's tables in MIMIC-CXR-JPG's layout, packed or not."""
    return sorted(
        path for name in MIMIC_TABLES for path in source.glob(f"mimic-cxr-*-{name}.csv*") if path.is_file()
    )


def read_mimic(source: Path, labels: tuple[str, ...], uncertain: Uncertain) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per line of the split's table; see `cxr.read_radiographs`.

    A study that the labeller's table lacks has unknown labels; an image that the metadata lack, an unknown
    view.
    """
    tables = _mimic_tables(source)
    labels_of = _mimic_labels(tables["chexpert"], labels, uncertain)
    views = {
        cells["dicom"]: cells["view"]
        for _, cells in _complete(tables["metadata"], {"dicom": ("dicom_id",), "view": ("ViewPosition",)})
    }
    images, unknown = ImageFolder(source), label_vector({}, labels)

    def read(cells: Mapping[str, str]) -> RawRow:
        for name, pattern in _MIMIC_IDS.items():
            if not re.fullmatch(pattern, cells[name]):
                raise ValueError(f"{name}_id '{cells[name]}' is no identifier of MIMIC-CXR; mend the table")
        if cells["split"] not in MIMIC_SPLITS:
            raise ValueError(f"split '{cells['split']}' is none of {', '.join(MIMIC_SPLITS)}; mend the table")
        subject, study, dicom = (cells[name] for name in _MIMIC_IDS)
        relative = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}"
        view, known = views.get(dicom, ""), labels_of.get((subject, study), unknown)
        if isinstance(known, str):
            raise ValueError(known)
        return {
            "sample_id": dicom,
            "path": images.find(relative, _MIMIC_SUFFIXES),
            "patient_id": subject,
            "labels": known,
            "view": view,
            "projection": projection_of(view),
            "sex": "",
            "age_years": float("nan"),
            "follow_up": UNKNOWN_FOLLOW_UP,
            "split": MIMIC_SPLITS[cells["split"]],
        }

    columns = {"dicom": ("dicom_id",), **_MIMIC_KEYS, "split": ("split",)}
    yield from read_rows(tables["split"], columns, {}, read)


def _mimic_tables(source: Path) -> dict[str, Path]:
    """Return the one table of each kind."""
    found = find_mimic_tables(source)
    tables: dict[str, Path] = {}
    problems = []
    for name in MIMIC_TABLES:
        here = [table for table in found if f"-{name}.csv" in table.name]
        if len(here) == 1:
            tables[name] = here[0]
        else:
            names = f"{len(here)} ({', '.join(table.name for table in here)})" if here else "none"
            problems.append(f"'{source}' must hold exactly one mimic-cxr-*-{name}.csv, it holds {names}")
    if problems:
        raise InputError(*problems)
    return tables


def _mimic_labels(
    table: Path, labels: tuple[str, ...], uncertain: Uncertain
) -> dict[tuple[str, str], np.ndarray | str]:
    """Return each study's labels by (subject, study), or why they cannot be read."""
    labels_of: dict[tuple[str, str], np.ndarray | str] = {}
    for number, cells in _complete(table, {**_MIMIC_KEYS, **_LABEL_COLUMNS}):
        key = cells["subject"], cells["study"]
        try:
            labels_of[key] = _labels(cells, labels, uncertain)
        except ValueError as error:
            labels_of[key] = f"{table.name} row {number}: {error}"
    return labels_of


def _complete(table: Path, columns: dict[str, tuple[str, ...]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield a table's lines. Raises InputError for one that is too short."""
    for number, cells in read_table(table, columns, {}):
        try:
            yield number, {name: cells[name] for name in columns}
        except ValueError as error:
            raise InputError(f"{table} row {number}: {error}") from None


def _labels(cells: Mapping[str, str], labels: tuple[str, ...], uncertain: Uncertain) -> np.ndarray:
    """Return [K] float32; NaN for a finding that is not mentioned or that the labeller does not know."""
    values = {name: parse_label(name, cells[name], uncertain) for name in FINDINGS}
    if parse_label(NO_FINDING, cells[NO_FINDING], "ignore") == 1:
        values = {name: value if name == _NOT_A_FINDING else 0.0 for name, value in values.items()}
    return label_vector({NIH_NAMES.get(name, name): value for name, value in values.items()}, labels)
