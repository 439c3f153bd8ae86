"""The tiny task with its inputs stored as bytes, which a read stage unpacks; each unpacked row is counted."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from voxray.core.batch import Columns
from voxray.core.schema import BYTES, Column, Schema
from voxray.core.task import ReadStage
from voxray.testing.tiny import NUM_OUTPUTS, Tiny, TinyConfig, TinyModelConfig, tiny_rows


class PackedModelConfig(TinyModelConfig, frozen=True):
    """The tiny model, and where unpacked rows are counted."""

    calls: str = ""


class PackedConfig(TinyConfig, frozen=True):
    """Config of the packed task."""

    task: str = "voxray.testing.packed:Packed"
    model: PackedModelConfig = PackedModelConfig()


class Packed(Tiny):
    """The tiny task on packed rows."""

    Config = PackedConfig

    def schema(self) -> Schema:
        """Ids, packed inputs, targets."""
        columns = {
            "sample_id": Column("text"),
            "group": Column("text"),
            "packed": Column(BYTES),
            "y": Column("float32", (NUM_OUTPUTS,)),
        }
        return Schema(columns, group="group")

    def read_stages(self) -> list[ReadStage]:
        """Unpack."""
        config = cast(PackedConfig, self.config)
        return [ReadStage("unpack", partial(unpack, calls=config.model.calls))]


def packed_rows(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Return `tiny_rows` with `x` packed."""
    rows = tiny_rows(num_rows, seed)
    packed = np.empty(num_rows, dtype=object)
    packed[:] = [x.tobytes() for x in rows.pop("x")]
    return {**rows, "packed": packed}


def unpack(columns: Columns, calls: str) -> Columns:
    """Return the columns with `x` [B, 6]; add a byte per row to this process's file in `calls`."""
    with Path(calls, f"{os.getpid()}").open("ab") as file:
        file.write(b"." * len(columns["packed"]))
    made: Mapping[str, np.ndarray] = {name: values for name, values in columns.items() if name != "packed"}
    return {**made, "x": np.stack([np.frombuffer(data, np.float32) for data in columns["packed"]])}
