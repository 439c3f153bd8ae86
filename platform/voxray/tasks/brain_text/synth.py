"""Synthetic recordings in the T15 layout, written trial by trial, and what can be expected of them.

As in the real set, train and the two evaluation splits come from different blocks, the first session has only
train, and test trials have no transcript. No sentence comes twice.
"""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter1d

from voxray.core.task import SynthReport
from voxray.data.formats.t15 import NUM_FEATURES, PHONEMES
from voxray.tasks.brain_text.edits import error_rate
from voxray.tasks.brain_text.speech import SILENCE, Electrodes, Lexicon, Pace, Utterance, decode, utter

# Shape letters: T time bins, F features, C classes.

FIRST_DAY, LAST_DAY = datetime.date(2023, 8, 11), datetime.date(2025, 4, 13)  # of the 45 real sessions
LABEL_ENTRIES = 500  # labels are zero padded to this
MAX_TIME_STEPS = 1500
SCORED_TRIALS = 150  # val trials that oracle and floor are measured on, at most
FLOOR_TRIALS = 1200  # train trials that the floor is fitted on, at most
# The floor's own: best of a few on another seed.
SMOOTHING = 0.35  # of a phoneme's mean length
SHRINKAGE = 0.9


@dataclass(frozen=True)
class SynthSize:
    """Sessions, trials of each split in a session, words known and in a sentence, pace, tuning's strength."""

    num_sessions: int
    num_train: int
    num_eval: int  # of val and of test
    num_words: int
    words: tuple[int, int]
    pace: Pace
    signal: float

    @property
    def num_trials(self) -> int:
        """All trials; the first session has only train."""
        return self.num_sessions * self.num_train + 2 * (self.num_sessions - 1) * self.num_eval


SYNTH_SIZES = {
    "tiny": SynthSize(3, 26, 10, 12, (2, 3), Pace(6, 6), 0.2),
    "small": SynthSize(8, 100, 18, 50, (3, 6), Pace(10, 12), 0.1),
    "full": SynthSize(45, 72, 13, 50, (4, 9), Pace(20, 25), 0.08),
}


# Train trials of a session of small where there are at most half the features: with val and test 216, near
# to the real 243 (10,948 in 45 sessions, nejm-brain-to-text). With all 512, 500 MB have no room for them.
NUM_TRAIN_OF_FEW_FEATURES = 180


def size_of(size: str, num_features: int) -> SynthSize:
    """Return what a synthetic dataset of a size holds."""
    spec = SYNTH_SIZES[size]
    is_narrow = size == "small" and 2 * num_features <= NUM_FEATURES
    return replace(spec, num_train=NUM_TRAIN_OF_FEW_FEATURES) if is_narrow else spec


