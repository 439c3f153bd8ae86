"""Controls of decoded text: how much of it comes from the brain, how much from the language model alone.

A row is decoded from its own activity and nothing else of the split, so decoding from another trial's
activity is to take what was decoded of that trial.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from voxray.core.randomness import key


def shuffled(columns: Mapping[str, np.ndarray], names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Return the columns, those of `names` [N] each with another row's entries; of one row its own.

    All rows stand on one random cycle (Sattolo 1986), so none keeps its own.
    """
    present = [name for name in names if name in columns]
    if not present:
        return dict(columns)
    order_N = np.random.default_rng(key(seed, "control")).permutation(len(columns[present[0]]))
    other_N = np.empty_like(order_N)
    other_N[order_N] = np.roll(order_N, 1)
    return {**columns, **{name: columns[name][other_N] for name in present}}
