"""CLIP towers whose embeddings of the pictures become target columns when raw files are prepared.

`clip_final` and `clip_layer_K` are those of the picture itself, `views_final` and so on [views, D] those of
augmented views of it; a tower's prefix stands between (`clip_sd_final`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from voxray.config.errors import InputError
from voxray.config.section import Section
from voxray.core.embedder import Embedder
from voxray.core.schema import Column

PREFIX, VIEWS = "clip_", "views_"  # of the columns' names: of a picture's targets, and of its views'
_CONFIG = "config.json"


@dataclass(frozen=True)
class ClipTower:
    """A CLIP vision tower by its name: the hub's id, the widths of its embedding and of its blocks."""

    model_id: str
    embedding_dim: int
    block_dim: int
    num_blocks: int


CLIPS = {
    "vit_b32": ClipTower("openai/clip-vit-base-patch32", 512, 768, 12),
    "vit_b16": ClipTower("openai/clip-vit-base-patch16", 512, 768, 12),
    "vit_l14": ClipTower("openai/clip-vit-large-patch14", 768, 1024, 24),
    "vit_h14": ClipTower("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1024, 1280, 32),
}


class ClipTargetConfig(Section, frozen=True):
    """Targets from one CLIP tower, computed once per picture when raw files are prepared: the columns
    `clip_final` and `clip_layer_K`, with the prefix between (`clip_sd_final`).
    """

    model: str = Field(
        default="vit_l14",
        description="vit_b32, vit_l14 …, a hub's id, or a folder (CLIPVisionModelWithProjection)",
    )
    revision: str = Field(default="main", description="of the hub's id")
    layers: tuple[int, ...] = Field(default=(), description="blocks, from 1, whose CLS token is a target too")
    prefix: str = Field(default="", pattern=r"^[a-z0-9]*$", description="tells several towers apart")

    @property
    def stem(self) -> str:
        """What the columns' names begin with: `clip_`, or `clip_<prefix>_`."""
        return f"{PREFIX}{self.prefix}_" if self.prefix else PREFIX

    @model_validator(mode="after")
    def _layers_are_blocks(self) -> Self:
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers: a block is named twice; name each once")
        num_blocks = CLIPS[self.model].num_blocks if self.model in CLIPS else None
        for layer in self.layers:
            if layer < 1 or (num_blocks is not None and layer > num_blocks):
                last = num_blocks or "its last"
                raise ValueError(f"layers: {self.model} has the blocks 1 to {last}, none is {layer}")
        return self


def check_stems(towers: Sequence[ClipTargetConfig]) -> None:
    """Raise ValueError where two towers make columns of one name."""
    stems = [tower.stem for tower in towers]
    if len(set(stems)) < len(stems):
        raise ValueError("clip: two towers make the same columns; give each a `prefix` of its own")


def tower_columns(tower: ClipTargetConfig) -> dict[str, Column]:
    """Return the columns that a tower makes; widths are None where only the network tells them."""
    known = CLIPS.get(tower.model)
    final, block = (known.embedding_dim, known.block_dim) if known else (None, None)
    columns = {f"{tower.stem}final": Column("float32", (final,), unit="CLIP embedding")}
    for layer in tower.layers:
        columns[f"{tower.stem}layer_{layer}"] = Column("float32", (block,), unit=f"CLS after block {layer}")
    return columns


def view_columns(tower: ClipTargetConfig, num_views: int) -> dict[str, Column]:
    """Return the columns that a tower makes of so many augmented views, [views, width] each."""
    return {
        VIEWS + name.removeprefix(PREFIX): replace(
            column, shape=(num_views, *column.shape), unit=f"{column.unit} of augmented views"
        )
        for name, column in tower_columns(tower).items()
    }


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


def views_embedder(tower: ClipTargetConfig, num_views: int, seed: int) -> Embedder:
    """Return the frozen network that makes the view columns of `pixels`; raises as `tower_embedder`."""
    own = tower_embedder(tower)
    return replace(
        own,
        factory="voxray.nn.clip_views:ClipViews",
        outputs=view_columns(tower, num_views),
        options={
            **own.options,
            "prefix": VIEWS + tower.stem.removeprefix(PREFIX),
            "num_views": num_views,
            "seed": seed,
        },
    )


def _check_layers(folder: Path, layers: Sequence[int]) -> None:
    try:
        said: Any = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
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
