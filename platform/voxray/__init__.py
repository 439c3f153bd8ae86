"""voxray: train, tune and ablate models that read brains and medical images, on Ray.

`voxray.load(RUN)` gives a trained model, `voxray.evaluate(model, data, out)` its metrics; neither needs Ray.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from voxray.train.trained.load import Trained

try:
    __version__ = version("voxray")
except PackageNotFoundError:  # run from a source tree shipped to a cluster, where nothing is installed
    __version__ = "0.0.0+source"


def load(run: "str | Path", device: "str | torch.device | None" = None) -> "Trained":
    """Return a trained model: `.model` in evaluation mode, `.task`, `.config`.

    `run` is a RUN (its best weights, or its last where no best were kept), RUN/best, RUN/last, a checkpoint's
    folder, or one that `voxray export` wrote. `device` is by default a GPU where there is one. The dataset
    may be gone. Raises InputError when there is no model, RunError when a file is damaged.
    """
    from voxray.train.trained import load as trained

    return trained.load(run, device)


def evaluate(
    model: "Trained | str | Path",
    data: "str | Path | None" = None,
    out: "str | Path | None" = None,
    split: str = "val",
    floor: bool = False,
) -> dict[str, Any]:
    """Return a model's metrics on a split of a prepared dataset, by default the run's own.

    `model` is what `load` returned, or takes. evaluation_<split>.json and predictions_<split>.parquet are
    written into the folder `out`; without it into the run, anew, where `model` is a run's best and `data` is
    not named, else nowhere. `floor` adds the task's linear floor. Raises InputError where the dataset does
    not fit the model or has no such rows, or where `out` holds an evaluation of that split already.
    """
    from pathlib import Path

    from voxray.train.trained import load as trained
    from voxray.train.trained.evaluate_run import evaluate_run

    given = model if isinstance(model, trained.Trained) else trained.load(model)
    return evaluate_run(given, split, floor, data, None if out is None else Path(out))
