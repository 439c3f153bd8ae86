"""The hyperspectral task keeps the contract: every loss and mask, both autoencoders, both heads."""

from typing import Any, ClassVar

from hyperspectral_rows import SMALL, cube_rows, hyperspectral_task
from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource


class TestMaskedAutoencoder(TaskContract):
    """The guide's loss on hidden tokens, augmented as the guide's basic set."""

    VALUES: ClassVar[dict[str, Any]] = {"model": SMALL, "objective": {"mse_over": "measured"}}

    def config(self):
        return self.task().config

    def source(self):
        return ArraySource({"train": cube_rows(24, 1), "val": cube_rows(50, 2)})

    def task(self):
        return hyperspectral_task(self.VALUES)


class TestEverywhereNormalised(TestMaskedAutoencoder):
    """All tokens, bands standardised, tokens normalised, the upstream augmentation, recomputed blocks."""

    VALUES: ClassVar[dict[str, Any]] = {
        "data": {"augment": "spectraleye", "normalize": True},
        "model": {**SMALL, "grad_checkpointing": True, "mask_strategy": "spatial_tube"},
        "objective": {"recon_region": "all", "norm_pix": True, "sam": 0.0, "variance": 0.0},
    }


class TestSpectralGpt(TestMaskedAutoencoder):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "mask_strategy": "spectral_tube", "mask_ratio": 0.5},
        "objective": {"loss": "spectralgpt"},
    }


class TestSpectralAutoencoder(TestMaskedAutoencoder):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {
            "name": "spectral_autoencoder",
            "patch_size": [4, 2],
            "mask_ratio": 0.5,
            "hidden_dims": [32],
        },
        "objective": {"mse_over": "measured"},
    }


class TestSegmentation(TestMaskedAutoencoder):
    VALUES: ClassVar[dict[str, Any]] = {"model": {**SMALL, "head": "segmentation", "num_classes": 3}}


class TestClassification(TestMaskedAutoencoder):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "head": "classification", "classes": ["AMD", "GA"]},
    }
