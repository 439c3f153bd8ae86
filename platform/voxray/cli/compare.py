"""`voxray compare RUN|STUDY …`: runs side by side."""

from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Annotated, Any

import typer

from voxray.cli.output import cell_text, print_table

# Long cells go on in the line below, so that a row fits the terminal; in a file, so many characters.
WIDTH_OF_A_FILE, NAMES, FEWEST = 160, 32, 14


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(_compare)


def _compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN|STUDY …", help="folders of runs; of a study its best trials")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="how many trials of a study")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Print words, status and values of RUNs, and only the config keys in which they differ."""
    from voxray.report.compare import compare

    found = compare(folders, top)
    if as_json:
        print_table(found.rows, as_json=True)
        return
    for word, value in found.shared.items():
        typer.echo(f"{word}: {cell_text(value)}")
    width = get_terminal_size((WIDTH_OF_A_FILE, 24)).columns - NAMES
    most = max(FEWEST, width // (len(found.rows[0]) - 1) - 3)
    print_table([line for row in found.differing for line in _lines(row, most)], as_json=False)


def _lines(row: dict[str, Any], most: int) -> list[dict[str, str]]:
    """Return a row as lines whose cells have at most so many characters."""
    cells = {
        column: wrap(cell_text(value), NAMES if column == "what" else most, break_on_hyphens=False) or [""]
        for column, value in row.items()
    }
    height = max(map(len, cells.values()))
    return [
        {column: lines[place] if place < len(lines) else " " for column, lines in cells.items()}
        for place in range(height)
    ]
