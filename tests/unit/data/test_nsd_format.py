"""The reader of NSD's own folders, against the same numbers read by nibabel and h5py."""

import pickle
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.stats import zscore

from nsd_folder import (
    NUM_PICTURES,
    SHAPE,
    betas_folder,
    betas_of,
    pixels_of,
    roi_of,
    save_nifti,
    shown_by,
    write_betas,
    write_nsd,
    write_stimuli,
    write_table,
)
from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.clip_targets import load_targets
from voxray.data.formats.nsd import NsdOptions, read_nsd
from voxray.data.formats.volumes import load_volumes

pytest.importorskip("nibabel")


def read(folder: Path, **options: object) -> list:
    return list(read_nsd(folder, NsdOptions(**options)))


@pytest.mark.parametrize("kind", ["nii.gz", "nii", "hdf5"])
def test_every_trial_has_its_picture_and_its_voxels(tmp_path: Path, kind: str) -> None:
    rows = read(write_nsd(tmp_path, kind=kind))
    assert [row["nsd_id"] for row in rows] == shown_by(1).tolist()
    assert [row["session"] for row in rows] == [1] * 750 + [2] * 750
    row = rows[751]
    assert (row["sample_id"], row["subject"], row["session_id"]) == (
        "subj01/trial00752",
        "subj01",
        "subj01/2",
    )
    assert row["stimulus_id"] == f"nsd{row['nsd_id']:05d}"
    assert Counter(row["nsd_id"] for row in rows) == dict.fromkeys(set(shown_by(1).tolist()), 3)
    assert not any(isinstance(value, np.ndarray) for row in rows for value in row.values())
    inside = roi_of(1) > 0
    expected = np.concatenate([zscore(betas_of(1, s)[inside].T.astype(np.float64)) for s in (1, 2)])
    assert row["num_voxels"] == inside.sum()
    for i in (0, 3, 749, 750, 1499):
        x = load_volumes(pickle.loads(pickle.dumps(rows[i])))["x"]
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, expected[i], atol=1e-5)


def test_without_zscores_betas_are_percent_signal_change(tmp_path: Path) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    row = read(tmp_path, zscore=False)[5]
    expected = betas_of(1, 1)[..., 5][roi_of(1) > 0] / 300
    np.testing.assert_allclose(load_volumes(row)["x"], expected, rtol=1e-6)
    write_betas(betas_folder(tmp_path), betas_of(1, 1).astype(np.float32), 1, "hdf5")
    np.testing.assert_allclose(load_volumes(read(tmp_path, zscore=False)[5])["x"], expected * 300, rtol=1e-6)


def test_shared_pictures_are_the_test_split(tmp_path: Path) -> None:
    rows = read(write_nsd(tmp_path, kind="hdf5"))
    assert {row.get("split") for row in rows} == {None, "test"}
    assert all((row.get("split") == "test") == (row["nsd_id"] % 5 == 0) for row in rows)
    assert not any("split" in row for row in read(tmp_path, shared1000_to_test=False))


def test_sessions_and_subjects_that_are_there(tmp_path: Path) -> None:
    write_nsd(tmp_path, subjects=(1, 5), kind="hdf5")
    (betas_folder(tmp_path) / "betas_session01.hdf5").unlink()
    rows = read(tmp_path)
    assert Counter((row["subject"], row["session"]) for row in rows) == {
        ("subj01", 2): 750,
        ("subj05", 1): 750,
        ("subj05", 2): 750,
    }
    assert rows[0]["sample_id"] == "subj01/trial00751"
    assert rows[0]["nsd_id"] == shown_by(1)[750]
    five = read(tmp_path, subjects=("subj05",))
    assert [row["nsd_id"] for row in five] == shown_by(5).tolist()
    assert five[0]["num_voxels"] == (roi_of(5) > 0).sum()
    with pytest.raises(InputError, match="no betas of 'subj02'; it has: subj01, subj05"):
        read(tmp_path, subjects=("subj02",))


def test_hdf5_is_taken_where_both_are_there(tmp_path: Path) -> None:
    write_nsd(tmp_path, kind="nii.gz", sessions=1)
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    assert {Path(row["volumes"].path).name for row in read(tmp_path)} == {"betas_session01.hdf5"}


