"""The T15 reader: exact values, days by date, every kind of bad trial and file, nothing outside the file."""

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from t15_folder import SESSION, padded, trial_features, write_file, write_trial
from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.t15 import NUM_FEATURES, PHONEMES, load_t15_trial, read_t15


def read(folder: Path) -> list:
    return list(read_t15(folder))


def change(path: Path, edit: Callable[[h5py.Group], None]) -> None:
    with h5py.File(path, "a") as file:
        edit(file["trial_0000"])


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A file with one good trial."""
    return write_file(tmp_path / "raw", num_trials=1)


def bad(path: Path) -> BadRow:
    (row,) = read(path.parents[1])
    assert isinstance(row, BadRow), row
    return row


def test_a_trial_is_read_exactly(tmp_path: Path) -> None:
    path = write_file(tmp_path, num_trials=3)
    rows = read(tmp_path)
    assert [row["sample_id"] for row in rows] == [f"{SESSION}/train/trial_{i:04d}" for i in range(3)]
    assert rows[2] == {
        "sample_id": f"{SESSION}/train/trial_0002",
        "session": SESSION,
        "subject": "t15",
        "session_date": "2023-08-11",
        "day": 0,
        "split": "train",
        "block_num": 2,
        "trial_num": 2,
        "num_time_steps": 32,
        "num_features": 512,
        "num_phonemes": 5,
        "has_transcript": True,
        "path": str(path),
        "trial": "trial_0002",
        "origin": f"{SESSION}/data_train.hdf5 trial_0002",
    }
    loaded = load_t15_trial(rows[2])
    assert loaded["features"].dtype == np.float32
    np.testing.assert_array_equal(loaded["features"], trial_features(2, 32))
    assert loaded["phonemes"].dtype == np.int32
    assert [PHONEMES[i] for i in loaded["phonemes"]] == ["B", "R", "IH", "NG", " | "]
    assert loaded["transcript"] == "Sentence 2."
    assert rows[2].items() <= loaded.items()


def test_the_loader_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(load_t15_trial)) is load_t15_trial


def test_the_class_table() -> None:
    assert len(PHONEMES) == len(set(PHONEMES)) == 41
    assert (PHONEMES[0], PHONEMES[40]) == ("BLANK", " | ")
    assert list(PHONEMES[1:40]) == sorted(PHONEMES[1:40])  # CMUdict's ARPAbet, in its order


def test_days_go_by_date_and_splits_by_file(tmp_path: Path) -> None:
    for session, split in [
        ("t15.2024.01.02", "val"),
        ("t15.2024.01.02", "test"),
        ("t15.2024.01.02", "train"),
        ("t12.2023.12.31", "train"),
        (SESSION, "train"),
    ]:
        write_file(tmp_path, session, split, num_trials=1)
    rows = read(tmp_path)
    assert [(row["day"], row["session"], row["split"], row["subject"]) for row in rows] == [
        (0, SESSION, "train", "t15"),
        (1, "t12.2023.12.31", "train", "t12"),
        (2, "t15.2024.01.02", "train", "t15"),
        (2, "t15.2024.01.02", "val", "t15"),
        (2, "t15.2024.01.02", "test", "t15"),
    ]


def test_a_test_trial_has_no_transcript(tmp_path: Path) -> None:
    write_file(tmp_path, split="test", num_trials=1)
    (row,) = read(tmp_path)
    assert (row["has_transcript"], row["num_phonemes"]) == (False, 0)
    loaded = load_t15_trial(row)
    assert loaded["transcript"] == ""
    assert (loaded["phonemes"].shape, loaded["phonemes"].dtype) == ((0,), np.int32)
    np.testing.assert_array_equal(loaded["features"], trial_features(0))


def test_the_archives_folder_and_other_entries(tmp_path: Path) -> None:
    write_file(tmp_path / "hdf5_data_final", num_trials=1)
    (tmp_path / "hdf5_data_final" / "notes").mkdir()
    (tmp_path / "t15_copyTaskData_description.csv").write_text("Date\n")
    assert [row["session"] for row in read(tmp_path)] == [SESSION]
    assert read(tmp_path) == read(tmp_path / "hdf5_data_final")


def test_ten_thousand_trials_are_in_order(tmp_path: Path) -> None:
    path = write_file(tmp_path, num_trials=1)
    with h5py.File(path, "a") as file:
        for index in (10_000, 9_999):
            write_trial(file, index, trial_features(0))
    assert [row["trial_num"] for row in read(tmp_path)] == [0, 9_999, 10_000]


def test_padding_frames_are_cut(one: Path) -> None:
    change(one, lambda trial: trial.attrs.modify("n_time_steps", 20))
    (row,) = read(one.parents[1])
    np.testing.assert_array_equal(load_t15_trial(row)["features"], trial_features(0)[:20])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_become_float32(one: Path, dtype: str) -> None:
    change(one, replaced("input_features", trial_features(0).astype(dtype), compression="gzip"))
    (row,) = read(one.parents[1])
    features = load_t15_trial(row)["features"]
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, trial_features(0).astype(dtype).astype(np.float32))


def test_another_array_count(tmp_path: Path) -> None:
    path = tmp_path / SESSION / "data_train.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        write_trial(file, 0, trial_features(0, num_features=256))
    (row,) = read_t15(tmp_path, num_features=256)
    assert load_t15_trial(row)["features"].shape == (30, 256)
    assert "30×256" in bad(path).reason


def test_a_transcript_that_is_not_ascii_or_fills_its_row(one: Path) -> None:
    change(one, replaced("transcription", np.array(list("Café".encode()), dtype=np.int64)))
    (row,) = read(one.parents[1])
    assert load_t15_trial(row)["transcript"] == "Café"


def replaced(name: str, values: object, **how: object) -> Callable[[h5py.Group], None]:
    def edit(trial: h5py.Group) -> None:
        del trial[name]
        trial.create_dataset(name, data=values, **how)

    return edit


def without(name: str) -> Callable[[h5py.Group], None]:
    def edit(trial: h5py.Group) -> None:
        labels = ("seq_class_ids", "transcription", "seq_len")
        for one_name in labels if name == "every label" else (name,):
            del (trial.attrs if one_name in trial.attrs else trial)[one_name]

    return edit


def attribute(name: str, value: object) -> Callable[[h5py.Group], None]:
    return lambda trial: trial.attrs.__setitem__(name, value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without("input_features"), ["'input_features'", "missing"]),
        (without("n_time_steps"), ["'n_time_steps'", "missing"]),
        (without("block_num"), ["'block_num'", "missing"]),
        (without("trial_num"), ["'trial_num'", "missing"]),
        (without("session"), ["'session'", "missing"]),
        (without("seq_len"), ["seq_len", "only test trials"]),
        (without("seq_class_ids"), ["seq_class_ids", "only test trials"]),
        (without("transcription"), ["transcription", "only test trials"]),
        (without("every label"), ["seq_class_ids, transcription, attribute seq_len", "only test trials"]),
        (attribute("session", "t15.2023.08.13"), ["'t15.2023.08.13'", f"'{SESSION}'"]),
        (attribute("n_time_steps", 31), ["n_time_steps is 31", "30×512"]),
        (attribute("n_time_steps", 0), ["n_time_steps is 0"]),
        (attribute("n_time_steps", 12.5), ["'n_time_steps'", "whole number", "12.5"]),
        (attribute("n_time_steps", "30"), ["'n_time_steps'", "whole number"]),
        (attribute("block_num", np.nan), ["'block_num'", "whole number", "nan"]),
        (attribute("block_num", [1, 2]), ["'block_num'", "one whole number", "[1, 2]"]),
        (attribute("seq_len", 0), ["seq_len is 0"]),
        (attribute("seq_len", 501), ["seq_len is 501", "500 entries"]),
        (replaced("input_features", trial_features(0, 512, 30)), ["512×30", "× 512"]),
        (replaced("input_features", np.zeros((30, 512), np.int16)), ["int16", "floats"]),
        (replaced("seq_class_ids", np.zeros((5, 2), np.int32)), ["'seq_class_ids'", "5×2"]),
        (replaced("seq_class_ids", np.zeros(500, np.float32)), ["float32", "whole numbers"]),
        (replaced("seq_class_ids", np.zeros(100_001, np.int8)), ["100001", "at most"]),
        (replaced("input_features", ["a", "b"]), ["'input_features'", "object"]),
    ],
)
def test_bad_trials_say_where_and_why(
    one: Path, edit: Callable[[h5py.Group], None], words: list[str]
) -> None:
    change(one, edit)
    found = bad(one)
    assert found.origin == f"{SESSION}/data_train.hdf5 trial_0000"
    assert all(word in found.reason for word in words), found.reason


def not_finite(trial: h5py.Group) -> None:
    trial["input_features"][3, 7:9] = (np.nan, np.inf)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (not_finite, ["2 values", "not finite"]),
        (replaced("seq_class_ids", padded([7, 0, 18, 23, 40])), ["holds 0", "1 … 40"]),
        (replaced("seq_class_ids", padded([7, 41, 18, 23, 40])), ["holds 41", "1 … 40"]),
        (replaced("seq_class_ids", padded([7, -1, 18, 23, 40])), ["holds -1", "1 … 40"]),
        (attribute("seq_len", 4), ["seq_len of 4"]),
        (replaced("transcription", padded([])), ["'transcription' is empty"]),
        (replaced("transcription", padded([300])), ["no bytes"]),
        (replaced("transcription", padded([0xFF, 0xFE])), ["UTF-8"]),
    ],
)
def test_bad_arrays_are_named_when_they_are_loaded(
    one: Path, edit: Callable[[h5py.Group], None], words: list[str]
) -> None:
    change(one, edit)
    (row,) = read(one.parents[1])
    with pytest.raises(BadRowError) as error:
        load_t15_trial(row)
    for word in [*words, str(one), "trial_0000"]:
        assert word in str(error.value)


def test_a_good_trial_beside_a_bad_one(tmp_path: Path) -> None:
    path = write_file(tmp_path, num_trials=2)
    change(path, without("n_time_steps"))
    first, second = read(tmp_path)
    assert isinstance(first, BadRow)
    assert second["trial"] == "trial_0001"


def test_an_entry_that_is_no_trial(one: Path) -> None:
    with h5py.File(one, "a") as file:
        file.move("trial_0000", "notes")
    assert "no trial" in bad(one).reason
    with h5py.File(one, "a") as file:
        del file["notes"]
        file["trial_0000"] = np.zeros(3)
    assert "'trial_0000' is no group" in bad(one).reason


def test_a_very_long_trial_is_refused_before_it_is_read(one: Path) -> None:
    def edit(trial: h5py.Group) -> None:
        del trial["input_features"]
        trial.create_dataset("input_features", (10**9, NUM_FEATURES), "f4", chunks=(64, NUM_FEATURES))
        trial.attrs["n_time_steps"] = 10**9

    change(one, edit)
    assert "at most 180000" in bad(one).reason


# --- nothing outside the file
# ---------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside.hdf5"
    with h5py.File(path, "w") as file:
        write_trial(file, 0, trial_features(9))
    return path


@pytest.mark.parametrize("name", ["input_features", "seq_class_ids", "transcription"])
def test_links_of_arrays_are_refused(one: Path, secret: Path, name: str) -> None:
    for link in (h5py.ExternalLink(str(secret), f"/trial_0000/{name}"), h5py.SoftLink("/elsewhere")):
        with h5py.File(one, "a") as file:
            del file["trial_0000"][name]
            file["trial_0000"][name] = link
        reason = load_error(one) if name == "transcription" else bad(one).reason
        assert f"'{name}' is a link to" in reason
        assert "refused" in reason


def load_error(path: Path) -> str:
    (row,) = read(path.parents[1])
    with pytest.raises(BadRowError) as error:
        load_t15_trial(row)
    return str(error.value)


def test_links_of_trials_are_refused(one: Path, secret: Path) -> None:
    with h5py.File(one, "a") as file:
        file["trial_0001"] = h5py.ExternalLink(str(secret), "/trial_0000")
        file["trial_0002"] = h5py.SoftLink("/trial_0000")
    good, *refused = read(one.parents[1])
    assert good["trial"] == "trial_0000"
    assert [f"'trial_000{i}' is a link" in row.reason for i, row in enumerate(refused, 1)] == [True, True]
    assert str(secret) in refused[0].reason


def test_the_loader_itself_refuses_what_changed_after_listing(one: Path, secret: Path) -> None:
    (row,) = read(one.parents[1])
    with h5py.File(one, "a") as file:
        del file["trial_0000"]
        file["trial_0000"] = h5py.ExternalLink(str(secret), "/trial_0000")
    with pytest.raises(BadRowError, match="is a link"):
        load_t15_trial(row)


def test_external_and_virtual_storage_are_refused(one: Path, secret: Path, tmp_path: Path) -> None:
    raw = tmp_path / "secret.bin"
    trial_features(9).tofile(raw)
    layout = h5py.VirtualLayout((30, NUM_FEATURES), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "/trial_0000/input_features", (30, NUM_FEATURES))

    def external(trial: h5py.Group) -> None:
        del trial["input_features"]
        trial.create_dataset("input_features", (30, NUM_FEATURES), "f4", external=[(str(raw), 0, 61_440)])

    def virtual(trial: h5py.Group) -> None:
        del trial["input_features"]
        trial.create_virtual_dataset("input_features", layout)

    for edit in (external, virtual):
        change(one, edit)
        assert "in other files" in bad(one).reason


def test_links_of_files_and_folders_out_of_the_source(one: Path, tmp_path: Path) -> None:
    raw = one.parents[1]
    outside = write_file(tmp_path / "outside", "t15.2023.09.01")
    (raw / "t15.2023.09.01").symlink_to(outside.parent)
    (one.parent / "data_val.hdf5").symlink_to(outside)
    with pytest.raises(InputError) as error:
        read(raw)
    assert len(error.value.problems) == 2
    assert all("link out of" in problem for problem in error.value.problems)


# --- folders and files
# ----------------------------------------------------------------------------------------


def test_no_folder_and_no_session(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no session"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [("day1", "named like t15"), ("t15.2023.02.30", "names no date"), ("t15.23.2.3", "named")],
)
def test_a_session_without_a_date(tmp_path: Path, name: str, words: str) -> None:
    write_file(tmp_path, name)
    write_file(tmp_path)
    with pytest.raises(InputError, match=f"{name}.*{words}"):
        read(tmp_path)


def test_all_truncated_empty_and_foreign_files_are_named_before_the_first_row(tmp_path: Path) -> None:
    cut = write_file(tmp_path, split="val")
    cut.write_bytes(cut.read_bytes()[:-1000])
    write_file(tmp_path, num_trials=1)
    write_file(tmp_path, "t15.2023.08.13", num_trials=0)
    (tmp_path / "t15.2023.08.13" / "data_val.hdf5").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )
    with pytest.raises(InputError) as error:
        next(read_t15(tmp_path))
    first, second, third = error.value.problems
    assert f"{SESSION}/data_val.hdf5 cannot be read" in first
    assert "truncated file" in first
    assert "t15.2023.08.13/data_train.hdf5 holds no trials" in second
    assert "t15.2023.08.13/data_val.hdf5 cannot be read" in third
    assert "signature" in third


def test_a_file_that_is_cut_or_gone_after_listing(one: Path) -> None:
    (row,) = read(one.parents[1])
    one.write_bytes(one.read_bytes()[:-1000])
    with pytest.raises(BadRowError, match="truncated file"):
        load_t15_trial(row)
    one.unlink()
    with pytest.raises(BadRowError, match=r"data_train\.hdf5.*cannot be read"):
        load_t15_trial(row)


def test_a_damaged_chunk_with_a_checksum_is_noticed(one: Path) -> None:
    change(one, replaced("input_features", trial_features(0), chunks=(10, NUM_FEATURES), fletcher32=True))
    with h5py.File(one) as file:
        offset = file["trial_0000/input_features"].id.get_chunk_info(1).byte_offset
    data = bytearray(one.read_bytes())
    data[offset + 5] ^= 1
    one.write_bytes(data)
    assert "cannot be read" in load_error(one)


def test_a_read_only_folder(one: Path) -> None:
    one.chmod(0o444)
    one.parent.chmod(0o555)
    before = one.stat().st_mtime_ns, one.read_bytes()
    try:
        (row,) = read(one.parents[1])
        load_t15_trial(row)
    finally:
        one.parent.chmod(0o755)
    assert (one.stat().st_mtime_ns, one.read_bytes()) == before
