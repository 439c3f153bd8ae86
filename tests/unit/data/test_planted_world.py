"""The world behind synthetic fMRI: its closed forms against sampling, and how far a linear map can go."""

import numpy as np
import pytest

from voxray.data.formats.planted_world import World, mean_cosine, ridge_guess

CURVED = World(0, 40, 30, 6, 0.3, threshold=1.0, voxel_noise=1.5)


def covariance(world: World) -> np.ndarray:
    """A trial's noise over the voxels, of responses that are not brought to variance 1."""
    map_KV = world.voxel_map.astype(np.float64)
    return world.noise_to_signal * map_KV.T @ map_KV + world.noise**2 * np.eye(world.num_voxels)


@pytest.mark.parametrize("num_repeats", [1, 3])
def test_the_best_guess_is_the_mean_over_the_posterior(num_repeats: int) -> None:
    """Importance sampling: codes from the prior, weighted by the likelihood of the responses."""
    world, rng = CURVED, np.random.default_rng(0)
    map_KV = world.voxel_map.astype(np.float64)
    scale_V = np.sqrt((map_KV**2).sum(0) * 1.3 + 1.5**2)
    x_V = np.mean([world.responses(np.arange(1), 1, trial)[0] for trial in range(num_repeats)], axis=0)
    codes_SK = rng.standard_normal((400_000, world.num_codes))
    away_SV = codes_SK @ map_KV - x_V * scale_V
    root_VV = np.linalg.cholesky(np.linalg.inv(covariance(world) / num_repeats))
    log_weight_S = -0.5 * ((away_SV @ root_VV) ** 2).sum(1)
    weight_S = np.exp(log_weight_S - log_weight_S.max())
    curved_SF = np.maximum(codes_SK @ world._feature_map - 1, 0)  # pyright: ignore[reportPrivateUsage]
    prior_SF = np.maximum(rng.standard_normal(1_000_000) - 1, 0)
    features_F = (weight_S @ curved_SF / weight_S.sum() - prior_SF.mean()) / prior_SF.std()
    expected_D = features_F @ world._target_map("final")  # pyright: ignore[reportPrivateUsage]
    (found_D,) = world.best_guess(x_V[None], num_repeats)
    assert np.corrcoef(found_D, expected_D)[0, 1] > 0.999
    assert np.linalg.norm(found_D - expected_D) < 0.06 * np.linalg.norm(expected_D)


def test_the_noise_ceiling_is_the_planted_one() -> None:
    """NSD's ncsnr is the deviation of the signal over that of the noise."""
    x_NV = CURVED.responses(np.full(20_000, 7), 2).astype(np.float64)
    codes = np.random.default_rng(1).standard_normal((20_000, CURVED.num_codes))
    scale_V = np.sqrt(np.diag(covariance(CURVED))) / x_NV.std(axis=0)
    signal_V = (codes @ CURVED.voxel_map).std(axis=0) / scale_V
    np.testing.assert_allclose(CURVED.ncsnr(), signal_V / x_NV.std(axis=0), rtol=0.04)
    reliable = np.sort(CURVED.ncsnr())
    assert reliable[3] < 0.3 * reliable[-4]  # so that a filter by reliability has something to do


def test_responses_have_unit_variance_and_depend_on_the_stream() -> None:
    first, again, other = (CURVED.responses(np.arange(40), stream) for stream in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0
    wide = World(0, 3000, 30, 6, 0.3, threshold=1.0, voxel_noise=1.5).responses(np.arange(3000), 0)
    np.testing.assert_allclose(wide.std(axis=0), 1, atol=0.06)


def test_a_linear_map_stays_below_and_the_curve_explains_why() -> None:
    """Of max(0, z - 1) a linear map knows corr(z, max(0, z - 1))^2 = 0.37 of the variance."""
    world = World(0, 3300, 60, 6, 0.05, threshold=1.0, voxel_noise=0.5)
    y, tests, train = world.targets("final"), np.arange(300), np.arange(300, 3300)
    x = world.responses(tests, 1)
    linear = mean_cosine(ridge_guess(world.responses(train, 2), y[train], x), y[tests])
    oracle = mean_cosine(world.best_guess(x), y[tests])
    assert 0.3 < linear < oracle - 0.2
    flat = World(0, 3300, 60, 6, 0.05, voxel_noise=0.5)
    y, x = flat.targets("final"), flat.responses(tests, 1)
    linear = mean_cosine(ridge_guess(flat.responses(train, 2), y[train], x), y[tests])
    assert linear == pytest.approx(mean_cosine(flat.best_guess(x), y[tests]), abs=0.01)
