"""Brain-to-text rows: schema, raw rows of three layouts, loading, typed batches.

**Splits.** T15 declares train, val and test inside every session: the task is to decode new sentences on
days that were trained on, and published scores hold for these very trials. A session is therefore no group.
Neither is a block (val and test share blocks) nor a sentence (test trials have none). By default a group is a
trial, and what the release declares is kept; `prepare.split_by` makes groups of something larger, where the
raw data leaves the splits open. `session` and `day` are columns, for day layers and batches by session.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.config.errors import InputError
from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.embedder import Embedder
from voxray.core.prepared_rows import PreparedRows
from voxray.core.schema import TEXT, Column, Schema
from voxray.core.task import BadRow, BadRowError, MapStage, RawRow, SynthReport, TaskData
from voxray.data.formats.nwb import read_trials as read_nwb_trials
from voxray.data.formats.nwb_trial import read_trial as load_nwb_trial
from voxray.data.formats.t15 import PHONEMES, load_t15_transcript, load_t15_trial, read_t15
from voxray.data.formats.trials_npz import load_trial, read_trials
from voxray.tasks.brain_text.audio import audio_columns, audio_embedders
from voxray.tasks.brain_text.config import BrainTextPrepareConfig, Config
from voxray.tasks.brain_text.synth import synth
from voxray.tasks.brain_text.units import vocabulary

# Shape letters: B batch, T time bins, F features (electrodes × kinds, or units), L phonemes.

UNKNOWN = -1
_MEASURED_ROWS = 2000  # of the training rows; deviations are then known to some per mille
_SPLIT_BY = ("trial", "block_num", "text", "session")


@dataclass(frozen=True)
class BrainTextBatch(Batch):
    """Trials padded with zeros: neural float32 [B, T, F], phonemes int64 [B, L], their lengths int64 [B].

    Phonemes are indices into `data.formats.t15.PHONEMES`; a row without a transcript has none and an empty
    text, and so has one that only pads the batch. `day_B` is the session's index by date; in a batch of the
    task, its place among the sessions that were trained on.

    audio [B, A, D] are the audio targets where the dataset has them. A task that needs them adds the text's
    tokens for the language model, and the units that CTC spells, int64 [B, L] with lengths [B].
    """

    neural_BTF: torch.Tensor
    num_time_steps_B: torch.Tensor
    phonemes_BL: torch.Tensor
    num_phonemes_B: torch.Tensor
    day_B: torch.Tensor
    session: list[str]
    text: list[str]
    audio_BAD: torch.Tensor | None = None
    num_audio_B: torch.Tensor | None = None
    tokens_BL: torch.Tensor | None = None
    num_tokens_B: torch.Tensor | None = None
    units_BL: torch.Tensor | None = None
    num_units_B: torch.Tensor | None = None


class BrainTextData(TaskData):
    """Trials of neural activity in time bins, with what was said."""

    Config = Config
    config: Config

    def schema(self) -> Schema:
        """One row per trial; the number of features is the raw files'."""
        return Schema(
            {
                "sample_id": Column(TEXT),
                "group": Column(TEXT),
                "session": Column(TEXT),
                "day": Column("int32", unit="index of the session by date"),
                "block_num": Column("int32", unit="-1 unknown"),
                "neural": Column(
                    "float32",
                    (None, None),
                    unit="as recorded, per bin: features or spike counts",
                    ragged=True,
                ),
                "phonemes": Column("int32", (None,), unit=f"1 … {len(PHONEMES) - 1} of T15", ragged=True),
                "text": Column(TEXT),
                **audio_columns(self.config.data.prepare.audio),
            },
            group="group",
        )

    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Yield the trials of a T15 folder, or of one with an `.npz` or NWB file per session.

        Raises InputError when the folder holds none of them or several, or as their readers do.
        """
        return _READERS[_layout_of(source)](source, self.config.data.prepare)

    def map_stages(self) -> list[MapStage]:
        """Load a trial's arrays."""
        return [MapStage("load", load)]

    def embedders(self) -> list[Embedder]:
        """Return the synthesizer and the audio tower of `data.prepare.audio`."""
        return audio_embedders(self.config.data.prepare.audio)

    def column_statistics(self, rows: PreparedRows) -> dict[str, dict[str, Any]]:
        """Return the sessions that training rows come from, by date, the words of their texts, and each
        feature's moments.
        """
        day_of = dict(zip(rows.column("session").tolist(), rows.column("day").tolist(), strict=True))
        words = vocabulary(map(str, rows.column("text").tolist()))
        return {
            "day": {"sessions": sorted(day_of, key=day_of.__getitem__)},
            "text": {"words": words},
            "neural": feature_moments(rows),
        }

    def synth(self, out: Path, size: str, seed: int) -> SynthReport:
        """Write a synthetic recording in the T15 layout, of `prepare.num_features`; see `synth.synth`."""
        return synth(out, size, seed, self.config.data.prepare.num_features)

    def collate(self, columns: Columns) -> BrainTextBatch:
        """Turn padded columns into tensors."""
        valid_B = as_tensor(columns["valid"], dtype=torch.bool)
        text = [str(text) if valid else "" for text, valid in zip(columns["text"], valid_B, strict=True)]
        return BrainTextBatch(
            sample_id=columns["sample_id"].tolist(),
            group_id=columns["group"].tolist(),
            valid_B=valid_B,
            position_B=as_tensor(columns["position"]),
            neural_BTF=as_tensor(columns["neural"]),
            num_time_steps_B=as_tensor(columns["neural.length"]),
            phonemes_BL=as_tensor(columns["phonemes"], dtype=torch.int64),
            num_phonemes_B=as_tensor(columns["phonemes.length"]) * valid_B,
            day_B=as_tensor(columns["day"], dtype=torch.int64),
            session=columns["session"].tolist(),
            text=text,
            audio_BAD=as_tensor(columns["audio"]) if "audio" in columns else None,
            num_audio_B=as_tensor(columns["audio.length"]) * valid_B if "audio" in columns else None,
        )


