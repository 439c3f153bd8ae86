"""The masked autoencoder on 500 × 500 cubes: time and memory of a step, and how fast cubes are read.

Run: python benchmarks/hyperspectral.py [--quick] [--json FILE] [--cases step,read] [--models mae_tiny,…]
[--batch N] [--rounds N] [--compile]. Cases:

* `step`: one update (forward, backward, AdamW) of random cubes per model, each in a process of its own; the
  median of the rounds after two that are not counted. On a GPU in bf16, and with the share of the dense bf16
  peak (MFU): analytic FLOPs of matrix multiplications, three times the forward pass, over the seconds.
  Recomputed activations are not counted as work. Memory is the GPU's peak, or what the process has at most,
  beside the GPU memory that the guide's table recommends (it has none for base).
* `read`: cubes per second from our shards, as a training run reads them, beside a DataLoader over one HDF5
  file per cube with as many worker processes, which stay, as ours has threads; both in turn,
  on the same cubes, the page cache warm. Each batch's values are added up, so that all of them are there.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from voxray.core.batch import EpochRequest
from voxray.data.source import open_source
from voxray.tasks.hyperspectral.config import PRESETS, Config
from voxray.tasks.hyperspectral.data import HyperspectralData
from voxray.tasks.hyperspectral.masking import TokenGrid, num_kept
from voxray.tasks.hyperspectral.model import forward_flops
from voxray.tasks.hyperspectral.task import Hyperspectral
from voxray.testing.datasets import write_dataset
from voxray.train.optimisation.optim import build_optimizer

SIDE, NUM_BANDS = 500, 30
GRID = TokenGrid(6, 20, 20, 5, 25)
WARM_UP = 2
NUM_CUBES, QUICK_CUBES = 64, 12
READ_BATCH, THREADS = 4, 2
GUIDE_MB = {"mae_tiny": 8e3, "mae_small": 8e3, "mae_medium": 16e3, "mae_large": 24e3, "mae_huge": 24e3}
# Dense bf16 FLOP/s, from NVIDIA's data sheets (half of the figures with sparsity).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def columns(num: int, seed: int) -> dict[str, np.ndarray]:
    """Return rows of random cubes."""
    rng = np.random.default_rng(seed)
    names = np.array([f"c{seed}_{i:04d}" for i in range(num)], dtype=object)
    blank = np.array([""] * num, dtype=object)
    return {
        "sample_id": names,
        "group": names,
        "patient_id": names,
        "label": blank,
        "cube": rng.random((num, NUM_BANDS, SIDE, SIDE), dtype=np.float32),
        "wavelengths_nm": np.tile(np.linspace(450, 900, NUM_BANDS, dtype=np.float32), (num, 1)),
        "measured": np.ones((num, SIDE, SIDE), np.uint8),
        "classes": np.zeros((num, SIDE, SIDE), np.int16),
        "rgb": np.array([b""] * num, dtype=object),
    }


def task_of(model: str) -> Hyperspectral:
    """Return the task of a model on the guide's cubes."""
    prepare = {"image_size": SIDE, "bands": list(range(NUM_BANDS))}
    recompute = model in ("mae_large", "mae_huge") and not torch.cuda.is_available()
    values = {"data": {"prepare": prepare}, "model": {"name": model, "grad_checkpointing": recompute}}
    return Hyperspectral(Config.model_validate(values))


