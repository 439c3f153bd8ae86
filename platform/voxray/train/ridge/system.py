"""The symmetric systems of ridge regression: (M + αI) S = R for each α, the choice of α, M's conditioning.

M is the Gram matrix of the features, or of the rows in the dual form; it is summed here block by block.

Legend: S size of the system, Z ≥ S columns of a block, R rows of a block, O targets, A alphas,
T targets that have an alpha of their own (O, or 1 for all together), F folds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

# Systems up to this size are summed from products in float64, larger ones from float32 products of blocks of
# rows. The sums are float64 in both cases: 8 bytes an entry, what a compensated pair of float32 takes, with
# more digits and one addition in place of four. With 200,000 rows, sums and solve in float32 are off by 5e-5
# of the predictions' spread (scikit-learn, benchmarks/ridge.py).
FLOAT64_SIZE = 4096
# One eigendecomposition takes as long as so many Cholesky factorisations and solves: 12.2 s beside 0.52 s
# at S = 2,048 on two busy cores (docs/log.md).
EIGH_ALPHAS = 24
# A relative error of 1e-5 is promised, so that many digits must be left.
DIGITS_NEEDED = 5
_PANEL = 256

Method = Literal["cholesky", "eigh"]


@dataclass(frozen=True)
class Solution:
    """A ridge regression: predictions are X coef_ODᵀ + intercept_O. All tensors are float64.

    `alpha_T` holds the chosen penalty, one for all targets or one for each; `mse_AT` the mean squared error
    that each alpha left on held-out rows, averaged over folds (None where there was one alpha).
    `condition_number` is that of M + αI with the smallest chosen α, `train_mse` that of the fitted rows.
    """

    coef_OD: torch.Tensor
    intercept_O: torch.Tensor
    alpha_T: torch.Tensor
    mse_AT: torch.Tensor | None
    train_mse: float
    condition_number: float
    form: Literal["primal", "dual"]
    method: Method
    warning: str  # empty, or what the user should be told about the precision


def product_dtype(size: int) -> torch.dtype:
    """Return the dtype in which blocks of a system of this size are multiplied."""
    return torch.float64 if size <= FLOAT64_SIZE else torch.float32


def add_products(sums_SZ: torch.Tensor, rows_RZ: torch.Tensor) -> None:
    """Add rows_RZ[:, :S]ᵀ rows_RZ to `sums_SZ` in place, in the blocks on the diagonal and right of them.

    `mirror` fills in the rest: a symmetric product needs half of a product's work.
    """
    size = len(sums_SZ)
    for first in range(0, size, _PANEL):
        panel = slice(first, min(first + _PANEL, size))
        left_PR, right_RC = rows_RZ[:, panel].T, rows_RZ[:, first:]
        if rows_RZ.dtype == sums_SZ.dtype:
            sums_SZ[panel, first:].addmm_(left_PR, right_RC)
        else:
            sums_SZ[panel, first:] += left_PR @ right_RC


def mirror(sums_SZ: torch.Tensor) -> torch.Tensor:
    """Copy what `add_products` summed to below the diagonal, in place; return the same tensor."""
    size = len(sums_SZ)
    for first in range(0, size, _PANEL):
        after = min(first + _PANEL, size)
        sums_SZ[after:, first:after] = sums_SZ[first:after, after:size].T
    return sums_SZ


class System:
    """(M + αI) S = R: a Cholesky factor for each α, or one eigendecomposition of M where there are many.

    Where α is 0 or a factor fails, the eigendecomposition gives the solution of least norm.
    """

    def __init__(self, matrix_SS: torch.Tensor, right_SO: torch.Tensor, num_alphas: int) -> None:
        """Take M and R, float64, and how many different α are coming."""
        self._matrix_SS, self._right_SO = matrix_SS, right_SO
        self._eigen: tuple[torch.Tensor, torch.Tensor] | None = None
        if num_alphas >= EIGH_ALPHAS:
            self._decompose()

    @property
    def method(self) -> Method:
        """How the solutions were found."""
        return "cholesky" if self._eigen is None else "eigh"

    def solve(self, alpha: float) -> torch.Tensor:
        """Return S [S, O] for one α ≥ 0."""
        if self._eigen is None and alpha > 0:
            factor_SS, failed = torch.linalg.cholesky_ex(_shifted(self._matrix_SS, alpha))
            if not int(failed):
                return torch.cholesky_solve(self._right_SO, factor_SS)
        value_S, vector_SS = self._eigen or self._decompose()
        shifted_S = value_S + alpha
        least = len(value_S) * torch.finfo(value_S.dtype).eps * float(value_S.abs().max())
        inverse_S = torch.where(shifted_S > least, 1 / shifted_S, 0.0)
        return vector_SS @ (inverse_S[:, None] * (vector_SS.T @ self._right_SO))

    def solve_each(self, alpha_T: Sequence[float]) -> torch.Tensor:
        """Return S [S, O] with one α for all targets, or with one for each."""
        if len(set(alpha_T)) == 1:
            return self.solve(alpha_T[0])
        result_SO = torch.empty_like(self._right_SO)
        for alpha in sorted(set(alpha_T)):
            columns = [column for column, own in enumerate(alpha_T) if own == alpha]
            result_SO[:, columns] = self.solve(alpha)[:, columns]
        return result_SO

    def condition_number(self, alpha: float) -> float:
        """Return that of M + αI in the 2-norm; infinite for a singular matrix."""
        value_S = torch.linalg.eigvalsh(self._matrix_SS) if self._eigen is None else self._eigen[0]
        low, high = float(value_S[0]) + alpha, float(value_S[-1]) + alpha
        return high / low if low > 0 else math.inf

    def _decompose(self) -> tuple[torch.Tensor, torch.Tensor]:
        value_S, vector_SS = torch.linalg.eigh(self._matrix_SS)
        self._eigen = value_S, vector_SS
        return self._eigen


def held_out_mse(mse_FAO: Sequence[torch.Tensor], per_target: bool) -> torch.Tensor:
    """Return the folds' mean squared errors averaged over folds, and over targets unless `per_target`.

    Each fold weighs the same, as in scikit-learn's GridSearchCV. [A, O] per fold → [A, O or 1].
    """
    mse_AO = torch.stack(list(mse_FAO)).mean(0)
    return mse_AO if per_target else mse_AO.mean(1, keepdim=True)


def best_alphas(mse_AT: torch.Tensor, alphas: Sequence[float]) -> list[float]:
    """Return the alpha of least error for each column of `mse_AT`; the first of equals."""
    return [alphas[index] for index in mse_AT.cpu().numpy().argmin(axis=0)]


def precision_warning(condition_number: float, size: int) -> str:
    """Return what the user should be told where too few digits are left, else nothing.

    About log10(condition number) digits of the products' precision are lost in a solve (Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd ed., theorem 10.4).
    """
    dtype = product_dtype(size)
    carried = -math.log10(torch.finfo(dtype).eps)
    left = carried - math.log10(condition_number)
    if left >= DIGITS_NEEDED:
        return ""
    return (
        f"the condition number of the ridge system is {condition_number:.1e}, which leaves about "
        f"{round(max(0.0, left))} of the {round(carried)} digits of {str(dtype).removeprefix('torch.')}; "
        "raise the least of closed_form.alphas, or leave out features that repeat others"
    )


def _shifted(matrix_SS: torch.Tensor, alpha: float) -> torch.Tensor:
    shifted_SS = matrix_SS.clone()
    shifted_SS.diagonal().add_(alpha)
    return shifted_SS
