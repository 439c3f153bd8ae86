"""The PNG files of the pictures that predictions became."""

import io
import re
from pathlib import Path

import numpy as np

from voxray.core.pictures import Pictures
from voxray.train.trained.output import refuse_existing, whole


def pictures_folder(predictions: Path) -> Path:
    """Return where the pictures of a predictions file go: a folder beside it."""
    return predictions.with_name(f"{predictions.stem}_images")


def write_pictures(folder: Path, pictures: Pictures) -> int:
    """Write each generated picture, and the one that was shown where it is known, as PNG into `folder`, whole
    or not at all; return the number of generated ones.

    A file's name is the row's number, its sample id, and the picture's number or `truth`. Raises InputError
    where the folder exists or cannot be written.
    """
    refuse_existing(folder)
    num = 0
    with whole(folder) as partial:
        partial.mkdir()
        for number, row in enumerate(pictures.rows):
            name = f"{number:03d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', row.sample_id)}"
            for index, picture in enumerate(row.made):
                (partial / f"{name}_{index}.png").write_bytes(png(picture.pixels_HWC))
                num += 1
            if row.truth is not None:
                (partial / f"{name}_truth.png").write_bytes(png(row.truth.pixels_HWC))
    return num


def png(pixels_HWC: np.ndarray) -> bytes:
    """Encode uint8 RGB [H, W, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()
