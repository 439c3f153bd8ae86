"""Batches through Ray Data: one read task gathers one window anywhere on the cluster and sends it as one
block.

No consumer shuffles or re-batches, which is what makes Ray Data fast (FACTS.md section 1). The rows and their
order are those of `LocalStream`.
"""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from voxray.core.batch import Columns, EpochRequest
from voxray.data.local import EpochPlan, LocalStream, split_batches
from voxray.data.manifest import Manifest


class RayStream(LocalStream):
    """The same batches, read by Ray Data tasks anywhere and delivered through the object store."""

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch; the caller's process is connected to Ray."""
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        plan = self.plan(request)
        windows = plan.windows()
        if not windows:
            return
        stream = ray.data.read_datasource(WindowSource(plan, windows), override_num_blocks=len(windows))
        blocks = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        for window, block in zip(windows, blocks, strict=True):
            yield from split_batches(_from_table(block, self.manifest), plan.sizes(window))


class WindowSource(Datasource):
    """One Ray Data read task per window; a task holds its range, the plan lies in the object store once."""

    def __init__(self, plan: EpochPlan, windows: list[range]) -> None:
        """Keep what each task needs: descriptors only, no rows."""
        super().__init__()
        self._plan, self._windows = ray.put(plan), windows
        self._num_rows = [sum(plan.sizes(window)) for window in windows]

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
                BlockMetadata(num_rows=num_rows, size_bytes=None, exec_stats=None),
            )
            for window, num_rows in zip(self._windows, self._num_rows, strict=True)
        ]


def read_window(plan: "ray.ObjectRef[EpochPlan]", window: range) -> Iterable[pa.Table]:
    """Return a window's rows as one Arrow table, tensors as fixed-size lists."""
    return [_to_table(ray.get(plan).gather(window))]


def _to_table(columns: dict[str, np.ndarray]) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        array = pa.array(values.reshape(-1))
        width = int(np.prod(values.shape[1:]))
        arrays[name] = pa.FixedSizeListArray.from_arrays(array, width) if values.ndim > 1 else array
    return pa.table(arrays)


def _from_table(table: pa.Table, manifest: Manifest) -> dict[str, np.ndarray]:
    columns = {}
    for name in table.column_names:
        array = table.column(name).combine_chunks()
        shape = manifest.schema.columns[name].shape if name in manifest.schema.columns else ()
        values = array.flatten() if shape else array
        columns[name] = values.to_numpy(zero_copy_only=False).reshape(len(table), *shape)
    return columns
