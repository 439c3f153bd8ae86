"""Brain-to-text rows of both layouts, batches, and what the synthetic T15 recordings promise."""

import filecmp
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ShrunkCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from t15_folder import SESSION, trial_features, write_file, write_trial
from voxray.config.errors import InputError
from voxray.core.splits import assign_splits
from voxray.core.task import BadRow, SynthReport
from voxray.data.config import SplitsConfig
from voxray.data.formats.t15 import PHONEMES, load_t15_trial, read_t15
from voxray.tasks.brain_text import speech, synth
from voxray.tasks.brain_text.config import Config
from voxray.tasks.brain_text.data import BrainTextData, feature_moments, load
from voxray.tasks.brain_text.edits import edit_distance, error_rate
from voxray.tasks.brain_text.speech import SILENCE, Electrodes, Lexicon, Pace, decode, utter


def task(**prepare: object) -> BrainTextData:
    return BrainTextData(Config.model_validate({"data": {"prepare": prepare}}))


def read(folder: Path, **prepare: object) -> list:
    return list(task(**prepare).read_raw(folder))


def write_npz(folder: Path, name: str = "day1", **arrays: object) -> None:
    folder.mkdir(exist_ok=True)
    counts = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)
    counts[1, 2:] = counts[2, 1:] = 0
    whole = {"spike_counts": counts, "text": ["car left", "kiwi", "car left", "Kiwi "]} | arrays
    np.savez(folder / f"{name}.npz", **whole)


# --- raw rows


def test_a_t15_trial(tmp_path: Path) -> None:
    write_file(tmp_path, num_trials=2)
    write_file(tmp_path, split="test", num_trials=1)
    first, second, test = read(tmp_path)
    assert first["group"] == first["sample_id"] == f"{SESSION}/train/trial_0000"
    assert (first["split"], first["session"], first["day"], first["block_num"]) == ("train", SESSION, 0, 2)
    loaded = load(second)
    np.testing.assert_array_equal(loaded["neural"], trial_features(1, 31))
    assert loaded["text"] == "Sentence 1."
    assert [PHONEMES[i] for i in loaded["phonemes"]] == ["B", "R", "IH", "NG", " | "]
    columns = task().schema().columns
    assert all(name in loaded for name in columns)
    assert (loaded["neural"].dtype, loaded["phonemes"].dtype) == (np.float32, np.int32)
    unlabelled = load(test)
    assert (unlabelled["text"], len(unlabelled["phonemes"])) == ("", 0)


