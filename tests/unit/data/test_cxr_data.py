"""The chest X-ray task's rows and batches, its linear floor, and what its synthetic radiographs promise."""

import filecmp
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from voxray.core.splits import assign_splits
from voxray.core.task import BadRow, SynthReport
from voxray.data.config import SplitsConfig
from voxray.data.formats.cxr import read_radiographs
from voxray.tasks.cxr_memory import data
from voxray.tasks.cxr_memory.config import LABELS, Config, CxrPrepareConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthReport]:
    out = tmp_path_factory.mktemp("synth") / "raw"
    return out, data.synth(out, "tiny", seed=0)


@pytest.fixture(scope="module")
def columns(tiny: tuple[Path, SynthReport]) -> dict[str, np.ndarray]:
    (stage,) = data.map_stages()
    rows = [stage.function(row) for row in data.read_raw(tiny[0], CxrPrepareConfig())]
    return {name: np.array([row[name] for row in rows]) for name in data.schema(Config()).columns}


def test_the_schema_has_its_shape_from_the_config() -> None:
    assert data.schema(Config()).columns["image"].shape == (1, None, None)
    sized = data.schema(Config.model_validate({"data": {"prepare": {"image_size": 96}}}))
    assert sized.columns["image"].shape == (1, 96, 96)
    assert sized.columns["labels"].names == LABELS


def test_no_ray_is_imported() -> None:
    code = "import sys, voxray.tasks.cxr_memory.data; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_collate_owns_its_memory_and_hides_padding() -> None:
    columns = {
        "sample_id": np.array(["a", "b"], dtype=object),
        "patient_id": np.array(["p", "q"], dtype=object),
        "image": np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4),
        "labels": np.ones((2, 14), np.float32),
        "valid": np.array([True, False]),
        "position": np.array([7, 9]),
    }
    for column in columns.values():
        column.flags.writeable = False  # as a memory map is
    batch = data.collate(columns)
    assert (batch.sample_id, batch.group_id) == (["a", "b"], ["p", "q"])
    assert batch.image_BCHW.dtype == torch.uint8
    assert batch.image_BCHW.data_ptr() % 64 == 0
    assert batch.image_BCHW.data_ptr() != columns["image"].ctypes.data
    assert torch.equal(batch.image_BCHW, torch.arange(32).reshape(2, 1, 4, 4).byte())
    assert batch.labels_BK[0].tolist() == [1.0] * 14
    assert batch.labels_BK[1].isnan().all()
    assert batch.position_B.tolist() == [7, 9]
    assert len(batch) == 2


def test_the_floor_is_scikit_learns(columns: dict[str, np.ndarray]) -> None:
    train = {"image": columns["image"][:300], "labels": columns["labels"][:300].copy()}
    train["labels"][:, 0] = 1  # a single class
    train["labels"][100:, 1] = np.nan
    scores = data.floor(train, {"image": columns["image"][300:400]})
    assert scores.shape == (100, 14)
    assert len(np.unique(scores[:, 0])) == 1
    pixels = columns["image"].reshape(len(columns["image"]), -1).astype(np.float32) / 255
    pca = PCA(60, whiten=True, svd_solver="full").fit(pixels[:300])
    for label, rows in ((1, 100), (2, 300)):
        model = LogisticRegression(max_iter=1000).fit(
            pca.transform(pixels[:rows]), columns["labels"][:rows, label]
        )
        expected = model.predict_proba(pca.transform(pixels[300:400]))[:, 1]
        assert np.corrcoef(scores[:, label], expected)[0, 1] > 0.95  # the randomised solver differs a little


def test_floor_of_large_images_averages_blocks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 130, 130), dtype=np.uint8)
    images[20:, :, :65] //= 2
    labels = np.repeat([0.0, 1.0], 20).astype(np.float32)[:, None]
    scores = data.floor({"image": images[::2], "labels": labels[::2]}, {"image": images[1::2]})
    assert roc_auc_score(labels[1::2, 0], scores[:, 0]) == 1.0


def test_synth_is_the_nih_layout(tiny: tuple[Path, SynthReport]) -> None:
    out, report = tiny
    rows = list(read_radiographs(out, LABELS, "auto"))
    assert report.num_rows == len(rows) == 900
    assert not any(isinstance(row, BadRow) for row in rows)
    assert {row["image_size"] for row in rows} == {64}
    assert len(list(out.glob("images_*/images"))) == 4
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 20e6
    patients = [row["patient_id"] for row in rows]
    assert 150 < len(set(patients)) < 400
    assert sum(np.sum([row["labels"] for row in rows], axis=0) < 12) == 0  # every label can be scored
    assert (out / "Data_Entry_2017.csv").read_text().splitlines()[0].endswith("[x,y],")


def test_the_same_seed_writes_the_same_bytes(tiny: tuple[Path, SynthReport], tmp_path: Path) -> None:
    assert data.synth(tmp_path / "again", "tiny", seed=0) == tiny[1]
    names = [path.relative_to(tiny[0]).as_posix() for path in tiny[0].rglob("*") if path.is_file()]
    assert len(names) == 901
    assert filecmp.cmpfiles(tiny[0], tmp_path / "again", names, shallow=False)[0] == names
    data.synth(tmp_path / "other", "tiny", seed=1)
    assert (
        filecmp.cmp(tiny[0] / "Data_Entry_2017.csv", tmp_path / "other" / "Data_Entry_2017.csv", False)
        is False
    )


def test_the_report_holds_for_who_measures_it(
    tiny: tuple[Path, SynthReport], columns: dict[str, np.ndarray]
) -> None:
    report = tiny[1]
    assert report.metric == "auroc"
    assert report.chance == 0.5
    assert 0.9 < report.oracle < 0.98
    assert 0.5 < report.floor < 0.65
    split_of = assign_splits(columns["patient_id"].tolist(), SplitsConfig(), 0, columns["labels"])
    train = np.array([split_of[patient] == "train" for patient in columns["patient_id"]])
    scores = data.floor(
        {"image": columns["image"][train], "labels": columns["labels"][train]},
        {"image": columns["image"][~train]},
    )
    assert roc_auc_score(columns["labels"][~train], scores) == pytest.approx(report.floor, abs=1e-6)


def test_textures_survive_a_mirror() -> None:
    """Training flips images left–right: a label must not become another one's texture."""
    assert len(set(data.TEXTURES)) == len(LABELS)
    assert all(0 <= degrees <= 90 for _, degrees, _ in data.TEXTURES)  # the angle's sign is drawn at random


@pytest.mark.parametrize("size", ["tiny", "small", "full"])
def test_prevalences(size: str) -> None:
    spec = data.SYNTH_SIZES[size]
    shares = spec.prevalences()
    assert (np.argsort(shares) == np.argsort(data.NIH_PREVALENCE)).all()
    if size == "full":
        np.testing.assert_allclose(shares, data.NIH_PREVALENCE)
    cohort = data._draw_cohort(spec, np.random.default_rng(0))
    np.testing.assert_allclose(cohort.truth_NK.mean(axis=0), shares, atol=1.5 / spec.num_images)
    missed = 1 - (cohort.truth_NK & cohort.labels_NK).sum() / cohort.truth_NK.sum()
    assert missed == pytest.approx(data.MISSED_RATE, abs=0.02)
