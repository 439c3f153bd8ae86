"""The contract that every task keeps. Subclass `TaskContract` in a test, give a task and a source, inherit
the tests.

The authority is the definition: sums of parts, autograd, or the same numbers by another route.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch

from voxray.core.batch import Batch, BatchSource, EpochRequest
from voxray.core.evaluation import Evaluation, merge
from voxray.core.losses import LossTerms
from voxray.core.run_config import RunConfig, Stage
from voxray.core.task import Task
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.optimisation.optim import build_optimizer

OVERFIT_ROWS = 8
OVERFIT_UPDATES = 200


class TaskContract(ABC):
    """Tests that need a task's config and a source with a `train` and a `val` split; nothing else."""

    @abstractmethod
    def config(self) -> RunConfig:
        """Return a small config: dropout off, no pretrained weights."""

    @abstractmethod
    def source(self) -> BatchSource:
        """Return the rows."""

    @abstractmethod
    def task(self) -> Task:
        """Return the task, with the statistics of its dataset."""

    def batch(self, num_rows: int, split: str = "train") -> Batch:
        """Return the first batch of a split."""
        return self.task().collate(next(iter(self.source().batches(EpochRequest(split, num_rows, seed=0)))))

    def stage(self) -> Stage:
        """Return the config's last stage."""
        return self.config().resolved_stages()[-1]

    def objective(self, task: Task, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss as the loop makes it: each weighted sum over its count, added up."""
        terms, counts = task.loss(model, batch, self.stage()), task.normalizers(batch, self.stage())
        return torch.stack([term.weight * term.sum / counts[name] for name, term in terms.items()]).sum()

    def test_schema_names_its_ids(self) -> None:
        """The group and the sample id are columns."""
        schema = self.task().schema()
        assert {schema.group, schema.sample_id} <= set(schema.columns)

    def test_loss_is_finite_and_every_trainable_parameter_gets_a_gradient(self) -> None:
        """A parameter that no gradient reaches is dead weight or a bug."""
        task = self.task()
        model = task.build_model().train()
        loss = self.objective(task, model, self.batch(8))
        assert math.isfinite(loss.item())
        loss.backward()
        dead = [
            n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
        ]
        assert not dead

    def test_terms_and_counts_share_their_names(self) -> None:
        """The loop divides each term by the count of the same name."""
        task = self.task()
        batch = self.batch(8)
        terms = task.loss(task.build_model().eval(), batch, self.stage())
        assert terms.keys() == task.normalizers(batch, self.stage()).keys()

    def test_a_batch_is_the_sum_of_its_parts(self) -> None:
        """In evaluation mode, sums and counts over a batch equal those over its halves."""
        task = self.task()
        model = task.build_model().eval()
        columns = next(iter(self.source().batches(EpochRequest("train", 8, seed=0))))
        halves = [
            {name: values[half] for name, values in columns.items()} for half in (slice(0, 3), slice(3, 8))
        ]
        parts = [task.collate(part) for part in halves]
        whole = task.collate(columns)
        terms_of_parts = self._terms_of_micro_batches(task, model, parts)
        for name, term in task.loss(model, whole, self.stage()).items():
            of_parts = sum(terms[name].sum.item() for terms in terms_of_parts)
            np.testing.assert_allclose(term.sum.item(), of_parts, rtol=1e-4)
            counts = sum(int(task.normalizers(part, self.stage())[name]) for part in parts)
            assert int(task.normalizers(whole, self.stage())[name]) == counts

    def test_metrics_do_not_depend_on_how_rows_are_batched(self) -> None:
        """Any split of the rows gives the same summary; in float64, where no rounding swaps two ranks."""
        torch.manual_seed(0)
        task = self.task()
        model = task.build_model().eval().double()
        by_size = [task.summarize(self._evaluation(task, model, size)) for size in (7, 32)]
        for name, value in by_size[0].items():
            np.testing.assert_allclose(
                np.asarray(value, float),
                np.asarray(by_size[1][name], float),
                rtol=1e-4,
                atol=1e-6,
                err_msg=name,
            )
        numbers = {name for name, value in by_size[0].items() if isinstance(value, float)}
        assert set(task.metric_names()) == numbers

    def test_augmentation_depends_on_the_key_and_the_row_alone(self) -> None:
        """The same key gives the same rows, whatever batch they are in; evaluation never augments."""
        task = self.task()
        columns = next(iter(self.source().batches(EpochRequest("train", 8, seed=0))))
        whole = task.augment(task.collate(columns), 11)
        part = task.augment(task.collate({name: values[2:5] for name, values in columns.items()}), 11)
        for name, value in vars(whole).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(vars(part)[name], value[2:5], equal_nan=True, msg=name)

    def test_it_overfits_eight_rows(self) -> None:
        """A model and a loss that belong together can learn eight rows by heart."""
        torch.manual_seed(0)
        task = self.task()
        model = task.build_model().train()
        optimizer = build_optimizer(model, self.stage().training.model_copy(update={"learning_rate": 3e-3}))
        batch = self.batch(OVERFIT_ROWS)
        losses = []
        for _ in range(OVERFIT_UPDATES):
            optimizer.zero_grad()
            loss = self.objective(task, model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0], losses[:: OVERFIT_UPDATES // 5]

    def test_saved_and_loaded_the_loss_is_the_same(self, tmp_path: Path) -> None:
        """Everything that the loss depends on is in the model's state."""
        task = self.task()
        model = task.build_model()
        batch = self.batch(8)
        model.train()
        self.objective(task, model, batch)  # moves the buffers
        saved = checkpoint.write(tmp_path, snapshot(1, {"model": dict(model.state_dict())}, {}, {}))
        other = task.build_model()
        other.load_state_dict(checkpoint.load(saved)[0]["model"])
        losses = [self.objective(task, m.eval(), batch).item() for m in (model, other)]
        assert losses[0] == losses[1]

    def _terms_of_micro_batches(
        self, task: Task, model: torch.nn.Module, parts: list[Batch]
    ) -> list[LossTerms]:
        """Return each part's terms as in an update of all of them: terms that compare rows see all rows."""
        with torch.no_grad():
            for index, part in enumerate(parts):
                task.update_rows.record(index)
                task.loss(model, part, self.stage())
        found: list[LossTerms] = []
        for index, part in enumerate(parts):
            task.update_rows.replay(index)
            found.append(task.loss(model, part, self.stage()))
        task.update_rows.forget()
        return found

    def _evaluation(self, task: Task, model: torch.nn.Module, batch_size: int) -> Evaluation:
        request = EpochRequest("val", batch_size, seed=0, shuffle=False)
        with torch.no_grad():
            batches = (
                task.collate(columns).mapped(_as_float64) for columns in self.source().batches(request)
            )
            return merge([task.evaluate(model, batch, self.stage()) for batch in batches])


def _as_float64(values: torch.Tensor) -> torch.Tensor:
    return values.double() if values.is_floating_point() else values
