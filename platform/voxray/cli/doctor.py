"""`voxray doctor`: what is wrong with this machine or cluster, and the fix."""

from dataclasses import asdict
from typing import Annotated

import typer

from voxray.cli.output import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    storage: Annotated[str, typer.Option(help="storage.path to look at: a folder or a URL")] = "runs",
    json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Check this machine and the cluster that it would use; exit 1 when something needs mending."""
    from voxray.cluster.doctor import all_checks, findings

    found = findings(all_checks(storage))
    rows = [{**asdict(f), "mend": "" if f.ok else f.mend} for f in found]
    print_table(rows if json else [{**row, "ok": "yes" if row["ok"] else "NO"} for row in rows], as_json=json)
    if not all(f.ok for f in found):
        raise typer.Exit(1)
