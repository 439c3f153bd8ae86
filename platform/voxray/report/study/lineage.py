"""PBT: which member went on from which, drawn as members over time, coloured by whose weights they carry."""

from bisect import bisect_right
from collections import Counter
from typing import Any

from voxray.core.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Figure
from voxray.report.page import Block, Table, number
from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Exploit, Trial

COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
Change = tuple[float, int]  # epochs, whose weights it carries from then on


def lineage_blocks(study: StudyFiles) -> list[Block]:
    """Return the lineage and the table of exploits; nothing where no member went on from another."""
    members = list({trial.index: trial for trial in study.trials}.values())
    if not any(member.exploits for member in members):
        return []
    return [_lineage_figure(members), _exploit_table(members)]


def origins(members: list[Trial]) -> dict[int, list[Change]]:
    """Return, by member, from when on it carries whose weights: its own, then its donors' of that time."""
    found: dict[int, list[Change]] = {member.index: [(0.0, member.index)] for member in members}
    exploits = sorted(
        (exploit.epochs, member.index, exploit.donor) for member in members for exploit in member.exploits
    )
    # Exploits of one moment all take what the donors had before it.
    for moment in dict.fromkeys(epochs for epochs, _, _ in exploits):
        now = [(member, donor) for epochs, member, donor in exploits if epochs == moment]
        carried = {donor: _carried(found.get(donor, [(0.0, donor)]), moment) for _, donor in now}
        for member, donor in now:
            found[member].append((moment, carried[donor]))
    return found


def _carried(changes: list[Change], moment: float) -> int:
    place = bisect_right([epochs for epochs, _ in changes], moment)
    return changes[place - 1][1]


def _lineage_figure(members: list[Trial]) -> Figure:
    found = origins(members)
    ends = {member.index: _end(member) for member in members}
    last = max(ends.values())
    survivors = Counter(changes[-1][1] for changes in found.values())
    colors = dict(zip([origin for origin, _ in survivors.most_common()], COLORS, strict=False))
    data = [_lines(f"from {o}", {o}, found, ends, color) for o, color in sorted(colors.items())]
    data.append(_lines("from others", set(found) - set(colors), found, ends, GREY))
    arrows = [_arrow(member, exploit) for member in members for exploit in member.exploits]
    layout = {
        "height": 130 + 30 * len(members),
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"title": {"text": "epochs"}, "range": [0, last * 1.02]},
        "yaxis": {
            "title": {"text": "member"},
            "tickvals": sorted(found),
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
        "annotations": arrows,
    }
    caption = (
        "A line per member; its colour says with whose weights it began the stretch, an arrow where it took "
    )
    caption += "them over. At the end "
    caption += ", ".join(
        f"{num} of {len(members)} descend from member {origin}" for origin, num in survivors.most_common(3)
    )
    caption += "." if len(survivors) <= 3 else ", the others from other members."
    return Figure("Lineage", caption, {"data": data, "layout": layout})


def _lines(
    name: str, origins: set[int], found: dict[int, list[Change]], ends: dict[int, float], color: str
) -> dict[str, Any]:
    """Return all stretches that carry the weights of some members, as one trace with gaps."""
    x: list[float | None] = []
    y: list[int | None] = []
    text: list[str] = []
    for member, changes in found.items():
        stops = [*(epochs for epochs, _ in changes[1:]), max(ends[member], changes[-1][0])]
        for (start, carried), stop in zip(changes, stops, strict=True):
            if carried in origins:
                x += [start, stop, None]
                y += [member, member, None]
                text += [f"member {member} with the weights of {carried}"] * 3
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": color, "width": 7},
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
    }


def _arrow(member: Trial, exploit: Exploit) -> dict[str, Any]:
    where = {"x": exploit.epochs, "y": member.index, "ax": exploit.epochs, "ay": exploit.donor}
    look = {"arrowhead": 2, "arrowsize": 1, "arrowwidth": 1.3, "arrowcolor": GREY, "standoff": 4}
    return where | look | {"axref": "x", "ayref": "y", "showarrow": True, "text": ""}


def _end(member: Trial) -> float:
    """Return how far a member is known to have come, in epochs."""
    times = [point.epochs for point in member.curve if point.epochs is not None]
    return max([*times, *(exploit.epochs for exploit in member.exploits)], default=0.0)


def _exploit_table(members: list[Trial]) -> Table:
    paths = list(dict.fromkeys(path for m in members for exploit in m.exploits for path in exploit.values))
    rows = [
        (
            number(exploit.epochs),
            str(member.index),
            str(exploit.donor),
            *(exploit.values.get(p) for p in paths),
        )
        for member in members
        for exploit in member.exploits
    ]
    rows.sort(key=lambda row: (float(row[0].replace(",", "")), int(row[1])))
    columns = ("epochs", "member", "went on from", *paths)
    return Table(columns, rows, fold=f"All {len(rows)} times that a member went on from another")
