"""Ridge regression from sums over rows: one pass, memory that does not depend on the number of rows.

`Statistics` keeps, for each fold, the mean and the centred products of what was added; `solve` chooses alpha
from them (a fold's complement is the total minus the fold) and returns the coefficients. Blocks are centred
on their own means and joined by the pairwise update of Chan, Golub and LeVeque (1979), "Updating Formulae and
a Pairwise Algorithm for Computing Sample Variances", so large means do not cancel the digits that matter.

Legend: B rows of a batch, D features, O targets, Z = D + O (features, then targets), F folds, A alphas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from voxray.config.errors import InputError
from voxray.core.collectives import all_reduce_sum, is_distributed
from voxray.train.ridge.spectrum import principal
from voxray.train.ridge.system import (
    Solution,
    System,
    add_products,
    best_alphas,
    components_warning,
    held_out_mse,
    mirror,
    precision_warning,
    product_dtype,
    rounding,
)

_BLOCK_BYTES = 16 << 20  # rows waiting in each fold to be multiplied together
# Fewer rows at a time would leave adding up the products of many features to the memory's speed.
_LEAST_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Moments:
    """What a set of rows adds up to, float64: `products_DZ` and `squares_O` (of the targets) are about the
    mean.
    """

    num_rows: int
    mean_Z: torch.Tensor
    products_DZ: torch.Tensor
    squares_O: torch.Tensor

    def without(self, part: "Moments") -> "Moments":
        """Return the moments of the rows that are not in `part`, which are at least one."""
        num_rows = self.num_rows - part.num_rows
        mean_Z = self.mean_Z + (part.num_rows / num_rows) * (self.mean_Z - part.mean_Z)
        between_Z = (part.mean_Z - mean_Z) * math.sqrt(part.num_rows * num_rows / self.num_rows)
        num_features = len(self.products_DZ)
        products_DZ = self.products_DZ - part.products_DZ
        products_DZ.addr_(between_Z[:num_features], between_Z, alpha=-1)
        squares_O = self.squares_O - part.squares_O - between_Z[num_features:].square()
        return Moments(num_rows, mean_Z, products_DZ, squares_O)

    def system(self, fit_intercept: bool, num_alphas: int) -> System:
        """Return the normal equations of these rows; about the origin without an intercept."""
        num_features = len(self.products_DZ)
        products_DZ = self.products_DZ
        if not fit_intercept:
            products_DZ = products_DZ.addr(self.mean_Z[:num_features], self.mean_Z, alpha=self.num_rows)
        return System(products_DZ[:, :num_features], products_DZ[:, num_features:], num_alphas)

    def intercept(self, coef_DO: torch.Tensor, fit_intercept: bool) -> torch.Tensor:
        """Return what leaves these rows no mean error [O], or zeros."""
        num_features = len(coef_DO)
        intercept_O = self.mean_Z[num_features:] - self.mean_Z[:num_features] @ coef_DO
        return intercept_O if fit_intercept else torch.zeros_like(intercept_O)

    def components(self, num: int) -> "Components":
        """Return the first `num` principal components of these rows' features, or as many as there are."""
        num_features = len(self.products_DZ)
        gram_DD = self.products_DZ[:, :num_features]
        found = principal(gram_DD, num, rounding(num_features))
        share = float(found.value_K.sum() / gram_DD.diagonal().sum())
        return Components(found.vector_SK, self.mean_Z[:num_features], share, found.is_exact)

    def mean_squared_error(self, coef_DO: torch.Tensor, intercept_O: torch.Tensor) -> torch.Tensor:
        """Return each target's mean squared error on these rows [O]."""
        num_features = len(coef_DO)
        within_DO = self.products_DZ[:, :num_features] @ coef_DO
        cross_DO = self.products_DZ[:, num_features:]
        squares_O = self.squares_O + (coef_DO * (within_DO - 2 * cross_DO)).sum(0)
        bias_O = self.mean_Z[num_features:] - self.mean_Z[:num_features] @ coef_DO - intercept_O
        return squares_O.clamp(min=0) / self.num_rows + bias_O.square()


@dataclass(frozen=True)
class Components:
    """Principal components of some rows' features: scores are (x − origin_D) basis_DK."""

    basis_DK: torch.Tensor
    origin_D: torch.Tensor
    explained_variance: float
    is_exact: bool

    def of(self, rows: Moments) -> Moments:
        """Return the moments of `rows` with the scores as their features."""
        num_features = len(self.basis_DK)
        feature_mean_D, target_mean_O = rows.mean_Z[:num_features], rows.mean_Z[num_features:]
        mean_Z = torch.cat([(feature_mean_D - self.origin_D) @ self.basis_DK, target_mean_O])
        gram_KK = self.basis_DK.T @ (rows.products_DZ[:, :num_features] @ self.basis_DK)
        cross_KO = self.basis_DK.T @ rows.products_DZ[:, num_features:]
        return Moments(rows.num_rows, mean_Z, torch.cat([gram_KK, cross_KO], 1), rows.squares_O)


