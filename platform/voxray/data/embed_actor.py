"""One actor of a frozen network: it loads the network once, then computes chunk after chunk and stores it.

Every forward pass has `batch_size` rows, a short one is filled up with its last row, so that the kernels, and
with them the stored bits, are the same in whatever company an input comes.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from voxray.config.errors import InputError
from voxray.core.embedder import Embedder, FrozenNetwork
from voxray.core.registry import import_object
from voxray.core.schema import BYTES, TEXT, Column
from voxray.core.task import BadRowError, MapStage, RawRow
from voxray.data.decode import apply_stages
from voxray.data.embed_cache import EmbedCache

STORE_EVERY_S = 30.0  # work that a killed actor loses at most, beside the batch that it is in
STORE_BYTES = 64 << 20  # outputs that an actor holds before it stores them
LOAD_THREADS = min(4, os.cpu_count() or 1)  # make the next batch's inputs while the network runs

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Job:
    """What an actor needs: the network, how rows become inputs, where outputs go, and its chunks of rows."""

    embedder: Embedder
    stages: Sequence[MapStage]
    folder: str
    device: str
    batch_size: int
    tasks: Sequence[Any]  # references to lists of (key, raw row)


class NetworkActor:
    """A worker of the pool, called by Ray Data with the numbers of chunks."""

    def __init__(self, job: Job) -> None:
        """Keep the job; the network is loaded in the first call, where an error can be told."""
        self._job = job
        self._cache = EmbedCache(Path(job.folder), job.embedder.outputs)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Compute the chunks of these numbers."""
        told = [self._chunk(number) for number in batch["id"].tolist()]
        return {name: [one[name] for one in told] for name in ("id", "result")}

    def _chunk(self, number: int) -> dict[str, Any]:
        import ray

        try:
            self._compute(ray.get(self._job.tasks[number]))
        except (InputError, BadRowError) as error:
            return result(number, problems=str(error).splitlines())
        return result(number)

    def _compute(self, rows: Sequence[tuple[str, RawRow]]) -> None:
        """Compute and store; what an earlier attempt at this chunk stored is not computed again."""
        missing = set(self._cache.missing(key for key, _ in rows))
        batches = chunks([(key, row) for key, row in rows if key in missing], self._job.batch_size)
        pending = _Pending(self._cache)
        for keys, inputs in self._loaded(batches):
            pending.add(keys, run_padded(self._network, self._job.embedder, inputs, self._job.batch_size))
        pending.store()

    def _loaded(
        self, batches: Sequence[Sequence[tuple[str, RawRow]]]
    ) -> Iterator[tuple[list[str], list[RawRow]]]:
        """Yield each batch's keys and input rows, made by threads one batch ahead."""
        ahead: tuple[list[str], list[Future[RawRow]]] | None = None
        with ThreadPoolExecutor(LOAD_THREADS) as pool:
            for batch in batches:
                futures = [pool.submit(apply_stages, self._job.stages, row) for _, row in batch]
                if ahead is not None:
                    yield ahead[0], [future.result() for future in ahead[1]]
                ahead = [key for key, _ in batch], futures
            if ahead is not None:
                yield ahead[0], [future.result() for future in ahead[1]]

    @cached_property
    def _network(self) -> FrozenNetwork:
        embedder = self._job.embedder
        make = import_object(embedder.factory)
        try:
            return make(
                model_id=embedder.model_id,
                revision=embedder.revision,
                dtype=embedder.dtype,
                device=self._job.device,
                **embedder.options,
            )
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"the frozen network '{embedder.model_id}' cannot be loaded by {embedder.factory}: {reason}; "
                "check its name and revision, and that it was downloaded"
            ) from error


class _Pending:
    """Outputs that were computed and not yet stored: bounded in bytes and in age."""

    def __init__(self, cache: EmbedCache) -> None:
        self._cache = cache
        self._clear()

    def _clear(self) -> None:
        self._keys: list[str] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in self._cache.outputs}
        self._num_bytes = 0
        self._since_s = time.monotonic()

    def add(self, keys: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
        """Take a batch's outputs; store all when there is enough."""
        self._keys += keys
        for name, values in columns.items():
            self._columns[name] += list(values)
            self._num_bytes += sum(_num_bytes(value) for value in values)
        if self._num_bytes >= STORE_BYTES or time.monotonic() - self._since_s >= STORE_EVERY_S:
            self.store()

    def store(self) -> None:
        """Store what there is as one part. Raises InputError when it cannot be written."""
        try:
            self._cache.put(self._keys, self._columns)
        except OSError as error:
            raise InputError(
                f"the cache '{self._cache.folder}' cannot be written: {error.strerror or error}; make room, "
                "or set data.embed.cache_dir to a folder on another disk"
            ) from error
        self._clear()


def _num_bytes(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else np.asarray(value).nbytes


# --- one forward pass
# -----------------------------------------------------------------------------------------------------------


def run_padded(
    network: FrozenNetwork, embedder: Embedder, rows: Sequence[RawRow], batch_size: int
) -> dict[str, Sequence[Any]]:
    """Return the checked outputs of at most `batch_size` rows, computed in a batch of exactly that many.

    Raises InputError when an output is missing, has another dtype or shape than declared, or is not finite.
    """
    filled = [*rows, *[rows[-1]] * (batch_size - len(rows))]
    columns = {name: _stacked([row[name] for row in filled]) for name in embedder.inputs}
    made = network(columns)
    if absent := sorted(set(embedder.outputs) - set(made)):
        raise InputError(f"{embedder.factory} gives no '{absent[0]}'; it gives: {', '.join(sorted(made))}")
    out: dict[str, Sequence[Any]] = {}
    for name, column in embedder.outputs.items():
        values = made[name]
        if len(values) != batch_size:
            raise InputError(
                f"{embedder.factory} gives {len(values)} rows of '{name}' for {batch_size} inputs"
            )
        out[name] = values[: len(rows)]
        for row, value in zip(rows, out[name], strict=True):
            if problem := _problem(value, column):
                raise InputError(
                    f"{embedder.factory} gives a '{name}' {problem}, for {row.get('origin', 'an input')}"
                )
    return out


def _stacked(values: list[Any]) -> np.ndarray:
    """Return inputs as one array [B, *shape], or as objects [B] where shapes differ; text and bytes too."""
    if not isinstance(values[0], str | bytes) and len({np.shape(value) for value in values}) == 1:
        return np.stack(values)
    out = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        out[place] = value
    return out


def _problem(value: Any, column: Column) -> str:
    """Say what is wrong with one row's output; "" for nothing."""
    if not column.is_tensor:
        wanted = {TEXT: str, BYTES: bytes}[column.dtype]
        return "" if isinstance(value, wanted) else f"of type {type(value).__name__}, not {wanted.__name__}"
    if not isinstance(value, np.ndarray | np.generic):
        return f"of type {type(value).__name__}, not a numpy array"
    if value.dtype != np.dtype(column.dtype):
        return f"of dtype {value.dtype}, not {column.dtype}"
    sizes = zip(value.shape, column.shape, strict=False)
    if value.ndim != len(column.shape) or any(want not in (None, size) for size, want in sizes):
        return f"of shape {value.shape}, not {column.shape}"
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return "that is not finite (the network's dtype may be too narrow)"
    return ""


def chunks(values: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    """Cut a sequence into pieces of `size`, the last one shorter."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def result(number: int, **values: Any) -> dict[str, Any]:
    """Return what a task or actor tells the driver of one chunk: values that JSON holds."""
    return {"id": number, "result": json.dumps(values)}
