"""MindEye's rows, one per picture and subject with all its repeats: columns, reading, typed batches.

Synthetic raw files are made in `synth.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.config.errors import InputError
from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.clip_tower import VIEWS, tower_columns, tower_embedder, view_columns, views_embedder
from voxray.core.embedder import Embedder
from voxray.core.randomness import key as random_key
from voxray.core.randomness import places_rows
from voxray.core.run_config import RunConfig
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import BadRow, BadRowError, MapStage, RawRow, ReadStage, SynthReport, TaskData
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import PREFIX, find_targets
from voxray.data.formats.mindeye import TAR_NAME
from voxray.data.formats.pictures import decode_column
from voxray.tasks.mindeye import synth
from voxray.tasks.mindeye.config import Config
from voxray.tasks.mindeye.layouts import load, raw_columns, raw_rows
from voxray.tasks.mindeye.low_level_config import LATENT, vae_columns, vae_embedders

HIDDEN = "hidden"  # the target of several tokens: CLIP's last layer before its projection

# Shape letters: B batch, R repeats, K views, V voxels, D target width, H height, W width.


@dataclass(frozen=True)
class MindEyeBatch(Batch):
    """Voxels [B, R, V] of all repeats, pictures uint8 [B, 3, H, W] where stored. `voxels_BV` is what a model
    sees: the repeats' mean, of an augmented batch one repeat of each row.

    targets {final: [B, D], …} are as the raw files or the tower have them, not normalised, of an augmented
    batch those of one of the picture's views, where `views` {final: [B, K, D], …} has them; num_unique [B]
    says how many of the repeats are different trials, nsd_id [B] which of NSD's 73,000 pictures was seen. An
    augmented batch has the `key` of its noise, and each row's share of its own voxels where voxels are mixed.
    latent [B, C, h, w] is the picture's, where the dataset has an autoencoder's.
    """

    voxels_BRV: torch.Tensor
    num_unique_B: torch.Tensor
    nsd_id_B: torch.Tensor
    targets: dict[str, torch.Tensor]
    image_BCHW: torch.Tensor | None
    subject: list[str]
    voxels_BV: torch.Tensor
    mixco_share_B: torch.Tensor | None = None
    key: int = 0
    views: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    latent_BChw: torch.Tensor | None = None


class MindEyeData(TaskData):
    """MindEye's WebDataset tars → rows of one width.

    Which target columns there are, only the raw files tell: `schema` has them once `read_raw` has begun.
    """

    Config = Config
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes; no raw file is known yet."""
        self._target_columns: dict[str, Column] = {}
        self._num_voxels = 0  # of the widest subject
        super().__init__(config, statistics, schema)

    def schema(self) -> Schema:
        """Ids, voxels [R, V], the picture, and the embeddings of `clip.npz` where the folder has it."""
        columns = {
            "sample_id": Column(TEXT),
            "stimulus_id": Column(TEXT),
            "nsd_id": Column("int64", unit="0 … 72,999"),
            "subject": Column(TEXT),
            "trials": Column("int64", (None,), unit="number of the trial of each repeat"),
            "num_unique": Column("int32", unit="repeats that are different trials"),
            "voxels": Column("float32", (None, None), unit="beta, z within the session"),
        }
        if self.config.data.prepare.images == "encoded":
            columns["image"] = Column(BYTES, unit="JPEG or PNG, RGB")
        elif self.config.data.prepare.images == "pixels":
            columns["image"] = Column("uint8", (3, None, None), unit="RGB 0-255")
        if self.config.data.prepare.format != "raw":  # of `.npz` files the first row tells
            for name in self.config.data.prepare.targets:
                shape = (None, None) if name == HIDDEN else (None,)
                columns[PREFIX + name] = Column("float32", shape)
        return Schema(columns | self._target_columns | self._tower_columns(), group="stimulus_id")

    def _tower_columns(self) -> dict[str, Column]:
        """Return the columns that the towers of `data.prepare.clip` make, and the autoencoder."""
        columns = vae_columns(self.config.data.prepare.vae)
        for tower in self.config.data.prepare.clip:
            columns |= tower_columns(tower)
            if self.config.data.prepare.views:
                columns |= view_columns(tower, self.config.data.prepare.views)
        return columns

    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Yield a row per picture and subject; see `layouts.raw_rows`.

        Raises InputError for a subject that is not there, subjects with different numbers of voxels, targets
        that both `clip.npz` and a tower make, pictures that are wanted and not there, and what `raw_rows`
        refuses.
        """
        prepare = self.config.data.prepare
        targets = find_targets(source)
        self._target_columns = targets.columns() if targets else {}
        if both := sorted(self._target_columns.keys() & self._tower_columns().keys()):
            raise InputError(
                f"'{source / TARGETS}' holds the target '{both[0]}', and `clip` makes one of that name; "
                f"give the tower a `prefix`, or move {TARGETS} away"
            )
        width: dict[str, int] = {}
        seen: set[str] = set()
        for row in raw_rows(source, prepare):
            if isinstance(row, BadRow):
                yield row
                continue
            if not seen:
                self._target_columns = self._target_columns | raw_columns(row, prepare)
            seen.add(row["subject"])
            if prepare.subjects and row["subject"] not in prepare.subjects:
                continue
            width.setdefault(row["subject"], row["num_voxels"])
            if not prepare.pad_voxels:
                _check_same_width(width)
            self._num_voxels = max(width.values())
            yield targets.add_to(row) if targets else row
        if missing := sorted(set(prepare.subjects) - seen):
            raise InputError(f"'{source}' has no subject '{missing[0]}'; it has: {', '.join(sorted(seen))}")

    def reads_file(self, name: str) -> bool:
        """Whether it is a tar of a subject that is taken, or holds the targets."""
        tar, subjects = TAR_NAME.fullmatch(Path(name).name), self.config.data.prepare.subjects
        return name == TARGETS if tar is None else not subjects or tar[2] in subjects

    def map_stages(self) -> list[MapStage]:
        """Read voxels, picture and targets."""
        prepare = self.config.data.prepare
        num_voxels = self.dataset_schema.columns["voxels"].shape[-1] or self._num_voxels
        stage = partial(_load, images=prepare.images, num_voxels=num_voxels if prepare.pad_voxels else 0)
        return [MapStage("load", stage)]

    def embedders(self) -> list[Embedder]:
        """Return the towers of `data.prepare.clip`, of the pictures and of their augmented views, and the
        autoencoder.
        """
        prepare = self.config.data.prepare
        towers = [*vae_embedders(prepare.vae), *(tower_embedder(tower) for tower in prepare.clip)]
        if not prepare.views:
            return towers
        return [*towers, *(views_embedder(tower, prepare.views, prepare.seed) for tower in prepare.clip)]

    def read_stages(self) -> list[ReadStage]:
        """Decode pictures that are stored encoded, to `data.image_size`, where that is given."""
        image, side = self.dataset_schema.columns.get("image"), self.config.data.image_size
        if image is None or image.dtype != BYTES or side is None:
            return []
        return [ReadStage("decode", partial(decode_images, side=side))]

    def synth(self, out: Path, size: str, seed: int) -> SynthReport:
        """Write a synthetic subject in MindEye's tars."""
        return synth.synth(out, size, seed)

    def collate(self, columns: Columns) -> MindEyeBatch:
        """Turn columns [B, …] into tensors that own their memory."""
        names = [name for name in columns if name.startswith(PREFIX)]
        image, voxels_BRV = columns.get("image"), as_tensor(columns["voxels"])
        return MindEyeBatch(
            sample_id=columns["sample_id"].tolist(),
            group_id=columns["stimulus_id"].tolist(),
            valid_B=as_tensor(columns["valid"], dtype=torch.bool),
            position_B=as_tensor(columns["position"]),
            voxels_BRV=voxels_BRV,
            voxels_BV=voxels_BRV.mean(1),
            num_unique_B=as_tensor(columns["num_unique"], dtype=torch.int64),
            nsd_id_B=as_tensor(columns["nsd_id"], dtype=torch.int64),
            targets={name.removeprefix(PREFIX): as_tensor(columns[name]) for name in names},
            image_BCHW=None if image is None or image.dtype == object else as_tensor(image),
            subject=columns["subject"].tolist(),
            latent_BChw=as_tensor(columns[LATENT]) if LATENT in columns else None,
            views={
                name.removeprefix(VIEWS): as_tensor(columns[name])
                for name in columns
                if name.startswith(VIEWS) and self.config.data.augmented_views
            },
        )


