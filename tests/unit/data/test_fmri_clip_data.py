"""The data of the fMRI-to-CLIP task: layouts, options, batches, synthetic folders and what they promise."""

import filecmp
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import zscore

from nsd_folder import pixels_of, shown_by, write_nsd, write_stimuli
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.schema import BYTES, Schema
from voxray.core.task import BadRow
from voxray.data.decode import apply_stages
from voxray.data.formats.planted_world import World, recall_at_1, ridge_guess, unit_rows
from voxray.tasks.fmri_clip.data import FmriClipData
from voxray.tasks.fmri_clip.synth import SYNTH_SIZES, SynthSize, write_subject


def make(**values: object) -> FmriClipData:
    config = default_config(
        "fmri_clip", {f"data.prepare.{key}": value for key, value in values.items()}, "test"
    )
    task = task_data("fmri_clip")(config.config)
    assert isinstance(task, FmriClipData)
    return task


def rows_of(source: Path, num: int | None = None, **values: object) -> tuple[Schema, list[dict]]:
    """Return the schema that the raw files give, and the first rows after all map stages."""
    task = make(**values)
    rows = list(task.read_raw(source))
    return task.schema(), [apply_stages(task.map_stages(), row) for row in rows[:num]]


def columns_of(schema: Schema, rows: list[dict]) -> dict[str, np.ndarray]:
    columns = {
        name: np.stack([row[name] for row in rows])
        if column.is_tensor
        else np.array([row[name] for row in rows] + [None], object)[:-1]
        for name, column in schema.columns.items()
    }
    return columns | {"valid": np.ones(len(rows), bool), "position": np.arange(len(rows))}


