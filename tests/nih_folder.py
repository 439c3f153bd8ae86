"""Writes small folders in the NIH layout, whole or broken on purpose."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

HEADER_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
HEADER_2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
TABLE = "Data_Entry_2017.csv"


def table_row(
    name: str, labels: str = "No Finding", patient: str | int = 1, visit: str | int = 0, age: str = "058Y"
) -> str:
    return f"{name},{labels},{visit},{patient},{age},M,PA,2682,2749,0.143,0.143,"


def write_table(
    folder: Path, rows: Iterable[str], header: str = HEADER_2017, encoding: str = "utf-8"
) -> Path:
    path = folder / TABLE
    path.write_bytes("\r\n".join([header, *rows, ""]).encode(encoding))
    return path


def write_image(path: Path, seed: int = 0, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_nih(folder: Path, num_patients: int = 10, visits: int = 2, side: int = 16) -> list[str]:
    """Write a whole folder; return its file names. Patient p has `Mass` on all images when p is even."""
    names = [f"{patient:08d}_{visit:03d}.png" for patient in range(num_patients) for visit in range(visits)]
    rows = []
    for i, name in enumerate(names):
        patient, visit = divmod(i, visits)
        write_image(folder / f"images_{1 + i % 2:03d}" / "images" / name, seed=i, side=side)
        rows.append(table_row(name, "No Finding" if patient % 2 else "Mass|Effusion", patient, visit))
    write_table(folder, rows)
    return names
