"""Shards: what is written comes back, with pyarrow alone too; the bytes depend on the rows only."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.data.reader import ShardError, ShardReader
from voxray.data.shards import row_bytes, write_shard

SCHEMA = Schema(
    {
        "sample_id": Column(TEXT),
        "patient_id": Column(TEXT),
        "image": Column("uint8", (1, 4, 5), "grey"),
        "labels": Column("float32", (3,), "1/0/NaN", ("a", "b", "c")),
        "visit": Column("int32"),
    },
    group="patient_id",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where shards lie in a dataset; the index goes to the folder beside it."""
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


def make_rows(num: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "sample_id": f"söme-{i}",
            "patient_id": f"p{i % 3}",
            "image": rng.integers(0, 256, (1, 4, 5), dtype=np.uint8),
            "labels": np.array([0, 1, np.nan], np.float32),
            "visit": i,
            "path": "not a column",
        }
        for i in range(num)
    ]


@pytest.mark.parametrize("num", [1, 1023, 1024, 1025, 2500])
def test_rows_come_back_in_the_order_asked_for(folder: Path, num: int) -> None:
    rows = make_rows(num)
    write_shard(folder / "a.arrow", rows, SCHEMA, "train")
    reader = ShardReader(folder / "a.arrow")
    assert reader.num_rows == num
    assert reader.columns == dict(SCHEMA.columns)
    order = np.random.default_rng(1).integers(0, num, 2 * num)  # with repeats
    taken = reader.take(order)
    assert list(taken) == list(SCHEMA.columns)
    for name, column in SCHEMA.columns.items():
        expected = [rows[i][name] for i in order]
        assert taken[name].dtype == (object if column.dtype == TEXT else column.dtype)
        np.testing.assert_array_equal(taken[name], np.array(expected, taken[name].dtype))


def test_taken_arrays_are_the_callers_own(folder: Path) -> None:
    write_shard(folder / "a.arrow", make_rows(3), SCHEMA, "train")
    reader = ShardReader(folder / "a.arrow")
    reader.take(np.array([0]))["image"][:] = 0
    assert reader.take(np.array([0]), ["image"])["image"].any()
    assert reader.take(np.array([], int))["image"].shape == (0, 1, 4, 5)
    for row in (-1, 3):
        with pytest.raises(IndexError):
            reader.take(np.array([row]))


def test_pyarrow_alone_reads_a_shard(folder: Path) -> None:
    rows = make_rows(5)
    write_shard(folder / "a.arrow", rows, SCHEMA, "train")
    with pa.memory_map(str(folder / "a.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.column("sample_id").to_pylist() == [row["sample_id"] for row in rows]
        field = table.schema.field("image")
        shape = json.loads(field.metadata[b"shape"])
        assert field.metadata[b"dtype"] == b"uint8"
        assert field.metadata[b"unit"] == b"grey"
        assert json.loads(table.schema.field("labels").metadata[b"names"]) == ["a", "b", "c"]
        images = np.array(table.column("image").to_pylist(), np.uint8).reshape(-1, *shape)
    np.testing.assert_array_equal(images, [row["image"] for row in rows])


def test_the_info_is_the_files(folder: Path) -> None:
    info = write_shard(folder / "train-00000.arrow", make_rows(1500), SCHEMA, "train")
    data = (folder / "train-00000.arrow").read_bytes()
    assert info is not None
    assert (info.file, info.split, info.rows) == ("shards/train-00000.arrow", "train", 1500)
    assert (info.bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert row_bytes(SCHEMA) == 32 + 32 + 1 * 4 * 5 + 3 * 4 + 4


def test_the_same_rows_make_the_same_bytes(folder: Path) -> None:
    infos = [write_shard(folder / f"{i}.arrow", make_rows(1500), SCHEMA, "train") for i in range(2)]
    other = write_shard(folder / "2.arrow", make_rows(1500, seed=1), SCHEMA, "train")
    assert infos[0].sha256 == infos[1].sha256 != other.sha256


def test_no_rows_no_file(folder: Path) -> None:
    assert write_shard(folder / "a.arrow", [], SCHEMA, "train") is None
    assert not list(folder.iterdir())


def test_wide_rows_are_written_in_small_record_batches(folder: Path) -> None:
    schema = Schema(SCHEMA.columns | {"image": Column("uint8", (1, 2048, 2048))}, group="patient_id")
    rows = ({**row, "image": np.zeros((1, 2048, 2048), np.uint8)} for row in make_rows(6))
    write_shard(folder / "a.arrow", rows, schema, "train")
    with pa.memory_map(str(folder / "a.arrow")) as source:
        assert [b.num_rows for b in map(pa.ipc.open_file(source).get_batch, range(2))] == [3, 3]


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"something else"])
def test_what_is_no_shard(folder: Path, damage: bytes) -> None:
    (folder / "a.arrow").write_bytes(damage)
    with pytest.raises(InputError, match=r"a\.arrow"):
        ShardReader(folder / "a.arrow")
    with pytest.raises(InputError, match="missing"):
        ShardReader(folder / "b.arrow")


def test_a_foreign_arrow_file_is_refused(folder: Path) -> None:
    table = pa.table({"x": [1, 2]})
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="no shard of voxray"):
        ShardReader(folder / "a.arrow")


