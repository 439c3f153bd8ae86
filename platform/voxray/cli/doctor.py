"""`voxray doctor`: what is wrong with this machine, and the fix."""

from dataclasses import asdict
from typing import Annotated

import typer

from voxray.cli.output import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False) -> None:
    """Check this machine; exit 1 when something needs mending."""
    from voxray.cluster.doctor import findings

    found = findings()
    rows = [{**asdict(f), "ok": "yes" if f.ok else "NO", "mend": "" if f.ok else f.mend} for f in found]
    print_table(rows, as_json=json)
    if not all(f.ok for f in found):
        raise typer.Exit(1)
