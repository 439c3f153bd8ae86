"""What a pass over a split gives: `Sum`s that are added up, `Rows` that are gathered. Any split of rows
agrees.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch

from voxray.config.errors import RunError
from voxray.core.collectives import all_gather_objects


@dataclass
class Sum:
    """A sum over rows and the count that divides it; tensors allowed (confusion matrices)."""

    value: torch.Tensor
    count: torch.Tensor


@dataclass
class Rows:
    """Per-row columns (scores, labels) for metrics that need all rows at once: AUROC, ranks, bootstraps."""

    sample_id: list[str]
    group_id: list[str]
    columns: dict[str, np.ndarray]


@dataclass
class Evaluation:
    """One batch's contribution to a summary, or, once merged, a whole split's."""

    sums: dict[str, Sum] = field(default_factory=dict[str, Sum])
    rows: Rows | None = None


def merge(parts: list[Evaluation]) -> Evaluation:
    """Merge all workers' parts: sums added, rows gathered and sorted by sample id, the same on every rank.

    Raises RunError when a sample id comes twice: a row was evaluated twice, and every metric would be wrong.
    """
    gathered = [part for worker in all_gather_objects(parts) for part in worker]
    merged = Evaluation()
    for part in gathered:
        for name, term in part.sums.items():
            old = merged.sums.get(name)
            new = (term.value.double().cpu(), term.count.double().cpu())
            merged.sums[name] = Sum(*new) if old is None else Sum(old.value + new[0], old.count + new[1])
    chunks = [part.rows for part in gathered if part.rows is not None]
    if chunks:
        merged.rows = _sorted_rows(chunks)
    return merged


def _sorted_rows(chunks: list[Rows]) -> Rows:
    sample_id = [name for chunk in chunks for name in chunk.sample_id]
    group_id = [name for chunk in chunks for name in chunk.group_id]
    order = sorted(range(len(sample_id)), key=sample_id.__getitem__)
    for before, after in itertools.pairwise(order):
        if sample_id[before] == sample_id[after]:
            raise RunError(
                f"sample '{sample_id[before]}' was evaluated twice; sample ids must be unique in a split"
            )
    columns = {
        name: np.concatenate([chunk.columns[name] for chunk in chunks])[order] for name in chunks[0].columns
    }
    return Rows([sample_id[i] for i in order], [group_id[i] for i in order], columns)
