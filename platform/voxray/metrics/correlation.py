"""Pearson's correlation of each column over all rows, from sums that add over batches, and of single rows.

Shapes: N rows, V columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch

EPSILON = 1e-12  # of the sum of squares about 0: less about the mean is a constant's rounding


@dataclass(frozen=True)
class PairSums:
    """Sums over rows for each column of two matrices, float64 [V]; `num` counts rows, [V] too.

    Sums of squares lose digits where a column's mean is large beside its spread; in float64 they keep more of
    float32 columns than these have: with a mean of 10,000 standard deviations r is right to 1e-6.
    """

    num: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    yy: torch.Tensor
    xy: torch.Tensor

    @classmethod
    def of(cls, x_NV: torch.Tensor, y_NV: torch.Tensor) -> Self:
        """Return the sums of a batch."""
        x_NV, y_NV = x_NV.double(), y_NV.double()
        num_V = torch.full_like(x_NV[:1].sum(0), len(x_NV))
        products = (x_NV * x_NV, y_NV * y_NV, x_NV * y_NV)
        return cls(num_V, x_NV.sum(0), y_NV.sum(0), *(product.sum(0) for product in products))

    @classmethod
    def from_named(cls, values: Mapping[str, torch.Tensor]) -> Self:
        """Return what `named` gave, added up."""
        return cls(**values)

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each sum with its name."""
        return ((each.name, getattr(self, each.name)) for each in fields(self))

    def correlation(self) -> torch.Tensor:
        """Return Pearson's r of each column [V]; NaN where one of both is constant."""
        over_xx = self.xx - self.x.square() / self.num
        over_yy = self.yy - self.y.square() / self.num
        over_xy = self.xy - self.x * self.y / self.num
        return _pearson(over_xy, over_xx, over_yy, self.xx, self.yy)


def row_correlation(x_NV: torch.Tensor, y_NV: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r of each row over its columns, float64 [N]; NaN where one of both is constant."""
    x_NV, y_NV = x_NV.double(), y_NV.double()
    own_NV, other_NV = x_NV - x_NV.mean(1, keepdim=True), y_NV - y_NV.mean(1, keepdim=True)
    products = own_NV * other_NV, own_NV * own_NV, other_NV * other_NV, x_NV * x_NV, y_NV * y_NV
    return _pearson(*(product.sum(1) for product in products))


def _pearson(
    over_xy: torch.Tensor, over_xx: torch.Tensor, over_yy: torch.Tensor, xx: torch.Tensor, yy: torch.Tensor
) -> torch.Tensor:
    """Return r from sums of products about the means and sums of squares about 0; NaN for constants."""
    # What is left of a constant's sums is rounding.
    is_constant = (over_xx <= EPSILON * xx) | (over_yy <= EPSILON * yy)
    found = over_xy / (over_xx.clamp(min=0).sqrt() * over_yy.clamp(min=0).sqrt())
    return torch.where(is_constant, torch.nan, found.clamp(-1, 1))
