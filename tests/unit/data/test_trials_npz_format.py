"""The reader of spike count tables: exact values, every kind of bad array, and the real sets."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.trials_npz import load_trial, read_trials

LENGTHS = np.array([4, 2, 3], np.int16)
COLUMNS = ("direction", "text")


def table() -> dict[str, np.ndarray]:
    """Three trials of up to 4 bins and 5 units, zero and NaN padded."""
    rng = np.random.default_rng(0)
    inside = np.arange(4) < LENGTHS[:, None]
    counts = rng.integers(1, 9, (3, 4, 5)).astype(np.uint8) * inside[..., None].astype(np.uint8)
    return {
        "spike_counts": counts,
        "length": LENGTHS,
        "hand_pos_mm": np.where(inside[..., None], rng.normal(size=(3, 4, 2)), np.nan).astype(np.float32),
        "direction": np.array([1, 8, 3], np.int8),
        "text": np.array(["car lower", "kiwi", ""]),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_trials_are_read_exactly(tmp_path: Path, save) -> None:
    arrays = table()
    save(tmp_path / "day2.npz", **arrays)
    save(tmp_path / "day1.npz", **arrays)
    rows = pickle.loads(pickle.dumps(list(read_trials(tmp_path, COLUMNS, ["hand_pos_mm"]))))
    assert [row["sample_id"] for row in rows] == [
        f"{day}/trial_0000{i}" for day in ("day1", "day2") for i in range(3)
    ]
    light = {name: value for name, value in rows[4].items() if name != "arrays"}
    assert light == {
        "sample_id": "day2/trial_00001",
        "session": "day2",
        "origin": "day2.npz trial 1",
        "num_time_steps": 2,
        "num_units": 5,
        "direction": 8,
        "text": "kiwi",
        "index": 1,
    }
    loaded = pickle.loads(pickle.dumps(load_trial))(rows[4])
    assert (loaded["spike_counts"].dtype, loaded["hand_pos_mm"].dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(loaded["spike_counts"], arrays["spike_counts"][1, :2])
    np.testing.assert_array_equal(loaded["hand_pos_mm"], arrays["hand_pos_mm"][1, :2])
    assert not {"direction", "text"} & set(next(read_trials(tmp_path)))


def test_one_bin_per_trial_and_declared_splits(tmp_path: Path) -> None:
    counts = np.arange(6, dtype=np.uint8).reshape(3, 2)
    np.savez(tmp_path / "a.npz", spike_counts=counts, split=["train", "val", "test"])
    rows = list(read_trials(tmp_path, ["split"]))
    assert [row["split"] for row in rows] == ["train", "val", "test"]
    np.testing.assert_array_equal(load_trial(rows[1])["spike_counts"], [[2, 3]])


@pytest.mark.parametrize("length", [0, -1, 5])
def test_an_impossible_length(tmp_path: Path, length: int) -> None:
    arrays = table()
    arrays["length"] = np.array([4, length, 3])
    np.savez(tmp_path / "a.npz", **arrays)
    _, found, _ = read_trials(tmp_path)
    assert isinstance(found, BadRow)
    assert found.origin == "a.npz trial 1"
    assert f"'length' is {length}; a trial has 1 … 4 bins" in found.reason


@pytest.mark.parametrize(
    ("name", "index", "value", "words"),
    [
        ("spike_counts", (1, 2, 0), 1, "goes on after the 2 bins"),
        ("spike_counts", (1, 0, 0), -1, "negative"),
        ("spike_counts", (1, 0, 0), np.nan, "not finite"),
        ("hand_pos_mm", (1, 1, 0), np.inf, "'hand_pos_mm' holds 1 values that are not finite"),
    ],
)
def test_bad_values_name_the_trial(tmp_path: Path, name: str, index: tuple, value: float, words: str) -> None:
    arrays = table()
    arrays[name] = arrays[name].astype(np.float32)
    arrays[name][index] = value
    np.savez(tmp_path / "a.npz", **arrays)
    good, row, _ = read_trials(tmp_path, signals=["hand_pos_mm"])
    load_trial(good)
    with pytest.raises(BadRowError, match=f"a.npz' trial 1: .*{words}"):
        load_trial(row)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spike_counts": np.zeros(3, np.uint8)}, r"'spike_counts' has the shape \[3\]"),
        ({"spike_counts": np.zeros((0, 4, 5), np.uint8)}, "'spike_counts' has the shape"),
        ({"spike_counts": np.full((3, 4, 5), "1")}, "'spike_counts' has the type"),
        ({"spike_counts": np.full((3, 4, 5), None)}, "pickled objects"),
        ({"length": np.zeros(3)}, "'length' has the type float64"),
        ({"length": np.zeros(2, np.int16)}, "'length' has the shape"),
        ({"direction": np.zeros(4)}, "'direction' has the shape"),
        ({"direction": np.zeros((3, 1))}, "'direction' has the shape"),
        ({"direction": np.zeros(3, complex)}, "'direction' has the type complex128"),
        ({"hand_pos_mm": np.zeros((3, 5, 2))}, "'hand_pos_mm' has the shape"),
        ({"hand_pos_mm": np.zeros(3)}, "'hand_pos_mm' has the shape"),
        ({"hand_pos_mm": np.full((3, 4), "x")}, "'hand_pos_mm' has the type"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, change: dict, words: str) -> None:
    np.savez(tmp_path / "a.npz", **table() | change)
    with pytest.raises(InputError, match=f"a.npz: .*{words}"):
        list(read_trials(tmp_path, COLUMNS, ["hand_pos_mm"]))


def test_missing_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **table())
    with pytest.raises(InputError, match="no array 'directoin'; is 'direction' meant"):
        list(read_trials(tmp_path, ["directoin"]))
    with pytest.raises(InputError, match="no array 'zzz'; it holds: spike_counts, length"):
        list(read_trials(tmp_path, signals=["zzz"]))


def test_folders_links_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        list(read_trials(tmp_path / "nothing"))
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(InputError, match=r"holds no \.npz"):
        list(read_trials(raw))
    outside = tmp_path / "outside.npz"
    np.savez(outside, **table())
    (raw / "a.npz").symlink_to(outside)
    with pytest.raises(InputError, match=r"a\.npz' is a link out of"):
        list(read_trials(raw))
    (raw / "a.npz").unlink()
    (raw / "a.npz").write_bytes(outside.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.npz: .*cut off"):
        list(read_trials(raw))


def test_a_file_that_is_gone_after_listing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **table())
    row = next(read_trials(tmp_path))
    (tmp_path / "a.npz").unlink()
    with pytest.raises(BadRowError, match=r"a\.npz' trial 0"):
        load_trial(row)


@pytest.mark.parametrize(
    ("folder", "columns", "signals"),
    [
        ("it_objects_text", ("text", "object", "position", "repetition"), ()),
        ("monkey_reach", ("direction", "angle_deg", "trial"), ("hand_pos_mm",)),
        ("target_counts", ("target_angle_deg", "source_row"), ()),
    ],
)
def test_the_real_sets(shared_data: Path, folder: str, columns: tuple, signals: tuple) -> None:
    (path,) = (shared_data / "neural" / folder).glob("*.npz")
    whole = dict(np.load(path))
    rows = list(read_trials(path.parent, columns, signals))
    assert len(rows) == len(whole["spike_counts"])
    for i, row in enumerate(rows):
        assert [row[name] for name in columns] == [whole[name][i].item() for name in columns]
        if "length" in whole:
            assert row["num_time_steps"] == whole["length"][i]
        loaded = load_trial(row)
        for name in ("spike_counts", *signals):
            expected = np.atleast_2d(whole[name][i])[: row["num_time_steps"]]
            np.testing.assert_array_equal(loaded[name], expected)


def test_a_real_recording_without_trials_is_refused(shared_data: Path) -> None:
    with pytest.raises(
        InputError, match=r"linear_track\.npz: no array 'spike_counts'; it holds: spike_time_s"
    ):
        list(read_trials(shared_data / "neural" / "rat_hippocampus"))
