"""The hyperspectral task: masked reconstruction of cubes, and classes of pixels or cubes on its encoder.

Shapes: B rows of a batch, N of a split, C bands, H × W pixels, K kept tokens, F numbers of a row; tokens
[B, T, L, U, P] as in `masking.TokenGrid`.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from voxray.core.batch import Batch, Columns
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Schema
from voxray.core.task import Summary, Task
from voxray.tasks.hyperspectral import augment, heads, objective, scores
from voxray.tasks.hyperspectral.config import Config
from voxray.tasks.hyperspectral.data import HyperspectralBatch, HyperspectralData
from voxray.tasks.hyperspectral.figures.drawn import drawn
from voxray.tasks.hyperspectral.figures.shown import Shown
from voxray.tasks.hyperspectral.floor import SpectrumModel, fit_spectra
from voxray.tasks.hyperspectral.grid import token_grid
from voxray.tasks.hyperspectral.masking import TokenGrid, drawn_keys, hidden_tokens, kept_tokens
from voxray.tasks.hyperspectral.model import Bands, MaskedAutoencoder, SpectralAutoencoder, build
from voxray.tasks.hyperspectral.objective import Predicted, Region

Autoencoder = MaskedAutoencoder | SpectralAutoencoder


class Hyperspectral(HyperspectralData, Task):
    """Hidden tokens of a cube from those that are seen, or classes from all of them."""

    SCORES = "numbers"
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes."""
        super().__init__(config, statistics, schema)
        self._found_grid: TokenGrid | None = None

    # --- model
    @property
    def grid(self) -> TokenGrid:
        """How the dataset's cubes are cut. Raises InputError where the patch does not divide them."""
        if self._found_grid is None:
            self._found_grid = token_grid(self.config.model, self.dataset_schema.columns["cube"].shape)
        return self._found_grid

    @property
    def _has_head(self) -> bool:
        return self.config.model.head != "none"

    def build_model(self) -> nn.Module:
        """Build it for the dataset's bands and pixels. Raises InputError where the patch does not divide
        them.
        """
        return build(self.config.model, self.grid, self._bands())

    def _bands(self) -> Bands:
        num = self.grid.groups * self.grid.bands
        if not self.config.data.normalize:
            return Bands(torch.zeros(num), torch.ones(num))
        known = self.statistics.get("cube", {})
        mean, std = (
            known.get("band_mean", known.get("mean", 0.0)),
            known.get("band_std", known.get("std", 1.0)),
        )
        mean_C, std_C = (torch.as_tensor(value, dtype=torch.float32).expand(num) for value in (mean, std))
        return Bands(mean_C.clone(), std_C.clamp(min=objective.EPS_STD).clone())

    # --- objective
    def augment(self, batch: Batch, key: int) -> HyperspectralBatch:
        """Move and flip cubes, as `data.augment` says, and draw each row's mask."""
        batch, own = cast(HyperspectralBatch, batch), self.config.data
        layers = (batch.cube_BCHW, batch.measured_BHW, batch.classes_BHW)
        if own.augment == "basic":
            layers = augment.turned_and_flipped(layers, batch.position_B, key)
        elif own.augment == "spectraleye":
            layers = augment.spectraleye(layers, batch.position_B, key, own)
        return replace(
            batch,
            cube_BCHW=layers[0],
            measured_BHW=layers[1],
            classes_BHW=layers[2],
            mask_key_B=drawn_keys(key, batch.position_B),
        )

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count what each term is over: entries of scored tokens, pixels, values; or what has a known
        class.
        """
        batch = cast(HyperspectralBatch, batch)
        if self._has_head:
            return {"cross_entropy": (heads.truth(batch, self.config.model) != heads.UNKNOWN).sum()}
        region = self._region(batch, self._kept(batch))
        rows = self._row_counts(region)
        rows["variance"] = batch.valid_B
        return {name: rows[name].sum() for name in objective.term_weights(self.config.objective)}

    def _row_counts(self, region: Region) -> dict[str, torch.Tensor]:
        grid = self.grid
        return objective.row_counts(region, grid.groups * grid.bands, grid.bands)

    def _kept(self, batch: HyperspectralBatch) -> torch.Tensor:
        own = self.config.model
        return kept_tokens(batch.mask_key_B, self.grid, own.mask_ratio, own.mask_strategy)

    def _region(self, batch: HyperspectralBatch, kept_BK: torch.Tensor) -> Region:
        measured_BLP = self.grid.cut_map(batch.measured_BHW)
        hidden_BTL = hidden_tokens(kept_BK, self.grid)
        return Region(hidden_BTL, measured_BLP, batch.valid_B, self.config.objective)

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Return the terms of the reconstruction, or the cross-entropy of known classes."""
        batch = cast(HyperspectralBatch, batch)
        if self._has_head:
            return {"cross_entropy": LossTerm(self._cross_entropy(model(batch.cube_BCHW), batch))}
        kept_BK = self._kept(batch)
        raw = cast(torch.Tensor, model(batch.cube_BCHW, kept_BK))
        with torch.autocast(raw.device.type, enabled=False):  # acos and std lose too much in bf16
            region = self._region(batch, kept_BK)
            found = self._predicted(cast(Autoencoder, model), batch, raw)
            sums = {name: row_B.sum() for name, row_B in objective.row_sums(found, region).items()}
            weights = objective.term_weights(self.config.objective)
            terms = {name: LossTerm(sums[name], weight) for name, weight in weights.items() if name in sums}
            if "variance" in weights:
                terms["variance"] = self._variance(found, region, weights["variance"])
        return terms

    def _cross_entropy(self, logits: torch.Tensor, batch: HyperspectralBatch) -> torch.Tensor:
        return heads.summed_loss(logits, heads.truth(batch, self.config.model))

    def _predicted(self, model: Autoencoder, batch: HyperspectralBatch, raw: torch.Tensor) -> Predicted:
        """Return the model's output beside the truth on both scales, float32 or wider."""
        cube_BCHW = batch.cube_BCHW
        scaled_pred = raw.to(cube_BCHW.dtype)
        scaled_true = self.grid.cut(model.bands.scaled(cube_BCHW))
        plain = scaled_pred
        if self.config.objective.norm_pix:
            mean, std = objective.token_moments(scaled_true)
            plain = scaled_pred * std + mean
        return Predicted(model.bands.restored(plain), self.grid.cut(cube_BCHW), scaled_pred, scaled_true)

    def _variance(self, found: Predicted, region: Region, weight: float) -> LossTerm:
        rows, valid_B = self.update_rows, region.valid_B
        pred, true = (objective.moments(each, region.measured_BLP) for each in (found.pred, found.true))
        pred_N3C, true_N3C = rows.gathered("pred", pred, valid_B), rows.gathered("true", true, valid_B)
        return rows.term(objective.variance_loss(pred_N3C, true_N3C), pred_N3C, valid_B, weight)

    # --- evaluation
    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Keep what each real row gives to the metrics; the loss as sums."""
        batch = cast(HyperspectralBatch, batch)
        if self._has_head:
            return self._evaluate_head(model, batch)
        kept_BK = self._kept(batch)
        region = self._region(batch, kept_BK)
        found = self._predicted(cast(Autoencoder, model), batch, model(batch.cube_BCHW, kept_BK))
        weights, counts = objective.term_weights(self.config.objective), self._row_counts(region)
        sums = {
            name: Sum(weights[name] * row_B.sum(), counts[name].sum())
            for name, row_B in objective.row_sums(found, region).items()
        }
        columns = {"numbers": scores.packed(scores.reconstruction_numbers(found, region, self.grid))}
        if "variance" in weights:
            pair = (objective.moments(each, region.measured_BLP) for each in (found.pred, found.true))
            columns["moments"] = torch.stack(list(pair), 1).double()
        return Evaluation(sums, _rows(batch, columns))

    def _evaluate_head(self, model: nn.Module, batch: HyperspectralBatch) -> Evaluation:
        logits = cast(torch.Tensor, model(batch.cube_BCHW))
        known = heads.truth(batch, self.config.model)
        loss = Sum(heads.summed_loss(logits, known), (known != heads.UNKNOWN).sum())
        num = heads.num_outputs(self.config.model)
        predicted = logits.argmax(1)
        columns = {
            "numbers": heads.row_confusion(
                predicted.reshape(len(batch), -1), known.reshape(len(batch), -1), num
            )
        }
        if self.config.model.head == "segmentation":
            columns["classes"] = (predicted + 1).to(torch.int16)
        else:
            columns["scores"], columns["truth"] = logits.float().softmax(1), known
        return Evaluation({"cross_entropy": loss}, _rows(batch, columns))

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the loss and the metrics; per band the squared error, per class the accuracy."""
        rows = _rows_of(merged)
        loss = sum(float(term.value / term.count) for term in merged.sums.values())
        weights = objective.term_weights(self.config.objective)
        if not self._has_head and "variance" in weights:
            pred_N3C, true_N3C = torch.from_numpy(rows.columns["moments"]).unbind(1)
            loss += weights["variance"] * float(objective.variance_loss(pred_N3C, true_N3C))
        found = self._metrics(rows, scores.one_weight(len(rows.sample_id)))
        values = {name: value[0] for name, value in found.items()}
        return {"loss": loss} | {
            name: float(value) if value.ndim == 0 else value.tolist() for name, value in values.items()
        }

    def _metrics(self, rows: Rows, weights_RN: torch.Tensor) -> scores.Numbers:
        numbers_NF = torch.from_numpy(rows.columns["numbers"])
        if self._has_head:
            return scores.class_summary(numbers_NF, weights_RN)
        return scores.reconstruction_summary(self._unpacked(numbers_NF), weights_RN)

    def _unpacked(self, numbers_NF: torch.Tensor) -> scores.Numbers:
        return scores.unpacked(numbers_NF, scores.reconstruction_widths(self.grid.groups * self.grid.bands))

    def metric_names(self) -> tuple[str, ...]:
        """Return the loss, and accuracies and kappa or the errors of the reconstruction."""
        return ("loss", *(scores.CLASSES if self._has_head else scores.RECONSTRUCTION))

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals by patient, scene or block."""
        rows = _rows_of(merged)
        found = self._metrics(rows, scores.resampled(rows.group_id, seed))
        return {name: scores.interval_of(values_R) for name, values_R in found.items()}

    def table(self, merged: Evaluation, summary: Summary) -> list[dict[str, Any]]:
        """Return one row per metric; for heads also one per class."""
        # The floor, which a second column shows, has no loss.
        table = [row for row in super().table(merged, summary) if row["metric"] != "loss"]
        per_class = cast(list[float], summary.get("accuracy_per_class", []))
        names = self.config.model.classes or [f"class {index + 1}" for index in range(len(per_class))]
        return table + [
            {"metric": f"accuracy of {name}", "value": value}
            for name, value in zip(names, per_class, strict=False)
        ]

    def predictions(self, merged: Evaluation) -> dict[str, np.ndarray]:
        """Return each row's errors; of heads the classes of its pixels, or its probabilities and label."""
        columns = _rows_of(merged).columns
        if self.config.model.head == "segmentation":
            return {"classes": columns["classes"]}
        if self._has_head:
            one_hot = np.eye(len(self.config.model.classes))[columns["truth"]]
            one_hot[columns["truth"] == heads.UNKNOWN] = np.nan
            return {"scores": columns["scores"], "labels": one_hot}
        numbers = self._unpacked(torch.from_numpy(columns["numbers"]))
        each = {name: numbers[over] / numbers[under] for name, (over, under) in scores.QUOTIENTS.items()}
        return {name: value_N1[:, 0].numpy() for name, value_N1 in each.items()}

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the cubes, of which nothing is hidden."""
        return (cast(HyperspectralBatch, batch).cube_BCHW,)

    def shown_rows(self, model: nn.Module, columns: Columns, batch_size: int = 16) -> list[Shown]:
        """Return rows of a split with what the model makes of them, for figures; on the CPU."""
        num = len(columns["sample_id"])
        shown: list[Shown] = []
        for start in range(0, num, batch_size):
            part = {name: values[start : start + batch_size] for name, values in columns.items()}
            size = len(part["sample_id"])
            batch = self.collate(part | {"valid": np.ones(size, bool), "position": np.arange(size)})
            with torch.inference_mode():
                shown += self._shown(model, batch)
        return shown

    def _shown(self, model: nn.Module, batch: HyperspectralBatch) -> list[Shown]:
        made = hidden = predicted = None
        if not self._has_head:
            kept_BK = self._kept(batch)
            region = self._region(batch, kept_BK)
            found = self._predicted(cast(Autoencoder, model), batch, model(batch.cube_BCHW, kept_BK))
            seen_too = not region.is_masked
            hidden = self.grid.join(region.hidden_BTL[..., None, None].expand_as(found.pred))
            made = self.grid.join(found.pred)
            made = made if seen_too else torch.where(hidden, made, batch.cube_BCHW)
        elif self.config.model.head == "segmentation":
            predicted = model(batch.cube_BCHW).argmax(1) + 1
        known = (batch.wavelengths_BC, batch.cube_BCHW, batch.measured_BHW, batch.classes_BHW.long())
        wavelengths_BC, cube_BCHW, measured_BHW, classes_BHW = (value.cpu().numpy() for value in known)
        made_BCHW, hidden_BCHW, predicted_BHW = (
            [None] * len(batch) if value is None else value.cpu().numpy()
            for value in (made, hidden, predicted)
        )
        return [
            Shown(
                batch.sample_id[i],
                wavelengths_BC[i],
                cube_BCHW[i],
                measured_BHW[i],
                classes_BHW[i],
                made_BCHW[i],
                hidden_BCHW[i],
                predicted_BHW[i],
                batch.rgb[i],
            )
            for i in range(len(batch))
            if batch.valid_B[i]
        ]

    def pictures(self, model: nn.Module, batch: Batch) -> dict[str, bytes]:
        """Return a picture of the batch's first cubes, as PNG and, where `figures.format` is another, as that
        too.
        """
        own = self.config.figures
        if not own.enabled or self.config.model.head == "classification":
            return {}
        shown = self._shown(model, cast(HyperspectralBatch, batch).rows(slice(own.num_images)))
        name = "reconstructions" if not self._has_head else "classes"
        return {
            f"{name}.{kind}": drawn(shown, own, kind) for kind in dict.fromkeys(("png", own.format)) if shown
        }

    def floor(self, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
        """Return what principal components of the training spectra make of hidden bands, pixel by pixel; of
        heads a logistic regression on spectra.
        """
        own = self.config.model
        if own.head == "segmentation":
            return heads.segmentation_floor(train, held_out, own.num_classes).numpy()
        if self._has_head:
            return heads.classification_floor(train, held_out, own.classes).numpy()
        num = self.config.objective.floor_components
        num = own.latent_dim if num is None else num
        spectra = fit_spectra(train["cube"], train["measured"], num)
        rows = [self._floor_row(spectra, held_out, index) for index in range(len(held_out["sample_id"]))]
        return torch.cat(rows).numpy()

    def _floor_row(self, spectra: SpectrumModel, columns: Columns, index: int) -> torch.Tensor:
        one = {name: values[index : index + 1] for name, values in columns.items()}
        batch = self.collate(one | {"valid": np.ones(1, bool), "position": np.zeros(1, np.int64)})
        kept_BK = self._kept(batch)
        region = self._region(batch, kept_BK)
        seen = ~region.hidden_BTL[..., None, None].expand(
            -1, -1, -1, self.grid.bands, region.measured_BLP.shape[2]
        )
        predicted = spectra.predict(batch.cube_BCHW[0].numpy(), self.grid.join(seen)[0].numpy())
        pred = self.grid.cut(torch.from_numpy(predicted)[None])
        true = self.grid.cut(batch.cube_BCHW.double())
        numbers = scores.reconstruction_numbers(Predicted(pred, true, pred, true), region, self.grid)
        return scores.packed(numbers)


def _rows(batch: HyperspectralBatch, columns: dict[str, torch.Tensor]) -> Rows:
    """Return the rows that do not only pad the batch."""
    keep = batch.valid_B.cpu().numpy()
    names = [np.asarray(ids, dtype=object)[keep].tolist() for ids in (batch.sample_id, batch.group_id)]
    return Rows(names[0], names[1], {name: value.cpu().numpy()[keep] for name, value in columns.items()})


def _rows_of(merged: Evaluation) -> Rows:
    assert merged.rows is not None
    return merged.rows
