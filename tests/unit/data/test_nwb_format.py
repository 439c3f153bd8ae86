"""The NWB reader against files that pynwb wrote: counts are numpy's histogram; nothing outside is read."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.nwb import BIN_S, read_trials
from voxray.data.formats.nwb_trial import read_trial

pynwb = pytest.importorskip("pynwb")

SPIKES = [np.sort(np.random.default_rng(unit).uniform(0, 20, 40 * unit)) for unit in range(4)]
TRIALS = [(0.5, 2.5, "hello wörld"), (3.0, 4.013, ""), (10.0, 10.4, "bring it closer")]


def write_session(
    path: Path,
    spikes: list[np.ndarray] | None = SPIKES,
    trials: list[tuple] | None = TRIALS,
    series: tuple = (),
    columns: dict[str, list] | None = None,
    day: int = 11,
) -> Path:
    """Write a session with pynwb: a unit per array, a trial per (start, stop, sentence)."""
    start = datetime(2023, 8, day, 9, tzinfo=UTC)
    nwb = pynwb.NWBFile(session_description="a test", identifier=path.stem, session_start_time=start)
    nwb.subject = pynwb.file.Subject(subject_id="T15", species="Homo sapiens")
    for times in spikes or []:
        nwb.add_unit(spike_times=times)
    if trials:
        nwb.add_trial_column("sentence", "what was to be said")
        for begin, stop, sentence in trials:
            nwb.add_trial(begin, stop, sentence=sentence)
    for name, values in (columns or {}).items():
        nwb.add_trial_column(name, "a column", data=values)
    module = nwb.create_processing_module("ecephys", "features")
    for part in series:
        module.add(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pynwb.NWBHDF5IO(path, "w") as file:
        file.write(nwb)
    return path


def ramp(num: int, features: int = 3) -> np.ndarray:
    return np.arange(num * features, dtype=np.float64).reshape(num, features)


def power(name: str = "sbp", data: np.ndarray | None = None, **how: object) -> object:
    how = how or {"rate": 50.0, "starting_time": 0.2}
    return pynwb.TimeSeries(name=name, data=ramp(1000) if data is None else data, unit="uV^2", **how)


def read(folder: Path, **how: object) -> list:
    return list(read_trials(folder, **how))


def features(folder: Path, **how: object) -> list[np.ndarray]:
    return [read_trial(row)["features"] for row in read(folder, **how)]


def test_a_row(tmp_path: Path) -> None:
    path = write_session(tmp_path / "sub-T15" / "sub-T15_ses-1.nwb")
    rows = read(tmp_path, text="sentence")
    assert rows[0] == {
        "sample_id": "sub-T15/sub-T15_ses-1/trial_00000",
        "session": "sub-T15/sub-T15_ses-1",
        "subject": "T15",
        "session_date": "2023-08-11",
        "day": 0,
        "block_num": -1,
        "trial_num": 0,
        "num_time_steps": 100,
        "num_features": 4,
        "num_phonemes": 0,
        "has_transcript": True,
        "transcript": "hello wörld",
        "path": str(path),
        "trial": 0,
        "start_s": 0.5,
        "bin_s": 0.02,
        "signals": (),
        "origin": "sub-T15/sub-T15_ses-1.nwb trial 0",
    }
    assert [row["num_time_steps"] for row in rows] == [100, 50, 20]  # 1.013 s are 50 whole bins
    assert [row["has_transcript"] for row in rows] == [True, False, True]
    loaded = read_trial(pickle.loads(pickle.dumps(rows[0])))
    assert rows[0].items() <= loaded.items()
    assert (loaded["phonemes"].shape, loaded["phonemes"].dtype) == ((0,), np.int32)


@pytest.mark.parametrize("bin_s", [BIN_S, 0.05, 0.1])
def test_counts_are_numpys_histogram(tmp_path: Path, bin_s: float) -> None:
    write_session(tmp_path / "a.nwb")
    for counts, (start, stop, _) in zip(features(tmp_path, bin_s=bin_s), TRIALS, strict=True):
        edges = start + bin_s * np.arange(int((stop - start) / bin_s + 1e-6) + 1)
        expected = np.stack([np.histogram(unit, edges)[0] for unit in SPIKES], axis=1)
        assert counts.dtype == np.float32
        np.testing.assert_array_equal(counts, expected)
        assert counts.sum() > 0


def test_a_spike_on_an_edge_counts_in_the_bin_that_it_opens(tmp_path: Path) -> None:
    unsorted = np.array([1.75, 1.25, 1.0, 0.999, 1.0])
    write_session(tmp_path / "a.nwb", [unsorted], [(1.0, 1.75, "")])
    assert features(tmp_path, bin_s=0.25)[0].ravel().tolist() == [2, 1, 0]


def test_sessions_are_days_by_their_start(tmp_path: Path) -> None:
    for name, day in (("b", 12), ("a", 20), ("c", 11)):
        write_session(tmp_path / f"{name}.nwb", day=day, trials=TRIALS[:1])
    assert [(row["day"], row["session"]) for row in read(tmp_path)] == [(0, "c"), (1, "b"), (2, "a")]


def test_further_columns_block_and_split(tmp_path: Path) -> None:
    columns = {"condition": ["left", "right", "left"], "angle": [0.0, 90.0, np.nan], "correct": [True] * 3}
    declared = {"block_num": [3, 3, 4], "split": ["train", "train", "test"]}
    write_session(tmp_path / "a.nwb", columns=columns | declared)
    rows = read(tmp_path, columns=["condition", "angle", "correct"])
    assert [row["condition"] for row in rows] == columns["condition"]
    np.testing.assert_array_equal([row["angle"] for row in rows], columns["angle"])
    assert rows[0]["correct"] is True
    assert [(row["block_num"], row["split"]) for row in rows] == [(3, "train"), (3, "train"), (4, "test")]
    assert [row["has_transcript"] for row in rows] == [False] * 3
    with pytest.raises(InputError, match="'split' is what the reader"):
        read(tmp_path, columns=["split"])


# --- time series


def test_a_series_of_one_sample_per_bin(tmp_path: Path) -> None:
    write_session(tmp_path / "a.nwb", None, series=(power(),))
    rows = read(tmp_path, signals=["sbp"])
    assert [row["num_features"] for row in rows] == [3] * 3
    for row, (start, *_), values in zip(rows, TRIALS, features(tmp_path, signals=["sbp"]), strict=True):
        first = round((start - 0.2) * 50)
        np.testing.assert_array_equal(values, ramp(1000)[first : first + row["num_time_steps"]])


def test_finer_samples_are_averaged_and_converted(tmp_path: Path) -> None:
    series = power(rate=200.0, starting_time=0.0, conversion=0.5, offset=-3.0)
    write_session(tmp_path / "a.nwb", None, TRIALS[:2], (series,))
    for values, (start, stop, _) in zip(features(tmp_path, signals=["sbp"]), TRIALS, strict=False):
        times = np.arange(1000) / 200
        for k in range(int((stop - start) / BIN_S + 1e-6)):
            inside = np.abs(times - (start + (k + 0.5) * BIN_S) + 1e-9) < BIN_S / 2
            np.testing.assert_allclose(values[k], ramp(1000)[inside].mean(axis=0) * 0.5 - 3, rtol=1e-6)


def test_series_are_joined_in_the_order_asked_for(tmp_path: Path) -> None:
    """As T15's: threshold crossings, then spike-band power; one feature alone is a column too."""
    crossings = power("crossings", np.arange(1000), rate=50.0)
    write_session(tmp_path / "a.nwb", SPIKES, TRIALS[:1], (power(), crossings))
    (values,) = features(tmp_path, signals=["crossings", "ecephys/sbp"])
    assert values.shape == (100, 4)
    np.testing.assert_array_equal(values[:, 0], np.arange(25, 125))
    np.testing.assert_array_equal(values[:, 1:], ramp(1000)[15:115])


