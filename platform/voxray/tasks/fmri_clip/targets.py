"""Targets made when raw files are prepared: CLIP embeddings of the pictures, and labels as vectors."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.embedder import Embedder
from voxray.core.schema import Column
from voxray.core.task import RawRow
from voxray.tasks.fmri_clip.config import CLIPS, ClipTargetConfig

LABEL = "label"  # among `data.prepare.targets`: the stimulus' category
LABEL_COLUMN = "clip_label"
_CONFIG = "config.json"


def tower_columns(tower: ClipTargetConfig) -> dict[str, Column]:
    """Return the columns that a tower makes; widths are None where only the network tells them."""
    known = CLIPS.get(tower.model)
    final, block = (known.embedding_dim, known.block_dim) if known else (None, None)
    columns = {f"{tower.stem}final": Column("float32", (final,), unit="CLIP embedding")}
    for layer in tower.layers:
        columns[f"{tower.stem}layer_{layer}"] = Column("float32", (block,), unit=f"CLS after block {layer}")
    return columns


def tower_embedder(tower: ClipTargetConfig) -> Embedder:
    """Return the frozen network that makes them of `pixels`. Raises InputError for a block that a folder's
    tower does not have.
    """
    known = CLIPS.get(tower.model)
    folder = Path(tower.model)
    if known is None and folder.is_dir():
        _check_layers(folder, tower.layers)
    return Embedder(
        "voxray.nn.clip_vision:ClipVision",
        known.model_id if known else str(folder.absolute()) if folder.is_dir() else tower.model,
        ("pixels",),
        tower_columns(tower),
        revision="" if known is None and folder.is_dir() else tower.revision,
        options={"layers": ",".join(map(str, tower.layers)), "prefix": tower.stem},
    )


def _check_layers(folder: Path, layers: Sequence[int]) -> None:
    try:
        said = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        num_blocks = int(said.get("vision_config", said)["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"clip: '{folder}' holds no CLIP tower that can be read: its {_CONFIG} is missing or says no "
            "num_hidden_layers; name a folder that `save_pretrained` wrote"
        ) from error
    if beyond := [layer for layer in layers if layer > num_blocks]:
        raise InputError(
            f"clip: layers: '{folder}' has the blocks 1 to {num_blocks}, none is {beyond[0]}; leave it out"
        )


def add_label(row: RawRow, labels: Sequence[str]) -> RawRow:
    """Return the row with clip_label float32 [labels]: 1 at its own label, 0 elsewhere."""
    vector = np.zeros(len(labels), np.float32)
    vector[labels.index(row["label"])] = 1
    return row | {LABEL_COLUMN: vector}
