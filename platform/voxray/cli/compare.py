"""`voxray compare RUN …`: runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from voxray.cli.output import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(_compare)


def _compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="folders of runs")],
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Print words, status and values of RUNs, and only the config keys in which they differ."""
    from voxray.report.compare import compare

    print_table(compare(runs), as_json=as_json)