class Statistics:
    """Sums over the rows of each fold; folds × D × (D + O) float64 numbers, however many rows are added."""

    def __init__(
        self, num_features: int, num_targets: int, num_folds: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        """Begin without rows."""
        self.num_features, self.num_targets, self.num_folds = num_features, num_targets, num_folds
        width = num_features + num_targets
        self._device = torch.device(device)
        self._num_rows = [0] * num_folds
        self._mean_FZ = self._zeros(num_folds, width)
        self._products_FDZ = self._zeros(num_folds, num_features, width)
        self._squares_FO = self._zeros(num_folds, num_targets)
        self._block_rows = max(_LEAST_BLOCK_ROWS, _BLOCK_BYTES // (8 * width))
        # One row more than are waiting: the one that joins a block's mean to that of the rows before.
        self._waiting: list[torch.Tensor | None] = [None] * num_folds
        self._num_waiting = [0] * num_folds

    @property
    def rows_per_fold(self) -> list[int]:
        """The rows added to each fold: by this worker, or after `all_reduce` by all."""
        return [done + waiting for done, waiting in zip(self._num_rows, self._num_waiting, strict=True)]

    def add(self, x_BD: torch.Tensor, y_BO: torch.Tensor, fold_B: torch.Tensor | None = None) -> None:
        """Add rows of any floating dtype; `fold_B`, on the CPU, is the fold of each (None: all in 0)."""
        if fold_B is None:
            self._put(0, x_BD, y_BO)
            return
        for fold in fold_B.unique().tolist():
            chosen_B = (fold_B == fold).to(x_BD.device)
            self._put(fold, x_BD[chosen_B], y_BO[chosen_B])

    def all_reduce(self) -> None:
        """Add up the sums of all workers, which hold the same ones then. No row can be added after it."""
        for fold in range(self.num_folds):
            self._multiply(fold)
            self._waiting[fold] = None
        if not is_distributed():
            return
        own_F = torch.tensor(self._num_rows, dtype=torch.float64, device=self._device)
        all_F = all_reduce_sum(own_F)
        mean_FZ = all_reduce_sum(own_F[:, None] * self._mean_FZ) / all_F.clamp(min=1)[:, None]
        between_FZ = own_F.sqrt()[:, None] * (self._mean_FZ - mean_FZ)
        for fold in range(self.num_folds):
            add_products(self._products_FDZ[fold], between_FZ[fold, None])
            self._products_FDZ[fold] = all_reduce_sum(self._products_FDZ[fold])
        squares_FO = self._squares_FO + between_FZ[:, self.num_features :].square()
        self._squares_FO, self._mean_FZ = all_reduce_sum(squares_FO), mean_FZ
        self._num_rows = [int(rows) for rows in all_F.tolist()]

    def of_fold(self, fold: int) -> Moments:
        """Return what the rows of one fold add up to."""
        self._multiply(fold)
        products_DZ = mirror(self._products_FDZ[fold])
        return Moments(self._num_rows[fold], self._mean_FZ[fold], products_DZ, self._squares_FO[fold])

    def total(self) -> Moments:
        """Return what all rows add up to."""
        if self.num_folds == 1:
            return self.of_fold(0)
        parts = [self.of_fold(fold) for fold in range(self.num_folds)]
        num_rows = sum(part.num_rows for part in parts)
        share_F = self._mean_FZ.new_tensor([part.num_rows / max(1, num_rows) for part in parts])
        mean_Z = share_F @ self._mean_FZ
        between_FZ = (share_F * num_rows).sqrt()[:, None] * (self._mean_FZ - mean_Z)
        products_DZ = self._products_FDZ.sum(0)
        products_DZ.addmm_(between_FZ[:, : self.num_features].T, between_FZ)
        squares_O = self._squares_FO.sum(0) + between_FZ[:, self.num_features :].square().sum(0)
        return Moments(num_rows, mean_Z, products_DZ, squares_O)

    def _put(self, fold: int, x_BD: torch.Tensor, y_BO: torch.Tensor) -> None:
        """Let rows wait until there is a block of them."""
        waiting_RZ = self._waiting[fold]
        if waiting_RZ is None:
            waiting_RZ = self._zeros(self._block_rows + 1, self.num_features + self.num_targets)
            self._waiting[fold] = waiting_RZ
        taken = 0
        while taken < len(x_BD):
            first = self._num_waiting[fold]
            num = min(len(x_BD) - taken, self._block_rows - first)
            waiting_RZ[first : first + num, : self.num_features] = x_BD[taken : taken + num]
            waiting_RZ[first : first + num, self.num_features :] = y_BO[taken : taken + num]
            taken += num
            self._num_waiting[fold] += num
            if self._num_waiting[fold] == self._block_rows:
                self._multiply(fold)

    def _multiply(self, fold: int) -> None:
        """Add the products of the waiting rows to the fold's sums."""
        waiting_RZ, num, before = self._waiting[fold], self._num_waiting[fold], self._num_rows[fold]
        if waiting_RZ is None or not num:
            return
        block_RZ = waiting_RZ[: num + 1]
        mean_Z = block_RZ[:num].mean(0)
        block_RZ[:num] -= mean_Z
        step_Z = mean_Z - self._mean_FZ[fold]
        block_RZ[num] = step_Z * math.sqrt(before * num / (before + num))
        self._mean_FZ[fold] += step_Z * (num / (before + num))
        self._squares_FO[fold] += block_RZ[:, self.num_features :].square().sum(0)
        add_products(self._products_FDZ[fold], block_RZ.to(product_dtype(self.num_features)))
        self._num_rows[fold] = before + num
        self._num_waiting[fold] = 0

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)


def solve(
    statistics: Statistics,
    alphas: Sequence[float],
    per_target: bool = False,
    fit_intercept: bool = True,
    components: int | None = None,
) -> Solution:
    """Return the ridge regression of the rows in `statistics`, the same as scikit-learn's `Ridge`.

    Where there are several alphas, that of least held-out error is taken, for each target its own if
    `per_target`. With `components`, the regression is on the first so many principal components of the
    features, each fold's own (scikit-learn's pipeline of `PCA` and `Ridge`), and the coefficients are those
    of the features. Raises InputError where fewer than two folds hold rows to choose by.
    """
    total = statistics.total()
    mse_FAO = None
    if len(alphas) > 1:
        mse_FAO = _cross_validate(statistics, total, alphas, fit_intercept, components)
    mse_AT = None if mse_FAO is None else held_out_mse(mse_FAO, per_target)
    alpha_T = [alphas[0]] if mse_AT is None else best_alphas(mse_AT, alphas)
    found = None if components is None else total.components(components)
    rows = total if found is None else found.of(total)
    system = rows.system(fit_intercept, len(alphas))
    coef_DO = system.solve_each(alpha_T)
    intercept_O = rows.intercept(coef_DO, fit_intercept)
    train_mse = float(rows.mean_squared_error(coef_DO, intercept_O).mean())
    condition_number = system.condition_number(min(alpha_T))
    warnings = [precision_warning(condition_number, statistics.num_features)]
    if found is not None:
        coef_DO = found.basis_DK @ coef_DO
        intercept_O = intercept_O - found.origin_D @ coef_DO
        warnings.append(components_warning(components, found.basis_DK.shape[1], found.is_exact))
    return Solution(
        coef_OD=coef_DO.T.contiguous(),
        intercept_O=intercept_O,
        alpha_T=torch.tensor(alpha_T, dtype=torch.float64),
        mse_AT=mse_AT,
        mse_FA=None if mse_FAO is None else mse_FAO.mean(2),
        train_mse=train_mse,
        condition_number=condition_number,
        form="primal",
        method=system.method,
        warning="; ".join(filter(None, warnings)),
        components=None if found is None else found.basis_DK.shape[1],
        explained_variance=None if found is None else found.explained_variance,
    )


def check_folds(rows_per_fold: Sequence[int]) -> list[int]:
    """Return the folds that hold rows. Raises InputError where they are fewer than two."""
    filled = [fold for fold, rows in enumerate(rows_per_fold) if rows]
    if len(filled) < 2:
        raise InputError(
            f"closed_form.alphas has several values, but all groups of rows fall into {len(filled)} of the "
            f"{len(rows_per_fold)} folds, and nothing is left to choose by; give one alpha, or more folds"
        )
    return filled


def _cross_validate(
    statistics: Statistics,
    total: Moments,
    alphas: Sequence[float],
    fit_intercept: bool,
    components: int | None,
) -> torch.Tensor:
    """Return the held-out mean squared error of each fold, alpha and target [F, A, O]."""
    mse_FAO: list[torch.Tensor] = []
    for fold in check_folds(statistics.rows_per_fold):
        held_out = statistics.of_fold(fold)
        rest = total.without(held_out)
        if components is not None:
            found = rest.components(components)
            rest, held_out = found.of(rest), found.of(held_out)
        system = rest.system(fit_intercept, len(alphas))
        errors_AO: list[torch.Tensor] = []
        for alpha in alphas:
            coef_DO = system.solve(alpha)
            intercept_O = rest.intercept(coef_DO, fit_intercept)
            errors_AO.append(held_out.mean_squared_error(coef_DO, intercept_O))
        mse_FAO.append(torch.stack(errors_AO))
    return torch.stack(mse_FAO)
