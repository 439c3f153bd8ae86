"""Overhead of the training loop: voxray's `fit` beside a bare hand-written PyTorch loop, in one run. Model,
rows, batches, optimiser (fused AdamW, no decay of biases and norms), clipping and cosine schedule are the
same.

    python benchmarks/loop.py [--quick] [--json FILE]

A perceptron of about 5 ms per step on one CPU thread (a larger one on a GPU, where there is one), rows in
memory. Each number is the median over rounds in turn of the seconds per step between the 20th
and the last update, so that neither start, evaluation nor checkpoint counts. Target: ratio ≤ 1.03 on a CPU.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from voxray.core.batch import Batch, Columns, EpochRequest
from voxray.core.evaluation import Evaluation, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import Stage
from voxray.core.task import Summary
from voxray.testing.sources import ArraySource
from voxray.testing.tiny import Tiny, TinyConfig
from voxray.train.control import Control
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

WIDTH_IN, WIDTH_OUT, BATCH_SIZE, SKIPPED = 512, 64, 64, 20
TARGET = 1.03


@dataclass(frozen=True)
class Pairs(Batch):
    """Inputs [B, 512] and targets [B, 64]."""

    x_BI: torch.Tensor
    y_BO: torch.Tensor


def network(hidden: int) -> nn.Module:
    """Three linear layers with GELU and LayerNorm."""
    block = [nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU()]
    return nn.Sequential(nn.Linear(WIDTH_IN, hidden), nn.GELU(), *block, nn.Linear(hidden, WIDTH_OUT))


class Regression(Tiny):
    """The benchmark's model and rows as a task."""

    hidden = 896

    def build_model(self) -> nn.Module:
        """Return the network."""
        return network(self.hidden)

    def collate(self, columns: Columns) -> Any:
        """Arrays to tensors."""
        names = columns["sample_id"].tolist()
        tensors = (torch.as_tensor(columns[name]) for name in ("valid", "position", "x", "y"))
        return Pairs(names, names, *tensors)

    def augment(self, batch: Batch, key: int) -> Any:
        """Nothing, as in the bare loop."""
        return batch

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """All entries."""
        return {"mse": torch.tensor(cast(Pairs, batch).y_BO.numel(), device=batch.valid_B.device)}

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Sum of squared errors."""
        pairs = cast(Pairs, batch)
        return {"mse": LossTerm(F.mse_loss(model(pairs.x_BI), pairs.y_BO, reduction="sum"))}

    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """The loss."""
        pairs = cast(Pairs, batch)
        total = F.mse_loss(model(pairs.x_BI), pairs.y_BO, reduction="sum")
        return Evaluation({"loss": Sum(total, torch.tensor(pairs.y_BO.numel()))})

    def summarize(self, merged: Evaluation) -> Summary:
        """The mean squared error."""
        return {"loss": float(merged.sums["loss"].value / merged.sums["loss"].count)}


def rows_of(num_rows: int) -> dict[str, np.ndarray]:
    """Return seeded rows."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((num_rows, WIDTH_IN), dtype=np.float32)
    y = generator.standard_normal((num_rows, WIDTH_OUT), dtype=np.float32)
    names = np.array([f"row{i:06d}" for i in range(num_rows)], dtype=object)
    return {"sample_id": names, "group": names, "x": x, "y": y}


def ours(rows: dict[str, np.ndarray], num_steps: int, device: torch.device) -> float:
    """Return seconds per step of `fit`."""
    values = {"batch_size": BATCH_SIZE, "steps": num_steps, "validate_every": {"epochs": 10**6}}
    config = TinyConfig.model_validate({"training": values, "checkpoints": {"save_every_n_epochs": 10**6}})
    beats: list[float] = []
    source = ArraySource({"train": rows, "val": {name: value[:BATCH_SIZE] for name, value in rows.items()}})
    with tempfile.TemporaryDirectory() as folder:
        control = Control(beat=lambda: beats.append(time.perf_counter()))
        fit(
            Regression(config), source, config, RunFolder(Path(folder)), lambda metrics: None, device, control
        )
    return (beats[num_steps - 1] - beats[SKIPPED]) / (num_steps - 1 - SKIPPED)


def bare(rows: dict[str, np.ndarray], num_steps: int, device: torch.device) -> float:
    """Return seconds per step of the loop that one would write by hand."""
    torch.manual_seed(0)
    model = network(Regression.hidden).to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    source = ArraySource({"train": rows})
    beats: list[float] = []
    epoch = 0
    while len(beats) < num_steps:
        epoch += 1
        for columns in source.batches(EpochRequest("train", BATCH_SIZE, seed=0, epoch=epoch)):
            x, y = torch.as_tensor(columns["x"]), torch.as_tensor(columns["y"])
            loss = F.mse_loss(model(x.to(device)), y.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            beats.append(time.perf_counter())
            if len(beats) % 10 == 0:
                loss.item()  # what one logs
            if len(beats) == num_steps:
                break
    return (beats[-1] - beats[SKIPPED]) / (num_steps - 1 - SKIPPED)


def main() -> None:
    """Measure, print, write records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    parser.add_argument("--json", type=Path, help="write records there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        Regression.hidden = 8192
    num_steps, rounds = (300, 5) if options.quick else (1000, 9)
    rows = rows_of(64 * BATCH_SIZE)
    times: dict[str, list[float]] = {"voxray fit": [], "bare loop": []}
    for _ in range(rounds):
        times["voxray fit"].append(ours(rows, num_steps, device))
        times["bare loop"].append(bare(rows, num_steps, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{device.type}: {num_steps} steps, {rounds} rounds in turn")
    for name, values in times.items():
        spread = f"{1e3 * min(values):.3f}–{1e3 * max(values):.3f}"
        print(f"{name:12} {1e3 * medians[name]:8.3f} ms per step   {spread}")
    ratio = medians["voxray fit"] / medians["bare loop"]
    print(
        f"ratio        {ratio:8.3f}   (target ≤ {TARGET} on a CPU) {'holds' if ratio <= TARGET else 'MISSED'}"
    )
    if options.json:
        record = {
            "benchmark": "loop",
            "case": f"seconds per step, {device.type}",
            "ours": medians["voxray fit"],
            "peer": medians["bare loop"],
            "unit": "s",
            "ratio": ratio,
            "better": "lower",
        }
        options.json.write_text(json.dumps([record], indent=1))


if __name__ == "__main__":
    main()
