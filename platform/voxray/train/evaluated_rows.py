"""What a run's evaluations will see, checked before anything is trained."""

from collections.abc import Sequence
from functools import partial

from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.data.local import LocalStream
from voxray.train.length import validation_request


def check_evaluated(task: Task, source: LocalStream, stages: Sequence[Stage]) -> None:
    """Ask the task whether the rows that each stage evaluates do for its metrics. Raises InputError where
    they do not.
    """
    for stage in stages:
        request = validation_request(stage)
        if source.num_chosen(request.split, request.rules) > 0:
            own = type(task)(stage.config, task.statistics, task.dataset_schema)
            own.check_evaluated(request.split, partial(source.chosen_column, request.split, request.rules))
