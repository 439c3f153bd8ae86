"""A study's part of the page: how the search went, which values mattered, and the best trial's experiment."""

import shlex
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.secrets import masked
from voxray.config.yaml import dump_yaml, read_yaml
from voxray.core.figures import Figure
from voxray.report.page import Block, Card, Code, Part, Section, Table, Text, Tone, about_of, number
from voxray.report.study_figures import history_figure, importance_figure, parallel_figure
from voxray.report.trials import StudyFiles, Trial, importances, read_study

# Optuna's documentation asks for 5 trials in the best quarter; below 2 there is nothing to compare.
MIN_TRIALS_FOR_IMPORTANCE, TRIALS_FOR_STEADY_IMPORTANCE = 6, 20


def study_part(folder: Path) -> Part:
    """Read a study's folder and return its part of the page. Raises InputError for a broken file."""
    study = read_study(folder)
    status, tone = _status(study)
    return Part(
        kind="study",
        name=folder.name,
        task=str(study.config.get("task", "")),
        folder=str(folder),
        status=status,
        tone=tone,
        about=about_of(study.space if about_of(study.space) else study.config)
        | {"experiment": study.experiment or "–"},
        tags=tuple(str(tag) for tag in study.space.get("tags") or study.config.get("tags") or ()),
        cards=_key_numbers(study),
        sections=[
            Section("Search", _search(study)),
            Section("Trials", [_trial_table(study)]),
            Section("Best trial", _best(study)),
            Section("Space", _space(study)),
        ],
    )


def _status(study: StudyFiles) -> tuple[str, Tone]:
    done, declared = len({trial.index for trial in study.trials if trial.is_done}), study.num_declared
    if declared is None:
        return f"{done} trials done", "plain"
    if done >= declared:
        return f"finished, {done} of {declared} trials done", "good"
    return f"{done} of {declared} trials done (still running, or interrupted)", "plain"


def _key_numbers(study: StudyFiles) -> tuple[Card, ...]:
    states = [trial.state for trial in study.trials]
    best = study.best
    return (
        Card(
            f"best {study.metric}",
            number(best.value if best else None),
            f"trial {best.index}" if best else "",
        ),
        Card(
            "complete",
            number(states.count("complete")),
            f"{'higher' if study.maximize else 'lower'} is better",
        ),
        Card("pruned", number(states.count("pruned"))),
        Card("failed", number(sum(trial.state == "fail" and trial.is_done for trial in study.trials))),
    )


def _search(study: StudyFiles) -> list[Block]:
    if not study.complete:
        return [Text("No trial is complete yet, so there is nothing to draw.")]
    return [history_figure(study), _importance(study), parallel_figure(study)]


def _importance(study: StudyFiles) -> Figure | Text:
    num = len(study.complete)
    if num < MIN_TRIALS_FOR_IMPORTANCE:
        return Text(
            f"Importance needs at least {MIN_TRIALS_FOR_IMPORTANCE} complete trials; this study has {num}."
        )
    found = importances(study)
    if found is None:
        return Text(
            "Importance is not defined: the best quarter of the trials does not stand out from the others."
        )
    return importance_figure(found, num, steady=num >= TRIALS_FOR_STEADY_IMPORTANCE)


def _trial_table(study: StudyFiles) -> Table:
    columns = ("trial", "state", study.metric, *study.paths, "seconds", "reason")
    rows = [
        (
            str(trial.index),
            f"{trial.state} (best)"
            if trial is study.best
            else trial.state
            if trial.is_done
            else f"{trial.state}, not done",
            trial.value,
            *(masked(path, trial.values.get(path)) for path in study.paths),
            trial.seconds,
            trial.reason,
        )
        for trial in study.trials
    ]
    caption = (
        "A trial that was cut short is not done: it runs again under its number. Folders: trials/<number>."
    )
    return Table(columns, rows, caption)


def _best(study: StudyFiles) -> list[Block]:
    best = study.best
    if best is None:
        return [Text("No trial is complete yet.")]
    rows = [(path, masked(path, value)) for path, value in best.values.items()]
    table = Table(("key", "value"), rows, f"Trial {best.index}: {study.metric} = {number(best.value)}.")
    return [table, *_best_file(study.folder / "best.yaml"), *_trial_folder(study, best)]


def _best_file(path: Path) -> list[Block]:
    if not path.is_file():
        return [Text("best.yaml is not written yet: it comes with the end of the search.")]
    tree, problems = read_yaml(path, str(path))
    if problems:
        raise InputError(*problems)
    text = dump_yaml(masked("", tree.plain()))
    return [Code(text, str(path)), Text("Train it:", f"voxray train {shlex.quote(str(path))}")]


def _trial_folder(study: StudyFiles, best: Trial) -> list[Block]:
    run = study.folder / "trials" / f"{best.index:04d}"
    return (
        [Text("Its curves:", f"voxray report {shlex.quote(str(run))}")]
        if (run / "config.json").is_file()
        else []
    )


def _space(study: StudyFiles) -> list[Block]:
    rows = [
        (path, _distribution(study.distributions.get(path))) for path in study.distributions or study.paths
    ]
    return [Table(("key", "drawn from"), rows)]


def _distribution(drawn: Any) -> str:
    """Return a distribution as the space file writes it; keys that are not set are left out."""
    if not isinstance(drawn, dict):
        return "–" if drawn is None else str(drawn)
    return ", ".join(f"{kind}: {masked('', value)}" for kind, value in drawn.items() if value is not None)
