"""`voxray submit`: run a command on a Ray cluster as a job, and follow it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS
from voxray.cli.output import print_notes, print_table
from voxray.config.errors import InputError

if TYPE_CHECKING:
    from voxray.cluster.jobs import Client


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("submit", context_settings=EXTRA_ARGUMENTS)(submit)


def submit(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            help="the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine"
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="do not follow the job")] = False,
    attach: Annotated[
        str | None, typer.Option(metavar="JOB", help="follow a job that runs or has run")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="let a job save and end")] = None,
    jobs: Annotated[bool, typer.Option("--list", help="name the cluster's jobs")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print --list as JSON")] = False,
) -> None:
    """Run `-- train|tune|ablate …` on a cluster from this checkout; exit with the command's own exit code.

    The job's name is the run's. Ctrl-C stops following, not the job.
    """
    from voxray.cluster.jobs import connect_jobs

    if sum((bool(context.args), attach is not None, stop is not None, jobs)) != 1:
        raise InputError("give one of: a command after `--`, --attach JOB, --stop JOB, --list")
    words = _checked(context.args) if context.args else ()
    client, url = connect_jobs(address)
    if jobs:
        _list(client, as_json)
    elif stop is not None:
        _stop(client, stop)
    else:
        job = attach if attach is not None else _begin(client, words, url)
        if not no_wait:
            _follow(client, job)


def _list(client: "Client", as_json: bool) -> None:
    from voxray.cluster.jobs import status_of

    rows = [
        {"job": job.submission_id, "status": status_of(job), "command": job.entrypoint}
        for job in client.list_jobs()
        if job.submission_id
    ]
    print_table(rows, as_json)


def _stop(client: "Client", job: str) -> None:
    from voxray.cluster.jobs import INTERRUPTED, stop

    code = stop(client, job)
    print_notes([f"{job} has ended; the same command goes on from what it saved"])
    raise typer.Exit(0 if code == INTERRUPTED else code)


def _checked(args: list[str]) -> tuple[str, ...]:
    from voxray.cluster.commands import checked_command

    return checked_command(args)


def _begin(client: "Client", words: tuple[str, ...], url: str) -> str:
    from voxray.cluster.commands import name_of
    from voxray.cluster.jobs import runtime_env, submit
    from voxray.cluster.package import package_of
    from voxray.config.files import project_root

    root = project_root(Path.cwd())
    if root is None:
        raise InputError(f"{Path.cwd()} is in no checkout (a folder with experiments/); submit from one")
    name = name_of(words)
    print_notes(package_of(root).lines())
    job = submit(client, words, name, runtime_env(root / "runtime_env.yaml", root))
    print_notes([f"job {job} on {url}; follow it by `voxray submit --attach {job}`"])
    return job


def _follow(client: "Client", job: str) -> None:
    from voxray.cluster.jobs import follow

    try:
        code = follow(client, job, _write)
    except KeyboardInterrupt:
        print(
            f"{job} goes on; `voxray submit --attach {job}` follows it, `voxray submit --stop {job}` ends it",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def _write(text: str) -> None:
    print(text, end="", flush=True)
