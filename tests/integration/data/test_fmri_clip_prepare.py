"""fMRI → datasets on a real Ray cluster: CLIP targets, repeats as one row, voxels' reliability, MindEye."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindeye2_folder import write_mindeye2
from nsd_folder import pixels_of, shown_by, write_nsd, write_stimuli
from voxray.config.errors import InputError
from voxray.core.batch import BatchRules, EpochRequest
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data import embed
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.data.inspect import inspect, stats
from voxray.data.local import LocalStream
from voxray.data.manifest import Manifest
from voxray.data.prepare import prepare
from voxray.data.verify import verify
from voxray.nn.clip_vision import ClipVision
from voxray.tasks.fmri_clip.data import FmriClipData, draw_repeat
from voxray.testing.frozen import save_tiny_clip

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make(values: dict[str, object]) -> FmriClipData:
    task = task_data("fmri_clip")(default_config("fmri_clip", values, "test").config)
    assert isinstance(task, FmriClipData)
    return task


def prepared(raw: Path, out: Path, **values: object) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Prepare with keys of `data.prepare`; return the manifest and all rows with their splits."""
    keys = {f"data.prepare.{key.replace('__', '.')}": value for key, value in values.items()}
    keys["data.embed.cache_dir"] = str(out.parent / "frozen")
    manifest = prepare(make(keys), raw, out).manifest
    assert verify(out) == []
    assert [path.name for path in out.iterdir() if path.name == "unmerged"] == []
    return manifest, all_rows(out)


