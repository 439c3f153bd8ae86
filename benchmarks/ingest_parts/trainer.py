"""voxray's transports with two workers under `TorchTrainer`: aggregate rows per second.

One `fit()`; inside it the workers start each epoch together and the transports take turns. A worker leaves
what it measured in a file; the processes below Ray's raylet, read tasks included, are whose CPU time is
counted.
"""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from ingest_parts import ours
from ingest_parts.measure import EpochCost, RowSum, cpu_s, tree_ticks, warm
from ingest_parts.modalities import Modality
from voxray.data.config import DataConfig

NUM_WORKERS = 2
TRANSPORTS = {"local": ours.LOCAL, "cache": ours.CACHE, "stream": ours.STREAM}


def name_of(way: str) -> str:
    """Return the name of a way with its two workers."""
    return f"{way}, {NUM_WORKERS} TorchTrainer workers"


def measure_workers(
    modality: Modality, folder: Path, rounds: int, expected: RowSum
) -> dict[str, list[EpochCost]]:
    """Return the cost of each epoch by way. Raises AssertionError when the workers' rows do not add up."""
    out = folder / "workers"
    out.mkdir()
    TorchTrainer(
        _work,
        train_loop_config={"modality": modality, "folder": str(folder), "rounds": rounds, "out": str(out)},
        scaling_config=ScalingConfig(num_workers=NUM_WORKERS),
        run_config=ray.train.RunConfig(
            name=modality.name,
            storage_path=str(folder / "ray"),
            worker_runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": "1",
                    "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                    "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
                }
            },
        ),
    ).fit()
    return {
        name_of(way): [_joined(out, transport, epoch, expected) for epoch in range(rounds)]
        for transport, way in TRANSPORTS.items()
    }


def _joined(out: Path, transport: str, epoch: int, expected: RowSum) -> EpochCost:
    parts = [json.loads(file.read_text()) for file in out.glob(f"{transport}-{epoch}-*.json")]
    total = RowSum()
    for part in parts:
        total.join(RowSum(**part["sum"]))
    assert total == expected, f"{transport}: the workers' rows are not each row once: {total}, not {expected}"
    return EpochCost(
        max(part["seconds"] for part in parts),
        max(part["first_batch_s"] for part in parts),
        max(part["cpu_s"] for part in parts),
    )


def _work(config: dict[str, Any]) -> None:
    """Run all epochs on one worker."""
    torch.set_num_threads(1)
    modality, folder = config["modality"], Path(config["folder"])
    rank = ray.train.get_context().get_world_rank()
    path, copies = folder / "shards", folder / "copies"
    sources = {
        transport: ours.batches(
            modality, path, DataConfig(transport=transport, cache_dir=str(copies)), rank, NUM_WORKERS
        )
        for transport in TRANSPORTS
    }
    for epoch in range(config["rounds"]):
        for transport, source in sources.items():
            if rank == 0:
                warm(copies if transport == "cache" else path)
            torch.distributed.barrier()
            measured = _measure(source(epoch))
            file = Path(config["out"], f"{transport}-{epoch}-{rank}.json")
            file.write_text(json.dumps(measured))


def _measure(batches: Any) -> dict[str, Any]:
    raylet = os.getppid()
    total, first = RowSum(), 0.0
    ticks, before = tree_ticks(raylet), time.perf_counter()
    for batch in batches:
        first = first or time.perf_counter() - before
        total.add(batch)
    torch.distributed.barrier()
    return {
        "seconds": time.perf_counter() - before,
        "first_batch_s": first,
        "cpu_s": cpu_s(ticks, tree_ticks(raylet)),
        "sum": asdict(total),
    }
