"""The MindEye task keeps the contract with each of its losses and in both forms of its target."""

from typing import Any, ClassVar

from mindeye_rows import SMALL, SMALL_LOW_LEVEL, mindeye_rows, mindeye_task, of_two_subjects
from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource


class TestCombined(TaskContract):
    """Both models and both losses, voxels mixed in training; galleries of 10 of the 20 pictures."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": SMALL,
        "objective": {"gallery": 10, "num_galleries": 3, "alpha": 0.3, "mixco_fraction": 0.5},
    }

    def config(self):
        return self.task().config

    def source(self):
        return ArraySource({"train": mindeye_rows(24, 1), "val": mindeye_rows(20, 2)})

    def task(self):
        return mindeye_task(self.VALUES)


class TestHiddenTokens(TestCombined):
    """Several tokens, which the prior sees all at once; BatchNorm and no projector."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {
            **SMALL,
            "target": "hidden",
            "voxel2clip": {**SMALL["voxel2clip"], "norm": "batch", "act_first": True, "projector": False},
        },
        "objective": {"gallery": "all", "alpha": 0.3, "nce_weight": "1 - alpha", "contrast": "info_nce"},
    }


class TestFrozenVoxel2clip(TestCombined):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "combine_models": False},
        "objective": {"gallery": "all"},
    }


class TestPriorLossAlone(TestCombined):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": SMALL,
        "objective": {"combine_losses": False, "gallery": "all"},
    }


class TestWithoutPrior(TestCombined):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "prior": {"enabled": False}},
        "objective": {"gallery": "all", "soft_tau": 0.05, "soft_tau_end": 0.05},
    }


class TestLowLevel(TestCombined):
    """The low-level branch beside the others; its voxels are not mixed."""

    VALUES: ClassVar[dict[str, Any]] = {
        **TestCombined.VALUES,
        "model": {**SMALL, "low_level": SMALL_LOW_LEVEL},
    }


class TestLowLevelAndFrozenVoxel2clip(TestCombined):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "combine_models": False, "low_level": SMALL_LOW_LEVEL},
        "objective": {"gallery": "all"},
    }


class TestSeveralSubjects(TestCombined):
    """A linear map for each of two subjects, of which one has fewer voxels."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "subjects": ["subj01", "subj02"], "subject_dim": 16},
        "objective": {"gallery": "all", "alpha": 0.3, "mixco_fraction": 0.0},
    }

    def source(self):
        return ArraySource({"train": of_two_subjects(24, 1), "val": of_two_subjects(20, 2)})
