"""Pictures from embeddings against the same pipelines called by hand, on tiny ones saved to a folder."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from voxray.nn.generation import CLASSES, Generator, Kind, read_pipeline
from voxray.testing.pipelines import save_tiny_pipeline

DIM, STEPS, GUIDANCE = 24, 3, 4.0
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: save_tiny_pipeline(root / kind, kind, DIM) for kind in CLASSES}


@pytest.fixture(scope="session")
def generators(folders: dict[Kind, Path]) -> dict[Kind, Generator]:
    return {kind: Generator(read_pipeline(str(folder)), CPU) for kind, folder in folders.items()}


def by_hand(folder: Path, kind: Kind) -> Any:
    import diffusers

    pipeline = getattr(diffusers, CLASSES[kind]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embedding(seed: int = 0, norm: float = 4.0) -> torch.Tensor:
    return norm * torch.nn.functional.normalize(torch.randn(DIM, generator=generator_of(seed)), dim=0)


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


# --- against the pipelines' own ways
# -------------------------------------------------------------------------------------------------------


def test_a_kind_is_read_from_the_folder(folders: dict[Kind, Path]) -> None:
    for kind, folder in folders.items():
        facts = read_pipeline(str(folder))
        assert (facts.kind, facts.embedding_dim) == (kind, DIM)


@pytest.mark.parametrize("kind", ["unclip", "image_variation"])
def test_an_embedding_gives_the_picture_that_its_photo_gives(kind, folders, generators, photo) -> None:
    ours, theirs = generators[kind], by_hand(folders[kind], kind)
    wanted = theirs(
        image=Image.fromarray(photo),
        **({"prompt": ""} if kind == "unclip" else {}),
        generator=generator_of(7),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    ).images
    embedded = ours.embed([photo])
    assert embedded is not None
    np.testing.assert_array_equal(ours.generate(embedded[0], [7], STEPS, GUIDANCE), pixels_of(wanted))
    other = ours.generate(-embedded[0], [7], STEPS, GUIDANCE)
    assert np.abs(other.astype(int) - pixels_of(wanted)).mean() > 1  # the embedding counts


def test_unclip_takes_several_seeds(folders, generators) -> None:
    wanted = by_hand(folders["unclip"], "unclip")(
        prompt=["", ""],
        image_embeds=embedding().repeat(2, 1),
        generator=[generator_of(1), generator_of(2)],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    ).images
    made = generators["unclip"].generate(embedding(), [1, 2], STEPS, GUIDANCE)
    np.testing.assert_array_equal(made, pixels_of(wanted))


def test_stable_diffusion_compares_with_its_own_empty_prompt(folders, generators) -> None:
    pipeline = by_hand(folders["stable_diffusion"], "stable_diffusion")
    wanted = pipeline(  # without negative embeddings it encodes "" itself
        prompt_embeds=embedding().repeat(1, 16, 1),
        generator=generator_of(7),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    ).images
    made = generators["stable_diffusion"].generate(embedding(), [7], STEPS, GUIDANCE)
    np.testing.assert_array_equal(made, pixels_of(wanted))


def test_equal_tokens_attend_as_one(folders, generators) -> None:
    wanted = by_hand(folders["stable_diffusion"], "stable_diffusion")(
        prompt_embeds=embedding()[None, None],
        generator=generator_of(7),
        num_inference_steps=STEPS,
        guidance_scale=1.0,
    ).images
    made = generators["stable_diffusion"].generate(embedding(), [7], STEPS, guidance=1.0)
    assert np.abs(made.astype(int) - pixels_of(wanted)).max() <= 1


@pytest.mark.parametrize("kind", list(CLASSES))
def test_a_picture_depends_on_its_seed_alone(kind, generators) -> None:
    ours = generators[kind]
    alone = ours.generate(embedding(), [5], STEPS, GUIDANCE)
    ours.generate(embedding(3), [9], STEPS, GUIDANCE)
    among = ours.generate(embedding(), [4, 5, 6], STEPS, GUIDANCE)
    np.testing.assert_array_equal(among[1], alone[0])
    assert np.abs(among[0].astype(int) - among[1]).mean() > 1


def test_size_is_the_side_in_pixels(generators) -> None:
    assert generators["unclip"].generate(embedding(), [0], 1, 1.0, size=24).shape == (1, 24, 24, 3)


# --- the norm
# -------------------------------------------------------------------------------------------------------


def test_unclips_norm_is_that_of_what_its_statistics_describe(generators) -> None:
    normalizer = generators["unclip"]._pipeline.image_normalizer
    rows = normalizer.mean + normalizer.std * torch.randn(100_000, DIM, generator=generator_of(0))
    rms = rows.detach().square().sum(1).mean().sqrt()
    assert generators["unclip"].own_norm() == pytest.approx(float(rms), rel=0.01)


def test_a_normaliser_without_statistics_tells_no_norm(folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["unclip"], tmp_path / "fresh")
    fresh = Generator(read_pipeline(str(folder)), CPU)
    normalizer = fresh._pipeline.image_normalizer
    normalizer.mean.data.zero_()
    normalizer.std.data.fill_(1)
    assert fresh.own_norm() is None


def test_a_tokens_norm_is_the_text_encoders(folders, generators) -> None:
    theirs = by_hand(folders["stable_diffusion"], "stable_diffusion")
    tokens = theirs.tokenizer([""], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = theirs.text_encoder(tokens).last_hidden_state
    assert generators["stable_diffusion"].own_norm() == pytest.approx(float(hidden.norm(dim=-1).mean()))
    assert generators["image_variation"].own_norm() is None


# --- what is refused
# -------------------------------------------------------------------------------------------------------


def changed(folder: Path, out: Path, name: str, **values: Any) -> str:
    """Copy a pipeline with other values in one of its JSON files."""
    shutil.copytree(folder, out)
    file = out / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return str(out)


def test_another_place_kind_or_class_is_refused(folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        read_pipeline(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"is no folder, and the hub gives no model_index\.json"):
        read_pipeline("nobody/no-pipeline")
    with pytest.raises(ValueError, match="is no folder"):
        read_pipeline(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="kind=unclip does not fit; it is image_variation"):
        read_pipeline(str(folders["image_variation"]), kind="unclip")
    other = changed(folders["unclip"], tmp_path / "other", "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ValueError, match="is a FluxPipeline; one of these takes embeddings"):
        read_pipeline(other)


def test_an_index_that_names_code_from_elsewhere_is_refused(folders, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = changed(folders["unclip"], tmp_path / "p", "model_index.json", unet=["evil_module", "Unet"])
    with pytest.raises(ValueError, match="takes its unet from 'evil_module'"):
        read_pipeline(folder)
    assert "evil_module" not in sys.modules


def test_pickled_weights_are_refused(folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders["image_variation"], tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*safetensors"):
        Generator(read_pipeline(str(folder)), CPU)


def test_an_embedding_of_another_width_is_refused(generators) -> None:
    with pytest.raises(ValueError, match="takes embeddings of 24 numbers, this one has 12"):
        generators["unclip"].generate(torch.ones(12), [0], 1, 1.0)
