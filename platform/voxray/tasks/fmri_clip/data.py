"""fMRI rows with CLIP targets: the columns, the raw layouts, the stages that read them, typed batches.

Synthetic raw files are made in `synth.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.config.errors import InputError
from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.run_config import RunConfig
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import BadRow, MapStage, RawRow, ReadStage, SynthReport, TaskData
from voxray.data.formats.bold_events import EVENTS, EventOptions, read_bold_events
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import PREFIX, load_targets
from voxray.data.formats.fmri_npz import load_fmri, read_fmri_npz
from voxray.data.formats.folder import find_files
from voxray.data.formats.nsd import MASK, STIMULUS_TABLE, NsdOptions, read_nsd
from voxray.data.formats.pictures import decode_column, store_picture
from voxray.data.formats.volumes import load_volumes
from voxray.tasks.fmri_clip import synth
from voxray.tasks.fmri_clip.config import Config, FmriClipPrepareConfig

# Shape letters: B batch, V voxels, D target width, H height, W width.
MIN_NORM = 1e-8  # DOMAINS S0.a: rows are divided by max(norm, 1e-8)
NO_NUMBER = -1  # of a session or an nsd_id that the raw files do not have


@dataclass(frozen=True)
class FmriClipBatch(Batch):
    """Patterns [B, V] and unit-length targets {final, layer_4, …: [B, D]}, as many as the dataset has.

    nsd_id and session are int64 [B], -1 where unknown; image is uint8 [B, 3, H, W] where it is stored.
    """

    x_BV: torch.Tensor
    targets: dict[str, torch.Tensor]
    nsd_id_B: torch.Tensor
    session_B: torch.Tensor
    image_BCHW: torch.Tensor | None
    stimulus_id: list[str]
    subject: list[str]
    label: list[str]


class FmriClipData(TaskData):
    """NSD folders, BOLD with events, and `.npz` patterns → rows of one width.

    Which target and image columns there are, only the raw files tell: `schema` has them once `read_raw` has
    yielded a row.
    """

    Config = Config
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes; no raw file is known yet."""
        self._raw_columns: dict[str, Column] = {}
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
        return Schema(columns | self._raw_columns, group=self.config.data.prepare.group)

    def _unit(self) -> str:
        return "z within the session" if self.config.data.prepare.zscore else "as in the raw files"

    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Yield the rows of a folder in any of the layouts; see `nsd`, `bold_events` and `fmri_npz`.

        Raises InputError for an unknown or ambiguous layout, a subject that is not there, rows of different
        widths, and what the layout's reader refuses.
        """
        prepare = self.config.data.prepare
        subjects: set[str] = set()
        first: RawRow | None = None
        for row in _READERS[_layout(source, prepare)](source, prepare):
            if isinstance(row, BadRow):
                yield row
                continue
            subjects.add(row["subject"])
            if prepare.subjects and row["subject"] not in prepare.subjects:
                continue
            if first is None:
                first = row
                self._raw_columns = _raw_columns(row, prepare)
            _check_same_width(first, row)
            yield _completed(row, prepare, wants_image="image" in self._raw_columns)
        if missing := sorted(set(prepare.subjects) - subjects):
            raise InputError(
                f"'{source}' has no subject '{missing[0]}'; it has: {', '.join(sorted(subjects))}"
            )

    def map_stages(self) -> list[MapStage]:
        """Read the pattern and its targets, then the picture if it is stored."""
        stages = [MapStage("pattern", _load_pattern)]
        image = self.dataset_schema.columns.get("image") or self._raw_columns.get("image")
        if image is not None:
            side, encoded = self.config.data.prepare.image_size, image.dtype == BYTES
            stages.append(MapStage("picture", partial(store_picture, side=side, encoded=encoded)))
        return stages

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
        return FmriClipBatch(
            sample_id=columns["sample_id"].tolist(),
            group_id=columns[self.dataset_schema.group].tolist(),
            valid_B=as_tensor(columns["valid"], dtype=torch.bool),
            position_B=as_tensor(columns["position"]),
            x_BV=as_tensor(columns["x"]),
            targets={name.removeprefix(PREFIX): _unit_rows(columns[name]) for name in names},
            nsd_id_B=as_tensor(columns["nsd_id"], dtype=torch.int64),
            session_B=as_tensor(columns["session"], dtype=torch.int64),
            image_BCHW=None if image is None else as_tensor(image),
            stimulus_id=columns["stimulus_id"].tolist(),
            subject=columns["subject"].tolist(),
            label=columns["label"].tolist(),
        )


def decode_images(columns: Columns) -> Columns:
    """Return the columns with image uint8 [B, 3, side, side] instead of PNG bytes."""
    return {**columns, "image": decode_column(columns["image"])}


def _unit_rows(y: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(y), dim=-1, eps=MIN_NORM)


# --- raw layouts
# -------------------------------------------------------------------------------------------------------

Rows = Iterator[RawRow | BadRow]


def _read_nsd(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    options = NsdOptions(
        subjects=prepare.subjects,
        betas=prepare.files or NsdOptions.betas,
        mask=prepare.mask or MASK,
        zscore=prepare.zscore,
        shared1000_to_test=(prepare.test_split, prepare.group) == ("shared1000", "stimulus_id"),
    )
    return read_nsd(source, options)


def _read_events(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    options = EventOptions(
        bold=prepare.files or EventOptions.bold,
        mask=prepare.mask or EventOptions.mask,
        zscore=prepare.zscore,
        delay_s=prepare.hrf_delay_s,
    )
    return read_bold_events(source, options)


def _read_npz(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    return read_fmri_npz(source, prepare.files or "*.npz")


_READERS: dict[str, Callable[[Path, FmriClipPrepareConfig], Rows]] = {
    "nsd": _read_nsd,
    "events": _read_events,
    "npz": _read_npz,
}


def _layout(source: Path, prepare: FmriClipPrepareConfig) -> str:
    """Return the layout that is asked for, or the one that the folder is in."""
    if prepare.layout != "auto":
        return prepare.layout
    if find_files(source, STIMULUS_TABLE):
        return "nsd"
    has_events = bool(find_files(source, f"*{EVENTS}"))
    has_npz = any(path.name != TARGETS for path in source.glob("*.npz"))
    if has_events and has_npz:
        raise InputError(
            f"'{source}' holds both *{EVENTS} and .npz files; choose with layout=events or layout=npz"
        )
    if not has_events and not has_npz:
        raise InputError(
            f"'{source}' holds none of {STIMULUS_TABLE} (NSD), *{EVENTS} (BOLD) and *.npz (patterns); name "
            "the folder that holds them"
        )
    return "events" if has_events else "npz"


def _raw_columns(row: RawRow, prepare: FmriClipPrepareConfig) -> dict[str, Column]:
    """Return the columns that the first row shows to be there."""
    columns = {
        name: Column("float32", tuple(array.shape[1:]), unit="CLIP embedding")
        for name, array in row.get("targets", {}).items()
    }
    how = prepare.images
    if how == "auto":
        how = "encoded" if "picture" in row and not columns else "none"
    if how != "none" and "picture" not in row:
        raise InputError(f"{row['origin']}: there are no pictures to store; set images=none")
    side = prepare.image_size
    if how == "encoded":
        columns["image"] = Column(BYTES, unit=f"PNG, RGB, {side} × {side}")
    elif how == "pixels":
        columns["image"] = Column("uint8", (3, side, side), unit="RGB 0-255")
    return columns


def _check_same_width(first: RawRow, row: RawRow) -> None:
    if row["num_voxels"] != first["num_voxels"]:
        counts = f"{first['subject']} has {first['num_voxels']} voxels, {row['subject']} {row['num_voxels']}"
        if first["subject"] == row["subject"]:
            raise InputError(
                f"{row['origin']}: {row['num_voxels']} voxels, {first['origin']} has "
                f"{first['num_voxels']}; choose one kind with `files`"
            )
        raise InputError(f"{counts}; a dataset has one width: choose with subjects={first['subject']}")


def _completed(row: RawRow, prepare: FmriClipPrepareConfig, wants_image: bool) -> RawRow | BadRow:
    """Return the row with every column that needs no file; BadRow without its session or picture."""
    if prepare.group == "session_id" and "session_id" not in row:
        return BadRow(row["origin"], "it belongs to no session; set group=stimulus_id")
    if wants_image and "picture" not in row:
        return BadRow(
            row["origin"], f"there is no picture of '{row['stimulus_id']}'; add it, or set images=none"
        )
    absent = {"nsd_id": NO_NUMBER, "session": NO_NUMBER, "session_id": "", "label": ""}
    return absent | row


def _load_pattern(row: RawRow) -> RawRow:
    return load_targets(load_volumes(row)) if "volumes" in row else load_fmri(row)
