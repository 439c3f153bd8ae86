"""MindEye2's files and `.npz` patterns → MindEye's rows, a picture's trials being its repeats."""

from pathlib import Path

import numpy as np
import pytest

from mindeye2_folder import write_mindeye2
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data.formats.pictures import decode_rgb
from voxray.data.local import LocalStream
from voxray.data.manifest import Manifest
from voxray.data.prepare import prepare
from voxray.data.verify import verify
from voxray.testing.frozen import save_tiny_clip

pytestmark = pytest.mark.usefixtures("ray_cluster")


def prepared(raw: Path, out: Path, **values: object) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Prepare with keys of `data.prepare`; return the manifest and all rows with their splits."""
    keys = {f"data.prepare.{key}": value for key, value in values.items()}
    keys["data.embed.cache_dir"] = str(out.parent / "frozen")
    task = task_data("mindeye")(default_config("mindeye", keys, "test").config)
    manifest = prepare(task, raw, out).manifest
    assert verify(out) == []
    stream = LocalStream(out)
    parts = [
        stream.read_split(split) | {"split": np.full(stream.num_rows(split), split)}
        for split in manifest.splits
    ]
    return manifest, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_mindeye2s_trials_become_repeats(tmp_path: Path) -> None:
    """Pictures 0 … 29 of training are shown three times, 30 … 39 once, those of the test twice."""
    train = [(i, 3 * i + k) for i in range(30) for k in (2, 0, 1)] + [(i, 200 + i) for i in range(30, 40)]
    test = [(i, 2 * i + k) for i in range(40, 50) for k in (100, 101)]
    betas, images = write_mindeye2(tmp_path / "raw", {"train": train, "new_test": test})
    tower = str(save_tiny_clip(tmp_path / "clip"))
    manifest, rows = prepared(tmp_path / "raw", tmp_path / "ds", clip=[{"model": tower}])
    assert manifest.schema.columns["voxels"].shape == (3, 12)
    assert rows["clip_final"].shape == (50, 24)
    assert set(rows["nsd_id"][rows["split"] == "test"].tolist()) == set(range(40, 50))
    row_of = {nsd_id: place for place, nsd_id in enumerate(rows["nsd_id"].tolist())}
    for nsd_id, numbers, num_unique in ((7, [23, 21, 22], 3), (35, [235] * 3, 1), (45, [190, 191, 190], 2)):
        place = row_of[nsd_id]
        assert rows["sample_id"][place] == f"subj01/nsd{nsd_id:05d}"
        assert rows["trials"][place].tolist() == numbers
        assert rows["num_unique"][place] == num_unique
        np.testing.assert_array_equal(rows["voxels"][place], betas[numbers])
        picture = np.round(images[nsd_id].astype(np.float32) * 255).transpose(1, 2, 0)
        np.testing.assert_array_equal(decode_rgb(rows["image"][place], "here"), picture)


def test_a_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_mindeye2(tmp_path / "raw", {"train": [(1, 0), (2, 1)], "new_test": [(2, 2)]})
    with pytest.raises(InputError, match=r"stimulus 'nsd00002' is in two splits: .* in test, .* in train"):
        prepared(tmp_path / "raw", tmp_path / "ds")


def test_the_digits_with_their_pixels_as_the_target(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "fmri" / "digits69"
    manifest, rows = prepared(folder, tmp_path / "ds", targets=["stimuli"])
    with np.load(folder / "digits69.npz") as raw:
        place = int(rows["trials"][0, 0])
        np.testing.assert_array_equal(rows["voxels"][0, 0], raw["fmri"][place].astype(np.float32))
        np.testing.assert_array_equal(rows["clip_stimuli"][0], raw["stimuli"][place].reshape(-1))
        grey = decode_rgb(rows["image"][0], "here")
        np.testing.assert_array_equal(grey, np.repeat(raw["stimuli"][place][..., None], 3, axis=2))
        assert (rows["split"] == "test").sum() == (raw["source_split"] == "test").sum()
    assert len(rows["nsd_id"]) == 70
    assert manifest.schema.columns["voxels"].shape == (1, 3092)


def test_patterns_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    rng, shown = np.random.default_rng(0), np.repeat(np.arange(20), 2)
    x = rng.standard_normal((40, 6)).astype(np.float32)
    np.savez(tmp_path / "raw" / "subj03.npz", x=x, nsd_id=shown, session=np.ones(40, np.int16))
    final = rng.random((20, 8)).astype(np.float32)
    np.savez(tmp_path / "raw" / "clip.npz", nsd_id=np.arange(20), final=final)
    with pytest.raises(InputError, match="there are no pictures to store; set images=none"):
        prepared(tmp_path / "raw", tmp_path / "ds")
    with pytest.raises(InputError, match="there are no pictures, which `vae` needs"):
        prepared(tmp_path / "raw", tmp_path / "ds", images="none", vae={"model": "somewhere"})
    _, rows = prepared(tmp_path / "raw", tmp_path / "ds", images="none")
    assert "image" not in rows
    place = rows["stimulus_id"].tolist().index("nsd00004")
    np.testing.assert_array_equal(rows["voxels"][place], x[8:10])
    np.testing.assert_array_equal(rows["clip_final"][place], final[4])
