"""fMRI rows with CLIP targets: the columns, the raw layouts, the stages that read them, typed batches.

Synthetic raw files are made in `synth.py`.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.clip_tower import tower_embedder
from voxray.core.embedder import Embedder
from voxray.core.prepared_rows import Merge, PreparedRows
from voxray.core.randomness import key as random_key
from voxray.core.randomness import places_rows
from voxray.core.run_config import RunConfig
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import BadRow, MapStage, RawRow, ReadStage, SynthReport, TaskData
from voxray.data.formats.clip_targets import PREFIX
from voxray.data.formats.pictures import decode_column, read_picture, store_picture
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.tasks.fmri_clip import synth
from voxray.tasks.fmri_clip.config import Config
from voxray.tasks.fmri_clip.layouts import clip_columns, load_pattern, raw_columns, raw_rows
from voxray.tasks.fmri_clip.reliability import voxel_statistics
from voxray.tasks.fmri_clip.repeats import NUM_TRIALS, merge_of
from voxray.tasks.fmri_clip.targets import LABEL, LABEL_COLUMN, add_label

# Shape letters: B batch, R repeats, V voxels, D target width, H height, W width.
SPACE = "space"  # the statistic of x that holds a VoxelSpace
MIN_NORM = 1e-8  # DOMAINS S0.a: rows are divided by max(norm, 1e-8)


@dataclass(frozen=True)
class FmriClipBatch(Batch):
    """Patterns [B, V] and unit-length targets {final, layer_4, …: [B, D]}, as many as the dataset has.

    nsd_id and session are int64 [B], -1 where unknown; image is uint8 [B, 3, H, W] where it is stored. In a
    dataset of stacked repeats x_BRV has all trials of a row, num_trials_B says how many of the R there are,
    and x_BV is their mean, until `draw_repeat` puts one of them there.
    """

    x_BV: torch.Tensor
    targets: dict[str, torch.Tensor]
    nsd_id_B: torch.Tensor
    session_B: torch.Tensor
    image_BCHW: torch.Tensor | None
    stimulus_id: list[str]
    subject: list[str]
    label: list[str]
    x_BRV: torch.Tensor | None = None
    num_trials_B: torch.Tensor | None = None


class FmriClipData(TaskData):
    """NSD folders, BOLD with events, `.npz` patterns and MindEye's files → rows of one width.

    Which targets and pictures the raw files hold, only they tell: `schema` has these columns once `read_raw`
    has yielded a row. Those that `data.prepare.clip` makes it has always.
    """

    Config = Config
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes; no raw file is known yet."""
        self._raw_columns: dict[str, Column] = {}
        self._masks: set[str | None] = set()
        super().__init__(config, statistics, schema)

    def schema(self) -> Schema:
        """Ids, the pattern x [V], and what the raw files had: `clip_final` and other targets, `image`."""
        columns = {
            "sample_id": Column(TEXT),
            "stimulus_id": Column(TEXT),
            "nsd_id": Column("int64", unit="0 … 72,999, -1 none"),
            "subject": Column(TEXT),
            "session": Column("int32", unit="number of the session or run, -1 unknown"),
            "session_id": Column(TEXT),
            "label": Column(TEXT),
            "x": Column("float32", (None,), unit=self._unit()),
        }
        prepare = self.config.data.prepare
        if prepare.format == "raw":
            made = clip_columns(prepare)
        else:
            made = {f"{PREFIX}{name}": Column("float32", (None,)) for name in prepare.targets}
        return Schema(columns | self._raw_columns | made, group=prepare.group)

    def _unit(self) -> str:
        return "z within the session" if self.config.data.prepare.zscore else "as in the raw files"

    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Yield the rows of a folder in any of the layouts; see `layouts.raw_rows`.

        Raises InputError for what that refuses, and for pictures and targets that do not go together.
        """
        prepare = self.config.data.prepare
        self._raw_columns, self._masks = {}, set()
        labels: set[str] = set()
        is_first = True
        for row in raw_rows(source, prepare):
            if isinstance(row, BadRow):
                yield row
                continue
            if is_first:
                self._raw_columns, is_first = raw_columns(row, prepare), False
            labels.add(row["label"])
            self._masks.add(row["volumes"].mask if "volumes" in row else None)
            if "picture" in row or not (prepare.clip or "image" in self._raw_columns):
                yield row
            else:
                mend = "leave `clip` out" if prepare.clip else "set images=none"
                yield BadRow(
                    row["origin"], f"there is no picture of '{row['stimulus_id']}'; add it, or {mend}"
                )
        if LABEL in prepare.targets:
            unit = "1 for the stimulus' label"
            names = tuple(sorted(labels))
            self._raw_columns[LABEL_COLUMN] = Column("float32", (len(names),), unit=unit, names=names)

    def map_stages(self) -> list[MapStage]:
        """Read the pattern and its targets, then the picture if it is stored or a network takes it."""
        columns = {**self._raw_columns, **self.dataset_schema.columns}
        stages = [MapStage("pattern", load_pattern)]
        image, label = columns.get("image"), columns.get(LABEL_COLUMN)
        if label is not None and label.names:
            stages.append(MapStage("label", partial(add_label, labels=label.names)))
        if image is not None or self.config.data.prepare.clip:
            stages.append(MapStage("picture", read_picture))
        if image is not None:
            side, encoded = self.config.data.prepare.image_size, image.dtype == BYTES
            stages.append(MapStage("image", partial(store_picture, side=side, encoded=encoded)))
        return stages

    def embedders(self) -> list[Embedder]:
        """Return the CLIP towers of `data.prepare.clip`."""
        return [tower_embedder(tower) for tower in self.config.data.prepare.clip]

    def column_statistics(self, rows: PreparedRows) -> dict[str, dict[str, Any]]:
        """Return each voxel's reliability and ncsnr, if training stimuli repeat (see `reliability`), and
        where the voxels lie, if all rows have one mask.
        """
        measured = voxel_statistics(rows) if self.config.data.prepare.reliability else {}
        space = _common_space(self._masks)
        found = dict(measured) | ({} if space is None else {SPACE: space.plain()})
        return {"x": found} if found else {}

    def merge(self) -> Merge | None:
        """Return how trials of one stimulus become one row, if they do."""
        prepare = self.config.data.prepare
        return None if prepare.repeats == "trials" else merge_of(prepare.repeats, prepare.group)

    def read_stages(self) -> list[ReadStage]:
        """Decode pictures that are stored as PNG."""
        image = self.dataset_schema.columns.get("image")
        return [ReadStage("decode", decode_images)] if image is not None and image.dtype == BYTES else []

    def synth(self, out: Path, size: str, seed: int) -> SynthReport:
        """Write a synthetic subject: `.npz` files (tiny), NSD's folders with NIfTI (small) or HDF5 (full)."""
        return synth.synth(out, size, seed)

    def collate(self, columns: Columns) -> FmriClipBatch:
        """Turn columns [B, …] into tensors; targets get unit length."""
        names = [name for name in columns if name.startswith(PREFIX)]
        image = columns.get("image")
        x = as_tensor(columns["x"])
        num_trials_B = as_tensor(columns[NUM_TRIALS], torch.int64) if NUM_TRIALS in columns else None
        stacked = (x, num_trials_B) if num_trials_B is not None and x.ndim == 3 else None
        return FmriClipBatch(
            sample_id=columns["sample_id"].tolist(),
            group_id=columns[self.dataset_schema.group].tolist(),
            valid_B=as_tensor(columns["valid"], dtype=torch.bool),
            position_B=as_tensor(columns["position"]),
            x_BV=mean_repeat(*stacked) if stacked else x,
            targets={name.removeprefix(PREFIX): _unit_rows(columns[name]) for name in names},
            nsd_id_B=as_tensor(columns["nsd_id"], dtype=torch.int64),
            session_B=as_tensor(columns["session"], dtype=torch.int64),
            image_BCHW=None if image is None else as_tensor(image),
            stimulus_id=columns["stimulus_id"].tolist(),
            subject=columns["subject"].tolist(),
            label=columns["label"].tolist(),
            x_BRV=stacked[0] if stacked else None,
            num_trials_B=num_trials_B,
        )


