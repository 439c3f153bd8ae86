"""Errors over wavelengths, and spectra of a few pixels: plain plotly values. No torch here."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from voxray.core.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from voxray.tasks.hyperspectral.figures.shown import Shown

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE)
NUM_PIXELS = 4
HEIGHT_PX = 340
MARKER_PX, SMALL_MARKER_PX = 7, 3
MANY_BANDS = 60  # from here on large markers would hide the line


def band_axis(wavelengths_C: np.ndarray) -> tuple[list[float], str]:
    """Return where bands stand and what the axis is called; band numbers where wavelengths are not known."""
    if np.isnan(wavelengths_C).any():
        return list(map(float, range(len(wavelengths_C)))), "band"
    return [float(nm) for nm in wavelengths_C], "wavelength in nm"


def error_plot(
    wavelengths_C: np.ndarray, errors: Sequence[tuple[str, Sequence[float | None]]]
) -> dict[str, Any]:
    """Return squared errors over the bands, a line each."""
    x, title = band_axis(wavelengths_C)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": x,
            "y": list(values),
            "line": {"color": colour, "width": 2},
            "hovertemplate": "%{x}: %{y:.3g}<extra></extra>",
        }
        for (name, values), colour in zip(errors, COLOURS, strict=False)
    ]
    return {
        "data": traces,
        "layout": {
            "height": HEIGHT_PX,
            "xaxis": {"title": {"text": title}},
            "yaxis": {"title": {"text": "mean squared error"}, "rangemode": "tozero"},
            "showlegend": len(traces) > 1,
        },
    }


def chosen_pixels(shown: Shown, num: int = NUM_PIXELS) -> list[tuple[int, int]]:
    """Return up to `num` measured pixels (row, column), spread over the order of their mean values: from the
    darkest to the brightest.
    """
    places = np.argwhere(shown.measured_HW)
    if not len(places):
        return []
    order = shown.true_CHW.mean(0)[shown.measured_HW].argsort(kind="stable")
    ranks = np.linspace(0.05, 0.95, min(num, len(places))) * (len(places) - 1)
    return [(int(row), int(column)) for row, column in places[order[ranks.astype(int)]]]


def spectra_plot(shown: Shown) -> dict[str, Any]:
    """Return the true and the made spectra of a few pixels; dots mark the bands that were hidden there."""
    assert shown.made_CHW is not None
    assert shown.hidden_CHW is not None
    x, title = band_axis(shown.wavelengths_C)
    marker = MARKER_PX if len(x) < MANY_BANDS else SMALL_MARKER_PX
    traces: list[dict[str, Any]] = []
    for (row, column), colour in zip(chosen_pixels(shown), COLOURS, strict=False):
        name = f"row {row}, column {column}"
        hidden_C = shown.hidden_CHW[:, row, column]
        common = {"type": "scatter", "x": x, "legendgroup": name, "hovertemplate": "%{x}: %{y:.3f}"}
        traces.append(
            common
            | {
                "mode": "lines",
                "name": name,
                "y": [float(value) for value in shown.true_CHW[:, row, column]],
                "line": {"color": colour, "width": 2},
            }
        )
        traces.append(
            common
            | {
                "mode": "lines+markers",
                "showlegend": False,
                "name": f"{name}, made",
                "y": [float(value) for value in shown.made_CHW[:, row, column]],
                "line": {"color": colour, "width": 1, "dash": "dot"},
                "marker": {"color": colour, "size": [marker * int(hidden) for hidden in hidden_C]},
            }
        )
    layout = {
        "height": HEIGHT_PX,
        "xaxis": {"title": {"text": title}},
        "yaxis": {"title": {"text": "value"}},
    }
    return {"data": traces, "layout": layout}
