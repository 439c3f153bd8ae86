"""The fMRI-to-CLIP task keeps the contract in each of its architectures."""

from typing import Any, ClassVar

from fmri_rows import fmri_rows, fmri_task
from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource

NOISE = {"augmentation": True, "noise_std": 0.1, "voxel_dropout": 0.2}
MLP = {"architecture": "mlp", "hidden_dims": [32], "dropout": 0.0}
TWO_STAGE = {"architecture": "two_stage", "latent_dim": 32, "n_blocks": 2, "head_dim": 32, "dropout": 0.0}
INVERSE = {"architecture": "clip2fmri", "inverse_dim": 32, "dropout": 0.0}


class TestMlp(TaskContract):
    """Squared error and cosine, augmented; galleries of 10 of the 20 stimuli that 50 rows show."""

    VALUES: ClassVar[dict[str, Any]] = {
        "data": NOISE,
        "model": {**MLP, "norm": "layer"},
        "objective": {"mse": 0.5, "cosine": 0.5, "gallery": 10, "ranks": [1, 5]},
    }
    STACKED: ClassVar[bool] = False

    def config(self):
        return self.task().config

    def source(self):
        shown = {"stacked": self.STACKED, "num_stimuli": 20}
        return ArraySource({"train": fmri_rows(24, 1, **shown), "val": fmri_rows(50, 2, **shown)})

    def task(self):
        return fmri_task(self.VALUES, self.STACKED)


class TestRidge(TestMlp):
    VALUES: ClassVar[dict[str, Any]] = {"model": {"architecture": "ridge"}, "objective": {"gallery": "all"}}


class TestTwoStage(TestMlp):
    """Targets of two widths, learnt layer weights, InfoNCE over their projected mean, an mlp head each."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**TWO_STAGE, "layers": ["layer_4", "layer_8"], "head": "mlp", "shared_head": False},
        "objective": {"info_nce": 0.4, "mse": 0.3, "cosine": 0.3, "learn_layer_weights": True, "gallery": 20},
    }


class TestTwoStageWithoutInfoNce(TestMlp):
    """What only InfoNCE needs is not trained without it."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**TWO_STAGE, "layers": ["layer_4", "layer_8"]},
        "objective": {"learn_layer_weights": False, "gallery": 20},
    }


class TestBrainConsistency(TestMlp):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**MLP, "brain": INVERSE},
        "objective": {"brain_consistency": 0.1, "gallery": 20},
    }


class TestClipAdapter(TestMlp):
    """From a frozen encoder of 12 numbers to the 20 of another tower."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {
            "architecture": "clip_adapter",
            "encoder": MLP,
            "target": "sd_final",
            "adapter_dims": [32],
            "adapter_norm": False,
        },
        "objective": {"mse": 0.3, "cosine": 0.7, "info_nce": 0.1, "gallery": 20},
    }


class TestClip2fmri(TestMlp):
    """The residual form on reliable voxels of stacked trials."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**INVERSE, "inverse": "residual", "n_blocks": 1, "min_reliability": 0.1}
    }
    STACKED = True