def trials(num: int = 12, num_voxels: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, num_voxels)).astype(np.float32)
    return {"x": x, "nsd_id": np.arange(num) // 3, "session": np.arange(num) % 2 + 1}


# --- layouts and options
# -------------------------------------------------------------------------------------------------------


def test_npz_with_targets_becomes_a_batch(tmp_path: Path) -> None:
    final = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    layer = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    np.savez(tmp_path / "subj01.npz", **trials())
    np.savez(tmp_path / "clip.npz", nsd_id=np.arange(4), final=final, layer_4=layer)
    schema, rows = rows_of(tmp_path)
    assert (schema.group, schema.columns["clip_final"].shape) == ("stimulus_id", (6,))
    assert "image" not in schema.columns
    columns = columns_of(schema, rows)
    batch = FmriClipData(make().config, schema=schema).collate(columns)
    torch.testing.assert_close(batch.x_BV, torch.tensor(trials()["x"]))
    assert batch.targets.keys() == {"final", "layer_4"}
    for name, values in (("final", final), ("layer_4", layer)):
        expected = values[trials()["nsd_id"]]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        torch.testing.assert_close(batch.targets[name], torch.tensor(expected))
    assert batch.nsd_id_B.tolist() == trials()["nsd_id"].tolist()
    assert batch.session_B.tolist() == trials()["session"].tolist()
    assert (batch.group_id[4], batch.subject[0], batch.image_BCHW) == ("nsd00001", "subj01", None)
    assert batch.targets["final"].norm(dim=1).allclose(torch.ones(12))
    assert batch.to(torch.device("meta")).targets["final"].is_meta


def test_layouts_are_told_apart(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(InputError, match=r"holds none of nsd_stim_info_merged.csv"):
        rows_of(tmp_path)
    haxby = shared_data / "fmri" / "haxby2001_sub001"
    with pytest.raises(InputError, match=r"both .*events.tsv and .npz files; choose with layout=events or"):
        rows_of(haxby)
    schema, rows = rows_of(haxby, layout="npz", files="slice_blocks.npz", group="session_id")
    assert (len(rows), schema.group, rows[0]["x"].shape) == (64, "session_id", (530,))
    assert (rows[0]["nsd_id"], rows[0]["session"], rows[0]["label"]) == (-1, 1, "bottle")


def test_group_and_subjects(tmp_path: Path) -> None:
    np.savez(tmp_path / "subj01.npz", **trials())
    np.savez(tmp_path / "subj02.npz", **trials(num_voxels=7))
    with pytest.raises(InputError, match=r"subj01 has 5 voxels, subj02 7; .* subjects=\[subj01\]"):
        rows_of(tmp_path)
    rows = rows_of(tmp_path, subjects=["subj02"])[1]
    assert {row["subject"] for row in rows} == {"subj02"}
    assert rows[0]["x"].shape == (7,)
    with pytest.raises(InputError, match="no subject 'subj03'; it has: subj01, subj02"):
        rows_of(tmp_path, subjects=["subj03"])
    assert rows_of(tmp_path, subjects=["subj01"], group="session_id")[0].group == "session_id"


def test_rows_without_session_or_picture(shared_data: Path, tmp_path: Path) -> None:
    digits = shared_data / "fmri" / "digits69"
    bad = list(make(group="session_id").read_raw(digits))
    assert len(bad) == 70
    assert all(isinstance(row, BadRow) and "no session; set group=stimulus_id" in row.reason for row in bad)
    np.savez(tmp_path / "subj01.npz", **trials())
    with pytest.raises(InputError, match="there are no pictures to store; set images=none"):
        rows_of(tmp_path, images="pixels")


def test_pictures_are_stored_as_asked(shared_data: Path) -> None:
    folder = shared_data / "fmri" / "kriegeskorte92"
    schema, rows = rows_of(folder, 2, files="hIT_rdms.npz", images="pixels", image_size=175)
    with Image.open(folder / "images" / "stim02.png") as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert (schema.columns["image"].dtype, schema.columns["image"].shape) == ("uint8", (3, 175, 175))
    np.testing.assert_array_equal(rows[1]["image"], expected)
    schema, rows = rows_of(folder, 2, files="hIT_rdms.npz", image_size=32)
    assert schema.columns["image"].dtype == BYTES
    assert Image.open(io.BytesIO(rows[1]["image"])).size == (32, 32)
    task = FmriClipData(make().config, schema=schema)
    columns = columns_of(schema, rows)
    for stage in task.read_stages():
        columns = stage.function(columns)
    batch = task.collate(columns)
    assert batch.image_BCHW is not None
    decoded = np.asarray(Image.open(io.BytesIO(rows[1]["image"])))
    np.testing.assert_array_equal(batch.image_BCHW[1].numpy(), decoded.transpose(2, 0, 1))
    assert "image" not in rows_of(folder, 1, files="hIT_rdms.npz", images="none")[0].columns


def test_digits_are_read_with_their_pictures(shared_data: Path) -> None:
    folder = shared_data / "fmri" / "digits69"
    schema, rows = rows_of(folder, images="pixels", image_size=28)
    with np.load(folder / "digits69.npz") as raw:
        np.testing.assert_array_equal(np.stack([row["image"][0] for row in rows]), raw["stimuli"])
        np.testing.assert_array_equal(np.stack([row["x"] for row in rows]), raw["fmri"])
        assert [row["split"] for row in rows] == raw["source_split"].tolist()
    assert schema.columns["x"].shape == (None,)


def test_haxbys_runs(shared_data: Path) -> None:
    nib = pytest.importorskip("nibabel")
    folder = shared_data / "fmri" / "haxby2001_sub001"
    task = make(
        layout="events",
        files="*_25mm.nii.gz",
        mask="masks25mm_brain.nii.gz",
        group="session_id",
        hrf_delay_s=5.0,
    )
    rows = list(task.read_raw(folder))
    assert len(rows) == 64
    mask = nib.load(folder / "masks25mm_brain.nii.gz").get_fdata() > 0
    run = zscore(nib.load(folder / "run003_bold_25mm.nii.gz").get_fdata()[mask].T)
    (row,) = [row for row in rows if row["session"] == 3 and row["label"] == "face"]
    table = [line.split("\t") for line in (folder / "run003_bold_events.tsv").read_text().splitlines()]
    (onset,) = [float(line[0]) for line in table if line[2] == "face"]
    first = round((onset + 5) / 2.5)
    found = apply_stages(task.map_stages(), row)
    np.testing.assert_allclose(found["x"], run[first : first + 9].mean(0), atol=1e-5)
    assert (found["stimulus_id"], found["session_id"]) == ("face", "haxby2001_sub001/run003_bold")


def test_nsd_folders(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    write_stimuli(tmp_path)
    schema, rows = rows_of(tmp_path, 20, image_size=8)
    assert schema.columns["image"].dtype == BYTES
    assert [row["nsd_id"] for row in rows] == shown_by(1)[:20].tolist()
    np.savez(tmp_path / "clip.npz", nsd_id=np.arange(600), final=np.ones((600, 4)))
    assert "image" not in rows_of(tmp_path, 1)[0].columns
    assert {row.get("split") for row in make().read_raw(tmp_path)} == {None, "test"}
    assert {row.get("split") for row in make(test_split="drawn").read_raw(tmp_path)} == {None}
    assert {row.get("split") for row in make(group="session_id").read_raw(tmp_path)} == {None}
    (row, *_) = rows_of(tmp_path, 1, images="pixels", image_size=8)[1]
    expected = Image.fromarray(pixels_of(row["nsd_id"])).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(row["image"], np.asarray(expected).transpose(2, 0, 1))


# --- towers and repeats
# -------------------------------------------------------------------------------------------------------


def test_towers_are_known_before_a_file_is_read(tmp_path: Path) -> None:
    task = make(clip=[{"model": "vit_b32", "layers": [4, 8]}, {"model": "lab/own", "prefix": "sd"}])
    columns = {name: c.shape for name, c in task.schema().columns.items() if name.startswith("clip_")}
    widths = {"clip_final": (512,), "clip_layer_4": (768,), "clip_layer_8": (768,), "clip_sd_final": (None,)}
    assert columns == widths
    first, second = task.embedders()
    assert (first.model_id, first.revision) == ("openai/clip-vit-base-patch32", "main")
    assert dict(first.options) == {"layers": "4,8", "prefix": "clip_"}
    assert (second.model_id, second.inputs, list(second.outputs)) == (
        "lab/own",
        ("pixels",),
        ["clip_sd_final"],
    )
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no CLIP tower that can be read"):
        make(clip=[{"model": str(tmp_path)}]).embedders()
    with pytest.raises(InputError, match="a block is named twice"):
        make(clip=[{"model": "lab/own", "layers": [2, 2]}])


def test_a_flat_dataset_names_its_targets() -> None:
    task = make(format="table", targets=["final", "layer_4"])
    assert {"clip_final", "clip_layer_4"} <= task.schema().columns.keys()
    assert "clip_final" not in make(targets=["final"]).schema().columns


def test_the_subject_is_chosen_as_the_guide_writes_it() -> None:
    assert make(subject="subj01").config.data.prepare.subjects == ("subj01",)


# --- synthetic folders
# -------------------------------------------------------------------------------------------------------

SMALL_NSD = {kind: SynthSize(kind, 2, 750, 40, (6, 7, 5), 12, num_shared=60) for kind in ("nifti", "hdf5")}


def test_tiny_is_small_repeatable_and_honest(tmp_path: Path) -> None:
    task = make()
    report = task.synth(tmp_path / "a", "tiny", 3)
    assert report == make().synth(tmp_path / "b", "tiny", 3)
    names = [path.name for path in (tmp_path / "a").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names
    make().synth(tmp_path / "c", "tiny", 4)
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "c", names, shallow=False)[0] == []
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) < 20e6
    assert report.chance < report.floor < report.oracle <= 1
    schema, rows = rows_of(tmp_path / "a")
    assert len(rows) == report.num_rows == 900
    assert (schema.columns["clip_final"].shape, rows[0]["x"].shape) == ((768,), (1000,))
    assert np.linalg.norm(rows[0]["clip_layer_8"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["nifti", "hdf5"])
def test_nsds_layout_reads_back_as_the_worlds_responses(tmp_path: Path, kind: str) -> None:
    nib = pytest.importorskip("nibabel")
    spec = SMALL_NSD[kind]
    report = write_subject(tmp_path, spec, 0)
    world = spec.world(0)
    rows = rows_of(tmp_path)[1]
    assert len(rows) == report.num_rows == 1500
    with np.load(tmp_path / "clip.npz") as clip:
        index_of = {nsd_id: index for index, nsd_id in enumerate(clip["nsd_id"].tolist())}
    for session in (0, 1):
        here = rows[750 * session : 750 * (session + 1)]
        stimuli = np.array([index_of[row["nsd_id"]] for row in here])
        expected = zscore(world.responses(stimuli, session))
        # whole numbers of 1/300 percent, where a standard deviation is 1 to 3 percent
        np.testing.assert_allclose(np.stack([row["x"] for row in here]), expected, atol=5e-3)
        np.testing.assert_allclose(here[0]["clip_final"], world.targets("final")[stimuli[0]], atol=1e-6)
    assert sum(row.get("split") == "test" for row in rows) == 60 * 3
    if kind == "nifti":
        (path, _) = sorted(tmp_path.rglob("betas_session*.nii.gz"))
        assert nib.load(path).shape == (*spec.volume, 750)
    (mask,) = tmp_path.rglob("nsdgeneral.nii.gz")
    affine_44, code = nib.load(mask).get_sform(coded=True)
    middle = [(size - 1) / 2 for size in spec.volume]
    np.testing.assert_allclose(affine_44 @ [*middle, 1], [0, 0, 0, 1], atol=1e-5)
    assert (code, nib.load(mask).header.get_zooms()) == (1, pytest.approx((1.8, 1.8, 1.8)))
    picture = rows_of(tmp_path, 1, images="pixels", image_size=12)[1][0]
    np.testing.assert_array_equal(
        picture["image"], world.picture(index_of[picture["nsd_id"]], 12).transpose(2, 0, 1)
    )


def test_full_has_the_real_shapes() -> None:
    full = SYNTH_SIZES["full"]
    assert (full.num_trials, full.num_voxels, full.volume, full.num_stimuli) == (
        30_000,
        15_724,
        (81, 104, 83),
        10_000,
    )


def test_no_linear_model_beats_the_oracle() -> None:
    """With unlimited repeats the oracle is nearly perfect; ridge on many trials comes near it from below."""
    world = World(0, 1100, 60, 8, 1.0)
    y, tests = world.targets("final"), np.arange(100)
    train = np.repeat(np.arange(100, 1100), 4)
    x = world.responses(tests, 1)
    oracle = recall_at_1(world.best_guess(x), y[tests])
    ridge = recall_at_1(ridge_guess(world.responses(train, 2), y[train], x), y[tests])
    assert 0.8 * oracle < ridge <= oracle + 0.03
    noiseless = world.codes[tests] @ world.voxel_map / np.float32(np.sqrt(1 + world.noise**2))
    assert recall_at_1(world.best_guess(noiseless, 10**6), y[tests]) > max(0.95, oracle)
    assert x.std() == pytest.approx(1, abs=0.1)
    cosine = (unit_rows(world.best_guess(x)) * y[tests]).sum(1).mean()
    assert 0.3 < cosine < 0.95
