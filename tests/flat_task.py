"""A task with a column of every kind, for the tests of flat datasets; Ray workers import it by name,
from the repository's root, where pytest is started."""

from collections.abc import Iterator
from pathlib import Path

from voxray.core.batch import Batch, Columns
from voxray.core.run_config import RunConfig
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import RawRow, TaskData

SCHEMA = Schema(
    {
        "sample_id": Column(TEXT),
        "patient_id": Column(TEXT),
        "window": Column("float32", (2, 3)),
        "trace": Column("float32", (None, None), ragged=True),
        "bins": Column("int32", (None,), ragged=True),
        "image": Column(BYTES),
        "age": Column("float32"),
        "visit": Column("int32"),
        "labels": Column("float32", (2,), names=("Mass", "Edema")),
        "text": Column(TEXT),
    },
    group="patient_id",
)


class FlatConfig(RunConfig, frozen=True):
    """Config of the task."""

    task: str = "tests.flat_task:FlatTask"


class FlatTask(TaskData):
    """Rows of SCHEMA; it has no raw format of its own."""

    Config = FlatConfig

    def schema(self) -> Schema:
        return SCHEMA

    def read_raw(self, source: Path) -> Iterator[RawRow]:
        raise AssertionError("a flat dataset is not read by the task")

    def collate(self, columns: Columns) -> Batch:
        raise AssertionError("no batch is made here")
