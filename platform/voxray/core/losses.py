"""`LossTerms`: named sums, so that NaN labels, tokens and masks weigh right on any number of workers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss: a sum over this worker's entries. The loop divides it by the count over all
    workers.

    The counts come from `Task.normalizers`, before the forward pass; a term and its count share a name.
    """

    sum: torch.Tensor
    weight: float = 1.0


LossTerms = dict[str, LossTerm]
