"""How fast shuffled rows reach a training process: voxray's transports, its peers, the limit.

Run: python benchmarks/ingest.py [--quick] [--only fmri,trials] [--peers torch,ray] [--json FILE], or with
--scale for what grows: sizes of 1, 4 and 10 GB, a plan over 10⁶ shards, the cost of checking, and the bytes
that a remote dataset sends.

Five modalities, one after the other (files of up to 9 GB, deleted between): fMRI (15,724 float32 voxels
and a target of 768), neural trials (up to 1,500 × 512 float32, delivered padded), cubes (30 × 500 × 500
float32), X-rays (224² uint8) of 3 GB each, and 4,000 X-rays of 1024² as JPEG, decoded to 224². One process.
Ours take turns among themselves, epoch by epoch; then each peer's ways do with `local` beside them, and Ray's
guide with `stream` too; such a ratio is of the epochs in turn: what all formats and all peers' workers need
at once does not fit in 24 GB. All files are in the page cache. The first epoch is shown apart, medians and
spreads are of five more, fewer for a way once it took 45 s. `--quick` has one
more, of tiny data, Ray's guide for fMRI alone, no TorchTrainer: it shows that all of it runs, and its figures
are not those that the targets are for. On all sides the rows, dtypes and batch sizes are
the same, shuffling spans at least as much with ours (1 GB) as with a peer that has a buffer, and a sum over
rows and values is compared after every epoch.
Peers run with the settings that their own documentation gives for speed; each of `ingest_parts/peer_*.py`
says which and where they are written.

"First batch" is of an epoch that nothing was prepared for; the target's is of one straight after another,
with its first batches read while the last ones before it are used, as in a training run. Where rows are
decoded, nobody is faster than decoding; there it is shown with a training step of that length too.

GB/epoch is the size of what a way reads, once per epoch; CPU time is that of the whole process tree.
"""

import argparse
import gc
import importlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ingest_parts import ours, tables
from ingest_parts.measure import (
    EpochCost,
    RowSum,
    Way,
    expected_sum,
    first_batches_s,
    measure,
    size_of,
)
from ingest_parts.modalities import Modality, modalities, write_jpegs

from voxray.cluster.connect import connect

PEERS = {
    "torch": "torch",
    "ray": "ray[data]",
    "mosaic": "mosaicml-streaming",
    "litdata": "litdata",
    "webdataset": "webdataset",
}
EPOCHS, QUICK_EPOCHS = 5, 1
WAY_LIMIT_S = 45.0  # a way that took longer has no further epoch


