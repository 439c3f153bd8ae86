"""How like two images or cubes are: PSNR, SSIM, and the angle between spectra.

Shapes: B images, C bands, H × W pixels.
"""

import torch
from torch.nn.functional import conv2d, pad

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian (Wang et al. 2004)
K1, K2 = 0.01, 0.03
MAX_PSNR_DB = 100.0  # of images without any error
_MOST_COSINE = 1 - 1e-7  # beyond it the angle's gradient is without bounds


def psnr(mse: torch.Tensor, data_range: float = 1.0) -> torch.Tensor:
    """Return 10 log10(data_range² / mse) in dB, at most MAX_PSNR_DB."""
    tiny = data_range**2 * 10 ** (-MAX_PSNR_DB / 10)
    return 10 * torch.log10(data_range**2 / mse.clamp(min=tiny))


def ssim(
    one_BCHW: torch.Tensor, other_BCHW: torch.Tensor, data_range: float = 1.0, inside: bool = False
) -> torch.Tensor:
    """Return structural similarity per image and band [B, C]: the mean over all pixels, images continued by
    their mirror images as torchmetrics does; NaN for images too small for that. `inside`: over the pixels
    whose windows lie inside the image, as scikit-image does.
    """
    batch, bands, height, width = one_BCHW.shape
    if min(height, width) <= WINDOW // 2:
        return one_BCHW.new_full((batch, bands), torch.nan)
    # Sums of squares lose too many digits in less than float32.
    x, y = (image.flatten(0, 1)[:, None].to(torch.promote_types(image.dtype, torch.float32))
            for image in (one_BCHW, other_BCHW))  # fmt: skip
    mean_x, mean_y, xx, yy, xy = (_blurred(image) for image in (x, y, x * x, y * y, x * y))
    var_x, var_y = (xx - mean_x**2).clamp(min=0), (yy - mean_y**2).clamp(min=0)
    covariance = xy - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    like = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    like = like / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    if inside:
        edge = WINDOW // 2
        like = like[..., edge : height - edge, edge : width - edge]
    return like.flatten(1).mean(1).reshape(batch, bands)


def spectral_angle(dot: torch.Tensor, norm_one: torch.Tensor, norm_other: torch.Tensor) -> torch.Tensor:
    """Return acos(dot / (norm_one · norm_other + 1e-8)) in radians, its argument kept from ±1 by 1e-7."""
    cosine = dot / (norm_one * norm_other + 1e-8)
    return torch.acos(cosine.clamp(-_MOST_COSINE, _MOST_COSINE))


def _blurred(images_N1HW: torch.Tensor) -> torch.Tensor:
    """Convolve with the Gaussian, one axis after the other, mirrored at the edges."""
    place = torch.arange(WINDOW, dtype=images_N1HW.dtype, device=images_N1HW.device) - WINDOW // 2
    weights = torch.exp(-((place / SIGMA) ** 2) / 2)
    weights = weights / weights.sum()
    mirrored = pad(images_N1HW, [WINDOW // 2] * 4, mode="reflect")
    along_rows = conv2d(mirrored, weights.reshape(1, 1, WINDOW, 1))
    return conv2d(along_rows, weights.reshape(1, 1, 1, WINDOW))
