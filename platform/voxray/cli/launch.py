"""`voxray launch`: print the file that starts a command on SLURM or Kubernetes."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS
from voxray.cli.output import print_notes

if TYPE_CHECKING:
    from voxray.cluster.launch_files import Launch

Nodes = Annotated[int, typer.Option(min=1, help="machines; on Kubernetes at most so many")]
Gpus = Annotated[int, typer.Option(min=0, help="GPUs of each machine")]
Out = Annotated[Path | None, typer.Option(help="write the file instead of printing it")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Print the file that starts a command on SLURM or Kubernetes.", no_args_is_help=True
    )
    group.command("slurm", context_settings=EXTRA_ARGUMENTS)(slurm)
    group.command("kuberay", context_settings=EXTRA_ARGUMENTS)(kuberay)
    app.add_typer(group, name="launch")


def slurm(
    context: typer.Context,
    nodes: Nodes = 2,
    gpus: Gpus = 4,
    time: Annotated[str, typer.Option(help="the job's limit, as SLURM writes it")] = "24:00:00",
    out: Out = None,
) -> None:
    """Print an sbatch script for EXPERIMENT|SPACE, or for `-- train|tune|ablate …`."""
    from voxray.cluster.launch_files import slurm_script

    text = slurm_script(_launch(context.args, nodes, gpus), time)
    _give(text, out, "sbatch")


def kuberay(
    context: typer.Context,
    nodes: Nodes = 4,
    gpus: Gpus = 1,
    image: Annotated[str, typer.Option(help="what `make push IMAGE=…` pushed")] = "IMAGE",
    out: Out = None,
) -> None:
    """Print a KubeRay RayJob for EXPERIMENT|SPACE, or for `-- train|tune|ablate …`."""
    from voxray.cluster.launch_files import kuberay_job

    text = kuberay_job(_launch(context.args, nodes, gpus), image)
    _give(text, out, "kubectl apply -f")


def _launch(args: list[str], nodes: int, gpus: int) -> "Launch":
    from voxray.cluster.commands import checked_command, name_of
    from voxray.cluster.launch_files import Launch

    words = checked_command(args)
    return Launch(words, name_of(words), nodes, gpus)


def _give(text: str, out: Path | None, starter: str) -> None:
    if out is None:
        print(text, end="")
        return
    out.write_text(text)
    print_notes([f"start it by: {starter} {shlex.quote(str(out))}"])
