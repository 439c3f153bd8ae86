"""Edit distance, and the error rate of decoded sequences: all edits over all true lengths."""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def edit_distance(decoded: Sequence[Hashable], truth: Sequence[Hashable]) -> int:
    """Return the fewest substitutions, insertions and deletions between two sequences (Levenshtein)."""
    codes = {symbol: code for code, symbol in enumerate({*decoded, *truth})}
    truth_L = np.array([codes[symbol] for symbol in truth], dtype=np.int64)
    steps_L = np.arange(len(truth) + 1)
    row_L = steps_L
    for symbol in decoded:
        substituted = row_L[:-1] + (truth_L != codes[symbol])
        row_L = np.concatenate([[row_L[0] + 1], np.minimum(substituted, row_L[1:] + 1)])
        row_L = np.minimum.accumulate(row_L - steps_L) + steps_L  # insertions along the row
    return int(row_L[-1])


def error_rate(pairs: Iterable[tuple[Sequence[Hashable], Sequence[Hashable]]]) -> float:
    """Return the sum of edits over the sum of true lengths of (decoded, truth) pairs; it may exceed 1."""
    edits, length = 0, 0
    for decoded, truth in pairs:
        edits += edit_distance(decoded, truth)
        length += len(truth)
    return edits / length
