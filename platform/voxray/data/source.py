"""From the `data` section to a source of batches: which transport, and why."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from voxray.config.errors import InputError
from voxray.core.batch import BatchRules
from voxray.core.task import ReadStage
from voxray.data.ahead import log
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.manifest import load_manifest
from voxray.data.shard_cache import node_cache
from voxray.data.store import Store


def batch_rules(config: DataConfig, training: bool) -> BatchRules:
    """Return the rules that the `data` section sets, for training or for evaluation.

    Evaluation sees every row that `filter` leaves, once, in whichever batches read fastest.
    """
    filters = (config.filter, config.train_filter if training else "")
    common = BatchRules(
        filters=tuple(text for text in filters if text),
        limit=config.limit_samples,
        bucket_by=config.bucket_by,
    )
    if not training:
        return common
    return replace(
        common,
        weights=config.weights,
        with_replacement=config.sampling == "with_replacement",
        group_by=config.group_by,
        groups_per_batch=config.groups_per_batch,
        last_batch=config.last_batch,
    )


def choose_transport(dataset: str | Path, config: DataConfig) -> tuple[str, str]:
    """Return the transport that a run uses, and the reason."""
    store = Store.of(dataset)
    if config.transport != "auto":
        return config.transport, "data.transport says so"
    if store.is_local:
        return "local", "the shards lie in a folder, so the worker maps them"
    size_gb = sum(shard.bytes for shard in load_manifest(store).shards) / 1e9
    if size_gb <= config.cache_gb:
        return "cache", f"the dataset is remote and its {size_gb:.2f} GB fit in data.cache_gb"
    return "stream", (
        f"the dataset is remote and its {size_gb:.2f} GB do not fit in data.cache_gb={config.cache_gb:g}, "
        "so shards are read more than once per node"
    )


def open_source(
    dataset: str | Path,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
    stages: Sequence[ReadStage] = (),
    on_fault: Callable[[str], None] = log.warning,
) -> LocalStream:
    """Return the source of a worker's batches; `on_fault` is told of each damaged shard that is set aside.

    Whatever the transport, the batches are the same, bit for bit. Raises InputError when there is no dataset.
    """
    transport, _ = choose_transport(dataset, config)
    if transport == "local" and not Store.of(dataset).is_local:
        raise InputError(
            f"data.transport=local maps shards of a folder, '{dataset}' is remote; use cache or stream"
        )
    cache = None if Store.of(dataset).is_local and transport != "cache" else node_cache(config)
    if transport == "stream":
        from voxray.data.stream import RayStream

        return RayStream(dataset, config, rank, world_size, stages, cache, on_fault)
    return LocalStream(dataset, config, rank, world_size, stages, cache, on_fault)
