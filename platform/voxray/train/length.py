"""How long a stage is: its epochs' requests, its number of updates, when it ends."""

from voxray.core.batch import BatchSource, EpochRequest
from voxray.core.run_config import RunConfig, Stage
from voxray.data.source import batch_rules
from voxray.train.config import TrainingConfig
from voxray.train.state import TrainState


def training_request(config: RunConfig, stage: Stage, epoch: int) -> EpochRequest:
    """Return what is asked of the data for one epoch of a stage."""
    rules = batch_rules(config.data, training=True)
    training = stage.training
    return EpochRequest(
        "train", training.batch_size, config.training.seed, stage.index, epoch, shuffle=True, rules=rules
    )


def planned_updates(source: BatchSource, stage: Stage, config: RunConfig) -> int:
    """Return the updates of a whole stage: `training.steps`, or those of its epochs."""
    training = stage.training
    if training.steps is not None:
        return training.steps
    first = training_request(config, stage, 0)
    group = training.accumulate_grad_batches
    if not (first.rules.group_by or first.rules.bucket_by):
        return -(-source.num_batches(first) // group) * training.epochs
    # How the groups meet in spans, and so how many batches they make, differs from epoch to epoch.
    return sum(
        -(-source.num_batches(training_request(config, stage, epoch)) // group)
        for epoch in range(training.epochs)
    )


def ended(state: TrainState, training: TrainingConfig) -> bool:
    """Whether a stage has had its updates or epochs, or was stopped early."""
    if state.stage_ended:
        return True
    if training.steps is not None:
        return state.stage_step >= training.steps
    return state.epoch >= training.epochs
