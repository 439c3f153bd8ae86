"""Ridge regression where rows are fewer than features: the rows are kept, and a rows × rows system is solved.

With K = X Xᵀ about the mean, the coefficients are Xᵀ (K + αI)⁻¹ Y (Saunders, Gammerman and Vovk 1998, "Ridge
Regression Learning Algorithm in Dual Variables"); no features × features matrix is made.

Legend: N rows of all workers, B rows of a batch, R rows fitted and V rows held out of N, C features of a
chunk, D features, O targets, Z = D + O, A alphas, F folds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from voxray.core.collectives import all_gather_objects, all_reduce_sum, is_distributed, rank
from voxray.train.ridge.statistics import check_folds
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
)

_CHUNK_BYTES = 64 << 20  # of the features, centred at a time


class KeptRows:
    """Rows as they came, for as long as they are few."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._chunks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        """Rows kept by this worker."""
        return sum(len(x_BD) for x_BD, _, _ in self._chunks)

    def add(self, x_BD: torch.Tensor, y_BO: torch.Tensor, fold_B: torch.Tensor) -> None:
        """Keep rows; `fold_B` is on the CPU."""
        self._chunks.append((x_BD, y_BO, fold_B))

    def drained(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield what was added, in order, and forget it: each chunk's memory is free before the next."""
        self._chunks.reverse()
        while self._chunks:
            yield self._chunks.pop()

    def gathered(self, num_features: int, num_targets: int, device: torch.device) -> "Rows":
        """Return the rows of all workers in rank order; every worker calls this."""
        chunks = list(self.drained())
        empty = torch.empty(0, num_features, device=device), torch.empty(0, num_targets, device=device)
        x_ND = torch.cat([x_BD for x_BD, _, _ in chunks] or [empty[0]])
        y_NO = torch.cat([y_BO for _, y_BO, _ in chunks] or [empty[1]]).double()
        fold_N = torch.cat([fold_B for _, _, fold_B in chunks] or [torch.empty(0, dtype=torch.int64)])
        if not is_distributed():
            return Rows(x_ND, y_NO, fold_N)
        shares = all_gather_objects((len(x_ND), x_ND.dtype))
        dtype = next((dtype for rows, dtype in shares if rows), x_ND.dtype)
        first = sum(rows for rows, _ in shares[: rank()])
        num_rows = sum(rows for rows, _ in shares)
        return Rows(
            _joined(x_ND.to(dtype), first, num_rows),
            _joined(y_NO, first, num_rows),
            _joined(fold_N.to(device), first, num_rows).cpu(),
        )


@dataclass(frozen=True)
class Rows:
    """All rows: features in their own dtype, targets in float64, folds on the CPU."""

    x_ND: torch.Tensor
    y_NO: torch.Tensor
    fold_N: torch.Tensor


def solve_dual(
    rows: Rows,
    num_folds: int,
    alphas: Sequence[float],
    per_target: bool = False,
    fit_intercept: bool = True,
    components: int | None = None,
) -> Solution:
    """Return what `ridge.solve` returns for the same rows, from their N × N kernel.

    Raises InputError where there are several alphas and fewer than two folds hold rows.
    """
    is_centred = fit_intercept or components is not None
    origin_D = _mean(rows.x_ND) if is_centred else rows.x_ND.new_zeros(rows.x_ND.shape[1]).double()
    kernel_NN = _kernel(rows.x_ND, origin_D)
    mse_FAO = None
    if len(alphas) > 1:
        mse_FAO = _cross_validate(rows, kernel_NN, num_folds, alphas, fit_intercept, components)
    mse_AT = None if mse_FAO is None else held_out_mse(mse_FAO, per_target)
    alpha_T = [alphas[0]] if mse_AT is None else best_alphas(mse_AT, alphas)
    mean_O = rows.y_NO.mean(0) if fit_intercept else torch.zeros_like(rows.y_NO[0])
    system = System(kernel_NN, rows.y_NO - mean_O, len(alphas), components)
    weight_NO = system.solve_each(alpha_T)
    coef_DO = torch.cat([chunk_NC.T @ weight_NO for chunk_NC in _chunks(rows.x_ND, origin_D)])
    residual_NO = rows.y_NO - mean_O - kernel_NN @ weight_NO
    condition_number = system.condition_number(min(alpha_T))
    used = None if components is None else system.num_components
    warnings = [
        precision_warning(condition_number, len(kernel_NN)),
        components_warning(components, used, system.is_exact),
    ]
    return Solution(
        coef_OD=coef_DO.T.contiguous(),
        intercept_O=mean_O - origin_D @ coef_DO,
        alpha_T=torch.tensor(alpha_T, dtype=torch.float64),
        mse_AT=mse_AT,
        mse_FA=None if mse_FAO is None else mse_FAO.mean(2),
        train_mse=float(residual_NO.square().mean()),
        condition_number=condition_number,
        form="dual",
        method=system.method,
        warning="; ".join(filter(None, warnings)),
        components=used,
        explained_variance=None if components is None else system.explained_variance,
    )


