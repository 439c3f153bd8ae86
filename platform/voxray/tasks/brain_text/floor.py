"""The linear floor: which of the training texts a trial is, by linear discriminants of its mean activity.

It is for closed sets of texts. Shapes: N trials, F features, S segments of a trial, T time bins.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from voxray.config.errors import InputError

NUM_SEGMENTS = 3
MOST_TEXTS = 300


def linear_floor(train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a text [N] for each held-out trial. Raises InputError where nearly every training text is
    another: a classifier of texts says nothing about new sentences.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    texts_N = train["text"].astype(str)
    num_texts = len(set(texts_N.tolist()))
    if num_texts > min(MOST_TEXTS, len(texts_N) // 2):
        raise InputError(
            f"the linear floor tells known texts apart, and {len(texts_N)} training trials have {num_texts} "
            "different ones; leave it out"
        )
    mean_F, scale_F = _moments(segments(train))
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    classifier.fit((segments(train) - mean_F) / scale_F, texts_N)
    return np.asarray(classifier.predict((segments(held_out) - mean_F) / scale_F), dtype=object)


def segments(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean activity of three equal parts of each trial [N, S · F]."""
    lengths_N = columns.get("neural.length")
    rows = [
        trial_TF[: trial_TF.shape[0] if lengths_N is None else int(lengths_N[i])]
        for i, trial_TF in enumerate(columns["neural"])
    ]
    return np.stack([_means(trial_TF) for trial_TF in rows])


def _means(trial_TF: np.ndarray) -> np.ndarray:
    edges = np.linspace(0, len(trial_TF), NUM_SEGMENTS + 1).round().astype(int)
    parts = [trial_TF[a : max(b, a + 1)] for a, b in pairwise(edges.tolist())]
    return np.concatenate([part_TF.mean(axis=0, dtype=np.float64) for part_TF in parts])


def _moments(features_NX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features_NX.mean(axis=0), np.maximum(features_NX.std(axis=0), 1e-6)
