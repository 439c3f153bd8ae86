"""All rows of an update, for loss terms that compare rows with each other (InfoNCE, a batch's variance).

A worker computes such a term over the rows of all workers and micro-batches, in which its own micro-batch
alone has a gradient. Added up over workers and micro-batches these gradients are the term's own, so nothing
but the compared vectors is exchanged. Under accumulation the vectors of all micro-batches are made beforehand
without a gradient, and each micro-batch runs twice (gradient caching: Gao et al. 2021, arXiv 2101.06983).

Shapes: B rows of a micro-batch on this worker, N rows of the update, padding left out.
"""

from dataclasses import dataclass

import torch

from voxray.core import collectives
from voxray.core.losses import LossTerm


@dataclass(frozen=True)
class _Kept:
    """A micro-batch's rows over all workers, and where this worker's lie among them."""

    rows: torch.Tensor
    start: int


class UpdateRows:
    """Gathers what a task's `loss` compares. Outside of an accumulating update: over the workers alone."""

    def __init__(self) -> None:
        """Begin outside of an accumulating update."""
        self._kept: list[dict[str, _Kept]] = []
        self._index: int | None = None  # the micro-batch that runs
        self._is_complete = False

    def record(self, index: int) -> None:
        """Keep what micro-batch `index`, run without a gradient, gathers from here on."""
        if index == 0:
            self.forget()
        self._index = index
        self._kept.append({})

    def replay(self, index: int) -> None:
        """Micro-batch `index` runs with a gradient: it finds the kept rows of all the others."""
        self._index, self._is_complete = index, True

    def forget(self) -> None:
        """Leave the accumulating update."""
        self._kept, self._index, self._is_complete = [], None, False

    def gathered(self, name: str, rows_BX: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
        """Return the update's rows [N, …], in the order of micro-batches and ranks; those of this micro-batch
        on this worker are `rows_BX` itself, gradient included, all others are constants.

        `name` tells apart what one forward pass gathers. Every worker calls this.
        """
        own_bX = rows_BX[valid_B]
        if self._index is None or not self._is_complete:
            kept = _over_workers(own_bX.detach())
            if self._index is None:
                return _placed(kept, own_bX)
            self._kept[self._index][name] = kept
            return kept.rows
        parts = [
            _placed(kept[name], own_bX) if index == self._index else kept[name].rows
            for index, kept in enumerate(self._kept)
        ]
        return torch.cat(parts)

    def term(
        self, loss: torch.Tensor, rows_NX: torch.Tensor, valid_B: torch.Tensor, weight: float = 1.0
    ) -> LossTerm:
        """Return the term for `loss`, a mean over the gathered rows; its count is the number of valid rows.

        The value is this micro-batch's share, so that the shares add up; the gradient is the whole one, since
        each share of it comes from one micro-batch alone.
        """
        whole = loss * len(rows_NX)
        return LossTerm(whole - whole.detach() + loss.detach() * valid_B.sum(), weight)

    def shared(self, parameter: torch.Tensor, rows_NX: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
        """Return a parameter of the comparison itself (a learnt temperature), its gradient cut to this
        micro-batch's share: every micro-batch would else give it whole.
        """
        share = valid_B.sum() / len(rows_NX)
        return parameter.detach() + share * (parameter - parameter.detach())


def _over_workers(own_bX: torch.Tensor) -> _Kept:
    if not collectives.is_distributed():
        return _Kept(own_bX, 0)
    rows_NX = collectives.all_gather_rows(own_bX)
    counts = collectives.all_gather_rows(torch.tensor([len(own_bX)], device=own_bX.device))
    return _Kept(rows_NX, int(counts[: collectives.rank()].sum()))


def _placed(kept: _Kept, own_bX: torch.Tensor) -> torch.Tensor:
    """Return the rows with this worker's, which have a gradient, in their place."""
    if len(own_bX) == len(kept.rows):
        return own_bX
    return torch.cat([kept.rows[: kept.start], own_bX, kept.rows[kept.start + len(own_bX) :]])
