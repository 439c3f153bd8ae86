"""`voxray train`: train an experiment on Ray, or check that it would."""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, experiment_and_overrides
from voxray.cli.output import print_notes, print_table

if TYPE_CHECKING:
    from voxray.config.resolve import Resolved
    from voxray.core.run_config import RunConfig
    from voxray.train.run_folder import RunFolder

# The key that Lightning has for it, in the sections that guides write it in.
FAST_DEV_RUN = ("fast_dev_run", "training.fast_dev_run", "trainer.fast_dev_run", "hparams.fast_dev_run")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", context_settings=EXTRA_ARGUMENTS)(train)


def train(
    context: typer.Context,
    experiment: Annotated[str | None, typer.Argument(help="experiment file, or its name")] = None,
    resume: Annotated[
        Literal["auto", "never", "must"], typer.Option(help="what to do when the run exists")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, run one batch, print the run's size")
    ] = False,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast-dev-run",
            "--fast_dev_run",
            help="a few updates of every stage, in a folder of its own; no run",
        ),
    ] = False,
    cfg: Annotated[
        Literal["job"] | None, typer.Option(help="job: print the config and stop, as Hydra does")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="--dry-run prints JSON")] = False,
) -> None:
    """Train EXPERIMENT with [key=value …] on Ray; the same command on an unfinished run resumes it."""
    from voxray.core.experiment import load_experiment

    reference, overrides = experiment_and_overrides(experiment, context.args)
    fast_overrides = [text for text in overrides if text.partition("=")[0] in FAST_DEV_RUN]
    wants_fast = fast or any(
        text.partition("=")[2].lower() not in ("false", "0", "null") for text in fast_overrides
    )
    resolved = load_experiment(reference, [text for text in overrides if text not in fast_overrides])
    said = [f"{text} is --fast-dev-run here" for text in fast_overrides]
    print_notes([*resolved.notes, *said, *resolved.config.told()])
    if cfg:
        from voxray.cli.show import print_config

        return print_config(resolved)
    from voxray.data.dataset import check_given

    check_given(resolved)  # says what to give, before Ray starts
    try:
        if dry_run:
            _print_plan(resolved, as_json)
        elif wants_fast:
            _fast_dev_run(resolved)
        else:
            _train(resolved, resume)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


def _train(resolved: "Resolved[Any]", resume: Literal["auto", "never", "must"]) -> None:
    from rich.console import Console

    from voxray.cluster.connect import connect, joins_a_cluster
    from voxray.cluster.prometheus import Prometheus
    from voxray.train.launch import launch

    # A private cluster has nobody who would ask for its metrics.
    also = [Prometheus()] if joins_a_cluster() else []
    with connect():
        run = launch(resolved, resume, Console(), also)
    evaluated = _write_results(run, resolved.config)
    print(f"run: {run.path}")
    print(f"next: voxray {'report' if evaluated else 'evaluate'} {run.path}")


def _write_results(run: "RunFolder", config: "RunConfig") -> bool:
    """Write and name what `checkpoints` wants of a finished run; return whether it is evaluated."""
    if not (config.checkpoints.export_stages or config.checkpoints.evaluate_at_end):
        return False
    from voxray.cli.evaluate import print_evaluation
    from voxray.train.trained.results import write_results

    results = write_results(run, config)
    for result in results.evaluations:
        print_evaluation(result, run.path)
    for file in results.files:
        print(f"wrote {file}")
    print_notes(results.notes)
    return bool(config.checkpoints.evaluate_at_end)


def _print_plan(resolved: "Resolved[Any]", as_json: bool) -> None:
    from voxray.cluster.connect import connect
    from voxray.train.dry_run.plan import needs_ray, plan
    from voxray.train.run_folder import run_folder

    with connect() if needs_ray(resolved.config) else contextlib.nullcontext():
        size = plan(resolved.config, lambda text: print_notes([text]))
    folder = run_folder(resolved.config).path
    print_table(size.rows(), as_json, title=f"{folder} (dry run, nothing written there)")


def _fast_dev_run(resolved: "Resolved[Any]") -> None:
    from rich.console import Console

    from voxray.cluster.connect import connect
    from voxray.train.fast_dev_run import NUM_UPDATES, fast_dev_run

    with connect():
        run, result = fast_dev_run(resolved, Console())
    values = ", ".join(f"{name} {v:.4g}" for name, v in result["metrics"].items() if isinstance(v, float))
    print(f"fast dev run: every stage trained {NUM_UPDATES} updates, was saved, loaded and evaluated")
    print(f"on {result['num_rows']} rows: {values}")
    print(f"this is no real run: its numbers mean nothing; {run.path} is made anew each time")
