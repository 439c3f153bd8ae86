"""What is wrong with a search, found before anything starts: keys, conditions, constraints, metrics."""

import difflib
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from voxray.config.errors import InputError
from voxray.config.resolve import DEFAULT
from voxray.core.run_config import RunConfig
from voxray.train.config import MODEL_PARAMS, ScaleConfig
from voxray.tune.config import Executor
from voxray.tune.executors.resources import fit_trials
from voxray.tune.schedulers.checks import scheduler_problems
from voxray.tune.space.conditions import condition_problems
from voxray.tune.space.config import Distribution
from voxray.tune.space.constraints import unknown_metric
from voxray.tune.space.draw import Space, probes
from voxray.tune.study.samplers import ONE_OBJECTIVE

if TYPE_CHECKING:
    from voxray.tune.plan import Plan

# Keys that do not change how a trial trains.
NOT_TRAINED = (
    "experiment_name",
    "description",
    "hypothesis",
    "expected",
    "tags",
    "task",
    "run",
    "storage",
    "logging",
)
SCALE = "scale."
NUM_SAMPLES = 200  # random draws that conditions and constraints are tried on


def check_search(plan: "Plan", overrides: Sequence[str]) -> None:
    """Raise InputError with all that is wrong with a search and its experiment."""
    search = plan.search
    problems = condition_problems(search.space, lambda path: plan.place("search", "space", path))
    if search.sampler.name in ONE_OBJECTIVE and len(plan.space.config.objectives) > 1:
        where = plan.place("search", "sampler")
        problems.append(f"{where}: sampler {search.sampler.name} takes one objective; write tpe, gp or nsga2")
    problems += scheduler_problems(search, plan.space.config.objectives, plan.base_values(), plan.place)
    problems += _key_problems(plan, overrides)
    for look in (plan.points, plan.earlier, lambda: _constraint_problems(plan)):
        try:
            look()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    _check_samples(plan)


def _key_problems(plan: "Plan", overrides: Sequence[str]) -> list[str]:
    overridden = {text.partition("=")[0]: text for text in overrides}
    problems: list[str] = []
    for path, drawn in plan.search.space.items():
        place = plan.place("search", "space", path)
        if path.split(".")[0] in NOT_TRAINED:
            problems.append(
                f"{place}: {path} does not change how a trial trains; take it out of search.space"
            )
        elif path == "training.seed" and plan.search.seeds:
            problems.append(f"{place}: {path} is drawn, and search.seeds sets it; take one of the two out")
        elif path in overridden:
            problems.append(
                f"{overridden[path]} has no effect: {place} draws {path} for each trial; leave it out"
            )
        elif not drawn.when:
            problems += _first_refusal(plan, path, probes(drawn), {}, place)
    return problems


def _check_samples(plan: "Plan") -> None:
    """Look at random draws: every key is drawn in some, whose other values its own are tried with, and the
    constraints of keys allow some.
    """
    space, rng, base = Space(plan.search.space), random.Random(0), plan.base_values()
    samples = [space.sample(rng) for _ in range(NUM_SAMPLES)]
    problems: list[str] = []
    for path, drawn in plan.search.space.items():
        place = plan.place("search", "space", path)
        sample = next((sample for sample in samples if path in sample), None)
        if sample is None:
            problems.append(f"{place}: {path} was in none of {NUM_SAMPLES} draws; its `when` never holds")
        elif drawn.when:
            beside = {key: value for key, value in sample.items() if key != path}
            problems += _first_refusal(plan, path, probes(drawn), beside, place)
    allowed = samples
    for constraint in plan.constraints:
        if not constraint.metrics:
            allowed = [s for s in allowed if constraint.holds(lambda name, s=s: s.get(name, base.get(name)))]
    if not allowed:
        problems.append(
            f"{plan.place('search', 'constraints')}: search.constraints allow none of {NUM_SAMPLES} draws"
        )
    if problems:
        raise InputError(*dict.fromkeys(problems))


def _constraint_problems(plan: "Plan") -> None:
    known = {*plan.base_values(), *plan.search.space}
    problems: list[str] = []
    for number, constraint in enumerate(plan.constraints):
        place = plan.place("search", "constraints", str(number))
        for key in constraint.keys:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]}?" if near else "; a metric is written metric('…')"
                problems.append(f"{place}: '{constraint.text}' names {key}, no key of the experiment{hint}")
    if problems:
        raise InputError(*problems)


def _first_refusal(
    plan: "Plan", path: str, values: Sequence[Any], beside: dict[str, Any], place: str
) -> tuple[str, ...]:
    """Return what the experiment says about the first value that it refuses; nothing if it takes all."""
    for value in values:
        try:
            plan.base.with_values({**beside, path: value}, place)
        except InputError as error:
            return error.problems
    return ()


def check_metrics(plan: "Plan") -> None:
    """Raise InputError when the task never reports a metric that is looked at. Imports the task's torch."""
    config = plan.base.config
    known = reported_metrics(config)
    several = isinstance(plan.space.config.objective, tuple)
    wanted = [
        (("objective", str(n), "metric") if several else ("objective", "metric"), objective.metric)
        for n, objective in enumerate(plan.space.config.objectives)
    ]
    if plan.space.config.search is not None:
        for n, constraint in enumerate(plan.constraints):
            wanted += [(("search", "constraints", str(n)), name) for name in constraint.metrics]
    problems = [
        f"{plan.place(*path)}: {'.'.join(path)}: task '{config.task}' never reports '{name}'; {said}"
        for path, name in wanted
        if (said := unknown_metric(name, known))
    ]
    if problems:
        raise InputError(*problems)


def reported_metrics(config: RunConfig) -> list[str]:
    """Return the metrics that a run of this config reports. Imports the task's torch."""
    from voxray.core.registry import task_class

    return [*task_class(config.task)(config).reported(), MODEL_PARAMS]


def check_room(plan: "Plan", num_cpus: int) -> None:
    """Raise InputError when a private cluster with so many CPUs has no room for one trial; GPUs are looked at
    when Ray is there.
    """
    node = {"Alive": True, "Resources": {"CPU": float(num_cpus)}}
    scales = [scale.model_copy(update={"gpus_per_worker": "auto"}) for scale in scales_of(plan)]
    asked, place = asked_executor(plan), place_of_scale(plan)
    fit_trials(scales, asked, [node], most_at_a_time=None, reads=False, place=place)


def asked_executor(plan: "Plan") -> Executor:
    """Return the executor that a search or an ablation asks for."""
    block = plan.space.config.search or plan.space.config.ablate
    assert block is not None
    return block.executor


def scales_of(plan: "Plan") -> list[ScaleConfig]:
    """Return the `scale` sections that trials may have: every combination of the ends of what is searched."""
    drawn = {
        path.removeprefix(SCALE): probes(distribution)
        for path, distribution in drawn_by(plan).items()
        if path.startswith(SCALE)
    }
    base = plan.base.config.scale.model_dump()
    return [
        ScaleConfig.model_validate({**base, **dict(zip(drawn, values, strict=True))})
        for values in itertools.product(*drawn.values())
    ]


def place_of_scale(plan: "Plan") -> str:
    """Return where the user can change what a trial needs."""
    block = "search" if plan.space.config.search else "ablate"
    if asked_executor(plan) != "auto":
        return plan.place(block, "executor")
    place = plan.base.sources["scale.num_workers"]
    return plan.place(block) if place == DEFAULT else place


def drawn_by(plan: "Plan") -> dict[str, Distribution]:
    """Return what a search draws; nothing for an ablation."""
    return plan.space.config.search.space if plan.space.config.search else {}
