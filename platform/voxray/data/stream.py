"""Batches through Ray Data: one read task gathers one window anywhere on the cluster and sends it as one
block.

No consumer shuffles or re-batches, which is what makes Ray Data fast (FACTS.md section 1). The rows and their
order are those of `LocalStream`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from voxray.core.batch import Columns, EpochRequest
from voxray.data.local import LocalStream, Window, gather, split_batches
from voxray.data.manifest import Manifest, ShardInfo


class RayStream(LocalStream):
    """The same batches, read by Ray Data tasks anywhere on the cluster and delivered through the object
    store.
    """

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch; the caller's process is connected to Ray."""
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        windows = list(self.windows(request))
        if not windows:
            return
        source = WindowSource(self.dataset, self.manifest, request.split, windows)
        stream = ray.data.read_datasource(source, override_num_blocks=len(windows))
        blocks = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        for window, block in zip(windows, blocks, strict=True):
            yield from split_batches(_from_table(block, self.manifest), window.sizes)


class WindowSource(Datasource):
    """One Ray Data read task per window."""

    def __init__(self, dataset: Path, manifest: Manifest, split: str, windows: list[Window]) -> None:
        """Keep what each task needs: descriptors only, no rows."""
        super().__init__()
        self._dataset, self._windows = dataset, windows
        self._shards = manifest.shards_of(split)

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
                partial(read_window, self._dataset, self._shards, window),
                BlockMetadata(num_rows=len(window.rows), size_bytes=None, exec_stats=None),
            )
            for window in self._windows
        ]


def read_window(dataset: Path, shards: tuple[ShardInfo, ...], window: Window) -> Iterable[pa.Table]:
    """Return a window's rows as one Arrow table, tensors as fixed-size lists."""
    return [_to_table(gather(dataset, shards, window))]


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
