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

from voxray.train.ridge.spectrum import largest, principal

# Systems up to this size are summed from products in float64, larger ones from float32 products of blocks of
# rows. The sums are float64 in both cases: 8 bytes an entry, what a compensated pair of float32 takes, with
# more digits and one addition in place of four. With 200,000 rows, sums and solve in float32 are off by 5e-5
# of the predictions' spread (scikit-learn, benchmarks/ridge.py).
FLOAT64_SIZE = 4096
# One eigendecomposition takes as long as so many Cholesky factorisations and solves: 13.2 s of one thread at
# S = 4,096, where a factor takes 0.72 s and solves for 768 targets 0.41 s, 0.08 s more than a product (17);
# 9 at S = 2,048 (docs/log.md).
EIGH_ALPHAS = 16
# A relative error of 1e-5 is promised, so that many digits must be left.
DIGITS_NEEDED = 5
_PANEL = 256

Method = Literal["cholesky", "eigh"]


@dataclass(frozen=True)
class Solution:
    """A ridge regression: predictions are X coef_ODᵀ + intercept_O. All tensors are float64.

    `alpha_T` holds the chosen penalty, one for all targets or one for each; `mse_AT` the mean squared error
    that each alpha left on held-out rows, averaged over folds, and `mse_FA` that of each fold, averaged over
    targets (None where there was one alpha).
    `condition_number` is that of M + αI with the smallest chosen α, `train_mse` that of the fitted rows.
    """

    coef_OD: torch.Tensor
    intercept_O: torch.Tensor
    alpha_T: torch.Tensor
    mse_AT: torch.Tensor | None
    mse_FA: torch.Tensor | None
    train_mse: float
    condition_number: float
    form: Literal["primal", "dual"]
    method: Method
    warning: str  # empty, or what the user should be told about the precision
    components: int | None = None  # principal components that were regressed on; None: the features
    explained_variance: float | None = None  # their share of the features' variance


def product_dtype(size: int) -> torch.dtype:
    """Return the dtype in which blocks of a system of this size are multiplied."""
    return torch.float64 if size <= FLOAT64_SIZE else torch.float32


