"""The fMRI-to-CLIP task: encoders judged by retrieval, and the inverse map judged by voxel-wise correlation.

Shapes: B rows of a batch, N of a split, V voxels, D an embedding's width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.batch import Batch
from voxray.core.clip_tower import CLIPS
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.pictures import PictureMaker
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Schema
from voxray.core.task import Summary, Task
from voxray.data.formats.clip_targets import PREFIX
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.tasks.fmri_clip import objective, scores
from voxray.tasks.fmri_clip.config import Config, EncoderConfig
from voxray.tasks.fmri_clip.data import SPACE, FmriClipBatch, FmriClipData, draw_repeat
from voxray.tasks.fmri_clip.generation import StimulusMaker
from voxray.tasks.fmri_clip.model import ClipAdapter, Encoder, Inverse, unit_rows
from voxray.tasks.fmri_clip.voxel_maps import voxel_files, voxel_values

POOLED = "pooled_"  # columns of what InfoNCE compares: the mean over several targets


class FmriClip(FmriClipData, Task):
    """Voxels → CLIP embeddings of what was seen, or back."""

    SCORES = "embedding"
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes."""
        super().__init__(config, statistics, schema)
        self._kept_of: dict[float | None, torch.Tensor] = {}

    # --- model
    def build_model(self) -> nn.Module:
        """Build the architecture for the dataset's voxels and targets. Raises InputError for a target that
        the dataset lacks or that has another width than its CLIP.
        """
        model = self.config.model
        if model.architecture == "clip2fmri":
            return Inverse(model, self._dim(model.target, model.clip), self._kept(model))
        if model.architecture == "clip_adapter":
            if model.encoder is None:
                raise InputError("model.encoder: the adapter has no encoder; set training.parts.encoder=RUN")
            inner = self._encoder(model.encoder)
            dim = self._dim(model.encoder.target, model.encoder.clip)
            return ClipAdapter(model, inner, dim, self._dim(model.target, model.clip))
        return self._encoder(model, is_trained=True)

    def _encoder(self, config: EncoderConfig, is_trained: bool = False) -> Encoder:
        own = self.config.objective
        dims = {name: self._dim(name, config.clip) for name in dict.fromkeys((*config.layers, config.target))}
        weights = {name: own.layer_weights[name] for name in dims} if config.layers and is_trained else None
        brain = self._brain(dims[config.target]) if is_trained and own.brain_consistency else None
        encoder = Encoder(config, self._kept(config), dims, weights, brain)
        learns_weights = own.learn_layer_weights and own.cosine > 0
        encoder.layer_logits.requires_grad_(encoder.layer_logits.requires_grad and learns_weights)
        encoder.projectors.requires_grad_(is_trained and own.info_nce > 0)
        return encoder

    def _brain(self, dim: int) -> Inverse:
        """Return the inverse network of brain consistency, for embeddings of `dim` numbers."""
        inverse = self.config.model.brain
        if inverse is None or inverse.architecture != "clip2fmri":
            raise InputError(
                "objective.brain_consistency: there is no inverse network; set training.parts.brain=RUN, a "
                "run of clip2fmri"
            )
        width = self._dim(inverse.target, inverse.clip)
        if width != dim:
            raise InputError(
                f"objective.brain_consistency: the inverse network takes '{inverse.target}' of {width} "
                f"numbers, and '{self.config.model.target}' has {dim}; name a run of clip2fmri on that target"
            )
        return Inverse(inverse, width, self._kept(inverse))

    def _dim(self, target: str, clip: str) -> int:
        """Return a target's width in the dataset."""
        column = self.dataset_schema.columns.get(PREFIX + target)
        if column is None or len(column.shape) != 1 or column.shape[0] is None:
            there = [
                name.removeprefix(PREFIX) for name in self.dataset_schema.columns if name.startswith(PREFIX)
            ]
            raise InputError(
                f"the dataset has no target '{target}'; it has: {', '.join(there) or 'none'}. Targets are "
                "computed by `voxray data prepare … clip=[{model: vit_l14}]`"
            )
        width, tower = int(column.shape[0]), CLIPS.get(clip)
        expected = tower and (tower.block_dim if "layer_" in target else tower.embedding_dim)
        if expected and expected != width:
            raise InputError(
                f"model.clip={clip} has {expected} numbers in '{target}', and the dataset {width}; "
                "prepare it with that tower, or leave model.clip out"
            )
        return width

    def _kept(self, config: EncoderConfig) -> torch.Tensor:
        """Return the places of the voxels that are used, int64 [v]."""
        if config.min_reliability not in self._kept_of:
            self._kept_of[config.min_reliability] = self._reliable(config.min_reliability)
        return self._kept_of[config.min_reliability]

    def _reliable(self, least: float | None) -> torch.Tensor:
        num = self.dataset_schema.columns["x"].shape[-1]
        assert num is not None
        if least is None:
            return torch.arange(num)
        measured = self.statistics.get("x", {}).get("reliability")
        if measured is None:
            raise InputError(
                "model.min_reliability: the dataset's voxels were not measured; prepare it with "
                "reliability=true, from raw files in which training stimuli repeat"
            )
        kept = (torch.as_tensor(measured) >= least).nonzero()[:, 0]
        if not len(kept):
            raise InputError(
                f"model.min_reliability={least:g} leaves no voxel; the most reliable has "
                f"{float(np.max(measured)):.3f}"
            )
        return kept

    # --- objective
    def augment(self, batch: Batch, key: int) -> FmriClipBatch:
        """Draw a trial where repeats are stacked; noise, voxel dropout and mixup, where `data.augmentation`
        asks for them.
        """
        batch = draw_repeat(cast(FmriClipBatch, batch), key)
        if not self.config.data.augmentation:
            return batch
        x_BV, targets = objective.augmented(
            batch.x_BV, batch.targets, batch.valid_B, batch.position_B, key, self.config.data
        )
        return replace(batch, x_BV=x_BV, targets=targets)

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count valid rows, and for squared errors their entries."""
        batch, own = cast(FmriClipBatch, batch), self.config.objective
        rows = batch.valid_B.sum()
        if self.config.model.architecture == "clip2fmri":
            return {"mse": rows * len(self._kept(self.config.model))}
        dim = batch.targets[self.config.model.target].shape[1]
        counts = {"mse": rows * dim if own.mse else None, "info_nce": rows if own.info_nce else None}
        if own.cosine:
            counts |= dict.fromkeys(self._cosine_terms().values(), rows)
        if own.brain_consistency and self.config.model.brain is not None:
            counts["brain"] = rows * len(self._kept(self.config.model.brain))
        return {name: count for name, count in counts.items() if count is not None}

    def _cosine_terms(self) -> dict[str, str]:
        """Return target → its term's name."""
        model = self.config.model
        names = tuple(dict.fromkeys((*model.layers, model.target)))
        return {name: f"cosine_{name}" if len(names) > 1 else "cosine" for name in names}

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Return squared error, cosine (weighted over the layers), InfoNCE and brain consistency."""
        batch, own = cast(FmriClipBatch, batch), self.config.objective
        if isinstance(model, Inverse):
            truth_BV = model.voxels(batch.x_BV)
            predicted_BV = model(batch.targets[self.config.model.target])
            return {"mse": LossTerm(objective.squared_error(predicted_BV, truth_BV, batch.valid_B))}
        found = model(batch.x_BV)
        terms = self._own_terms(model, found, batch)
        if own.info_nce:
            terms["info_nce"] = self._info_nce(model, found, batch)
        return terms

    def _own_terms(self, model: nn.Module, found: dict[str, torch.Tensor], batch: FmriClipBatch) -> LossTerms:
        """Return the terms in which rows do not meet: squared error, cosine, brain consistency."""
        own, target, valid_B = self.config.objective, self.config.model.target, batch.valid_B
        terms: LossTerms = {}
        if own.mse:
            wrong = objective.squared_error(found[target], batch.targets[target], valid_B)
            terms["mse"] = LossTerm(wrong, own.mse)
        if own.cosine:
            weights = model.layer_weights() if isinstance(model, Encoder) else {}
            for name, term in self._cosine_terms().items():
                away = objective.cosine_distance(found[name], batch.targets[name], valid_B)
                terms[term] = LossTerm(away * weights[name] if len(found) > 1 else away, own.cosine)
        if own.brain_consistency and isinstance(model, Encoder) and model.brain is not None:
            imagined_BV, seen_BV = model.brain(found[target]), model.brain.voxels(batch.x_BV)
            wrong = objective.squared_error(imagined_BV, seen_BV, valid_B)
            terms["brain"] = LossTerm(wrong, own.brain_consistency)
        return terms

    def _info_nce(self, model: nn.Module, found: dict[str, torch.Tensor], batch: FmriClipBatch) -> LossTerm:
        own, rows = self.config.objective, self.update_rows
        pred_BD, true_BD = _compared(model, found, batch)
        pred_ND = rows.gathered("pred", pred_BD, batch.valid_B)
        true_ND = rows.gathered("target", true_BD, batch.valid_B)
        loss = objective.info_nce(pred_ND, true_ND, own.tau)
        return rows.term(loss, pred_ND, batch.valid_B, own.info_nce)

    def closed_form(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the voxels that are used and the target's unit rows."""
        batch, encoder = cast(FmriClipBatch, batch), _linear_encoder(model)
        return encoder.voxels(batch.x_BV), batch.targets[encoder.target]

    def set_closed_form(self, model: nn.Module, coef_OD: torch.Tensor, intercept_O: torch.Tensor) -> None:
        """Put the regression into the linear head."""
        encoder = _linear_encoder(model)
        head = cast(nn.Linear, encoder.heads[encoder.target])
        with torch.no_grad():
            head.weight.copy_(coef_OD)
            head.bias.copy_(intercept_O)

    def state_numbers(self, model: nn.Module) -> Summary:
        """Return the layers' weights."""
        if not (isinstance(model, Encoder) and len(model.names) > 1):
            return {}
        return {f"layers/{name}": float(weight.detach()) for name, weight in model.layer_weights().items()}

    # --- evaluation
    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Keep predicted and true embeddings of real rows; of clip2fmri each voxel's sums."""
        batch = cast(FmriClipBatch, batch)
        if isinstance(model, Inverse):
            return self._evaluate_voxels(model, batch)
        found = model(batch.x_BV)
        terms = self._own_terms(model, found, batch)
        counts = self.normalizers(batch, stage)
        sums = {name: Sum(term.weight * term.sum, counts[name]) for name, term in terms.items()}
        keep = batch.valid_B.cpu().numpy()
        target = self.config.model.target
        columns = {
            **self._pooled_columns(model, found, batch, keep),
            "embedding": found[target].float().cpu().numpy()[keep],
            "target": batch.targets[target].float().cpu().numpy()[keep],
            "stimulus_id": np.asarray(batch.stimulus_id, dtype=object)[keep],
        }
        return Evaluation(sums, _rows(batch, keep, columns))

    def _pooled_columns(
        self, model: nn.Module, found: dict[str, torch.Tensor], batch: FmriClipBatch, keep: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return what InfoNCE compares, where it is not the predicted target itself."""
        if not self.config.objective.info_nce or len(found) == 1:
            return {}
        pairs = zip(("embedding", "target"), _compared(model, found, batch), strict=True)
        return {f"{POOLED}{name}": rows_BD.float().cpu().numpy()[keep] for name, rows_BD in pairs}

    def _evaluate_voxels(self, model: Inverse, batch: FmriClipBatch) -> Evaluation:
        keep_B = batch.valid_B
        true_BV = model.voxels(batch.x_BV)[keep_B].float()
        pred_BV = model(batch.targets[self.config.model.target])[keep_B].float()
        num_trials_B = None if batch.num_trials_B is None else batch.num_trials_B[keep_B]
        columns = {"sample_r": scores.sample_correlation(pred_BV, true_BV)}
        sums = scores.voxel_sums(pred_BV, true_BV, num_trials_B)
        return Evaluation(sums, _rows(batch, keep_B.cpu().numpy(), columns))

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the loss, cosine and retrieval; of clip2fmri the correlations over samples and voxels."""
        assert merged.rows is not None
        rows, own = merged.rows, self.config.objective
        if self.config.model.architecture == "clip2fmri":
            mse = merged.sums["mse"]
            found = scores.voxel_summary(merged.sums, rows.columns["sample_r"], self._ncsnr())
            return {"loss": float(mse.value / mse.count), **found}
        loss = sum(float(term.value / term.count) for term in merged.sums.values())
        if own.info_nce:
            compared = scores.embeddings(rows, POOLED if f"{POOLED}target" in rows.columns else "")
            size = self.config.training.batch_size * self.config.training.accumulate_grad_batches
            loss += own.info_nce * objective.chunked_info_nce(*compared, own.tau, size)
        values = scores.averaged(self._retrieval(rows))
        num_stimuli = float(len(set(rows.columns["stimulus_id"].tolist())))
        return {
            "loss": loss,
            **{name: float(value_1) for name, value_1 in values.items()},
            "num_stimuli": num_stimuli,
        }

    def _ncsnr(self) -> torch.Tensor | None:
        """Return the signal-to-noise ratio of the voxels that are used [v], where it was measured."""
        measured = self.statistics.get("x", {}).get("ncsnr")
        return None if measured is None else torch.as_tensor(measured)[self._kept(self.config.model)]

    def _retrieval(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Return each metric's values over the rows [N]; a run that is cut short may have none."""
        return scores.retrieval_rows(rows, self.config.objective, self._is_cut())

    def _is_cut(self) -> bool:
        """Whether the config has a run see a few rows only, as one that is tried out does."""
        return self.config.data.limit_samples is not None or self.config.training.overfit_batches is not None

    def check_evaluated(self, split: str, column: Callable[[str], np.ndarray]) -> None:
        """Refuse a split with fewer stimuli than a gallery has."""
        own = self.config.objective
        is_judged_so = self.config.model.architecture != "clip2fmri" and own.gallery != "all"
        if is_judged_so and not self._is_cut():
            scores.check_gallery(own, len(np.unique(column("stimulus_id").astype(str))), f"split '{split}'")

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of `summarize`."""
        if self.config.model.architecture == "clip2fmri":
            return ("loss", *scores.VOXEL_NAMES)
        return ("loss", *scores.retrieval_names(self.config.objective), "num_stimuli")

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals by stimulus (or session); the galleries stay what they are."""
        assert merged.rows is not None
        rows = merged.rows
        if self.config.model.architecture == "clip2fmri":
            values = {"sample_r": torch.from_numpy(rows.columns["sample_r"])}
        else:
            values = self._retrieval(rows)
        return scores.intervals(values, rows.group_id, seed)

    def predictions(self, merged: Evaluation) -> dict[str, np.ndarray]:
        """Return the embeddings, without the truth that the dataset holds."""
        assert merged.rows is not None
        left_out = ("target", f"{POOLED}target", f"{POOLED}embedding")
        return {name: value for name, value in merged.rows.columns.items() if name not in left_out}

    def evaluation_files(self, model: nn.Module, merged: Evaluation, split: str) -> dict[str, bytes]:
        """Return a table of the voxels (r of clip2fmri, weights of encoders), and volumes of them where the
        dataset says where they lie.
        """
        space = self.statistics.get("x", {}).get(SPACE)
        known = None if space is None else VoxelSpace.from_plain(space)
        return voxel_files(*voxel_values(model, merged, self._ncsnr()), known, split)

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the voxels, or for clip2fmri the embeddings."""
        batch, model = cast(FmriClipBatch, batch), self.config.model
        return (batch.targets[model.target] if model.architecture == "clip2fmri" else batch.x_BV,)

    def picture_maker(self, device: torch.device) -> PictureMaker:
        """Return what makes pictures from predicted embeddings, by the pipeline of `generation`."""
        model = self.config.model
        return StimulusMaker(self.config, self._dim(model.target, model.clip), self.statistics, device)

    def floor(self, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
        """Return unit rows [N, D] of ridge regression, its penalty chosen by generalised cross-validation."""
        from sklearn.linear_model import RidgeCV

        if self.config.model.architecture == "clip2fmri":
            raise InputError(
                "model.architecture=clip2fmri has no linear floor here; model.inverse=linear is one"
            )
        name = PREFIX + self.config.model.target
        known = unit_rows(torch.from_numpy(np.array(train[name]))).numpy()
        ridge = RidgeCV(alphas=np.logspace(0, 6, 7)).fit(train["x"], known)
        return unit_rows(torch.from_numpy(ridge.predict(held_out["x"]))).numpy()


def _linear_encoder(model: nn.Module) -> Encoder:
    """Return a model that a closed form can fill."""
    is_linear = isinstance(model, Encoder) and isinstance(model.body, nn.Identity) and len(model.names) == 1
    if not is_linear:
        raise InputError("training.stepper=closed_form solves model.architecture=ridge alone")
    return cast(Encoder, model)


def _compared(
    model: nn.Module, found: dict[str, torch.Tensor], batch: FmriClipBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predicted and true unit rows [B, D] as InfoNCE compares them: the mean over several targets."""
    truth = {name: batch.targets[name] for name in found}
    if isinstance(model, Encoder):
        return model.pooled(found), model.pooled(truth)
    (pred_BD,), (true_BD,) = found.values(), truth.values()
    return pred_BD, true_BD


def _rows(batch: FmriClipBatch, keep: np.ndarray, columns: dict[str, np.ndarray]) -> Rows:
    names = [np.asarray(ids, dtype=object)[keep].tolist() for ids in (batch.sample_id, batch.group_id)]
    return Rows(names[0], names[1], columns)