def draw_view(batch: MindEyeBatch, key: int) -> MindEyeBatch:
    """Return the batch with the targets of one of each picture's views, of all targets the same one; itself
    where it has none. Row i's choice depends on (key, position_B[i]) alone.
    """
    if not batch.views:
        return batch
    num_views = next(iter(batch.views.values())).shape[1]
    num_B = torch.full_like(batch.position_B, num_views)
    drawn_B = places_rows(random_key(key, "view"), batch.position_B, num_B)
    row_B = torch.arange(len(batch), device=drawn_B.device)
    seen = {name: views[row_B, drawn_B] for name, views in batch.views.items()}
    return replace(batch, targets=batch.targets | seen)


def decode_images(columns: Columns, side: int) -> Columns:
    """Return the columns with image uint8 [B, 3, side, side] instead of encoded bytes."""
    return {**columns, "image": decode_column(columns["image"], side)}


def _check_same_width(width: dict[str, int]) -> None:
    if len(set(width.values())) > 1:
        counts = ", ".join(f"{subject} has {num}" for subject, num in width.items())
        raise InputError(
            f"subjects differ in their voxels: {counts}; a dataset has one width: choose with "
            f"subjects=[{next(iter(width))}], or keep them all with pad_voxels=true, for model.subjects"
        )


def _load(row: RawRow, images: str, num_voxels: int = 0) -> RawRow:
    """Return the row with its arrays, voxels padded to `num_voxels`, and the picture as `pixels` for the
    towers. Raises BadRowError, naming tar and sample.
    """
    loaded = load(row)
    if len(row["trials"]) != row["num_repeats"]:
        raise BadRowError(
            f"{row['origin']}: 'trial.npy' names {len(row['trials'])} trials, but there are "
            f"{row['num_repeats']} repeats; pack the sample again"
        )
    loaded |= {"trials": np.array(row["trials"], np.int64), "pixels": loaded.get("image")}
    num_lacking = max(0, num_voxels - loaded["voxels"].shape[1])
    loaded["voxels"] = np.pad(loaded["voxels"], ((0, 0), (0, num_lacking)))
    if images == "encoded":
        return loaded | {"image": loaded["encoded"]}
    if images == "none":
        return loaded
    return loaded | {"image": np.ascontiguousarray(loaded["image"].transpose(2, 0, 1))}
