"""`voxray predict --images` of a MindEye run: the prior's samples become pictures, the best is kept."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mindeye_rows import DIM, SMALL, SMALL_LOW_LEVEL, mindeye_rows, mindeye_task
from one_command import refused
from picture_network_files import save_clip, save_networks
from saved_run import begin_run, save_weights
from voxray.core.experiment import default_config
from voxray.core.randomness import key
from voxray.core.schema import BYTES, Column, Schema
from voxray.metrics.reconstruction import reconstruction_scores
from voxray.nn.generation import Generator, read_pipeline
from voxray.nn.picture_networks import find_networks, load_networks
from voxray.testing.datasets import write_dataset
from voxray.testing.pipelines import save_tiny_pipeline

NUM = 6
QUICK = ("generation.steps=2", "generation.num_rows=3", "generation.prior_steps=4", "objective.gallery=all")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "unclip", "unclip", DIM)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def save_run(folder: Path, **model: dict[str, Any]) -> Path:
    """Write a dataset with pictures and a run with untrained weights over it; return the run."""
    values = {"data.path": str(folder / "data"), "objective.gallery": "all"}
    values |= {
        f"model.{part}.{name}": value
        for part, sizes in (SMALL | model).items()
        for name, value in sizes.items()
    }
    config = default_config("mindeye", values, "the test").config
    task = mindeye_task(config.model_dump())
    schema = Schema({**task.dataset_schema.columns, "image": Column(BYTES)}, group="stimulus_id")
    images = np.array([*(encoded(seed) for seed in range(NUM)), None], object)[:-1]
    write_dataset(folder / "data", schema, {"val": mindeye_rows(NUM, 1) | {"image": images}}, NUM)
    torch.manual_seed(0)
    run = begin_run(folder / "run", config)
    save_weights(run, config, 1, task.build_model(), is_best=True)
    return run.path


def test_the_best_of_the_priors_samples_becomes_the_picture(
    tmp_path: Path, command: Any, pipeline: Path
) -> None:
    run, out, folder = save_run(tmp_path), tmp_path / "p.parquet", tmp_path / "networks"
    folder.mkdir()
    save_clip(folder)
    save_networks(folder, "efficientnet_b1")
    options = (
        f"generation.pipeline={pipeline}",
        f"generation.networks={folder}",
        "generation.num_images=3",
        *QUICK[:-1],
    )
    said = command("predict", run, out, "--images", *options)
    assert "pictures are made of 3 samples of the prior per row" in said
    assert "3 pictures of 3 rows" in said

    # by hand: each sample's picture, and the one that CLIP finds nearest to the brain's embedding
    table = pq.read_table(out).to_pydict()
    generator = Generator(read_pipeline(str(pipeline)), torch.device("cpu"))
    best: list[np.ndarray] = []
    for row in range(3):
        name = table["sample_id"][row]
        samples = torch.tensor(np.array(table["prior_samples"][row], np.float32)).reshape(3, DIM)
        made = [generator.generate(samples[k], [key(42, name, k)], 2, 7.5, None)[0] for k in range(3)]
        brain = torch.tensor(np.array(table["embedding"][row], np.float32))
        found = F.cosine_similarity(generator.embed(made), brain[None])
        written = np.asarray(Image.open(next((tmp_path / "p_images").glob(f"{row:03d}_*_0.png"))))
        np.testing.assert_array_equal(written, made[int(found.argmax())])
        best.append(written.copy())
    networks = load_networks(find_networks(str(folder)), torch.device("cpu"))
    scores = reconstruction_scores(
        [torch.from_numpy(written) for written in best],
        [torch.from_numpy(pixels(row)) for row in range(3)],
        networks,
    )
    assert set(scores.two_way) == {"CLIP"}
    assert set(scores.distance) == {"EffNet-B1"}
    for line in scores.lines():
        assert line in said
    assert (
        "not measured, as their weights are not in generation.networks: AlexNet(2), AlexNet(5) (alexnet"
        in said
    )
    assert (tmp_path / "p.parquet.html").is_file()


def test_the_low_level_branch_has_its_own_picture(tmp_path: Path, command: Any, pipeline: Path) -> None:
    run, out = save_run(tmp_path, low_level=SMALL_LOW_LEVEL), tmp_path / "p.parquet"
    said = command("predict", run, out, "--images", f"generation.pipeline={pipeline}", *QUICK[:-1])
    table = pq.read_table(out).to_pydict()
    latents = torch.tensor(np.array(table["vae_latent"], np.float32)).reshape(NUM, 4, 8, 8)
    wanted = Generator(read_pipeline(str(pipeline)), torch.device("cpu")).decode(latents[:3])
    for row in range(3):
        written = np.asarray(Image.open(next((tmp_path / "p_images").glob(f"{row:03d}_*_1.png"))))
        np.testing.assert_array_equal(written, wanted[row])
    scores = reconstruction_scores(
        [torch.from_numpy(blurred) for blurred in wanted], [torch.from_numpy(pixels(row)) for row in range(3)]
    )
    assert f"of the low-level branch: {scores.lines()[0]}" in said
    assert "of the low-level branch" in (tmp_path / "p.parquet.html").read_text()


def test_networks_that_are_not_there_are_refused_before_anything(tmp_path: Path, capsys, pipeline) -> None:
    run, out = save_run(tmp_path), tmp_path / "p.parquet"
    options = (f"generation.pipeline={pipeline}", f"generation.networks={tmp_path / 'absent'}", *QUICK[:-1])
    assert "generation.networks: there is no folder" in refused(
        capsys, "predict", run, out, "--images", *options
    )
    assert not out.exists()


def test_a_rows_samples_do_not_depend_on_the_rows_beside_it(pipeline: Path) -> None:
    generation = {"pipeline": str(pipeline), "prior_steps": 4, "num_images": 2, "prior_method": "ddim"}
    task = mindeye_task({"model": SMALL, "objective": {"gallery": "all"}, "generation": generation})
    model = task.build_model().eval()
    columns = mindeye_rows(5, 0) | {"valid": np.ones(5, bool), "position": np.arange(5)}
    (stage,) = task.config.resolved_stages()

    def samples(part: slice) -> np.ndarray:
        batch = task.collate({name: value[part] for name, value in columns.items()})
        with torch.no_grad():
            found = task.evaluate(model, batch, stage)
        assert found.rows is not None
        return found.rows.columns["prior_samples"]

    whole = samples(slice(0, 5))
    assert whole.shape == (5, 2, DIM)
    np.testing.assert_allclose(whole[2:4], samples(slice(2, 4)), rtol=1e-4, atol=1e-5)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0
