"""Figures of reconstructions: bands by wavelength, tiles back in their scene, pictures that can be opened."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperspectral_rows import SIDE, SMALL, cube_rows, hyperspectral_task
from voxray.core.batch import EpochRequest
from voxray.core.figures import Predictions, RunView
from voxray.tasks.hyperspectral.config import FiguresConfig
from voxray.tasks.hyperspectral.figures import figures
from voxray.tasks.hyperspectral.figures.images import GAP_PX, class_colours, display_bands, panels
from voxray.tasks.hyperspectral.figures.shown import Shown, stitched
from voxray.tasks.hyperspectral.figures.spectra import chosen_pixels
from voxray.testing.sources import ArraySource

RGB_NM = (615.0, 550.0, 465.0)


def shown(sample_id: str = "a", side: int = 4, value: float = 0.5) -> Shown:
    rng = np.random.default_rng(0)
    true = np.full((5, side, side), value) + 0.1 * rng.random((5, side, side))
    hidden = np.zeros(true.shape, bool)
    hidden[:, 0] = True
    measured = np.ones((side, side), bool)
    measured[:, -1] = False
    classes = rng.integers(0, 3, (side, side))
    return Shown(
        sample_id,
        np.linspace(450, 700, 5),
        true,
        measured,
        classes,
        np.where(hidden, true + 0.2, true),
        hidden,
    )


def test_red_green_and_blue_are_the_nearest_bands() -> None:
    """DOMAINS.md S2.c: of 30 bands from 450 to 900 nm, 615 nm is the band nearest to it."""
    wavelengths = np.linspace(450, 900, 30)
    bands = display_bands(wavelengths, RGB_NM)
    for band, nm in zip(bands, RGB_NM, strict=True):
        assert abs(wavelengths[band] - nm) <= abs(wavelengths - nm).min()
    assert display_bands(np.full(30, np.nan), RGB_NM) == (25, 15, 5)


def test_hidden_voxels_are_grey_and_others_are_as_they_were() -> None:
    found = panels(shown(), RGB_NM)
    assert list(found) == ["original", "masked", "reconstruction"]
    assert (found["masked"][0, :3] == 128).all()
    np.testing.assert_array_equal(found["masked"][1:], found["original"][1:])
    np.testing.assert_array_equal(found["reconstruction"][1:], found["original"][1:])
    assert (found["original"][:, -1] == 255).all()  # not measured
    assert (found["reconstruction"][0, :3] >= found["original"][0, :3]).all()


def test_tiles_come_back_to_their_places() -> None:
    whole = np.arange(5 * 8 * 12, dtype=float).reshape(5, 8, 12)
    tiles = []
    for top in (0, 4):
        for left in (0, 4, 8):
            tile = shown(f"scene:{top + 20}:{left + 40}")
            place = whole[:, top : top + 4, left : left + 4]
            tiles.append(
                Shown(tile.sample_id, tile.wavelengths_C, place, np.ones((4, 4), bool), tile.classes_HW)
            )
    (scene,) = stitched(tiles[::-1])
    assert scene.sample_id == "scene"
    np.testing.assert_array_equal(scene.true_CHW, whole)
    assert scene.made_CHW is None
    (without,) = stitched(tiles[1:])
    assert not without.measured_HW[:4, :4].any()
    assert without.measured_HW.sum() == 80


def test_classes_have_colours_of_their_own() -> None:
    colours = class_colours(np.arange(17)[None])[0]
    assert (colours[0] == 1).all()
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + np.eye(17)
    assert apart.min() > 0.1


def test_chosen_pixels_are_measured_and_go_from_dark_to_bright() -> None:
    each = shown(side=12)
    places = chosen_pixels(each)
    assert len(places) == 4
    assert all(each.measured_HW[place] for place in places)
    means = [each.true_CHW[:, row, column].mean() for row, column in places]
    assert means == sorted(means)


@pytest.mark.parametrize("head", ["none", "segmentation", "classification"])
def test_training_draws_what_can_be_opened(head: str) -> None:
    model = {**SMALL, "head": head, "num_classes": 3, "classes": ["AMD", "GA"]}
    task = hyperspectral_task({"model": model, "figures": {"num_images": 2, "dpi": 40, "format": "svg"}})
    columns = next(iter(ArraySource({"val": cube_rows(5, 0)}).batches(EpochRequest("val", 5, seed=0))))
    with torch.inference_mode():
        files = task.pictures(task.build_model().eval(), task.collate(columns))
    names = {"none": "reconstructions", "segmentation": "classes"}
    if head == "classification":
        assert not files
        return
    assert set(files) == {f"{names[head]}.png", f"{names[head]}.svg"}
    width, height = Image.open(io.BytesIO(files[f"{names[head]}.png"])).size
    assert min(width, height) > 80
    assert FiguresConfig().num_images == 4


class Loaded:
    """What `voxray.load` gives, as far as figures use it."""

    def __init__(self, task: object, model: torch.nn.Module) -> None:
        self.task, self.model = task, model


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize(("head", "kinds"), [("none", 2), ("segmentation", 1)])
def test_the_report_shows_errors_cubes_and_spectra(
    head: str, kinds: int, scored: bool, tmp_path: Path
) -> None:
    task = hyperspectral_task(
        {"model": {**SMALL, "head": head, "num_classes": 3}, "figures": {"num_images": 2}}
    )
    rows = cube_rows(6, 0)
    ids = rows["sample_id"].tolist()
    loaded = Loaded(task, task.build_model().eval())
    metrics = {"mse_per_band": [0.1] * 6} if head == "none" else {}
    view = RunView(
        tmp_path, task.config.model_dump(mode="json"), "val", {"metrics": metrics},
        Predictions(ids, ids, np.zeros((6, 0)), np.zeros((6, 0))) if scored else None,
        columns=lambda: {"sample_id": rows["sample_id"]},
        take=lambda wanted: {k: v[[ids.index(name) for name in wanted]] for k, v in rows.items()},
        load=lambda: loaded)  # fmt: skip
    found = figures(view)
    pictures = [figure.picture for figure in found if figure.picture]
    assert len(pictures) == 2
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures]
    panel = -(-320 // SIDE) * SIDE  # 12 pixels are enlarged by a whole factor to 320 or more
    num_panels = 3 if head == "none" else 4
    assert sizes == [(num_panels * panel + (num_panels - 1) * GAP_PX, panel)] * 2
    plots = [figure for figure in found if figure.plot]
    assert len(plots) == (3 if head == "none" else 0)  # errors, and two cubes' spectra
    assert len({figure.title.split(" of ")[0] for figure in found}) == kinds + (head == "none")


def test_without_weights_the_errors_are_still_drawn(tmp_path: Path) -> None:
    config = hyperspectral_task({"model": SMALL}).config.model_dump(mode="json")
    (figure,) = figures(RunView(tmp_path, config, "val", {"metrics": {"mse_per_band": [0.1, None]}}))
    assert figure.plot is not None
    assert figure.plot["data"][0]["y"] == [0.1, None]
