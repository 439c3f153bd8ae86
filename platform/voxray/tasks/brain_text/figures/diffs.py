"""Decoded texts beside the true ones, word by word in colours."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure
from voxray.tasks.brain_text.edits import aligned, edit_distance
from voxray.tasks.brain_text.units import plain_text

NUM_ROWS = 18
# decoded column, true column, title
_PAIRS = (("decoded", "text", "Texts"), ("decoded_phonemes", "phonemes", "Phonemes"))


def diff_figures(columns: Mapping[str, np.ndarray], split: str) -> list[Figure]:
    """Return a table of texts and one of phonemes, where they were decoded."""
    found: list[Figure] = []
    for ours, true, title in _PAIRS:
        if ours in columns and len(columns[ours]):
            words = _words if ours == "decoded" else str.split
            decoded = [words(str(text)) for text in columns[ours]]
            truth = [words(str(text)) for text in columns[true]]
            found.append(_figure(f"{title}, {split}", columns["sample_id"].tolist(), decoded, truth))
    return found


def _words(text: str) -> list[str]:
    return plain_text(text).split()


def _figure(
    title: str, names: Sequence[str], decoded: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]
) -> Figure:
    rates = [
        edit_distance(ours, true) / len(true) if true else np.nan
        for ours, true in zip(decoded, truth, strict=True)
    ]
    rows = _spread(np.asarray(rates))
    cells = {
        "trial": [html.escape(str(names[i])) for i in rows],
        "error rate": ["" if np.isnan(rates[i]) else f"{rates[i]:.2f}" for i in rows],
        "decoded, coloured against the truth": [_coloured(decoded[i], truth[i]) for i in rows],
        "true": [html.escape(" ".join(truth[i])) for i in rows],
    }
    table = {
        "type": "table",
        "columnwidth": [2, 1, 5, 4],
        "header": {"values": list(cells), "align": "left", "font": {"size": 13}},
        "cells": {"values": list(cells.values()), "align": "left", "font": {"size": 13}, "height": 24},
    }
    caption = (
        "Best, middling and worst trials by their error rate. Orange: wrong, with what it should have been "
        "in grey; blue: too much; grey and struck out: missing."
    )
    layout = {"height": 120 + 34 * len(rows), "margin": {"l": 0, "r": 0, "t": 10, "b": 0}}
    return Figure(title, caption, {"data": [table], "layout": layout})


def _spread(rates_N: np.ndarray) -> list[int]:
    """Return rows spread evenly over the ranks of the rates; unknown ones last."""
    order = np.argsort(rates_N, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(NUM_ROWS, len(order))).round().astype(int))
    return order[places].tolist()


def _coloured(decoded: Sequence[str], truth: Sequence[str]) -> str:
    if not truth:
        return html.escape(" ".join(decoded))
    return " ".join(_piece(edit.kind, edit.decoded, edit.truth) for edit in aligned(decoded, truth))


def _piece(kind: str, decoded: str, truth: str) -> str:
    ours, true = html.escape(decoded), html.escape(truth)
    match kind:
        case "equal":
            return ours
        case "substitute":
            return f"{_span(f'<b>{ours}</b>', VERMILLION)} {_span(f'({true})', GREY)}"
        case "insert":
            return _span(f"<b>+{ours}</b>", BLUE)
        case _:
            return _span(f"<s>{true}</s>", GREY)


def _span(text: str, color: str) -> str:
    return f'<span style="color:{color}">{text}</span>'
