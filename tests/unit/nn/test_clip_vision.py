"""CLIP's vision tower: what transformers' own preprocessor and model give, in any company."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from transformers.models.clip import CLIPImageProcessorPil

from voxray.nn.clip_vision import ClipVision, resized_centre
from voxray.testing.frozen import save_tiny_clip

SIZES = [(32, 32), (57, 40), (40, 57), (20, 29), (425, 425)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("tower") / "clip")


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture that is smooth here and rough there, as photographs are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20.0
    waves = np.stack([np.sin(x + c) * np.cos(y * (c + 1)) for c in range(3)], axis=-1)
    return np.clip(127 + 100 * waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def pictures() -> np.ndarray:
    out = np.empty(len(SIZES), object)
    for i, size in enumerate(SIZES):
        out[i] = photo(*size, seed=i)
    return out


def by_transformers(folder: Path, **values: object) -> dict[str, np.ndarray]:
    """The authority: the library's preprocessor (by Pillow) and model, one picture at a time."""
    side = {"shortest_edge": 32}
    prepare = CLIPImageProcessorPil(**({"size": side, "crop_size": {"height": 32, "width": 32}} | values))
    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    rows = []
    with torch.no_grad():
        for picture in pictures():
            pixels = prepare(picture, return_tensors="pt")["pixel_values"]
            made = model(pixel_values=pixels, output_hidden_states=True)
            rows.append([made.image_embeds[0], *(state[0, 0] for state in made.hidden_states)])
    final, *states = (np.stack([row[i].numpy() for row in rows]) for i in range(len(rows[0])))
    return {"clip_final": final} | {f"clip_layer_{i}": state for i, state in enumerate(states)}


def test_it_is_what_transformers_gives(folder: Path) -> None:
    made = ClipVision(str(folder), "", "float32", "cpu", layers="1,3")({"pixels": pictures()})
    expected = by_transformers(folder)
    assert made.keys() == {"clip_final", "clip_layer_1", "clip_layer_3"}
    for name, values in made.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)
    # the raw residual stream: what goes into block 1 is another vector
    assert np.abs(made["clip_layer_1"] - expected["clip_layer_0"]).max() > 0.01


def test_the_default_preprocessor_differs_by_rounding_alone(folder: Path) -> None:
    """CLIPImageProcessor resizes by torchvision: within 2 grey levels of Pillow, of 255."""
    prepare = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    network = ClipVision(str(folder), "", "float32", "cpu")
    for picture in pictures():
        theirs = prepare(picture, return_tensors="np")["pixel_values"][0]
        assert np.abs(network._prepared(picture) - theirs).max() < 2 / 255 / 0.26


def test_a_folder_says_how_pictures_are_prepared(folder: Path, tmp_path: Path) -> None:
    own = save_tiny_clip(tmp_path / "clip")
    said = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (own / "preprocessor_config.json").write_text(json.dumps(said))
    made = ClipVision(str(own), "", "float32", "cpu", prefix="clip_sd_")({"pixels": pictures()})
    expected = by_transformers(folder, **said)["clip_final"]
    np.testing.assert_allclose(made["clip_sd_final"], expected, rtol=1e-4, atol=1e-5)
    plain = ClipVision(str(folder), "", "float32", "cpu")({"pixels": pictures()})["clip_final"]
    assert np.abs(plain - expected).max() > 0.01


def test_a_picture_gives_the_same_in_any_company(folder: Path) -> None:
    network = ClipVision(str(folder), "", "float32", "cpu", layers="2")
    together = network({"pixels": pictures()})
    for i, picture in enumerate(pictures()):
        alone = network({"pixels": picture[None]})
        for name, values in together.items():
            np.testing.assert_allclose(alone[name][0], values[i], rtol=1e-5, atol=1e-6)


def test_blocks_that_are_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"it has the blocks 1 … 3, none is 4"):
        ClipVision(str(folder), "", "float32", "cpu", layers="1,4")
    with pytest.raises(OSError):
        ClipVision("voxray-tests/absent", "main", "float32", "cpu")


def test_the_centre_of_the_short_side() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (resized_centre(wide, 10, 10) == 200).all()
    assert resized_centre(wide.transpose(1, 0, 2), 20, 16).shape == (16, 16, 3)
