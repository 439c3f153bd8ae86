"""`voxray predict --images` of an fMRI encoder: embeddings become pictures, files and a page."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from one_command import refused
from picture_network_files import save_networks
from saved_run import begin_run, save_weights
from voxray.core.experiment import default_config
from voxray.core.pictures import chosen_rows
from voxray.core.randomness import key
from voxray.core.schema import BYTES, Column, Schema
from voxray.metrics.reconstruction import reconstruction_scores
from voxray.nn.generation import Generator, Kind, read_pipeline
from voxray.nn.made_pictures import norm_of_targets
from voxray.nn.picture_networks import find_networks, load_networks
from voxray.tasks.fmri_clip.task import FmriClip
from voxray.testing.datasets import write_dataset
from voxray.testing.pipelines import save_tiny_pipeline

NUM, VOXELS, DIM = 12, 10, 24
QUICK = ("generation.steps=2", "generation.num_rows=3", "generation.guidance=3")


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    kinds: tuple[Kind, ...] = ("unclip", "stable_diffusion")
    return {kind: save_tiny_pipeline(root / kind, kind, DIM) for kind in kinds}


def encoded(seed: int) -> bytes:
    """A PNG of 32 × 32 random pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def rows_of(stimuli: list[int], targets: np.ndarray, with_images: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    names = np.array([f"subj01/t{index:02d}" for index in range(NUM)], object)
    rows = {
        "sample_id": names,
        "stimulus_id": np.array([f"nsd{stimulus:02d}" for stimulus in stimuli], object),
        "nsd_id": np.array(stimuli, np.int64),
        "subject": np.array(["subj01"] * NUM, object),
        "session": np.zeros(NUM, np.int32),
        "session_id": np.array(["1"] * NUM, object),
        "label": np.array([""] * NUM, object),
        "x": rng.normal(size=(NUM, VOXELS)).astype(np.float32),
        "clip_final": targets,
    }
    images = np.array([encoded(stimulus) for stimulus in stimuli] + [None], object)[:-1]
    return rows | ({"image": images} if with_images else {})


def save_run(folder: Path, stimuli: list[int], targets: np.ndarray, with_images: bool = True) -> Path:
    """Write a dataset and a run with untrained weights over it; return the run."""
    values = {"data.path": str(folder / "data"), "model.architecture": "ridge"}
    config = default_config("fmri_clip", values, "the test").config
    columns = {
        **FmriClip(config).schema().columns,
        "x": Column("float32", (VOXELS,)),
        "clip_final": Column("float32", targets.shape[1:]),
    }
    columns |= {"image": Column(BYTES)} if with_images else {}
    schema = Schema(columns, group="stimulus_id")
    statistics = {"mean": float(targets.mean()), "std": float(targets.std()), "count": targets.size}
    rows = rows_of(stimuli, targets, with_images)
    write_dataset(folder / "data", schema, {"val": rows}, 5, {"clip_final": statistics})
    torch.manual_seed(0)
    run = begin_run(folder / "run", config)
    save_weights(run, config, 1, FmriClip(config, schema=schema).build_model(), is_best=True)
    return run.path


STIMULI = [7, 7, 3, 7, 5, 3, 5, 1, 1, 2, 2, 4]


@pytest.fixture(scope="session")
def targets() -> np.ndarray:
    """Embeddings of norms about 6, as a CLIP tower leaves them."""
    rng = np.random.default_rng(2)
    return (0.4 + 1.2 * rng.normal(size=(NUM, DIM))).astype(np.float32)


def test_predictions_become_pictures(tmp_path: Path, command, pipelines, targets) -> None:
    run, out, folder = save_run(tmp_path, STIMULI, targets), tmp_path / "p.parquet", tmp_path / "networks"
    folder.mkdir()
    save_networks(folder, "efficientnet_b1")
    networks = f"generation.networks={folder}"
    options = (f"generation.pipeline={pipelines['unclip']}", networks, "generation.num_images=2", *QUICK)
    said = command("predict", run, out, "--images", *options)
    norm = float(np.sqrt((targets.astype(np.float64) ** 2).sum(1).mean()))
    assert f"the norm {norm:.4g} (that of the dataset's training targets)" in said
    assert "6 pictures of 3 rows" in said

    found = {path.name for path in (tmp_path / "p_images").iterdir()}
    rows = [("000_subj01_t00", 0), ("001_subj01_t02", 2), ("002_subj01_t04", 4)]  # a stimulus each
    assert found == {f"{name}_{part}.png" for name, _ in rows for part in ("0", "1", "truth")}

    # the pixels are those of the pipeline, and the scores those of its CLIP
    generator = Generator(read_pipeline(str(pipelines["unclip"])), torch.device("cpu"))
    table = pq.read_table(out).to_pydict()
    shown = generator.embed([pixels(STIMULI[row]) for _, row in rows])
    assert shown is not None
    scores, firsts = np.zeros((3, 3)), []
    for place, (name, row) in enumerate(rows):
        seeds = [key(42, f"subj01/t{row:02d}", number) for number in range(2)]
        wanted = generator.generate(norm * torch.tensor(table["embedding"][row]), seeds, 2, 3.0)
        for number in range(2):
            made = np.asarray(Image.open(tmp_path / "p_images" / f"{name}_{number}.png"))
            assert np.abs(made.astype(int) - wanted[number]).max() <= 1
        firsts.append(torch.from_numpy(wanted[0]))
        embedded = generator.embed(list(wanted))
        assert embedded is not None
        cosines = torch.nn.functional.cosine_similarity(embedded[:, None], shown[None], dim=-1)
        scores[place] = cosines.mean(0)
        truth = np.asarray(Image.open(tmp_path / "p_images" / f"{name}_truth.png"))
        np.testing.assert_array_equal(truth, pixels(STIMULI[row]))
    others = scores[~np.eye(3, dtype=bool)].mean()
    assert f"CLIP score {np.diag(scores).mean():.3f} with the pictures that were shown, {others:.3f}" in said
    judged = reconstruction_scores(
        firsts,
        [torch.from_numpy(pixels(STIMULI[row])) for _, row in rows],
        load_networks(find_networks(str(folder)), torch.device("cpu")),
    )
    assert len(judged.distance) == 1
    for line in judged.lines():
        assert line in said
    assert "not measured, as their weights are not in generation.networks: AlexNet(2)" in said

    page = (tmp_path / "p.parquet.html").read_text()
    assert page.count("<img alt=") == 9
    assert [page.index(f"nsd{STIMULI[row]:02d}") for _, row in rows] == sorted(
        page.index(f"nsd{STIMULI[row]:02d}") for _, row in rows
    )


def test_stable_diffusion_without_stored_pictures(tmp_path: Path, command, pipelines, targets) -> None:
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    run, out = save_run(tmp_path, STIMULI, unit, with_images=False), tmp_path / "p.parquet"
    pipeline = f"generation.pipeline={pipelines['stable_diffusion']}"
    said = command("predict", run, out, "--images", pipeline, *QUICK)
    assert "(the pipeline's: that of its empty prompt's tokens)" in said
    assert "the dataset stores no pictures" in said
    assert len(list((tmp_path / "p_images").iterdir())) == 3
    said = command("predict", run, tmp_path / "q.parquet", "--images", pipeline, *QUICK)
    for file in (tmp_path / "p_images").iterdir():
        assert file.read_bytes() == (tmp_path / "q_images" / file.name).read_bytes()  # seeded
    command("predict", run, tmp_path / "r.parquet", "--images", pipeline, *QUICK, "generation.seed=1")
    name = "000_subj01_t00_0.png"
    assert (tmp_path / "r_images" / name).read_bytes() != (tmp_path / "p_images" / name).read_bytes()


def test_what_cannot_be_made_is_refused_before_it_begins(tmp_path: Path, pipelines, capsys, targets) -> None:
    run, out = save_run(tmp_path, STIMULI, targets[:, :12].copy()), tmp_path / "p.parquet"
    unclip = f"generation.pipeline={pipelines['unclip']}"
    said = refused(capsys, "predict", run, out, "--images", unclip)
    assert "takes embeddings of 24 numbers, and the model predicts 12 (target 'final')" in said
    assert "adapter_vitl14" in said
    assert "generation.pipeline names no pipeline" in refused(capsys, "predict", run, out, "--images")
    absent = f"generation.pipeline={tmp_path / 'absent'}"
    assert "generation.pipeline: " in refused(capsys, "predict", run, out, "--images", absent)
    assert "add --images" in refused(capsys, "predict", run, out, unclip)
    trained = refused(capsys, "predict", run, out, "--images", unclip, "training.epochs=3")
    assert "training.epochs=3: the model was trained with another value; only generation" in trained
    assert "generation.stepz" in refused(capsys, "predict", run, out, "--images", "generation.stepz=3")
    (tmp_path / "p_images").mkdir()
    assert "p_images exists and is never overwritten" in refused(
        capsys, "predict", run, out, "--images", unclip
    )
    assert not out.exists()


def test_rows_are_the_first_of_each_stimulus() -> None:
    assert chosen_rows(["c", "a", "b", "d"], ["x", "y", "y", "z"], 2) == [1, 0]
    assert chosen_rows(["c", "a"], ["x", "y"], 9) == [1, 0]


def test_targets_of_norm_one_tell_no_norm(targets: np.ndarray) -> None:
    def told(rows: np.ndarray) -> float | None:
        return norm_of_targets({"mean": rows.mean(), "std": rows.std(), "count": rows.size}, rows.shape[1])

    rows = targets.astype(np.float64)
    assert told(rows) == pytest.approx(np.sqrt((rows**2).sum(1).mean()))
    assert told(rows / np.linalg.norm(rows, axis=1, keepdims=True)) is None
    assert norm_of_targets({}, DIM) is None
