"""The fMRI-to-CLIP task: encoders judged by retrieval, and the inverse map judged by voxel-wise correlation.

Shapes: B rows of a batch, N of a split, S stimuli, V voxels, D an embedding's width, R resamples.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.batch import Batch
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.pictures import PictureMaker
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Schema
from voxray.core.task import Summary, Task
from voxray.data.formats.clip_targets import PREFIX
from voxray.metrics.bootstrap import group_weights, percentile_interval
from voxray.metrics.correlation import PairSums, row_correlation
from voxray.metrics.retrieval import galleries, gallery_ranks, two_way
from voxray.tasks.fmri_clip import objective
from voxray.tasks.fmri_clip.config import CLIPS, Config, EncoderConfig
from voxray.tasks.fmri_clip.data import FmriClipBatch, FmriClipData
from voxray.tasks.fmri_clip.generation import StimulusMaker
from voxray.tasks.fmri_clip.model import ClipAdapter, Encoder, Inverse, unit_rows

NUM_RESAMPLES = 1000


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
        inverse = self.config.model.brain if is_trained and own.brain_consistency else None
        brain = None
        if inverse is not None:
            brain = Inverse(inverse, self._dim(inverse.target, inverse.clip), self._kept(inverse))
        encoder = Encoder(config, self._kept(config), dims, weights, brain)
        encoder.layer_logits.requires_grad_(encoder.layer_logits.requires_grad and own.learn_layer_weights)
        return encoder

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
        """Noise, voxel dropout and mixup, where `data.augmentation` asks for them."""
        batch = cast(FmriClipBatch, batch)
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
        truth = {name: batch.targets[name] for name in found}
        if isinstance(model, Encoder):
            pred_BD, true_BD = model.pooled(found), model.pooled(truth)
        else:
            (pred_BD,), (true_BD,) = found.values(), truth.values()
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
        return {f"layers/{name}": float(weight) for name, weight in model.layer_weights().items()}

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
            "embedding": found[target].float().cpu().numpy()[keep],
            "target": batch.targets[target].float().cpu().numpy()[keep],
            "stimulus_id": np.asarray(batch.stimulus_id, dtype=object)[keep],
        }
        return Evaluation(sums, _rows(batch, keep, columns))

    def _evaluate_voxels(self, model: Inverse, batch: FmriClipBatch) -> Evaluation:
        keep_B = batch.valid_B
        true_BV = model.voxels(batch.x_BV)[keep_B].float()
        pred_BV = model(batch.targets[self.config.model.target])[keep_B].float()
        sums = {
            f"voxels/{name}": Sum(value, keep_B.sum())
            for name, value in PairSums.of(pred_BV, true_BV).named()
        }
        keep = keep_B.cpu().numpy()
        columns = {"sample_r": row_correlation(pred_BV, true_BV).cpu().numpy()}
        wrong = (pred_BV - true_BV).square().sum()
        sums["mse"] = Sum(wrong, torch.tensor(true_BV.numel()))
        return Evaluation(sums, _rows(batch, keep, columns))

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the loss, cosine and retrieval; of clip2fmri the correlations over samples and voxels."""
        terms = {
            name: float(term.value / term.count) for name, term in merged.sums.items() if "/" not in name
        }
        assert merged.rows is not None
        if self.config.model.architecture == "clip2fmri":
            r_V = PairSums.from_named(
                {n.partition("/")[2]: s.value for n, s in merged.sums.items() if "/" in n}
            ).correlation()
            sample_r = float(np.nanmean(merged.rows.columns["sample_r"]))
            num_constant = float(r_V.isnan().sum())
            voxel_r = float(r_V.nanmean())
            return {
                "loss": terms["mse"],
                "voxel_r": voxel_r,
                "sample_r": sample_r,
                "num_constant": num_constant,
            }
        values, _ = self._per_row(merged)
        own = self.config.objective
        loss = sum(terms.values())
        if own.info_nce:
            pred_ND, true_ND = _embeddings(merged)
            size = self.config.training.batch_size * self.config.training.accumulate_grad_batches
            loss += own.info_nce * objective.chunked_info_nce(pred_ND, true_ND, own.tau, size)
        rank_N = values["rank"]
        pool = f"of_{own.gallery}"
        return {
            "loss": loss,
            **{name: float(value_N.nanmean()) for name, value_N in values.items() if name != "rank"},
            f"median_rank_{pool}": float(rank_N[~rank_N.isnan()].median()),
            "num_stimuli": float(len(set(merged.rows.columns["stimulus_id"].tolist()))),
        }

    def _per_row(self, merged: Evaluation) -> tuple[dict[str, torch.Tensor], int]:
        """Return what is known of each row, float64 [N], by metric, with `rank`; and the gallery's size."""
        assert merged.rows is not None
        own = self.config.objective
        pred_ND, true_ND = _embeddings(merged)
        names, first, stimulus_N = np.unique(
            merged.rows.columns["stimulus_id"].astype(str), return_index=True, return_inverse=True
        )
        size = len(names) if own.gallery == "all" else own.gallery
        try:
            gallery_S = galleries(names.tolist(), None if own.gallery == "all" else own.gallery)
        except ValueError:
            raise InputError(
                f"objective.gallery={own.gallery}, but the evaluated rows have {len(names)} stimuli; set it "
                "to that or less, or to all"
            ) from None
        rank_N = gallery_ranks(pred_ND, true_ND[first], torch.from_numpy(stimulus_N), gallery_S)
        known_N = ~rank_N.isnan()
        pool = f"of_{own.gallery}"

        def among(value_N: torch.Tensor) -> torch.Tensor:
            return torch.where(known_N, value_N.double(), torch.nan)

        return {
            "cosine_similarity": (pred_ND * true_ND).sum(1).double(),
            **{f"r{k}_{pool}": among(rank_N <= k) for k in self._ranks()},
            f"mrr_{pool}": among(1 / rank_N),
            "two_way": among(two_way(rank_N, size)),
            "rank": rank_N,
        }, size

    def _ranks(self) -> list[int]:
        """Return the K of recall at K that a gallery does not make 1."""
        gallery = self.config.objective.gallery
        return [k for k in self.config.objective.ranks if gallery == "all" or k < gallery]

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of `summarize`."""
        own = self.config.objective
        if self.config.model.architecture == "clip2fmri":
            return ("loss", "voxel_r", "sample_r", "num_constant")
        pool = f"of_{own.gallery}"
        ranked = (*(f"r{k}_{pool}" for k in self._ranks()), f"mrr_{pool}", "two_way", f"median_rank_{pool}")
        return ("loss", "cosine_similarity", *ranked, "num_stimuli")

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals by stimulus (or session); the galleries stay what they are."""
        assert merged.rows is not None
        _, group_N = np.unique(np.asarray(merged.rows.group_id), return_inverse=True)
        weight_RN = group_weights(torch.from_numpy(group_N), NUM_RESAMPLES, seed)
        if self.config.model.architecture == "clip2fmri":
            values = {"sample_r": torch.from_numpy(merged.rows.columns["sample_r"]).double()}
        else:
            values = self._per_row(merged)[0]
            values.pop("rank")
        return {
            name: [percentile_interval(_weighted_means(value_N, weight_RN))]
            for name, value_N in values.items()
        }

    def predictions(self, merged: Evaluation) -> dict[str, np.ndarray]:
        """Return the embeddings, without the truth that the dataset holds."""
        assert merged.rows is not None
        return {name: value for name, value in merged.rows.columns.items() if name != "target"}

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


def _rows(batch: FmriClipBatch, keep: np.ndarray, columns: dict[str, np.ndarray]) -> Rows:
    names = [np.asarray(ids, dtype=object)[keep].tolist() for ids in (batch.sample_id, batch.group_id)]
    return Rows(names[0], names[1], columns)


def _embeddings(merged: Evaluation) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predicted and true unit rows [N, D]."""
    assert merged.rows is not None
    columns: dict[str, Any] = merged.rows.columns
    return torch.from_numpy(columns["embedding"]), torch.from_numpy(columns["target"])


def _weighted_means(value_N: torch.Tensor, weight_RN: torch.Tensor) -> torch.Tensor:
    """Return the mean of the known values under each row of weights [R]."""
    known_N = ~value_N.isnan()
    weight_RN = weight_RN[:, known_N].double()
    return (weight_RN @ value_N[known_N]) / weight_RN.sum(1)
