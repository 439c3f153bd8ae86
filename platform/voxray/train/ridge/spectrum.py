"""The largest eigenvalues of a symmetric positive semidefinite matrix and their vectors.

Few of a large matrix are found by block Lanczos: the basis is kept orthogonal by projecting twice, the
projected matrix is formed in full (Rayleigh–Ritz), and the start is drawn from a fixed seed. Source: Golub
and Van Loan, Matrix Computations, 4th ed., sections 10.1 and 10.3; of the bound, Davis and Kahan (1970), "The
Rotation of Eigenvectors by a Perturbation. III". Where that does not get there, LAPACK computes them; beyond
the size at which that takes minutes, a randomised range finder approximates them (Halko, Martinsson and Tropp
2011, "Finding Structure with Randomness", algorithms 4.4 and 5.3), as scikit-learn's PCA does.

Legend: S size of the matrix, K pairs wanted, B columns of a block, M vectors of the basis so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from voxray.config.errors import InputError

# Lanczos is tried from this size on, for so small a share of all pairs: one thread takes 0.04 s for 32 of
# 2,048 pairs, LAPACK 0.7 s; 3.1 s for 64 of 4,096 that no gap sets apart, LAPACK 5.6 s (docs/log.md).
LEAST_SIZE = 512
_SMALLEST_SHARE = 1 / 32
# ... and for no more than this share of vectors in its basis.
_BASIS_SHARE = 3 / 8
# LAPACK's search for some pairs (evr) is 2.3 times as fast for an eighth of 4,096 as that for all.
_EVR_SHARE = 1 / 2
# The leading vectors span the right space up to this sine of the largest angle, where a gap lets it be told.
ANGLE = 1e-7
# Pairs whose residual is so small beside the largest eigenvalue are as exact as float64 makes them.
_ROUNDING = 1e-13
_BLOCK = 16
# LAPACK finds some pairs column by column, at the memory's speed: about a minute at this size on one thread,
# over ten at 15,724, in which the process answers nobody.
MOST_EXACT = 6_000
_OVERSAMPLED = 10  # vectors beyond those wanted, and the power iterations: scikit-learn's for PCA
_FEW, _ITERATIONS_OF_FEW, _ITERATIONS = 0.1, 7, 4

Apply = Callable[[torch.Tensor], torch.Tensor]  # [S, B] → the matrix times it


@dataclass(frozen=True)
class Leading:
    """The largest eigenvalues, falling, and their vectors; `residual_K` is ‖A v − λ v‖ of each. Not exact:
    those of a randomised range.
    """

    value_K: torch.Tensor
    vector_SK: torch.Tensor
    residual_K: torch.Tensor
    is_exact: bool = True


def principal(matrix_SS: torch.Tensor, num: int, rounding: float) -> Leading:
    """Return the `num` leading pairs of centred features' products, or fewer: those whose eigenvalue is above
    `rounding` times the largest.

    The space that they span is off by `ANGLE` at most, in the bound of Davis and Kahan, ‖R‖ / (λ_K − λ_K+1);
    where that gap is lost in rounding, so is the choice between the pairs beside it, in every method. Of more
    than `MOST_EXACT` features, where Lanczos does not get there, the pairs are approximate (`randomized`).
    Raises InputError where no feature varies.
    """
    size = len(matrix_SS)
    num = min(num, size)
    found = None
    if size >= LEAST_SIZE and num <= _SMALLEST_SHARE * size:
        found = leading(lambda block_SB: matrix_SS @ block_SB, matrix_SS[:, :0], num, _spans)
    if found is None and size > MOST_EXACT and num < _EVR_SHARE * size:
        found = randomized(matrix_SS, num)
    if found is None:
        value_K, vector_SK = _by_lapack(matrix_SS, num)
        found = Leading(value_K, vector_SK, torch.zeros_like(value_K))
    kept = int((found.value_K > rounding * found.value_K[0]).sum())
    if not kept:
        raise InputError("closed_form.components: no feature differs between the rows that it is fitted on")
    return replace(
        found,
        value_K=found.value_K[:kept],
        vector_SK=found.vector_SK[:, :kept].contiguous(),
        residual_K=found.residual_K[:kept],
    )


def largest(apply: Apply, like_S0: torch.Tensor) -> float | None:
    """Return the largest eigenvalue of a positive semidefinite matrix to a relative error of 1e-2, or None
    where its size is too small for Lanczos.
    """
    if len(like_S0) < LEAST_SIZE:
        return None
    found = leading(apply, like_S0, 1, lambda pairs: bool(pairs.residual_K[0] <= 1e-2 * pairs.value_K[0]), 8)
    return None if found is None else float(found.value_K[0])


def leading(
    apply: Apply, like_S0: torch.Tensor, num: int, enough: Callable[[Leading], bool], block: int = _BLOCK
) -> Leading | None:
    """Return the `num` leading pairs as soon as `enough` says so of them and the one after, or None where
    its share of vectors does not suffice. `like_S0` has the matrix's size, dtype and device.
    """
    size = len(like_S0)
    limit = int(_BASIS_SHARE * size)
    generator = torch.Generator().manual_seed(0)
    start_SB = torch.randn(size, block, generator=generator, dtype=torch.float64).to(like_S0)
    next_SB = torch.linalg.qr(start_SB).Q
    basis_MS = like_S0.new_empty(limit, size)
    columns: list[torch.Tensor] = []  # of the projected matrix, down to its diagonal block
    done, look_at = 0, 2 * num
    while done + block <= limit:
        basis_MS[done : done + block] = next_SB.T
        done += block
        known_MS = basis_MS[:done]
        image_SB = apply(next_SB)
        within_MB = known_MS @ image_SB
        image_SB = image_SB - known_MS.T @ within_MB
        again_MB = known_MS @ image_SB
        image_SB -= known_MS.T @ again_MB
        columns.append(within_MB + again_MB)
        next_SB, beyond_BB = torch.linalg.qr(image_SB)
        next_SB = torch.linalg.qr(next_SB - known_MS.T @ (known_MS @ next_SB)).Q
        if done < max(look_at, num + 1):
            continue
        look_at = done + max(block, done // 4)
        value_M, vector_MM = torch.linalg.eigh(_projected(columns))
        value_K, vector_MK = value_M.flip(0)[: num + 1], vector_MM.flip(1)[:, : num + 1]
        residual_K = torch.linalg.vector_norm(beyond_BB @ vector_MK[-block:], dim=0)
        if enough(Leading(value_K, vector_MK, residual_K)):
            return Leading(value_K[:num], known_MS.T @ vector_MK[:, :num], residual_K[:num])
    return None


def randomized(matrix_SS: torch.Tensor, num: int) -> Leading:
    """Return approximations of the `num` leading pairs, from a fixed seed: a random block, multiplied by the
    matrix 7 times (4 from a tenth of all pairs on), then Rayleigh–Ritz.

    No other `num` orthogonal directions in the block's range explain more; how far that is from the best
    depends on how fast the eigenvalues fall.
    """
    size = len(matrix_SS)
    width = min(size, num + _OVERSAMPLED)
    generator = torch.Generator().manual_seed(0)
    range_SW = torch.randn(size, width, generator=generator, dtype=torch.float64).to(matrix_SS)
    for _ in range(1 + (_ITERATIONS_OF_FEW if num < _FEW * size else _ITERATIONS)):
        range_SW = torch.linalg.qr(matrix_SS @ range_SW).Q
    image_SW = matrix_SS @ range_SW
    value_W, vector_WW = torch.linalg.eigh(range_SW.T @ image_SW)
    value_K, vector_WK = value_W.flip(0)[:num], vector_WW.flip(1)[:, :num]
    vector_SK = range_SW @ vector_WK
    residual_K = torch.linalg.vector_norm(image_SW @ vector_WK - vector_SK * value_K, dim=0)
    return Leading(value_K, vector_SK, residual_K, is_exact=False)


def _by_lapack(matrix_SS: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `num` largest eigenvalues, falling, and their vectors."""
    size = len(matrix_SS)
    if matrix_SS.device.type == "cpu" and num <= _EVR_SHARE * size:
        from scipy.linalg import eigh

        # The transpose of a symmetric matrix has LAPACK's layout.
        wanted = (size - num, size - 1)
        value, vector = eigh(matrix_SS.numpy().T, driver="evr", subset_by_index=wanted, check_finite=False)
        value_K, vector_SK = torch.from_numpy(value), torch.from_numpy(vector)
    else:
        value_S, vector_SS = torch.linalg.eigh(matrix_SS)
        value_K, vector_SK = value_S[size - num :], vector_SS[:, size - num :]
    return value_K.flip(0), vector_SK.flip(1)


def _spans(found: Leading) -> bool:
    """Whether all pairs but the last span the right space."""
    top_K, after = found.residual_K[:-1], float(found.residual_K[-1])
    gap = float(found.value_K[-2] - found.value_K[-1]) - after
    if float(torch.linalg.vector_norm(top_K)) <= ANGLE * gap:
        return True
    return float(found.residual_K.max()) <= _ROUNDING * float(found.value_K[0])


def _projected(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the matrix in the basis [M, M], from the columns of its upper triangle of blocks."""
    size, block = columns[-1].shape
    result_MM = columns[-1].new_zeros(size, size)
    for first, column_MB in zip(range(0, size, block), columns, strict=True):
        result_MM[: len(column_MB), first : first + block] = column_MB
    upper_MM = result_MM.triu()
    return upper_MM + upper_MM.triu(1).T
