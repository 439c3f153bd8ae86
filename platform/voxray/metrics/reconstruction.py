"""How like the picture that was seen a reconstruction is, by pixels (DOMAINS.md S3.d: PixCorr, SSIM).

Shapes: B pictures, H × W pixels.
"""

import torch
from torch.nn import functional as F

from voxray.metrics.correlation import row_correlation
from voxray.metrics.image import ssim

SIDE = 425  # pixels, of NSD's pictures: both are compared at this size
_LUMINANCE = (0.2125, 0.7154, 0.0721)  # of red, green, blue (ITU-R BT.709, as scikit-image has it)


def resized(pictures_B3HW: torch.Tensor) -> torch.Tensor:
    """Return pictures float [B, 3, 425, 425], bilinear with antialiasing."""
    return F.interpolate(pictures_B3HW, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def pixel_correlation(made_B3HW: torch.Tensor, true_B3HW: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r over all pixels and colours of each pair [B], at 425 × 425."""
    return row_correlation(resized(made_B3HW).flatten(1), resized(true_B3HW).flatten(1))


def grey_ssim(made_B3HW: torch.Tensor, true_B3HW: torch.Tensor) -> torch.Tensor:
    """Return structural similarity of each pair in grey [B], at 425 × 425; pictures are from 0 to 1."""
    grey = [_grey(resized(pictures)) for pictures in (made_B3HW, true_B3HW)]
    return ssim(grey[0], grey[1], 1.0, inside=True)[:, 0]


def _grey(pictures_B3HW: torch.Tensor) -> torch.Tensor:
    weight_3 = torch.tensor(_LUMINANCE, dtype=pictures_B3HW.dtype, device=pictures_B3HW.device)
    return torch.einsum("bchw,c->bhw", pictures_B3HW, weight_3)[:, None]
