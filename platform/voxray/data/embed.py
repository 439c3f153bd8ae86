"""Columns that frozen networks make: computed by a Ray Data actor pool, kept in a cache, joined to the rows.

First Ray tasks make every row's inputs and hash them; then actors compute what the cache lacks, each distinct
input once, and store it as they go, so a killed run goes on where it was; then the tasks that write shards
take the columns from the cache. Row data never passes the driver.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import Timeout
from platformdirs import user_cache_path

from voxray.config.errors import InputError
from voxray.core.embedder import Embedder
from voxray.core.schema import Column
from voxray.core.task import BadRowError, MapStage, RawRow, TaskData
from voxray.data.config import EmbedConfig
from voxray.data.decode import apply_stages
from voxray.data.embed_actor import Job, NetworkActor, chunks, result
from voxray.data.embed_cache import EmbedCache, input_key, network_of

KEYS_PER_TASK = 256
BATCHES_PER_TASK = 64  # of an actor; fewer where there are not enough for all actors

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # inputs done, inputs to compute


@dataclass(frozen=True)
class EmbedReport:
    """How many rows had inputs, how many of these were distinct, how many were computed now."""

    num_rows: int
    num_distinct: int
    num_computed: int


@dataclass(frozen=True)
class AddedColumns:
    """Stages that add columns to a row, after the task's own stages, and what tells the networks apart."""

    stages: tuple[MapStage, ...] = ()
    networks: tuple[dict[str, Any], ...] = ()


def add_columns(task: TaskData, rows: Sequence[RawRow], on_progress: Progress | None = None) -> AddedColumns:
    """Compute what the caches lack of the columns of the task's embedders for `rows`.

    An embedder may take the columns of one before it. Raises InputError as `embed` does. Ray is connected.
    """
    config = task.config.data.embed
    own = tuple(task.map_stages())
    added = AddedColumns()
    for embedder in task.embedders():
        network = network_of(embedder)
        cache = _cache(cache_root(config), embedder, network)
        embed(embedder, rows, (*own, *added.stages), cache, config, on_progress)
        stage = MapStage(
            f"columns of {embedder.factory}", partial(join, embedder=embedder, folder=str(cache.folder))
        )
        added = AddedColumns((*added.stages, stage), (*added.networks, network))
    return added


def _cache(root: Path, embedder: Embedder, network: Mapping[str, Any]) -> EmbedCache:
    try:
        return EmbedCache.of(root, embedder, network)
    except OSError as error:
        raise InputError(
            f"'{root}' cannot be written: {error.strerror or error}; set data.embed.cache_dir to a folder "
            "that can"
        ) from error


def cache_root(config: EmbedConfig) -> Path:
    """Return the folder of the caches of all networks; on a cluster, one that all nodes share."""
    return (Path(config.cache_dir) if config.cache_dir else user_cache_path("voxray") / "frozen").absolute()


def join(row: RawRow, embedder: Embedder, folder: str) -> RawRow:
    """Return the row with the embedder's columns, from the cache. Raises InputError when it has none."""
    columns = _opened(folder, tuple(embedder.outputs.items())).get([input_key(embedder, row)])
    return row | {name: values[0] for name, values in columns.items()}


@lru_cache(maxsize=8)
def _opened(folder: str, outputs: tuple[tuple[str, Column], ...]) -> EmbedCache:
    """Return a process's one view of a cache."""
    return EmbedCache(Path(folder), dict(outputs))


def embed(
    embedder: Embedder,
    rows: Sequence[RawRow],
    stages: Sequence[MapStage],
    cache: EmbedCache,
    config: EmbedConfig,
    on_progress: Progress | None = None,
) -> EmbedReport:
    """Compute and store the outputs of all rows' inputs that `cache` lacks. Ray is connected.

    A row that a stage refuses is passed over: whoever writes the shards tells of it. Raises InputError when
    the network cannot be loaded or gives other columns than it declares, or the cache cannot be written.
    """
    keys = _all_keys(embedder, rows, stages)
    first = {key: index for index, key in reversed(list(enumerate(keys))) if key}
    with _computing(cache):
        missing = cache.missing(key for key in keys if key)
        if missing:
            _compute(
                embedder, [(key, rows[first[key]]) for key in missing], stages, cache, config, on_progress
            )
    return EmbedReport(sum(map(bool, keys)), len(first), len(missing))


