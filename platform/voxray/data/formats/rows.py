"""What several readers of raw formats share: one split per group, and an error's first line."""

from collections.abc import Sequence

from voxray.config.errors import InputError
from voxray.core.task import RawRow

MAX_SHOWN = 20
MAX_REASON = 200  # characters


def one_split_per_group(rows: Sequence[RawRow], group: str, table: str, called: str, mend: str) -> None:
    """Check that no group is declared in two splits, or with and without one.

    Raises InputError that names `table`, the group (as `called`, e.g. patient), two of its rows and the mend.
    """
    first: dict[str, RawRow] = {}
    problems: dict[str, str] = {}
    for row in rows:
        other = first.setdefault(row[group], row)
        if other.get("split") != row.get("split"):
            here, there = (
                f"{r['sample_id']} ({r['origin']}) in {r.get('split', 'no split')}" for r in (other, row)
            )
            problems.setdefault(
                row[group], f"{table}: {called} '{row[group]}' is in two splits: {here}, {there}; {mend}"
            )
    if problems:
        raise InputError(*list(problems.values())[:MAX_SHOWN])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind; cut, as numpy quotes whole headers."""
    return (str(error).splitlines() or [""])[0][:MAX_REASON] or type(error).__name__
