"""`voxray report RUN|STUDY …`: one self-contained HTML page."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="report")(_report)


def _report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN|STUDY …", help="folders of runs or studies")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="default: report.html in the first folder", show_default=False),
    ] = None,
) -> None:
    """Write one HTML page about runs and studies, which works offline; print its path."""
    from voxray.report.build import report

    typer.echo(str(report(folders, out)))
