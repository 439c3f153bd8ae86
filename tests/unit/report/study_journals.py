"""Writes studies of every kind with Optuna itself, in the shape that a search leaves behind."""

import json
import math
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from voxray.tasks.cxr_memory.config import Config
from voxray.testing.tiny import TinyConfig
from voxray.tune.config import ObjectiveConfig, SchedulerConfig, SearchConfig
from voxray.tune.job import Job, Run
from voxray.tune.space.config import Distribution
from voxray.tune.space.constraints import read_constraints
from voxray.tune.study.ledger import StudyLedger, StudyRules

START = datetime(2026, 1, 2, 3, 0, 0)
RATE = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
DROPOUT = optuna.distributions.FloatDistribution(0.0, 0.5)
LIMIT = "metric('model/params') <= 3e7"
AUROC, PARAMS, LOSS = (
    {"metric": "val/auroc", "mode": "max"},
    {"metric": "model/params", "mode": "min"},
    {"metric": "val/loss", "mode": "min"},
)
CONDITIONAL = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.dropout": {"uniform": [0.0, 0.5]},
    "training.optimizer": {"choice": ["adamw", "sgd"]},
    "training.momentum": {"uniform": [0.0, 0.99], "when": {"training.optimizer": "sgd"}},
}


def begin(
    folder: Path, *objectives: dict[str, str], space: dict[str, Any] | None = None, **search: Any
) -> Any:
    """Write study.json and an empty journal; return the study."""
    folder.mkdir(parents=True)
    declared = {
        "objective": list(objectives) if len(objectives) > 1 else objectives[0],
        "search": {"space": CONDITIONAL if space is None else space, **search},
    }
    saved = {"space": declared, "experiment": "e.yaml", "config": Config().model_dump(mode="json")}
    (folder / "study.json").write_text(json.dumps(saved))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name=folder.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        directions=["maximize" if objective["mode"] == "max" else "minimize" for objective in objectives],
        sampler=optuna.samplers.RandomSampler(seed=3),
    )


def draw(trial: optuna.Trial) -> dict[str, Any]:
    """Draw the conditional space by define-by-run."""
    drawn: dict[str, Any] = {
        "training.learning_rate": trial.suggest_float("training.learning_rate", 1e-4, 1e-2, log=True),
        "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.5),
        "training.optimizer": trial.suggest_categorical("training.optimizer", ["adamw", "sgd"]),
    }
    if drawn["training.optimizer"] == "sgd":
        drawn["training.momentum"] = trial.suggest_float("training.momentum", 0.0, 0.99)
    return drawn


def auroc(drawn: dict[str, Any]) -> float:
    return 0.8 - 0.1 * abs(math.log10(drawn["training.learning_rate"] / 2e-3)) - 0.05 * drawn["model.dropout"]


def run_conditional(study: optuna.Study, num_trials: int) -> None:
    """Run trials of one objective to their end, each under its index."""
    for index in range(num_trials):
        trial = study.ask()
        drawn = draw(trial)
        trial.set_user_attr("index", index)
        study.tell(trial, auroc(drawn))


def run_compromises(study: optuna.Study, num_trials: int, num_objectives: int = 2) -> None:
    """Run trials of two or three objectives; a trial with too many parameters violates a constraint."""
    noise = random.Random(5)
    for index in range(num_trials):
        trial = study.ask()
        drawn = draw(trial)
        trial.set_user_attr("index", index)
        params = 1e7 * (0.5 + 4 * drawn["model.dropout"] + 2 * noise.random())
        trial.set_constraint(LIMIT, params - 3e7)
        study.tell(trial, [auroc(drawn), params, noise.random()][:num_objectives])


def timed(
    index: int,
    start_s: float,
    seconds: float | None,
    values: list[float] | None = None,
    state: TrialState = TrialState.COMPLETE,
    intermediate: dict[int, float] | None = None,
    **attributes: Any,
) -> FrozenTrial:
    """Return a trial that began and ended at given seconds; None: it runs."""
    params = {"training.learning_rate": 10 ** (-4 + 0.1 * index), "model.dropout": 0.01 * index}
    trial = create_trial(
        state=TrialState.FAIL if state in (TrialState.RUNNING, TrialState.PRUNED) else state,
        values=values if state is TrialState.COMPLETE else None,
        params=params,
        distributions={"training.learning_rate": RATE, "model.dropout": DROPOUT},
        user_attrs={"index": index, **attributes},
        intermediate_values=intermediate or {},
    )
    trial.state = state
    if state is TrialState.PRUNED and values:
        trial.values = values
    trial.datetime_start = START + timedelta(seconds=start_s)
    trial.datetime_complete = None if seconds is None else trial.datetime_start + timedelta(seconds=seconds)
    return trial


def search_by_ledger(folder: Path, *objectives: dict[str, str]) -> StudyLedger:
    """Run 9 trials by our ledger: every third is stopped at its second evaluation, trial 5 crashes."""
    space = {path: Distribution(**drawn) for path, drawn in CONDITIONAL.items()}
    limit = {"constraints": (LIMIT,)}
    config = SearchConfig(space=space, trials=9, scheduler=SchedulerConfig(name="asha"), **limit)
    begin(folder, *objectives, **config.model_dump(mode="json"))
    (folder / "journal.log").unlink()
    declared = tuple(ObjectiveConfig(**objective) for objective in objectives)
    ledger = StudyLedger(folder, StudyRules(config, declared, read_constraints((LIMIT,), str)))
    for index in ledger.remaining():
        score = auroc(ledger.ask(index).values)
        for epoch in (1, 2) if index % 3 == 1 else (1, 2, 3):
            numbers = {"val/auroc": score + epoch / 100, "model/params": 4.5e6 * index}
            ledger.report(index, {"step": 10 * epoch, "epochs": float(epoch), **numbers})
        if index == 5:
            ledger.crash(index, "train/loss is nan at step 7")
        elif index % 3 == 1:
            ledger.stop(index)
        else:
            run = Run(folder / "trials" / f"{index:04d}", TinyConfig())
            ledger.finish(index, Job(index, (run,), "inline"))
    return ledger
