"""Correlations and weighted means and medians against numpy; the noise ceiling on a planted signal."""

import numpy as np
import pytest
import torch

from voxray.metrics.correlation import PairSums, row_correlation
from voxray.metrics.noise_ceiling import largest_correlation, noise_ceiling
from voxray.metrics.weighted import weighted_means, weighted_medians


def pairs(num: int, voxels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_NV = rng.standard_normal((num, voxels)).astype(np.float32)
    return x_NV, (0.5 * x_NV + rng.standard_normal((num, voxels))).astype(np.float32)


def by_numpy(x_NV: np.ndarray, y_NV: np.ndarray) -> list[float]:
    columns = zip(x_NV.T.astype(np.float64), y_NV.T.astype(np.float64), strict=True)
    return [np.corrcoef(x, y)[0, 1] for x, y in columns]


def summed(x_NV: np.ndarray, y_NV: np.ndarray, size: int) -> PairSums:
    total: dict[str, torch.Tensor] = {}
    for start in range(0, len(x_NV), size):
        batch = slice(start, start + size)
        sums = PairSums.of(torch.tensor(x_NV[batch]), torch.tensor(y_NV[batch]))
        for name, value in sums.named():
            total[name] = total[name] + value if name in total else value
    return PairSums.from_named(total)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_columns_equal_numpy_however_rows_are_batched(size: int) -> None:
    x_NV, y_NV = pairs(101, 9)
    found_V = summed(x_NV, y_NV, size).correlation()
    np.testing.assert_allclose(found_V, by_numpy(x_NV, y_NV), atol=1e-12)


@pytest.mark.parametrize("offset", [100.0, 1e4])
def test_a_mean_far_from_zero_costs_no_digits_that_float32_has(offset: float) -> None:
    x_NV, y_NV = pairs(3000, 5)
    x_NV, y_NV = (x_NV + offset).astype(np.float32), (y_NV - offset).astype(np.float32)
    found_V = summed(x_NV, y_NV, 64).correlation()
    np.testing.assert_allclose(found_V, by_numpy(x_NV, y_NV), atol=1e-6)


def test_rows_equal_numpy() -> None:
    x_NV, y_NV = pairs(12, 40)
    found_N = row_correlation(torch.tensor(x_NV), torch.tensor(y_NV))
    np.testing.assert_allclose(found_N, by_numpy(x_NV.T, y_NV.T), atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6, 1e-20])
def test_a_constant_has_no_correlation(constant: float) -> None:
    x_NV, y_NV = pairs(50, 6)
    y_NV[:, 2] = constant
    assert summed(x_NV, y_NV, 8).correlation().isnan().tolist() == [v == 2 for v in range(6)]
    assert summed(y_NV, x_NV, 8).correlation().isnan().tolist() == [v == 2 for v in range(6)]
    y_NV[3] = constant
    rows_N = row_correlation(torch.tensor(x_NV), torch.tensor(y_NV))
    assert rows_N.isnan().tolist() == [n == 3 for n in range(50)]


def test_what_rounding_leaves_of_a_constant_is_no_spread() -> None:
    """Sums of squares of most constants do not cancel to 0 about the mean."""
    x_NV = pairs(50, 300)[0]
    constant_NV = np.repeat(np.random.default_rng(1).standard_normal((1, 300)), 50, axis=0)
    assert summed(x_NV, constant_NV, 8).correlation().isnan().all()
    assert summed(constant_NV, x_NV, 8).correlation().isnan().all()
    rows = torch.tensor(x_NV.T), torch.tensor(constant_NV.T)
    assert row_correlation(*rows).isnan().all()
    assert row_correlation(*rows[::-1]).isnan().all()


def test_a_line_has_correlation_one_and_scale_does_not_matter() -> None:
    x_NV = pairs(30, 4)[0]
    line = summed(x_NV, 3 * x_NV - 7, 9).correlation()
    np.testing.assert_allclose(line, 1, atol=1e-9)
    tiny = row_correlation(torch.tensor(x_NV.astype(float)) * 1e-90, -torch.tensor(x_NV.astype(float)))
    np.testing.assert_allclose(tiny, -1, atol=1e-9)
    assert summed(x_NV[:1], x_NV[:1], 1).correlation().isnan().all()


@pytest.mark.parametrize("num", [1, 2, 9, 10, 31])
def test_weighted_means_and_medians_are_those_of_repeated_values(num: int) -> None:
    rng = np.random.default_rng(num)
    values_N = rng.integers(1, 8, num) / 2  # ties
    weights_RN = rng.integers(0, 4, (150, num))
    weights_RN[0], weights_RN[1] = 0, 1
    weights = torch.tensor(weights_RN, dtype=torch.float32)
    medians_R = weighted_medians(torch.tensor(values_N), weights)
    means_R = weighted_means(torch.tensor(np.stack([values_N, -values_N], 1)), weights)
    for weight_N, median, mean in zip(weights_RN, medians_R, means_R, strict=True):
        drawn = np.repeat(values_N, weight_N)
        if not len(drawn):
            assert median.isnan()
            assert mean.isnan().all()
            continue
        assert float(median) == np.median(drawn)
        np.testing.assert_allclose(mean, [drawn.mean(), -drawn.mean()])


def test_the_noise_ceiling_in_closed_form() -> None:
    """A signal as strong as one trial's noise explains 1/2 of a trial, 3/4 of the mean of three."""
    ncsnr_V = torch.tensor([1.0, 0.0, 2.0])
    assert noise_ceiling(ncsnr_V, 1).tolist() == pytest.approx([1 / 2, 0, 4 / 5])
    assert noise_ceiling(ncsnr_V, 1 / 3).tolist() == pytest.approx([3 / 4, 0, 12 / 13])


def test_the_signal_itself_reaches_the_largest_correlation() -> None:
    """Rows that are means of one, two or three trials, as NSD's are."""
    rng = np.random.default_rng(0)
    ncsnr_V = np.array([0.3, 1.0, 2.0])
    signal_NV = rng.standard_normal((60_000, 3)) * ncsnr_V
    trials_N = rng.integers(1, 4, 60_000)
    seen_NV = signal_NV + rng.standard_normal((60_000, 3)) / np.sqrt(trials_N)[:, None]
    expected_V = largest_correlation(torch.tensor(ncsnr_V), float((1 / trials_N).mean()))
    np.testing.assert_allclose(by_numpy(signal_NV, seen_NV), expected_V, atol=0.01)
