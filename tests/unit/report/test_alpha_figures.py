"""The figure of a closed form's choice: errors of a real fit, their spread over folds, the alpha taken."""

import numpy as np
import pytest

from voxray.report.alphas import alpha_figures

ALPHAS = [0.0, 0.1, 1.0, 10.0]
FOLDS = np.array([[5.0, 4.0, 2.0, 3.0], [6.0, 5.0, 2.5, 3.5], [7.0, 4.5, 1.5, 4.0]])


def record(**changed: object) -> dict:
    values = {
        "kind": "closed_form",
        "stage": "main",
        "alpha": 1.0,
        "alphas": ALPHAS,
        "held_out_mse": FOLDS.mean(0).tolist(),
        "fold_mse": FOLDS.tolist(),
    }
    return values | changed


def test_it_shows_means_spreads_and_the_choice() -> None:
    (figure,) = alpha_figures([record()])
    assert figure.plot is not None
    line, star = figure.plot["data"]
    assert line["x"] == ALPHAS[1:]  # 0 has no logarithm
    np.testing.assert_allclose(line["y"], FOLDS.mean(0)[1:])
    np.testing.assert_allclose(line["error_y"]["array"], FOLDS.std(0, ddof=1)[1:])
    assert (star["x"], star["y"]) == ([1.0], [2.0])
    assert "3 folds" in figure.caption
    assert "end of the list" not in figure.caption


def test_alphas_may_come_in_any_order_and_a_choice_at_the_end_is_told() -> None:
    order = [3, 1, 0, 2]
    shuffled = record(
        alpha=10.0,
        alphas=[ALPHAS[i] for i in order],
        held_out_mse=FOLDS.mean(0)[order].tolist(),
        fold_mse=FOLDS[:, order].tolist(),
    )
    (figure,) = alpha_figures([shuffled])
    assert figure.plot is not None
    assert figure.plot["data"][0]["y"] == pytest.approx(FOLDS.mean(0)[1:])
    assert figure.plot["data"][0]["error_y"]["array"] == pytest.approx(FOLDS.std(0, ddof=1)[1:])
    assert figure.plot["data"][1]["y"] == pytest.approx([FOLDS.mean(0)[3]])
    assert "end of the list" in figure.caption


def test_targets_with_their_own_alphas_are_counted() -> None:
    (figure,) = alpha_figures([record(alpha={"0.1": 700, "10": 68})])
    assert figure.plot is not None
    assert figure.plot["data"][1]["x"] == [0.1, 10.0]
    assert "0.1: 700, 10: 68" in figure.caption


def test_one_alpha_is_no_choice_and_older_logs_have_no_folds() -> None:
    assert alpha_figures([record(alphas=[1.0], held_out_mse=[], fold_mse=[]), {"kind": "closed_form"}]) == []
    older = record()
    del older["fold_mse"]
    (figure,) = alpha_figures([older])
    assert figure.plot is not None
    assert "error_y" not in figure.plot["data"][0]


def test_each_stage_has_its_own_and_a_repeated_one_the_last() -> None:
    figures = alpha_figures([record(alpha=0.1), record(), record(stage="second")])
    assert [figure.title for figure in figures] == [
        "Choice of the penalty, main",
        "Choice of the penalty, second",
    ]
    assert figures[0].plot is not None
    assert figures[0].plot["data"][1]["x"] == [1.0]
