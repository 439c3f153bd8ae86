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
from voxray.core.registry import import_object
from voxray.core.run_config import Stage
from voxray.core.schema import Schema
from voxray.core.task import BadRow, MapStage, RawRow, Summary, SynthReport, Task
from voxray.losses.bce import bce
from voxray.metrics.auroc import auroc_per_class
from voxray.tasks.cxr_memory import data, objective
from voxray.tasks.cxr_memory.config import LABELS, Config
from voxray.tasks.cxr_memory.data import CxrBatch
from voxray.tasks.cxr_memory.model import CxrClassifier


class CxrMemory(Task):
    """Chest X-rays → probabilities of 14 findings."""

    Config = Config
    config: Config

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
        """Backbone and head; images are normalised by the training split's statistics."""
        pixels = self.statistics.get("image", {"mean": 0.5, "std": 0.25})
        config = self.config
        return CxrClassifier(
            config.model, config.memory, len(LABELS), pixels["mean"], pixels["std"], config.training.seed
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

    def augment(self, batch: Batch, key: int) -> CxrBatch:
        """Flip and turn the images, where the objective asks for it."""
        batch = cast(CxrBatch, batch)
        if not self.config.objective.augment:
            return batch
        return replace(batch, image_BCHW=objective.augment(batch.image_BCHW, batch.position_B, key))

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count the known labels."""
        return {"bce": (~cast(CxrBatch, batch).labels_BK.isnan()).sum()}

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Sum the loss over the known labels."""
        batch = cast(CxrBatch, batch)
        logits_BK = model(batch.image_BCHW)
        bank = cast(CxrClassifier, model).bank
        if bank is not None and model.training:
            bank.mark_valid(batch.valid_B)
        return {"bce": LossTerm(self._summed(logits_BK, batch.labels_BK))}

    def _summed(self, logits_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        name = self.config.objective.loss
        elementwise = bce if name == "bce" else import_object(name)
        known_BK = ~labels_BK.isnan()
        return torch.where(known_BK, elementwise(logits_BK.float(), labels_BK.nan_to_num()), 0.0).sum()

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
        """Return the loss, AUROC per class (NaN where undefined), their mean over defined classes, extra
        metrics.
        """
        labels_NK, scores_NK = _tensors(merged)
        areas_K = auroc_per_class(labels_NK, scores_NK)[0]
        loss = merged.sums["loss"]
        summary: Summary = {
            "loss": float(loss.value / loss.count),
            "auroc": float(areas_K.nanmean()),
            "num_defined": float((~areas_K.isnan()).sum()),
            "auroc_per_class": areas_K.tolist(),
        }
        for reference in self.config.objective.metrics:
            summary[_short(reference)] = float(import_object(reference)(labels_NK.numpy(), scores_NK.numpy()))
        return summary

    def metric_names(self) -> tuple[str, ...]:
        """Return loss, auroc, the number of defined classes, and extra metrics by their function's name."""
        return ("loss", "auroc", "num_defined", *map(_short, self.config.objective.metrics))

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals by patient."""
        labels_NK, scores_NK = _tensors(merged)
        assert merged.rows is not None
        _, group_N = np.unique(np.asarray(merged.rows.group_id), return_inverse=True)
        return objective.auroc_intervals(labels_NK, scores_NK, torch.from_numpy(group_N), seed)

    def table(self, merged: Evaluation, summary: Summary) -> list[dict[str, Any]]:
        """Return one row per finding: how many positives there are, and the AUROC."""
        labels_NK, _ = _tensors(merged)
        areas = cast(list[float], summary["auroc_per_class"])
        positives_K = (labels_NK == 1).sum(0).tolist()
        return [
            {"label": name, "positives": positives, "auroc": area}
            for name, positives, area in zip(LABELS, positives_K, areas, strict=True)
        ]

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


def _short(reference: str) -> str:
    return reference.rpartition(":")[2]
