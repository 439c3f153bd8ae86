"""The table of all trials, and that of the trials taken from an earlier study."""

from typing import Any

from voxray.config.secrets import masked
from voxray.report.page import Block, Table
from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Trial


def trial_table(study: StudyFiles) -> Table:
    """Return one row per attempt of a trial."""
    num_seeds = max((len(trial.seeds) for trial in study.trials), default=0)
    metrics = [objective.metric for objective in study.objectives]
    spreads = [f"± sd of {metric}, {num_seeds} seeds" for metric in metrics] if num_seeds > 1 else []
    columns = ("trial", "state", *metrics, *spreads, *study.paths, "seconds", "reason")
    rows = [_row(study, trial, has_spreads=bool(spreads)) for trial in study.trials]
    caption = (
        "A trial that was cut short is not done: it runs again under its number. Folders: trials/<number>."
    )
    if any(trial.exploits for trial in study.trials):
        caption += " Values are those that a member began with."
    return Table(columns, rows, caption)


def _row(study: StudyFiles, trial: Trial, *, has_spreads: bool) -> tuple[Any, ...]:
    scores = trial.scores or (None,) * len(study.objectives)
    spreads = [trial.spread(place) for place in range(len(study.objectives))] if has_spreads else []
    top = "best" if not study.has_several else "front"
    return (
        str(trial.index),
        f"{trial.shown_state} ({top})" if study.is_top(trial) else trial.shown_state,
        *scores,
        *spreads,
        *(masked(path, trial.values.get(path)) for path in study.paths),
        trial.seconds,
        trial.reason or "; ".join(f"violates {name}" for name in trial.violated),
    )


def imported_blocks(study: StudyFiles) -> list[Block]:
    """Return the trials of an earlier study that this one learned from, folded."""
    if not study.imported:
        return []
    paths = list(dict.fromkeys(path for trial in study.imported for path in trial.values))
    columns = ("from", "state", *(objective.metric for objective in study.objectives), *paths)
    rows = [
        (
            trial.from_study,
            trial.state,
            *(trial.scores or (None,) * len(study.objectives)),
            *(masked(path, trial.values.get(path)) for path in paths),
        )
        for trial in study.imported
    ]
    caption = "The sampler learns from them; they are not trials of this study, and never its best."
    return [Table(columns, rows, caption, fold=f"{len(rows)} trials of an earlier study")]
