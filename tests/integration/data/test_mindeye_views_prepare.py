"""MindEye tars → a dataset with a tower's targets of each picture and of its views, on a real Ray cluster."""

from pathlib import Path

import numpy as np
import pytest

from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data import embed
from voxray.data.formats.pictures import decode_rgb
from voxray.data.local import LocalStream
from voxray.data.manifest import Manifest
from voxray.data.prepare import prepare
from voxray.data.verify import verify
from voxray.nn.clip_views import augmentation, drawn_view
from voxray.nn.clip_vision import ClipVision
from voxray.tasks.mindeye.synth import SYNTH_SIZES, SynthSize
from voxray.testing.frozen import save_tiny_clip

pytestmark = pytest.mark.usefixtures("ray_cluster")


def prepared(raw: Path, out: Path, **values: object) -> Manifest:
    keys = {f"data.prepare.{key}": value for key, value in values.items()}
    keys["data.embed.cache_dir"] = str(out.parent / "frozen")
    manifest = prepare(
        task_data("mindeye")(default_config("mindeye", keys, "test").config), raw, out
    ).manifest
    assert verify(out) == []
    return manifest


def test_targets_of_pictures_and_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYNTH_SIZES, "tiny", SynthSize({"train": 12, "val": 3, "test": 4}, 20, 40, 8, 0.5))
    raw, tower = tmp_path / "raw", str(save_tiny_clip(tmp_path / "clip"))
    task_data("mindeye")(default_config("mindeye", {}, "test").config).synth(raw, "tiny", 0)
    (raw / "clip.npz").unlink()
    clip = [{"model": tower}]
    manifest = prepared(raw, tmp_path / "ds", clip=clip, views=3, seed=5)
    shapes = {name: manifest.schema.columns[name].shape for name in ("clip_final", "views_final")}
    assert shapes == {"clip_final": (24,), "views_final": (3, 24)}
    assert [network["factory"].rpartition(":")[2] for network in manifest.recipe.networks] == [
        "ClipVision",
        "ClipViews",
    ]
    network, augment = ClipVision(tower, "", "float32", "cpu"), augmentation(32)
    stream = LocalStream(tmp_path / "ds")
    for split, num in (("train", 12), ("val", 3), ("test", 4)):
        rows = stream.read_split(split)
        assert len(rows["clip_final"]) == num
        for i, encoded in enumerate(rows["image"]):
            picture = decode_rgb(encoded, "here")
            seen = [picture, *(drawn_view(augment, picture, 5, number) for number in range(3))]
            expected = [network({"pixels": [pixels]})["clip_final"][0] for pixels in seen]
            found = [rows["clip_final"][i], *rows["views_final"][i]]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(embed, "_compute", None)  # what was computed is not computed again
    prepared(raw, tmp_path / "again", clip=clip, views=3, seed=5, images="none")
