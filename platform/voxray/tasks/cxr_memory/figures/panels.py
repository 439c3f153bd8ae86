"""A grid of small plots, one per finding, as one plotly figure."""

from dataclasses import dataclass
from typing import Any

NUM_COLUMNS = 5
ROW_HEIGHT_PX = 190
TOP_PX, BOTTOM_PX = 56, 52  # the buttons and a heading; tick labels and the axes' titles
GAP_X, GAP_Y_PX = 0.035, 52


@dataclass(frozen=True)
class Panel:
    """One small plot: its heading, its traces, and where both axes end (they begin at 0)."""

    title: str
    traces: tuple[dict[str, Any], ...]
    end: float = 1.0


def grid(panels: list[Panel], x_title: str, y_title: str, *, own_ticks: bool = False) -> dict[str, Any]:
    """Return the panels in rows of NUM_COLUMNS, as wide each however few there are.

    Ticks are labelled at the left and the bottom only, unless the panels have axes of their own.
    """
    num_rows = -(-len(panels) // NUM_COLUMNS)
    inner_px = num_rows * ROW_HEIGHT_PX + (num_rows - 1) * GAP_Y_PX
    width = (1 - (NUM_COLUMNS - 1) * GAP_X) / NUM_COLUMNS
    layout: dict[str, Any] = {
        "height": inner_px + TOP_PX + BOTTOM_PX,
        "margin": {"l": 60, "r": 20, "t": TOP_PX, "b": BOTTOM_PX},
        "showlegend": False,
        "hovermode": "closest",
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, NUM_COLUMNS)
        axis = str(number + 1) if number else ""
        left, top = column * (width + GAP_X), 1 - row * (ROW_HEIGHT_PX + GAP_Y_PX) / inner_px
        is_lowest = number + NUM_COLUMNS >= len(panels)
        # An axis that ends where its line ends would cut the line's upper half off.
        common = {"range": [-0.02 * panel.end, 1.03 * panel.end], "nticks": 5, "tickangle": 0}
        layout[f"xaxis{axis}"] = common | {
            "domain": [left, min(1.0, left + width)],
            "anchor": f"y{axis}",
            "showticklabels": own_ticks or is_lowest,
            "title": {"text": x_title if is_lowest else "", "standoff": 4},
        }
        layout[f"yaxis{axis}"] = common | {
            "domain": [max(0.0, top - ROW_HEIGHT_PX / inner_px), top],
            "anchor": f"x{axis}",
            "showticklabels": own_ticks or column == 0,
            "title": {"text": y_title if column == 0 else "", "standoff": 4},
        }
        layout["annotations"].append(
            {
                "text": panel.title,
                "xref": f"x{axis} domain",
                "yref": f"y{axis} domain",
                "x": 0,
                "y": 1,
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
        data += [trace | {"xaxis": f"x{axis}", "yaxis": f"y{axis}"} for trace in panel.traces]
    return {"data": data, "layout": layout}
