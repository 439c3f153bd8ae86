"""Error rates of each session, in their order: whether the decoder holds from day to day."""

import html
from collections.abc import Mapping

import numpy as np

from voxray.core.figures import BLUE, VERMILLION, Figure
from voxray.tasks.brain_text import scores

_FEWEST_SESSIONS = 2


def session_figures(columns: Mapping[str, np.ndarray], split: str) -> list[Figure]:
    """Return a figure of the rates by session; none where one session alone has transcripts.

    A trial's name begins with its session's.
    """
    rates = {name: errors for name, errors in _errors(columns).items() if errors.lengths_N.any()}
    if not rates:
        return []
    session_N = np.array([str(name).partition("/")[0] for name in columns["sample_id"]])
    known = next(iter(rates.values())).lengths_N > 0
    sessions = sorted(set(session_N[known].tolist()))
    if len(sessions) < _FEWEST_SESSIONS:
        return []
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [html.escape(session) for session in sessions],
            "y": [_rate(errors, session_N == session) for session in sessions],
            "line": {"color": color, "width": 1.5},
            "marker": {"size": 8},
            "hovertemplate": f"%{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
        }
        for (name, errors), color in zip(rates.items(), (BLUE, VERMILLION), strict=False)
    ]
    layout = {
        "height": 340,
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"title": {"text": "error rate"}, "rangemode": "tozero"},
    }
    caption = "All edits over all true lengths of a session's trials."
    return [Figure(f"Error rates by session, {split}", caption, {"data": traces, "layout": layout})]


def _errors(columns: Mapping[str, np.ndarray]) -> dict[str, scores.Errors]:
    found: dict[str, scores.Errors] = {}
    if "decoded_phonemes" in columns:
        pair = columns["decoded_phonemes"].tolist(), columns["phonemes"].tolist()
        found["per"] = scores.phoneme_errors(*pair)
    if "decoded" in columns:
        found["wer"] = scores.text_errors(columns["decoded"].tolist(), columns["text"].tolist())["wer"]
    return found


def _rate(errors: scores.Errors, is_own_N: np.ndarray) -> float | None:
    rate = scores.Errors(errors.edits_N[is_own_N], errors.lengths_N[is_own_N]).rate()
    return None if np.isnan(rate) else rate
