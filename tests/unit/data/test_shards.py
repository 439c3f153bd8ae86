"""Shards: what is written comes back, with pyarrow alone too; the bytes depend on the rows only."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.data.shards import open_shard, row_bytes, write_shard

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
def test_rows_come_back_in_the_order_asked_for(tmp_path: Path, num: int) -> None:
    rows = make_rows(num)
    write_shard(tmp_path / "a.arrow", rows, SCHEMA, "train")
    reader = open_shard(tmp_path / "a.arrow")
    assert reader.num_rows == num
    assert reader.columns == dict(SCHEMA.columns)
    order = np.random.default_rng(1).integers(0, num, 2 * num)  # with repeats
    taken = reader.take(order)
    assert list(taken) == list(SCHEMA.columns)
    for name, column in SCHEMA.columns.items():
        expected = [rows[i][name] for i in order]
        assert taken[name].dtype == (object if column.dtype == TEXT else column.dtype)
        np.testing.assert_array_equal(taken[name], np.array(expected, taken[name].dtype))


def test_taken_arrays_are_the_callers_own(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.arrow", make_rows(3), SCHEMA, "train")
    reader = open_shard(tmp_path / "a.arrow")
    reader.take(np.array([0]))["image"][:] = 0
    assert reader.take(np.array([0]), ["image"])["image"].any()
    assert reader.take(np.array([], int))["image"].shape == (0, 1, 4, 5)
    for row in (-1, 3):
        with pytest.raises(IndexError):
            reader.take(np.array([row]))


def test_pyarrow_alone_reads_a_shard(tmp_path: Path) -> None:
    rows = make_rows(5)
    write_shard(tmp_path / "a.arrow", rows, SCHEMA, "train")
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.column("sample_id").to_pylist() == [row["sample_id"] for row in rows]
        field = table.schema.field("image")
        shape = json.loads(field.metadata[b"shape"])
        assert field.metadata[b"dtype"] == b"uint8"
        assert field.metadata[b"unit"] == b"grey"
        assert json.loads(table.schema.field("labels").metadata[b"names"]) == ["a", "b", "c"]
        images = np.array(table.column("image").to_pylist(), np.uint8).reshape(-1, *shape)
    np.testing.assert_array_equal(images, [row["image"] for row in rows])


def test_the_info_is_the_files(tmp_path: Path) -> None:
    info = write_shard(tmp_path / "train-00000.arrow", make_rows(1500), SCHEMA, "train")
    data = (tmp_path / "train-00000.arrow").read_bytes()
    assert info is not None
    assert (info.file, info.split, info.rows) == ("shards/train-00000.arrow", "train", 1500)
    assert (info.bytes, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert row_bytes(SCHEMA) == 32 + 32 + 1 * 4 * 5 + 3 * 4 + 4


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    infos = [write_shard(tmp_path / f"{i}.arrow", make_rows(1500), SCHEMA, "train") for i in range(2)]
    other = write_shard(tmp_path / "2.arrow", make_rows(1500, seed=1), SCHEMA, "train")
    assert infos[0].sha256 == infos[1].sha256 != other.sha256


def test_no_rows_no_file(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.arrow", [], SCHEMA, "train") is None
    assert not list(tmp_path.iterdir())


def test_wide_rows_are_written_in_small_record_batches(tmp_path: Path) -> None:
    schema = Schema(SCHEMA.columns | {"image": Column("uint8", (1, 2048, 2048))}, group="patient_id")
    rows = ({**row, "image": np.zeros((1, 2048, 2048), np.uint8)} for row in make_rows(6))
    write_shard(tmp_path / "a.arrow", rows, schema, "train")
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        assert [b.num_rows for b in map(pa.ipc.open_file(source).get_batch, range(2))] == [3, 3]


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"something else"])
def test_what_is_no_shard(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(damage)
    with pytest.raises(InputError, match=r"a\.arrow"):
        open_shard(tmp_path / "a.arrow")
    with pytest.raises(InputError, match="missing"):
        open_shard(tmp_path / "b.arrow")


def test_a_foreign_arrow_file_is_refused(tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2]})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="no shard of voxray"):
        open_shard(tmp_path / "a.arrow")
