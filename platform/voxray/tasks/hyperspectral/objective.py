"""The losses of DOMAINS.md S2.b, in float32 also under autocast, as sums per row and their counts.

Shapes: B rows, T groups of U bands, L places of P pixels; C = T · U bands. `scaled` values are the model's,
others the dataset's; they are the same without `data.normalize`.
"""

from dataclasses import dataclass

import torch

from voxray.metrics.image import spectral_angle
from voxray.tasks.hyperspectral.config import ObjectiveConfig

EPS_STD = 1e-6
_TINY_VARIANCE = 1e-12  # keeps the root's gradient finite where all predictions are equal


@dataclass(frozen=True)
class Region:
    """What is scored: hidden tokens, measured pixels, rows that do not only pad the batch."""

    hidden_BTL: torch.Tensor
    measured_BLP: torch.Tensor
    valid_B: torch.Tensor
    config: ObjectiveConfig

    @property
    def is_masked(self) -> bool:
        """Whether only what is hidden is scored."""
        return self.config.recon_region == "masked" or self.config.loss == "spectralgpt"

    def tokens(self) -> torch.Tensor:
        """Return the tokens that are scored, bool [B, T, L]."""
        chosen_BTL = self.hidden_BTL if self.is_masked else torch.ones_like(self.hidden_BTL)
        return chosen_BTL & self.valid_B[:, None, None]

    def entries(self) -> torch.Tensor:
        """Return the pixels of tokens whose squared errors count, bool [B, T, L, P]."""
        if self.config.mse_over == "measured":
            return self.tokens()[..., None] & self.measured_BLP[:, None]
        return self.tokens()[..., None].expand(-1, -1, -1, self.measured_BLP.shape[2])

    def pixels(self) -> torch.Tensor:
        """Return the pixels whose spectra count: measured, with a scored token; bool [B, L, P]."""
        return self.measured_BLP & self.tokens().any(1)[..., None]


@dataclass(frozen=True)
class Predicted:
    """A prediction beside the truth, [B, T, L, U, P] each, on the dataset's and on the model's scale."""

    pred: torch.Tensor
    true: torch.Tensor
    scaled_pred: torch.Tensor  # as the model gives it: of normalised tokens with `norm_pix`
    scaled_true: torch.Tensor


def term_weights(config: ObjectiveConfig) -> dict[str, float]:
    """Return the terms that are used and their weights."""
    if config.loss == "spectralgpt":
        return {"mse": 1.0, "spatial_sum": 1.0}
    weights = {
        "mse": config.mse,
        "sam": config.sam,
        "variance": config.variance,
        "range": config.range_penalty,
    }
    return {name: weight for name, weight in weights.items() if weight}


def row_counts(region: Region, num_bands: int, per_token: int) -> dict[str, torch.Tensor]:
    """Return each additive term's count per row [B], from the data and the mask alone: entries of tokens,
    pixels, values of a cube, values of a place's summed token.
    """
    valid_B = region.valid_B
    places, pixels = region.measured_BLP.shape[1:]
    return {
        "mse": region.entries().sum((1, 2, 3)) * per_token,
        "sam": region.pixels().sum((1, 2)),
        "range": valid_B * (num_bands * places * pixels),
        "spatial_sum": valid_B * (per_token * places * pixels),
    }


def row_sums(found: Predicted, region: Region) -> dict[str, torch.Tensor]:
    """Return each additive term's sum per row [B]; `row_counts` divides it."""
    sums: dict[str, torch.Tensor] = {}
    used = term_weights(region.config)
    if "mse" in used:
        squared_BTLP = (found.scaled_pred - scaled_target(found, region.config)).square().sum(3)
        sums["mse"] = (squared_BTLP * region.entries()).sum((1, 2, 3))
    if "sam" in used:
        sums["sam"] = (angles(found.pred, found.true) * region.pixels()).sum((1, 2))
    if "range" in used:
        outside = (-found.pred).relu() + (found.pred - 1).relu()
        sums["range"] = outside.flatten(1).sum(1) * region.valid_B
    if "spatial_sum" in used:
        gap_BLUP = found.scaled_pred.sum(1) - scaled_target(found, region.config).sum(1)
        sums["spatial_sum"] = gap_BLUP.square().flatten(1).sum(1) * region.valid_B
    return sums


def scaled_target(found: Predicted, config: ObjectiveConfig) -> torch.Tensor:
    """Return what the model is to give; with `norm_pix` each token less its mean, over its deviation."""
    if not config.norm_pix:
        return found.scaled_true
    mean, std = token_moments(found.scaled_true)
    return (found.scaled_true - mean) / std


def token_moments(tokens_BTLUP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's mean and sqrt(variance + 1e-6), as MAE's norm_pix_loss has them."""
    mean = tokens_BTLUP.mean((3, 4), keepdim=True)
    variance = tokens_BTLUP.var((3, 4), keepdim=True, correction=1)
    return mean, (variance + EPS_STD).sqrt()


def angles(
    one_BTLUP: torch.Tensor, other_BTLUP: torch.Tensor, chosen_BTL: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the angle between the spectra of each pixel in radians [B, L, P], over all bands or over those
    of the chosen tokens.
    """
    weight = 1.0 if chosen_BTL is None else chosen_BTL[..., None, None].to(one_BTLUP.dtype)
    one, other = one_BTLUP * weight, other_BTLUP * weight
    dot = (one * other).sum((1, 3))
    # A norm's gradient is NaN at 0, and a collapsed model predicts 0.
    norms = ((values * values).sum((1, 3)).clamp(min=_TINY_VARIANCE).sqrt() for values in (one, other))
    return spectral_angle(dot, *norms)


def moments(tokens_BTLUP: torch.Tensor, measured_BLP: torch.Tensor) -> torch.Tensor:
    """Return each row's and band's count, mean and sum of squared deviations over measured pixels
    [B, 3, C].
    """
    weight_BLP = measured_BLP.to(tokens_BTLUP.dtype)
    count_B1 = weight_BLP.sum((1, 2))[:, None]
    weight = weight_BLP[:, None, :, None]
    mean_BTU = (tokens_BTLUP * weight).sum((2, 4)) / count_B1[..., None].clamp(min=1)
    away = (tokens_BTLUP - mean_BTU[:, :, None, :, None]).square() * weight
    mean_BC, squares_BC = mean_BTU.flatten(1), away.sum((2, 4)).flatten(1)
    return torch.stack([count_B1.expand_as(mean_BC), mean_BC, squares_BC], dim=1)


def band_std(moments_N3C: torch.Tensor) -> torch.Tensor:
    """Return each band's standard deviation over the pixels of all rows [C], from `moments`."""
    count_NC, mean_NC, squares_NC = moments_N3C.unbind(1)
    total_C = count_NC.sum(0).clamp(min=1)
    mean_C = (count_NC * mean_NC).sum(0) / total_C
    variance_C = (squares_NC + count_NC * (mean_NC - mean_C).square()).sum(0) / total_C
    return variance_C.clamp(min=_TINY_VARIANCE).sqrt()


def variance_loss(pred_N3C: torch.Tensor, true_N3C: torch.Tensor) -> torch.Tensor:
    """Return the mean over bands of relu(1 - std_pred / (std_true + 1e-6)), from both moments."""
    return (1 - band_std(pred_N3C) / (band_std(true_N3C) + EPS_STD)).relu().mean()