TRIALS = Schema(
    {
        "sample_id": Column(TEXT),
        "session": Column(TEXT),
        "neural": Column("float32", (None, 3), "z", ragged=True),
        "phonemes": Column("int64", (None,), ragged=True),
        "image": Column(BYTES, unit="PNG"),
        "block": Column("int16"),
    },
    group="session",
)


def make_trials(num: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 40, (num, 2))  # empty rows too
    return [
        {
            "sample_id": f"t{i}",
            "session": f"s{i % 4}",
            "neural": rng.standard_normal((lengths[i, 0], 3), dtype=np.float32),
            "phonemes": rng.integers(0, 40, lengths[i, 1]),
            "image": bytes(rng.integers(0, 256, int(rng.integers(0, 50)), dtype=np.uint8)),
            "block": i,
        }
        for i in range(num)
    ]


@pytest.mark.parametrize("num", [1, 7, 2500])
def test_ragged_and_encoded_rows_come_back(folder: Path, num: int) -> None:
    rows = make_trials(num)
    info = write_shard(folder / "a.arrow", rows, TRIALS, "train")
    reader = ShardReader(folder / "a.arrow", info)
    assert reader.columns == dict(TRIALS.columns)
    order = np.random.default_rng(1).integers(0, num, 2 * num)
    taken = reader.take(order)
    for place, row in enumerate(order.tolist()):
        assert taken["image"][place] == rows[row]["image"]
        for name in ("neural", "phonemes"):
            assert taken[name][place].dtype == rows[row][name].dtype
            np.testing.assert_array_equal(taken[name][place], rows[row][name])


def test_pyarrow_alone_reads_ragged_rows(folder: Path) -> None:
    rows = make_trials(9)
    write_shard(folder / "a.arrow", rows, TRIALS, "train")
    table = pa.ipc.open_file(pa.memory_map(str(folder / "a.arrow"))).read_all()
    for got, row in zip(table.to_pylist(), rows, strict=True):
        np.testing.assert_array_equal(np.array(got["neural"], np.float32).reshape(-1, 3), row["neural"])
        assert (got["phonemes"], got["image"]) == (row["phonemes"].tolist(), row["image"])


def test_long_trials_are_written_in_small_record_batches(folder: Path) -> None:
    rows = ({**row, "neural": np.zeros((500_000, 3), np.float32)} for row in make_trials(6))
    info = write_shard(folder / "a.arrow", rows, TRIALS, "train")
    assert [window.end_row for window in info.windows] == [2, 4, 6, 6]


def test_every_byte_of_a_shard_lies_in_one_hashed_window(folder: Path) -> None:
    """The authority is xxhash over the file's own bytes, cut where the manifest says."""
    info = write_shard(folder / "a.arrow", make_rows(2500), SCHEMA, "train")
    data = (folder / "a.arrow").read_bytes()
    ends = [0, *(window.end_byte for window in info.windows)]
    assert ends[-1] == len(data)
    assert [window.end_row for window in info.windows] == [1024, 2048, 2500, 2500]
    for window, start, end in zip(info.windows, ends[:-1], ends[1:], strict=True):
        assert window.xxh3 == xxhash.xxh3_128_hexdigest(data[start:end])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_named_before_its_window_is_used(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("d") / "shards"
    folder.mkdir()
    info = write_shard(folder / "a.arrow", make_rows(2500), SCHEMA, "train")
    content = bytearray((folder / "a.arrow").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "a.arrow").write_bytes(content)
    ends = [window.end_byte for window in info.windows]
    broken = int(np.searchsorted(ends, place, side="right"))
    if broken == 3:
        with pytest.raises(ShardError, match=r"a\.arrow' is damaged in the footer"):
            ShardReader(folder / "a.arrow", info)
        return
    reader = ShardReader(folder / "a.arrow", info)
    for window, rows in enumerate([(0, 1023), (1024, 2047), (2048, 2499)]):
        if window != broken:
            reader.take(np.array(rows))
            continue
        with pytest.raises(ShardError, match=rf"a\.arrow' is damaged in rows {rows[0]} to {rows[1]}"):
            reader.take(np.array([rows[1]]))


def test_a_window_is_hashed_once_by_the_processes_of_a_node(folder: Path, monkeypatch) -> None:
    from voxray.data import reader as module

    hashed = []
    real = xxhash.xxh3_128_hexdigest
    info = write_shard(folder / "a.arrow", make_rows(2500), SCHEMA, "train")
    monkeypatch.setattr(
        module.xxhash, "xxh3_128_hexdigest", lambda data: hashed.append(len(data)) or real(data)
    )
    ShardReader(folder / "a.arrow", info).take(np.arange(2500))
    assert sum(hashed) == info.bytes
    ShardReader(folder / "a.arrow", info).take(np.arange(2500))  # as another process would
    assert sum(hashed) == info.bytes
    content = (folder / "a.arrow").read_bytes()
    (folder / "a.arrow").write_bytes(content)  # written to since: checked anew
    ShardReader(folder / "a.arrow", info).take(np.arange(2500))
    assert sum(hashed) == 2 * info.bytes


def test_a_cut_shard_is_refused_by_its_size(folder: Path) -> None:
    info = write_shard(folder / "a.arrow", make_rows(10), SCHEMA, "train")
    content = (folder / "a.arrow").read_bytes()
    (folder / "a.arrow").write_bytes(content[:-8])
    with pytest.raises(ShardError, match="its manifest says"):
        ShardReader(folder / "a.arrow", info)
