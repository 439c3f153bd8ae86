"""The model behind the synthetic recordings: words → phonemes → neural features, and its exact decoder.

A hidden Markov chain over a closed lexicon. A phoneme takes one bin of attack, in which the activity is
halfway between the phoneme before and this one, then a geometric number of bins at its own pattern; silence
stands around each word. The pattern is a point in a space of articulation, read out by electrodes whose
tuning, gains and offsets drift from day to day; the noise is white. So phonemes that are articulated alike
are confused, a bin alone says little, and what says more is its neighbours and the words there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxray.data.formats.t15 import NUM_FEATURES, PHONEMES

# Shape letters: T time bins, F features, P phonemes of the lexicon (each word's in turn), C classes, W words.

SILENCE = len(PHONEMES) - 1
NUM_ARTICULATORS = 14
_DRIFT = 0.25  # radians that a day turns the tuning by

# From common to rare; ARPAbet without stress.
LEXICON: tuple[tuple[str, str], ...] = (
    ("I", "AY"),
    ("you", "Y UW"),
    ("need", "N IY D"),
    ("want", "W AA N T"),
    ("water", "W AO T ER"),
    ("please", "P L IY Z"),
    ("more", "M AO R"),
    ("good", "G UH D"),
    ("thanks", "TH AE NG K S"),
    ("music", "M Y UW Z IH K"),
    ("family", "F AE M AH L IY"),
    ("show", "SH OW"),
    ("change", "CH EY N JH"),
    ("have", "HH AE V"),
    ("boy", "B OY"),
    ("vision", "V IH ZH AH N"),
    ("the", "DH AH"),
    ("it", "IH T"),
    ("out", "AW T"),
    ("yes", "Y EH S"),
    ("no", "N OW"),
    ("am", "AE M"),
    ("they", "DH EY"),
    ("what", "W AH T"),
    ("where", "W EH R"),
    ("how", "HH AW"),
    ("bring", "B R IH NG"),
    ("closer", "K L OW S ER"),
    ("help", "HH EH L P"),
    ("hope", "HH OW P"),
    ("feel", "F IY L"),
    ("tired", "T AY ER D"),
    ("hungry", "HH AH NG G R IY"),
    ("thirsty", "TH ER S T IY"),
    ("nurse", "N ER S"),
    ("doctor", "D AA K T ER"),
    ("outside", "AW T S AY D"),
    ("computer", "K AH M P Y UW T ER"),
    ("glasses", "G L AE S AH Z"),
    ("measure", "M EH ZH ER"),
    ("picture", "P IH K CH ER"),
    ("joy", "JH OY"),
    ("book", "B UH K"),
    ("going", "G OW IH NG"),
    ("right", "R AY T"),
    ("tomorrow", "T AH M AA R OW"),
    ("coffee", "K AO F IY"),
    ("sugar", "SH UH G ER"),
    ("voice", "V OY S"),
    ("believe", "B IH L IY V"),
)


class Lexicon:
    """The first `num_words` words, their phonemes one after the other, and how likely each word is."""

    def __init__(self, num_words: int) -> None:
        self.words = [word for word, _ in LEXICON[:num_words]]
        self.phonemes = [[PHONEMES.index(p) for p in spoken.split()] for _, spoken in LEXICON[:num_words]]
        weights = 1 / (np.arange(num_words) + 20.0)
        self.prior_W = weights / weights.sum()
        self.class_P = np.concatenate(self.phonemes)
        self.before_P = np.concatenate([[SILENCE, *word[:-1]] for word in self.phonemes])
        length_W = np.array([len(word) for word in self.phonemes], dtype=np.int64)
        self.last_W = np.cumsum(length_W) - 1
        self.first_W = self.last_W - length_W + 1

    def sequence(self, words: Sequence[int]) -> list[int]:
        """Return the classes of a sentence, a silence after each word, as T15 transcribes it."""
        return [phoneme for word in words for phoneme in (*self.phonemes[word], SILENCE)]


@dataclass(frozen=True)
class Pace:
    """How long things last: the mean bins of a phoneme (at least 2) and of a silence."""

    phoneme: float
    silence: float

    @property
    def leave_phoneme(self) -> float:
        """The probability of going on after each bin but the attack."""
        return 1 / (self.phoneme - 1)

    @property
    def leave_silence(self) -> float:
        """The probability that a silence ends after each bin."""
        return 1 / self.silence


@dataclass(frozen=True)
class Utterance:
    """Per bin: the class, and what it is blended with: in an attack the class before, else itself; [T]."""

    class_T: np.ndarray
    blend_T: np.ndarray


def utter(lexicon: Lexicon, words: Sequence[int], pace: Pace, rng: np.random.Generator) -> Utterance:
    """Draw the durations of a sentence with silence around each word."""
    classes, blends = [], []

    def silence() -> None:
        held = int(rng.geometric(pace.leave_silence))
        classes.extend([SILENCE] * held)
        blends.extend([SILENCE] * held)

    silence()
    for word in words:
        before = SILENCE
        for phoneme in lexicon.phonemes[word]:
            held = int(rng.geometric(pace.leave_phoneme))
            classes.extend([phoneme] * (1 + held))
            blends.extend([before] + [phoneme] * held)
            before = phoneme
        silence()
    return Utterance(np.array(classes), np.array(blends))


class Electrodes:
    """The array's tuning of one day after the other: `pattern_CF` is each class's mean activity, float32."""

    def __init__(self, signal: float, rng: np.random.Generator, num_features: int = NUM_FEATURES) -> None:
        """Draw the first day's. `signal` is the tuning's strength at 512 features; fewer are each tuned
        stronger, so that a bin tells as much.
        """
        self._rng, self._signal = rng, signal * (NUM_FEATURES / num_features) ** 0.5
        self._articulation_CA = rng.standard_normal((len(PHONEMES), NUM_ARTICULATORS)) / NUM_ARTICULATORS**0.5
        self._articulation_CA[SILENCE] = 0
        self._tuning_AF = rng.standard_normal((NUM_ARTICULATORS, num_features))
        self._draw_day()

    def next_day(self) -> None:
        """Let the tuning drift; gains and offsets are drawn anew."""
        turned = self._rng.standard_normal(self._tuning_AF.shape)
        self._tuning_AF = np.cos(_DRIFT) * self._tuning_AF + np.sin(_DRIFT) * turned
        self._draw_day()

    def _draw_day(self) -> None:
        num_features = self._tuning_AF.shape[1]
        gain_F = np.exp(0.2 * self._rng.standard_normal(num_features))
        offset_F = 0.3 * self._rng.standard_normal(num_features)
        tuned_CF = self._signal * self._articulation_CA @ self._tuning_AF
        self.pattern_CF = (gain_F * tuned_CF + offset_F).astype(np.float32)

    def record(self, utterance: Utterance) -> np.ndarray:
        """Return features float32 [T, F]: the patterns and white noise of variance 1."""
        mean_TF = (self.pattern_CF[utterance.class_T] + self.pattern_CF[utterance.blend_T]) / 2
        return mean_TF + self._rng.standard_normal(mean_TF.shape, dtype=np.float32)


def decode(features_TF: np.ndarray, pattern_CF: np.ndarray, lexicon: Lexicon, pace: Pace) -> list[int]:
    """Return the most likely sentence's classes, by Viterbi with the generator's own numbers."""
    attack_TP, hold_TP, silence_T = _log_likelihoods(features_TF, pattern_CF, lexicon)
    leave_p, leave_s = pace.leave_phoneme, pace.leave_silence
    with np.errstate(divide="ignore"):
        stay_p, stay_s, go_p = np.log([1 - leave_p, 1 - leave_s, leave_p])
    enter_W = np.log(leave_s * lexicon.prior_W)
    num_bins, num_phonemes = attack_TP.shape
    attack_P = np.full(num_phonemes, -np.inf)
    hold_P = np.full(num_phonemes, -np.inf)
    silence = silence_T[0]
    stayed_TP = np.zeros((num_bins, num_phonemes), dtype=bool)
    word_before_T = np.full(
        num_bins, -1
    )  # the word that ended just before a bin of silence, -1 = more silence
    for t in range(1, num_bins):
        stayed_TP[t] = hold_P + stay_p > attack_P
        ended_W = hold_P[lexicon.last_W] + go_p
        word = int(ended_W.argmax())
        new_attack_P = np.concatenate([[-np.inf], hold_P[:-1] + go_p])
        new_attack_P[lexicon.first_W] = silence + enter_W
        hold_P = np.maximum(hold_P + stay_p, attack_P) + hold_TP[t]
        attack_P = new_attack_P + attack_TP[t]
        if ended_W[word] > silence + stay_s:
            word_before_T[t] = word
        silence = max(silence + stay_s, ended_W[word]) + silence_T[t]
    return lexicon.sequence(_trace(lexicon, stayed_TP, word_before_T))


def _log_likelihoods(
    features_TF: np.ndarray, pattern_CF: np.ndarray, lexicon: Lexicon
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, up to what all share: attack [T, P], hold [T, P], silence [T]."""
    held_PF = pattern_CF[lexicon.class_P]
    mean_MF = np.concatenate(
        [(held_PF + pattern_CF[lexicon.before_P]) / 2, held_PF, pattern_CF[SILENCE][None]]
    ).astype(np.float64)
    scores_TM = features_TF @ mean_MF.T - (mean_MF**2).sum(axis=1) / 2
    num = len(held_PF)
    return scores_TM[:, :num], scores_TM[:, num : 2 * num], scores_TM[:, -1]


def _trace(lexicon: Lexicon, stayed_TP: np.ndarray, word_before_T: np.ndarray) -> list[int]:
    """Walk back from silence at the end; return the words in order."""
    words: list[int] = []
    t = len(word_before_T) - 1
    while t > 0:
        word = int(word_before_T[t])
        t -= 1
        if word < 0:
            continue
        words.append(word)
        for phoneme in range(lexicon.last_W[word], lexicon.first_W[word] - 1, -1):
            while stayed_TP[t, phoneme]:
                t -= 1
            t -= 2  # its first held bin, then its attack
    return words[::-1]
