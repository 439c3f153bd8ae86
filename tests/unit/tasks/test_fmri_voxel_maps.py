"""What an evaluation keeps of each voxel, against scipy on the predictions, and the figures of it."""

import gzip
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import pearsonr

from fmri_rows import NCSNR, NUM_VOXELS, fmri_rows, fmri_task
from voxray.core.batch import EpochRequest
from voxray.core.evaluation import Evaluation, merge
from voxray.core.experiment import default_config
from voxray.core.figures import RunView
from voxray.core.registry import task_data
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.tasks.fmri_clip.data import SPACE, FmriClipData
from voxray.tasks.fmri_clip.figures import figures
from voxray.tasks.fmri_clip.figures.brain import brain_picture
from voxray.tasks.fmri_clip.task import FmriClip
from voxray.testing.sources import ArraySource

INVERSE = {"architecture": "clip2fmri", "inverse_dim": 16, "min_reliability": 0.5}
SIDE = 4
MASKED = tuple(range(5, 5 + 2 * NUM_VOXELS, 2))
# x runs to the left in the file: its first column is the right-most one.
PLACE = VoxelSpace(
    (SIDE, SIDE, SIDE), (-2.0, 0, 0, 3, 0, 2, 0, -3, 0, 0, 2, -3, 0, 0, 0, 1), "scanner", MASKED
)


def evaluated(task: FmriClip, rows: dict[str, np.ndarray]) -> tuple[torch.nn.Module, Evaluation]:
    torch.manual_seed(0)
    model, stage = task.build_model().eval(), task.config.resolved_stages()[-1]
    request = EpochRequest("val", 16, seed=0, shuffle=False)
    batches = [task.collate(columns) for columns in ArraySource({"val": rows}).batches(request)]
    with torch.no_grad():
        return model, merge([task.evaluate(model, batch, stage) for batch in batches])


def placed(values: dict) -> FmriClip:
    task = fmri_task(values)
    task.statistics["x"][SPACE] = json.loads(json.dumps(PLACE.plain()))
    return task


def files_of(task: FmriClip, rows: dict[str, np.ndarray], split: str = "val") -> dict[str, bytes]:
    return task.evaluation_files(*evaluated(task, rows), split)


def table_of(content: bytes) -> dict[str, np.ndarray]:
    table = pq.read_table(io.BytesIO(content))
    return {name: table.column(name).to_numpy() for name in table.column_names}


def test_the_inverse_keeps_each_voxels_correlation_in_its_place() -> None:
    task, rows = placed({"model": INVERSE}), fmri_rows(50, 2)
    files = files_of(task, rows)
    model, _ = evaluated(task, rows)
    unit_ND = torch.nn.functional.normalize(torch.tensor(rows["clip_final"]))
    with torch.no_grad():
        predicted_Nv = model(unit_ND).numpy()
    kept = np.flatnonzero(np.linspace(-0.1, 0.9, NUM_VOXELS) >= 0.5)
    expected = np.array(
        [pearsonr(predicted_Nv[:, i], rows["x"][:, voxel]).statistic for i, voxel in enumerate(kept)]
    )
    found = table_of(files["voxels_val.parquet"])
    np.testing.assert_array_equal(found["voxel"], kept)
    np.testing.assert_allclose(found["r"], expected, atol=1e-5)
    np.testing.assert_allclose(
        found["r_ceiling"], np.sqrt(NCSNR[kept] ** 2 / (NCSNR[kept] ** 2 + 1)), rtol=1e-5
    )
    nib = pytest.importorskip("nibabel")
    content = gzip.decompress(files["voxel_r_val.nii.gz"])
    image = nib.Nifti1Image.from_stream(io.BytesIO(content))
    np.testing.assert_allclose(image.affine, PLACE.affine_44)
    whole = image.get_fdata().reshape(-1)
    assert set(np.flatnonzero(~np.isnan(whole))) == {MASKED[voxel] for voxel in kept}
    np.testing.assert_allclose(whole[[MASKED[voxel] for voxel in kept]], found["r"], rtol=1e-6)
    assert set(files) == {"voxels_val.parquet", "voxel_r_val.nii.gz", "voxel_r_ceiling_val.nii.gz"}


def test_an_encoder_keeps_the_length_of_each_voxels_weights() -> None:
    task = fmri_task({"model": {"architecture": "ridge", "min_reliability": 0.2}}, measured=True)
    model, merged = evaluated(task, fmri_rows(20, 2))
    kept = np.flatnonzero(np.linspace(-0.1, 0.9, NUM_VOXELS) >= 0.2)
    coef_Dv = np.random.default_rng(0).normal(size=(12, len(kept)))
    task.set_closed_form(model, torch.tensor(coef_Dv), torch.zeros(12))
    files = task.evaluation_files(model, merged, "test")
    assert set(files) == {"voxels_test.parquet"}  # the rows say no place
    found = table_of(files["voxels_test.parquet"])
    np.testing.assert_array_equal(found["voxel"], kept)
    np.testing.assert_allclose(found["weight"], np.sqrt((coef_Dv**2).sum(0)), rtol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "mlp", "hidden_dims": [16]},
        {"architecture": "mlp", "hidden_dims": []},
        {"architecture": "two_stage", "latent_dim": 16, "n_blocks": 1, "layers": ["layer_4"]},
        {"architecture": "clip_adapter", "target": "sd_final", "encoder": {"architecture": "mlp"}},
    ],
)
def test_other_encoders_keep_their_first_layers_weights(model: dict) -> None:
    task = fmri_task({"model": model, "objective": {"gallery": "all"}})
    network, merged = evaluated(task, fmri_rows(20, 2))
    found = table_of(task.evaluation_files(network, merged, "val")["voxels_val.parquet"])
    wide = [p for p in network.parameters() if p.ndim == 2 and p.shape[1] == NUM_VOXELS]
    assert len(wide) == 1
    np.testing.assert_allclose(found["weight"], np.linalg.norm(wide[0].detach(), axis=0), rtol=1e-5)


