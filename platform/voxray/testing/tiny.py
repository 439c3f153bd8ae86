"""A task small enough to check by hand: two outputs regressed on six numbers, some targets unknown.

It also shows what a task outside voxray needs: `task: voxray.testing.tiny:Tiny`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from voxray.config.section import Section
from voxray.core.batch import Batch, Columns
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Column, Schema
from voxray.core.task import RawRow, Summary, Task

NUM_INPUTS, NUM_OUTPUTS = 6, 2


class TinyModelConfig(Section, frozen=True):
    """A perceptron of one hidden layer."""

    hidden_dim: int = 16
    dropout: float = 0.0
    batch_norm: bool = False


class TinyConfig(RunConfig, frozen=True):
    """Config of the tiny task."""

    task: str = "voxray.testing.tiny:Tiny"
    model: TinyModelConfig = TinyModelConfig()


@dataclass(frozen=True)
class TinyBatch(Batch):
    """Inputs [B, 6] and targets [B, 2], NaN where unknown."""

    x_BI: torch.Tensor
    y_BO: torch.Tensor


def tiny_rows(num_rows: int, seed: int, unknown: float = 0.2) -> dict[str, np.ndarray]:
    """Return columns of a noisy linear problem in which a share `unknown` of the targets is NaN."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((num_rows, NUM_INPUTS)).astype(np.float32)
    weights = np.random.default_rng(0).standard_normal((NUM_INPUTS, NUM_OUTPUTS))
    y = (x @ weights + 0.1 * generator.standard_normal((num_rows, NUM_OUTPUTS))).astype(np.float32)
    y[generator.random(y.shape) < unknown] = np.nan
    sample_id = np.array([f"row{i:05d}" for i in range(num_rows)], dtype=object)
    return {"sample_id": sample_id, "group": sample_id, "x": x, "y": y}


class Tiny(Task):
    """Regression with masked squared error and input noise as augmentation."""

    Config = TinyConfig
    config: TinyConfig

    def schema(self) -> Schema:
        """Ids, inputs and targets."""
        columns = {
            "sample_id": Column("text"),
            "group": Column("text"),
            "x": Column("float32", (NUM_INPUTS,)),
            "y": Column("float32", (NUM_OUTPUTS,)),
        }
        return Schema(columns, group="group")

    def read_raw(self, source: Path) -> Iterator[RawRow]:
        """Yield the rows of a `.npz` file of the schema's columns, in its order."""
        arrays = np.load(source / "rows.npz")
        for index, name in enumerate(arrays["sample_id"]):
            row = {
                "sample_id": str(name),
                "group": str(name),
                "x": arrays["x"][index],
                "y": arrays["y"][index],
            }
            yield {**row, "origin": f"rows.npz row {index}"}

    def collate(self, columns: Columns) -> TinyBatch:
        """Turn arrays into tensors of their own memory."""
        names = [str(name) for name in columns["sample_id"]]
        tensors = (torch.tensor(np.array(columns[name])) for name in ("valid", "position", "x", "y"))
        return TinyBatch(names, names, *tensors)

    def build_model(self) -> nn.Module:
        """Linear → (BatchNorm) → ReLU → Dropout → Linear."""
        model = self.config.model
        norm = nn.BatchNorm1d(model.hidden_dim) if model.batch_norm else nn.Identity()
        first, last = nn.Linear(NUM_INPUTS, model.hidden_dim), nn.Linear(model.hidden_dim, NUM_OUTPUTS)
        return nn.Sequential(first, norm, nn.ReLU(), nn.Dropout(model.dropout), last)

    def augment(self, batch: Batch, key: int) -> TinyBatch:
        """Add a little noise, keyed by each row's place."""
        from voxray.core.randomness import uniform_rows

        batch = cast(TinyBatch, batch)
        noise_BI = uniform_rows(key, batch.position_B, NUM_INPUTS) - 0.5
        return replace(batch, x_BI=batch.x_BI + 0.01 * noise_BI)

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count the known targets."""
        return {"mse": (~cast(TinyBatch, batch).y_BO.isnan()).sum()}

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Sum the squared errors of the known targets."""
        batch = cast(TinyBatch, batch)
        return {"mse": LossTerm(_squared_error(model(batch.x_BI), batch.y_BO))}

    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Keep the predictions and the loss."""
        batch = cast(TinyBatch, batch)
        pred_BO = model(batch.x_BI)
        loss = Sum(_squared_error(pred_BO, batch.y_BO), (~batch.y_BO.isnan()).sum())
        return Evaluation(
            {"loss": loss}, Rows(batch.sample_id, batch.group_id, {"pred": pred_BO.cpu().numpy()})
        )

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the mean squared error over the known targets."""
        loss = merged.sums["loss"]
        return {"loss": float(loss.value / loss.count)}

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the inputs [B, 6]."""
        return (cast(TinyBatch, batch).x_BI,)


def _squared_error(pred_BO: torch.Tensor, y_BO: torch.Tensor) -> torch.Tensor:
    return torch.where(y_BO.isnan(), 0.0, (pred_BO - y_BO.nan_to_num()).square()).sum()
