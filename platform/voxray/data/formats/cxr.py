"""A folder of chest X-rays in any known layout → raw rows: NIH, CheXpert, MIMIC-CXR-JPG, or `labels.csv`.

The layout is told by its tables. `nih.py`, `chexpert.py` and `label_table.py` say what each looks like.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.chexpert import find_chexpert_tables, find_mimic_tables, read_chexpert, read_mimic
from voxray.data.formats.cxr_table import Uncertain, Views
from voxray.data.formats.label_table import find_label_tables, read_label_table
from voxray.data.formats.nih import find_nih_tables, read_nih, read_unlabelled_nih
from voxray.data.formats.radiograph import median_short_side
from voxray.data.formats.rows import one_split_per_group

MAX_AUTO_IMAGE_SIZE = 224

_FINDERS: dict[str, Callable[[Path], list[Path]]] = {
    "NIH": find_nih_tables,
    "CheXpert": find_chexpert_tables,
    "MIMIC-CXR-JPG": find_mimic_tables,
}
_TABLES = (
    "Data_Entry*.csv (NIH), train.csv or valid.csv with a column Path (CheXpert), mimic-cxr-*-chexpert.csv "
    "(MIMIC-CXR-JPG), labels.csv with the columns Image and PatientId"
)


def read_radiographs(
    source: Path,
    labels: Sequence[str],
    image_size: int | Literal["auto"] = "auto",
    uncertain: Uncertain = "ignore",
    views: Views = "all",
    unlabelled: bool = False,
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per image that the tables list.

    A row has sample_id, patient_id, path, image_size, labels [K] float32 in the order of `labels` (1, 0,
    NaN = unknown), view (as the table writes it), projection (frontal, lateral, or '' when unknown), sex (M,
    F, '' when unknown), age_years (NaN when unknown), follow_up (-1 when unknown), and split where the
    collection declares one.

    Labels marked uncertain become unknown, 0 or 1 by `uncertain`; rows of other `views` are left out;
    `unlabelled` reads images named as NIH's without any table. `auto` is the median short side of up to 256
    images, at most 224, so that no typical image is enlarged. Raises InputError when there is no table or
    several, a column is missing, or a patient is in two declared splits.
    """
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the tables and the images")
    layout = "unlabelled" if unlabelled else _layout(source)
    every = list(_read(source, layout, tuple(labels), uncertain))
    rows = [row for row in every if isinstance(row, BadRow) or views in ("all", row["projection"])]
    if every and not rows:
        raise InputError(
            f"'{source}' ({layout}) lists no image with views={views}; set views=all, or add rows"
        )
    good = [row for row in rows if not isinstance(row, BadRow)]
    tables = sorted({row["origin"].partition(" row ")[0] for row in good if "split" in row})
    one_split_per_group(good, "patient_id", ", ".join(tables), "patient", "mend the tables or lists")
    if image_size == "auto":
        median = median_short_side([row["path"] for row in good])
        image_size = min(MAX_AUTO_IMAGE_SIZE, median or MAX_AUTO_IMAGE_SIZE)
    for row in rows:
        yield row if isinstance(row, BadRow) else row | {"image_size": image_size}


def _read(
    source: Path, layout: str, labels: tuple[str, ...], uncertain: Uncertain
) -> Iterator[RawRow | BadRow]:
    match layout:
        case "NIH":
            return read_nih(source, labels)
        case "CheXpert":
            return read_chexpert(source, labels, uncertain)
        case "MIMIC-CXR-JPG":
            return read_mimic(source, labels, uncertain)
        case "unlabelled":
            return read_unlabelled_nih(source, labels)
        case _:
            return read_label_table(source, labels, uncertain)


def _layout(source: Path) -> str:
    """Return the layout by its tables; `labels.csv` counts where there is no other."""
    found = {name: tables for name, find in _FINDERS.items() if (tables := find(source))}
    if len(found) > 1:
        tables = "; ".join(f"{name}: {tables[0].name}" for name, tables in found.items())
        raise InputError(f"'{source}' holds the tables of several collections ({tables}); keep one's")
    if found:
        return next(iter(found))
    if find_label_tables(source):
        return "labels.csv"
    below = [folder for folder in sorted(source.iterdir()) if folder.is_dir() and _has_table(folder)]
    hint = f"is '{below[0]}' meant?" if below else "for NIH's images alone set unlabelled=true"
    raise InputError(f"'{source}' holds none of the known tables: {_TABLES}; {hint}")


def _has_table(folder: Path) -> bool:
    return any(find(folder) for find in (*_FINDERS.values(), find_label_tables))