def main() -> None:
    """Measure what was asked for, print tables, write records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny data, one epoch after the first")
    parser.add_argument("--only", default="", help="modalities, e.g. fmri,trials")
    parser.add_argument("--peers", default=",".join(PEERS), help="default: all; fewer leave more memory")
    parser.add_argument("--scale", action="store_true", help="measure what grows with the data instead")
    parser.add_argument("--json", type=Path, help="write records there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The given (NumPy array|buffer) is not writable")
    folder = Path(tempfile.mkdtemp(prefix="ingest"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "user-cache")  # marks of checked windows go there
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # it takes files in the page cache for used
    try:
        with connect():
            import ray.data  # noqa: F401 - it sets its logger up

            logging.getLogger("ray.data").setLevel(logging.ERROR)
            if options.scale:
                from ingest_parts.scale import measure_scale

                found = measure_scale(folder, options.quick)
            else:
                found = measure_modalities(folder, options.quick, options.only, options.peers.split(","))
    finally:
        shutil.rmtree(folder)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def measure_modalities(folder: Path, quick: bool, only: str, peers: Sequence[str]) -> list[dict[str, Any]]:
    """Measure and print the chosen modalities, one after the other; return the records."""
    known = modalities(folder, quick)
    chosen = only.split(",") if only else list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"--only: no modality {', '.join(unknown)}; there are {', '.join(known)}")
    found: list[dict[str, Any]] = []
    for name in chosen:
        before = time.perf_counter()
        own_peers = [peer for peer in peers if not quick or name == "fmri" or peer != "ray"]
        results, missing = measure_modality(known[name], folder / name, quick, own_peers)
        tables.print_table(results, missing)
        print(f"all of it took {(time.perf_counter() - before) / 60:.1f} minutes")
        tables.print_ratios(results)
        tables.print_targets(results, quick)
        found += tables.records(results)
    return found


def measure_modality(
    modality: Modality, folder: Path, quick: bool, peers: Sequence[str]
) -> tuple[list[tables.Result], list[str]]:
    """Write one modality in all formats, measure all ways, delete it; return results and what is missing."""
    rounds = 1 + (QUICK_EPOCHS if quick else EPOCHS)
    folder.mkdir()
    if modality.jpeg_folder is not None:
        write_jpegs(modality)
    expected, path, missing = expected_sum(modality), ours.write(modality, folder), list[str]()
    results = _measure_own(modality, path, rounds, expected)
    if not quick:
        results += _with_workers(modality, folder, rounds, expected)
    shutil.rmtree(folder / "copies")
    for peer_name in peers:
        try:
            peer = importlib.import_module(f"ingest_parts.peer_{peer_name}")
        except ImportError as error:
            missing.append(f"{PEERS[peer_name]:40}not installed ({error}): make peers")
            continue
        own_folder = folder / f"of_{peer_name}"
        own_folder.mkdir()
        beside = ours.ways_beside(modality, path, with_stream=peer_name == "ray")
        results += _measure_peer(modality, peer.ways(modality, own_folder), beside, rounds, expected)
        for worker in multiprocessing.active_children():  # LitData's take 10 s to end by themselves
            worker.terminate()
        gc.collect()
        shutil.rmtree(own_folder)
    missing += [
        f"{result.name:40}{len(result.costs) - 1} later epochs: they took long"
        for result in results
        if len(result.costs) < rounds
    ]
    shutil.rmtree(folder)
    if modality.jpeg_folder is not None:
        shutil.rmtree(modality.jpeg_folder)
    return results, missing


def _measure_own(modality: Modality, path: Path, rounds: int, expected: RowSum) -> list[tables.Result]:
    ways = ours.ways(modality, path)
    costs = _in_turn(ways, rounds, expected)
    waits = _first_batches(modality, path, rounds)
    stepped = _first_batches(modality, path, rounds, modality.step_s) if modality.step_s else {}
    return [
        tables.Result(
            way.name,
            modality,
            costs[way.name],
            size_of(way.files),
            following_s=waits.get(way.name, ()),
            stepped_s=stepped.get(way.name, ()),
        )
        for way in ways
    ]


def _first_batches(
    modality: Modality, path: Path, rounds: int, step_s: float = 0.0
) -> dict[str, Sequence[float]]:
    ways = ours.followed_ways(modality, path)
    return {way.name: first_batches_s(way, rounds, WAY_LIMIT_S / 2, step_s) for way in ways}


def _measure_peer(
    modality: Modality, ways: Sequence[Way], beside: Sequence[Way], rounds: int, expected: RowSum
) -> list[tables.Result]:
    # The peer's first: its worker processes live on as copies of this one, which holds no batches yet.
    costs = _in_turn([*ways, *beside], rounds, expected)
    own = {way.name: costs[way.name] for way in beside}
    return [
        tables.Result(way.name, modality, costs[way.name], size_of(way.files), beside=own) for way in ways
    ]


def _in_turn(ways: Sequence[Way], rounds: int, expected: RowSum) -> dict[str, list[EpochCost]]:
    costs: dict[str, list[EpochCost]] = {way.name: [] for way in ways}
    for epoch in range(rounds):
        for way in ways:
            so_far = costs[way.name]
            if sum(cost.seconds for cost in so_far) < WAY_LIMIT_S:
                so_far.append(measure(way, epoch, expected))
    return costs


def _with_workers(modality: Modality, folder: Path, rounds: int, expected: RowSum) -> Sequence[tables.Result]:
    from ingest_parts.trainer import measure_workers

    shutil.rmtree(folder / "copies")  # so that the workers' first epoch fetches them
    (folder / "copies").mkdir()
    measured = measure_workers(modality, folder, rounds, expected)
    size = size_of(folder / "shards")
    return [tables.Result(name, modality, costs, size) for name, costs in measured.items()]


if __name__ == "__main__":
    main()
