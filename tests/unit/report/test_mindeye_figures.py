"""MindEye's figures over a log: the ratio of the terms, the temperature, and when voxels are mixed."""

from typing import Any

import pytest

from voxray.core.figures import TrainingView
from voxray.tasks.mindeye.figures import training_figures

LOG = [
    {
        "kind": "step",
        "step": step,
        "stage": "main",
        "tau": 0.006,
        "mixco": float(step < 30),
        "mse_to_nce": step / 10,
    }
    for step in (10, 20, 30, 40)
]


def test_both_are_drawn_over_the_updates() -> None:
    ratio, tau = training_figures(TrainingView({}, [{"kind": "note", "text": "x"}, *LOG]))
    assert ratio.plot is not None
    assert ratio.plot["data"][0]["x"] == [10, 20, 30, 40]
    assert ratio.plot["data"][0]["y"] == [1, 2, 3, 4]
    assert tau.plot is not None
    assert tau.plot["data"][0]["y"] == [0.006] * 4
    assert "mixed before update 30" in tau.caption


@pytest.mark.parametrize(("mixco", "said"), [(1.0, "mixed throughout"), (0.0, "no voxels are mixed")])
def test_one_phase_alone_is_told(mixco: float, said: str) -> None:
    log: list[dict[str, Any]] = [record | {"mixco": mixco} for record in LOG]
    assert said in training_figures(TrainingView({}, log))[1].caption


def test_a_run_of_the_prior_alone_has_none() -> None:
    assert training_figures(TrainingView({}, [{"kind": "step", "step": 10, "stage": "main"}])) == []
