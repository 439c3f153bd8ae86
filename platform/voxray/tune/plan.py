"""A space file and its experiment, read and checked as a whole before anything starts."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.files import display, project_root, read_layers
from voxray.config.resolve import Resolved, resolve
from voxray.core.experiment import load_experiment
from voxray.core.run_config import RunConfig
from voxray.tune.config import SpaceConfig
from voxray.tune.space import probes

FOLDER = "search_spaces"
SUFFIXES = (".yaml", ".yml")
WORDS = ("experiment_name", "description", "hypothesis", "expected", "tags")
# An experiment has an `objective` too, so of that section only two keys are the space's own.
OWN_KEYS = (*WORDS, "experiment", "objective.metric", "objective.mode")
NOT_TRAINED = (*WORDS, "task", "run", "storage", "logging")


@dataclass(frozen=True)
class Plan:
    """A checked search: the space, and the experiment that its trials change."""

    space: Resolved[SpaceConfig]
    base: Resolved[RunConfig]
    file: Path

    @property
    def name(self) -> str:
        """The study's name: the space's `experiment_name`, else its file's stem."""
        return self.space.config.experiment_name or self.file.stem

    @property
    def folder(self) -> Path:
        """STUDY: <storage.path>/<task>/studies/<name>; a task outside voxray goes by its class name."""
        config = self.base.config
        return Path(config.storage.path) / config.task.rpartition(":")[2] / "studies" / self.name

    def trial_folder(self, index: int) -> Path:
        """Return the RUN folder of a trial."""
        return self.folder / "trials" / f"{index:04d}"

    def trial(self, index: int, values: dict[str, Any]) -> Resolved[RunConfig]:
        """Return the experiment of one trial. Raises InputError when it refuses the values together."""
        said = f": {self.base.config.description}" if self.base.config.description else ""
        own: dict[str, Any] = {
            "experiment_name": f"{self.name}-{index:04d}",
            "description": f"Trial {index} of study '{self.name}' ({display(self.file)}){said}",
        }
        if self.base.config.run.name:
            own["run.name"] = ""
        trial = self.base.with_values({**values, **own}, f"{display(self.file)}: trial {index}")
        refuse_many_workers(trial.config)
        return trial

    def place(self, *path: str) -> str:
        """Return where the space says something, e.g. `search_spaces/cxr_memory/quick.yaml:12`."""
        node = self.space.tree.get(path)
        return node.source if node else display(self.file)


def load_plan(reference: str, overrides: Sequence[str] = ()) -> Plan:
    """Read the space that `reference` names, and its experiment; overrides go to the one that owns the key.

    Raises InputError with everything that is wrong: keys, types, ranges, values that the experiment refuses.
    """
    own, passed_on = split_overrides(overrides)
    file = find_space(reference)
    layers, problems = read_layers(file)
    space = resolve(SpaceConfig, layers, own, problems=problems, file=file)
    beside = file.parent / space.config.experiment
    base = load_experiment(str(beside) if beside.is_file() else space.config.experiment, passed_on)
    plan = Plan(space, base, file)
    _check(plan, passed_on)
    return plan


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the space's own sections, and those of its experiment.

    Raises InputError for a distribution on the command line: the file is what a study is continued by.
    """
    own: list[str] = []
    passed_on: list[str] = []
    for text in overrides:
        key = text.partition("=")[0]
        if key.startswith("search.space"):
            raise InputError(
                f"{text}: a distribution is written in the space's file; copy it, change the copy"
            )
        (own if key in OWN_KEYS or key.split(".")[0] == "search" else passed_on).append(text)
    return own, passed_on


def find_space(reference: str) -> Path:
    """Return the file that a path, a bare name (`quick`) or `cxr_memory/quick` names.

    Raises InputError for a name that no file has (with the nearest), or several have (with all of them).
    """
    path = Path(reference)
    if path.is_file():
        return path.resolve()
    files = space_files()
    wanted = (path.with_suffix("") if path.suffix in SUFFIXES else path).parts
    found = [file for file in files if wanted and file.with_suffix("").parts[-len(wanted) :] == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(map(display, found))
        raise InputError(f"'{reference}' is the name of several spaces: {several}; write one of these")
    near = difflib.get_close_matches(path.stem, [file.stem for file in files], 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "`voxray ls spaces` lists them"
    raise InputError(f"there is no search space '{reference}'; {hint}")


def space_files() -> list[Path]:
    """Return the space files of the project around the working directory, sorted by path."""
    root = project_root(Path.cwd())
    return sorted(path for path in (root / FOLDER).rglob("*") if path.suffix in SUFFIXES) if root else []


def refuse_many_workers(config: RunConfig) -> None:
    """Raise InputError for a config that wants several workers: a trial trains in one process."""
    if config.scale.most_workers > 1:
        raise InputError(
            f"scale.num_workers={config.scale.num_workers}: a trial trains with one worker; pass "
            "scale.num_workers=1 (the same batch_size gives the same losses) and train the best one with more"
        )


def _check(plan: Plan, overrides: Sequence[str]) -> None:
    problems: list[str] = []
    refuse_many_workers(plan.base.config)
    overridden = {text.partition("=")[0]: text for text in overrides}
    for path, drawn in plan.space.config.search.space.items():
        place = plan.place("search", "space", path)
        if path.split(".")[0] in NOT_TRAINED:
            problems.append(
                f"{place}: {path} does not change how a trial trains; take it out of search.space"
            )
        elif path in overridden:
            problems.append(
                f"{overridden[path]} has no effect: {place} draws {path} for each trial; leave it out"
            )
        else:
            problems += _first_refusal(plan, path, probes(drawn), place)
    if problems:
        raise InputError(*dict.fromkeys(problems))


def _first_refusal(plan: Plan, path: str, values: Sequence[Any], place: str) -> tuple[str, ...]:
    """Return what the experiment says about the first value that it refuses; nothing if it takes all."""
    for value in values:
        try:
            plan.base.with_values({path: value}, place)
        except InputError as error:
            return error.problems
    return ()


def check_metric(plan: Plan) -> None:
    """Raise InputError when the task never reports the objective's metric. Imports the task's torch."""
    from voxray.core.registry import task_class

    config, metric = plan.base.config, plan.space.config.objective.metric
    known = task_class(config.task)(config).reported()
    if metric not in known:
        near = difflib.get_close_matches(metric, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{plan.place('objective', 'metric')}: objective.metric: task '{config.task}' never reports "
            f"'{metric}'; {hint}there is {', '.join(known)}"
        )
