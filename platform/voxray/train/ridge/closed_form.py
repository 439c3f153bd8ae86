"""The closed-form stepper: one pass over a stage's batches, then the ridge regression that they determine.

Features are what `Task.closed_form` makes of a batch. While rows are no more than features they are kept, for
the dual form; from then on only their sums are, so memory is bounded by the features. Workers add their sums
up and end with the same coefficients. `training.closed_form` holds the alphas, the folds and the number of
principal components.

Legend: B rows of a batch, D features, O targets.
"""

import functools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.batch import Batch
from voxray.core.collectives import all_gather_objects, all_reduce_sum, rank
from voxray.core.randomness import key
from voxray.core.task import Task
from voxray.train.config import ClosedFormConfig, TrainingConfig
from voxray.train.device import on_device
from voxray.train.ridge.dual import KeptRows, solve_dual
from voxray.train.ridge.statistics import Statistics, solve
from voxray.train.ridge.system import Solution


@dataclass(frozen=True)
class ClosedFormReport:
    """What a closed-form stage did, the same on every worker. Errors are mean squared errors."""

    num_rows: int  # of all workers, padding left out
    num_features: int
    num_targets: int
    alpha: tuple[float, ...]  # one for all targets, or one for each
    alphas: tuple[float, ...]
    held_out_mse: tuple[tuple[float, ...], ...]  # alphas × (1 or targets); empty where there was one alpha
    fold_mse: tuple[tuple[float, ...], ...]  # folds × alphas, over all targets; empty likewise
    train_mse: float
    condition_number: float
    solver: str  # primal or dual, cholesky or eigh
    warning: str  # empty, or what the user should be told
    seconds: float
    components: int | None = None  # principal components that were regressed on
    explained_variance: float | None = None  # their share of the features' variance

    def record(self) -> dict[str, object]:
        """Return a record for the run's log; with an alpha for each target, how many targets took which."""
        means = [sum(row) / len(row) for row in self.held_out_mse]
        chosen = {f"{alpha:g}": self.alpha.count(alpha) for alpha in sorted(set(self.alpha))}
        record = {
            "kind": "closed_form",
            "rows": self.num_rows,
            "features": self.num_features,
            "targets": self.num_targets,
            "alpha": self.alpha[0] if len(self.alpha) == 1 else chosen,
            "alphas": list(self.alphas),
            "held_out_mse": means,
            "fold_mse": [list(row) for row in self.fold_mse],
            "train/mse": self.train_mse,
            "condition_number": self.condition_number if self.condition_number < math.inf else None,
            "solver": self.solver,
            "warning": self.warning,
            "seconds": round(self.seconds, 3),
        }
        if self.components is not None:
            record |= {"components": self.components, "explained_variance": self.explained_variance}
        return record


@torch.no_grad()
def fit_stage(
    task: Task, model: nn.Module, batches: Iterable[Batch], training: TrainingConfig, device: torch.device
) -> ClosedFormReport:
    """Give `model` the coefficients that `batches`, this worker's share of one epoch, determine with the
    others'; every worker calls this.

    Raises InputError, on every worker, for a row that is not finite (it names the sample), for no row at all,
    and for rows of a single fold where an alpha is to be chosen.
    """
    started = time.monotonic()
    was_training = model.training
    model.eval()
    sums = _Sums(training.closed_form, training.seed, device)
    wrong = ""
    for batch in on_device(iter(batches), device):
        x_BD, y_BO = task.closed_form(model, batch)
        wrong = sums.add(batch, x_BD, y_BO)
        if wrong:
            break
    model.train(was_training)
    for reason in all_gather_objects(wrong):
        if reason:
            raise InputError(reason)
    solution = sums.solve()
    task.set_closed_form(model, _of_rank_0(solution.coef_OD), _of_rank_0(solution.intercept_O))
    num_targets, num_features = solution.coef_OD.shape
    return ClosedFormReport(
        num_rows=sums.num_rows,
        num_features=num_features,
        num_targets=num_targets,
        alpha=tuple(solution.alpha_T.tolist()),
        alphas=training.closed_form.alphas,
        held_out_mse=_rows(solution.mse_AT),
        fold_mse=_rows(solution.mse_FA),
        train_mse=solution.train_mse,
        condition_number=solution.condition_number,
        solver=f"{solution.form} {solution.method}",
        warning=solution.warning,
        seconds=time.monotonic() - started,
        components=solution.components,
        explained_variance=solution.explained_variance,
    )