def all_rows(out: Path) -> dict[str, np.ndarray]:
    stream = LocalStream(out)
    parts = [
        stream.read_split(split) | {"split": np.full(stream.num_rows(split), split)}
        for split in stream.manifest.splits
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def write_trials(folder: Path, num_stimuli: int = 40, num_voxels: int = 30) -> dict[str, np.ndarray]:
    """Write subj01.npz: each stimulus 3 times, the last one twice; 4 sessions."""
    rng = np.random.default_rng(0)
    shown = rng.permutation(np.repeat(np.arange(num_stimuli), 3))
    shown = np.delete(shown, np.flatnonzero(shown == num_stimuli - 1)[0])
    ratio = np.linspace(0, 2, num_voxels)
    x = rng.standard_normal((num_stimuli, num_voxels))[shown] * ratio
    x += rng.standard_normal(x.shape)
    arrays = {"x": x.astype(np.float32), "nsd_id": shown, "session": np.arange(len(shown)) % 4 + 1}
    folder.mkdir()
    np.savez(folder / "subj01.npz", **arrays)
    return arrays


# --- CLIP
# -------------------------------------------------------------------------------------------------------


def test_clips_targets_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_trials(tmp_path / "raw", num_stimuli=12)
    write_stimuli(tmp_path / "raw")
    towers = [{"model": str(save_tiny_clip(tmp_path / "a")), "layers": [1, 3], "prefix": "sd"}]
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds", clip=towers)
    shapes = {name: c.shape for name, c in manifest.schema.columns.items() if name.startswith("clip_")}
    assert shapes == {"clip_sd_final": (24,), "clip_sd_layer_1": (32,), "clip_sd_layer_3": (32,)}
    assert "image" not in manifest.schema.columns
    assert list(manifest.recipe.networks[0]["outputs"]) == list(shapes)
    assert len(rows["x"]) == len(raw["x"])
    network = ClipVision(towers[0]["model"], "", "float32", "cpu", layers="1,3", prefix="clip_sd_")
    for row in range(0, len(rows["x"]), 5):
        made = network({"pixels": pixels_of(int(rows["nsd_id"][row]))[None]})
        for name, values in made.items():
            np.testing.assert_allclose(rows[name][row], values[0], rtol=1e-4, atol=1e-5)

    def refuse(*_: object) -> None:
        raise AssertionError("it was computed before")

    monkeypatch.setattr(embed, "_compute", refuse)
    _, again = prepared(tmp_path / "raw", tmp_path / "ds2", clip=towers, images="encoded", image_size=8)
    np.testing.assert_array_equal(again["clip_sd_layer_3"], rows["clip_sd_layer_3"])
    assert again["image"][0].startswith(b"\x89PNG")


def test_clip_wants_pictures_and_names_of_its_own(tmp_path: Path) -> None:
    tower = str(save_tiny_clip(tmp_path / "clip"))
    write_trials(tmp_path / "raw")
    with pytest.raises(InputError, match=r"needs the pictures, and the raw files hold none"):
        prepared(tmp_path / "raw", tmp_path / "ds", clip=[{"model": tower}])
    np.savez(tmp_path / "raw" / "clip.npz", nsd_id=np.arange(40), final=np.ones((40, 4)))
    with pytest.raises(InputError, match=r"hold the target 'clip_final', .* give the tower a `prefix`"):
        prepared(tmp_path / "raw", tmp_path / "ds", clip=[{"model": tower}])
    write_stimuli(tmp_path / "raw")
    with pytest.raises(InputError, match=r"has the blocks 1 to 3, none is 4; leave it out"):
        prepared(tmp_path / "raw", tmp_path / "ds", clip=[{"model": tower, "layers": [4], "prefix": "b"}])
    with pytest.raises(InputError, match=r"vit_b32 has the blocks 1 to 12, none is 13"):
        make({"data.prepare.clip": [{"model": "vit_b32", "layers": [13]}]})
    with pytest.raises(InputError, match=r"two towers make the same columns"):
        make({"data.prepare.clip": [{"model": "vit_b32"}, {"model": "vit_l14"}]})
    assert not (tmp_path / "ds").exists()


# --- repeats and reliability
# -------------------------------------------------------------------------------------------------------


def expected_mean(raw: dict[str, np.ndarray], nsd_id: int) -> np.ndarray:
    return raw["x"][raw["nsd_id"] == nsd_id].astype(np.float64).mean(0)


def test_repeats_are_averaged(tmp_path: Path) -> None:
    raw = write_trials(tmp_path / "raw")
    np.savez(tmp_path / "raw" / "clip.npz", nsd_id=np.arange(40), final=np.eye(40))
    trials, _ = prepared(tmp_path / "raw", tmp_path / "trials")
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds", repeats="averaged", shard_mb=0.004)
    assert len(rows["x"]) == 40
    assert len(manifest.shards) > 3
    for i, nsd_id in enumerate(rows["nsd_id"].tolist()):
        np.testing.assert_allclose(rows["x"][i], expected_mean(raw, nsd_id), rtol=1e-5, atol=1e-6)
        assert rows["clip_final"][i].argmax() == nsd_id
        assert rows["num_trials"][i] == (2 if nsd_id == 39 else 3)
        assert rows["sample_id"][i] == f"subj01/nsd{nsd_id:05d}"
        sessions = set(raw["session"][raw["nsd_id"] == nsd_id].tolist())
        (session,) = sessions if len(sessions) == 1 else (-1,)
        assert (rows["session"][i], rows["session_id"][i]) == (session, f"subj01/{session}" * (session > 0))
    assert -1 in rows["session"]
    # groups, splits and reliability are those of the trials
    groups = {split: counts.groups for split, counts in manifest.counts.items()}
    assert groups == {split: counts.groups for split, counts in trials.counts.items()}
    assert manifest.counts["train"].rows == groups["train"]
    assert manifest.statistics["x"]["reliability"] == trials.statistics["x"]["reliability"]
    train = rows["x"][rows["split"] == "train"]
    assert manifest.statistics["x"]["std"] == pytest.approx(train.std(), rel=1e-5)


def test_repeats_are_averaged_within_a_session(tmp_path: Path) -> None:
    raw = write_trials(tmp_path / "raw")
    _, rows = prepared(tmp_path / "raw", tmp_path / "ds", repeats="averaged", group="session_id")
    pairs = set(zip(raw["nsd_id"].tolist(), raw["session"].tolist(), strict=True))
    assert set(zip(rows["nsd_id"].tolist(), rows["session"].tolist(), strict=True)) == pairs
    assert len(rows["x"]) == len(pairs)


def test_repeats_are_stacked_drawn_and_averaged(tmp_path: Path) -> None:
    raw = write_trials(tmp_path / "raw")
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds", repeats="stacked")
    assert manifest.schema.columns["x"].shape == (3, 30)
    last = rows["nsd_id"].tolist().index(39)
    assert np.isnan(rows["x"][last, 2]).all()
    assert not np.isnan(np.delete(rows["x"], last, axis=0)).any()
    stream = LocalStream(tmp_path / "ds")
    task = FmriClipData(make({}).config, manifest.statistics, manifest.schema)
    (columns,) = stream.batches(EpochRequest("train", 64, seed=1))
    batch = task.collate(columns)
    assert batch.x_BRV is not None
    means = np.stack([expected_mean(raw, nsd_id) for nsd_id in batch.nsd_id_B.tolist()])
    np.testing.assert_allclose(batch.x_BV.numpy(), means, rtol=1e-4, atol=1e-5)
    drawn = [draw_repeat(batch, key).x_BV.numpy() for key in range(60)]
    for x_BV in drawn:
        assert not np.isnan(x_BV).any()
    for row, nsd_id in enumerate(batch.nsd_id_B.tolist()):
        own = {trial.tobytes() for trial in raw["x"][raw["nsd_id"] == nsd_id]}
        assert {x_BV[row].tobytes() for x_BV in drawn} == own  # each of them, and nothing else
    # a row's draw depends on its position, not on its place in the batch
    half = draw_repeat(batch.rows(slice(5, None)), 3).x_BV.numpy()
    np.testing.assert_array_equal(half, drawn[3][5:])


def test_reliability_is_of_training_rows_and_shown(tmp_path: Path) -> None:
    raw = write_trials(tmp_path / "raw", num_stimuli=400)
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds")
    found = manifest.statistics["x"]
    train = set(rows["nsd_id"][rows["split"] == "train"].tolist())
    assert found["num_repeated"] == len(train)
    assert len(found["reliability"]) == len(found["ncsnr"]) == 30
    assert found["reliability"][0] == pytest.approx(0, abs=0.15)
    assert found["ncsnr"][-1] == pytest.approx(2, rel=0.1)
    kept = np.isin(raw["nsd_id"], list(train))
    x, shown = raw["x"][kept].astype(np.float64), raw["nsd_id"][kept]
    noise = np.mean([x[shown == i].var(axis=0, ddof=1) for i in sorted(train)], axis=0)
    expected = np.sqrt(np.maximum(0, x.var(axis=0, ddof=1) - noise) / noise)
    np.testing.assert_allclose(found["ncsnr"], expected, atol=2e-5)
    for tables in (inspect(tmp_path / "ds"), stats(tmp_path / "ds")):
        reliability = next(row for row in tables["quantiles"] if row["statistic"] == "reliability")
        assert reliability["50 %"] == pytest.approx(np.median(found["reliability"]))
        assert reliability["entries"] == 30
    without, _ = prepared(tmp_path / "raw", tmp_path / "ds2", reliability=False)
    assert "reliability" not in without.statistics["x"]


# --- layouts
# -------------------------------------------------------------------------------------------------------


def test_mindeyes_tars_are_trials(tmp_path: Path) -> None:
    mindeye = task_data("mindeye")(default_config("mindeye", {}, "test").config)
    mindeye.synth(tmp_path / "raw", "tiny", 0)
    stored = {row["sample_id"]: row for row in mindeye.read_raw(tmp_path / "raw")}
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds", subjects=["subj01"])
    num_trials = sum(len(set(row["trials"])) for row in stored.values() if row["subject"] == "subj01")
    assert len(rows["x"]) == num_trials
    for i in range(0, len(rows["x"]), 97):
        name, _, repeat = rows["sample_id"][i].rpartition("/")
        whole = mindeye.map_stages()[0].function(stored[name])
        np.testing.assert_array_equal(rows["x"][i], whole["voxels"][int(repeat)])
        assert rows["split"][i] == stored[name]["split"]
    assert any(name.startswith("clip_") for name in manifest.schema.columns)


def test_mindeye2s_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shown = {"train": range(40), "new_test": range(40, 50), "test": range(45, 60)}
    betas, images = write_mindeye2(
        raw, {folder: [(nsd_id, nsd_id * 20) for nsd_id in ids] for folder, ids in shown.items()}
    )
    manifest, rows = prepared(raw, tmp_path / "ds", images="pixels")
    np.testing.assert_array_equal(rows["x"], betas[rows["nsd_id"] * 20])
    assert set(rows["nsd_id"].tolist()) == set(range(50))
    assert set(rows["nsd_id"][rows["split"] == "test"].tolist()) == set(range(40, 50))
    assert (rows["session"] == rows["nsd_id"] * 20 // 750 + 1).all()
    expected = np.round(images[rows["nsd_id"][3]].astype(np.float32) * 255)
    np.testing.assert_array_equal(rows["image"][3], expected)
    assert "val" in manifest.splits


def test_digits_with_their_pixels_as_targets(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "fmri" / "digits69"
    manifest, rows = prepared(folder, tmp_path / "ds", targets=["stimuli", "label"])
    assert manifest.schema.columns["clip_stimuli"].shape == (784,)
    with np.load(folder / "digits69.npz") as raw:
        index = [int(name.rpartition("/")[2]) for name in rows["sample_id"]]
        np.testing.assert_array_equal(rows["clip_stimuli"], raw["stimuli"][index].reshape(-1, 784))
        assert manifest.schema.columns["clip_label"].names == ("6", "9")
        np.testing.assert_array_equal(rows["clip_label"][:, 1], raw["digit"][index] == 9)
    with pytest.raises(InputError, match=r"has no array 'pixels' for `targets`; it holds"):
        prepared(folder, tmp_path / "ds2", targets=["pixels"])


def test_haxbys_runs_7_and_8_are_the_test(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    values = {
        "layout": "events",
        "files": "*_25mm.nii.gz",
        "mask": "masks25mm_brain.nii.gz",
        "group": "session_id",
        "targets": ["label"],
    }
    folder = shared_data / "fmri" / "haxby2001_sub001"
    manifest, rows = prepared(folder, tmp_path / "ds", **values, test_sessions=[7, 8])
    assert set(rows["session"][rows["split"] == "test"].tolist()) == {7, 8}
    assert set(rows["session"][rows["split"] != "test"].tolist()) == set(range(1, 7))
    assert manifest.schema.columns["clip_label"].names == tuple(sorted(set(rows["label"])))
    np.testing.assert_array_equal(rows["clip_label"].sum(1), 1)
    assert manifest.statistics["x"]["space"] == VoxelSpace.of_mask(folder / "masks25mm_brain.nii.gz").plain()
    assert not {"space"} & {key for row in stats(tmp_path / "ds")["numbers"] for key in row}
    with pytest.raises(InputError, match=r"has no session 9 for test_sessions; it has: 1, 2, 3"):
        prepared(folder, tmp_path / "ds2", **values, test_sessions=[9])
    with pytest.raises(InputError, match=r"test_sessions need group=session_id"):
        make({"data.prepare.test_sessions": [7]})


def test_arrays_beside_a_table(tmp_path: Path) -> None:
    raw = write_trials(tmp_path / "npz")
    folder = tmp_path / "raw"
    folder.mkdir()
    num = len(raw["x"])
    np.save(folder / "x.npy", raw["x"])
    np.save(folder / "clip_final.npy", np.random.default_rng(1).random((num, 6), np.float32))
    lines = [f"{i},nsd{n:05d},{n}" for i, n in enumerate(raw["nsd_id"].tolist())]
    (folder / "trials.csv").write_text("\n".join(["sample_id,stimulus_id,nsd_id", *lines]))
    constants = {"subject": "=subj01", "session": "=-1", "session_id": "=", "label": "="}
    manifest, rows = prepared(
        folder, tmp_path / "ds", format="table", columns=constants, targets=["final"], repeats="averaged"
    )
    assert manifest.schema.columns["clip_final"].shape == (6,)
    assert len(rows["x"]) == 40
    for i, nsd_id in enumerate(rows["nsd_id"].tolist()):
        np.testing.assert_allclose(rows["x"][i], expected_mean(raw, nsd_id), rtol=1e-5, atol=1e-6)


def test_one_subject_of_several(tmp_path: Path) -> None:
    write_trials(tmp_path / "raw")
    (tmp_path / "raw" / "subj02.npz").write_bytes((tmp_path / "raw" / "subj01.npz").read_bytes())
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds", repeats="averaged")
    assert len(rows["x"]) == 80
    config = make({"data.filter": "subject == 'subj02'", "data.path": str(tmp_path / "ds")}).config
    stream = LocalStream(tmp_path / "ds", config.data)
    seen = [
        name
        for columns in stream.batches(
            EpochRequest("train", 16, seed=0, rules=BatchRules((config.data.filter,)))
        )
        for name in columns["subject"].tolist()
    ]
    assert set(seen) == {"subj02"}
    assert len(seen) == manifest.counts["train"].rows // 2


def test_pictures_of_the_synthetic_brick(tmp_path: Path) -> None:
    """What the towers are given is the picture itself, not a stored small one."""
    write_nsd(tmp_path / "raw", kind="hdf5", sessions=1)
    write_stimuli(tmp_path / "raw")
    task = make({"data.prepare.clip": [{"model": str(save_tiny_clip(tmp_path / "clip"))}]})
    row = next(iter(task.read_raw(tmp_path / "raw")))
    for stage in task.map_stages():
        row = stage.function(row)
    np.testing.assert_array_equal(row["pixels"], pixels_of(int(shown_by(1)[0])))
    assert Image.fromarray(row["pixels"]).mode == "RGB"
