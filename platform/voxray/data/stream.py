"""Batches through Ray Data: one read task gathers one window anywhere on the cluster, one block.

No consumer shuffles or re-batches, which is what makes Ray Data fast (FACTS.md section 1). The rows and their
order are those of `LocalStream`. A block has one row per batch: each column's bytes, their layout as JSON.
"""

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError, RaySystemError

from voxray.config.errors import RunError, VoxrayError
from voxray.core.batch import EpochRequest
from voxray.core.schema import BYTES, TEXT
from voxray.data.ahead import Reading
from voxray.data.buffers import Buffers
from voxray.data.local import LocalStream
from voxray.data.plan import EpochPlan, Window

WINDOWS_EARLY = 8  # starting a Dataset takes 0.3 … 0.5 s, a decoded window about 0.1 s
LAYOUT, FAULTS = "layout", "faults"


class RayStream(LocalStream):
    """The same batches, read by Ray Data tasks anywhere and delivered through the object store.

    The caller's process is connected to Ray.
    """

    def _reading(self, request: EpochRequest) -> Reading:
        return RayReading(self.plan(request))


class RayReading:
    """An epoch's windows through Ray Data; a thread starts the Dataset and waits for its first block."""

    num_ahead = WINDOWS_EARLY

    def __init__(self, plan: EpochPlan) -> None:
        """Keep the plan; no task is started."""
        self._plan, self._windows = plan, plan.windows()
        self._batches_left = sum(map(len, self._windows))
        self._first: Future[tuple[Iterator[pa.Table], pa.Table | None]] | None = None
        self._blocks: Iterator[pa.Table] = iter(())

    @property
    def left(self) -> int:
        """Windows that were not delivered whole."""
        return -(-self._batches_left // self._plan.batches_per_window)

    def begin(self, num: int) -> None:
        """Start the Dataset; how far it reads ahead is Ray Data's to say."""
        if self._first is None and self._windows and num > 0:
            starter = ThreadPoolExecutor(1, thread_name_prefix="voxray-stream")
            self._first = starter.submit(_started, self._plan, self._windows)
            starter.shutdown(wait=False)

    def __iter__(self) -> Iterator[Window]:
        """Yield the windows as their blocks come; a block may be part of one."""
        self.begin(1)
        if self._first is None:
            return
        try:
            self._blocks, block = self._first.result()
            while block is not None:
                for window in from_table(block):
                    self._batches_left -= len(window.batches)
                    yield window
                block = next(self._blocks, None)
        except RayError as error:
            raise _users_error(error) from error
        assert self._batches_left == 0, f"{self._batches_left} batches more were expected"

    def close(self) -> None:
        """End the Dataset's execution: its tasks are cancelled."""
        if self._first is not None:
            with contextlib.suppress(RayError):  # whoever asks for the batches is told
                _close(self._first.result()[0])


def _started(plan: EpochPlan, windows: list[range]) -> tuple[Iterator[pa.Table], pa.Table | None]:
    """Return the blocks of a new Dataset, and the first of them."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    stream = ray.data.read_datasource(WindowSource(plan, windows), override_num_blocks=len(windows))
    blocks = iter(stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
    return blocks, next(blocks, None)


def _close(blocks: Iterator[pa.Table]) -> None:
    if isinstance(blocks, Generator):
        blocks.close()


class WindowSource(Datasource):
    """One Ray Data read task per window; a task holds its range, the plan lies in the object store once."""

    def __init__(self, plan: EpochPlan, windows: list[range]) -> None:
        """Keep what each task needs: descriptors only, no rows."""
        super().__init__()
        self._plan, self._windows = ray.put(plan), windows

    def get_name(self) -> str:
        """Name the read tasks, as Ray's own state shows them."""
        return "VoxrayWindows"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown; windows are sized by `data.window_mb`."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return one task per window, in order."""
        return [
            ReadTask(
                partial(read_window, self._plan, window),
                BlockMetadata(num_rows=len(window), size_bytes=None, exec_stats=None),
            )
            for window in self._windows
        ]


def read_window(reference: "ray.ObjectRef[EpochPlan]", window: range) -> Iterable[pa.Table]:
    """Return a window as one Arrow table, a row per batch. Runs in a Ray Data task."""
    return [to_table(_plan(reference).gather(window, _memory()))]


@lru_cache(maxsize=2)
def _plan(reference: "ray.ObjectRef[EpochPlan]") -> EpochPlan:
    """Return a plan; a process that reads several windows keeps its open shards and spans."""
    try:
        return ray.get(reference)
    except RaySystemError as error:  # as it is, Ray Data would try the task again for ever
        raise RunError(
            f"a read task cannot import what the batches need ({error}); put the task's module where the "
            "workers find it"
        ) from None


@lru_cache(maxsize=1)
def _memory() -> Buffers:
    """Return this process's memory for windows; a window's is free once Ray has stored its block."""
    return Buffers()


def to_table(window: Window) -> pa.Table:
    """Return a window's batches as a table of one chunk; batches that lie side by side are not copied."""
    packed = [{name: _packed(values) for name, values in batch.items()} for batch in window.batches]
    layouts = [json.dumps({name: layout for name, (_, layout) in row.items()}) for row in packed]
    faults = [json.dumps(window.faults if row == 0 else ()) for row in range(len(packed))]
    columns = {name: _binary([row[name][0] for row in packed]) for name in packed[0]}
    return pa.table({LAYOUT: layouts, FAULTS: faults, **columns})


def from_table(table: pa.Table) -> Iterator[Window]:
    """Yield a window of one batch for each row of a table; arrays are views of the table's memory."""
    layouts, faults = table.column(LAYOUT).to_pylist(), table.column(FAULTS).to_pylist()
    columns = {name: _buffers(table.column(name)) for name in table.column_names}
    for row, (layout, fault) in enumerate(zip(layouts, faults, strict=True)):
        batch = {
            name: _unpacked(columns[name][row], described) for name, described in json.loads(layout).items()
        }
        yield Window([batch], tuple(json.loads(fault)))


def _packed(values: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a column's bytes and how they are laid out."""
    if values.dtype != object:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return data, {"dtype": values.dtype.str, "shape": values.shape}
    kind = BYTES if len(values) and isinstance(values[0], bytes) else TEXT
    pieces = [value if kind == BYTES else value.encode() for value in values]
    return np.frombuffer(b"".join(pieces), np.uint8), {
        "dtype": kind,
        "sizes": [len(piece) for piece in pieces],
    }


def _unpacked(data: pa.Buffer, layout: dict[str, Any]) -> np.ndarray:
    if layout["dtype"] not in (TEXT, BYTES):
        return np.frombuffer(data, layout["dtype"]).reshape(layout["shape"])
    out = np.empty(len(layout["sizes"]), dtype=object)
    start, view = 0, memoryview(data)
    for row, size in enumerate(layout["sizes"]):
        piece = view[start : start + size].tobytes()
        out[row] = piece if layout["dtype"] == BYTES else piece.decode()
        start += size
    return out


def _binary(pieces: list[np.ndarray]) -> pa.Array:
    """Return an Arrow array of binary values; pieces that follow one another in memory are not copied."""
    ends = np.cumsum([0, *(piece.size for piece in pieces)], dtype=np.int64)
    first = pieces[0].__array_interface__["data"][0]
    filled = [(piece, end) for piece, end in zip(pieces, ends.tolist(), strict=False) if piece.size]
    if all(piece.__array_interface__["data"][0] == first + end for piece, end in filled):
        buffer = pa.foreign_buffer(first, int(ends[-1]), base=pieces)
    else:
        buffer = pa.py_buffer(np.concatenate(pieces))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(pieces), [None, pa.py_buffer(ends), buffer]
    )


def _buffers(column: pa.ChunkedArray) -> list[pa.Buffer]:
    """Return each value of a binary column as a view: Arrow's scalars would be copies."""
    found: list[pa.Buffer] = []
    for chunk in column.chunks if pa.types.is_large_binary(column.type) else ():
        _, offsets, data = chunk.buffers()
        data = data or pa.py_buffer(b"")
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        found += [data.slice(start, end - start) for start, end in pairwise(ends)]
    return found


def _users_error(error: BaseException) -> BaseException:
    """Return the error of ours that a read task raised, where there is one in the chain."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, VoxrayError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
