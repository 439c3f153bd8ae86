"""A space file and its experiment, read and checked as a whole before anything starts."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxray.config.errors import InputError
from voxray.config.files import display, project_root, read_layers
from voxray.config.provenance import write_provenance
from voxray.config.resolve import Resolved, leaves, resolve
from voxray.config.tree import Node
from voxray.core.experiment import load_experiment
from voxray.core.run_config import RunConfig
from voxray.data.location import working_folder
from voxray.train.run_folder import RunFolder
from voxray.train.trackers.choose import missing_libraries
from voxray.tune.checks import check_search, reported_metrics
from voxray.tune.config import SearchConfig, SpaceConfig
from voxray.tune.job import Job, Run
from voxray.tune.ledger import Suggestion
from voxray.tune.space.constraints import Constraint, read_constraints
from voxray.tune.space.draw import Space
from voxray.tune.space.wandb_sweep import SweepSpace, is_sweep, to_space
from voxray.tune.study.earlier import EarlierStudy, read_earlier
from voxray.tune.study.ledger import StudyRules

FOLDER = "search_spaces"
SUFFIXES = (".yaml", ".yml")
WORDS = ("experiment_name", "description", "hypothesis", "expected", "tags")
# An experiment has an `objective` too, so of that section only two keys are the space's own.
OWN_KEYS = (*WORDS, "experiment", "objective.metric", "objective.mode")
OWN_SECTIONS = ("search", "ablate")


@dataclass(frozen=True)
class Plan:
    """A checked search or ablation: the space, and the experiment that its trials change."""

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
        return working_folder(config.storage.path) / config.task.rpartition(":")[2] / "studies" / self.name

    @property
    def search(self) -> SearchConfig:
        """The `search` block. Raises InputError for an ablation."""
        search = self.space.config.search
        if search is None:
            raise InputError(f"{display(self.file)} is an ablation; run `voxray ablate {display(self.file)}`")
        return search

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The search's constraints, parsed."""
        return read_constraints(
            self.search.constraints, lambda n: self.place("search", "constraints", str(n))
        )

    def rules(self) -> StudyRules:
        """Return what the study's ledger must know. Raises InputError for a point outside the space."""
        return StudyRules(
            self.search,
            self.space.config.objectives,
            self.constraints,
            self.base_values(),
            tuple(self.points()),
        )

    def base_values(self) -> dict[str, Any]:
        """Return the experiment's values by dotted path."""
        return {".".join(path): value for path, value in leaves(self.base.config.model_dump(mode="json"))}

    def points(self) -> list[dict[str, Any]]:
        """Return the points that trials begin with, as Optuna draws them. Raises InputError."""
        space, found, problems = Space(self.search.space), list[dict[str, Any]](), list[str]()
        for number, point in enumerate(self.search.points):
            try:
                found.append(space.params(point))
            except InputError as error:
                place = self.place("search", "points", str(number))
                problems += [f"{place}: search.points.{number}: {text}" for text in error.problems]
        if problems:
            raise InputError(*problems)
        return found

    def earlier(self) -> EarlierStudy | None:
        """Return the study that this one learns from. Raises InputError where it is none, or another kind."""
        folder = self.search.from_study
        if not folder:
            return None
        beside = self.file.parent / folder
        return read_earlier(beside if beside.is_dir() else Path(folder), self.space.config.objectives)

    def trial_folder(self, index: int, seed: int | None = None) -> Path:
        """Return the RUN folder of a trial, of one of its seeds where it has several."""
        return self.folder / "trials" / (f"{index:04d}" if seed is None else f"{index:04d}-seed{seed}")

    def run_folders(self, index: int) -> list[Path]:
        """Return the RUN folders of a trial, one per seed."""
        return [self.trial_folder(index, seed) for seed in self.search.seeds or (None,)]

    def trial(self, index: int, values: dict[str, Any], seed: int | None = None) -> Resolved[RunConfig]:
        """Return the experiment of one trial. Raises InputError when it refuses the values together."""
        said = f": {self.base.config.description}" if self.base.config.description else ""
        own: dict[str, Any] = {
            "experiment_name": f"{self.name}-{index:04d}",
            "description": f"Trial {index} of study '{self.name}' ({display(self.file)}){said}",
        }
        if seed is not None:
            own["training.seed"] = seed
        if self.base.config.run.name:
            own["run.name"] = ""
        return self.base.with_values({**values, **own}, f"{display(self.file)}: trial {index}")

    def job(self, suggestion: Suggestion, executor: Literal["inline", "gang", "train"]) -> Job:
        """Write the config of each of a trial's runs, one per seed; return the trial as its actor gets it.

        Raises InputError when the experiment refuses the values together.
        """
        seeds = self.search.seeds or (None,)
        runs: list[Run] = []
        for seed in seeds:
            trial = self.trial(suggestion.index, suggestion.values, seed)
            folder = self.trial_folder(suggestion.index, seed).absolute()
            RunFolder(folder).write_config(trial.config, trial.sources)
            write_provenance(folder, is_one_of_many=True)
            runs.append(Run(folder, trial.config))
        return Job(suggestion.index, tuple(runs), executor)

    def place(self, *path: str) -> str:
        """Return where the space says something, e.g. `search_spaces/cxr_memory/quick.yaml:12`."""
        for length in range(len(path), 0, -1):
            if node := self.space.tree.get(path[:length]):
                return node.source
        return display(self.file)


