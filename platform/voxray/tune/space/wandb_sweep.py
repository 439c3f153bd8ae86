"""W&B's sweep files as spaces of ours: `voxray tune sweep.yaml experiment=…`.

What a sweep says is that of W&B's documentation ("Sweep configuration options"). What is left out, or
differs, is told in a note each; what has no equivalent is an error with the mend.
"""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from voxray.config.errors import InputError
from voxray.config.files import display
from voxray.config.resolve import Resolved
from voxray.config.tree import Node, show
from voxray.config.yaml import dump_yaml
from voxray.core.run_config import RunConfig
from voxray.core.spellings import monitor
from voxray.tune.space.flat_keys import FlatKeys, Meant
from voxray.tune.space.wandb_distributions import Drawn, read_distribution

SAMPLERS = {"grid": "brute_force", "random": "random", "bayes": "tpe"}
_LEFT_OUT = ("program", "command", "job", "image_uri", "apiVersion", "kind", "controller")
_ABOUT_WANDB = ("project", "entity")
_READ = ("name", "description", "method", "metric", "metrics", "parameters", "early_terminate", "run_cap")
_OF_METRIC = ("name", "goal", "target", "impute", "impute_while_running")
_OF_HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_ETA = 3


@dataclass(frozen=True)
class SweepSpace:
    """A sweep as a tree of a space file, each node with its place in the sweep's file, and what to tell."""

    tree: Node
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The space as the text of a file that `voxray tune` reads by itself."""
        return dump_yaml(self.tree.plain())


def is_sweep(tree: Node) -> bool:
    """Return whether a file's map is a sweep of W&B's and no space of ours."""
    if not isinstance(tree.value, dict) or {"search", "ablate", "objective"} & tree.value.keys():
        return False
    return "parameters" in tree.value or {"method", "program"} <= tree.value.keys()


def to_space(
    tree: Node, base: Resolved[RunConfig], metrics: Sequence[str], has_end: bool = False
) -> SweepSpace:
    """Return the space that a sweep is, over the experiment `base`, whose task reports `metrics`.

    `has_end`: something else says when the search ends (search.trials on the command line). With no `metrics`
    a metric's name is taken as it is, `val_loss` as val/loss. Raises InputError with all that is wrong.
    """
    return _Sweep(tree, base, metrics).space(has_end)


class _Sweep:
    """A sweep being read: its problems and notes so far."""

    def __init__(self, tree: Node, base: Resolved[RunConfig], metrics: Sequence[str]) -> None:
        assert isinstance(tree.value, dict)
        self._tree, self._base, self._metrics = tree, base, metrics
        self._entries = tree.value
        self._keys = FlatKeys(base)
        self._problems: list[str] = []
        self._notes: list[str] = []

    def space(self, has_end: bool) -> SweepSpace:
        self._look_at_keys()
        method = self._method()
        space, num_values = self._parameters(method.plain() == "grid")
        search = {
            "sampler": Node({"name": Node(SAMPLERS.get(method.plain(), ""), method.source)}, method.source),
            "scheduler": self._scheduler(),
            "trials": self._trials(method, num_values, has_end),
            "space": Node(space, self._source("parameters")),
        }
        entries = {
            "experiment_name": self._name(),
            "description": self._entries.get("description"),
            "experiment": Node(self._experiment(), self._tree.source),
            "objective": self._objective(),
            "search": Node({key: node for key, node in search.items() if node}, self._tree.source),
        }
        if self._problems:
            raise InputError(*dict.fromkeys(self._problems))
        known = {key: node for key, node in entries.items() if node is not None}
        return SweepSpace(Node(known, self._tree.source), tuple(self._notes))

    def _source(self, key: str) -> str:
        node = self._entries.get(key)
        return node.source if node else self._tree.source

    def _wrong(self, node: Node | None, text: str) -> None:
        self._problems.append(f"{node.source if node else self._tree.source}: {text}")

    def _note(self, node: Node, text: str) -> None:
        self._notes.append(f"{node.source}: {text}")

    def _look_at_keys(self) -> None:
        for key, node in self._entries.items():
            if key not in (*_LEFT_OUT, *_ABOUT_WANDB, *_READ, "scheduler"):
                self._wrong(node, f"{key}: a sweep has no such key; {_nearest(key, _READ)}")
        left_out = [key for key in _LEFT_OUT if key in self._entries]
        if left_out:
            self._note(self._entries[left_out[0]], f"left out, as voxray trains: {', '.join(left_out)}")
        places = [key for key in _ABOUT_WANDB if key in self._entries]
        if places:
            wanted = " ".join(f"logging.wandb.{key}={self._entries[key].plain()}" for key in places)
            self._note(
                self._entries[places[0]],
                f"to see the trials at W&B, add logging.wandb.enabled=true {wanted}",
            )
        if (engine := self._entries.get("scheduler")) is not None:
            self._wrong(engine, "scheduler: voxray searches itself; take it out, and write method: bayes")

    def _name(self) -> Node | None:
        node = self._entries.get("name")
        if node is None:
            return None
        written = node.text or str(node.plain())
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", written).strip("-")
        if name != written:
            self._note(node, f"name: the study is called {name}")
        return Node(name, node.source)

    def _experiment(self) -> str:
        assert self._base.file is not None
        return display(self._base.file)

    def _method(self) -> Node:
        node = self._entries.get("method")
        if node is None:
            self._wrong(None, "method is missing; write grid, random or bayes")
            return Node("", self._tree.source)
        if node.plain() == "bayes":
            self._note(
                node, "bayes is sampler tpe here; search.sampler.name=gp is a Gaussian process, as W&B's"
            )
        elif node.plain() not in SAMPLERS:
            self._wrong(node, f"method: {show(node.plain())} is none of grid, random, bayes; write bayes")
        return node

    def _trials(self, method: Node, num_values: int, has_end: bool) -> Node | None:
        cap = self._entries.get("run_cap")
        if cap is not None and not (type(cap.value) is int and cap.value > 0):
            self._wrong(cap, f"run_cap: {show(cap.plain())} must be a whole number above 0")
            return None
        if method.plain() == "grid":
            most = cap.value if cap is not None else num_values
            assert isinstance(most, int)
            return Node(min(most, num_values), (cap or method).source)
        if cap is None and not has_end and method.plain() in SAMPLERS:
            self._wrong(
                method,
                f"method: {method.plain()} has no end of its own; add `run_cap: 40` here, or "
                "search.trials=40 on the command line",
            )
        return cap

    # --- what is looked at
    def _objective(self) -> Node | None:
        one, several = self._entries.get("metric"), self._entries.get("metrics")
        if one is not None and several is not None:
            self._wrong(several, "metrics: there is `metric` too; keep one of the two")
        if several is not None:
            if not isinstance(several.value, list) or not several.value:
                self._wrong(several, "metrics must be a list of maps with name and goal")
                return None
            found = [self._metric(node) for node in several.value]
            return Node([node for node in found if node], several.source)
        if one is not None:
            return self._metric(one)
        training = self._base.config.training
        self._notes.append(
            f"{self._tree.source}: no metric is named; the experiment's training.monitor is looked at: "
            f"{training.monitor}"
        )
        return Node.of({"metric": training.monitor, "mode": training.monitor_mode}, self._tree.source)

    def _metric(self, node: Node) -> Node | None:
        name, goal = node.get(("name",)), node.get(("goal",))
        if name is None or not isinstance(name.value, str):
            self._wrong(node, "metric needs a name, e.g. `metric: {name: val/loss, goal: minimize}`")
            return None
        for key, child in node.children():
            if key not in _OF_METRIC:
                self._wrong(child, f"metric.{key}: there is no such key; {_nearest(key, _OF_METRIC)}")
            elif key not in ("name", "goal"):
                self._note(child, f"metric.{key} is left out: a search ends by its trials, or by its seconds")
        direction = "minimize" if goal is None else goal.plain()
        if direction not in ("minimize", "maximize"):
            self._wrong(goal, f"metric.goal: {show(direction)} is neither minimize nor maximize")
        mode = Node("max" if direction == "maximize" else "min", (goal or node).source)
        return Node({"metric": Node(self._metric_name(name), name.source), "mode": mode}, node.source)

    def _metric_name(self, node: Node) -> str:
        """Return our name of a metric: the same, `val_loss` as val/loss, or the only one that ends so."""
        name = str(node.plain())
        spelled = monitor(re.sub(r"[.\s-]", "_", name))
        if name in self._metrics or not (self._metrics or "/" not in name):
            return name
        if spelled in self._metrics or not self._metrics:
            ours = [spelled]
        else:
            ours = [known for known in self._metrics if known.rpartition("/")[2] == name]
        if len(ours) != 1:
            known = ours or self._metrics
            told = "several metrics end so" if ours else "is never reported"
            near = difflib.get_close_matches(spelled, self._metrics, 1)
            hint = f"did you mean {near[0]}? " if near and not ours else ""
            self._wrong(node, f"metric.name: '{name}': {told}; {hint}write one of {', '.join(known)}")
            return name
        if ours[0] != name:
            self._note(node, f"metric {name} is {ours[0]} here")
        return ours[0]

    # --- what is drawn
    def _parameters(self, grid: bool) -> tuple[dict[str, Node], int]:
        """Return the space, and how many combinations of values a grid has."""
        parameters = self._entries.get("parameters")
        if parameters is None or not isinstance(parameters.value, dict) or not parameters.value:
            self._wrong(parameters, "parameters must be a map of at least one key → how it is drawn")
            return {}, 1
        space: dict[str, Node] = {}
        also: dict[str, Node] = {}
        num_values = 1
        for key, node in _flat(parameters, ""):
            try:
                drawn = read_distribution(node, grid)
                path, value, beside = self._in_our_words(key, node, drawn)
            except InputError as error:
                for text in error.problems:
                    self._wrong(node, f"{key}: {text}")
                continue
            if path in space:
                self._wrong(
                    node, f"{key}: {path} is drawn at {space[path].source} already; keep one of the two"
                )
            for note in drawn.notes:
                self._note(node, f"{key}: {note}")
            space[path] = Node.of({drawn.kind: value}, node.source)
            also |= {other: Node.of({"fixed": setting}, node.source) for other, setting in beside.items()}
            num_values *= drawn.num_values() if grid else 1
        return {**{path: node for path, node in also.items() if path not in space}, **space}, num_values

    def _in_our_words(self, key: str, node: Node, drawn: Drawn) -> tuple[str, Any, dict[str, Any]]:
        """Return the path that `key` means, what its distribution holds there, and what is set beside it."""
        guides_path = self._keys.path_of(key)
        meant = [self._keys.meant(guides_path, value) for value in drawn.examples()]
        if len({one.path for one in meant}) > 1:
            raise InputError(
                f"its values are several keys here: {', '.join(sorted({one.path for one in meant}))}"
            )
        path = meant[0].path
        if path != key:
            self._note(node, f"{key} is {path} here")
        also = {other: value for one in meant for other, value in self._settings(one).items()}
        values = [one.value for one in meant]
        if drawn.kind == "fixed":
            return path, values[0], also
        return path, values if drawn.kind == "choice" else drawn.value, also

    def _settings(self, meant: Meant) -> dict[str, Any]:
        """Return what a spelling sets beside its key, where the experiment does not."""
        return {
            path: setting(meant.value) if isinstance(setting, Callable) else setting
            for path, setting in meant.also.items()
            if self._base.tree.get(tuple(path.split("."))) is None
        }

    # --- what is stopped early
    def _scheduler(self) -> Node | None:
        node = self._entries.get("early_terminate")
        if node is None:
            return None
        if not isinstance(node.value, dict) or node.value.get("type", Node("", "")).value != "hyperband":
            self._wrong(node, "early_terminate: `type: hyperband` is the only one that W&B has; write it")
            return None
        for key, child in node.children():
            if key not in _OF_HYPERBAND:
                self._wrong(
                    child, f"early_terminate.{key}: there is no such key; {_nearest(key, _OF_HYPERBAND)}"
                )
        numbers = {key: self._number(node, key) for key in ("min_iter", "max_iter", "s", "eta")}
        eta = numbers["eta"] or _ETA
        if eta <= 1:
            self._wrong(node.get(("eta",)), f"early_terminate.eta: {eta:g} must be above 1")
            return None
        first = self._first_band(node, numbers, eta)
        if first is None:
            return None
        if "strict" in node.value:
            self._note(node.value["strict"], "early_terminate.strict is left out: asha has one way to stop")
        every = self._base.config.training.validate_every
        by_steps = every.steps is not None
        times = every.steps or every.epochs
        grace = first * times
        unit = "update" if by_steps else "epoch"
        often = f"{times} {unit}s" if times > 1 else unit
        self._note(
            node,
            f"hyperband is scheduler asha here: one in {eta:g} goes on after evaluation {first}, "
            f"{_times(first, eta)} …; an evaluation comes every {often}",
        )
        length = {"unit": "steps", "grace_steps": grace} if by_steps else {"grace_epochs": grace}
        return Node.of({"name": "asha", **length, "reduction_factor": eta}, node.source)

    def _first_band(self, node: Node, numbers: dict[str, float | None], eta: float) -> int | None:
        """Return after how many evaluations W&B looks first: min_iter, or max_iter / eta^s, rounded down."""
        if (most := numbers["max_iter"]) is not None:
            if numbers["s"] is None:
                self._wrong(node, "early_terminate: max_iter needs s, the number of brackets; add it")
                return None
            bands = [int(most / eta**power) for power in range(1, math.ceil(numbers["s"]) + 1)]
            bands = [band for band in bands if band >= 1]
            if not bands:
                self._wrong(node, f"early_terminate: max_iter {most:g} has no bracket; raise max_iter or s")
                return None
            return bands[-1]
        if (least := numbers["min_iter"]) is None:
            self._wrong(node, "early_terminate needs min_iter, or max_iter and s; add `min_iter: 3`")
            return None
        return int(least)

    def _number(self, node: Node, key: str) -> float | None:
        child = node.get((key,))
        if child is None:
            return None
        if type(child.value) not in (int, float) or not (key == "eta" or child.value >= 1):  # type: ignore[operator]
            self._wrong(child, f"early_terminate.{key}: {show(child.plain())} must be a number of 1 or more")
            return None
        assert isinstance(child.value, int | float)
        return child.value


def _flat(parameters: Node, above: str) -> Iterator[tuple[str, Node]]:
    """Yield each parameter under its dotted name; `parameters:` inside a parameter holds others."""
    for key, node in parameters.children():
        inner = node.get(("parameters",))
        if (
            inner is not None
            and isinstance(inner.value, dict)
            and "distribution" not in dict(node.children())
        ):
            yield from _flat(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}", node


def _times(first: int, eta: float) -> str:
    return ", ".join(f"{first * eta**power:g}" for power in (1, 2))


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
