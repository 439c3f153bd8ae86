"""`voxray train`: train an experiment on Ray."""

import sys
from typing import Annotated, Literal

import typer

from voxray.cli.arguments import experiment_and_overrides
from voxray.cli.output import print_notes, print_table

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", context_settings=OVERRIDES)(train)


def train(
    context: typer.Context,
    experiment: Annotated[str | None, typer.Argument(help="experiment file, or its name")] = None,
    resume: Annotated[
        Literal["auto", "never", "must"], typer.Option(help="what to do when the run exists")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print the run's size")
    ] = False,
) -> None:
    """Train EXPERIMENT with [key=value …] on Ray; the same command on an unfinished run resumes it."""
    from voxray.core.experiment import load_experiment

    reference, overrides = experiment_and_overrides(experiment, context.args)
    resolved = load_experiment(reference, overrides)
    print_notes([*resolved.notes, *resolved.config.told()])

    from rich.console import Console

    from voxray.cluster.connect import connect
    from voxray.train.launch import launch, plan, run_folder

    if not resolved.config.data.path:
        from voxray.data.dataset import dataset_path

        dataset_path(resolved.config)  # says what to give, before Ray starts
    with connect():
        if dry_run:
            size = plan(resolved.config)
            rows = [
                {"what": name.removeprefix("num_"), "number": value} for name, value in vars(size).items()
            ]
            print_table(
                rows, as_json=False, title=f"{run_folder(resolved.config).path} (dry run, nothing written)"
            )
            return
        try:
            run = launch(resolved, resume, Console())
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            raise typer.Exit(130) from None
    print(f"run: {run.path}")
    print(f"next: voxray evaluate {run.path}")
