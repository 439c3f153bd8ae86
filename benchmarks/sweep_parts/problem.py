"""The problem that all search: a perceptron, 200 updates, 4 evaluations; by hand, and as a voxray task.

Batches, optimiser (fused AdamW without decay of biases), clipping and cosine schedule are those of
`benchmarks/loop.py`; what varies from trial to trial is the learning rate and the dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.evaluation import Evaluation, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import Stage
from voxray.core.schema import TEXT, Column, Schema
from voxray.core.task import Summary
from voxray.testing.tiny import Tiny

WIDTH_IN, WIDTH_OUT, HIDDEN, NUM_BLOCKS = 64, 16, 256, 3
BATCH_SIZE, NUM_UPDATES, UPDATES_PER_EPOCH = 64, 200, 50
NUM_TRAIN, NUM_VAL = BATCH_SIZE * UPDATES_PER_EPOCH, 512
RATES, DROPOUTS = (1e-4, 1e-2), (0.0, 0.5)


def network(dropout: float) -> nn.Module:
    """Three hidden layers of 256 with LayerNorm, as one has for tables."""
    layers: list[nn.Module] = []
    for block in range(NUM_BLOCKS):
        width = HIDDEN if block else WIDTH_IN
        layers += [nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, WIDTH_OUT))


@cache
def rows(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [N, 64] and targets [N, 16] of a split, seeded."""
    generator = np.random.default_rng(0 if split == "train" else 1)
    x = generator.standard_normal((NUM_TRAIN if split == "train" else NUM_VAL, WIDTH_IN), dtype=np.float32)
    weights = np.random.default_rng(2).standard_normal((WIDTH_IN, WIDTH_OUT), dtype=np.float32)
    return x, np.tanh(x @ weights / 8).astype(np.float32)


def train_by_hand(rate: float, dropout: float, report: Callable[[float], Any]) -> float:
    """Train as one would write it; `report` hears the validation loss after each epoch. Return the last."""
    torch.set_num_threads(1)
    torch.manual_seed(42)
    x, y = (torch.from_numpy(values) for values in rows("train"))
    val_x, val_y = (torch.from_numpy(values) for values in rows("val"))
    model = network(dropout)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_UPDATES)
    loss = float("nan")
    for _ in range(NUM_UPDATES // UPDATES_PER_EPOCH):
        model.train()
        for chosen in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(model(x[chosen]), y[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            parts = zip(val_x.split(BATCH_SIZE), val_y.split(BATCH_SIZE), strict=True)
            loss = sum(F.mse_loss(model(a), b).item() for a, b in parts) / (len(val_x) / BATCH_SIZE)
        report(loss)
    return loss


@dataclass(frozen=True)
class Pairs(Batch):
    """Inputs [B, 64] and targets [B, 16]."""

    x_BI: torch.Tensor
    y_BO: torch.Tensor


class Regression(Tiny):
    """The same for voxray; `model.dropout` varies."""

    def schema(self) -> Schema:
        """Ids, inputs, targets."""
        tensors = {"x": Column("float32", (WIDTH_IN,)), "y": Column("float32", (WIDTH_OUT,))}
        return Schema({"sample_id": Column(TEXT), "group": Column(TEXT), **tensors}, group="group")

    def build_model(self) -> nn.Module:
        """Return the network."""
        return network(self.config.model.dropout)

    def collate(self, columns: Columns) -> Any:
        """Arrays to tensors."""
        names = columns["sample_id"].tolist()
        return Pairs(names, names, *(as_tensor(columns[name]) for name in ("valid", "position", "x", "y")))

    def augment(self, batch: Batch, key: int) -> Any:
        """Nothing, as by hand."""
        return batch

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """All entries."""
        return {"mse": torch.tensor(cast(Pairs, batch).y_BO.numel())}

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
