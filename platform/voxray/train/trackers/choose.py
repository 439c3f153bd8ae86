"""Which trackers a run asks for, and whether their libraries are there."""

from importlib.util import find_spec

from voxray.core.run_config import RunConfig
from voxray.data.location import working_folder
from voxray.train.trackers.mlflow import Mlflow
from voxray.train.trackers.tensorboard import TensorBoard
from voxray.train.trackers.tracker import Tracker
from voxray.train.trackers.wandb import Wandb


def chosen_trackers(config: RunConfig) -> list[Tracker]:
    """Return the trackers that `logging` turns on; none of them has been started."""
    logging = config.logging
    trackers: list[Tracker] = []
    if logging.tensorboard:
        trackers.append(TensorBoard())
    if logging.wandb.enabled:
        trackers.append(Wandb(logging.wandb))
    if logging.mlflow.enabled:
        trackers.append(Mlflow(logging.mlflow, working_folder(config.storage.path)))
    return trackers


def missing_libraries(config: RunConfig) -> list[str]:
    """Return a line for each tracker whose library is not installed. Such a tracker is off; a run goes on."""
    needs = {
        "tensorboard": (config.logging.tensorboard, "tensorboard"),
        "wandb": (config.logging.wandb.enabled, "wandb"),
        "mlflow": (config.logging.mlflow.enabled, "voxray[mlflow]"),
    }
    return [
        f"logging.{library}: {library} is not installed; pip install '{package}'"
        for library, (wanted, package) in needs.items()
        if wanted and find_spec(library) is None
    ]
