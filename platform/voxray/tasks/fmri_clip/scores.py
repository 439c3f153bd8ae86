"""How well predictions score: retrieval by cosine per row, the correlation of voxels, and their intervals.

Shapes: N rows of a split, V voxels, D an embedding's width, R resamples.
"""

from collections.abc import Mapping

import numpy as np
import torch

from voxray.config.errors import InputError
from voxray.core.evaluation import Rows, Sum
from voxray.core.task import Summary
from voxray.metrics.bootstrap import group_weights, percentile_interval
from voxray.metrics.correlation import PairSums, row_correlation
from voxray.metrics.noise_ceiling import largest_correlation
from voxray.metrics.retrieval import galleries, gallery_places
from voxray.metrics.weighted import weighted_means, weighted_medians
from voxray.tasks.fmri_clip.config import FmriClipObjectiveConfig

NUM_RESAMPLES = 1000
VOXEL_NAMES = ("voxel_r", "voxel_r_ceiling", "sample_r", "num_constant")
_PAIRS, _MEDIAN = "pairs/", "median_"
_OF_ALL_ROWS = ("cosine_similarity",)


def retrieval_names(own: FmriClipObjectiveConfig) -> tuple[str, ...]:
    """Return the names of the metrics that rows have, in the order in which they are told."""
    pool = f"of_{own.gallery}"
    recalls = (f"r{k}_{pool}" for k in _ranks(own))
    return ("cosine_similarity", *recalls, f"mrr_{pool}", "two_way", f"{_MEDIAN}rank_{pool}")


def retrieval_rows(rows: Rows, own: FmriClipObjectiveConfig, is_cut: bool = False) -> dict[str, torch.Tensor]:
    """Return each metric's values over the rows, float64 [N]; NaN for stimuli that are in no gallery.

    Raises InputError for fewer stimuli than a gallery has; rows that were cut short (`is_cut`) then have no
    gallery.
    """
    pred_ND, true_ND = embeddings(rows)
    stimulus, first, stimulus_N = np.unique(
        rows.columns["stimulus_id"].astype(str), return_index=True, return_inverse=True
    )
    size = None if own.gallery == "all" else own.gallery
    if is_cut and size is not None and len(stimulus) < size:
        gallery_S = torch.full((len(stimulus),), -1)
    else:
        check_gallery(own, len(stimulus), "what is evaluated")
        gallery_S = galleries(stimulus.tolist(), size)
    found = gallery_places(pred_ND, true_ND[first], torch.from_numpy(stimulus_N), gallery_S)
    values = (
        (pred_ND * true_ND).sum(1).double(),
        *(found.recall(k) for k in _ranks(own)),
        found.reciprocal_rank(),
        found.two_way(),
        found.rank(),
    )
    return dict(zip(retrieval_names(own), values, strict=True))


def check_gallery(own: FmriClipObjectiveConfig, num_stimuli: int, where: str) -> None:
    """Raise InputError for fewer stimuli than a gallery has."""
    if own.gallery != "all" and num_stimuli < own.gallery:
        smaller = f"objective.gallery={num_stimuli} or less, or " if num_stimuli > 1 else ""
        raise InputError(
            f"objective.gallery={own.gallery}, but {where} has {num_stimuli} stimuli; set {smaller}"
            "objective.gallery=all"
        )


def embeddings(rows: Rows, prefix: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Return predicted and true unit rows [N, D]."""
    columns = rows.columns
    return torch.from_numpy(columns[f"{prefix}embedding"]), torch.from_numpy(columns[f"{prefix}target"])


def averaged(
    values: Mapping[str, torch.Tensor], weights_RN: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Return each metric [R] over the rows that have it: the mean, the median of ranks; R is 1 without
    weights. A cosine that is not a number stays one.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value_N in values.items():
        known_N = torch.ones_like(value_N, dtype=torch.bool) if name in _OF_ALL_ROWS else ~value_N.isnan()
        weights = torch.ones(1, len(value_N)) if weights_RN is None else weights_RN
        kept = weights if known_N.all() else weights[:, known_N]
        if not known_N.any():
            found[name] = torch.full((len(weights),), torch.nan, dtype=torch.float64)
        elif name.startswith(_MEDIAN):
            found[name] = weighted_medians(value_N[known_N], kept)
        else:
            found[name] = weighted_means(value_N[known_N][:, None], kept)[:, 0]
    return found


def intervals(
    values: Mapping[str, torch.Tensor], group_id: list[str], seed: int
) -> dict[str, list[tuple[float, float]]]:
    """Return 95 % intervals by group (stimulus or session); the galleries stay what they are."""
    _, group_N = np.unique(np.asarray(group_id), return_inverse=True)
    weight_RN = group_weights(torch.from_numpy(group_N), NUM_RESAMPLES, seed)
    return {name: [percentile_interval(value_R)] for name, value_R in averaged(values, weight_RN).items()}


def voxel_sums(
    pred_BV: torch.Tensor, true_BV: torch.Tensor, num_trials_B: torch.Tensor | None
) -> dict[str, Sum]:
    """Return what `voxel_summary` is made from; `num_trials_B` are the trials in each row's mean, 1 each
    where it is None.
    """
    num_rows = torch.tensor(len(true_BV))
    sums = {f"{_PAIRS}{name}": Sum(value, num_rows) for name, value in PairSums.of(pred_BV, true_BV).named()}
    inverse_B = torch.ones(len(true_BV)) if num_trials_B is None else 1 / num_trials_B.double()
    sums["inverse_trials"] = Sum(inverse_B.sum(), num_rows)
    sums["mse"] = Sum((pred_BV - true_BV).square().sum(), torch.tensor(true_BV.numel()))
    return sums


def sample_correlation(pred_BV: torch.Tensor, true_BV: torch.Tensor) -> np.ndarray:
    """Return each row's correlation over its voxels, float64 [B]."""
    return row_correlation(pred_BV, true_BV).cpu().numpy()


def voxel_correlation(sums: Mapping[str, Sum]) -> torch.Tensor:
    """Return Pearson's r over rows of each voxel [V]; NaN for a voxel that never changes."""
    pairs = {name.removeprefix(_PAIRS): s.value for name, s in sums.items() if name.startswith(_PAIRS)}
    return PairSums.from_named(pairs).correlation()


def voxel_ceiling(sums: Mapping[str, Sum], ncsnr_V: torch.Tensor) -> torch.Tensor:
    """Return the r that a model of the signal itself is expected to have [V]."""
    inverse = sums["inverse_trials"]
    return largest_correlation(ncsnr_V, float(inverse.value / inverse.count))


def voxel_summary(sums: Mapping[str, Sum], sample_r_N: np.ndarray, ncsnr_V: torch.Tensor | None) -> Summary:
    """Return the mean over voxels of Pearson's r over rows, beside the mean that the noise leaves possible
    (NaN where `ncsnr_V` was not measured), the mean over rows of r over voxels, and the number of voxels that
    never change, which have no r.
    """
    r_V = voxel_correlation(sums)
    known_V = ~r_V.isnan()
    ceiling = torch.nan if ncsnr_V is None else float(voxel_ceiling(sums, ncsnr_V[known_V]).mean())
    found = (r_V.nanmean(), ceiling, torch.from_numpy(sample_r_N).nanmean(), (~known_V).sum())
    return dict(zip(VOXEL_NAMES, map(float, found), strict=True))


def _ranks(own: FmriClipObjectiveConfig) -> list[int]:
    """Return the K of recall at K that a gallery does not make 1."""
    return [k for k in own.ranks if own.gallery == "all" or k < own.gallery]
