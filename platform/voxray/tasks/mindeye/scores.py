"""How well brain embeddings score: image and brain retrieval, two-way identification, cosine.

Galleries are drawn as MindEye draws its batches (DOMAINS.md S3.d): `num_galleries` times `gallery` pictures
without replacement; image retrieval looks from the brain's embedding for the picture, brain retrieval the
other way round.

Shapes: N rows of a split, S pictures, P galleries, G pictures of a gallery, F numbers of an embedding.
"""

import numpy as np
import torch
from torch.nn import functional as F

from voxray.config.errors import InputError
from voxray.core.evaluation import Rows
from voxray.metrics.bootstrap import group_weights, percentile_interval
from voxray.metrics.retrieval import places
from voxray.metrics.weighted import weighted_means
from voxray.tasks.mindeye.config import MindEyeObjectiveConfig

NUM_RESAMPLES = 1000
COSINE = "cosine_similarity"
_NORMAL_95 = 1.96


def metric_names(own: MindEyeObjectiveConfig) -> tuple[str, ...]:
    """Return the metrics' names; those of galleries come after the cosine."""
    return (COSINE, *gallery_names(own))


def gallery_names(own: MindEyeObjectiveConfig) -> tuple[str, ...]:
    """Return the names of the metrics over galleries: a gallery's size is part of them."""
    pool = f"of_{own.gallery}"
    return (f"image_r1_{pool}", f"brain_r1_{pool}", f"two_way_{pool}")


def unit_embeddings(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predicted and true unit rows [N, F], float32 or wider."""
    pair = (torch.from_numpy(rows.columns[name]) for name in ("embedding", "target"))
    pred_NF, true_NF = (F.normalize(value.flatten(1), dim=-1) for value in pair)
    return pred_NF, true_NF


def drawn_galleries(stimulus_N: np.ndarray, own: MindEyeObjectiveConfig) -> list[torch.Tensor]:
    """Return the rows [G] of each gallery, one per picture: where several rows show a picture, one of them.

    The draw depends on the pictures' names alone. Raises ValueError for fewer pictures than a gallery has.
    """
    names, place_N = np.unique(stimulus_N.astype(str), return_inverse=True)
    size = len(names) if own.gallery == "all" else own.gallery
    if len(names) < size:
        raise ValueError(f"a gallery of {size} needs as many pictures, and there are {len(names)}")
    by_picture = np.split(np.argsort(place_N, kind="stable"), np.cumsum(np.bincount(place_N))[:-1])
    rng = np.random.default_rng(0)
    found: list[torch.Tensor] = []
    for _ in range(1 if own.gallery == "all" else own.num_galleries):
        chosen = rng.permutation(len(names))[:size]
        u_G = rng.random(size)
        rows = [by_picture[s][int(u * len(by_picture[s]))] for s, u in zip(chosen, u_G, strict=True)]
        found.append(torch.tensor(np.array(rows)))
    return found


def gallery_values(rows: Rows, own: MindEyeObjectiveConfig, is_cut: bool = False) -> dict[str, torch.Tensor]:
    """Return each gallery's value of each metric, float64 [P]; NaN where few rows by `data.limit_samples`
    (`is_cut`) make no gallery.

    Raises InputError for fewer pictures than a gallery has.
    """
    try:
        galleries = drawn_galleries(rows.columns["stimulus_id"], own)
    except ValueError as error:
        if is_cut:
            return {name: torch.full((1,), torch.nan).double() for name in gallery_names(own)}
        raise InputError(
            f"objective.gallery={own.gallery}: {error}; set it to that or less, or to all"
        ) from None
    pair = unit_embeddings(rows)
    values_PM = torch.stack([_picture_values(*pair, chosen_G).mean(1) for chosen_G in galleries])
    return dict(zip(gallery_names(own), values_PM.T, strict=True))


def _picture_values(pred_NF: torch.Tensor, true_NF: torch.Tensor, chosen_G: torch.Tensor) -> torch.Tensor:
    """Return what each picture of a gallery adds to each metric's mean, float64 [M, G]."""
    own_G = torch.arange(len(chosen_G))
    image = places(pred_NF[chosen_G], true_NF[chosen_G], own_G)
    brain = places(true_NF[chosen_G], pred_NF[chosen_G], own_G)
    return torch.stack(
        [values_G.double() for values_G in (image.recall(1), brain.recall(1), image.two_way())]
    )


def cosines(rows: Rows) -> torch.Tensor:
    """Return each row's cosine with its truth, float64 [N]."""
    pred_NF, true_NF = unit_embeddings(rows)
    return (pred_NF * true_NF).sum(1).double()


def intervals(
    rows: Rows, own: MindEyeObjectiveConfig, is_cut: bool, seed: int
) -> dict[str, list[tuple[float, float]]]:
    """Return 95 % intervals: of the cosine by resampled groups; of retrieval, as MindEye tells them, the mean
    over galleries ± 1.96 standard errors, which is what the draw of the galleries leaves open. Where a
    gallery is all pictures it stays whole, and the pictures that are looked for are resampled.
    """
    _, group_N = np.unique(np.asarray(rows.group_id), return_inverse=True)
    weight_RN = group_weights(torch.from_numpy(group_N), NUM_RESAMPLES, seed)
    mean_R = weighted_means(cosines(rows)[:, None], weight_RN)[:, 0]
    found = {COSINE: [percentile_interval(mean_R)]}
    num_pictures = len(set(rows.columns["stimulus_id"].tolist()))
    if own.gallery in ("all", num_pictures):
        (chosen_G, *_) = drawn_galleries(rows.columns["stimulus_id"], own)
        values_GM = _picture_values(*unit_embeddings(rows), chosen_G).T
        mean_RM = weighted_means(values_GM, group_weights(torch.arange(num_pictures), NUM_RESAMPLES, seed))
        pairs = zip(gallery_names(own), mean_RM.T, strict=True)
        return found | {name: [percentile_interval(mean_R)] for name, mean_R in pairs}
    for name, value_P in gallery_values(rows, own, is_cut).items():
        if len(value_P) > 1:
            mean, half = float(value_P.mean()), _NORMAL_95 * float(value_P.std()) / len(value_P) ** 0.5
            found[name] = [(mean - half, mean + half)]
    return found