def one_step(model_name: str, batch_size: int, rounds: int, compiled: bool) -> dict[str, float]:
    """Return the median seconds of an update, the peak memory in MB and, on a known GPU, the MFU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = task_of(model_name)
    torch.manual_seed(0)
    model = task.build_model().to(device).train()
    if compiled:
        model.compile()
    (stage,) = task.config.resolved_stages()
    optimizer = build_optimizer(model, stage.training, device)
    rows = columns(batch_size, 0) | {"valid": np.ones(batch_size, bool), "position": np.arange(batch_size)}
    batch = task.collate(rows).to(device)
    seconds: list[float] = []
    for index in range(WARM_UP + rounds):
        started = time.perf_counter()
        seen = task.augment(batch, index)
        counts = task.normalizers(seen, stage)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = task.loss(model, seen, stage)
        torch.stack([term.weight * term.sum / counts[name] for name, term in terms.items()]).sum().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[WARM_UP:])
    if device.type == "cpu":
        return {"seconds": median, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
    flops = 3 * batch_size * forward_flops(task.config.model, GRID, num_kept(GRID.tokens, 0.8))
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    found = {"seconds": median, "peak_mb": torch.cuda.max_memory_allocated() / 1e6}
    return found | ({} if peak is None else {"mfu": flops / median / peak})


def steps(models: list[str], batch_size: int, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """Measure each model in a process of its own; print and return the records."""
    records: list[dict[str, Any]] = []
    for name in models:
        asked = json.dumps([name, batch_size, rounds, compiled])
        done = subprocess.run(
            [sys.executable, __file__, "--one", asked], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"  {name:12} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        guide = f"{GUIDE_MB[name]:6.0f} MB" if name in GUIDE_MB else "none"
        mfu = f"   MFU {found['mfu']:.3f}" if "mfu" in found else ""
        peak = f"peak {found['peak_mb']:8.0f} MB, guide {guide}"
        print(f"  {name:12} {found['seconds']:8.3f} s   {peak}{mfu}", flush=True)
        case = f"{name}, batch {batch_size}{', compiled' if compiled else ''}"
        records += step_records(name, case, found)
    return records


def step_records(name: str, case: str, found: dict[str, float]) -> list[dict[str, Any]]:
    """Return a record per number of one model; the peak's peer is the guide's recommendation."""
    records: list[dict[str, Any]] = []
    for key, unit, better in (
        ("seconds", "s", "lower"),
        ("peak_mb", "MB", "lower"),
        ("mfu", "share", "higher"),
    ):
        if key in found:
            peer = GUIDE_MB.get(name) if key == "peak_mb" else None
            record = {
                "benchmark": "hyperspectral",
                "case": f"{case}, {key}",
                "ours": found[key],
                "peer": peer,
            }
            ratio = None if peer is None else found[key] / peer
            records.append({**record, "unit": unit, "ratio": ratio, "better": better})
    return records


class Files(Dataset[torch.Tensor]):
    """One HDF5 file per cube, opened for each, as the guide's dataset does."""

    def __init__(self, paths: list[Path]) -> None:
        """Keep the paths."""
        self.paths = paths

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the cube."""
        with h5py.File(self.paths[index], "r") as file:
            return torch.from_numpy(np.asarray(file["Cube/Images"]))


def reads(num: int, rounds: int) -> list[dict[str, Any]]:
    """Read the same cubes both ways in turn; print and return the record."""
    rows = columns(num, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, cube in enumerate(rows["cube"]):
            with h5py.File(folder / f"{index:04d}.h5", "w") as file:
                file["Cube/Images"] = cube
        task = HyperspectralData(task_of("mae_tiny").config)
        dataset = write_dataset(folder / "dataset", task.schema(), {"train": rows}, max(1, num // 4))
        del rows
        config = task.config.data.model_copy(update={"path": str(dataset), "read_threads": THREADS})
        source = open_source(str(dataset), config, stages=task.read_stages())
        files = Files(sorted(folder.glob("*.h5")))
        loader = DataLoader(files, READ_BATCH, shuffle=True, num_workers=THREADS, persistent_workers=True)
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for epoch in range(rounds + 1):
            started = time.perf_counter()
            request = EpochRequest("train", READ_BATCH, seed=0, epoch=epoch)
            ours = 0
            for batch in source.batches(request):
                cube_BCHW = task.collate(batch).cube_BCHW
                ours += len(cube_BCHW) if cube_BCHW.sum() else 0
            between = time.perf_counter()
            peer = sum(len(cube_BCHW) if cube_BCHW.sum() else 0 for cube_BCHW in loader)
            ended = time.perf_counter()
            assert ours == peer == num
            if epoch:
                rates["ours"].append(num / (between - started))
                rates["peer"].append(num / (ended - between))
    ours_rate, peer_rate = (statistics.median(values) for values in rates.values())
    print(f"  shards {ours_rate:.1f} cubes/s, HDF5 files {peer_rate:.1f}, ratio {ours_rate / peer_rate:.2f}")
    record = {"benchmark": "hyperspectral", "case": "cubes read", "ours": ours_rate, "peer": peer_rate}
    return [{**record, "unit": "cubes/s", "ratio": ours_rate / peer_rate, "better": "higher"}]


def main() -> None:
    """Measure the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="mae_tiny alone, few cubes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", default="step,read", help="only these")
    parser.add_argument("--models", default="", help=f"only these of {', '.join(PRESETS)}")
    parser.add_argument("--batch", type=int, default=1, help="cubes of an update")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_step(*json.loads(options.one))))
        return
    models = options.models.split(",") if options.models else ["mae_tiny"] if options.quick else list(PRESETS)
    records: list[dict[str, Any]] = []
    if "step" in options.cases:
        records += steps(models, options.batch, options.rounds, options.compile)
    if "read" in options.cases:
        records += reads(QUICK_CUBES if options.quick else NUM_CUBES, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
