"""The fMRI npz reader: our layout written by numpy.savez, every bad input, and the three real sets."""

import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats import npy
from voxray.data.formats.fmri_npz import load_fmri, read_fmri_npz
from voxray.data.formats.npy import ArrayError, index_npz

NUM_TRIALS, NUM_VOXELS = 6, 11


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(NUM_TRIALS, NUM_VOXELS)).astype(np.float32),
        "nsd_id": np.array([3, 3, 72_999, 0, 3, 0]),
        "session": np.array([1, 1, 1, 2, 2, 2], np.int16),
    }


def clip(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "nsd_id": np.array([0, 3, 72_999]),
        "final": rng.normal(size=(3, 5)).astype(np.float32),
        "layer_4": rng.normal(size=(3, 2, 4)).astype(np.float16),
    }


def read(folder: Path, pattern: str = "*.npz") -> list:
    return list(read_fmri_npz(folder, pattern))


def refused(folder: Path, **changed: object) -> str:
    kept = {name: value for name, value in (arrays() | changed).items() if value is not None}
    np.savez(folder / "subj01.npz", **kept)
    with pytest.raises(InputError) as error:
        read(folder)
    assert "subj01.npz'" in error.value.problems[0]
    return error.value.problems[0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4", np.int16])
def test_our_layout(tmp_path: Path, save: object, order: str, dtype: object) -> None:
    raw = arrays() | {"x": np.asarray(arrays()["x"] * 9, dtype=dtype, order=order)}
    save(tmp_path / "subj01.npz", **raw)
    rows = read(tmp_path)
    assert [row["sample_id"] for row in rows] == [f"subj01/{i:06d}" for i in range(NUM_TRIALS)]
    assert [row["stimulus_id"] for row in rows] == [
        "nsd00003", "nsd00003", "nsd72999", "nsd00000", "nsd00003", "nsd00000",
    ]  # fmt: skip
    assert [row["session"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert (rows[4]["subject"], rows[4]["session_id"]) == ("subj01", "subj01/2")
    assert (rows[4]["num_voxels"], rows[4]["origin"]) == (NUM_VOXELS, "subj01.npz trial 4")
    assert not any(isinstance(value, np.ndarray) for row in rows for value in row.values())
    for i, row in enumerate(rows):
        x = load_fmri(pickle.loads(pickle.dumps(row)))["x"]
        np.testing.assert_array_equal(x, raw["x"][i].astype(np.float32), strict=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_targets_are_found_by_their_id(tmp_path: Path, save: object) -> None:
    save(tmp_path / "subj01.npz", **arrays())
    save(tmp_path / "subj02.npz", **arrays(5))
    save(tmp_path / "clip.npz", **clip())
    rows = read(tmp_path)
    assert Counter(row["subject"] for row in rows) == {"subj01": NUM_TRIALS, "subj02": NUM_TRIALS}
    for i, position in enumerate([1, 1, 2, 0, 1, 0]):
        found = load_fmri(rows[NUM_TRIALS + i])
        np.testing.assert_array_equal(found["x"], arrays(5)["x"][i], strict=True)
        for name in ("final", "layer_4"):
            expected = clip()[name][position].astype(np.float32)
            np.testing.assert_array_equal(found[f"clip_{name}"], expected, strict=True)


def test_uncompressed_rows_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "subj01.npz", **arrays())
    rows = read(tmp_path)
    monkeypatch.setattr(npy, "_whole", None)
    np.testing.assert_array_equal(load_fmri(rows[3])["x"], arrays()["x"][3])


def test_a_trial_without_embedding(tmp_path: Path) -> None:
    np.savez(tmp_path / "subj01.npz", **arrays())
    np.savez(tmp_path / "clip.npz", nsd_id=[3, 0], final=np.zeros((2, 5)))
    (bad,) = [row for row in read(tmp_path) if isinstance(row, BadRow)]
    assert bad.origin == "subj01.npz trial 2"
    assert "clip.npz has no embedding of 'nsd72999'" in bad.reason


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"nsd_id": None}, "holds x, session; known layouts are: x, nsd_id, session (voxray)"),
        ({"session": None}, "holds x, nsd_id; known layouts"),
        ({"nsd_id": np.arange(5)}, "'nsd_id' has the shape [5], not [6]"),
        ({"session": np.zeros((6, 1), int)}, "'session' has the shape [6, 1], not [6]"),
        ({"session": np.zeros(6)}, "'session' is float64, not whole numbers"),
        ({"nsd_id": np.zeros(6)}, "'nsd_id' is float64, neither text nor whole numbers"),
        ({"x": np.zeros((6, 2, 2))}, "'x' is <f8 [6, 2, 2], not numbers [trials, voxels]"),
        ({"x": np.full((6, 2), "a")}, "'x' is <U1 [6, 2], not numbers"),
        ({"x": np.array([[{}]] * 6, dtype=object)}, "array 'x': it holds pickled objects"),
        ({"session": np.array([None] * 6)}, "array 'session': it holds pickled objects"),
        ({"session": np.zeros(6, [("a", int)])}, "array 'session': it holds values of the type"),
    ],
)
def test_bad_tables_name_file_and_array(tmp_path: Path, changed: dict, words: str) -> None:
    assert words in refused(tmp_path, **changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"nsd_id": np.array([0, 3, 3])}, "an entry of 'nsd_id' comes twice"),
        ({"final": np.zeros((2, 5))}, r"'final' is <f8 \[2, 5\], not floating point \[3, …\]"),
        ({"final": np.zeros(3)}, r"'final' is <f8 \[3\]"),
        ({"final": np.zeros((3, 2), int)}, r"'final' is <i8 \[3, 2\]"),
        ({"nsd_id": np.zeros((3, 1), int)}, r"'nsd_id' is int64 \[3, 1\], not whole numbers"),
        ({"nsd_id": np.zeros(3)}, r"'nsd_id' is float64 \[3\], not whole numbers"),
    ],
)
def test_bad_targets(tmp_path: Path, changed: dict, words: str) -> None:
    np.savez(tmp_path / "subj01.npz", **arrays())
    np.savez(tmp_path / "clip.npz", **clip() | changed)
    with pytest.raises(InputError, match=rf"clip\.npz': .*{words}"):
        read(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_cut_of_a_file_is_noticed(tmp_path: Path, save: object) -> None:
    path = tmp_path / "subj01.npz"
    save(path, **arrays())
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"subj01\.npz': .*replace the file"):
            read(tmp_path)


