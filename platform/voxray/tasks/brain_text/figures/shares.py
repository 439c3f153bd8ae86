"""What each term has of the loss over training, and the guide's advice on alpha and beta."""

from typing import Any

from voxray.core.figures import BLUE, GREEN, VERMILLION, Figure, TrainingView
from voxray.core.log_plots import Record, is_number, log_line, over_updates, thinned

_TERMS = {"align": BLUE, "llm": VERMILLION, "ctc": GREEN}
HIGH, FURTHER = 0.75, 0.25  # of the first value: what has hardly fallen, and the gap that tells


def share_figures(training: TrainingView) -> list[Figure]:
    """Return the terms' shares of the loss and their values; none for a run of one term alone."""
    steps = [record for record in training.log if record.get("kind") == "step"]
    names = [name for name in _TERMS if any(is_number(record.get(_key(name))) for record in steps)]
    if len(names) <= 1:
        return []
    shares = [_shares(record, names) for record in steps]
    lines = [log_line(name, shares, name, _TERMS[name], f"{name} %{{y:.1%}}") for name in names]
    drawn = [line for line in lines if line is not None]
    plot = over_updates(drawn, "share of the loss", steps, from_zero=True)
    plot["layout"]["yaxis"]["tickformat"] = ".0%"
    caption = f"Each term times its weight, over their sum. {_advice(training, steps, names)}{thinned(steps)}"
    return [Figure("Loss terms: shares", caption, plot)]


def _key(name: str) -> str:
    return f"train/{name}"


def _shares(record: Record, names: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {name: record.get(_key(name)) for name in names}
    known = {name: abs(value) for name, value in given.items() if is_number(value)}
    total = sum(known.values())
    shares = {name: value / total for name, value in known.items() if total}
    return {"step": record.get("step"), "stage": record.get("stage"), **shares}


def _advice(training: TrainingView, steps: list[Record], names: list[str]) -> str:
    """Return what the guide says to do (its "Tuning Guidance"), by how far both terms have fallen."""
    if "align" not in names or "llm" not in names:
        return ""
    own = training.config.get("objective") or {}
    said = f"alpha is {own.get('alpha')}, beta {own.get('beta')}."
    align, llm = (_fallen_to(steps, name) for name in ("align", "llm"))
    if align is None or llm is None:
        return said
    said = f"{said} align is at {align:.0%} of its first value, llm at {llm:.0%}"
    if align > HIGH and llm > HIGH:
        return (
            f"{said}: both are high still. Check the learning rate, then try a wider or deeper GRU "
            "(model.n_units, model.n_layers)."
        )
    if align > llm + FURTHER:
        return (
            f"{said}: the embeddings are not in the audio's space. Raise objective.alpha, and check that the "
            "audio targets are what they should be."
        )
    if llm > align + FURTHER:
        return (
            f"{said}: the embeddings lie in the right space and say little. Raise objective.beta; more "
            "training rows may be needed."
        )
    return f"{said}: they fall together."


def _fallen_to(steps: list[Record], name: str) -> float | None:
    """Return the last logged value over the first; None where that says nothing."""
    values = [float(record[_key(name)]) for record in steps if is_number(record.get(_key(name)))]
    return values[-1] / values[0] if len(values) > 1 and values[0] > 0 else None
