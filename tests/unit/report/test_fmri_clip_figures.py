"""Figures of an fMRI run: recall over K against known ranks, grids, weights of the layers, the reader."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.figures import RunView, TrainingView
from voxray.report.read import read_columns, read_predictions
from voxray.tasks.fmri_clip.figures import figures, training_figures

SIZE, DIM = 40, 8


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def view(kind: str = "bytes", wrong: int = 0) -> tuple[RunView, np.ndarray]:
    """Two rows per picture; predictions are the truth, but for the first `wrong` rows: its negative."""
    truth = np.random.default_rng(0).normal(size=(SIZE, DIM))
    ids = [f"s{i:03d}" for i in range(SIZE)]
    predicted = np.repeat(truth, 2, axis=0)
    predicted[:wrong] *= -1
    columns = {
        "sample_id": np.array([f"{i}-{r}" for i in ids for r in "ab"], dtype=object),
        "stimulus_id": np.array([i for i in ids for _ in "ab"], dtype=object),
        "embedding": predicted,
    }

    def take(wanted):
        rows = [ids.index(name[:-2]) for name in wanted]
        found = {"clip_final": truth[rows]}
        if kind == "bytes":
            found["image"] = np.array([encoded(row) for row in rows], dtype=object)
        elif kind == "pixels":
            found["image"] = np.stack([np.full((3, 6, 6), row, np.uint8) for row in rows])
        return found

    run = RunView(Path("run"), {"model": {"target": "final"}}, "test", {}, take=take, columns=lambda: columns)
    return run, truth


def test_recall_at_k_is_that_of_the_ranks() -> None:
    run, truth = view(wrong=8)
    (curve, *grids) = figures(run)
    assert curve.plot is not None
    model, chance = curve.plot["data"]
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    ranks = [1] * 72
    for i in (0, 0, 1, 1, 2, 2, 3, 3):
        ranks.append(1 + int((-(unit[i] @ unit.T) > -1 + 1e-9).sum()))
    expected = [np.mean([rank <= k for rank in ranks]) for k in model["x"]]
    assert model["y"] == pytest.approx(expected)
    assert chance["y"] == pytest.approx([k / SIZE for k in model["x"]])
    assert (model["x"][0], model["x"][-1], model["y"][-1]) == (1, SIZE, 1.0)
    assert len(grids) == 6
    assert "rank 1 of 40, among the best" in grids[0].title
    assert f"rank {SIZE} of 40, among the worst" in grids[-1].title


@pytest.mark.parametrize("kind", ["bytes", "pixels"])
def test_a_grid_has_what_was_seen_and_the_five_most_similar(kind: str) -> None:
    run, truth = view(kind)
    (_, first, *_) = figures(run)
    assert [tile.title.partition(":")[0] for tile in first.tiles] == ["Seen", "1", "2", "3", "4", "5"]
    assert "the one that was seen" in first.tiles[1].lines
    assert first.tiles[0].png == first.tiles[1].png
    seen = int(first.tiles[0].lines[0][1:])
    assert Image.open(io.BytesIO(first.tiles[0].png)).getpixel((0, 0))[0] == seen
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[seen]))[:5]
    assert [tile.lines[0] for tile in first.tiles[1:]] == [f"s{i:03d}" for i in order]


def test_without_pictures_there_is_the_curve_alone() -> None:
    assert len(figures(view("none")[0])) == 1


def test_a_dataset_without_the_target_says_so() -> None:
    run, _ = view()
    other = RunView(
        Path("run"), {"model": {"target": "sd_final"}}, "test", {}, take=run.take, columns=run.columns
    )
    (said,) = figures(other)
    assert "no column 'clip_sd_final'" in said.caption


def test_predictions_that_are_no_scores_are_read_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions_val.parquet"
    rows = {
        "sample_id": ["a", "b"],
        "group_id": ["a", "b"],
        "embedding": [[1.0, 2.0], [3.0, 4.0]],
        "r": [0.5, 1.0],
    }
    pq.write_table(pa.table(rows), path)
    assert read_predictions(tmp_path, "val") is None
    found = read_columns(path, "voxray evaluate RUN")
    np.testing.assert_array_equal(found["embedding"], [[1, 2], [3, 4]])
    assert found["sample_id"].tolist() == ["a", "b"]
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="write it anew by `voxray evaluate RUN`"):
        read_columns(path, "voxray evaluate RUN")


def test_weights_are_drawn_where_they_are_learnt() -> None:
    log = [
        {"kind": "step", "step": s, "layers/final": 0.4 + s / 100, "layers/layer_4": 0.6 - s / 100}
        for s in (1, 2, 3)
    ]
    (figure,) = training_figures(TrainingView({"objective": {"learn_layer_weights": True}}, log))
    assert figure.plot is not None
    assert [trace["name"] for trace in figure.plot["data"]] == ["final", "layer_4"]
    assert figure.plot["data"][0]["y"] == pytest.approx([0.41, 0.42, 0.43])
    assert training_figures(TrainingView({"objective": {}}, log)) == []