def test_a_header_that_promises_more(tmp_path: Path) -> None:
    path = tmp_path / "subj01.npz"
    np.savez(tmp_path / "whole.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(path, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, whole.read(name).replace(b"(6, 11), }  ", b"(60, 11), } "))
    (tmp_path / "whole.npz").unlink()
    with pytest.raises(InputError, match=r"array 'x': its header promises 2,640 bytes .* 264 follow"):
        read(tmp_path)


@pytest.mark.parametrize("num_trials", [6, 6000])
def test_a_damaged_table_fails_its_checksum(tmp_path: Path, num_trials: int) -> None:
    path = tmp_path / "subj01.npz"
    nsd_id = np.arange(num_trials) + 7
    x, session = np.zeros((num_trials, 1)), np.zeros(num_trials, int)
    np.savez(path, x=x, nsd_id=nsd_id, session=session)
    content = path.read_bytes()
    assert content.count(nsd_id.tobytes()) == 1
    path.write_bytes(content.replace(nsd_id.tobytes(), b"\x04" + nsd_id.tobytes()[1:]))
    with pytest.raises(InputError, match=r"subj01\.npz': .* damaged .*CRC-32 for file 'nsd_id.npy'"):
        read(tmp_path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    raw = arrays()
    raw["x"][2, :2] = np.nan, np.inf
    np.savez(tmp_path / "subj01.npz", **raw)
    rows = read(tmp_path)
    assert np.isfinite(load_fmri(rows[1])["x"]).all()
    with pytest.raises(BadRowError, match=r"subj01\.npz trial 2: 2 of 11 values of 'x' are not finite"):
        load_fmri(rows[2])


def test_a_file_that_changed_after_it_was_listed(tmp_path: Path) -> None:
    path = tmp_path / "subj01.npz"
    np.savez(path, **arrays())
    row = read(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadRowError, match=r"trial 5: array 'x' ends before row 5"):
        load_fmri(row)
    path.unlink()
    with pytest.raises(BadRowError, match="No such file"):
        load_fmri(row)


def test_what_must_be_unpacked_whole_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(100_000))
    monkeypatch.setattr(npy, "MAX_WHOLE_BYTES", 1000)
    with pytest.raises(ArrayError, match="unpacks to 800,128 bytes"):
        index_npz(tmp_path / "bomb.npz")["x"].read()


