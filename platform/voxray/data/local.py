"""Batches gathered in this process by background threads, from shards mapped where they lie. No Ray."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.batch import BatchRules, Columns, EpochRequest
from voxray.core.task import ReadStage
from voxray.data.ahead import Ahead, Reading, log
from voxray.data.buffers import Buffers
from voxray.data.config import DataConfig
from voxray.data.decoded import DecodedShards, decoded_shards
from voxray.data.index import ShardIndex
from voxray.data.manifest import Manifest, load_manifest
from voxray.data.order import EpochOrder
from voxray.data.plan import EpochPlan, Window
from voxray.data.selection import Selection
from voxray.data.shard_cache import ShardCache
from voxray.data.store import Store

LARGE_BATCH_MB = 24.0
GATHERED_MB, MAX_GATHERED = 32.0, 64  # of batches that are gathered at a time
GATHER_THREADS, MAX_STAGE_THREADS = 2, 8


class LocalStream:
    """A worker's batches, gathered here. `on_fault` is told of each damaged shard that was set aside."""

    def __init__(
        self,
        dataset: str | Path,
        config: DataConfig | None = None,
        rank: int = 0,
        world_size: int = 1,
        stages: Sequence[ReadStage] = (),
        cache: ShardCache | None = None,
        on_fault: Callable[[str], None] = log.warning,
    ) -> None:
        """Open the dataset's manifest. Raises InputError when there is no dataset."""
        self.store = Store.of(dataset)
        self.manifest: Manifest = load_manifest(self.store)
        self._config = config or DataConfig()
        self._rank, self._world_size = rank, world_size
        self._stages, self._cache, self._on_fault = tuple(stages), cache, on_fault
        self._buffers = Buffers(_has_gpu(), for_threads=True)
        self._told: set[str] = set()
        self._open: dict[str, dict[str, Any]] = {}  # by split
        self._prepared: tuple[EpochRequest, Reading] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._selections: dict[tuple[str, BatchRules], Selection] = {}

    def num_rows(self, split: str) -> int:
        """Rows of the split over all workers; 0 where the dataset has no such split."""
        return self.manifest.num_rows(split) if split in self.manifest.splits else 0

    def num_batches(self, request: EpochRequest) -> int:
        """Return the global batches of the whole epoch that is asked for."""
        return self.order(request).num_batches

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch, from `request.start_batch` on.

        With `request.followed` the first windows of the next epoch are read while the last ones of this epoch
        are used, and until they are asked for; another shuffled request, or `close`, gives them up.
        """
        reading = self._taken(request)
        following = replace(request, epoch=request.epoch + 1, start_batch=0) if request.followed else None
        try:
            for window in reading:
                if following is not None:
                    self._prepare(following, reading.num_ahead - reading.left)
                yield from self._told_of_faults(window)
        finally:
            reading.close()
        if following is not None:
            self._prepare(following, reading.num_ahead + 1)

    def close(self) -> None:
        """Give up what was read ahead; no thread of this stream is left. It can be used again."""
        if self._prepared is not None:
            self._prepared[1].close()
            self._prepared = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _prepare(self, request: EpochRequest, num: int) -> None:
        """Begin to read the first `num` windows of the epoch that is asked for next."""
        if num <= 0:
            return
        key = replace(request, followed=False)
        if self._prepared is None or self._prepared[0] != key:
            if self._prepared is not None:
                self._prepared[1].close()
            self._prepared = key, self._reading(request)
        self._prepared[1].begin(num)

    def _taken(self, request: EpochRequest) -> Reading:
        """Return what was prepared, if it is what is asked for now. An evaluation leaves it for later."""
        if self._prepared is not None and request.shuffle:
            (key, reading), self._prepared = self._prepared, None
            if key == replace(request, followed=False):
                return reading
            reading.close()
        return self._reading(request)

    def _reading(self, request: EpochRequest) -> Reading:
        """Return the windows of an epoch; none is read yet."""
        plan = replace(self.plan(request), batches_per_window=self._batches_at_once(request))
        windows, buffers, order = plan.windows(), self._buffers, plan.order
        threads = self._threads()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="voxray-read")
        num_ahead = threads  # so none waits for the caller
        if self._batch_mb(request) > LARGE_BATCH_MB and not self._stages:
            # One at a time, by all threads together: several of them would take much memory.
            plan, num_ahead = replace(plan, copy_threads=threads), 0

        def gather(index: int) -> Window:
            if plan.cache is not None:
                span = order.span_of(windows[index].start)
                if index == 0 or order.span_of(windows[index - 1].start) != span:
                    plan.fetch_span(span + 1)
            return plan.gather(windows[index], buffers)

        return Ahead(gather, len(windows), num_ahead, self._pool)

    def num_chosen(self, split: str, rules: BatchRules) -> int:
        """Return the rows of a split that filters and limit leave; 0 where there is no such split."""
        if self.num_rows(split) == 0:
            return 0
        return self.order(EpochRequest(split, 1, seed=0, shuffle=False, rules=rules)).selection.num_rows

    def chosen_column(self, split: str, rules: BatchRules, name: str) -> np.ndarray:
        """Return a column of the index, by its name, for the rows that filters and limit leave."""
        selection = self.order(EpochRequest(split, 1, seed=0, shuffle=False, rules=rules)).selection
        return selection.column(name)

    def read_split(self, split: str, rules: BatchRules | None = None) -> dict[str, np.ndarray]:
        """Return the rows of a split that filters and limit leave, in the order of the shards.

        For splits that fit in memory. Ragged columns are padded to the longest row.
        """
        kept = replace(rules or BatchRules(), bucket_by="", group_by="", with_replacement=False, weights="")
        return self._plan(EpochRequest(split, 1, seed=0, shuffle=False, rules=kept), None).read_all()

    def order(self, request: EpochRequest) -> EpochOrder:
        """Return the order of an epoch. Raises InputError for a rule that the dataset does not allow."""
        key = request.split, request.rules
        shards = self.manifest.shards_of(request.split)
        if key not in self._selections:
            self._selections[key] = Selection(
                [shard.rows for shard in shards],
                request.rules,
                ShardIndex(self.store, self.manifest, shards),
                {n: column.names for n, column in self.manifest.schema.columns.items() if column.names},
            )
        span_rows = max(1, int(self._config.shuffle_mb / self._row_mb(request.split)))
        return EpochOrder(self._selections[key], request, span_rows)

    def plan(self, request: EpochRequest) -> EpochPlan:
        """Return this worker's plan of an epoch, sized by `data.window_mb` and `data.shuffle_mb`.

        Rows that are decoded come a batch at a time: a window of many would be seconds of work.
        """
        return self._plan(request, self._decoded)

    @cached_property
    def _decoded(self) -> DecodedShards | None:
        return decoded_shards(self.store, self.manifest, self._stages, self._config, self._cache)

    def _plan(self, request: EpochRequest, decoded: DecodedShards | None) -> EpochPlan:
        rows_per_batch = -(-request.batch_size // self._world_size)
        # What stays open keeps an evicted copy of a remote shard on the disk, so that is kept for one epoch.
        is_kept = self._cache is None and decoded is None
        window_rows = int(self._config.window_mb / self._row_mb(request.split))
        return EpochPlan(
            self.store,
            decoded.columns if decoded else self.manifest.schema.columns,
            self.manifest.shards_of(request.split),
            self.order(request),
            self._rank,
            self._world_size,
            batches_per_window=1 if self._stages else max(1, window_rows // rows_per_batch),
            on_error=self._config.on_error,
            cache=self._cache,
            stages=() if decoded else self._stages,
            decoded=decoded,
            _here=self._open.setdefault(request.split, {}) if is_kept else {},
        )

    def _batch_mb(self, request: EpochRequest) -> float:
        return -(-request.batch_size // self._world_size) * self._row_mb(request.split)

    def _batches_at_once(self, request: EpochRequest) -> int:
        """Small batches are gathered several at a time, which costs less for each; decoded ones are not."""
        batches = int(GATHERED_MB / self._batch_mb(request))
        return 1 if self._stages else max(1, min(MAX_GATHERED, batches))

    def _row_mb(self, split: str) -> float:
        shards = self.manifest.shards_of(split)
        return sum(shard.bytes for shard in shards) / sum(shard.rows for shard in shards) / 1e6

    def _threads(self) -> int:
        """Gathering fills the memory's bandwidth with two threads; decoding wants the worker's cores."""
        if self._config.read_threads != "auto":
            return self._config.read_threads
        return min(MAX_STAGE_THREADS if self._stages else GATHER_THREADS, len(os.sched_getaffinity(0)))

    def _told_of_faults(self, window: Window) -> Iterator[Columns]:
        for fault in window.faults:
            if fault not in self._told:
                self._told.add(fault)
                self._on_fault(f"{fault}; its rows are left out")
        yield from window.batches


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
