"""Random rows of any task's schema, for tests that need its shapes and no meaning."""

from dataclasses import replace

import numpy as np

from voxray.config.overrides import parse_override
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.schema import TEXT, Schema

# What no test may need, weights from a hub; and which columns rows have that only raw files tell.
OFFLINE = {
    "cxr_memory": ["model.pretrained=false"],
    "fmri_clip": [
        "data.prepare.format=parquet",
        "data.prepare.targets=[final, layer_4, layer_8, layer_12, sd_final]",
    ],
}


def task_schema(name: str, free_size: int) -> Schema:
    """Return the resolved schema of a task's rows."""
    values = dict(parse_override(text) for text in OFFLINE[name])
    said = {".".join(path): node.plain() for path, node in values.items()}
    config = default_config(name, said, "what tests fix").config
    return resolved(task_data(name)(config).schema(), free_size)


def resolved(schema: Schema, free_size: int) -> Schema:
    """Return the schema with `free_size` for every size that only raw files tell, e.g. an image's side."""
    columns = {
        name: replace(column, shape=tuple(free_size if size is None else size for size in column.shape))
        for name, column in schema.columns.items()
    }
    return replace(schema, columns=columns)


def random_rows(schema: Schema, num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return columns of a resolved schema; those with label names are 0 or 1."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for name, column in schema.columns.items():
        shape = (num_rows, *column.shape)
        if column.dtype == TEXT:
            columns[name] = np.array([f"{name}{seed}-{i}" for i in range(num_rows)], dtype=object)
        elif column.names:
            columns[name] = rng.integers(0, 2, shape).astype(column.dtype)
        else:
            columns[name] = rng.integers(0, 256, shape).astype(column.dtype)
    return columns