def drawn(folder: Path, files: dict[str, bytes], split: str = "val") -> list:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return figures(RunView(folder, {"model": {}}, split, {}))


def test_the_figures_are_a_histogram_and_a_map(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    files = files_of(placed({"model": INVERSE}), fmri_rows(50, 2))
    histogram, brain = drawn(tmp_path, files)
    r = table_of(files["voxels_val.parquet"])["r"]
    assert histogram.plot is not None
    (bars,) = histogram.plot["data"]
    counts, _ = np.histogram(r, bins=len(bars["y"]))
    assert bars["y"] == counts.tolist()
    assert f"The mean is {r.mean():.3f}; noise leaves" in histogram.caption
    assert "There is no map" not in histogram.caption
    with Image.open(io.BytesIO(brain.picture)) as picture:
        assert picture.format == "PNG"
    assert "voxel_r_val.nii.gz" in brain.caption


def test_without_a_place_the_histogram_says_why_there_is_no_map(tmp_path: Path) -> None:
    (histogram,) = drawn(tmp_path, files_of(fmri_task({"model": INVERSE}), fmri_rows(50, 2)))
    assert "There is no map: the dataset does not say where its voxels lie" in histogram.caption
    assert figures(RunView(tmp_path, {"model": {}}, "test", {})) == []
    (tmp_path / "voxels_val.parquet").write_bytes(b"PAR1")
    (broken,) = figures(RunView(tmp_path, {"model": {}}, "val", {}))
    assert "evaluate the run again" in broken.caption


def test_slices_have_the_right_hemisphere_on_the_right(tmp_path: Path) -> None:
    files = files_of(placed({"model": {"architecture": "ridge"}}), fmri_rows(20, 2))
    table = pq.read_table(io.BytesIO(files["voxels_val.parquet"]))
    right = np.array([np.unravel_index(voxel, PLACE.shape)[0] < SIDE / 2 for voxel in MASKED])
    weights = {name: table.column(name) for name in table.column_names} | {
        "weight": np.where(right, 1.0, 0.0)
    }
    pq.write_table(
        type(table).from_pydict(weights, metadata=table.schema.metadata), tmp_path / "voxels_val.parquet"
    )
    _, brain = figures(RunView(tmp_path, {"model": {}}, "val", {}))
    with Image.open(io.BytesIO(brain.picture)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    panels = pixels[:, : int(0.8 * pixels.shape[1])]  # the colour bar is right of them
    yellow = np.all(abs(panels - (253, 231, 36)) <= 3, axis=-1)  # viridis' ends
    purple = np.all(abs(panels - (68, 1, 84)) <= 3, axis=-1)
    first = np.nonzero(yellow | purple)[1].min()
    assert purple[:, first].any()
    assert not yellow[:, first].any()


def test_a_standard_space_has_a_glass_brain() -> None:
    pytest.importorskip("nilearn")
    content, about = brain_picture(replace(PLACE, space="mni"), np.linspace(-1, 1, len(MASKED)), "r", True)
    assert about.startswith("Largest values through a transparent brain, in mni")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.width > 2 * picture.height  # four views side by side


def test_slices_stand_in_for_nilearn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    values_V = np.linspace(-1, 1, len(MASKED))
    mni, scanner = (
        brain_picture(replace(PLACE, space=name), values_V, "r", True) for name in ("mni", "scanner")
    )
    assert mni[0] == scanner[0]
    assert mni[1].startswith("Axial slices")
    assert "mni coordinates" in mni[1]
    assert "no coordinate system" in brain_picture(replace(PLACE, space="unknown"), values_V, "r", True)[1]


def prepared_statistics(raw: Path, **values: object) -> dict:
    keys = {f"data.prepare.{key}": value for key, value in {"reliability": False, **values}.items()}
    task = task_data("fmri_clip")(default_config("fmri_clip", keys, "test").config)
    assert isinstance(task, FmriClipData)
    for _ in task.read_raw(raw):
        pass
    return task.column_statistics(None)  # pyright: ignore[reportArgumentType] - no row is read


def test_a_dataset_of_one_mask_keeps_its_place(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    from nsd_folder import roi_of, save_nifti, write_nsd

    raw = write_nsd(tmp_path / "nsd", subjects=(1,), sessions=1)
    space = VoxelSpace.from_plain(prepared_statistics(raw)["x"][SPACE])
    np.testing.assert_array_equal(np.unravel_index(space.voxels, space.shape), np.nonzero(roi_of(1) > 0))
    (mask,) = raw.rglob("nsdgeneral.nii.gz")
    np.testing.assert_array_equal(space.affine_44, nib.load(mask).affine)
    write_nsd(tmp_path / "two", subjects=(1, 2), sessions=1)
    turned = np.roll(roi_of(1), 1, axis=0)
    save_nifti(tmp_path / "two/ppdata/subj02/func1pt8mm/roi/nsdgeneral.nii.gz", turned)
    assert prepared_statistics(tmp_path / "two") == {}
    save_nifti(tmp_path / "two/ppdata/subj02/func1pt8mm/roi/nsdgeneral.nii.gz", roi_of(1))
    assert prepared_statistics(tmp_path / "two")["x"][SPACE] == space.plain()


def test_arrays_have_no_place(shared_data: Path) -> None:
    assert prepared_statistics(shared_data / "fmri" / "digits69", targets=["label"]) == {}