def test_timestamps_tell_the_time(tmp_path: Path) -> None:
    jitter = np.random.default_rng(0).uniform(0, 0.001, 1000)
    series = power(timestamps=0.2 + np.arange(1000) / 50 + jitter)
    write_session(tmp_path / "a.nwb", None, TRIALS[:1], (series,))
    (values,) = features(tmp_path, signals=["sbp"])
    np.testing.assert_array_equal(values, ramp(1000)[15:115])


@pytest.mark.parametrize(
    ("times", "start", "words"),
    [
        (np.arange(1000) / 50, 19.5, "does not cover the trial"),
        (np.arange(1000) / 50 + 5, 0.5, "has a gap"),
        (np.delete(np.arange(1001), 60) / 50, 0.5, "has a gap"),
    ],
)
def test_a_series_that_does_not_cover_a_trial(
    tmp_path: Path, times: np.ndarray, start: float, words: str
) -> None:
    write_session(tmp_path / "a.nwb", None, [(start, start + 2, "")], (power(timestamps=times),))
    with pytest.raises(BadRowError, match=rf"a\.nwb' trial 0: .*{words}"):
        features(tmp_path, signals=["sbp"])


def test_a_series_by_rate_that_does_not_cover_a_trial(tmp_path: Path) -> None:
    write_session(tmp_path / "a.nwb", None, [(0.1, 1.0, ""), (19.9, 21.0, "")], (power(),))
    for row in read(tmp_path, signals=["sbp"]):
        with pytest.raises(BadRowError, match="does not cover the trial"):
            read_trial(row)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    data = ramp(1000)
    data[30] = np.nan
    write_session(tmp_path / "a.nwb", [np.array([1.0, np.nan])], TRIALS[:1], (power(data=data),))
    with pytest.raises(BadRowError, match="3 values that are not finite"):
        features(tmp_path, signals=["sbp"])
    with pytest.raises(BadRowError, match="'units/spike_times' holds values that are not finite"):
        features(tmp_path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"signals": ["spb"]}, "no time series 'spb'; name one of /processing/ecephys/sbp"),
        ({"signals": ["sbp"], "bin_s": 0.03}, "50 samples per second, 1.5 per bin"),
        ({"signals": ["sbp"], "bin_s": 0.01}, "0.5 per bin of 0.01 s"),
        ({"text": "words"}, "no column 'words'; it has start_time, stop_time, sentence"),
        ({}, "no units with spike_times; name time series as signals, it has: /processing/ecephys/sbp"),
    ],
)
def test_what_a_file_does_not_have(tmp_path: Path, how: dict, words: str) -> None:
    write_session(tmp_path / "a.nwb", None, series=(power(),))
    with pytest.raises(InputError, match=r"a\.nwb': ") as error:
        read(tmp_path, **how)
    assert words in str(error.value)


