"""`Task`: one research problem, whole. It knows nothing of Ray; loop and data layer call its methods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.batch import Batch, Columns
from voxray.core.embedder import Embedder
from voxray.core.evaluation import Evaluation
from voxray.core.losses import LossTerms
from voxray.core.pictures import PictureMaker
from voxray.core.place import BEGINNING
from voxray.core.prepared_rows import Merge, PreparedRows
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Schema
from voxray.core.update_rows import UpdateRows

# A raw row: the schema's columns, or what a map stage needs to make them (a file's path, an index into a
# session).
RawRow = dict[str, Any]
Summary = dict[str, float | list[float]]


@dataclass(frozen=True)
class BadRow:
    """A raw row that cannot be used: where it stands (`file.csv row 17`) and why, with the mend."""

    origin: str
    reason: str


class BadRowError(Exception):
    """Raised by a map stage for a row that cannot be used; the message is the reason, the file named."""


@dataclass(frozen=True)
class MapStage:
    """A pure function of one row, run by Ray Data tasks when raw files are prepared. It may raise
    BadRowError.
    """

    name: str
    function: Callable[[RawRow], RawRow]


@dataclass(frozen=True)
class ReadStage:
    """A pure function of one batch's columns, run where it is read: in a Ray Data task or a worker's thread.

    It is importable by name; what it makes of a row depends on that row alone.
    """

    name: str
    function: Callable[[Columns], Columns]


@dataclass(frozen=True)
class SynthReport:
    """What a synthetic dataset holds: how good a model can be, a linear floor, and chance, for one metric."""

    metric: str
    num_rows: int
    oracle: float  # the best that any model can expect, from the generator's own truth
    floor: float  # a linear model on held-out groups
    chance: float
    notes: dict[str, str] = field(default_factory=dict[str, str])


class TaskData(ABC):
    """The data of one research problem: raw files → rows → batches. `Config` is its config class."""

    Config: ClassVar[type[RunConfig]]

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take the resolved config and, when a dataset is at hand, its training statistics and schema."""
        self.config = config
        self.statistics = statistics or {}
        self.dataset_schema = schema or self.schema()

    @abstractmethod
    def schema(self) -> Schema:
        """Return the columns of a prepared row."""

    @abstractmethod
    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Yield one raw row after the other, with `sample_id`, the group column, `origin` (file and row, for
        errors) and, where the raw data declares one, `split`. A row that cannot be used is yielded as BadRow.

        Raises InputError for a folder that cannot be read at all, e.g. a missing table or column.
        """

    def reads_file(self, name: str) -> bool:
        """Whether a file of a raw folder, by its name below it, is read at all: what a URL holds beside them
        is not fetched.
        """
        return True

    def map_stages(self) -> list[MapStage]:
        """Return what turns a raw row into a row of the schema (decoding, resizing), when it is prepared."""
        return []

    def read_stages(self) -> list[ReadStage]:
        """Return what turns a stored batch into the one that `collate` takes, whenever it is read."""
        return []

    def embedders(self) -> list[Embedder]:
        """Return the frozen networks whose outputs become columns when raw files are prepared."""
        return []

    def column_statistics(self, rows: PreparedRows) -> dict[str, dict[str, Any]]:
        """Return statistics of the task's own, {column: {name: number or numbers}}, from the training rows
        when raw files are prepared, before rows merge.
        """
        return {}

    def merge(self) -> Merge | None:
        """Return which rows become one when raw files are prepared; None: none do."""
        return None

    def synth(self, out: Path, size: str, seed: int) -> SynthReport:
        """Write synthetic raw files in this modality's real layout, with a learnable signal; `size`
        tiny|small|full.
        """
        raise _not_offered(self, "synthetic data")

    @abstractmethod
    def collate(self, columns: Columns) -> Batch:
        """Turn numpy columns into a typed batch of tensors. No randomness."""


class Task(TaskData):
    """One research problem, whole: its data, its model, its loss and its metrics.

    `update_rows` gathers what a loss term compares over the rows of an update; `place` is how far the stage
    has come, set before each update. `SCORES` is the column of `evaluate`'s rows that holds what `floor`
    gives.
    """

    SCORES: ClassVar[str] = "scores"

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what its data takes."""
        super().__init__(config, statistics, schema)
        self.update_rows = UpdateRows()
        self.place = BEGINNING

    # --- model and objective
    # ----------------------------------------------------------------------------------------
    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model. Anything random in it comes from torch's global generator, which the loop has
        seeded.
        """

    def part_weights(
        self, part: str, module: nn.Module, weights: dict[str, torch.Tensor], tell: Callable[[str], None]
    ) -> dict[str, torch.Tensor]:
        """Return what the weights that `training.parts` names hold of `part`, under the names of `module`.

        `tell` is given each sentence that the user should read: what was renamed, made anew, left out.
        """
        return weights

    def augment(self, batch: Batch, key: int) -> Batch:
        """Return the batch, augmented on its device; row i's choices depend on (key, batch.position_B[i])
        alone.
        """
        return batch

    @abstractmethod
    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Return each loss term's count on this worker, from the data alone (before the forward pass)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Return the loss terms: a sum over this worker's entries each."""

    def before_step(self, model: nn.Module) -> None:
        """Run once at the beginning of each update."""

    def after_step(self, model: nn.Module, outputs: LossTerms) -> None:
        """Run once per successful update."""

    def state_numbers(self, model: nn.Module) -> Summary:
        """Return numbers about what the model has stored (a memory bank's fill), for the log: single ones go
        into each record of updates, lists into each epoch's too. Rank 0 alone calls it.
        """
        return {}

    def closed_form(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [B, D] and targets [B, O] of the ridge regression that `stepper: closed_form`
        solves. Padding rows may hold anything; the others are finite.
        """
        raise _not_offered(self, "a closed form; set training.stepper=gradient")

    def set_closed_form(self, model: nn.Module, coef_OD: torch.Tensor, intercept_O: torch.Tensor) -> None:
        """Put the regression's float64 coefficients into the model; intercept_O is zeros without one."""
        raise _not_offered(self, "a closed form; set training.stepper=gradient")

    # --- evaluation
    # -------------------------------------------------------------------------------------------------
    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Return what one batch contributes to the summary. Padding rows are left out."""

    @abstractmethod
    def summarize(self, merged: Evaluation) -> Summary:
        """Return the metrics of a whole split; NaN where a metric is undefined."""

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the single numbers that `summarize` gives, without the split's prefix."""
        return ("loss",)

    def check_evaluated(self, split: str, column: Callable[[str], np.ndarray]) -> None:
        """Raise InputError where the rows that a run will evaluate do not do for its metrics: it is called
        before anything is trained. `column` reads a column of those rows' index (`data/index.py`) by name.
        """

    def reported(self) -> list[str]:
        """Return the names of all numbers that a training run reports once per epoch."""
        return ["train/loss", *(f"val/{name}" for name in self.metric_names())]

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals by resampled groups, one per entry of the metric that the key names."""
        return {}

    def table(self, merged: Evaluation, summary: Summary) -> list[dict[str, Any]]:
        """Return what `voxray evaluate` prints, a row each; interval and floor columns are added."""
        return [
            {"metric": name, "value": value} for name, value in summary.items() if isinstance(value, float)
        ]

    def pictures(self, model: nn.Module, batch: Batch) -> dict[str, bytes]:
        """Return files (`name.png` → content) that show what the model makes of a batch of the validation
        split; drawn after each evaluation while a run trains. Every worker calls it, rank 0's are kept.
        """
        return {}

    def predictions(self, merged: Evaluation) -> dict[str, np.ndarray]:
        """Return the columns of the predictions file, one row per sample."""
        return dict(merged.rows.columns) if merged.rows else {}

    def evaluation_files(self, model: nn.Module, merged: Evaluation, split: str) -> dict[str, bytes]:
        """Return further files that `voxray evaluate` writes beside a split's evaluation, name → content; the
        names hold the split's.
        """
        return {}

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the arguments that the model's `forward` takes for a batch, rows first; `voxray export`
        traces it with them.
        """
        raise _not_offered(self, "a forward pass on tensors, which this export needs")

    def picture_maker(self, device: torch.device) -> PictureMaker | None:
        """Return what turns predictions into pictures for `voxray predict --images`; None for a task whose
        figures stand for that. Raises InputError where the config names nothing that can make them.
        """
        return None

    def floor(self, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
        """Return a linear model's scores for the held-out rows; both are dicts of columns."""
        raise _not_offered(self, "a linear floor")


def _not_offered(task: TaskData, what: str) -> InputError:
    return InputError(f"task '{task.config.task}' does not offer {what}")