def _computing(cache: EmbedCache) -> Any:
    """Return the cache's lock, held; another process may compute the same inputs, which are then there."""
    lock = cache.computing()
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process computes for the cache '%s'; waiting for it", cache.folder)
        return lock.acquire()


# --- keys
# -----------------------------------------------------------------------------------------------------------


def _all_keys(embedder: Embedder, rows: Sequence[RawRow], stages: Sequence[MapStage]) -> list[str]:
    """Return each row's key; "" for a row that cannot be used."""
    import ray

    tasks = [ray.put(chunk) for chunk in chunks(rows, KEYS_PER_TASK)]
    if not tasks:
        return []
    function = partial(_keys_of, tasks=tasks, embedder=embedder, stages=stages)
    results = dict(_results(_numbers(len(tasks)).map(function)))
    return [key for number in range(len(tasks)) for key in results[number]["keys"]]


def _keys_of(
    row: dict[str, Any], tasks: Sequence[Any], embedder: Embedder, stages: Sequence[MapStage]
) -> dict[str, Any]:
    """Return the keys of one chunk of rows. Runs in a Ray Data task."""
    import ray

    keys: list[str] = []
    try:
        for raw in ray.get(tasks[row["id"]]):
            try:
                keys.append(input_key(embedder, apply_stages(stages, raw)))
            except BadRowError:
                keys.append("")
    except InputError as error:
        return result(row["id"], problems=error.problems)
    return result(row["id"], keys=keys)


# --- the actor pool
# -----------------------------------------------------------------------------------------------------------


def _compute(
    embedder: Embedder,
    missing: Sequence[tuple[str, RawRow]],
    stages: Sequence[MapStage],
    cache: EmbedCache,
    config: EmbedConfig,
    on_progress: Progress | None,
) -> None:
    """Run the actor pool over the distinct inputs that are missing."""
    import ray
    from ray.data import ActorPoolStrategy

    on_gpu = _on_gpu(config)
    num_batches = -(-len(missing) // config.batch_size)
    batches_per_task = min(BATCHES_PER_TASK, -(-num_batches // (2 * config.num_actors)))
    pieces = chunks(missing, batches_per_task * config.batch_size)
    job = Job(
        embedder=embedder,
        stages=stages,
        folder=str(cache.folder),
        device="cuda" if on_gpu else "cpu",
        batch_size=config.batch_size,
        tasks=[ray.put(piece) for piece in pieces],
    )
    pool = _numbers(len(pieces)).map_batches(
        NetworkActor,
        batch_size=None,
        compute=ActorPoolStrategy(min_size=1, max_size=config.num_actors),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
        fn_constructor_args=(job,),
    )
    done = 0
    for number, _ in _results(pool):
        done += len(pieces[number])
        if on_progress is not None:
            on_progress(done, len(missing))


def _on_gpu(config: EmbedConfig) -> bool:
    import ray

    num_gpus = ray.cluster_resources().get("GPU", 0)
    if config.device == "gpu" and not num_gpus:
        raise InputError("data.embed.device=gpu, but Ray sees no GPU; see `voxray doctor`, or set it to cpu")
    return config.device != "cpu" and num_gpus > 0


# --- Ray Data
# -----------------------------------------------------------------------------------------------------------


def _numbers(num: int) -> Any:
    """Return the Dataset of the numbers below `num`, a block each: each task or actor call takes one."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.range(num, override_num_blocks=num)


def _results(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, values) as they come. Raises InputError when one holds problems."""
    for row in dataset.iter_rows():
        values = json.loads(row["result"])
        if "problems" in values:
            raise InputError(*values["problems"])
        yield row["id"], values
