"""The page of pictures that predictions became: what was shown beside what was made of it, a row each."""

from pathlib import Path

import numpy as np

from voxray.core.figures import Figure, Tile
from voxray.core.pictures import PicturedRow, Pictures
from voxray.report.html import write_report
from voxray.report.page import Block, Card, Part, Section, Text
from voxray.train.trained.pictures import png

MAX_SIDE_PX = 256  # larger pictures are shrunk on the page; the PNG files keep their size


def write_pictures_page(
    out: Path, task: str, predictions: Path, about: tuple[Card, ...], pictures: Pictures
) -> None:
    """Write one HTML page with the pictures of the file `predictions`; `about` are the cards on top.

    Raises InputError where it cannot be written.
    """
    blocks: list[Block] = [Text(f"{note[0].upper()}{note[1:]}.") for note in pictures.notes]
    blocks += [_figure(row) for row in pictures.rows]
    part = Part(
        kind="run",
        name=predictions.name,
        task=task,
        folder=str(predictions),
        status="predicted",
        tone="plain",
        about={},
        tags=(),
        cards=about,
        sections=[Section("Pictures", blocks)],
    )
    write_report(out, [part])


def _figure(row: PicturedRow) -> Figure:
    shown = [Tile(_small(row.truth.pixels_HWC), "Shown", row.truth.lines)] if row.truth else []
    made = [
        Tile(_small(picture.pixels_HWC), f"Made {number}" if len(row.made) > 1 else "Made", picture.lines)
        for number, picture in enumerate(row.made, 1)
    ]
    return Figure(row.title, row.sample_id, tiles=(*shown, *made))


def _small(pixels_HWC: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels_HWC)
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    return png(np.asarray(image))