def test_what_is_no_folder_of_trials(tmp_path: Path) -> None:
    np.savez(tmp_path / "clip.npz", **clip())
    with pytest.raises(InputError, match="holds no"):
        read(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["subj01.npz", "clip.npz"])
def test_links_out_of_the_folder(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    np.savez(raw / "subj02.npz", **arrays())
    np.savez(tmp_path / name, **(clip() if name == "clip.npz" else arrays()))
    (raw / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}' leads out of the folder"):
        read(raw)


# --- the real sets
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "x", "num_rows", "num_stimuli"),
    [
        ("digits69/digits69.npz", "fmri", 70, 70),
        ("haxby2001_sub001/slice_blocks.npz", "patterns", 64, 8),
        ("haxby2001_sub001/slice_volumes.npz", "bold", 968, 9),
        ("kriegeskorte92/hIT_rdms.npz", "rdm", 368, 92),
    ],
)
def test_the_real_sets(shared_data: Path, file: str, x: str, num_rows: int, num_stimuli: int) -> None:
    path = shared_data / "fmri" / file
    rows = read(path.parent, path.name)
    assert len(rows) == len({row["sample_id"] for row in rows}) == num_rows
    assert len({row["stimulus_id"] for row in rows}) == num_stimuli
    with np.load(path, allow_pickle=False) as raw:
        expected = raw[x].astype(np.float32).reshape(num_rows, -1)
        for name, column in (("label", "label"), ("run", "session"), ("source_split", "split")):
            if name in raw:
                assert [row[column] for row in rows] == raw[name].tolist()
        pictures = raw.get("stimuli")
    for i in range(0, num_rows, 7):
        np.testing.assert_array_equal(load_fmri(rows[i])["x"], expected[i], strict=True)
        if pictures is not None:
            np.testing.assert_array_equal(rows[i]["picture"].read(), np.stack([pictures[i]] * 3, -1))


def test_the_rdms_keep_subject_and_session(shared_data: Path) -> None:
    folder = shared_data / "fmri" / "kriegeskorte92"
    rows = {row["sample_id"]: row for row in read(folder, "hIT_rdms.npz")}
    row = rows["hIT_rdms/KO/1/stim17"]
    assert (row["subject"], row["session"], row["stimulus_id"]) == ("KO", 1, "stim17")
    with np.load(folder / "hIT_rdms.npz", allow_pickle=False) as raw:
        np.testing.assert_array_equal(load_fmri(row)["x"], raw["rdm"][1, 1, 16])
    with Image.open(folder / "images" / "stim17.png") as image:
        np.testing.assert_array_equal(row["picture"].read(), np.asarray(image.convert("RGB")))


def test_an_unknown_real_file_says_what_it_holds(shared_data: Path) -> None:
    with pytest.raises(InputError, match=r"fig1_rdms\.npz' holds mIT_674neurons"):
        read(shared_data / "fmri" / "kriegeskorte92")
