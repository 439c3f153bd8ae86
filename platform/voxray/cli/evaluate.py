"""`voxray evaluate`: a trained model on a held-out split."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, overrides_from
from voxray.cli.output import print_notes, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate", context_settings=EXTRA_ARGUMENTS)(evaluate)


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="a run, RUN/best, RUN/last, a checkpoint or an export")],
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="which rows")] = "val",
    floor: Annotated[
        bool, typer.Option("--floor", help="fit a linear model on the training rows too")
    ] = False,
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="another prepared dataset than the run's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="where to write; default: RUN, for its best on its own dataset"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Print RUN's metrics on a split with 95 % intervals by group, and write them into RUN.

    [key=value …] are of sections that training does not read, e.g. decoding.num_beams=5.
    """
    from voxray.train.trained.evaluate_run import evaluate_run, results_folder
    from voxray.train.trained.load import load

    trained = load(run, overrides=overrides_from(context.args))
    result = evaluate_run(trained, split, floor, data, out)
    if json:
        print_table(result["table"], as_json=True)
    else:
        print_evaluation(result, run)
    if out is None and results_folder(trained, data) is None:
        print_notes(
            [
                "nothing was written: RUN keeps its best's evaluation on its own dataset with its own "
                "values; add --out FOLDER"
            ]
        )


def print_evaluation(result: dict[str, Any], run: Path) -> None:
    """Print what `evaluate_run` returned: the task's table, then a line per metric that it does not hold."""
    groups = "" if result["num_groups"] is None else f" of {result['num_groups']} groups"
    title = f"{run} · {result['split']}: {result['num_rows']} rows{groups}"
    print_table(result["table"], as_json=False, title=title)
    for line in _summary_lines(result):
        print(line)


def _summary_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    in_table = {row.get("metric") for row in result["table"]}
    for name, value in result["metrics"].items():
        if isinstance(value, list) or name in in_table:
            continue
        bounds = result["intervals"].get(name)
        interval = f"  95 % [{_number(bounds[0])}, {_number(bounds[1])}]" if bounds else ""
        reference = result["floor"]
        beside = f"  linear floor {_number(reference[name])}" if reference and bounds else ""
        said = f"{value:.0f}" if name.startswith("num_") else _number(value)
        lines.append(f"{name} {said}{interval}{beside}")
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