def _common_space(masks: Set[str | None]) -> VoxelSpace | None:
    """Return where the voxels lie; None for rows without a mask's file, or with masks of several brains."""
    if not masks or None in masks:
        return None
    spaces = {VoxelSpace.of_mask(Path(mask)) for mask in masks if mask is not None}
    return spaces.pop() if len(spaces) == 1 else None


def draw_repeat(batch: FmriClipBatch, key: int) -> FmriClipBatch:
    """Return the batch with one of each row's trials as x_BV; itself where repeats are not stacked.

    Row i's choice depends on (key, position_B[i]) alone.
    """
    if batch.x_BRV is None or batch.num_trials_B is None:
        return batch
    drawn_B = places_rows(random_key(key, "repeat"), batch.position_B, batch.num_trials_B)
    row_B = torch.arange(len(batch), device=drawn_B.device)
    return replace(batch, x_BV=batch.x_BRV[row_B, drawn_B])


def mean_repeat(x_BRV: torch.Tensor, num_trials_B: torch.Tensor) -> torch.Tensor:
    """Return the mean of each row's trials, [B, V]; what stands after the last one (NaN) does not count."""
    is_there_BR = torch.arange(x_BRV.shape[1], device=x_BRV.device) < num_trials_B[:, None]
    sum_BV = torch.where(is_there_BR[..., None], x_BRV, 0).sum(dim=1)
    return sum_BV / num_trials_B.clamp(min=1)[:, None]


def decode_images(columns: Columns) -> Columns:
    """Return the columns with image uint8 [B, 3, side, side] instead of PNG bytes."""
    return {**columns, "image": decode_column(columns["image"])}


def _unit_rows(y: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(y), dim=-1, eps=MIN_NORM)
