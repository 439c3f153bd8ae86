"""Augmented views of pictures: MindEye's shares, the same views in any company, the tower's own numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from voxray.nn.clip_views import ClipViews, augmentation, drawn_view
from voxray.nn.clip_vision import ClipVision
from voxray.testing.frozen import save_tiny_clip

NUM = 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("tower") / "clip")


def pictures(num: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def test_each_is_done_as_often_as_upstream_does_it() -> None:
    """DOMAINS.md S3.b: crop 0.3, flip 0.5, colour 0.3, grey 0.3. A red left half tells them apart."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16] = (200, 100, 50)
    picture[12:20, 12:20] = (10, 220, 90)  # off by a crop
    augment = augmentation(32)
    views = [drawn_view(augment, picture, 0, number) for number in range(NUM)]
    sides = np.array([view[:, :8].mean() < view[:, -8:].mean() for view in views])
    is_grey = np.array([(view == view[..., :1]).all() for view in views])
    untouched = np.array([np.array_equal(view, picture) for view in views])
    flipped = np.array([np.array_equal(view, picture[:, ::-1]) for view in views])
    grey = v2.functional.rgb_to_grayscale(torch.from_numpy(picture).permute(2, 0, 1), 3).permute(1, 2, 0)
    grey_alone = np.array([np.array_equal(view, grey.numpy()) for view in views])
    for found, share in (
        (sides, 0.5),
        (is_grey, 0.3),
        (untouched, 0.7 * 0.5 * 0.7 * 0.7),
        (flipped, 0.7 * 0.5 * 0.7 * 0.7),
        (grey_alone, 0.7 * 0.5 * 0.7 * 0.3),
    ):
        assert abs(found.mean() - share) < 4 * np.sqrt(share * (1 - share) / NUM)


def test_a_view_is_torchvisions_by_its_seed() -> None:
    """The authority: the library's transforms one after the other, from the generator's state at the time."""
    picture, augment = pictures(1)[0], augmentation(24)
    size, bicubic = (24, 24), v2.InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0), interpolation=bicubic)
    steps = [
        lambda x: crop(x) if torch.rand(1) < 0.3 else x,
        v2.Resize(size, interpolation=bicubic),
        lambda x: v2.functional.hflip(x) if torch.rand(1) < 0.5 else x,
        lambda x: v2.ColorJitter(0.4, 0.4, 0.2, 0.1)(x) if torch.rand(1) < 0.3 else x,
        lambda x: v2.functional.rgb_to_grayscale(x, 3) if torch.rand(1) < 0.3 else x,
    ]
    made = set()
    for seed in range(20):
        view = torch.from_numpy(picture).permute(2, 0, 1)
        torch.manual_seed(seed)
        for step in steps:
            view = step(view)
        torch.manual_seed(seed)
        assert torch.equal(augment(torch.from_numpy(picture).permute(2, 0, 1)), view)
        made.add(view.numpy().tobytes())
    assert len(made) > 7


def test_views_depend_on_picture_seed_and_number_alone() -> None:
    augment, (one, other) = augmentation(32), pictures(2)
    before = torch.get_rng_state()
    first = drawn_view(augment, one, 0, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    np.testing.assert_array_equal(drawn_view(augment, one, 0, 1), first)
    assert any((drawn_view(augment, one, 1, k) != drawn_view(augment, one, 0, k)).any() for k in range(4))
    flips = [drawn_view(augment, picture, 0, k).tobytes() for picture in (one, other) for k in range(4)]
    assert len(set(flips)) > 4
    wide = np.zeros((40, 60, 3), np.uint8)
    wide[:, 10:50] = one
    np.testing.assert_array_equal(drawn_view(augment, wide, 0, 1), first)  # the central square


def test_it_is_the_tower_on_each_view(folder: Path) -> None:
    options = {"layers": "1,3"}
    network = ClipViews(str(folder), "", "float32", "cpu", num_views=3, seed=7, prefix="views_sd_", **options)
    tower = ClipVision(str(folder), "", "float32", "cpu", **options)
    given = pictures(4)
    made, backwards = network({"pixels": given}), network({"pixels": given[::-1]})
    assert {name: values.shape for name, values in made.items()} == {
        "views_sd_final": (4, 3, 24),
        "views_sd_layer_1": (4, 3, 32),
        "views_sd_layer_3": (4, 3, 32),
    }
    augment = augmentation(32)
    for k in range(3):
        expected = tower({"pixels": np.stack([drawn_view(augment, picture, 7, k) for picture in given])})
        for name, values in expected.items():
            ours = made[name.replace("clip_", "views_sd_")][:, k]
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, values)
    for name, values in made.items():
        np.testing.assert_allclose(backwards[name][::-1], values, rtol=1e-5, atol=1e-6)
    assert np.abs(np.diff(made["views_sd_final"], axis=1)).max() > 0.01
