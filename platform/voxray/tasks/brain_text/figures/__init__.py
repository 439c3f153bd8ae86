"""What a person wants to look at, one module per kind of figure. No torch.

`figures` draws an evaluated split, `training_figures` what each loss term has of the loss.
"""

from voxray.core.figures import Figure, RunView, TrainingView
from voxray.tasks.brain_text.figures.diffs import diff_figures
from voxray.tasks.brain_text.figures.sessions import session_figures
from voxray.tasks.brain_text.figures.shares import share_figures


def figures(run: RunView) -> list[Figure]:
    """Return the figures of one evaluated split: what was decoded beside the truth, and errors by session."""
    columns = run.columns() if run.columns is not None else {}
    return [*diff_figures(columns, run.split), *session_figures(columns, run.split)]


def training_figures(training: TrainingView) -> list[Figure]:
    """Return each loss term's share of the loss, with the guide's advice on its weights."""
    return share_figures(training)
