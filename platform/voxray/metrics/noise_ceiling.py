"""The noise ceiling: how well responses can be predicted at all, given how they vary over repeats.

After Allen et al. 2022 ("A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial
intelligence", Methods, Noise ceiling), as fractions instead of percent.
Shapes: V voxels.
"""

import torch


def noise_ceiling(ncsnr_V: torch.Tensor, inverse_trials: float) -> torch.Tensor:
    """Return the largest share of variance that a model can explain [V]: ncsnr² / (ncsnr² + 1/n).

    `ncsnr_V` are the standard deviation of the signal over that of the noise of one trial; n is the number of
    trials in the mean that is predicted. Where rows have several numbers of trials, `inverse_trials` is the
    mean of their 1/n.
    """
    signal_V = ncsnr_V.double().square()
    return signal_V / (signal_V + inverse_trials)


def largest_correlation(ncsnr_V: torch.Tensor, inverse_trials: float) -> torch.Tensor:
    """Return the correlation with the responses [V] that a model of the signal itself is expected to have:
    the noise ceiling's square root.
    """
    return noise_ceiling(ncsnr_V, inverse_trials).sqrt()
