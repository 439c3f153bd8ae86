"""`voxray data synth|prepare|inspect|stats|verify`: raw files and datasets."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, overrides_from
from voxray.cli.output import clean, print_notes, print_table
from voxray.config.errors import InputError

Dataset = Annotated[Path, typer.Argument(help="a prepared dataset's folder")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
SECTION = "data.prepare"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    data = typer.Typer(name="data", help="Make, prepare and check datasets.", no_args_is_help=True)
    data.command("synth")(synth)
    data.command("prepare", context_settings=EXTRA_ARGUMENTS)(prepare)
    data.command("inspect")(inspect)
    data.command("stats")(stats)
    data.command("verify")(verify)
    app.add_typer(data)


def synth(
    task: Annotated[str, typer.Argument(help="the task whose raw format is wanted")],
    out: Annotated[Path, typer.Argument(help="folder to make")],
    size: Annotated[
        Literal["tiny", "small", "full"], typer.Option(help="≤ 20 MB, ≤ 500 MB, ≤ 6 GB")
    ] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="the same seed makes the same bytes")] = 0,
) -> None:
    """Write synthetic raw files of TASK, in the format of the real ones, to OUT."""
    from voxray.core.experiment import default_config
    from voxray.core.registry import task_data

    config = default_config(task, {}, source="command line").config
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"'{out}' already exists and is not empty; name another folder, or remove it first")
    report = task_data(task)(config).synth(out, size, seed)
    print(f"{report.num_rows} rows of raw data in {out}")
    kinds = {"oracle ceiling": report.oracle, "linear floor": report.floor, "chance": report.chance}
    print_table([{"": kind, report.metric: value} for kind, value in kinds.items()], as_json=False)
    print_notes([f"{name}: {text}" for name, text in report.notes.items()])
    print(f"next: voxray data prepare {task} {out} {out}-prepared")


def prepare(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="the task that reads the raw files")],
    raw: Annotated[str, typer.Argument(help="folder of raw files, or a URL of one")],
    out: Annotated[Path, typer.Argument(help="folder of the dataset to make")],
    on_error: Annotated[
        Literal["fail", "quarantine"] | None, typer.Option(help="what to do with rows that cannot be used")
    ] = None,
) -> None:
    """Make the dataset OUT from RAW on Ray; [key=value …] are keys of `data.prepare`, e.g. image_size=224."""
    from voxray.core.experiment import default_config

    values = _values(overrides_from(context.args))
    if on_error is not None:
        values[f"{SECTION}.on_error"] = on_error
    resolved = default_config(task, values, source="command line")
    print_notes(resolved.notes)

    from voxray.cluster.connect import connect
    from voxray.core.registry import task_data
    from voxray.data.location import is_url, without_options
    from voxray.data.manifest import QUARANTINE_NAME
    from voxray.data.prepare import leftovers
    from voxray.data.prepare import prepare as run
    from voxray.data.raw_copy import local_raw

    print_notes([f"'{path}' is left of an attempt that was killed; remove it" for path in leftovers(out)])
    reader = task_data(task)(resolved.config)
    source = local_raw(reader, raw, lambda text: print_notes([text]))
    with connect():
        report = run(reader, source, out, _show_progress, without_options(raw) if is_url(raw) else "")
    counts = [{"split": split, **asdict(count)} for split, count in report.manifest.counts.items()]
    print_table(counts, as_json=False, title=f"dataset: {out}")
    if report.quarantined:
        print(f"{len(report.quarantined)} rows set aside, listed in {out / QUARANTINE_NAME}")
    print(f"next: voxray data verify {out}")


def inspect(dataset: Dataset, as_json: Json = False) -> None:
    """Print what DATASET holds: source, splits, columns, missing values, statistics, samples, shards."""
    from voxray.data.inspect import inspect as tables

    _print_tables(tables(dataset), as_json)


def stats(dataset: Dataset, as_json: Json = False) -> None:
    """Print the statistics of DATASET's training rows; lengths and label counts of every split."""
    from voxray.data.inspect import stats as tables

    _print_tables(tables(dataset), as_json)


def verify(dataset: Dataset, as_json: Json = False) -> None:
    """Check every byte and row of DATASET; exit 2 with every problem when it is not whole."""
    from voxray.data.manifest import load_manifest
    from voxray.data.verify import examine

    found = examine(dataset)
    if as_json:
        told = {"problem": found.problems, "note": found.notes}
        print_table([{kind: text} for kind, texts in told.items() for text in texts], as_json)
        raise typer.Exit(InputError.exit_code if found.problems else 0)
    print_notes(found.notes)
    if found.problems:
        raise InputError(*found.problems)
    manifest = load_manifest(dataset)
    rows = sum(counts.rows for counts in manifest.counts.values())
    print(f"ok: {len(manifest.shards)} shards, {rows} rows, splits {', '.join(manifest.splits)}")


def _values(overrides: list[str]) -> dict[str, Any]:
    """Return dotted path → value; a key that is not below `data` is one of `data.prepare`."""
    from voxray.config.overrides import parse_override

    parsed = [parse_override(override) for override in overrides]
    return {
        ".".join(path if path[0] == "data" else (*SECTION.split("."), *path)): node.plain()
        for path, node in parsed
    }


def _print_tables(tables: dict[str, list[dict[str, Any]]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(clean(tables), ensure_ascii=False, indent=2))
        return
    for number, (title, rows) in enumerate(tables.items()):
        print("\n" * bool(number), end="")
        print_table(rows, as_json=False, title=title)


def _show_progress(num_done: int, num_shards: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\rshards: {num_done}/{num_shards}",
            end="\n" * (num_done == num_shards),
            file=sys.stderr,
            flush=True,
        )
