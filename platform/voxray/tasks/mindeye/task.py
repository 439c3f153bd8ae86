"""The MindEye task: voxel2clip and a diffusion prior, judged by retrieval from either side (DOMAINS.md S3).

Shapes: B rows of a batch, N of an update or a split, R repeats, V voxels, T tokens, D numbers of a token,
F = T · D.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from voxray.config.errors import InputError
from voxray.core.batch import Batch
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.pictures import PictureMaker
from voxray.core.place import BEGINNING
from voxray.core.randomness import key as key_of
from voxray.core.randomness import places_rows
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Schema
from voxray.core.task import Summary, Task
from voxray.data.formats.clip_targets import PREFIX
from voxray.tasks.mindeye import objective, scores
from voxray.tasks.mindeye.config import PRIOR, VOXEL2CLIP, Config
from voxray.tasks.mindeye.data import MindEyeBatch, MindEyeData, draw_view
from voxray.tasks.mindeye.generation import SAMPLES, ReconstructionMaker
from voxray.tasks.mindeye.low_level import latent_shape
from voxray.tasks.mindeye.low_level_config import LATENT, LOW_LEVEL
from voxray.tasks.mindeye.model import MindEye
from voxray.tasks.mindeye.objective import Mixed
from voxray.tasks.mindeye.public_weights import convert
from voxray.tasks.mindeye.shared_subject import subject_places

RATIO = "mse_to_nce"  # of the weighted terms, in an update


class MindEyeTask(MindEyeData, Task):
    """Voxels → CLIP embeddings of what was seen, compared with pictures and refined by a prior."""

    SCORES = "embedding"
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes."""
        super().__init__(config, statistics, schema)
        self._terms: dict[str, torch.Tensor] = {}  # of the last update, weighted

    # --- model
    def build_model(self) -> nn.Module:
        """Build it for the dataset's voxels, target and latents. Raises InputError for what it lacks."""
        num_voxels = self.dataset_schema.columns["voxels"].shape[-1]
        assert num_voxels is not None
        return MindEye(
            self.config.model,
            num_voxels,
            *self._target_shape(),
            is_compared=self.config.has_nce,
            latent=latent_shape(self.config.model.low_level, self.dataset_schema),
        )

    def _target_shape(self) -> tuple[int, int]:
        """Return the tokens and the width of the target in the dataset."""
        target = self.config.model.target
        column = self.dataset_schema.columns.get(PREFIX + target)
        if column is None or len(column.shape) not in (1, 2) or None in column.shape:
            names = [name for name in self.dataset_schema.columns if name.startswith(PREFIX)]
            there = ", ".join(name.removeprefix(PREFIX) for name in names) or "none"
            raise InputError(
                f"the dataset has no target '{target}'; it has: {there}. Set model.target, or prepare it "
                "with clip=[{model: vit_l14}] (final), or with clip.npz beside the tars (nsd_id, final "
                "[pictures, 768], hidden [pictures, 257, 768])"
            )
        shape = [int(size) for size in column.shape if size is not None]
        return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])

    def part_weights(
        self, part: str, module: nn.Module, weights: dict[str, torch.Tensor], tell: Callable[[str], None]
    ) -> dict[str, torch.Tensor]:
        """Return the weights of a part of a run's model; those of voxel2clip and of the prior may be
        published ones. Raises InputError with everything in published ones that does not fit.
        """
        if part not in (VOXEL2CLIP, PRIOR):
            above = f"{part}."
            below = {n.removeprefix(above): value for n, value in weights.items() if n.startswith(above)}
            return below or weights
        converted = convert(part, weights, module)
        for text in converted.told():
            tell(f"{part}: {text}")
        return converted.weights

    # --- objective
    def augment(self, batch: Batch, key: int) -> MindEyeBatch:
        """Draw one of each row's repeats, one of its picture's views, and its share of its own voxels where
        they are mixed.
        """
        batch, own = draw_view(cast(MindEyeBatch, batch), key), self.config.objective
        num_B = torch.full_like(batch.position_B, batch.voxels_BRV.shape[1])
        drawn_B = places_rows(key_of(key, "repeat"), batch.position_B, num_B)
        row_B = torch.arange(len(batch), device=drawn_B.device)
        mixes = self.config.has_nce and own.mixco_fraction > 0
        return replace(
            batch,
            voxels_BV=batch.voxels_BRV[row_B, drawn_B],
            mixco_share_B=objective.drawn_shares(own, key, batch.position_B) if mixes else None,
            key=key,
        )

    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count valid rows, for each term."""
        return dict.fromkeys(self._term_names(), batch.valid_B.sum())

    def _term_names(self) -> tuple[str, ...]:
        model = self.config.model
        there = {"mse": model.prior.enabled, "nce": self.config.has_nce, LOW_LEVEL: model.low_level.enabled}
        return tuple(name for name, is_there in there.items() if is_there)

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Return the prior's squared error, the contrastive term that holds at this place, and the low-level
        branch's error, whose voxels are never mixed.
        """
        batch, model = cast(MindEyeBatch, batch), cast(MindEye, model)
        seen = self._mixed(batch)
        voxels_BV = batch.voxels_BV if seen is None else seen.voxels_BV
        found = model(voxels_BV, *self._subject_places(batch))
        terms: LossTerms = {}
        if model.prior is not None:
            error_B = self._prior_error(model, found["embedding"], batch, batch.position_B, drops=True)
            weight = objective.alpha(self.config.objective, self.place) if self.config.has_nce else 1.0
            terms["mse"] = LossTerm((error_B * batch.valid_B).sum(), weight)
        if self.config.has_nce:
            with torch.autocast(batch.voxels_BV.device.type, enabled=False):
                terms["nce"] = self._nce(found["compared"], batch, seen)
        if model.low_level is not None:
            error_B = _latent_error(model.low_level(batch.voxels_BV), batch)
            terms[LOW_LEVEL] = LossTerm((error_B * batch.valid_B).sum(), self.config.model.low_level.weight)
        return terms

    def _subject_places(self, batch: MindEyeBatch) -> tuple[torch.Tensor, ...]:
        """Return the rows' places in `model.subjects` [B]; nothing for one subject. Raises InputError for a
        row of another one.
        """
        known = self.config.model.subjects
        return (subject_places(batch.subject, batch.valid_B, known),) if known else ()

    def _mixed(self, batch: MindEyeBatch) -> Mixed | None:
        """Return the mixed voxels, where the batch is augmented and the place is one of mixing."""
        if batch.mixco_share_B is None or not objective.is_mixed(self.config.objective, self.place):
            return None
        return objective.mixed(
            batch.voxels_BV, batch.mixco_share_B, batch.valid_B, batch.position_B, batch.key
        )

    def _prior_error(
        self, model: MindEye, brain: torch.Tensor, batch: MindEyeBatch, place_B: torch.Tensor, drops: bool
    ) -> torch.Tensor:
        """Return the prior's mean squared error of each row [B]."""
        assert model.prior is not None
        target = batch.targets[self.config.model.target]
        draws = objective.prior_draws(model.prior, target, batch.key, place_B, drops)
        return model.prior.loss(brain, target, draws).error_B

    def _nce(self, compared: torch.Tensor, batch: MindEyeBatch, seen: Mixed | None) -> LossTerm:
        own, rows, valid_B = self.config.objective, self.update_rows, batch.valid_B
        pred_NF = rows.gathered("pred", compared.flatten(1), valid_B)
        true_NF = rows.gathered("target", batch.targets[self.config.model.target].flatten(1), valid_B)
        if seen is None:
            loss = objective.contrast(own, self.place, pred_NF, true_NF)
        else:
            position_N = rows.gathered("position", batch.position_B, valid_B)
            partner_N = rows.gathered("partner", seen.partner_B, valid_B)
            share_N = rows.gathered("share", seen.share_B, valid_B)
            loss = objective.mixed_contrast(own, pred_NF, true_NF, position_N, partner_N, share_N)
        return rows.term(loss, pred_NF, valid_B, objective.nce_weight(own, self.place))

    def after_step(self, model: nn.Module, outputs: LossTerms) -> None:
        """Keep the weighted terms, which the log compares."""
        self._terms = {name: (term.weight * term.sum).detach() for name, term in outputs.items()}

    def state_numbers(self, model: nn.Module) -> Summary:
        """Return alpha, the temperature, whether voxels are mixed, and how the two terms compare."""
        own, place = self.config.objective, self.place
        if not self.config.has_nce:
            return {}
        found: Summary = {"tau": objective.tau(own, place), "mixco": float(objective.is_mixed(own, place))}
        if self.config.model.prior.enabled:
            found["alpha"] = objective.alpha(own, place)
        if {"mse", "nce"} <= self._terms.keys():
            found[RATIO] = float(self._terms["mse"] / self._terms["nce"])
        return found

    # --- evaluation
    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Keep predicted and true embeddings of real rows, from the mean of their repeats, and the prior's
        error at timesteps and noise that the picture decides.
        """
        batch, model = cast(MindEyeBatch, batch), cast(MindEye, model)
        found = model(batch.voxels_BV, *self._subject_places(batch))
        keep_B = batch.valid_B
        sums: dict[str, Sum] = {}
        if model.prior is not None:
            error_B = self._prior_error(model, found["embedding"], batch, batch.nsd_id_B, drops=False)
            sums["mse"] = Sum((error_B * keep_B).sum(), keep_B.sum())
        latent_BChw = None if model.low_level is None else model.low_level(batch.voxels_BV)
        if latent_BChw is not None:
            sums[LOW_LEVEL] = Sum((_latent_error(latent_BChw, batch) * keep_B).sum(), keep_B.sum())
        keep = keep_B.cpu().numpy()
        columns = {
            "embedding": _rows_of(found["compared"], keep),
            "target": _rows_of(batch.targets[self.config.model.target], keep),
            "stimulus_id": np.asarray(batch.group_id, dtype=object)[keep],
        }
        if model.prior is not None and self.config.generation.pipeline:
            columns[SAMPLES] = self._samples(model, found["embedding"], batch.sample_id, keep)
        if latent_BChw is not None and self.config.generation.pipeline:
            columns[LATENT] = latent_BChw.float().cpu().numpy()[keep]
        names = [np.asarray(ids, dtype=object)[keep].tolist() for ids in (batch.sample_id, batch.group_id)]
        return Evaluation(sums, Rows(names[0], names[1], columns))

    def _samples(
        self, model: MindEye, brain: torch.Tensor, sample_id: list[str], keep: np.ndarray
    ) -> np.ndarray:
        """Return the prior's samples for each kept row, float32 [b, K, …]; a row's depend on no other row."""
        own, prior = self.config.generation, model.prior
        assert prior is not None
        generators = [torch.Generator().manual_seed(key_of(own.seed, "prior", name)) for name in sample_id]
        steps = prior.timesteps if own.prior_method == "ddpm" else min(own.prior_steps, prior.timesteps)
        found = prior.sample(brain, steps, own.prior_guidance, own.prior_method, generators, own.num_images)
        return found.float().cpu().numpy()[keep]

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the loss, at the temperature and weights with which training begins, its terms, the cosine
        and retrieval.
        """
        assert merged.rows is not None
        own, has_nce = self.config.objective, self.config.has_nce
        loss, terms = 0.0, dict[str, float]()
        if "mse" in merged.sums:
            terms["mse"] = float(merged.sums["mse"].value / merged.sums["mse"].count)
            loss += terms["mse"] * (objective.alpha(own, BEGINNING) if has_nce else 1.0)
        if has_nce:
            size = self.config.training.batch_size * self.config.training.accumulate_grad_batches
            terms["nce"] = objective.chunked_info_nce(*scores.unit_embeddings(merged.rows), own.tau, size)
            loss += terms["nce"] * objective.nce_weight(own, BEGINNING)
        if LOW_LEVEL in merged.sums:
            terms[LOW_LEVEL] = float(merged.sums[LOW_LEVEL].value / merged.sums[LOW_LEVEL].count)
            loss += terms[LOW_LEVEL] * self.config.model.low_level.weight
        values = scores.gallery_values(merged.rows, own, self._is_cut)
        means = {name: float(value_P.mean()) for name, value_P in values.items()}
        return {"loss": loss, **terms, scores.COSINE: float(scores.cosines(merged.rows).mean()), **means}

    @property
    def _is_cut(self) -> bool:
        return self.config.data.limit_samples is not None

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of `summarize`."""
        return ("loss", *self._term_names(), *scores.metric_names(self.config.objective))

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals of the cosine by stimulus, of retrieval over the drawn galleries."""
        assert merged.rows is not None
        return scores.intervals(merged.rows, self.config.objective, self._is_cut, seed)

    def predictions(self, merged: Evaluation) -> dict[str, np.ndarray]:
        """Return the embeddings, without the truth that the dataset holds."""
        assert merged.rows is not None
        return {name: value for name, value in merged.rows.columns.items() if name != "target"}

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the repeats' mean, and of several subjects each row's."""
        batch = cast(MindEyeBatch, batch)
        return (batch.voxels_BV, *self._subject_places(batch))

    def picture_maker(self, device: torch.device) -> PictureMaker:
        """Return what makes pictures of the prior's samples, by the pipeline of `generation`."""
        tokens, dim = self._target_shape()
        return ReconstructionMaker(self.config, tokens * dim, self.statistics, device)

    def floor(self, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
        """Return unit rows [N, F] of ridge regression on the repeats' mean, its penalty chosen by generalised
        cross-validation.
        """
        from sklearn.linear_model import RidgeCV

        known = _unit_rows(train[PREFIX + self.config.model.target])
        ridge = RidgeCV(alphas=np.logspace(0, 6, 7)).fit(train["voxels"].mean(1), known)
        return _unit_rows(ridge.predict(held_out["voxels"].mean(1)))


def _latent_error(found_BChw: torch.Tensor, batch: MindEyeBatch) -> torch.Tensor:
    """Return the mean absolute error of each row's latent [B]."""
    assert batch.latent_BChw is not None
    return (found_BChw - batch.latent_BChw).abs().flatten(1).mean(1)


def _rows_of(embedding: torch.Tensor, keep: np.ndarray) -> np.ndarray:
    """Return the kept rows [N, F], float32 or wider."""
    wide = torch.promote_types(embedding.dtype, torch.float32)
    return embedding.flatten(1).to(wide).cpu().numpy()[keep]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return F.normalize(torch.from_numpy(np.array(rows)).flatten(1), dim=-1).numpy()
