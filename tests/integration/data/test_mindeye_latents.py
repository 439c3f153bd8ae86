"""MindEye tars → a dataset with an autoencoder's latents of each picture, on a real Ray cluster."""

from pathlib import Path

import numpy as np
import pytest

from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data.formats.pictures import decode_rgb
from voxray.data.local import LocalStream
from voxray.data.prepare import prepare
from voxray.data.verify import verify
from voxray.nn.vae_latents import VaeLatents
from voxray.tasks.mindeye.synth import SYNTH_SIZES, SynthSize
from voxray.testing.pipelines import save_tiny_pipeline

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_pictures_latents_are_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYNTH_SIZES, "tiny", SynthSize({"train": 12, "val": 3, "test": 4}, 20, 40, 8, 0.5))
    raw, out = tmp_path / "raw", tmp_path / "ds"
    task_data("mindeye")(default_config("mindeye", {}, "test").config).synth(raw, "tiny", 0)
    pipeline = save_tiny_pipeline(tmp_path / "pipeline", "image_variation")
    values = {
        "data.prepare.vae": {"model": str(pipeline), "side": 16},
        "data.embed.cache_dir": str(tmp_path / "frozen"),
    }
    manifest = prepare(
        task_data("mindeye")(default_config("mindeye", values, "test").config), raw, out
    ).manifest
    assert verify(out) == []
    assert manifest.schema.columns["vae_latent"].shape == (4, 8, 8)
    network = VaeLatents(str(pipeline / "vae"), "", "float32", "cpu", 16)
    rows = LocalStream(out).read_split("val")
    for encoded, latent in zip(rows["image"], rows["vae_latent"], strict=True):
        expected = network({"pixels": [decode_rgb(encoded, "here")]})["vae_latent"][0]
        np.testing.assert_allclose(latent, expected, rtol=1e-4, atol=1e-5)
