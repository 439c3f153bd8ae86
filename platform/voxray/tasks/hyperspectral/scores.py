"""Metrics of reconstructions and of classes, from numbers per row that any split of rows adds up to.

Every metric is a quotient of two sums over rows, or follows from summed confusion matrices; so the same
numbers give the summary, its intervals by patient, and what the floor is compared by.

Shapes: N rows of a split, F numbers of a row, R sets of weights, C bands, Q classes.
"""

from collections.abc import Mapping, Sequence

import torch

from voxray.metrics import confusion
from voxray.metrics.bootstrap import group_weights, percentile_interval
from voxray.metrics.image import psnr, ssim
from voxray.tasks.hyperspectral import objective
from voxray.tasks.hyperspectral.masking import TokenGrid
from voxray.tasks.hyperspectral.objective import Predicted, Region

NUM_RESAMPLES = 1000
# metric → (numerator, denominator), names of a row's numbers
QUOTIENTS = {
    "mse": ("sse", "values"),
    "mse_masked": ("sse_masked", "values_masked"),
    "psnr": ("psnr", "has_psnr"),
    "psnr_masked": ("psnr_masked", "has_psnr_masked"),
    "ssim": ("ssim", "has_ssim"),
    "sam": ("angle", "pixels"),
    "sam_masked": ("angle_masked", "pixels_masked"),
}
RECONSTRUCTION = (*QUOTIENTS, "sam_deg")
CLASSES = ("overall_accuracy", "average_accuracy", "kappa")
_OF_MATRIX = {
    "overall_accuracy": confusion.overall_accuracy,
    "average_accuracy": confusion.average_accuracy,
    "kappa": confusion.kappa,
}

Numbers = dict[str, torch.Tensor]  # name → [B] or [B, X]


def reconstruction_numbers(found: Predicted, region: Region, grid: TokenGrid) -> Numbers:
    """Return what each row gives to the metrics. With `recon_region: masked` tokens that were seen count as
    they are; outside of measured pixels nothing is compared.
    """
    hidden_BTL, measured_BLP = region.hidden_BTL, region.measured_BLP
    shown = found.pred
    if region.is_masked:
        shown = torch.where(hidden_BTL[..., None, None], shown, found.true)
    shown = torch.where(measured_BLP[:, None, :, None], shown, found.true)
    squared = (shown - found.true).square()
    chosen = hidden_BTL[..., None] & measured_BLP[:, None]  # [B, T, L, P]
    sse_masked, num_masked = (squared.sum(3) * chosen).sum((1, 2, 3)), chosen.sum((1, 2, 3)) * grid.bands
    sse, num = squared.flatten(1).sum(1), measured_BLP.sum((1, 2)) * grid.groups * grid.bands
    alike_B = ssim(grid.join(shown), grid.join(found.true)).mean(1)
    pixels_masked = measured_BLP & hidden_BTL.any(1)[..., None]
    angle = objective.angles(shown, found.true) * measured_BLP
    angle_masked = objective.angles(found.pred, found.true, hidden_BTL) * pixels_masked
    scored = chosen if region.is_masked else measured_BLP[:, None].expand_as(chosen)
    return {
        "sse": sse,
        "values": num,
        "sse_masked": sse_masked,
        "values_masked": num_masked,
        "psnr": torch.where(num > 0, psnr(sse / num.clamp(min=1)), 0),
        "has_psnr": num > 0,
        "psnr_masked": torch.where(num_masked > 0, psnr(sse_masked / num_masked.clamp(min=1)), 0),
        "has_psnr_masked": num_masked > 0,
        "ssim": alike_B.nan_to_num(0.0),
        "has_ssim": ~alike_B.isnan(),
        "angle": angle.sum((1, 2)),
        "pixels": measured_BLP.sum((1, 2)),
        "angle_masked": angle_masked.sum((1, 2)),
        "pixels_masked": pixels_masked.sum((1, 2)),
        "band_sse": (squared * scored[:, :, :, None]).sum((2, 4)).flatten(1),
        "band_values": scored.sum((2, 3)).repeat_interleave(grid.bands, 1),
    }


def packed(numbers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the numbers side by side, float64 [B, F], in their order."""
    return torch.cat([value.double().reshape(len(value), -1) for value in numbers.values()], 1)


def reconstruction_widths(num_bands: int) -> dict[str, int]:
    """Return how many numbers each name of `reconstruction_numbers` has."""
    singles = [part for pair in QUOTIENTS.values() for part in pair]
    return {**dict.fromkeys(singles, 1), "band_sse": num_bands, "band_values": num_bands}


def unpacked(rows_NF: torch.Tensor, widths: Mapping[str, int]) -> Numbers:
    """Return the parts of `packed` by name, [N, X] each."""
    return dict(zip(widths, rows_NF.split(list(widths.values()), 1), strict=True))


def reconstruction_summary(numbers: Numbers, weights_RN: torch.Tensor) -> Numbers:
    """Return the metrics under each set of weights, [R] each, and `mse_per_band` [R, C]; NaN where a metric
    is undefined.
    """
    found = {
        name: (weights_RN @ numbers[over])[:, 0] / (weights_RN @ numbers[under])[:, 0]
        for name, (over, under) in QUOTIENTS.items()
    }
    found["sam_deg"] = found["sam"].rad2deg()
    found["mse_per_band"] = (weights_RN @ numbers["band_sse"]) / (weights_RN @ numbers["band_values"])
    return found


def class_summary(matrices_NX: torch.Tensor, weights_RN: torch.Tensor) -> Numbers:
    """Return overall and average accuracy and kappa under each set of weights [R], and each class' accuracy
    [R, Q]; from rows' confusion matrices [N, Q²].
    """
    num_classes = round(matrices_NX.shape[1] ** 0.5)
    matrix_RQQ = (weights_RN @ matrices_NX).reshape(-1, num_classes, num_classes)
    found = {name: function(matrix_RQQ) for name, function in _OF_MATRIX.items()}
    found["accuracy_per_class"] = matrix_RQQ.diagonal(dim1=1, dim2=2) / matrix_RQQ.sum(2)
    return found


def one_weight(num_rows: int) -> torch.Tensor:
    """Return the weights of the rows as they are, [1, N]."""
    return torch.ones(1, num_rows, dtype=torch.float64)


def resampled(group_id: Sequence[str], seed: int) -> torch.Tensor:
    """Return how often each row comes when groups are drawn with replacement, float64 [R, N]."""
    known = {name: index for index, name in enumerate(sorted(set(group_id)))}
    group_N = torch.tensor([known[name] for name in group_id])
    return group_weights(group_N, NUM_RESAMPLES, seed).double()


def interval_of(values_R: torch.Tensor) -> list[tuple[float, float]]:
    """Return the 95 % interval of a metric, or of each of its entries [R, X]."""
    columns = values_R[:, None] if values_R.ndim == 1 else values_R
    return [percentile_interval(column_R) for column_R in columns.unbind(1)]
