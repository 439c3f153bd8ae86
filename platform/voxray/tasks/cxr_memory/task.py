"""The chest X-ray task: multi-label classification with unknown labels, judged by AUROC per class."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from voxray.core.batch import Batch, Columns
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import Stage
from voxray.core.schema import Schema
from voxray.core.task import BadRow, MapStage, RawRow, Summary, SynthReport, Task
from voxray.tasks.cxr_memory import data, objective
from voxray.tasks.cxr_memory.config import LABELS, Config
from voxray.tasks.cxr_memory.data import CxrBatch
from voxray.tasks.cxr_memory.model import CxrClassifier


class CxrMemory(Task):
    """Chest X-rays → probabilities of 14 findings."""

    Config = Config
    config: Config

    def __init__(
        self, config: Config, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Look up the loss and the extra metrics too: a run ends at its beginning where there is none."""
        super().__init__(config, statistics, schema)
        self._loss = objective.loss_function(config.objective)
        self._metrics = objective.metric_functions(config.objective)

    # --- data
    def schema(self) -> Schema:
        """Image, labels and the patient; see `data.schema`."""
        return data.schema(self.config)

    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Read a folder in the layout of NIH, CheXpert, MIMIC-CXR-JPG, or with a `labels.csv`."""
        return data.read_raw(source, self.config.data.prepare)

    def map_stages(self) -> list[MapStage]:
        """Decode and resize."""
        return data.map_stages()

    def synth(self, out: Path, size: str, seed: int) -> SynthReport:
        """Write synthetic radiographs in the NIH layout."""
        return data.synth(out, size, seed)

    def collate(self, columns: Columns) -> CxrBatch:
        """Images as uint8, labels as float32 with NaN for unknown."""
        return data.collate(columns)

    # --- model and objective
    def build_model(self) -> nn.Module:
        """Backbone, bank and head; without pretrained weights images are normalised by the training split's
        statistics.
        """
        pixels = self.statistics.get("image", {"mean": 0.5, "std": 0.25})
        config = self.config
        return CxrClassifier(
            config.model,
            config.memory,
            len(LABELS),
            pixels["mean"],
            pixels["std"],
            config.training.seed,
            self.dataset_schema.columns["image"].shape[-1],
        )

    def before_step(self, model: nn.Module) -> None:
        """Let the bank follow the stage's values, and drop what a skipped update left."""
        bank = cast(CxrClassifier, model).bank
        if bank is not None:
            bank.config = self.config.memory
            bank.forget()

    def after_step(self, model: nn.Module, outputs: LossTerms) -> None:
        """Write the update's features into the bank."""
        bank = cast(CxrClassifier, model).bank
        if bank is not None:
            bank.write()

    def state_numbers(self, model: nn.Module) -> Summary:
        """Return what the bank holds: how many vectors, of which age, with which findings."""
        bank = cast(CxrClassifier, model).bank
        return {} if bank is None else {f"bank/{name}": value for name, value in bank.state.numbers().items()}

    def augment(self, batch: Batch, key: int) -> CxrBatch:
        """Flip and turn the images, where the objective asks for it."""
        batch = cast(CxrBatch, batch)
        if not self.config.objective.augment:
            return batch
        return replace(batch, image_BCHW=objective.augment(batch.image_BCHW, batch.position_B, key))

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count the known labels; with `reduction: sum` nothing, as the loop divides by 1 then."""
        num_known = (~cast(CxrBatch, batch).labels_BK.isnan()).sum()
        is_sum = self.config.objective.reduction == "sum"
        return {self._term: torch.zeros_like(num_known) if is_sum else num_known}

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Sum the loss over the known labels."""
        batch = cast(CxrBatch, batch)
        bank = cast(CxrClassifier, model).bank
        if bank is not None and model.training:
            bank.expect(batch.valid_B, batch.labels_BK, batch.row_B)
        logits_BK = model(batch.image_BCHW)
        return {self._term: LossTerm(self._summed(logits_BK, batch.labels_BK))}

    @property
    def _term(self) -> str:
        return self.config.objective.loss.rpartition(":")[2]

    def _summed(self, logits_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        return objective.summed_loss(self._loss, self.config.objective.loss, logits_BK, labels_BK)

    # --- evaluation
    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Keep probabilities and labels of real rows; the loss as a sum."""
        batch = cast(CxrBatch, batch)
        logits_BK = model(batch.image_BCHW).float()
        keep = batch.valid_B.cpu().numpy()
        names = [np.asarray(ids, dtype=object)[keep].tolist() for ids in (batch.sample_id, batch.group_id)]
        columns = {
            "scores": logits_BK.sigmoid().cpu().numpy()[keep],
            "labels": batch.labels_BK.cpu().numpy()[keep],
        }
        loss = Sum(self._summed(logits_BK, batch.labels_BK), (~batch.labels_BK.isnan()).sum())
        return Evaluation({"loss": loss}, Rows(names[0], names[1], columns))

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the loss per known label, AUROC and average precision (`ap`) per class and their means over
        the defined ones, extra metrics.
        """
        labels_NK, scores_NK = _tensors(merged)
        loss = merged.sums["loss"]
        extra = {name: metric(labels_NK, scores_NK) for name, metric in self._metrics.items()}
        return {
            "loss": float(loss.value / loss.count),
            **objective.summary(labels_NK, scores_NK),
            **extra,
        }

    def metric_names(self) -> tuple[str, ...]:
        """Return the loss, both means, the number of defined classes, extra metrics by their function's
        name.
        """
        return ("loss", "auroc", "ap", "num_defined", *self._metrics)

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals by patient."""
        labels_NK, scores_NK = _tensors(merged)
        assert merged.rows is not None
        _, group_N = np.unique(np.asarray(merged.rows.group_id), return_inverse=True)
        return objective.intervals(labels_NK, scores_NK, torch.from_numpy(group_N), seed)

    def table(self, merged: Evaluation, summary: Summary) -> list[dict[str, Any]]:
        """Return one row per finding: how many positives there are, AUROC and average precision."""
        labels_NK, _ = _tensors(merged)
        columns = {
            "label": LABELS,
            "positives": (labels_NK == 1).sum(0).tolist(),
            "auroc": cast(list[float], summary["auroc_per_class"]),
            "ap": cast(list[float], summary["ap_per_class"]),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the images, as stored: grey levels 0-255."""
        return (cast(CxrBatch, batch).image_BCHW,)

    def floor(self, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
        """Return scores [N, K] of PCA and logistic regression on the pixels."""
        return data.floor(train, held_out)


def _tensors(merged: Evaluation) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (labels [N, K], probabilities [N, K]) of a merged evaluation."""
    assert merged.rows is not None
    return torch.from_numpy(merged.rows.columns["labels"]), torch.from_numpy(merged.rows.columns["scores"])
