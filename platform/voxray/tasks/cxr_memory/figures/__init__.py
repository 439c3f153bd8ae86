"""What a person wants to look at, one module per kind of figure. No torch until trained weights are needed.

`figures` draws an evaluated split, `training_figures` what the log tells of the memory bank.
"""

from voxray.core.figures import Figure, RunView, TrainingView
from voxray.tasks.cxr_memory.figures.areas import area_figure
from voxray.tasks.cxr_memory.figures.bank import bank_figures
from voxray.tasks.cxr_memory.figures.calibration import calibration_figures
from voxray.tasks.cxr_memory.figures.images import image_figures
from voxray.tasks.cxr_memory.figures.nearest import nearest_figures
from voxray.tasks.cxr_memory.figures.roc import curve_figures


def figures(run: RunView) -> list[Figure]:
    """Return the figures of one evaluated split: areas, curves and calibration per finding, then images with
    their predictions, and what the memory gave for some of them.
    """
    shown = [area_figure(run)] if run.evaluation.get("table") else []
    predictions = run.predictions
    if predictions is None or not len(predictions.sample_id):
        return shown
    shown += curve_figures(predictions, run.split) + calibration_figures(predictions, run.split)
    if run.take is not None:
        shown += image_figures(predictions, run.take) + nearest_figures(run, predictions, run.take)
    return shown


def training_figures(training: TrainingView) -> list[Figure]:
    """Return the figures of the memory bank over training; none for a run without one."""
    return bank_figures(training)
