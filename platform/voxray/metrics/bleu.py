"""BLEU of a whole corpus with one reference each: n-grams' precision up to 4, and a penalty for brevity."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_N = 4


def corpus_bleu(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return BLEU-4 in 0 … 1 of (decoded, truth) sequences of words, unsmoothed (Papineni et al. 2002).

    0 where some order of n-gram is never matched; NaN without a true word.
    """
    matched, made = [0] * MAX_N, [0] * MAX_N
    num_decoded = num_true = 0
    for decoded, truth in pairs:
        num_decoded, num_true = num_decoded + len(decoded), num_true + len(truth)
        for n in range(1, MAX_N + 1):
            own, there = _ngrams(decoded, n), _ngrams(truth, n)
            matched[n - 1] += sum((own & there).values())
            made[n - 1] += sum(own.values())
    if not num_true:
        return math.nan
    if not all(matched):
        return 0.0
    precision = sum(math.log(a / b) for a, b in zip(matched, made, strict=True)) / MAX_N
    brevity = min(0.0, 1 - num_true / num_decoded)
    return math.exp(precision + brevity)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