def _cross_validate(
    rows: Rows,
    kernel_NN: torch.Tensor,
    num_folds: int,
    alphas: Sequence[float],
    fit_intercept: bool,
    components: int | None,
) -> torch.Tensor:
    """Return the held-out mean squared error of each fold, alpha and target [F, A, O]."""
    mse_FAO: list[torch.Tensor] = []
    for fold in check_folds(torch.bincount(rows.fold_N, minlength=num_folds).tolist()):
        held_out_N = (rows.fold_N == fold).to(kernel_NN.device)
        fitted_RR = kernel_NN[~held_out_N][:, ~held_out_N]
        across_VR = kernel_NN[held_out_N][:, ~held_out_N]
        y_RO, y_VO = rows.y_NO[~held_out_N], rows.y_NO[held_out_N]
        mean_O = y_RO.mean(0) if fit_intercept else torch.zeros_like(y_RO[0])
        if fit_intercept or components is not None:
            # The kernel about the mean of the fitted rows, which is not the mean of all.
            mean_R = fitted_RR.mean(0)
            across_VR = across_VR - across_VR.mean(1, keepdim=True) - (mean_R - mean_R.mean())
            fitted_RR = fitted_RR - mean_R[:, None] - (mean_R - mean_R.mean())
        system = System(fitted_RR, y_RO - mean_O, len(alphas), components)
        errors = [(y_VO - mean_O - across_VR @ system.solve(a)).square().mean(0) for a in alphas]
        mse_FAO.append(torch.stack(errors))
    return torch.stack(mse_FAO)


def _mean(x_ND: torch.Tensor) -> torch.Tensor:
    """Return the features' means [D], float64."""
    return x_ND.sum(0, dtype=torch.float64) / len(x_ND)


def _chunks(x_ND: torch.Tensor, origin_D: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield X − origin, some features at a time [N, C], float64."""
    num = max(1, _CHUNK_BYTES // (8 * len(x_ND)))
    for x_NC, origin_C in zip(x_ND.split(num, dim=1), origin_D.split(num), strict=True):
        yield x_NC.double() - origin_C


def _kernel(x_ND: torch.Tensor, origin_D: torch.Tensor) -> torch.Tensor:
    """Return (X − origin)(X − origin)ᵀ, float64, from some features at a time."""
    num_rows = len(x_ND)
    kernel_NN = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=x_ND.device)
    for chunk_NC in _chunks(x_ND, origin_D):
        add_products(kernel_NN, chunk_NC.to(product_dtype(num_rows)).T)
    return mirror(kernel_NN)


def _joined(own: torch.Tensor, first: int, num_rows: int) -> torch.Tensor:
    """Return the rows of all workers [N, …], of which this worker's begin at `first`."""
    joined = own.new_zeros(num_rows, *own.shape[1:])
    joined[first : first + len(own)] = own
    return all_reduce_sum(joined)
