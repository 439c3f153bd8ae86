"""Optuna's samplers, made anew and seeded for each trial, so that a continued study suggests what an
uninterrupted one would have.
"""

import hashlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from voxray.tune.config import SamplerConfig

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

ONE_OBJECTIVE = ("cmaes",)  # they refuse several


def sampler_of_trial(
    config: SamplerConfig, index: int, attempt: int = 0, fixed: Mapping[str, Any] | None = None
) -> "BaseSampler":
    """Return the sampler of trial `index`, seeded by hash(seed, index, attempt).

    What it suggests depends on that seed and on the trials that have ended. Parameters in `fixed` are not
    drawn. A QMC sequence goes over all trials, so its seed is the study's.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = _sampler(config, seed_of_trial(config.seed, index, attempt))
        return optuna.samplers.PartialFixedSampler(dict(fixed), sampler) if fixed else sampler


def seed_of_trial(seed: int, index: int, attempt: int = 0) -> int:
    """Return 32 bits, what numpy's RandomState takes."""
    text = f"{seed}/{index}" + (f"/{attempt}" if attempt else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def _sampler(config: SamplerConfig, seed: int) -> "BaseSampler":
    from optuna import samplers

    startup, together = config.startup_trials, config.multivariate
    match config.name:
        case "random" | "brute_force":
            return samplers.RandomSampler(seed=seed)
        case "tpe":
            return samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=together, group=together
            )
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return samplers.CmaEsSampler(
                seed=seed,
                n_startup_trials=startup,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=config.population)
        case "nsga3":
            return samplers.NSGAIIISampler(seed=seed, population_size=config.population)
        case "qmc":
            return samplers.QMCSampler(
                seed=config.seed,
                scramble=True,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
