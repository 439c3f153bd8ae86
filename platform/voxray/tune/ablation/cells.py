"""A baseline, its arms and their cells (one arm with one seed), checked against the experiment as a whole."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.files import display
from voxray.config.overrides import COMMAND_LINE
from voxray.config.resolve import Resolved
from voxray.config.tree import KeyPath, Node
from voxray.core.run_config import RunConfig
from voxray.train.run_folder import FREE_SECTIONS
from voxray.tune.checks import NOT_TRAINED
from voxray.tune.config import AblateConfig, ObjectiveConfig
from voxray.tune.plan import Plan

BASELINE = "baseline"
SEED = ("training", "seed")
# What changes no number of a run; all else is in a cell's key, `data.path` too.
NOT_IN_KEY = (*FREE_SECTIONS, "experiment_name", "run")
KEY_DIGITS = 24

Assignments = Sequence[tuple[KeyPath, Node]]


@dataclass(frozen=True)
class Arm:
    """One variant of the baseline: what it says over it (dotted path → value), and its resolved config."""

    name: str
    values: dict[str, Any]
    config: Resolved[RunConfig]
    place: str


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. Its `key` is the hash of all that decides the result."""

    index: int
    arm: Arm
    seed: int
    key: str

    @property
    def values(self) -> dict[str, Any]:
        """What sets the cell apart: the arm's values and the seed."""
        return {**self.arm.values, ".".join(SEED): self.seed}


@dataclass(frozen=True)
class Ablation:
    """A checked ablation. Cells stand seed by seed, so that one cut short has whole pairs."""

    plan: Plan
    arms: tuple[Arm, ...]  # the baseline first
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def config(self) -> AblateConfig:
        """The space's `ablate` block."""
        return block_of(self.plan)

    @property
    def objectives(self) -> tuple[ObjectiveConfig, ...]:
        """What is compared, a table each."""
        return self.plan.space.config.objectives

    @property
    def cells_folder(self) -> Path:
        """<storage.path>/<task>/cells: shared by all ablations of the task."""
        return self.plan.folder.parents[1] / "cells"

    def cell_folder(self, cell: Cell) -> Path:
        """Return the RUN folder of a cell, absolute."""
        return (self.cells_folder / cell.key).absolute()

    def run_config(self, cell: Cell) -> Resolved[RunConfig]:
        """Return the experiment of one cell, named by its key, as several ablations may share it."""
        said = f": {self.plan.base.config.description}" if self.plan.base.config.description else ""
        own = {
            "experiment_name": cell.key,
            "description": f"Arm '{cell.arm.name}' of ablation '{self.plan.name}', seed {cell.seed}{said}",
            "run.name": "",
        }
        place = self.plan.place("ablate", "seeds")
        return cell.arm.config.with_values({".".join(SEED): cell.seed, **own}, place)


def load_ablation(plan: Plan) -> Ablation:
    """Return the arms and cells of a plan. Raises InputError with everything that is wrong with them."""
    block = plan.space.tree.get(("ablate",))
    if block is None or plan.space.config.ablate is None:
        file = display(plan.file)
        raise InputError(f"{file}: is a search, not an ablation; run it by `voxray tune {file}`")
    declared = list(_declared(plan, block))
    problems = [*_names_twice(declared), *_block_problems(plan, block)]
    problems += [text for draft in declared for text in draft.problems()]
    arms = _resolved(plan, declared, problems)
    notes = [] if problems else _drop_equals(declared, arms, problems)
    if not problems and len(arms) < 2:
        problems.append(f"{block.source}: ablate: nothing is left to compare the baseline with; add an arm")
    if problems:
        raise InputError(*dict.fromkeys(problems))
    told = [note for arm in arms for note in arm.config.notes if note not in plan.base.notes]
    return Ablation(plan, tuple(arms), _cells(plan, arms), tuple(dict.fromkeys([*told, *notes])))


def cell_key(config: RunConfig, seed: int) -> str:
    """Return the hash of all that decides the result of a config trained with `training.seed=seed`.

    Left out are the words, `run`, `storage`, `logging`, `checkpoints` and `scale`: what may differ when a run
    is resumed. In it are the defaults too, so a default that a new version changes makes new cells.
    """
    values = config.model_dump(mode="json")
    values["training"]["seed"] = seed
    decisive = {key: value for key, value in values.items() if key not in NOT_IN_KEY}
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True)
class _Draft:
    """An arm as it is declared, before it is resolved."""

    name: str
    kind: str  # baseline | arms | off | grid
    assignments: Assignments
    place: str

    def problems(self) -> Iterator[str]:
        """Yield what no arm may say."""
        for path, node in self.assignments:
            for leaf, where in node.leaves(path):
                key = ".".join(leaf)
                if leaf[:2] == SEED:
                    yield f"{where.source}: {key}: arms are compared seed by seed; list them in ablate.seeds"
                elif leaf[0] in NOT_TRAINED or (leaf[0] in NOT_IN_KEY and self.kind != BASELINE):
                    yield (
                        f"{where.source}: {key} does not change what a run learns; take it out of "
                        f"'{self.name}', or give it for all on the command line"
                    )


