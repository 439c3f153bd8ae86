"""What is wrong with a scheduler for a search, found before its trials start."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from voxray.config.errors import InputError
from voxray.core.run_config import RunConfig
from voxray.data.location import is_url, without_options
from voxray.train.config import TrainingConfig
from voxray.tune.config import ObjectiveConfig, SearchConfig
from voxray.tune.space.draw import probes

if TYPE_CHECKING:
    from voxray.tune.plan import Plan

# A run can go on with another value of these. Others change the order of the data, what is saved, or its end.
MAY_CHANGE = (
    "learning_rate",
    "weight_decay",
    "betas",
    "eps",
    "momentum",
    "schedule",
    "min_lr_fraction",
    "cycle_momentum",
    "clip_grad_norm",
    "ema_decay",
)
Place = Callable[..., str]  # where a key is declared, e.g. place("search", "scheduler")


def scheduler_problems(
    search: SearchConfig, objectives: Sequence[ObjectiveConfig], base: Mapping[str, Any], place: Place
) -> list[str]:
    """Return what is wrong with a scheduler; `base` are the experiment's values by dotted path."""
    config, where = search.scheduler, place("search", "scheduler")
    if config.name == "median" and len(objectives) > 1:
        names = " and ".join(objective.metric for objective in objectives)
        return [f"{where}: scheduler median looks at one objective, and {names} are several; take asha"]
    if config.name == "hyperband" and config.unit == "steps" and config.max_steps is None:
        return [
            f"{where}: scheduler hyperband with unit: steps must know how many updates a whole trial makes; "
            "set max_steps to them"
        ]
    return list(_population_problems(search, base, place)) if config.name == "pbt" else []


def _population_problems(search: SearchConfig, base: Mapping[str, Any], place: Place) -> Iterator[str]:
    storage = str(base.get("storage.path", ""))
    if is_url(storage):
        yield (
            f"{place('search', 'scheduler')}: scheduler pbt links a trial's checkpoint into another trial, "
            f"which storage.path={without_options(storage)} cannot; name a folder that all machines see"
        )
    for path, entry in search.space.items():
        if entry.kind != "fixed" and not may_change(path):
            yield (
                f"{place('search', 'space', path)}: {path}: with scheduler pbt a trial goes on from the "
                f"state of another, which depends on it; make it fixed, or take another scheduler"
            )
        elif path.endswith("ema_decay") and None in probes(entry):
            yield (
                f"{place('search', 'space', path)}: {path}: with scheduler pbt an average is kept always "
                "or never; take null out"
            )
    steps = base.get("training.validate_every.steps")
    kind, evaluated = ("steps", steps) if steps else ("epochs", base.get("training.validate_every.epochs", 1))
    saved = base.get(f"checkpoints.save_every_n_{kind}")
    if not saved or evaluated % saved:
        yield (
            f"{place('search', 'scheduler')}: scheduler pbt needs a checkpoint of each evaluation, which is "
            f"every {evaluated} {kind}; set checkpoints.save_every_n_{kind}={evaluated}"
        )


def may_change(path: str) -> bool:
    """Return whether a run may be able to go on with another value of a key: the optimiser's numbers, the
    loss's weights, and what a task's own sections hold, where no shape depends on it (`check_shapes`).
    """
    key = _in_section(path)
    return _is_of_task(key) or key.removeprefix("training.").partition(".")[0] in MAY_CHANGE


def _in_section(path: str) -> str:
    """Return a stage's key as one of the run: `model.dropout` for `stages.1.model.dropout`."""
    return path.split(".", 2)[-1] if path.startswith("stages.") else path


def _is_of_task(key: str) -> bool:
    """Return whether a key lies in a task's own section, such as its model's, or in its objective."""
    first = key.partition(".")[0]
    return first not in RunConfig.model_fields and first not in TrainingConfig.model_fields


def check_shapes(plan: "Plan") -> None:
    """Raise InputError for a key of a population that shapes of the model depend on: another member's weights
    would not fit. Builds the models without memory; the dataset is there.
    """
    if plan.search.scheduler.name != "pbt":
        return
    shapes = _shapes(plan.base.config)
    problems: list[str] = []
    for path, entry in plan.search.space.items():
        key = _in_section(path)
        if entry.kind == "fixed" or not _is_of_task(key) or key.startswith("objective."):
            continue
        place = plan.place("search", "space", path)
        for value in probes(entry):
            try:
                config = plan.base.with_values({path: value}, place).config
            except InputError:
                continue  # it needs other keys beside it
            if _shapes(config) != shapes:
                problems.append(
                    f"{place}: {path}: with scheduler pbt a trial goes on from the weights of another, whose "
                    f"shapes depend on it; make it fixed, or take another scheduler"
                )
                break
    if problems:
        raise InputError(*problems)


def _shapes(config: RunConfig) -> list[dict[str, tuple[int, ...]]]:
    """Return the shape of every parameter and buffer, by name, for each stage."""
    import torch

    from voxray.core.registry import task_class
    from voxray.data.dataset import dataset_path
    from voxray.data.manifest import load_manifest

    manifest = load_manifest(dataset_path(config))
    shapes: list[dict[str, tuple[int, ...]]] = []
    for stage in config.resolved_stages():
        task = task_class(config.task)(stage.config, manifest.statistics, manifest.schema)
        with torch.device("meta"):
            model = task.build_model()
        shapes.append({name: tuple(value.shape) for name, value in model.state_dict().items()})
    return shapes
