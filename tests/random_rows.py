"""Random rows of any task's schema, for tests that need its shapes and no meaning."""

from dataclasses import replace

import numpy as np

from voxray.config.overrides import parse_override
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.schema import BYTES, TEXT, Schema

# What no test may need, weights from a hub; and which columns rows have that only raw files tell.
OFFLINE = {
    "cxr_memory": ["model.pretrained=false"],
    "fmri_clip": [
        "data.prepare.format=parquet",
        "data.prepare.targets=[final, layer_4, layer_8, layer_12, sd_final]",
    ],
    # Sizes that the shipped patches divide, and a class for each random number.
    "hyperspectral": [
        "data.prepare.image_size=100",
        f"data.prepare.bands={list(range(15))}",
        "model.num_classes=256",
    ],
    "mindeye": ["data.prepare.format=parquet", "data.prepare.targets=[final, hidden]"],
    "brain_text": ["data.prepare.audio={tts: tones, tower: tiny}", "model.llm.source=tiny"],
}
SESSIONS = ("session0", "session1")  # in every split
# What a task must know of its training rows beside their shapes.
STATISTICS = {
    "brain_text": {
        "day": {"sessions": list(SESSIONS)},
        "text": {"words": ["text0", "text1"]},
        "neural": {"feature_mean": [127.5], "feature_std": [74.0]},
    }
}
# Columns of classes: how many a row has where it is free, and what all are below.
CLASSES = {"phonemes": (2, 41)}


def task_schema(name: str, free_size: int) -> Schema:
    """Return the resolved schema of a task's rows."""
    values = dict(parse_override(text) for text in OFFLINE[name])
    said = {".".join(path): node.plain() for path, node in values.items()}
    config = default_config(name, said, "what tests fix").config
    return resolved(task_data(name)(config).schema(), free_size)


def resolved(schema: Schema, free_size: int) -> Schema:
    """Return the schema with `free_size` for every size that only raw files tell, e.g. an image's side."""
    columns = {}
    for name, column in schema.columns.items():
        free = CLASSES[name][0] if name in CLASSES else free_size
        columns[name] = replace(column, shape=tuple(free if size is None else size for size in column.shape))
    return replace(schema, columns=columns)


def random_rows(schema: Schema, num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return columns of a resolved schema; those with label names are 0 or 1."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for name, column in schema.columns.items():
        shape = (num_rows, *column.shape)
        if name == "session" and column.dtype == TEXT:
            columns[name] = np.array([SESSIONS[i % len(SESSIONS)] for i in range(num_rows)], dtype=object)
        elif name in CLASSES:
            columns[name] = rng.integers(1, CLASSES[name][1], shape).astype(column.dtype)
        elif column.dtype == TEXT:
            columns[name] = np.array([f"{name}{seed}-{i}" for i in range(num_rows)], dtype=object)
        elif column.dtype == BYTES:
            columns[name] = np.array([b""] * num_rows, dtype=object)
        elif column.names:
            columns[name] = rng.integers(0, 2, shape).astype(column.dtype)
        else:
            columns[name] = rng.integers(0, 256, shape).astype(column.dtype)
    return columns
