"""Edit distance, alignments, and the error rate of decoded sequences: all edits over all true lengths."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Edit:
    """One step of an alignment: `kind` is equal, substitute, insert (decoded only) or delete (truth only)."""

    kind: str
    decoded: str = ""
    truth: str = ""


def aligned(decoded: Sequence[str], truth: Sequence[str]) -> list[Edit]:
    """Return an alignment with the fewest edits; of several the one with the fewest substitutions, so that
    most of both stands unchanged.
    """
    edit = len(decoded) + len(truth) + 1  # more than all substitutions' extra 1s together
    costs = np.zeros((len(decoded) + 1, len(truth) + 1), dtype=np.int64)
    costs[:, 0], costs[0] = edit * np.arange(len(decoded) + 1), edit * np.arange(len(truth) + 1)
    for i, ours in enumerate(decoded, 1):
        for j, true in enumerate(truth, 1):
            both = costs[i - 1, j - 1] + (edit + 1 if ours != true else 0)
            costs[i, j] = min(both, costs[i - 1, j] + edit, costs[i, j - 1] + edit)
    i, j = len(decoded), len(truth)
    edits: list[Edit] = []
    while i or j:
        if i and j and decoded[i - 1] == truth[j - 1] and costs[i, j] == costs[i - 1, j - 1]:
            i, j = i - 1, j - 1
            edits.append(Edit("equal", decoded[i], truth[j]))
        elif i and costs[i, j] == costs[i - 1, j] + edit:
            i -= 1
            edits.append(Edit("insert", decoded=decoded[i]))
        elif j and costs[i, j] == costs[i, j - 1] + edit:
            j -= 1
            edits.append(Edit("delete", truth=truth[j]))
        else:
            i, j = i - 1, j - 1
            edits.append(Edit("substitute", decoded[i], truth[j]))
    return edits[::-1]


def marked(decoded: Sequence[str], truth: Sequence[str]) -> str:
    """Return the alignment as one line: `i [go|will] [+not] [-around]`, decoded before true."""
    written = {
        "equal": "{0.decoded}",
        "substitute": "[{0.decoded}|{0.truth}]",
        "insert": "[+{0.decoded}]",
        "delete": "[-{0.truth}]",
    }
    return " ".join(written[edit.kind].format(edit) for edit in aligned(decoded, truth))
