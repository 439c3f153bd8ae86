"""What CTC spells: phonemes, characters or words; texts as lists of units and back. Unit 0 is the blank.

Shapes: B trials, P steps, K units, L units of a transcript.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.data.formats.t15 import PHONEMES

BLANK = 0
CHARACTERS = ("BLANK", *"abcdefghijklmnopqrstuvwxyz'- ")
_KEPT = re.compile(r"[^a-zA-Z\- ']")


def plain_text(text: str) -> str:
    """Return the text as error rates compare it: lower case, letters, apostrophes, hyphens, single spaces.

    As upstream's `remove_punctuation` (nejm-brain-to-text, model_training).
    """
    text = _KEPT.sub("", text).replace("- ", " ").replace("--", "").replace(" '", "'")
    return " ".join(text.lower().split())


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Return the words of texts, sorted."""
    return sorted({word for text in texts for word in plain_text(text).split()})


@dataclass(frozen=True)
class Units:
    """`names` of the units, the blank first, and whether they are joined without spaces to a text."""

    kind: str
    names: tuple[str, ...]

    @property
    def metric(self) -> str:
        """The error rate of these units."""
        return {"phonemes": "per", "characters": "cer", "words": "wer"}[self.kind]

    def encode(self, text: str) -> list[int]:
        """Return a text's units; an unknown word is one that is always wrong: it has no unit.

        Phonemes are not spelled from text: the dataset has them.
        """
        assert self.kind != "phonemes"
        pieces: Sequence[str] = (
            list(plain_text(text)) if self.kind == "characters" else plain_text(text).split()
        )
        place = {name: number for number, name in enumerate(self.names)}
        return [place[piece] for piece in pieces if piece in place]

    def show(self, units: Sequence[int]) -> str:
        """Return units as a text: phonemes and words with spaces between, characters without."""
        names = [self.names[unit].strip() if self.kind == "phonemes" else self.names[unit] for unit in units]
        return ("" if self.kind == "characters" else " ").join(names)


def units_of(kind: str, statistics: dict[str, Any]) -> Units:
    """Return the units; words come from the dataset's statistics of its training texts.

    Raises InputError where the dataset has no table of words.
    """
    if kind == "phonemes":
        return Units(kind, PHONEMES)
    if kind == "characters":
        return Units(kind, CHARACTERS)
    words: list[str] | None = statistics.get("text", {}).get("words")
    if not words:
        raise InputError(
            "objective.units=words: the dataset has no table of its training words; prepare it anew, or take "
            "characters"
        )
    return Units(kind, ("BLANK", *words))


def greedy(units_BP: np.ndarray, num_steps_B: np.ndarray) -> list[list[int]]:
    """Return the best path's units: repeats merged, then blanks dropped."""
    found: list[list[int]] = []
    for units_P, num_steps in zip(units_BP, num_steps_B.tolist(), strict=True):
        own = units_P[:num_steps]
        is_new = np.diff(own, prepend=-1) != 0
        found.append([int(unit) for unit in own[is_new] if unit != BLANK])
    return found


def prefix_search(log_probs_PK: np.ndarray, num_beams: int) -> list[int]:
    """Return the most likely labelling of [P, K] log probabilities by prefix beam search, without a language
    model (Graves 2012; Hannun et al. 2014, arXiv 1408.2873).

    A prefix has the probability of its paths that end in a blank and of those that end in its last unit.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    for row_K in log_probs_PK:
        likely_N = np.argsort(row_K)[-(num_beams + 1) :].tolist()
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix: tuple[int, ...], blank: float, unit: float, grown: Any = grown) -> None:
            old = grown.get(prefix, (-np.inf, -np.inf))
            grown[prefix] = (float(np.logaddexp(old[0], blank)), float(np.logaddexp(old[1], unit)))

        for prefix, (ends_blank, ends_unit) in beams.items():
            whole = np.logaddexp(ends_blank, ends_unit)
            add(prefix, whole + row_K[BLANK], ends_unit + row_K[prefix[-1]] if prefix else -np.inf)
            for unit in likely_N:
                if unit == BLANK:
                    continue
                before = ends_blank if prefix and unit == prefix[-1] else whole
                add((*prefix, unit), -np.inf, before + row_K[unit])
        best = sorted(grown, key=lambda prefix: np.logaddexp(*grown[prefix]), reverse=True)
        beams = {prefix: grown[prefix] for prefix in best[:num_beams]}
    return list(max(beams, key=lambda prefix: np.logaddexp(*beams[prefix])))
