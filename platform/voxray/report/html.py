"""Renders parts into one self-contained HTML file: plotly.js inlined, nothing fetched, all escaped."""

import base64
import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from voxray.config.errors import InputError
from voxray.core.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from voxray.report.page import Part, number

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_AXIS = {
    "gridcolor": "#E5E7EB",
    "linecolor": "#9CA3AF",
    "zerolinecolor": "#D1D5DB",
    "showline": True,
    "ticks": "outside",
    "tickcolor": "#9CA3AF",
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13}},
}
# What every figure looks like where it does not say otherwise.
PLOT_TEMPLATE = {
    "layout": {
        "colorway": [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY],
        "font": {"family": _FONT, "size": 12, "color": "#1F2937"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "hovermode": "x unified",
    }
}

# Draws each figure from the JSON beside it. Since plotly.js 4 a button that uploads the chart to plotly's
# cloud is on by default: here it is off, and so is the logo that links there.
DRAW = """
const template = JSON.parse(document.getElementById("plot-template").textContent);
const config = {
  displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", displayModeBar: "hover",
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};
for (const holder of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(holder.querySelector("script").textContent);
  const place = holder.querySelector(".canvas");
  Plotly.newPlot(place, figure.data, {...figure.layout, template}, config);
}
"""


def render(parts: list[Part]) -> str:
    """Return the page of one or several runs and studies."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("voxray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_function"] = _dump
    environment.filters |= {"number": number, "base64": lambda png: base64.b64encode(png).decode()}
    scripts = [get_plotlyjs(), DRAW]
    return environment.get_template("report.html.j2").render(
        parts=parts,
        title=", ".join(part.name for part in parts),
        template=PLOT_TEMPLATE,
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - ours and plotly's, no user text
        hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("voxray"),
    )


def write_report(out: Path, parts: list[Part]) -> None:
    """Write the page to `out`, whole or not at all. Raises InputError where it cannot be written."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    text = render(parts)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"{out} cannot be written: {error.strerror}; name another file by --out") from error


def _sha256(script: str) -> str:
    """Return a script's hash as a Content-Security-Policy names it: scripts that are not listed never run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _dump(value: Any, **options: Any) -> str:
    """Return JSON as a browser reads it: NaN is null, numpy numbers are numbers."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":"), **options)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value
