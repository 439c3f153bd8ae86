"""PSNR, SSIM and angles against torchmetrics, DOMAINS.md's gold value; accuracies and kappa against
scikit-learn.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, confusion_matrix
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    spectral_angle_mapper,
    structural_similarity_index_measure,
)

from voxray.metrics import confusion
from voxray.metrics.image import MAX_PSNR_DB, psnr, spectral_angle, ssim


def cubes(side: int = 24, bands: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(2, bands, side, side, generator=generator)
    other = (one + 0.1 * torch.randn(one.shape, generator=generator)).clamp(0.01, 1)
    return one, other


def test_psnr_is_torchmetrics() -> None:
    one, other = cubes()
    for x, y in zip(one, other, strict=True):
        theirs = peak_signal_noise_ratio(x[None], y[None], data_range=1.0)
        torch.testing.assert_close(psnr((x - y).square().mean()), theirs)
    assert float(psnr(torch.tensor(0.0))) == MAX_PSNR_DB


@pytest.mark.parametrize("side", [6, 24])
def test_ssim_is_torchmetrics_per_band(side: int) -> None:
    one, other = cubes(side)
    ours = ssim(one, other)
    for image in range(2):
        for band in range(3):
            x, y = one[image : image + 1, band : band + 1], other[image : image + 1, band : band + 1]
            theirs = structural_similarity_index_measure(x, y, data_range=1.0)
            torch.testing.assert_close(ours[image, band], theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ssim(one, one), torch.ones(2, 3))


def test_ssim_of_images_too_small_to_be_mirrored_is_undefined() -> None:
    one, other = cubes(5)
    assert ssim(one, other).isnan().all()


def test_the_angle_is_torchmetrics_and_has_the_gold_value() -> None:
    one, other = cubes()
    ours = spectral_angle((one * other).sum(1), one.norm(dim=1), other.norm(dim=1)).mean()
    torch.testing.assert_close(ours, spectral_angle_mapper(one, other), atol=1e-5, rtol=1e-5)
    gold = spectral_angle(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(math.sqrt(2)))
    assert float(gold) == pytest.approx(0.785398, abs=1e-5)


def test_class_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 200)
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    matrix = confusion.confusion(torch.from_numpy(truth), torch.from_numpy(predicted), 5)  # one never occurs
    np.testing.assert_array_equal(matrix, confusion_matrix(truth, predicted, labels=range(5)))
    assert float(confusion.overall_accuracy(matrix)) == pytest.approx(accuracy_score(truth, predicted))
    assert float(confusion.average_accuracy(matrix)) == pytest.approx(
        balanced_accuracy_score(truth, predicted)
    )
    assert float(confusion.kappa(matrix)) == pytest.approx(cohen_kappa_score(truth, predicted))
