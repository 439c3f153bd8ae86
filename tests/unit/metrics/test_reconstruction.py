"""Scores of reconstructions, against numpy and scipy."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voxray.metrics.image import ssim
from voxray.metrics.reconstruction import (
    SIDE,
    correlation_distance,
    correlations,
    grey_ssim,
    identified,
    pixel_correlation,
    reconstruction_scores,
)


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


# --- features
# -------------------------------------------------------------------------------------------------------


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(9, 12, generator=generator) + 3
    return 0.4 * true + torch.randn(9, 12, generator=generator), true


def identified_by_hand(made: np.ndarray, true: np.ndarray) -> float:
    """DOMAINS.md S3.d: r = corrcoef(reals, preds)[:N, N:]; per column the count r < diag; mean / (N - 1)."""
    num = len(made)
    r = np.corrcoef(true, made)[:num, num:]
    won = sum(r[other, own] < r[own, own] for own in range(num) for other in range(num) if other != own)
    return won / (num * (num - 1))


def test_two_way_identification_is_upstreams(features) -> None:
    made, true = features
    found = identified(correlations(true, made))
    assert found == pytest.approx(identified_by_hand(made.numpy(), true.numpy()))
    assert 0.5 < found < 1
    assert identified(correlations(made, true)) != pytest.approx(found)  # which side asks does matter


def test_two_way_identification_of_a_gold_value() -> None:
    r = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.4, 0.8], [0.5, 0.1, 0.6]])  # DOMAINS.md section 7
    assert identified(r) == pytest.approx(0.833333, abs=1e-6)
    columns = torch.tensor([[0.5, 0.9, 0.9], [0.1, 0.3, 0.9], [0.1, 0.1, 0.7]])
    assert identified(columns) == pytest.approx((2 + 1 + 0) / 6)
    assert identified(torch.ones(4, 4)) == 0  # ties are misses


def test_correlation_distance_is_scipys(features) -> None:
    from scipy.spatial.distance import correlation

    made, true = features
    expected = [correlation(true[i].double().numpy(), made[i].double().numpy()) for i in range(9)]
    assert correlation_distance(made, true).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_constant_has_no_correlation(features) -> None:
    made, true = features
    made = made.index_fill(0, torch.tensor([2]), 0.1)
    assert correlations(true, made)[:, 2].isnan().all()
    assert correlation_distance(made, true).isnan().nonzero().tolist() == [[2]]
    assert identified(correlations(true, made)) < identified(correlations(true, features[0]))


class Pooled:
    """A network whose features are means over blocks of pixels."""

    def __init__(self, measure: Literal["two_way", "distance"]) -> None:
        self.measure: Literal["two_way", "distance"] = measure

    def __call__(self, pictures_B3HW: torch.Tensor) -> Mapping[str, torch.Tensor]:
        assert pictures_B3HW.shape[1:] == (3, 256, 256)
        assert len(pictures_B3HW) <= 16
        return {f"{size}": F.avg_pool2d(pictures_B3HW, size).flatten(1) for size in (32, 64)}


def test_scores_of_pictures_of_any_size() -> None:
    rng = np.random.default_rng(0)
    true = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(18)]
    made = [np.clip(p + rng.normal(0, 300, p.shape), 0, 255).astype(np.uint8).repeat(3, 0) for p in true]
    networks = [Pooled("two_way"), Pooled("distance")]
    found = reconstruction_scores(
        [torch.from_numpy(p) for p in made], list(map(torch.from_numpy, true)), networks
    )
    first = [
        torch.cat(
            [
                F.interpolate(
                    torch.from_numpy(p).permute(2, 0, 1)[None] / 255,
                    (256, 256),
                    mode="bilinear",
                    antialias=True,
                )
                for p in pictures
            ]
        )
        for pictures in (made, true)
    ]
    assert found.num == 18
    assert found.pixcorr == pytest.approx(float(pixel_correlation(*first).mean()), abs=1e-6)
    assert found.ssim == pytest.approx(float(grey_ssim(*first).mean()), abs=1e-5)
    turned = {}
    for size in (32, 64):
        made_NF, true_NF = (F.avg_pool2d(pictures, size).flatten(1) for pictures in first)
        assert found.two_way[str(size)] == pytest.approx(identified_by_hand(made_NF.numpy(), true_NF.numpy()))
        turned[str(size)] = pytest.approx(identified_by_hand(true_NF.numpy(), made_NF.numpy()))
        distance = float(correlation_distance(made_NF, true_NF).mean())
        assert found.distance[str(size)] == pytest.approx(distance, abs=1e-6)
    assert found.two_way != turned  # which side asks does matter
    said = found.lines()
    assert said[0] == f"PixCorr {found.pixcorr:.3f}, SSIM {found.ssim:.3f} over 18 rows"
    assert said[1].startswith("two-way identification (chance 0.5): 32 ")
    assert said[2].startswith("correlation distance (lower is better): 32 ")


def test_one_pair_cannot_be_told_from_others() -> None:
    picture = [torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))]
    found = reconstruction_scores(picture, picture, [Pooled("two_way"), Pooled("distance")])
    assert found.two_way == {}
    assert found.distance == {"32": pytest.approx(0, abs=1e-9), "64": pytest.approx(0, abs=1e-9)}
    assert len(found.lines()) == 2
