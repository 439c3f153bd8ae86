"""Trials of a brain-to-text dataset as arrays, and the task on them with tiny networks."""

from typing import Any

import numpy as np

from voxray.core.schema import Column, Schema
from voxray.data.formats.t15 import PHONEMES
from voxray.tasks.brain_text.config import Config
from voxray.tasks.brain_text.task import BrainText
from voxray.tasks.brain_text.units import vocabulary

NUM_FEATURES, AUDIO_DIM = 6, 8
SESSIONS = ("t15.2023.08.11", "t15.2023.08.13")
SENTENCES = ("I will go around.", "Hello there", "bring the water", "no", "Good, thanks!")
SMALL = {"n_units": 16, "n_layers": 2, "rnn_dropout": 0.0, "input_dropout": 0.0}
TINY_LLM = {"llm": {"source": "tiny"}}


def trial_rows(
    num_rows: int, seed: int, shortest: int = 60, is_labelled: bool = True
) -> dict[str, np.ndarray]:
    """Return columns as a source gives them: ragged ones padded with zeros, and their lengths."""
    rng = np.random.default_rng(seed)
    bins = rng.integers(shortest, 100, num_rows)
    phonemes = rng.integers(1, 8, num_rows) * is_labelled
    tokens = rng.integers(3, 12, num_rows) * is_labelled
    names = [f"{seed}/trial_{i:04d}" for i in range(num_rows)]
    day = np.arange(num_rows) % len(SESSIONS)
    texts = [SENTENCES[i % len(SENTENCES)] if is_labelled else "" for i in range(num_rows)]
    return {
        "sample_id": np.array(names, dtype=object),
        "group": np.array(names, dtype=object),
        "session": np.array([SESSIONS[i] for i in day], dtype=object),
        "day": day.astype(np.int32),
        "block_num": np.ones(num_rows, np.int32),
        "text": np.array(texts, dtype=object),
        **_ragged("neural", bins, lambda n: rng.standard_normal((n, NUM_FEATURES)), np.float32),
        **_ragged("phonemes", phonemes, lambda n: rng.integers(1, len(PHONEMES), n), np.int32),
        **_ragged("audio", tokens, lambda n: rng.standard_normal((n, AUDIO_DIM)), np.float32),
    }


def _ragged(name: str, lengths: np.ndarray, make: Any, dtype: Any) -> dict[str, np.ndarray]:
    pieces = [np.asarray(make(int(n)), dtype) for n in lengths]
    padded = np.zeros((len(pieces), max(1, int(lengths.max())), *pieces[0].shape[1:]), dtype)
    for row, piece in zip(padded, pieces, strict=True):
        row[: len(piece)] = piece
    return {name: padded, f"{name}.length": lengths.astype(np.int64)}


def brain_task(values: dict[str, Any]) -> BrainText:
    """Return the task of a config's values, for the trials above."""
    columns = {
        "sample_id": Column("text"),
        "group": Column("text"),
        "session": Column("text"),
        "neural": Column("float32", (None, NUM_FEATURES), ragged=True),
        "audio": Column("float32", (None, AUDIO_DIM), ragged=True),
    }
    statistics = {"day": {"sessions": list(SESSIONS)}, "text": {"words": vocabulary(SENTENCES)}}
    return BrainText(Config.model_validate(values), statistics, Schema(columns, group="group"))