def load_plan(reference: str, overrides: Sequence[str] = ()) -> Plan:
    """Read the space that `reference` names, and its experiment; overrides go to the one that owns the key.

    Raises InputError with everything that is wrong: keys, types, ranges, values that the experiment refuses.
    """
    own, passed_on = split_overrides(overrides)
    file = find_space(reference)
    layers, problems = read_layers(file)
    notes: list[str] = []
    if is_sweep(layers[-1]):
        sweep = _read_sweep(layers[-1], own, passed_on)
        layers = [sweep.tree]
        notes = [*sweep.notes, f"{display(file)} is a W&B sweep; as a space file it reads:\n{sweep.text}"]
    space = resolve(SpaceConfig, layers, own, problems=problems, notes=notes, file=file)
    base = load_experiment(_experiment_of(file, space.config.experiment), passed_on)
    if base.config.data.keep_decoded == "auto":
        base = base.with_values({"data.keep_decoded": True}, "trials share what is decoded")
    if missing := missing_libraries(base.config):
        raise InputError(*missing)
    plan = Plan(space, base, file)
    if space.config.search is not None:
        check_search(plan, passed_on)
    return plan


def _experiment_of(file: Path, reference: str) -> str:
    """Return an experiment's path beside the space's file, where there is one, else the reference."""
    beside = file.parent / reference
    return str(beside) if beside.is_file() else reference


def _read_sweep(tree: Node, own: Sequence[str], passed_on: Sequence[str]) -> SweepSpace:
    """Read a W&B sweep as a space over the experiment that the overrides name. Raises InputError."""
    said = dict(text.split("=", 1) for text in own)
    if "experiment" not in said:
        raise InputError(
            f"{tree.source}: is a W&B sweep, which names no experiment; add experiment=… to the command"
        )
    base = load_experiment(said["experiment"], passed_on)
    has_end = any(f"search.{key}" in said for key in ("trials", "seconds", "gpu_hours"))
    return to_space(tree, base, reported_metrics(base.config), has_end)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of the space's own sections, and those of its experiment.

    Raises InputError for a distribution on the command line: the file is what a study is continued by.
    """
    own: list[str] = []
    passed_on: list[str] = []
    for text in overrides:
        key = text.partition("=")[0]
        if key.startswith(("search.space", "ablate.grid", "ablate.arms", "ablate.off", "ablate.baseline")):
            raise InputError(
                f"{text}: what is drawn or compared is written in the space's file; copy it, change the copy"
            )
        (own if key in OWN_KEYS or key.split(".")[0] in OWN_SECTIONS else passed_on).append(text)
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
