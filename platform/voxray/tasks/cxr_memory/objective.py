"""Loss and metrics of the chest X-ray task, and its augmentation. Unknown labels (NaN) count in none of them.

Shapes: B rows of a batch, N rows of a split, K labels, R resamples, H × W pixels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from voxray.config.errors import InputError
from voxray.core.randomness import uniform_rows
from voxray.core.registry import import_object
from voxray.core.task import Summary
from voxray.losses.asl import asl
from voxray.losses.bce import bce
from voxray.losses.focal import focal
from voxray.metrics import thresholded
from voxray.metrics.auroc import auroc_of
from voxray.metrics.average_precision import average_precision_of
from voxray.metrics.bootstrap import group_weights, percentile_interval
from voxray.metrics.ranking import per_class
from voxray.tasks.cxr_memory.config import ObjectiveConfig

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (logits, targets) [B, K] → [B, K]
Metric = Callable[[torch.Tensor, torch.Tensor], float]  # (labels, scores) [N, K] → a number

NUM_RESAMPLES = 1000
MAX_ROTATION = 10.0  # degrees, fastai's `Rotate` default, which the guide used
FLIP_PROBABILITY = 0.5


def loss_function(config: ObjectiveConfig) -> Loss:
    """Return the elementwise loss that `objective.loss` names, with its own keys (`asl`, `focal`).

    Raises InputError where `module:function` cannot be imported or is no function.
    """
    named: dict[str, Loss] = {
        "bce": bce,
        "asl": partial(asl, **config.asl.model_dump()),
        "focal": partial(focal, **config.focal.model_dump()),
    }
    return named.get(config.loss) or _function("objective.loss", config.loss)


def metric_functions(config: ObjectiveConfig) -> dict[str, Metric]:
    """Return the extra metrics by the name under which they are logged, that of their function.

    Raises InputError where `module:function` cannot be imported or is no function.
    """
    named: dict[str, Metric] = {"accuracy": thresholded.accuracy, "macro_f1": thresholded.macro_f1}
    return {
        name.rpartition(":")[2]: named.get(name) or _on_arrays(_function("objective.metrics", name), name)
        for name in config.metrics
    }


def _function(key: str, reference: str) -> Callable[..., Any]:
    found = import_object(reference)
    if not callable(found):
        raise InputError(f"{key}: '{reference}' is no function but {type(found).__name__}")
    return found


def _on_arrays(function: Callable[..., Any], reference: str) -> Metric:
    """Return a metric of tensors from one of numpy arrays, such as scikit-learn's."""

    def metric(labels_NK: torch.Tensor, scores_NK: torch.Tensor) -> float:
        try:
            return float(function(labels_NK.numpy(), scores_NK.numpy()))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"objective.metrics: '{reference}' cannot take labels and scores {list(labels_NK.shape)} "
                f"(labels: 1, 0, NaN where unknown; scores: probabilities): {error}"
            ) from error

    return metric


def summed_loss(loss: Loss, name: str, logits_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
    """Return the sum [] over the known labels, in float32.

    Raises InputError where the function called `name` does not give one number per logit: a mean would be
    counted once for each label.
    """
    values_BK = loss(logits_BK.float(), labels_BK.nan_to_num())
    if values_BK.shape != logits_BK.shape:
        raise InputError(
            f"objective.loss: '{name}' returned shape {list(values_BK.shape)} for logits "
            f"{list(logits_BK.shape)}; return one number per logit (reduction='none')"
        )
    return torch.where(labels_BK.isnan(), 0.0, values_BK).sum()


def scores_per_class(
    labels_NK: torch.Tensor, scores_NK: torch.Tensor, weights_RN: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Return AUROC and average precision, `auroc` and `ap`, [R, K] each (R = 1 without weights).

    Both are NaN in a class that lacks positives or negatives: where all are positive, the average precision
    of any scores is 1.
    """
    areas_RK, precisions_RK = per_class([auroc_of, average_precision_of], labels_NK, scores_NK, weights_RN)
    return {"auroc": areas_RK, "ap": torch.where(areas_RK.isnan(), torch.nan, precisions_RK)}


def summary(labels_NK: torch.Tensor, scores_NK: torch.Tensor) -> Summary:
    """Return the means of AUROC and average precision over the defined classes, how many those are, and each
    class's values (NaN where undefined).
    """
    values = {name: values_1K[0] for name, values_1K in scores_per_class(labels_NK, scores_NK).items()}
    return {
        **{name: float(values_K.nanmean()) for name, values_K in values.items()},
        "num_defined": float((~values["auroc"].isnan()).sum()),
        **{f"{name}_per_class": values_K.tolist() for name, values_K in values.items()},
    }


def intervals(
    labels_NK: torch.Tensor, scores_NK: torch.Tensor, group_N: torch.Tensor, seed: int
) -> dict[str, list[tuple[float, float]]]:
    """Return 95 % intervals of the mean AUROC and average precision and of each class's, by bootstrap over
    groups (patients). A resample's mean is over the classes that are defined in it.
    """
    weights_RN = group_weights(group_N, NUM_RESAMPLES, seed)
    values = scores_per_class(labels_NK, scores_NK, weights_RN)
    means = {name: [percentile_interval(values_RK.nanmean(1))] for name, values_RK in values.items()}
    of_classes = {
        f"{name}_per_class": [percentile_interval(values_R) for values_R in values_RK.unbind(1)]
        for name, values_RK in values.items()
    }
    return means | of_classes


def augment(image_BCHW: torch.Tensor, position_B: torch.Tensor, key: int) -> torch.Tensor:
    """Return images [B, 1, H, W], each flipped left–right and turned by up to 10° with probability one half
    each.
    """
    u_B4 = uniform_rows(key, position_B, 4)
    flip_B = torch.where(u_B4[:, 0] < FLIP_PROBABILITY, -1.0, 1.0)
    degrees_B = torch.where(u_B4[:, 1] < FLIP_PROBABILITY, (2 * u_B4[:, 2] - 1) * MAX_ROTATION, 0.0)
    cos_B, sin_B = torch.cos(torch.deg2rad(degrees_B)), torch.sin(torch.deg2rad(degrees_B))
    zero_B = torch.zeros_like(cos_B)
    affine_B23 = torch.stack(
        [torch.stack([cos_B * flip_B, -sin_B, zero_B], 1), torch.stack([sin_B * flip_B, cos_B, zero_B], 1)], 1
    )
    grid_BHW2 = F.affine_grid(affine_B23, list(image_BCHW.shape), align_corners=False)
    return F.grid_sample(
        image_BCHW.float(), grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
