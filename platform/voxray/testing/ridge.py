"""A task for the closed-form stepper: a linear map of grouped rows, some of whose features stand far from 0.

`task: voxray.testing.ridge:RidgeTiny`; it trains by gradients too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from voxray.config.section import Section
from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Column, Schema
from voxray.core.task import RawRow, Summary, Task


class RidgeTinyModelConfig(Section, frozen=True):
    """Sizes of the linear map."""

    num_features: int = 8
    num_targets: int = 3


class RidgeTinyConfig(RunConfig, frozen=True):
    """Config of the ridge task."""

    task: str = "voxray.testing.ridge:RidgeTiny"
    model: RidgeTinyModelConfig = RidgeTinyModelConfig()


@dataclass(frozen=True)
class RidgeBatch(Batch):
    """Features [B, D] and targets [B, O]."""

    x_BD: torch.Tensor
    y_BO: torch.Tensor


def ridge_rows(
    num_rows: int, seed: int, num_features: int = 8, num_targets: int = 3, num_groups: int = 12
) -> dict[str, np.ndarray]:
    """Return columns of a noisy linear map with an intercept, in groups that differ by their means."""
    generator = np.random.default_rng(seed)
    world = np.random.default_rng(0)
    group = generator.integers(0, num_groups, num_rows)
    centre_D = 3 + world.standard_normal(num_features)
    x = centre_D + generator.standard_normal((num_rows, num_features))
    x += 0.3 * world.standard_normal((num_groups, num_features))[group]
    weight_DO = world.standard_normal((num_features, num_targets)) / np.sqrt(num_features)
    y = x @ weight_DO - 1 + 0.5 * generator.standard_normal((num_rows, num_targets))
    return {
        "sample_id": np.array([f"row{i:05d}" for i in range(num_rows)], dtype=object),
        "group": np.array([f"group{number}" for number in group], dtype=object),
        "x": x.astype(np.float32),
        "y": y.astype(np.float32),
    }


class RidgeTiny(Task):
    """Linear regression with squared error."""

    Config = RidgeTinyConfig
    config: RidgeTinyConfig

    def schema(self) -> Schema:
        """Ids, features and targets."""
        model = self.config.model
        columns = {
            "sample_id": Column("text"),
            "group": Column("text"),
            "x": Column("float32", (model.num_features,)),
            "y": Column("float32", (model.num_targets,)),
        }
        return Schema(columns, group="group")

    def read_raw(self, source: Path) -> Iterator[RawRow]:
        """Yield the rows of a folder's `rows.npz`, which holds x and y; ten rows in a row make a group."""
        arrays = np.load(source / "rows.npz")
        for index, (x, y) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
            ids = {"sample_id": f"row{index:05d}", "group": f"group{index // 10}"}
            yield {**ids, "x": x, "y": y, "origin": f"rows.npz row {index}"}

    def collate(self, columns: Columns) -> RidgeBatch:
        """Turn arrays into tensors."""
        names, groups = ([str(value) for value in columns[name]] for name in ("sample_id", "group"))
        tensors = (as_tensor(columns[name]) for name in ("valid", "position", "x", "y"))
        return RidgeBatch(names, groups, *tensors)

    def build_model(self) -> nn.Module:
        """One linear layer."""
        return nn.Linear(self.config.model.num_features, self.config.model.num_targets)

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count the numbers to predict."""
        return {"mse": batch.valid_B.sum() * self.config.model.num_targets}

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Sum the squared errors."""
        return {"mse": LossTerm(_squared_error(model, cast(RidgeBatch, batch)))}

    def closed_form(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows as they are."""
        batch = cast(RidgeBatch, batch)
        return batch.x_BD, batch.y_BO

    def set_closed_form(self, model: nn.Module, coef_OD: torch.Tensor, intercept_O: torch.Tensor) -> None:
        """Set the layer."""
        with torch.no_grad():
            cast(nn.Linear, model).weight.copy_(coef_OD)
            cast(nn.Linear, model).bias.copy_(intercept_O)

    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Keep the predictions and the loss."""
        batch = cast(RidgeBatch, batch)
        valid = batch.valid_B.cpu().numpy().astype(bool)
        loss = Sum(_squared_error(model, batch), batch.valid_B.sum() * self.config.model.num_targets)
        rows = Rows(
            [name for name, kept in zip(batch.sample_id, valid, strict=True) if kept],
            [name for name, kept in zip(batch.group_id, valid, strict=True) if kept],
            {"pred": model(batch.x_BD).cpu().numpy()[valid]},
        )
        return Evaluation({"loss": loss}, rows)

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the mean squared error."""
        loss = merged.sums["loss"]
        return {"loss": float(loss.value / loss.count)}


def _squared_error(model: nn.Module, batch: RidgeBatch) -> torch.Tensor:
    error_BO = torch.where(batch.valid_B[:, None], model(batch.x_BD) - batch.y_BO, 0.0)
    return error_BO.square().sum()