def test_pictures_and_targets(tmp_path: Path) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    write_stimuli(tmp_path)
    ids = np.arange(NUM_PICTURES)[::-1]
    final = np.random.default_rng(0).normal(size=(NUM_PICTURES, 8)).astype(np.float32)
    np.savez(tmp_path / "clip.npz", nsd_id=ids, final=final)
    for row in read(tmp_path)[:5]:
        np.testing.assert_array_equal(row["picture"].read(), pixels_of(row["nsd_id"]))
        expected = final[np.flatnonzero(ids == row["nsd_id"])[0]]
        np.testing.assert_array_equal(load_targets(row)["clip_final"], expected, strict=True)
    np.savez(tmp_path / "clip.npz", nsd_id=ids[:-1], final=final[:-1])
    bad = [row for row in read(tmp_path) if isinstance(row, BadRow)]
    assert len(bad) == (shown_by(1)[:750] == 0).sum()
    with h5py.File(tmp_path / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = np.zeros((2, 4, 4, 3), np.uint8)
    row = next(row for row in read(tmp_path) if not isinstance(row, BadRow) and row["nsd_id"] > 1)
    with pytest.raises(BadRowError, match=r"nsd_stimuli\.hdf5': 'imgBrick' holds 2 pictures"):
        row["picture"].read()


@pytest.mark.parametrize("name", ["nsd_stim_info_merged.csv", "betas_session01.hdf5", "nsdgeneral.nii.gz"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    next(tmp_path.rglob(name)).unlink()
    with pytest.raises(InputError, match=name.replace("01.hdf5", ".*").replace(".", r"\.", 1)):
        read(tmp_path)


def test_files_that_are_there_twice(tmp_path: Path) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    other = tmp_path / "betas/subj01/func1mm"
    write_betas(other, betas_of(1, 1), 1, "hdf5")
    with pytest.raises(InputError, match=r"session 1 of subj01 is in two folders, .* choose one with"):
        read(tmp_path)
    assert len(read(tmp_path, betas="func1pt8mm/betas_session*")) == 750
    save_nifti(tmp_path / "ppdata/subj01/func1mm/roi/nsdgeneral.nii.gz", roi_of(1))
    with pytest.raises(InputError, match=r"must hold one mask 'nsdgeneral\.nii\.gz' of subj01"):
        read(tmp_path, betas="func1pt8mm/betas_session*")
    found = read(tmp_path, betas="func1pt8mm/betas_session*", mask="func1pt8mm/roi/nsdgeneral.nii.gz")
    assert len(found) == 750


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"nsdId": "x"}, "nsdId is 'x', no whole number"),
        ({"subject1_rep0": "-3"}, "subject1_rep0 is '-3', no whole number"),
        ({"subject1_rep0": "30001"}, "subject1_rep0 is trial 30001, there are 30000"),
        ({"subject1_rep1": "1"}, "trial 1 showed nsdId"),
    ],
)
def test_a_bad_table_names_its_line(tmp_path: Path, cells: dict[str, str], words: str) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    write_table(tmp_path / "nsd_stim_info_merged.csv", (1,), **cells)
    with pytest.raises(InputError, match=rf"nsd_stim_info_merged\.csv' line \d+: .*{words}"):
        read(tmp_path)


def test_a_trial_without_picture_is_a_bad_row(tmp_path: Path) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    write_table(tmp_path / "nsd_stim_info_merged.csv", (1,), subject1_rep0="0")
    (bad,) = [row for row in read(tmp_path) if isinstance(row, BadRow)]
    assert bad.origin == "subj01 betas_session01.hdf5 trial 1"
    (tmp_path / "nsd_stim_info_merged.csv").write_text("nsdId,shared1000\n")
    with pytest.raises(InputError, match="no column 'subject1_rep0'"):
        read(tmp_path)


def test_betas_that_do_not_fit(tmp_path: Path) -> None:
    write_nsd(tmp_path, kind="hdf5", sessions=1)
    folder = betas_folder(tmp_path)
    write_betas(folder, betas_of(1, 1)[..., :700], 1, "hdf5")
    with pytest.raises(InputError, match=r"session01\.hdf5': it holds 700 trials, a session has 750"):
        read(tmp_path)
    write_betas(folder, betas_of(1, 1).transpose(2, 1, 0, 3), 1, "hdf5")
    with pytest.raises(BadRowError, match=r"its volumes are 3×4×5, the mask is 5×4×3"):
        load_volumes(read(tmp_path)[0])
    path = write_betas(folder, betas_of(1, 1), 1, "hdf5")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"session01\.hdf5': cannot be read"):
        read(tmp_path)
    with h5py.File(path, "w") as file:
        file["betas"] = h5py.ExternalLink("elsewhere.hdf5", "betas")
    with pytest.raises(InputError, match="links are refused"):
        read(tmp_path)
    with h5py.File(path, "w") as file:
        file["betas"] = np.zeros((750, *SHAPE[:2]))
    with pytest.raises(InputError, match=r"not \[trials, z, y, x\]"):
        read(tmp_path)
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(InputError, match="leads out of the folder"):
        read(tmp_path)