def test_groups_of_t15_trials(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / SESSION / f"data_{split}.hdf5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            for i, text in enumerate(["Bring it.", "bring  it.", "No."]):
                write_trial(file, i, trial_features(i), text if split == "train" else None, block=i)
    assert [row["group"] for row in read(tmp_path, split_by="text")] == [
        *("bring it.", "bring it.", "no."),
        *(f"{SESSION}/test/trial_000{i}" for i in range(3)),
    ]
    assert [row["group"] for row in read(tmp_path, split_by="block_num")][:2] == [
        f"{SESSION}/block 0",
        f"{SESSION}/block 1",
    ]
    with pytest.raises(InputError, match="'direction' is nothing that T15 trials have; choose one of trial"):
        read(tmp_path, split_by="direction")


def test_declared_splits_hold_inside_sessions_where_a_group_is_a_trial(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_file(tmp_path, split=split)

    def splits(**prepare: object) -> dict[str, str]:
        rows = read(tmp_path, **prepare)
        return assign_splits(
            [row["group"] for row in rows], SplitsConfig(), 0, declared=[row["split"] for row in rows]
        )

    assert splits() == {row["sample_id"]: row["split"] for row in read(tmp_path)}
    with pytest.raises(InputError, match=f"group '{SESSION}' is declared in two splits"):
        splits(split_by="session")


def test_a_transcript_that_cannot_be_read_is_a_bad_row(tmp_path: Path) -> None:
    path = write_file(tmp_path, num_trials=2)
    with h5py.File(path, "a") as file:
        file["trial_0000/transcription"][...] = 0
    bad, good = read(tmp_path, split_by="text")
    assert isinstance(bad, BadRow)
    assert (bad.origin, good["group"]) == (f"{SESSION}/data_train.hdf5 trial_0000", "sentence 1.")
    assert "'transcription' is empty" in bad.reason


def test_trials_of_spike_counts(tmp_path: Path) -> None:
    write_npz(tmp_path / "raw", "day1", length=[3, 2, 1, 3], split=["train", "train", "val", "test"])
    write_npz(tmp_path / "raw", "day2", block_num=[1, 1, 2, 2])
    rows = read(tmp_path / "raw")
    assert [row["day"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["block_num"] for row in rows] == [-1] * 4 + [1, 1, 2, 2]
    assert [row.get("split") for row in rows] == ["train", "train", "val", "test"] + [None] * 4
    assert [row["group"] for row in rows] == [row["sample_id"] for row in rows]
    loaded = load(rows[1])
    assert loaded["neural"].dtype == np.float32
    assert loaded["neural"].tolist() == [[6, 7], [8, 9]]
    assert (loaded["text"], len(loaded["phonemes"]), loaded["session"]) == ("kiwi", 0, "day1")


def test_groups_and_texts_by_other_arrays(tmp_path: Path) -> None:
    angles = {"angle": [0, 90, 0, 90], "day": [5, 5, 6, 6], "block_num": [1, 2, 1, 2]}
    write_npz(tmp_path / "raw", "a", **angles)
    write_npz(tmp_path / "raw", "b", **angles)
    groups = {
        "angle": ["0", "90", "0", "90"] * 2,
        "day": ["5", "5", "6", "6"] * 2,
        "session": ["a"] * 4 + ["b"] * 4,
        "text": ["car left", "kiwi", "car left", "kiwi"] * 2,
        "block_num": [f"{s}/block {n}" for s in "ab" for n in (1, 2, 1, 2)],
    }
    for split_by, expected in groups.items():
        assert [row["group"] for row in read(tmp_path / "raw", split_by=split_by)] == expected
    assert [row["text"] for row in read(tmp_path / "raw", text="angle")][:2] == ["0", "90"]
    with pytest.raises(
        InputError, match=r"a\.npz: no array 'direction'; it holds: .*angle.*; name another one in the config"
    ):
        read(tmp_path / "raw", text="direction")
    with pytest.raises(InputError, match="'index' is what the reader"):
        read(tmp_path / "raw", split_by="index")


def test_trials_of_nwb_files(tmp_path: Path) -> None:
    """Written by pynwb; counts are numpy's histogram."""
    pynwb = pytest.importorskip("pynwb")
    times = [np.sort(np.random.default_rng(unit).uniform(0, 9, 300)) for unit in range(3)]
    trials = [(0.5, 2.5, "Hello.", "a"), (3.0, 4.0, "", "b"), (5.0, 5.4, "hello.", "b")]
    nwb = pynwb.NWBFile("a test", "day1", datetime(2023, 8, 11, 9, tzinfo=UTC))
    for spikes in times:
        nwb.add_unit(spike_times=spikes)
    for name in ("sentence", "task"):
        nwb.add_trial_column(name, "a column")
    for begin, stop, sentence, kind in trials:
        nwb.add_trial(begin, stop, sentence=sentence, task=kind)
    with pynwb.NWBHDF5IO(tmp_path / "day1.nwb", "w") as file:
        file.write(nwb)
    rows = read(tmp_path, text="sentence")
    assert [row["group"] for row in rows] == [row["sample_id"] for row in rows]
    loaded = load(rows[0])
    edges = 0.5 + 0.02 * np.arange(101)
    expected = np.stack([np.histogram(spikes, edges)[0] for spikes in times], axis=1)
    np.testing.assert_array_equal(loaded["neural"], expected)
    assert task().schema().columns.keys() <= loaded.keys()
    assert (loaded["text"], loaded["day"], len(loaded["phonemes"])) == ("Hello.", 0, 0)
    assert load(read(tmp_path, text="sentence", bin_s=0.1)[1])["neural"].shape == (10, 3)
    groups = {
        "text": ["hello.", rows[1]["sample_id"], "hello."],
        "task": ["a", "b", "b"],
        "session": ["day1"] * 3,
    }
    for split_by, names in groups.items():
        assert [row["group"] for row in read(tmp_path, text="sentence", split_by=split_by)] == names
    with pytest.raises(InputError, match=r"no column 'block_num' to split by"):
        read(tmp_path, text="sentence", split_by="block_num")


def test_folders_that_hold_no_trials_or_two_layouts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty' holds no trials; name a folder of T15 sessions"):
        read(tmp_path / "empty")
    with pytest.raises(InputError, match="is no folder"):
        read(tmp_path / "nothing")
    write_npz(tmp_path)
    write_file(tmp_path)
    with pytest.raises(InputError, match="files of several layouts, t15 and npz"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "shape", "first"),
    [
        ("it_objects_text", "text", (294, 18, 132), "car lower"),
        ("monkey_reach", "direction", (560, 24, 98), None),
        ("target_counts", "target_angle_deg", (686, 1, 155), None),
    ],
)
def test_the_real_sets(shared_data: Path, name: str, text: str, shape: tuple, first: str | None) -> None:
    (file,) = (shared_data / "neural" / name).glob("*.npz")
    arrays = np.load(file)
    rows = read(file.parent, text=text)
    assert len(rows) == shape[0]
    loaded = load(rows[-1])
    length = int(arrays["length"][-1]) if "length" in arrays else max(1, shape[1])
    expected = np.atleast_2d(arrays["spike_counts"][-1])[:length]
    np.testing.assert_array_equal(loaded["neural"], expected)
    assert loaded["neural"].shape[1] == shape[2]
    assert [row["text"] for row in rows] == arrays[text].astype(str).tolist()
    assert first is None or first in {row["text"] for row in rows}


# --- batches


def test_collate_owns_its_memory_and_hides_padding() -> None:
    columns = {
        "sample_id": np.array(["a", "b"], dtype=object),
        "group": np.array(["g", "h"], dtype=object),
        "session": np.array(["s", "t"], dtype=object),
        "text": np.array(["Yes.", "No."], dtype=object),
        "day": np.array([0, 3], np.int32),
        "block_num": np.array([1, 1], np.int32),
        "neural": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
        "neural.length": np.array([3, 2]),
        "phonemes": np.array([[1, 2], [3, 0]], np.int32),
        "phonemes.length": np.array([2, 1]),
        "valid": np.array([True, False]),
        "position": np.array([7, 9]),
    }
    for column in columns.values():
        column.flags.writeable = False  # as a memory map is
    batch = task().collate(columns)
    assert (batch.sample_id, batch.group_id, batch.session) == (["a", "b"], ["g", "h"], ["s", "t"])
    assert torch.equal(batch.neural_BTF, torch.arange(12.0).reshape(2, 3, 2))
    assert batch.neural_BTF.data_ptr() != columns["neural"].ctypes.data
    assert batch.num_time_steps_B.tolist() == [3, 2]
    assert (batch.phonemes_BL.dtype, batch.phonemes_BL.tolist()) == (torch.int64, [[1, 2], [3, 0]])
    assert batch.num_phonemes_B.tolist() == [2, 0]
    assert batch.text == ["Yes.", ""]
    assert batch.day_B.tolist() == [0, 3]
    assert len(batch.to(torch.device("cpu"))) == 2


# --- edits


def test_edit_distances_that_are_known() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    said, truth = "i go round", "i will go around"  # DOMAINS.md section 7
    assert error_rate([(said.split(), truth.split())]) == 0.5
    assert error_rate([(said, truth)]) == 0.375
    assert error_rate([("abcd", "a"), ("bcd", "bcd")]) == 0.75


def _plain_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        _plain_distance(a[1:], b) + 1,
        _plain_distance(a, b[1:]) + 1,
        _plain_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_the_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == _plain_distance(a, b)


# --- the model behind the synthetic recordings


def test_lexicon() -> None:
    lexicon = Lexicon(len(speech.LEXICON))
    assert len(set(lexicon.words)) == len(lexicon.words) == 50
    assert lexicon.prior_W.sum() == pytest.approx(1)
    spoken = {PHONEMES[i] for word in lexicon.phonemes for i in word}
    assert spoken == set(PHONEMES) - {"BLANK", " | "}  # every phoneme is said
    assert lexicon.sequence([0, 1]) == [PHONEMES.index(p) for p in ("AY", " | ", "Y", "UW", " | ")]
    assert all(first in speech.LEXICON[i][0] for i, first in enumerate(["I", "you"]))
    assert lexicon.class_P[lexicon.first_W].tolist() == [word[0] for word in lexicon.phonemes]
    assert lexicon.class_P[lexicon.last_W].tolist() == [word[-1] for word in lexicon.phonemes]


def test_durations_have_the_means_that_were_asked_for() -> None:
    lexicon, pace, rng = Lexicon(10), Pace(6, 4), np.random.default_rng(0)
    utterances = [utter(lexicon, [1, 2], pace, rng) for _ in range(2000)]
    phonemes = 2 + 3
    means = [np.mean([(u.class_T != SILENCE).sum() / phonemes for u in utterances])]
    means.append(np.mean([(u.class_T == SILENCE).sum() / 3 for u in utterances]))
    assert means == pytest.approx([6, 4], rel=0.03)
    attacks = np.mean([(u.class_T != u.blend_T).sum() for u in utterances])
    assert attacks == phonemes


def _sentences_of(lexicon: Lexicon, pace: Pace, num_bins: int) -> Iterator[tuple[float, list, list, list]]:
    """Yield every path by the definition: its log prior, each bin's class and blend, and its words."""
    leave, end = 1 / (pace.phoneme - 1), 1 / pace.silence

    def go(log_p: float, classes: list, blends: list, words: list) -> Iterator:
        """Continue after a bin of silence."""
        if len(classes) == num_bins:
            yield log_p, classes, blends, words
            return
        yield from go(log_p + np.log(1 - end), [*classes, SILENCE], [*blends, SILENCE], words)
        for word in range(len(lexicon.words)):
            start = log_p + np.log(end * lexicon.prior_W[word])
            yield from say(start, classes, blends, [*words, word], 0)

    def say(log_p: float, classes: list, blends: list, words: list, i: int) -> Iterator:
        phonemes = lexicon.phonemes[words[-1]]
        before = phonemes[i - 1] if i else SILENCE
        for held in range(1, num_bins - len(classes) - 1):
            log_q = log_p + (held - 1) * np.log(1 - leave) + np.log(leave)
            longer = [*classes, *[phonemes[i]] * (1 + held)]
            mixed = [*blends, before, *[phonemes[i]] * held]
            if i + 1 < len(phonemes):
                yield from say(log_q, longer, mixed, words, i + 1)
            else:
                yield from go(log_q, [*longer, SILENCE], [*mixed, SILENCE], words)

    yield from go(0.0, [SILENCE], [SILENCE], [])


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_finds_the_best_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lexicon, pace, num_bins = Lexicon(2), Pace(4, 3), 10
    lexicon.prior_W = np.array([0.85, 0.15])
    pattern_CF = rng.standard_normal((len(PHONEMES), 3)).astype(np.float32)
    features_TF = (1.2 * rng.standard_normal((num_bins, 3))).astype(np.float32)

    def log_density(classes: list, blends: list) -> float:
        mean_TF = (pattern_CF[classes] + pattern_CF[blends]) / 2
        return -0.5 * float(((features_TF - mean_TF) ** 2).sum())

    paths = list(_sentences_of(lexicon, pace, num_bins))
    assert len(paths) > 100
    best = max(paths, key=lambda path: path[0] + log_density(path[1], path[2]))
    assert decode(features_TF, pattern_CF, lexicon, pace) == lexicon.sequence(best[3])


def test_without_noise_the_oracle_is_right() -> None:
    rng = np.random.default_rng(0)
    lexicon, pace, electrodes = Lexicon(50), Pace(8, 8), Electrodes(1.0, rng)
    for _ in range(5):
        electrodes.next_day()
        words = rng.integers(0, 50, 6).tolist()
        features_TF = electrodes.record(utter(lexicon, words, pace, rng))
        assert decode(features_TF, electrodes.pattern_CF, lexicon, pace) == lexicon.sequence(words)


def test_the_floor_is_scikit_learns_linear_discriminant() -> None:
    rng = np.random.default_rng(0)
    lexicon, pace, electrodes = Lexicon(6), Pace(6, 6), Electrodes(0.2, rng)
    floor = synth._Floor(pace)
    smoothed, classes = [], []
    for _ in range(2):
        today = [utter(lexicon, rng.integers(0, 6, 3).tolist(), pace, rng) for _ in range(12)]
        recorded = [electrodes.record(utterance) for utterance in today]
        for utterance, features_TF in zip(today, recorded, strict=True):
            floor.add(features_TF, utterance, most=100)
        rows = np.concatenate([synth.smooth(features_TF, 0.35 * 6) for features_TF in recorded])
        smoothed.append(rows - rows.mean(axis=0))
        classes.append(np.concatenate([utterance.class_T for utterance in today]))
        floor.end_day()
        electrodes.next_day()
    model = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=ShrunkCovariance(shrinkage=synth.SHRINKAGE)
    ).fit(np.concatenate(smoothed), np.concatenate(classes))
    decoder = floor.decoder()
    features_TF = electrodes.record(utter(lexicon, [0, 4, 2], pace, rng))
    for day in (0, 1):
        best_T = model.predict(synth.smooth(features_TF, 0.35 * 6) - decoder.day_means[day])
        expected = [int(b) for a, b in pairwise([SILENCE, *best_T]) if a != b]
        assert decoder.decode(day, features_TF) == expected


# --- synthetic recordings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthReport]:
    out = tmp_path_factory.mktemp("t15") / "raw"
    return out, task().synth(out, "tiny", seed=0)


def test_synth_is_the_t15_layout(tiny: tuple[Path, SynthReport]) -> None:
    """Read by h5py alone, against DOMAINS.md S1.c."""
    out, report = tiny
    sessions = sorted(path.name for path in out.iterdir())
    assert (sessions[0], sessions[-1], len(sessions)) == ("t15.2023.08.11", "t15.2025.04.13", 3)
    assert [path.name for path in (out / sessions[0]).iterdir()] == ["data_train.hdf5"]
    texts, blocks, num_trials = [], {}, 0
    for path in sorted(out.rglob("*.hdf5")):
        with h5py.File(path) as file:
            assert list(file) == [f"trial_{i:04d}" for i in range(len(file))]
            for index, trial in enumerate(file.values()):
                num_trials += 1
                features = trial["input_features"]
                assert (features.dtype, features.shape[1]) == (np.float32, 512)
                assert trial.attrs["n_time_steps"] == len(features) >= 14
                assert (trial.attrs["session"], trial.attrs["trial_num"]) == (path.parent.name, index)
                blocks.setdefault((path.parent.name, int(trial.attrs["block_num"])), set()).add(path.name)
                if path.name == "data_test.hdf5":
                    assert set(trial) == {"input_features"}
                    continue
                codes, ids = trial["transcription"][:], trial["seq_class_ids"][:]
                assert codes.shape == ids.shape == (500,)
                texts.append(bytes(codes.astype(np.uint8)).rstrip(b"\0").decode())
                assert texts[-1] == trial.attrs["sentence_label"]
                assert re.fullmatch(r"[A-Z][a-z]*( [A-Za-z]+)+\.", texts[-1])
                assert np.count_nonzero(ids) == trial.attrs["seq_len"]
                words = re.findall(r"\w+", texts[-1].lower())
                spoken = " ".join(PHONEMES[i] for i in ids[: trial.attrs["seq_len"]])
                lexicon = {word.lower(): phonemes for word, phonemes in speech.LEXICON}
                assert spoken == "".join(f"{lexicon[word]}  |  " for word in words).rstrip(" ") + " "
    assert report.num_rows == num_trials == 118
    assert len(set(texts)) == len(texts)
    assert all(
        files in ({"data_train.hdf5"}, {"data_val.hdf5", "data_test.hdf5"}) for files in blocks.values()
    )
    assert sum(path.stat().st_size for path in out.rglob("*.hdf5")) <= 20e6


def test_the_reader_returns_what_was_written(tiny: tuple[Path, SynthReport]) -> None:
    rows = read(tiny[0])
    assert not any(isinstance(row, BadRow) for row in rows)
    assert len(rows) == tiny[1].num_rows
    assert {row["day"] for row in rows} == {0, 1, 2}
    for row in (rows[0], rows[-1], rows[60]):
        with h5py.File(row["path"], locking=False) as file:
            np.testing.assert_array_equal(load(row)["neural"], file[row["trial"]]["input_features"][:])
            assert load(row)["text"] == file[row["trial"]].attrs.get("sentence_label", "")


def test_the_same_seed_writes_the_same_bytes(tiny: tuple[Path, SynthReport], tmp_path: Path) -> None:
    assert task().synth(tmp_path / "again", "tiny", seed=0) == tiny[1]
    names = [path.relative_to(tiny[0]).as_posix() for path in tiny[0].rglob("*.hdf5")]
    assert len(names) == 7
    assert filecmp.cmpfiles(tiny[0], tmp_path / "again", names, shallow=False)[0] == names
    assert task().synth(tmp_path / "other", "tiny", seed=1) != tiny[1]


def test_the_report_holds_for_who_measures_it(tiny: tuple[Path, SynthReport]) -> None:
    out, report = tiny
    assert report.metric == "per"
    assert 0 <= report.oracle < 0.05 < 0.2 < report.floor < 0.5 < 0.7 < report.chance < 1
    truths = [load_t15_trial(row)["phonemes"].tolist() for row in read_t15(out) if row["split"] == "val"]
    assert error_rate(zip([*truths[1:], truths[0]], truths, strict=True)) == pytest.approx(report.chance)
    # Who answers with the most common transcript does no better than chance.
    constant = min(error_rate((guess, truth) for truth in truths) for guess in truths)
    assert constant > 0.6


@pytest.mark.parametrize(
    ("size", "num_features", "most", "least"),
    [("small", 512, 500e6, 300e6), ("small", 256, 500e6, 300e6), ("full", 512, 6e9, 4.5e9)],
)
def test_larger_sizes_keep_to_their_bounds(size: str, num_features: int, most: float, least: float) -> None:
    spec, rng = synth.size_of(size, num_features), np.random.default_rng(0)
    lexicon = Lexicon(spec.num_words)
    sentences = synth._sentences(spec, lexicon, rng)
    lengths = np.array([len(utter(lexicon, next(sentences), spec.pace, rng).class_T) for _ in range(400)])
    labels = 2 * synth.LABEL_ENTRIES * 4
    expected = spec.num_trials * (lengths.mean() * num_features * 4 + labels + 3000)
    spread = (
        spec.num_trials**0.5 * lengths.std() * num_features * 4
        + expected * 3 * lengths.std() / lengths.mean() / 20
    )
    assert least < expected < most
    assert expected + spread < most * 1.05
    if size == "full":
        assert spec.num_sessions == 45
        assert 450 < np.median(lengths) < 700
        assert np.quantile(lengths, 0.99) < synth.MAX_TIME_STEPS


# --- statistics of the training rows


class Kept:
    """Prepared rows of two sessions, in memory."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.trials = [3 + 2 * rng.standard_normal((n, 4)) for n in (5, 9, 30, 2)]
        self.columns = {
            "session": ["b", "a", "b", "a"],
            "day": [1, 0, 1, 0],
            "text": ["No, you", "", "you", "I"],
        }

    def __len__(self) -> int:
        return len(self.trials)

    def column(self, name: str) -> np.ndarray:
        return np.array(self.columns[name], dtype=object)

    def take(self, rows: object, names: object) -> dict[str, np.ndarray]:
        (row,) = rows  # type: ignore[attr-defined]
        return {"neural": self.trials[row][None]}


def test_statistics_name_sessions_by_date_words_and_each_features_moments() -> None:
    rows = Kept()
    found = task().column_statistics(rows)
    assert found["day"]["sessions"] == ["a", "b"]
    assert found["text"]["words"] == ["i", "no", "you"]
    bins = np.concatenate(rows.trials)
    np.testing.assert_allclose(feature_moments(rows)["feature_mean"], bins.mean(0))
    np.testing.assert_allclose(found["neural"]["feature_std"], bins.std(0))


def test_audio_columns_are_what_two_networks_make() -> None:
    made = task(audio={"tts": "tones", "tower": "tiny"})
    speech, tower = made.embedders()
    assert (speech.inputs, tuple(speech.outputs), tower.inputs) == (("text",), ("speech",), ("speech",))
    assert made.schema().columns["audio"].shape == (None, None)
    assert task(audio={}).schema().columns["audio"].shape == (None, 1280)
    assert task().embedders() == []
