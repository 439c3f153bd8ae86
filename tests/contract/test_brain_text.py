"""The brain-to-text task keeps the contract with each of its losses."""

from typing import Any, ClassVar

from trial_rows import SMALL, TINY_LLM, brain_task, trial_rows
from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource

AUDIO_ONLY = {"alpha": 1.0, "beta": 0.0}


class TestCtc(TaskContract):
    """Phonemes, with noise, offsets, walks, gains and cuts."""

    VALUES: ClassVar[dict[str, Any]] = {
        "data": {"transforms": {"random_walk_std": 0.1, "static_gain_std": 0.1}},
        "model": SMALL,
        "objective": {"alpha": 0.0, "beta": 0.0, "gamma": 1.0},
    }

    def config(self):
        return self.task().config

    def source(self):
        return ArraySource({"train": trial_rows(24, 0), "val": trial_rows(40, 1)})

    def task(self):
        return brain_task(self.VALUES)


class TestCtcOfWords(TestCtc):
    """No layers per session, a beam search."""

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, "day_layers": False, "patch_size": 4},
        "objective": {"alpha": 0.0, "beta": 0.0, "gamma": 1.0, "units": "words"},
        "decoding": {"ctc_beams": 3},
    }


class TestAudio(TestCtc):
    VALUES: ClassVar[dict[str, Any]] = {"model": SMALL, "objective": AUDIO_ONLY}


class TestContrastive(TestCtc):
    VALUES: ClassVar[dict[str, Any]] = {"model": SMALL, "objective": {**AUDIO_ONLY, "align": "info_nce"}}


class TestSoftDtw(TestCtc):
    VALUES: ClassVar[dict[str, Any]] = {
        "model": SMALL,
        "objective": {**AUDIO_ONLY, "align": "soft_dtw", "dtw_gamma": 0.01},
    }


class TestAudioAndLanguage(TestCtc):
    """All three terms; the language model is frozen and writes greedily. Nothing before an untrained one lets
    it foretell a text, so it has little weight.
    """

    VALUES: ClassVar[dict[str, Any]] = {
        "model": {**SMALL, **TINY_LLM},
        "objective": {"beta": 0.05, "gamma": 0.5, "align": "smooth_l1"},
        "decoding": {"max_new_tokens": 6},
    }