# --- bad trials, bad files, nothing outside the file


@pytest.mark.parametrize(
    ("start", "stop", "words"),
    [
        (1.0, 1.01, "lasts from 1 to 1.01 s"),
        (2.0, 1.0, "lasts from 2 to 1 s"),
        (0.0, 1e6, "lasts from 0 to 1e"),
        (np.nan, 1.0, "lasts from nan"),
    ],
)
def test_bad_trials_say_why(tmp_path: Path, start: float, stop: float, words: str) -> None:
    write_session(tmp_path / "a.nwb", trials=[(start, stop, "x"), *TRIALS[:1]])
    first, second = read(tmp_path)
    assert isinstance(first, BadRow)
    assert (first.origin, second["origin"]) == ("a.nwb trial 0", "a.nwb trial 1")
    assert words in first.reason


def change(path: Path, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "a") as file:
        edit(file)


def link_out(file: h5py.File) -> None:
    del file["units/spike_times"]
    file["units/spike_times"] = h5py.ExternalLink("other.h5", "/secret")


def link_group_out(file: h5py.File) -> None:
    file["processing/more"] = h5py.ExternalLink("other.h5", "/")


def store_out(file: h5py.File) -> None:
    del file["units/spike_times"]
    file["units"].create_dataset("spike_times", (2,), "f8", external=[("secret.bin", 0, 16)])


def map_out(file: h5py.File) -> None:
    del file["units/spike_times"]
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (2,))
    file["units"].create_virtual_dataset("spike_times", layout)


@pytest.mark.parametrize("edit", [link_out, link_group_out, store_out, map_out])
def test_what_leads_out_of_the_file_is_refused(tmp_path: Path, edit: Callable[[h5py.File], None]) -> None:
    path = write_session(tmp_path / "raw" / "a.nwb")
    (row, *_) = read(path.parent)
    for folder in (tmp_path, path.parent):
        with h5py.File(folder / "other.h5", "w") as file:
            file["secret"] = [1.0, 2.0]
        (folder / "secret.bin").write_bytes(bytes(16))
    change(path, edit)
    words = "is a link to|keeps its values in other files"
    with pytest.raises(InputError, match=words):
        read(path.parent)
    with pytest.raises(BadRowError, match=words):  # a file that was changed after it was listed
        read_trial(row)


def test_links_inside_a_file_are_followed(tmp_path: Path) -> None:
    """Pynwb itself stores shared timestamps as a soft link."""
    shared = power("tx", np.arange(1000), timestamps=np.arange(1000) / 50)
    linked = power("sbp", timestamps=shared)
    path = write_session(tmp_path / "a.nwb", SPIKES, TRIALS[:1], (shared, linked))
    with h5py.File(path) as file:
        link = file.get("processing/ecephys/sbp/timestamps", getlink=True)
        assert isinstance(link, h5py.SoftLink)
    (values,) = features(tmp_path, signals=["sbp"])
    np.testing.assert_array_equal(values, ramp(1000)[25:125])


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = write_session(tmp_path / "a.nwb")
    change(path, lambda file: file.__setitem__("scratch/back", file["/"]))
    with pytest.raises(InputError, match="is no NWB 2 file: maximum recursion"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", None])
def test_what_is_no_nwb(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.nwb"
    if content is None:
        with h5py.File(path, "w") as file:
            file["x"] = 1
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.nwb': (cannot be read|is no NWB 2 file)"):
        read(tmp_path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = write_session(tmp_path / "a.nwb").read_bytes()
    for keep in (100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.nwb").write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"a\.nwb': cannot be read"):
            read(tmp_path)


def test_no_trials_no_files_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds no \.nwb file"):
        read(tmp_path)
    write_session(tmp_path / "a.nwb", trials=None)
    with pytest.raises(InputError, match="has no trials table"):
        read(tmp_path)


def test_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    path = write_session(tmp_path / "outside" / "a.nwb")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.nwb").symlink_to(path)
    with pytest.raises(InputError, match="is a link out of"):
        read(tmp_path / "raw")


def test_without_pynwb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_session(tmp_path / "a.nwb")
    monkeypatch.setitem(sys.modules, "pynwb", None)
    with pytest.raises(InputError, match=r"pip install voxray\[nwb\]"):
        read(tmp_path)


def test_pynwb_is_imported_when_it_is_needed() -> None:
    code = "import sys, voxray.data.formats.nwb; sys.exit('pynwb' in sys.modules or 'hdmf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
