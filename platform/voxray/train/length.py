"""How long a stage is: its epochs' requests, its number of updates, when it ends."""

from dataclasses import replace

from voxray.core.batch import BatchRules, BatchSource, EpochRequest
from voxray.core.run_config import Stage
from voxray.data.source import batch_rules
from voxray.train.config import TrainingConfig
from voxray.train.state import TrainState


def training_request(stage: Stage, epoch: int, start_batch: int = 0) -> EpochRequest:
    """Return what is asked of the data for one epoch of a stage, from its micro-batch `start_batch` on."""
    training = stage.training
    rules = batch_rules(stage.config.data, training=True)
    if training.overfit_batches is not None:
        rules = at_most(rules, training.overfit_batches * training.batch_size)
    return EpochRequest(
        "train",
        training.batch_size,
        training.seed,
        stage.index,
        epoch,
        shuffle=True,
        start_batch=start_batch,
        rules=rules,
        followed=training.stepper != "closed_form"
        and (training.steps is not None or epoch + 1 < training.epochs),
    )


def validation_request(stage: Stage) -> EpochRequest:
    """Return what is asked for an evaluation: the validation split, or part of it, or the rows that are to be
    learnt by heart.
    """
    training = stage.training
    rules = batch_rules(stage.config.data, training=False)
    if training.overfit_batches is not None:
        rules = at_most(
            batch_rules(stage.config.data, training=True), training.overfit_batches * training.batch_size
        )
        rules = replace(rules, group_by="", last_batch="keep", weights="", with_replacement=False)
        return EpochRequest("train", training.batch_size, seed=0, shuffle=False, rules=rules)
    if training.validation_samples is not None:
        rules = at_most(rules, training.validation_samples)
    return EpochRequest("val", training.batch_size, seed=0, shuffle=False, rules=rules)


def at_most(rules: BatchRules, num_rows: int) -> BatchRules:
    """Return the rules with at most `num_rows` rows."""
    return replace(rules, limit=num_rows if rules.limit is None else min(rules.limit, num_rows))


def planned_updates(source: BatchSource, stage: Stage) -> int:
    """Return the updates of a whole stage: `training.steps`, or those of its epochs."""
    training = stage.training
    if training.stepper == "closed_form":
        return 1
    if training.steps is not None:
        return training.steps
    first = training_request(stage, 0)
    group = training.accumulate_grad_batches
    if not (first.rules.group_by or first.rules.bucket_by):
        return -(-source.num_batches(first) // group) * training.epochs
    # How the groups meet in spans, and so how many batches they make, differs from epoch to epoch.
    return sum(
        -(-source.num_batches(training_request(stage, epoch)) // group) for epoch in range(training.epochs)
    )


def planned_epochs(source: BatchSource, stage: Stage) -> int:
    """Return the epochs of a whole stage, the one that `training.steps` cuts short counted as one."""
    training = stage.training
    if training.steps is None:
        return training.epochs
    per_epoch = -(-source.num_batches(training_request(stage, 0)) // training.accumulate_grad_batches)
    return -(-training.steps // max(1, per_epoch))


def ended(state: TrainState, training: TrainingConfig) -> bool:
    """Whether a stage has had its updates or epochs, or was stopped early."""
    if state.stage_ended:
        return True
    if training.stepper == "closed_form":
        return state.stage_step > 0
    if training.steps is not None:
        return state.stage_step >= training.steps
    return state.epoch >= training.epochs