def load(row: RawRow) -> RawRow:
    """Return the row with neural float32 [T, F], phonemes int32 [L] and text. Raises BadRowError."""
    if "arrays" in row:
        counts = load_trial(row)["spike_counts"]
        return row | {"neural": counts.astype(np.float32), "phonemes": np.zeros(0, np.int32)}
    loaded = load_nwb_trial(row) if "signals" in row else load_t15_trial(row)
    return row | {
        "neural": loaded["features"],
        "phonemes": loaded["phonemes"],
        "text": loaded["transcript"],
    }


def feature_moments(rows: PreparedRows) -> dict[str, list[float]]:
    """Return each feature's mean and standard deviation over the bins of up to 2,000 rows, evenly spread."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_MEASURED_ROWS, len(rows))).round().astype(int))
    count, total_F, squares_F = 0, np.zeros(1), np.zeros(1)
    for row in chosen.tolist():
        trial_TF = np.asarray(rows.take([row], ["neural"])["neural"][0], np.float64)
        count, total_F = count + len(trial_TF), total_F + trial_TF.sum(0)
        squares_F = squares_F + (trial_TF**2).sum(0)
    mean_F = total_F / max(count, 1)
    std_F = np.sqrt(np.maximum(squares_F / max(count, 1) - mean_F**2, 0))
    return {"feature_mean": mean_F.tolist(), "feature_std": std_F.tolist()}


# --- raw rows
# ------------------------------------------------------------------------------------------------------------


def _layout_of(source: Path) -> str:
    patterns = {"t15": "**/data_*.hdf5", "npz": "*.npz", "nwb": "**/*.nwb"}
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the sessions")
    held = [layout for layout, pattern in patterns.items() if any(source.glob(pattern))]
    if len(held) > 1:
        raise InputError(f"'{source}' holds files of several layouts, {' and '.join(held)}; keep one there")
    if not held:
        raise InputError(
            f"'{source}' holds no trials; name a folder of T15 sessions, t15.YYYY.MM.DD/data_train.hdf5, or "
            "one with .npz or .nwb files"
        )
    return held[0]


def _read_t15(source: Path, prepare: BrainTextPrepareConfig) -> Iterator[RawRow | BadRow]:
    split_by = prepare.split_by
    if split_by not in _SPLIT_BY:
        raise InputError(
            f"data.prepare.split_by: '{split_by}' is nothing that T15 trials have; choose one of "
            f"{', '.join(_SPLIT_BY)}"
        )
    for row in read_t15(source, prepare.num_features):
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            text = load_t15_transcript(row) if split_by == "text" else ""
        except BadRowError as error:
            yield BadRow(row["origin"], str(error))
        else:
            yield row | {"group": _group(row | {"text": text}, split_by)}


def _read_npz(source: Path, prepare: BrainTextPrepareConfig) -> Iterator[RawRow | BadRow]:
    text, split_by = prepare.text, prepare.split_by
    required = {text, *_own_column(split_by), *(("block_num",) if split_by == "block_num" else ())}
    days: dict[str, int] = {}
    for row in read_trials(source, sorted(required), optional=sorted({"block_num", "split"} - required)):
        if isinstance(row, BadRow):
            yield row
            continue
        named = row | {"text": str(row[text]), "block_num": int(row.get("block_num", UNKNOWN))}
        group = str(row[split_by]) if _own_column(split_by) else _group(named, split_by)
        yield named | {"group": group, "day": days.setdefault(row["session"], len(days))}


def _read_nwb(source: Path, prepare: BrainTextPrepareConfig) -> Iterator[RawRow | BadRow]:
    split_by = prepare.split_by
    columns = _own_column(split_by)
    for row in read_nwb_trials(source, prepare.bin_s, prepare.text, columns, prepare.signals):
        if isinstance(row, BadRow):
            yield row
            continue
        if split_by == "block_num" and row["block_num"] == UNKNOWN:
            raise InputError(
                f"{row['origin']}: the trials table has no column 'block_num' to split by; add it"
            )
        group = str(row[split_by]) if columns else _group(row | {"text": row["transcript"]}, split_by)
        yield row | {"group": group}


_READERS: Mapping[str, Callable[[Path, BrainTextPrepareConfig], Iterator[RawRow | BadRow]]] = {
    "t15": _read_t15,
    "npz": _read_npz,
    "nwb": _read_nwb,
}


def _own_column(split_by: str) -> tuple[str, ...]:
    """Return the raw data's own array or column that makes the groups, if it is one."""
    return () if split_by in _SPLIT_BY else (split_by,)


def _group(row: RawRow, split_by: str) -> str:
    """Return the name of the trial's group. Blocks are numbered anew in every session."""
    if split_by == "session":
        return row["session"]
    if split_by == "block_num":
        return f"{row['session']}/block {row['block_num']}"
    words = " ".join(row["text"].casefold().split()) if split_by == "text" else ""
    return words or row["sample_id"]
