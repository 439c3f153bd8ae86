"""`voxray show`: an experiment's values and their sources, a guide's file in our words, the JSON Schema."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, experiment_and_overrides
from voxray.cli.output import aligned, print_notes, print_table
from voxray.config.schema import plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from voxray.config.resolve import Resolved
    from voxray.train.config import TrainingConfig


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(context_settings=EXTRA_ARGUMENTS)(show)


def print_config(resolved: "Resolved[Any]") -> None:
    """Print every value and where it comes from."""
    print("\n".join(_grouped(rows_of(resolved))))


def show(
    context: typer.Context,
    experiment: Annotated[
        str | None, typer.Argument(help="A file, a bare name, or with --schema a task.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a task's experiment files.")
    ] = False,
) -> None:
    """Show an experiment's resolved config and where each value came from: `show EXPERIMENT [key=value …]`.

    A guide's whole file (its own keys, no `task`) is shown in our words, then every key that has none.
    """
    from voxray.core.experiment import find_experiment, load_experiment
    from voxray.core.guide import read_guide
    from voxray.core.registry import TASKS

    reference, overrides = experiment_and_overrides(experiment, context.args)
    if schema and (reference in TASKS or ":" in reference):
        return print(schema_text(reference))
    file, notes = find_experiment(reference)
    guide = read_guide(file, overrides)
    resolved = guide.resolved if guide else load_experiment(reference, overrides)
    if schema:
        return print(schema_text(resolved.config.task))
    print_notes([*(notes if guide else []), *resolved.notes, *resolved.config.told()])
    unmapped = guide.unmapped if guide else []
    if as_json:
        left = [
            {"key": u.key, "value": u.node.plain(), "source": u.node.source, "not_mapped": u.reason}
            for u in unmapped
        ]
        return print_table([*rows_of(resolved), *left], as_json=True)
    print("\n".join(_grouped(rows_of(resolved))))
    if unmapped:
        rows = [[f"  {u.key}", plain_text(u.node.plain()), u.node.source, u.reason] for u in unmapped]
        print("\n".join(["", "not mapped:", *aligned(rows)]))
    return None


def rows_of(resolved: "Resolved[Any]") -> list[dict[str, Any]]:
    """Return key, value and source of every value, those that follow from others among them."""
    from voxray.config.resolve import leaves

    rows = [
        {"key": ".".join(path), "value": value, "source": resolved.sources[".".join(path)]}
        for path, value in leaves(resolved.config.model_dump(mode="json"))
    ]
    for place, training in _trainings(resolved.config):
        rows = _with_batch_sizes(rows, place, training, resolved.config.scale.most_workers)
    return rows


def _trainings(config: Any) -> "Iterator[tuple[str, TrainingConfig]]":
    """Yield where the keys of `training`, and of each declared stage, stand, and the values that hold."""
    yield "training", config.training
    if config.stages:
        yield from ((f"stages.{stage.entry}", stage.training) for stage in config.resolved_stages())


def _with_batch_sizes(
    rows: list[dict[str, Any]], place: str, training: "TrainingConfig", workers: int
) -> list[dict[str, Any]]:
    """Return the rows with both spellings of the batch size and the rows per update, whichever was given."""
    keys = [f"{place}.{name}" for name in ("batch_size", "batch_size_per_worker", "rows_per_update")]
    sources = {row["key"]: row["source"] for row in rows if row["value"] is not None}
    size, per_worker = training.batch_size, training.batch_size_per_worker
    least, rest = divmod(size, workers)
    if per_worker is None:
        sources.setdefault(keys[0], "computed: as in training")
        sources[keys[1]] = f"computed: batch_size / scale.num_workers{', at most' if rest else ''}"
        per_worker = least + bool(rest)
    else:
        sources[keys[0]] = "computed: batch_size_per_worker × scale.num_workers"
        sources.setdefault(keys[1], "computed: as in training")
    sources[keys[2]] = "computed: batch_size × accumulate_grad_batches"
    values = (size, per_worker, size * training.accumulate_grad_batches)
    made = [{"key": k, "value": v, "source": sources[k]} for k, v in zip(keys, values, strict=True)]
    inside = [i for i, row in enumerate(rows) if f"{row['key']}.".startswith(f"{place}.")]
    at = inside[0] if place == "training" else inside[-1] + 1
    before, after = ([row for row in part if row["key"] not in keys] for part in (rows[:at], rows[at:]))
    return [*before, *made, *after]


def schema_text(task: str) -> str:
    """Return the JSON Schema of a task's experiment files, as committed under docs/schemas."""
    from voxray.config.json_schema import experiment_schema
    from voxray.core.registry import config_class

    return json.dumps(experiment_schema(config_class(task)), indent=2, ensure_ascii=False)


def _grouped(rows: list[dict[str, Any]]) -> list[str]:
    """Return aligned lines under a heading for each section, the experiment's own values first."""
    rows = sorted(rows, key=lambda row: "." in row["key"])  # stable: sections keep their order
    lines = aligned([[_indented(row["key"]), plain_text(row["value"], 120), row["source"]] for row in rows])
    grouped: list[str] = []
    section = ""
    for row, line in zip(rows, lines, strict=True):
        head = row["key"].partition(".")[0] if "." in row["key"] else ""
        grouped += [] if head == section else ["", head]
        section = head
        grouped.append(line)
    return grouped


def _indented(key: str) -> str:
    return f"  {key.partition('.')[2]}" if "." in key else key