def fold_of(group: str, num_folds: int, seed: int) -> int:
    """Return the fold that all rows of a group are in, whatever their order and number of workers."""
    return key(seed, "fold", group) % num_folds


@dataclass
class _Sums:
    """The rows themselves while they are no more than the features, their statistics after that."""

    options: ClosedFormConfig
    seed: int
    device: torch.device
    num_rows: int = 0
    kept: KeptRows = field(default_factory=KeptRows)
    statistics: Statistics | None = None
    shape: tuple[int, int] | None = None  # features, targets

    def __post_init__(self) -> None:
        # One alpha needs no folds.
        self.num_folds = self.options.folds if len(self.options.alphas) > 1 else 1
        find = functools.partial(fold_of, num_folds=self.num_folds, seed=self.seed)
        self._fold_of = functools.lru_cache(1 << 16)(find)

    def add(self, batch: Batch, x_BD: torch.Tensor, y_BO: torch.Tensor) -> str:
        """Take a batch's rows, without padding; return what is wrong with them, if anything is."""
        shape = x_BD.shape[1], y_BO.shape[1]
        assert self.shape in (None, shape), f"closed_form gave {shape} columns after {self.shape}"
        self.shape = shape
        chosen = batch.valid_B.nonzero()[:, 0]
        x_BD, y_BO, rows = x_BD[chosen], y_BO[chosen], chosen.tolist()
        for what, values in (("features", x_BD), ("targets", y_BO)):
            finite_B = values.isfinite().all(1)
            if not bool(finite_B.all()):
                sample = batch.sample_id[rows[int((~finite_B).nonzero()[0])]]
                return (
                    f"the {what} of sample '{sample}' are not all finite, and a closed form needs every one; "
                    "leave such rows out with data.filter, or fill them in when the data is prepared"
                )
        fold_B = torch.tensor([self._fold_of(batch.group_id[row]) for row in rows], dtype=torch.int64)
        self.num_rows += len(rows)
        if self.statistics is not None:
            self.statistics.add(x_BD, y_BO, fold_B)
            return ""
        self.kept.add(x_BD, y_BO, fold_B)
        if len(self.kept) > x_BD.shape[1]:
            self._sum_up(shape)
        return ""

    def solve(self) -> Solution:
        """Return the regression on the rows of all workers."""
        options = self.options
        shares = all_gather_objects((self.num_rows, self.shape))
        self.num_rows = sum(rows for rows, _ in shares)
        shape: tuple[int, int] | None = next((own for _, own in shares if own is not None), None)
        if shape is None or not self.num_rows:
            raise InputError("the closed form has no rows to fit; look at data.filter and the training split")
        if self.num_rows <= shape[0]:
            rows = self.kept.gathered(*shape, self.device)
            return solve_dual(
                rows,
                self.num_folds,
                options.alphas,
                options.per_target,
                options.fit_intercept,
                options.components,
            )
        statistics = self.statistics or self._sum_up(shape)
        statistics.all_reduce()
        return solve(
            statistics, options.alphas, options.per_target, options.fit_intercept, options.components
        )

    def _sum_up(self, shape: tuple[int, int]) -> Statistics:
        """Turn the kept rows into statistics."""
        self.statistics = Statistics(*shape, self.num_folds, self.device)
        for x_BD, y_BO, fold_B in self.kept.drained():
            self.statistics.add(x_BD, y_BO, fold_B)
        return self.statistics


def _rows(values: torch.Tensor | None) -> tuple[tuple[float, ...], ...]:
    return () if values is None else tuple(map(tuple, values.tolist()))


def _of_rank_0(value: torch.Tensor) -> torch.Tensor:
    """Return rank 0's tensor on every worker: processors may differ in the last bit, models must not."""
    return all_reduce_sum(value if rank() == 0 else torch.zeros_like(value))
