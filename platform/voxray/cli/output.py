"""Print tables and notes: aligned text or a rich table for people, one JSON list for programs."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_table(rows: Sequence[Mapping[str, Any]], as_json: bool, title: str = "") -> None:
    """Print rows with the union of their keys as columns; JSON writes NaN and infinities as null."""
    if as_json:
        print(json.dumps([clean(row) for row in rows], ensure_ascii=False, indent=2, default=str))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell_text(row.get(column)) for column in columns] for row in rows]
    if not rows:
        print(f"{title}: none" if title else "none")
    elif sys.stdout.isatty():
        _print_rich(columns, cells, title)
    else:
        print("\n".join([title] * bool(title) + aligned([columns, *cells])))


def print_notes(notes: Sequence[str]) -> None:
    """Print what the user should be told, to stderr, so that tables and JSON stay clean."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def cell_text(value: Any) -> str:
    """Return a value as a table shows it: four significant digits, lists joined by commas, `-` if empty."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(item) for item in value) or "-"
    return " ".join(str(value).split())


def clean(value: Any) -> Any:
    """Return a value with NaN and infinities replaced by None, as JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def _print_rich(columns: list[str], cells: list[list[str]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))  # Text: a value with [brackets] is no markup
    Console().print(table)