def _declared(plan: Plan, block: Node) -> Iterator[_Draft]:
    """Yield the baseline, the named arms, those with one thing off, and every combination of the grid."""
    yield _Draft(BASELINE, BASELINE, _assignments(block.get(("baseline",))), block.source)
    arms = block.get(("arms",))
    for name, node in arms.children() if arms else ():
        yield _Draft(name, "arms", _assignments(node), node.source)
    off, grid = (_children(block.get((key,))) for key in ("off", "grid"))
    short = shortest_suffixes([path for path, _ in (*off, *grid)])
    for path, node in off:
        yield _Draft(f"without {short[path]}", "off", [(tuple(path.split(".")), node)], node.source)
    for combination in itertools.product(*([(path, n) for _, n in node.children()] for path, node in grid)):
        if combination:
            yield _Draft(
                " ".join(f"{short[path]}={_said(node)}" for path, node in combination),
                "grid",
                [(tuple(path.split(".")), node) for path, node in combination],
                combination[0][1].source,
            )


def _children(node: Node | None) -> list[tuple[str, Node]]:
    return list(node.children()) if node else []


def _assignments(node: Node | None) -> Assignments:
    return [(tuple(path.split(".")), child) for path, child in _children(node)]


def _said(node: Node) -> str:
    value = node.plain()
    return value if isinstance(value, str) else node.text or json.dumps(value, ensure_ascii=False)


def shortest_suffixes(paths: Sequence[str]) -> dict[str, str]:
    """Return, for each dotted path, its shortest end that no other of them has too."""
    found: dict[str, str] = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = [f".{other}" for other in paths if other != path]
        found[path] = next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), path)
    return found


def _names_twice(declared: Sequence[_Draft]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for draft in declared:
        if not draft.name.strip():
            yield f"{draft.place}: an arm has no name; give it one"
        elif draft.name in seen:
            yield f"{draft.place}: '{draft.name}' is the name of two arms ({seen[draft.name]}); rename one"
        seen.setdefault(draft.name, draft.place)


def _block_problems(plan: Plan, block: Node) -> Iterator[str]:
    """Yield overrides of the command line that the ablation sets itself, empty grids, seeds that are none."""
    for path, node in _children(block.get(("baseline",))):
        if plan.base.sources.get(path) == COMMAND_LINE:
            yield f"{path}=… has no effect: {node.source} sets it for the baseline and all arms; leave it out"
    if plan.base.sources.get(".".join(SEED)) == COMMAND_LINE:
        yield "training.seed=… has no effect: an ablation has its own seeds; give ablate.seeds=[…]"
    for path, node in _children(block.get(("grid",))):
        if not list(node.children()):
            yield f"{node.source}: ablate.grid.{path} has no values; list some, or take it out"
    for seed in block_of(plan).seeds:
        if seed < 0:
            yield f"{plan.place('ablate', 'seeds')}: ablate.seeds: {seed} is not int ≥ 0"


def block_of(plan: Plan) -> AblateConfig:
    """Return the space's `ablate` block, which is there."""
    assert plan.space.config.ablate is not None
    return plan.space.config.ablate


def _resolved(plan: Plan, declared: Sequence[_Draft], problems: list[str]) -> list[Arm]:
    """Return the arms that the experiment takes; what it refuses goes to `problems`."""
    arms: list[Arm] = []
    common = declared[0].assignments
    for draft in declared:
        over = () if draft.kind == BASELINE else draft.assignments
        try:
            config = plan.base.with_nodes([*common, *over])
        except InputError as error:
            problems += error.problems
            continue
        if config.config.training.seed != plan.base.config.training.seed and not problems:
            problems.append(f"{draft.place}: '{draft.name}' sets training.seed; list seeds in ablate.seeds")
        values = {".".join(leaf): node.plain() for path, top in over for leaf, node in top.leaves(path)}
        arms.append(Arm(draft.name, values, config, draft.place))
    return arms


def _drop_equals(declared: Sequence[_Draft], arms: list[Arm], problems: list[str]) -> list[str]:
    """Take out combinations of the grid that are the baseline; other arms that are equal are problems."""
    notes: list[str] = []
    seen: dict[str, Arm] = {}
    for draft, arm in zip(declared, list(arms), strict=True):
        same = seen.setdefault(cell_key(arm.config.config, 0), arm)
        if same is arm:
            continue
        if draft.kind == "grid" and same.name == BASELINE:
            notes.append(f"{arm.place}: '{arm.name}' of the grid is the baseline itself")
            arms.remove(arm)
        else:
            problems.append(
                f"{arm.place}: '{arm.name}' trains the same as '{same.name}' ({same.place}): every value is "
                "equal; change one, or take one out"
            )
    return notes


def _cells(plan: Plan, arms: Sequence[Arm]) -> tuple[Cell, ...]:
    pairs = itertools.product(block_of(plan).seeds, arms)
    return tuple(
        Cell(index, arm, seed, cell_key(arm.config.config, seed)) for index, (seed, arm) in enumerate(pairs)
    )
