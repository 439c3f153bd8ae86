"""The chest X-ray task's figures: AUROC as evaluated, the right images, the right words below them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_folders import add_evaluation, make_labels, make_scores, sample_id

from voxray.config.errors import InputError
from voxray.core.figures import Figure, RunView
from voxray.core.registry import figures_module
from voxray.report.read import read_predictions
from voxray.report.rows import open_rows
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.figures import figures
from voxray.tasks.cxr_memory.figures.images import NUM_TILES, extremes, png


@pytest.fixture
def shown(run: Path, dataset: Path) -> dict[str, Figure]:
    evaluation = add_evaluation(run)
    predictions = read_predictions(run, "val")
    view = RunView(run, {}, "val", evaluation, predictions, open_rows(dataset, "val"))
    return {figure.title: figure for figure in figures(view)}


def test_predictions_are_the_files_numbers(run: Path) -> None:
    add_evaluation(run)
    predictions = read_predictions(run, "val")
    assert predictions is not None
    assert predictions.sample_id[7] == sample_id(7)
    np.testing.assert_allclose(predictions.scores_NK, make_scores(), rtol=1e-6)
    np.testing.assert_array_equal(predictions.labels_NK, make_labels())


def test_auroc_floor_and_intervals_are_the_evaluations(run: Path, shown: dict[str, Figure]) -> None:
    plot = shown["AUROC per finding, val"].plot
    assert plot is not None
    table = {f"{row['label']} ({row['positives']})": row for row in add_evaluation(run)["table"]}
    whiskers, model, floor = plot["data"]
    assert set(model["y"]) == set(table)
    assert model["x"] == [table[name]["auroc"] for name in model["y"]]
    assert floor["x"] == [table[name]["floor"] for name in floor["y"]]
    assert whiskers["x"][:3] == [table[whiskers["y"][0]]["low"], table[whiskers["y"][0]]["high"], None]
    assert len(whiskers["x"]) == 3 * 13
    assert plot["layout"]["shapes"][0]["x0"] == 0.5
    assert plot["layout"]["yaxis"]["categoryarray"][0] == "Hernia (0)"  # undefined: at the bottom


def test_each_tile_shows_its_own_row(shown: dict[str, Figure]) -> None:
    labels, scores = make_labels(), make_scores()
    for title, present in (("Hits", 1), ("False alarms", 0), ("Misses", 1)):
        assert len(shown[title].tiles) == NUM_TILES
        for tile in shown[title].tiles:
            row = int(tile.lines[-1].split("_")[0])
            name, _, probability = tile.title.partition(": p = ")
            assert np.asarray(Image.open(io.BytesIO(tile.png)))[0, 0] == row
            assert labels[row, LABELS.index(name)] == present
            assert probability == f"{scores[row, LABELS.index(name)]:.2f}"
            assert tile.lines[0] == "Labels: " + (
                ", ".join(LABELS[k] for k in np.flatnonzero(labels[row] == 1)) or "none"
            )
            assert tile.lines[1].startswith(
                f"Highest: {LABELS[int(scores[row].argmax())]} {scores[row].max():.2f}"
            )


def test_the_most_confident_is_first(shown: dict[str, Figure]) -> None:
    labels, scores = make_labels(), make_scores()
    first = {
        title: float(figure.tiles[0].title.partition("= ")[2])
        for title, figure in shown.items()
        if figure.tiles
    }
    assert first["Hits"] == round(scores[labels == 1].max(), 2)
    assert first["False alarms"] == round(scores[labels == 0].max(), 2)
    assert first["Misses"] == round(scores[labels == 1].min(), 2)


def test_extremes_take_each_row_and_each_label_once() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.2], [0.5, 0.4, 0.3]])
    assert extremes(scores, np.ones((3, 3), bool)) == [(0, 0), (1, 1), (2, 2)]
    assert extremes(scores, np.array([[False] * 3, [False, True, False], [False] * 3])) == [(1, 1)]
    assert extremes(scores, np.zeros((3, 3), bool)) == []


def test_a_large_image_is_shrunk() -> None:
    picture = Image.open(io.BytesIO(png(np.zeros((1, 1024, 512), np.uint8))))
    assert picture.size == (128, 256)
    assert picture.mode == "L"


def test_rows_come_in_the_order_asked_for_across_shards(dataset: Path) -> None:
    take = open_rows(dataset, "val")
    rows = take([sample_id(55), sample_id(3), sample_id(41)])
    assert rows["image"][:, 0, 0, 0].tolist() == [55, 3, 41]
    assert rows["sample_id"].tolist() == [sample_id(55), sample_id(3), sample_id(41)]
    with pytest.raises(InputError, match="'other' was evaluated but is not in the split 'val'"):
        take(["other"])
    with pytest.raises(InputError, match="no split 'test'"):
        open_rows(dataset, "test")


def test_only_tasks_of_voxray_bring_figures() -> None:
    module = figures_module("cxr_memory")
    assert module is not None
    assert module.figures is figures
    assert figures_module("my_package.module:Mine") is None
