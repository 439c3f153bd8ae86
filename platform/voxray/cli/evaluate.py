"""`voxray evaluate`: a finished run on a held-out split."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from voxray.cli.output import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(help="the run's folder")],
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="which rows")] = "val",
    floor: Annotated[
        bool, typer.Option("--floor", help="fit a linear model on the training rows too")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Print RUN's metrics on a split with 95 % intervals by group, and write them into RUN."""
    from voxray.train.trained import evaluate_run, load

    result = evaluate_run(load(run), split, floor)
    title = f"{run} · {split}: {result['num_rows']} rows of {result['num_groups']} groups"
    print_table(result["table"], as_json=json, title=title)
    if not json:
        for line in _summary_lines(result):
            print(line)


def _summary_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in result["metrics"].items():
        if isinstance(value, list):
            continue
        bounds = result["intervals"].get(name)
        interval = f"  95 % [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else ""
        reference = result["floor"]
        beside = f"  linear floor {reference[name]:.4f}" if reference and bounds else ""
        lines.append(f"{name} {value:.4f}{interval}{beside}")
    return lines
