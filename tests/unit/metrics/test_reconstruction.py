"""PixCorr and SSIM of reconstructions, against numpy and torchmetrics."""

import numpy as np
import pytest
import torch

from voxray.metrics.image import ssim
from voxray.metrics.reconstruction import SIDE, grey_ssim, pixel_correlation


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    made = 0.7 * true + 0.3 * torch.rand(2, 3, SIDE, SIDE, generator=generator)
    return made, true


def test_pixel_correlation_is_numpys(pair) -> None:
    made, true = pair
    found = pixel_correlation(made, true)
    expected = [np.corrcoef(made[i].flatten(), true[i].flatten())[0, 1] for i in range(2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_grey_ssim_is_scikit_images(pair) -> None:
    """By scipy's filter, as its `structural_similarity` has it with gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1.
    """
    from scipy.ndimage import gaussian_filter

    made, true = pair
    for i, found in enumerate(grey_ssim(made, true).tolist()):
        x, y = (
            np.tensordot([0.2125, 0.7154, 0.0721], image[i].double().numpy(), 1) for image in (made, true)
        )
        ux, uy, uxx, uyy, uxy = (
            gaussian_filter(value, 1.5, truncate=3.5, mode="reflect") for value in (x, y, x * x, y * y, x * y)
        )
        vx, vy, vxy = uxx - ux * ux, uyy - uy * uy, uxy - ux * uy
        like = (2 * ux * uy + 1e-4) * (2 * vxy + 9e-4) / ((ux**2 + uy**2 + 1e-4) * (vx + vy + 9e-4))
        assert found == pytest.approx(like[5:-5, 5:-5].mean(), abs=1e-5)


def test_the_same_picture_is_1_at_any_size() -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert pixel_correlation(picture, picture).item() == pytest.approx(1)
    assert grey_ssim(picture, picture).item() == pytest.approx(1)
    assert ssim(picture, picture, inside=True).tolist() == [[pytest.approx(1)] * 3]
