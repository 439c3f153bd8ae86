"""Error rates of decoded texts: all edits over all true lengths, never a mean of rates; and their intervals.

Shapes: N rows of a split, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxray.metrics.bleu import corpus_bleu
from voxray.tasks.brain_text.edits import edit_distance
from voxray.tasks.brain_text.units import plain_text

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Errors:
    """Edits and true lengths of N rows, int64 [N]; a row without truth has length 0 and counts in nothing."""

    edits_N: np.ndarray
    lengths_N: np.ndarray

    @classmethod
    def of(cls, decoded: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> "Errors":
        """Compare sequences of symbols."""
        edits = [edit_distance(ours, true) if true else 0 for ours, true in zip(decoded, truth, strict=True)]
        return cls(np.array(edits, np.int64), np.array([len(true) for true in truth], np.int64))

    def rate(self) -> float:
        """Return the error rate, which may exceed 1; NaN without any truth."""
        total = int(self.lengths_N.sum())
        return float(self.edits_N.sum()) / total if total else math.nan

    def interval(self, groups_N: np.ndarray, seed: int) -> tuple[float, float]:
        """Return the rate's 95 % interval by resampled groups."""
        import torch  # figures need the rates alone

        from voxray.metrics.bootstrap import group_weights, percentile_interval

        weights_RN = group_weights(torch.from_numpy(groups_N), NUM_RESAMPLES, seed).double().numpy()
        rates_R = (weights_RN @ self.edits_N) / np.maximum(weights_RN @ self.lengths_N, 1)
        return percentile_interval(torch.from_numpy(rates_R))


def text_errors(decoded: Sequence[str], truth: Sequence[str]) -> dict[str, Errors]:
    """Return the errors in words (`wer`) and characters (`cer`), and `exact`: 1 edit of 1 for a text that is
    right throughout. Case and punctuation do not count.
    """
    ours, true = [plain_text(text) for text in decoded], [plain_text(text) for text in truth]
    right_N = np.array([a == b for a, b in zip(ours, true, strict=True)], np.int64)
    is_known_N = np.array([bool(text) for text in true], np.int64)
    return {
        "wer": Errors.of([text.split() for text in ours], [text.split() for text in true]),
        "cer": Errors.of(ours, true),
        "exact": Errors(right_N * is_known_N, is_known_N),
    }


def bleu(decoded: Sequence[str], truth: Sequence[str]) -> float:
    """Return BLEU-4 over the rows that have a text."""
    pairs = (
        (plain_text(ours).split(), plain_text(true).split())
        for ours, true in zip(decoded, truth, strict=True)
    )
    return corpus_bleu((ours, true) for ours, true in pairs if true)


def phoneme_errors(decoded: Sequence[str], truth: Sequence[str]) -> Errors:
    """Return the errors of phonemes, which are written with spaces between them."""
    return Errors.of([text.split() for text in decoded], [text.split() for text in truth])