def synth(out: Path, size: str, seed: int, num_features: int = NUM_FEATURES) -> SynthReport:
    """Write sessions `t15.YYYY.MM.DD/data_{train,val,test}.hdf5`; the same seed writes the same bytes.

    The metric is the phoneme error rate of val trials (all edits over all true phonemes, lower is better).
    Its oracle decodes with the generator's own numbers; its floor is a linear discriminant from a smoothed
    bin to its phoneme, fitted on train trials; chance answers each trial with the transcript of another.
    """
    spec, rng = size_of(size, num_features), np.random.default_rng(seed)
    lexicon, electrodes = Lexicon(spec.num_words), Electrodes(spec.signal, rng, num_features)
    sentences = _sentences(spec, lexicon, rng)
    floor, scored = _Floor(spec.pace, num_features), _Scored()
    for day in range(spec.num_sessions):
        if day:
            electrodes.next_day()
        session = _Session(out, spec, day, lexicon, electrodes)
        for split, utterance, features_TF, words in session.write(sentences, rng):
            if split == "train":
                floor.add(features_TF, utterance, FLOOR_TRIALS // spec.num_sessions)
            elif split == "val":
                scored.add(day, features_TF, words, -(-SCORED_TRIALS // (spec.num_sessions - 1)))
        floor.end_day()
        scored.decode(day, electrodes, lexicon, spec.pace)
    return _report(spec, lexicon, floor, scored)


def _sentences(spec: SynthSize, lexicon: Lexicon, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Yield sentences as words' indices, none twice; no word follows itself."""
    used: set[tuple[int, ...]] = set()
    while True:
        length = int(rng.integers(spec.words[0], spec.words[1] + 1))
        words = tuple(rng.choice(len(lexicon.words), length, p=lexicon.prior_W).tolist())
        if words not in used and all(a != b for a, b in pairwise(words)):
            used.add(words)
            yield words


# --- files
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Session:
    """One day's folder."""

    out: Path
    spec: SynthSize
    day: int
    lexicon: Lexicon
    electrodes: Electrodes

    @property
    def name(self) -> str:
        share = self.day / max(1, self.spec.num_sessions - 1)
        date = FIRST_DAY + datetime.timedelta(days=round(share * (LAST_DAY - FIRST_DAY).days))
        return f"t15.{date:%Y.%m.%d}"

    def write(
        self, sentences: Iterator[tuple[int, ...]], rng: np.random.Generator
    ) -> Iterator[tuple[str, Utterance, np.ndarray, tuple[int, ...]]]:
        """Write the day's files; yield each trial's split, utterance, features and words."""
        folder = self.out / self.name
        folder.mkdir(parents=True)
        counts = {"train": self.spec.num_train} | (
            {"val": self.spec.num_eval, "test": self.spec.num_eval} if self.day else {}
        )
        for split, count in counts.items():
            with h5py.File(folder / f"data_{split}.hdf5", "w") as file:
                for index in range(count):
                    words, utterance = self._speak(sentences, rng)
                    features_TF = self.electrodes.record(utterance)
                    self._write_trial(file, split, index, features_TF, words)
                    yield split, utterance, features_TF, words

    def _speak(
        self, sentences: Iterator[tuple[int, ...]], rng: np.random.Generator
    ) -> tuple[tuple[int, ...], Utterance]:
        while True:
            words = next(sentences)
            utterance = utter(self.lexicon, words, self.spec.pace, rng)
            if len(utterance.class_T) <= MAX_TIME_STEPS:
                return words, utterance

    def _write_trial(
        self, file: h5py.File, split: str, index: int, features_TF: np.ndarray, words: tuple[int, ...]
    ) -> None:
        group = file.create_group(f"trial_{index:04d}")
        group["input_features"] = features_TF
        block = 1 + index // 40 if split == "train" else 100
        group.attrs.update(n_time_steps=len(features_TF), session=self.name, block_num=block, trial_num=index)
        if split == "test":
            return
        text, phonemes = sentence_text([self.lexicon.words[i] for i in words]), self.lexicon.sequence(words)
        group["seq_class_ids"] = _padded(phonemes)
        group["transcription"] = _padded(list(text.encode()))
        group.attrs.update(seq_len=len(phonemes), sentence_label=text)


def sentence_text(words: list[str]) -> str:
    """Return the words as a written sentence."""
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def _padded(values: list[int]) -> np.ndarray:
    return np.pad(np.array(values, dtype=np.int32), (0, LABEL_ENTRIES - len(values)))


# --- what to expect
# ------------------------------------------------------------------------------------------------------------


@dataclass
class _Scored:
    """Val trials: their day, features, words, and what the oracle heard."""

    trials: list[tuple[int, np.ndarray, tuple[int, ...]]] = field(default_factory=list)
    heard: list[list[int]] = field(default_factory=list)

    def add(self, day: int, features_TF: np.ndarray, words: tuple[int, ...], most: int) -> None:
        if sum(known == day for known, _, _ in self.trials) < most:
            self.trials.append((day, features_TF, words))

    def decode(self, day: int, electrodes: Electrodes, lexicon: Lexicon, pace: Pace) -> None:
        for known, features_TF, _ in self.trials:
            if known == day:
                self.heard.append(decode(features_TF, electrodes.pattern_CF, lexicon, pace))


class _Floor:
    """Linear discriminants of a smoothed bin, centred by its day, for its class; sums only, day by day."""

    def __init__(self, pace: Pace, num_features: int = NUM_FEATURES) -> None:
        self._smoothing = SMOOTHING * pace.phoneme
        self._gram_FF = np.zeros((num_features, num_features))
        self._sums_CF = np.zeros((len(PHONEMES), num_features))
        self._count_C = np.zeros(len(PHONEMES))
        self._day_means: list[np.ndarray] = []
        self._today: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, features_TF: np.ndarray, utterance: Utterance, most: int) -> None:
        """Take a train trial of today, if there are not yet `most`."""
        if len(self._today) < most:
            self._today.append((features_TF, utterance.class_T))

    def end_day(self) -> None:
        """Add today's trials to the sums."""
        smoothed_TF = np.concatenate([smooth(features, self._smoothing) for features, _ in self._today])
        one_hot_TC = np.eye(len(PHONEMES))[np.concatenate([classes for _, classes in self._today])]
        mean_F = smoothed_TF.mean(axis=0, dtype=np.float64)
        centred_TF = smoothed_TF - mean_F
        self._gram_FF += centred_TF.T @ centred_TF
        self._sums_CF += one_hot_TC.T @ centred_TF
        self._count_C += one_hot_TC.sum(axis=0)
        self._day_means.append(mean_F)
        self._today = []

    def decoder(self) -> "_LinearDecoder":
        """Return the discriminants with one covariance for all classes, shrunk towards a multiple of 1."""
        num = self._count_C.sum()
        mean_CF = self._sums_CF / np.maximum(self._count_C, 1)[:, None]
        within_FF = (self._gram_FF - self._sums_CF.T @ mean_CF) / num
        num_features = len(within_FF)
        even_FF = np.trace(within_FF) / num_features * np.eye(num_features)
        shrunk_FF = (1 - SHRINKAGE) * within_FF + SHRINKAGE * even_FF
        weights_FC = np.linalg.solve(shrunk_FF, mean_CF.T)
        with np.errstate(divide="ignore"):  # a phoneme that no train trial has is never answered
            bias_C = np.log(self._count_C / num) - (mean_CF * weights_FC.T).sum(axis=1) / 2
        return _LinearDecoder(weights_FC, bias_C, self._day_means, self._smoothing)


@dataclass(frozen=True)
class _LinearDecoder:
    weights_FC: np.ndarray
    bias_C: np.ndarray
    day_means: list[np.ndarray]
    smoothing: float

    def decode(self, day: int, features_TF: np.ndarray) -> list[int]:
        """Return each bin's best class, repeats and the silence at the start dropped."""
        scores_TC = (
            smooth(features_TF, self.smoothing) - self.day_means[day]
        ) @ self.weights_FC + self.bias_C
        best_T = scores_TC.argmax(axis=1)
        return best_T[np.flatnonzero(np.diff(best_T, prepend=SILENCE))].tolist()


def smooth(features_TF: np.ndarray, num_bins: float) -> np.ndarray:
    """Return the features smoothed in time by a Gaussian whose standard deviation is `num_bins`."""
    return gaussian_filter1d(features_TF, num_bins, axis=0, mode="nearest")


def _report(spec: SynthSize, lexicon: Lexicon, floor: _Floor, scored: _Scored) -> SynthReport:
    decoder = floor.decoder()
    truths = [lexicon.sequence(words) for _, _, words in scored.trials]
    linear = [decoder.decode(day, features_TF) for day, features_TF, _ in scored.trials]
    return SynthReport(
        metric="per",
        num_rows=spec.num_trials,
        oracle=error_rate(zip(scored.heard, truths, strict=True)),
        floor=error_rate(zip(linear, truths, strict=True)),
        chance=error_rate(zip(truths[1:] + truths[:1], truths, strict=True)),
        notes={
            "per": f"phoneme error rate of {len(truths)} val trials; lower is better",
            "oracle": "Viterbi over the lexicon with the generator's tuning, durations and word frequencies",
            "floor": "linear discriminants of single smoothed bins, taught each bin's true phoneme",
            "chance": "each trial answered with another one's transcript",
        },
    )
