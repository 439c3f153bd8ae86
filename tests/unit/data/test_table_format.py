"""Arrays beside a table → rows, against files written by numpy, csv and pyarrow, and a real set."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.make_mds import samples
from flat_task import SCHEMA
from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.flat.rows import flat_rows, read_flat_row

SMALL = Schema(
    {"sample_id": Column(TEXT), "patient_id": Column(TEXT), "x": Column("float32", (3,))}, group="patient_id"
)


def light(source: Path, schema: Schema = SMALL, **columns: str) -> list:
    return list(flat_rows("table", source, schema, columns))


def read(source: Path, schema: Schema = SMALL, **columns: str) -> list[dict]:
    rows = light(source, schema, **columns)
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [read_flat_row(pickle.loads(pickle.dumps(row)), schema) for row in rows]


def refused(source: Path, schema: Schema = SMALL, **columns: str) -> str:
    with pytest.raises(InputError) as error:
        light(source, schema, **columns)
    return str(error.value)


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_small(folder: Path, num: int = 4) -> np.ndarray:
    write_csv(folder / "rows.csv", [{"sample_id": f"s{i}", "patient_id": i // 2} for i in range(num)])
    values = np.random.default_rng(num).standard_normal((num, 3)).astype(np.float32)
    np.save(folder / "x.npy", values)
    return values


def padded(arrays: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_file_brings_its_columns(tmp_path: Path, order: str) -> None:
    rows = samples(5, 8)
    lengths = [len(row["trace"]) for row in rows]
    cells = [
        {
            "sample_id": row["sample_id"],
            "patient_id": row["patient"],
            "age": row["age"] if row["visit"] else "",
            "Mass": 0,
            "Edema": 1,
            "text": row["text"],
            "trace.length": length,
            "split": "validation" if row["patient"] % 2 else "train",
        }
        for row, length in zip(rows, lengths, strict=True)
    ]
    write_csv(tmp_path / "rows.tsv", cells, "\t")
    np.save(tmp_path / "window.npy", np.asarray([row["window"] for row in rows], order=order))
    bins = {
        "bins": padded([row["bins"] for row in rows]),
        "bins.length": [len(row["bins"]) for row in rows],
    }
    np.savez(tmp_path / "more.npz", trace=padded([row["trace"] for row in rows]), unused=np.zeros(3))
    np.savez_compressed(tmp_path / "packed.npz", **bins)
    pq.write_table(
        pa.table({"image": [row["image"] for row in rows], "visit": [row["visit"] for row in rows]}),
        tmp_path / "images.parquet",
    )
    found = light(tmp_path, SCHEMA)
    assert [row["split"] for row in found] == ["val" if row["patient"] % 2 else "train" for row in rows]
    assert found[0]["origin"] == "rows.tsv row 2"
    for row, sample in zip([read_flat_row(row, SCHEMA) for row in found], rows, strict=True):
        assert (row["sample_id"], row["patient_id"]) == (sample["sample_id"], str(sample["patient"]))
        np.testing.assert_array_equal(row["window"], sample["window"])
        np.testing.assert_array_equal(row["trace"], sample["trace"].astype(np.float32))
        np.testing.assert_array_equal(row["bins"], sample["bins"])
        np.testing.assert_array_equal(row["labels"], [0, 1])
        np.testing.assert_array_equal(row["age"], sample["age"] if sample["visit"] else np.nan)
        assert (row["text"], row["visit"], row["image"]) == (sample["text"], sample["visit"], sample["image"])


def test_an_npz_alone_is_a_table(tmp_path: Path) -> None:
    x = np.arange(6).reshape(2, 3)
    np.savez(tmp_path / "all.npz", sample_id=np.array(["a", "b"]), subject=np.array([7, 8]), x=x)
    rows = read(tmp_path, patient_id="subject")
    assert [(row["sample_id"], row["patient_id"]) for row in rows] == [("a", "7"), ("b", "8")]
    np.testing.assert_array_equal([row["x"] for row in rows], x)


def test_folders_below_are_tables_of_their_own(tmp_path: Path) -> None:
    expected = [*write_small(tmp_path / "train", 4), *write_small(tmp_path / "test", 2)]
    rows = read(tmp_path)
    assert [row["split"] for row in rows] == ["test"] * 2 + ["train"] * 4
    np.testing.assert_array_equal([row["x"] for row in rows], expected[4:] + expected[:4])


def test_only_the_rows_asked_for_are_read_of_a_mapped_array(tmp_path: Path) -> None:
    """100 GB of zeros that the disk does not hold: loading them would fail."""
    num = 10**8
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (num, 250)).flush()
    write_csv(tmp_path / "rows.csv", [{"sample_id": "a", "patient_id": "p"}])
    assert "x.npy ('x') has 100000000" in refused(
        tmp_path, Schema({**SMALL.columns, "x": Column("float32", (250,))}, group="patient_id")
    )
    (tmp_path / "rows.csv").unlink()
    rows = flat_rows(
        "table",
        tmp_path,
        Schema({"sample_id": Column(TEXT), "x": Column("float32", (250,))}, group="sample_id"),
        {},
    )
    assert not read_flat_row(next(iter(rows)), SMALL_X)["x"].any()


SMALL_X = Schema({"sample_id": Column(TEXT), "x": Column("float32", (250,))}, group="sample_id")


def test_files_that_differ_in_length_are_named(tmp_path: Path) -> None:
    write_small(tmp_path, 4)
    np.save(tmp_path / "x.npy", np.zeros((3, 3)))
    assert "rows.csv has 4, x.npy ('x') has 3; mend them" in refused(tmp_path)
    np.save(tmp_path / "x.npy", np.float32(3))
    assert "'x' is a single value" in refused(tmp_path)


def test_missing_and_doubled_columns_are_named(tmp_path: Path) -> None:
    write_small(tmp_path)
    assert "rows.csv: no column 'patinet'; is 'patient_id' meant?" in refused(tmp_path, patient_id="patinet")
    np.savez(tmp_path / "more.npz", x=np.zeros((4, 3)))
    message = refused(tmp_path)
    assert "column 'x' is in" in message
    assert "more.npz" in message
    assert "x.npy" in message


def test_lines_that_cannot_be_used_are_bad_rows(tmp_path: Path) -> None:
    values = write_small(tmp_path)
    (tmp_path / "rows.csv").write_text("sample_id,patient_id\na,p\n\nb\nc,\nd,q\n\n", encoding="utf-8-sig")
    good, short, empty, last = light(tmp_path)
    assert short == BadRow("rows.csv row 4", "the row has 1 cells, the header 2; mend it")
    assert empty == BadRow("rows.csv row 5", "'patient_id' is empty; every row needs one")
    np.testing.assert_array_equal(read_flat_row(last, SMALL)["x"], values[3])
    with pytest.raises(BadRowError, match="column 'x' has the shape 3, 2 is needed"):
        read_flat_row(good, Schema({**SMALL.columns, "x": Column("float32", (2,))}, group="patient_id"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"sample_id,sample_id\na,b\n", "'sample_id' comes twice"),
        ("rows.csv", "sample_id,patient_id\nä,p\n".encode("latin-1"), "UTF-8"),
        ("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order'", "x.npy"),
        ("x.npy", b"nothing", "x.npy"),
        ("more.npz", b"PK\x03\x04 cut", "more.npz"),
        ("more.parquet", b"PAR1", "more.parquet"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_small(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path)
    np.save(tmp_path / "x.npy", np.array([{}] * 4, dtype=object), allow_pickle=True)
    assert "pickled objects, which are not read" in refused(tmp_path)


def test_an_npy_cut_off_is_refused(tmp_path: Path) -> None:
    write_small(tmp_path)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-4])
    assert "promises 48 bytes, 44 follow" in refused(tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "raw")
    (tmp_path / "raw" / "x.npy").rename(tmp_path / "x.npy")
    (tmp_path / "raw" / "x.npy").symlink_to(tmp_path / "x.npy")
    assert "leads out of the folder" in refused(tmp_path / "raw")
    assert "holds no" in refused(tmp_path / "raw" / "nothing") or "is no folder" in refused(
        tmp_path / "raw" / "nothing"
    )


def test_a_length_longer_than_its_row_is_a_bad_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [{"sample_id": "a", "t.length": 3}, {"sample_id": "b", "t.length": 2}])
    np.save(tmp_path / "t.npy", np.arange(4).reshape(2, 2))
    schema = Schema(
        {"sample_id": Column(TEXT), "t": Column("int32", (None,), ragged=True)}, group="sample_id"
    )
    long, fits = light(tmp_path, schema)
    np.testing.assert_array_equal(read_flat_row(fits, schema)["t"], [2, 3])
    with pytest.raises(BadRowError, match="column 't' has 2 entries, but its length is 3"):
        read_flat_row(long, schema)


def test_real_reaches_cut_to_their_lengths(shared_data: Path) -> None:
    folder = shared_data / "neural" / "monkey_reach"
    columns = {
        "sample_id": Column(TEXT),
        "spikes": Column("float32", (None, None), ragged=True),
        "angle_deg": Column("int32"),
    }
    schema = Schema(columns, group="sample_id")
    named = {"spikes": "spike_counts", "spikes.length": "length"}
    rows = [read_flat_row(row, schema) for row in flat_rows("table", folder, schema, named)]
    with np.load(folder / "monkey_reach_20ms.npz") as arrays:
        counts, lengths, angles = (arrays[name] for name in ("spike_counts", "length", "angle_deg"))
    assert len(rows) == len(counts) == 560
    for row, count, length, angle in zip(rows, counts, lengths, angles, strict=True):
        np.testing.assert_array_equal(row["spikes"], count[:length])
        assert row["angle_deg"] == angle


def test_real_digits_keep_the_declared_split(shared_data: Path) -> None:
    folder = shared_data / "fmri" / "digits69"
    columns = {"sample_id": Column(TEXT), "fmri": Column("float32", (None,)), "digit": Column("uint8")}
    schema = Schema(columns, group="sample_id")
    rows = list(flat_rows("table", folder, schema, {"split": "source_split"}))
    with np.load(folder / "digits69.npz") as arrays:
        fmri, splits = arrays["fmri"], arrays["source_split"].tolist()
    assert [row["split"] for row in rows] == splits
    np.testing.assert_array_equal([read_flat_row(row, schema)["fmri"] for row in rows], fmri)