def rounding(size: int) -> float:
    """Return the eigenvalues that are lost in rounding in a system of this size, beside the largest."""
    eps = torch.finfo(torch.float64).eps
    return max(size * eps, torch.finfo(product_dtype(size)).eps)


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

    Where α is 0 or a factor fails, the eigendecomposition gives the solution of least norm. With
    `components`, M is replaced by its leading eigenpairs and the solution lies in their space.
    """

    def __init__(
        self,
        matrix_SS: torch.Tensor,
        right_SO: torch.Tensor,
        num_alphas: int,
        components: int | None = None,
    ) -> None:
        """Take M and R, float64, and how many different α are coming."""
        self._matrix_SS, self._right_SO = matrix_SS, right_SO
        self._factor: tuple[float, torch.Tensor] | None = None
        self._eigen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rotated_KO: torch.Tensor | None = None  # R in the eigenvectors' basis
        self.is_exact = True  # what the components are
        if components is not None:
            found = principal(matrix_SS, components, rounding(len(matrix_SS)))
            self._eigen = found.value_K.flip(0), found.vector_SK.flip(1)
            self.is_exact = found.is_exact
        elif num_alphas >= EIGH_ALPHAS:
            self._decomposed()

    @property
    def method(self) -> Method:
        """How the solutions were found."""
        return "cholesky" if self._eigen is None else "eigh"

    @property
    def num_components(self) -> int | None:
        """The eigenpairs that the solution lies in, where they were computed."""
        return None if self._eigen is None else len(self._eigen[0])

    @property
    def explained_variance(self) -> float | None:
        """Their share of M's trace."""
        if self._eigen is None:
            return None
        return float(self._eigen[0].sum() / self._matrix_SS.diagonal().sum())

    def solve(self, alpha: float) -> torch.Tensor:
        """Return S [S, O] for one α ≥ 0."""
        factor_SS = self._cholesky(alpha)
        if factor_SS is not None:
            return torch.cholesky_solve(self._right_SO, factor_SS)
        value_K, vector_SK = self._decomposed()
        if self._rotated_KO is None:
            self._rotated_KO = vector_SK.T @ self._right_SO
        shifted_K = value_K + alpha
        least = len(self._matrix_SS) * torch.finfo(value_K.dtype).eps * float(value_K.abs().max())
        inverse_K = torch.where(shifted_K > least, 1 / shifted_K, 0.0)
        return vector_SK @ (inverse_K[:, None] * self._rotated_KO)

    def solve_each(self, alpha_T: Sequence[float]) -> torch.Tensor:
        """Return S [S, O] with one α for all targets, or with one for each."""
        if len(set(alpha_T)) == 1:
            return self.solve(alpha_T[0])
        result_SO = torch.empty_like(self._right_SO)
        for alpha in sorted(set(alpha_T), reverse=True):
            columns = [column for column, own in enumerate(alpha_T) if own == alpha]
            result_SO[:, columns] = self.solve(alpha)[:, columns]
        return result_SO

    def condition_number(self, alpha: float) -> float:
        """Return that of M + αI in the 2-norm (of large systems to a relative error of 2e-2); infinite for a
        singular matrix.
        """
        factor_SS = self._cholesky(alpha)
        if factor_SS is not None:
            high = largest(lambda block_SB: self._matrix_SS @ block_SB, self._matrix_SS[:, :0])
            inverse = largest(lambda block_SB: _solved(factor_SS, block_SB), self._matrix_SS[:, :0])
            if high is not None and inverse is not None:
                return (high + alpha) * inverse
        value_S = torch.linalg.eigvalsh(self._matrix_SS) if self._eigen is None else self._eigen[0]
        low, high = float(value_S[0]) + alpha, float(value_S[-1]) + alpha
        return high / low if low > 0 else math.inf

    def _cholesky(self, alpha: float) -> torch.Tensor | None:
        """Return the factor of M + αI, of which the last is kept; None where eigenpairs are to be used."""
        if self._eigen is not None or alpha == 0:
            return None
        if self._factor is None or self._factor[0] != alpha:
            self._factor = None  # its memory, before the next takes as much
            # The transpose of the symmetric matrix has LAPACK's layout, so it is factored in place.
            factor_SS = self._matrix_SS.clone(memory_format=torch.contiguous_format).T
            factor_SS.diagonal().add_(alpha)
            failed = torch.empty((), dtype=torch.int32, device=factor_SS.device)
            torch.linalg.cholesky_ex(factor_SS, out=(factor_SS, failed))
            if int(failed):
                return None
            self._factor = alpha, factor_SS
        return self._factor[1]

    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._eigen is None:
            value_S, vector_SS = torch.linalg.eigh(self._matrix_SS)
            self._eigen = value_S, vector_SS
        return self._eigen


def _solved(factor_SS: torch.Tensor, right_SB: torch.Tensor) -> torch.Tensor:
    """Return what `cholesky_solve` does, three times as fast where there are few columns."""
    half_SB = torch.linalg.solve_triangular(factor_SS, right_SB, upper=False)
    return torch.linalg.solve_triangular(factor_SS.T, half_SB, upper=True)


def held_out_mse(mse_FAO: torch.Tensor, per_target: bool) -> torch.Tensor:
    """Return the folds' mean squared errors averaged over folds, and over targets unless `per_target`.

    Each fold weighs the same, as in scikit-learn's GridSearchCV. [F, A, O] → [A, O or 1].
    """
    mse_AO = mse_FAO.mean(0)
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


def components_warning(asked: int | None, used: int | None, is_exact: bool) -> str:
    """Return what the user should be told where there are fewer principal components than asked for, or
    approximate ones.
    """
    if asked is None or used is None:
        return ""
    if used < asked:
        return (
            f"closed_form.components is {asked:,}, but the training rows vary in {used:,} directions only; "
            "all of them are used"
        )
    if not is_exact:
        return f"the {used:,} principal components are approximate: a randomised range, as scikit-learn's PCA"
    return ""
