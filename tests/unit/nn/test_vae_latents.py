"""Latents of a frozen autoencoder against diffusers' own image processor and encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torchvision.transforms import v2

from voxray.nn.generation import Generator, read_pipeline
from voxray.nn.vae_latents import VaeLatents
from voxray.tasks.mindeye.low_level_config import LATENT, VaeTargetConfig, vae_embedders
from voxray.testing.pipelines import save_tiny_pipeline

DIM, SIDE = 24, 16


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "variation", "image_variation", DIM)


@pytest.fixture(scope="module")
def theirs(pipeline: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(pipeline, subfolder="vae").eval()


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_latents_are_the_modes_times_the_scale(pipeline: Path, theirs: AutoencoderKL) -> None:
    pictures = [photo(40, 40), photo(30, 50, 1)]
    made = VaeLatents(str(pipeline / "vae"), "", "float32", "cpu", SIDE)({"pixels": pictures})
    assert made.keys() == {LATENT}
    assert made[LATENT].shape == (2, 4, 8, 8)
    squares = [pictures[0], pictures[1][:, 10:40]]
    for found, pixels in zip(made[LATENT], squares, strict=True):
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
        x = v2.Resize(SIDE, antialias=True)(x)
        with torch.no_grad():
            wanted = theirs.encode(2 * x - 1).latent_dist.mean * 0.18215
        np.testing.assert_allclose(found, wanted[0].numpy(), rtol=1e-4, atol=1e-6)


def test_a_pipelines_subfolder_and_a_place_without_one(pipeline: Path) -> None:
    below = VaeLatents(str(pipeline), "", "float32", "cpu", SIDE, subfolder="vae")
    alone = VaeLatents(str(pipeline / "vae"), "", "float32", "cpu", SIDE)
    columns = {"pixels": [photo(16, 16)]}
    np.testing.assert_array_equal(below(columns)[LATENT], alone(columns)[LATENT])
    with pytest.raises(OSError):
        VaeLatents(str(pipeline / "absent"), "", "float32", "cpu", SIDE)


def test_a_folder_is_known_by_the_autoencoders_bytes_alone(pipeline: Path) -> None:
    (embedder,) = vae_embedders(VaeTargetConfig(model=str(pipeline), side=SIDE))
    assert embedder.model_id == str(pipeline / "vae")
    assert (embedder.revision, embedder.inputs) == ("", ("pixels",))
    (from_hub,) = vae_embedders(VaeTargetConfig(model="a/b", revision="v2.0"))
    assert (from_hub.model_id, from_hub.revision) == ("a/b", "v2.0")
    assert from_hub.options == {"side": 512, "subfolder": "vae"}


def test_a_pipeline_decodes_them(pipeline: Path, theirs: AutoencoderKL) -> None:
    generator = Generator(read_pipeline(str(pipeline)), torch.device("cpu"))
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = (theirs.decode(latents / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    found = generator.decode(latents)
    assert found.shape == (3, 16, 16, 3)
    expected = (wanted.permute(0, 2, 3, 1) * 255).round().numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="decodes latents of 4 channels, these have 3"):
        generator.decode(latents[:, :3])
