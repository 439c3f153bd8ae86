"""What a study has used up: time in which it was searched, time of all trials, GPU-hours.

As for the search's own budget, attempts that were cut short do not count: they run again.
"""

from voxray.report.study.read import StudyFiles
from voxray.report.study.timeline import searched_s, spans_s
from voxray.report.study.trials import Trial


def seconds_searched(study: StudyFiles) -> float:
    """Return for how long at least one trial ran."""
    return searched_s([span[1:] for span in _spans(study)])


def seconds_trained(study: StudyFiles) -> float:
    """Return the seconds of all trials in sum."""
    return sum(end - start for _, start, end in _spans(study))


def gpu_hours(study: StudyFiles) -> float | None:
    """Return the time of all trials times the GPUs that each held, in hours; None where unknown."""
    total = 0.0
    for trial, start, end in _spans(study):
        gpus = _gpus(study, trial)
        if gpus is None:
            return None
        total += gpus * (end - start) / 3600
    return total


def _spans(study: StudyFiles) -> list[tuple[Trial, float, float]]:
    return spans_s([trial for trial in study.trials if trial.is_done or trial.state == "running"])


def _gpus(study: StudyFiles, trial: Trial) -> float | None:
    """Return the GPUs that a trial held: as the journal says, else as the config does."""
    if trial.gpus is not None:
        return float(trial.gpus)
    scale = study.config.get("scale") or {}
    workers, each = (
        trial.values.get(f"scale.{key}", scale.get(key)) for key in ("num_workers", "gpus_per_worker")
    )
    if isinstance(workers, int) and isinstance(each, int | float):
        return float(workers * each)
    return None
