"""Flat datasets → rows: Parquet written by pyarrow, tars by webdataset, MDS shards by MosaicML's library."""

import contextlib
import hashlib
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fixtures.make_mds import PACKINGS, samples
from flat_task import SCHEMA
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.flat import mds as mds_module
from voxray.data.formats.flat import parquet as parquet_module
from voxray.data.formats.flat.mds_values import decode
from voxray.data.formats.flat.packed import unpack
from voxray.data.formats.flat.rows import flat_rows, read_flat_row
from voxray.data.formats.flat.source import split_of_path
from voxray.data.formats.flat.values import fit

MDS = Path(__file__).parents[2] / "fixtures" / "mds"
MDS_COLUMNS = {"patient_id": "patient", "labels": "meta/labels"}
PNG = samples(1, 9)[0]["image"]


def light(format: str, source: Path, columns: dict | None = None, schema: Schema = SCHEMA) -> list:
    return list(flat_rows(format, source, schema, columns or {}))


def read(format: str, source: Path, columns: dict | None = None, schema: Schema = SCHEMA) -> list[dict]:
    rows = light(format, source, columns, schema)
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [read_flat_row(pickle.loads(pickle.dumps(row)), schema) for row in rows]


def refused(format: str, source: Path, columns: dict | None = None, schema: Schema = SCHEMA) -> str:
    with pytest.raises(InputError) as error:
        light(format, source, columns, schema)
    return str(error.value)


def small(**columns: Column) -> Schema:
    return Schema({"sample_id": Column(TEXT), "patient_id": Column(TEXT), **columns}, group="patient_id")


def check(rows: list[dict], expected: list[dict]) -> None:
    """Compare rows of SCHEMA with the samples that were written."""
    assert [row["sample_id"] for row in rows] == [sample["sample_id"] for sample in expected]
    for row, sample in zip(rows, expected, strict=True):
        assert row["patient_id"] == str(sample["patient"])
        assert row["text"] == sample["text"]
        np.testing.assert_array_equal(row["window"], sample["window"])
        np.testing.assert_array_equal(row["trace"], sample["trace"].astype(np.float32))
        np.testing.assert_array_equal(row["bins"], sample["bins"])
        np.testing.assert_array_equal(row["labels"], [0, 1])
        assert (row["age"], row["visit"]) == (sample["age"], sample["visit"])
        pictures = [np.asarray(Image.open(io.BytesIO(each["image"]))) for each in (row, sample)]
        np.testing.assert_array_equal(*pictures)
        for name, column in SCHEMA.columns.items():
            assert not column.is_tensor or row[name].dtype == column.dtype


# --- values
# ----------------------------------------------------------------------------------------------------------

NUMBERS = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "int32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)


@given(st.data(), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
def test_numbers_survive_or_are_refused(data: st.DataObject, stored: str, wanted: str) -> None:
    array = data.draw(hnp.arrays(stored, hnp.array_shapes(max_dims=1, max_side=4)))
    kinds = np.dtype(stored).kind, np.dtype(wanted).kind
    exact = [int(v) if kinds[0] in "biu" or float(v).is_integer() else float(v) for v in array.tolist()]
    try:
        got = fit(array, Column(wanted, array.shape))
    except ValueError:
        with np.errstate(all="ignore"):
            made = [np.array(v, dtype=object).astype(stored).astype(wanted).item() for v in exact]
        assert kinds != ("f", "f") or any(np.isinf(made))
        assert made != exact or any(not _holds(v, wanted) for v in exact)
        return
    assert got.dtype == wanted
    if kinds == ("f", "f"):
        np.testing.assert_array_equal(got, array.astype(wanted))
    else:
        assert [int(v) if float(v).is_integer() else v for v in got.tolist()] == exact


def _holds(value: float, dtype: str) -> bool:
    limits = (
        (0, 1)
        if dtype == "bool"
        else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if dtype[0] in "iu"
        else None
    )
    return limits is None or (float(value).is_integer() and limits[0] <= int(value) <= limits[1])


@pytest.mark.parametrize(
    ("value", "column", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], Column("int32", (2, 3)), [[1, 2, 3], [4, 5, 6]]),
        ([[1.5, None]], Column("float32", (1, 2)), [[1.5, np.nan]]),
        ([1, 2, 3, 4], Column("float32", (None, 2), ragged=True), [[1, 2], [3, 4]]),
        ([1, 2, 3, 4], Column("uint8", (1, None, 2)), [[[1, 2], [3, 4]]]),
        (np.zeros((0, 4)), Column("float32", (None, None), ragged=True), np.zeros((0, 4))),
        ([], Column("int32", (None,), ragged=True), []),
        (None, Column("float32"), np.nan),
        ("7", Column("int32"), 7),
        ("", Column("float32"), np.nan),
        (True, Column("float32"), 1.0),
    ],
)
def test_shapes_that_fit(value: object, column: Column, expected: object) -> None:
    got = fit(value, column)
    assert got.dtype == column.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("value", "column", "reason"),
    [
        ([1, 2, 3], Column("int32", (2, 2)), "shape 3, 2×2"),
        ([[1, 2], [3]], Column("int32", (2, 2)), "differ in length"),
        ([1, 2, 3, 4], Column("uint8", (1, None, None)), "1×?×?"),
        ([1, 2, 3], Column("float32", (None, 2), ragged=True), "shape 3"),
        (None, Column("int32"), "NaN"),
        ([1, None], Column("int32", (2,)), "NaN in 1 of 2"),
        (300, Column("uint8"), "300"),
        (-1, Column("uint8"), "-1"),
        (2**63, Column("int64"), "9223372036854775808"),
        (2**24 + 1, Column("float32"), "16777217"),
        (1.5, Column("int32"), "1.5"),
        (1e39, Column("float32"), "1e+39"),
        ("soon", Column("float32"), "'soon'"),
        (1j, Column("float32"), "numbers"),
        (PNG, Column("uint8", (4, 6)), "encoded image"),
        (b"abc", Column("uint8", (3,)), "no .npy"),
        (1.5, Column(TEXT), "text or a whole number"),
        (b"\xff\xfe", Column(TEXT), "UTF-8"),
        ("x", Column(BYTES), "JPEG or PNG"),
        (b"GIF89a", Column(BYTES), "start like a JPEG"),
        (None, Column(BYTES), "missing"),
    ],
)
def test_what_does_not_fit_says_why(value: object, column: Column, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("?", r"\?").replace("+", r"\+")):
        fit(value, column)


def test_a_pickle_inside_an_npy_is_never_loaded() -> None:
    file = io.BytesIO()
    np.save(file, np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled"):
        fit(file.getvalue(), Column("float32", (1,)))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/part-0.parquet", "train"),
        ("data/validation/a.tar", "val"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("train/val_3.tar", "val"),
        ("Valid/x/y.mds", "val"),
        ("trainer/testing1.tar", None),
        ("part.parquet", None),
    ],
)
def test_splits_by_file_and_folder(name: str, split: str | None) -> None:
    assert split_of_path(name) == split


# --- Parquet
# ----------------------------------------------------------------------------------------------------------


def arrow_table(rows: list[dict]) -> pa.Table:
    """Return samples as Parquet users have them: nested, fixed and flat lists, structs, dictionaries."""
    windows = pa.FixedSizeListArray.from_arrays(
        pa.array(np.concatenate([row["window"].ravel() for row in rows])), 6
    )
    return pa.table(
        {
            "sample_id": [row["sample_id"] for row in rows],
            "subject": pa.array([row["patient"] for row in rows], pa.int64()),
            "window": windows,
            "trace": pa.array([row["trace"].tolist() for row in rows], pa.list_(pa.list_(pa.float32(), 2))),
            "bins": pa.array([row["bins"].tolist() for row in rows], pa.large_list(pa.int8())),
            "image": [{"bytes": row["image"], "path": "a.png"} for row in rows],
            "age": [row["age"] for row in rows],
            "visit": pa.array([row["visit"] for row in rows], pa.uint16()),
            "labels": [[0, 1] for _ in rows],
            "text": pa.array([row["text"] or None for row in rows]).dictionary_encode(),
        }
    )


PARQUET_COLUMNS = {"patient_id": "subject", "image": "image/bytes"}


def write_parquet(path: Path, table: pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def test_parquet_brings_every_value(tmp_path: Path) -> None:
    rows = samples(11, 4)
    write_parquet(tmp_path / "train" / "part-0.parquet", arrow_table(rows[:8]), row_group_size=3)
    write_parquet(tmp_path / "val" / "part-0.parquet", arrow_table(rows[8:]))
    check(read("parquet", tmp_path, PARQUET_COLUMNS), rows)
    found = light("parquet", tmp_path, PARQUET_COLUMNS)
    assert [row["split"] for row in found] == ["train"] * 8 + ["val"] * 3
    assert found[9]["origin"] == "val/part-0.parquet row 1"
    assert "window" not in found[0]["values"]
    np.testing.assert_array_equal(found[0]["labels"], [0, 1])


def test_parquet_rows_in_any_order_and_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = samples(11, 4)
    write_parquet(tmp_path / "a.parquet", arrow_table(rows), row_group_size=4)
    monkeypatch.setattr(parquet_module, "CHUNK_BYTES", 1)
    found = light("parquet", tmp_path, PARQUET_COLUMNS)
    order = [7, 2, 3, 1, 10, 0, 1, 1, 6, 5]
    check([read_flat_row(found[i], SCHEMA) for i in order], [rows[i] for i in order])


def test_parquet_tensors_of_other_forms(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.float64).reshape(2, 3))
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    schema = small(
        npy=Column("float32", (2, 3)),
        tensor=Column("float32", (None, None)),
        nested=Column("int16", (None, None)),
    )
    table = pa.table(
        {
            "sample_id": ["a", "b"],
            "patient_id": ["p", "q"],
            "npy": [file.getvalue()] * 2,
            "nested": [[[1, 2]], [[3, 4]]],
        }
    )
    write_parquet(tmp_path / "a.parquet", table.append_column("tensor", tensor))
    with pytest.raises(
        BadRowError, match=r"column 'tensor' has the shape 6.*store it nested"
    ):  # flat, and its sizes are open
        read("parquet", tmp_path, None, schema)
    fixed = small(
        npy=Column("float32", (2, 3)), tensor=Column("float32", (2, 3)), nested=Column("int16", (None, 2))
    )
    rows = read("parquet", tmp_path, None, fixed)
    np.testing.assert_array_equal(rows[1]["tensor"], np.arange(6, 12).reshape(2, 3))
    np.testing.assert_array_equal(rows[0]["npy"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(rows[1]["nested"], [[3, 4]])


def test_tensors_whose_axes_are_permuted_are_refused(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    storage = pa.array([[1, 2, 3, 4, 5, 6]], pa.list_(pa.float32(), 6))
    tensor = pa.ExtensionArray.from_storage(kind, storage)
    write_parquet(tmp_path / "a.parquet", pa.table({"sample_id": ["a"], "patient_id": ["p"], "x": tensor}))
    assert "column 'x' has the type" in refused("parquet", tmp_path, None, small(x=Column("float32", (6,))))


class Evil:
    """Its pickle writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("nested", [False, True])
def test_pickled_objects_in_parquet_never_run(tmp_path: Path, nested: bool) -> None:
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    proof = tmp_path / "proof"
    objects = pa.array([pickle.dumps(Evil(proof))], pa.large_binary())
    objects = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), objects)
    if nested:
        objects = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), objects)
    table = pa.table({"sample_id": ["a"], "patient_id": ["p"], "x": objects, "other": [1.0]})
    write_parquet(tmp_path / "raw" / "a.parquet", table)
    assert "column 'x' has the type" in refused("parquet", tmp_path / "raw", None, small(x=Column("float32")))
    rows = read("parquet", tmp_path / "raw", None, small(other=Column("float32")))
    assert rows[0]["other"] == 1.0
    assert not proof.exists()


def test_ray_tensors_are_read_by_their_storage(tmp_path: Path) -> None:
    from ray.data.extensions import ArrowTensorArray

    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    table = pa.table(
        {"sample_id": ["a", "b"], "patient_id": ["p", "q"], "x": ArrowTensorArray.from_numpy(values)}
    )
    write_parquet(tmp_path / "a.parquet", table)
    rows = read("parquet", tmp_path, None, small(x=Column("float32", (2, 3))))
    np.testing.assert_array_equal(np.stack([row["x"] for row in rows]), values)


def test_one_bad_value_is_one_bad_row(tmp_path: Path) -> None:
    table = pa.table(
        {"sample_id": ["a", None, "c"], "patient_id": ["p", "p", ""], "x": [[1, 2], [3], [4, 5]]}
    )
    write_parquet(tmp_path / "a.parquet", table)
    schema = small(x=Column("int32", (2,)))
    good, *bad = light("parquet", tmp_path, None, schema)
    np.testing.assert_array_equal(read_flat_row(good, schema)["x"], [1, 2])
    assert bad[0] == BadRow("a.parquet row 1", "'sample_id' is empty; every row needs one")
    assert bad[1].origin == "a.parquet row 2"
    assert "'patient_id' is empty" in bad[1].reason


def test_columns_are_mapped_and_the_nearest_is_named(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b"],
            "pateint": ["p", "q"],
            "Mass": [1, 0],
            "Edema": [0.0, None],
            "fold": ["training", None],
        }
    )
    write_parquet(tmp_path / "a.parquet", table)
    schema = small(
        labels=SCHEMA.columns["labels"], view=Column(TEXT), age=Column("float32", (2,)), visit=Column("int32")
    )
    text = refused("parquet", tmp_path, {"veiw": "x", "visit": "=1.5"}, schema)
    assert "no column 'veiw'; is 'view' meant?" in text
    assert "a.parquet: no column 'patient_id'; is 'pateint' meant?" in text
    assert "no column 'age'" in text
    columns = {
        "sample_id": "id",
        "patient_id": "pateint",
        "view": "=",
        "age": "=nan",
        "visit": "=-1",
        "split": "fold",
    }
    assert "column 'visit' holds values" in refused("parquet", tmp_path, columns | {"visit": "=1.5"}, schema)
    rows = read("parquet", tmp_path, columns, schema)
    np.testing.assert_array_equal([row["labels"] for row in rows], [[1, 0], [0, np.nan]])
    assert [row.get("split") for row in rows] == ["train", None]
    assert (rows[0]["view"], rows[0]["visit"], np.isnan(rows[0]["age"]).all()) == ("", -1, True)
    bad = light("parquet", tmp_path, columns | {"split": "pateint"}, schema)
    assert "'p' is no split" in bad[0].reason


def test_columns_without_a_flat_format_are_refused() -> None:
    with pytest.raises(InputError, match="set format=parquet"):
        default_config("cxr_memory", {"data.prepare.columns": {"view": "="}}, "test")


def test_rows_without_ids_are_called_by_their_place(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x" / "a.parquet", pa.table({"x": [1.0, 2.0]}))
    schema = small(x=Column("float32"))
    assert "no column 'patient_id'" in refused("parquet", tmp_path, None, schema)
    for name in ("key", "=a"):
        text = refused("parquet", tmp_path, {"patient_id": "sample_id", "sample_id": name}, schema)
        assert f"no column '{name}'" in text
    rows = read("parquet", tmp_path, {"patient_id": "sample_id"}, schema)
    assert [row["sample_id"] for row in rows] == ["x/a/00000000", "x/a/00000001"]
    assert [row["patient_id"] for row in rows] == [row["sample_id"] for row in rows]


def test_parquet_that_is_damaged_or_elsewhere_is_named(tmp_path: Path) -> None:
    assert "holds no .parquet" in refused("parquet", tmp_path)
    path = write_parquet(tmp_path / "raw" / "a.parquet", arrow_table(samples(3, 1)))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert str(path) in refused("parquet", tmp_path / "raw")
    path.write_bytes(b"")
    assert str(path) in refused("parquet", tmp_path / "raw")
    shutil.move(path, tmp_path / "b.parquet")
    path.symlink_to(tmp_path / "b.parquet")
    assert "link that leads out" in refused("parquet", tmp_path / "raw")


def test_a_file_that_changes_after_it_was_listed_is_a_bad_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", arrow_table(samples(5, 1)))
    rows = light("parquet", tmp_path, PARQUET_COLUMNS)
    write_parquet(path, arrow_table(samples(2, 1)))
    with pytest.raises(BadRowError, match="row 4 cannot be read"):
        read_flat_row(rows[4], SCHEMA)
    path.unlink()
    with pytest.raises(BadRowError, match=r"'a\.parquet' cannot be read"):
        read_flat_row(rows[0], SCHEMA)


# --- MDS
# ----------------------------------------------------------------------------------------------------------


def test_mds_of_the_library_brings_every_value() -> None:
    rows = read("mds", MDS / "plain", MDS_COLUMNS)
    check(rows, samples(7, 1) + samples(3, 2))
    assert [row["split"] for row in rows] == ["train"] * 7 + ["val"] * 3
    assert rows[0]["origin"] == "train/shard.00000.mds sample 0"
    assert len({row["origin"].split()[0] for row in rows}) == 3


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_mds(packing: str) -> None:
    check(read("mds", MDS / packing.partition(":")[0], MDS_COLUMNS), samples(2, 3))


@pytest.mark.parametrize("name", ["br", "bz2", "gz", "snappy", "zstd"])
def test_unpacking_is_bounded_and_exact(name: str) -> None:
    index = json.loads((MDS / name / "index.json").read_text())["shards"][0]
    content, size = (MDS / name / index["zip_data"]["basename"]).read_bytes(), index["raw_data"]["bytes"]
    assert hashlib.sha1(unpack(name, content, size)).hexdigest() == index["raw_data"]["hashes"]["sha1"]
    for damaged, promised in ((content, size - 1), (content, size + 1), (content[:-9], size), (b"", size)):
        with pytest.raises(ValueError, match="fetch it again"):
            unpack(name, damaged, promised)
    with pytest.raises(ValueError, match="unpack it first"):
        unpack(name, content, 1 << 40)


def test_pickles_in_mds_are_refused_and_left_alone_elsewhere() -> None:
    schema = small(notes=Column(TEXT))
    assert "column 'notes' is stored as pickles" in refused("mds", MDS / "plain", MDS_COLUMNS_SMALL, schema)
    with pytest.raises(ValueError, match="pickles"):
        decode("pkl", pickle.dumps(1))


MDS_COLUMNS_SMALL = {"patient_id": "patient"}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    mds_module._opened.cache_clear()
    shutil.copytree(MDS / "plain", tmp_path / "plain")
    return tmp_path / "plain"


def edit(path: Path, change: object) -> None:
    index = json.loads(path.read_text())
    change(index["shards"][0])
    path.write_text(json.dumps(index))


def test_a_flipped_bit_is_found_by_the_indexs_hash(plain: Path) -> None:
    shard = plain / "val" / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    rows = light("mds", plain, MDS_COLUMNS)
    check([read_flat_row(row, SCHEMA) for row in rows[:7]], samples(7, 1))
    with pytest.raises(BadRowError, match="sha1"):
        read_flat_row(rows[7], SCHEMA)


def test_mds_shards_that_are_missing_or_cut_off_are_named(plain: Path) -> None:
    shard = plain / "val" / "shard.00000.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"'{shard}': it has {len(content) - 1:,} bytes" in refused("mds", plain, MDS_COLUMNS)
    mds_module._opened.cache_clear()
    shard.write_bytes(content[:8] + b"\xff\xff\xff\x7f" + content[12:])
    assert "table of offsets" in refused("mds", plain, MDS_COLUMNS)
    mds_module._opened.cache_clear()
    shard.unlink()
    assert "missing" in refused("mds", plain, MDS_COLUMNS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["raw_data"].update(basename="../../secret.mds"), "leads out"),
        (lambda s: s["raw_data"].update(basename="/etc/passwd"), "leads out"),
        (lambda s: s.update(version=3), "version"),
        (lambda s: s.update(format="xsv"), "format"),
        (lambda s: s["column_names"].pop(), "differ in number"),
        (lambda s: s["column_sizes"].__setitem__(0, 4), "has the size 4"),
        (lambda s: s["column_encodings"].__setitem__(11, "pil"), "'pil', which is not read"),
        (lambda s: s["raw_data"]["hashes"].update(md17="0"), "'md17' is no hash"),
        (lambda s: s.update(samples=2), "head does not fit"),
    ],
)
def test_an_index_that_lies_is_refused(plain: Path, change: object, message: str) -> None:
    edit(plain / "val" / "index.json", change)
    assert message in refused("mds", plain, MDS_COLUMNS)


def test_unknown_packings_say_what_to_do(plain: Path) -> None:
    shutil.copytree(MDS / "zstd", plain / "zstd")
    edit(plain / "zstd" / "index.json", lambda s: s.update(compression="lz9:3"))
    assert "packed as 'lz9:3', which is not read; unpack it" in refused("mds", plain, MDS_COLUMNS)


def test_a_merged_index_gives_each_shard_once(plain: Path) -> None:
    """`streaming.base.util.merge_index` leaves the parts' indices where they are."""
    merged = {"version": 2, "shards": []}
    for split in ("train", "val"):
        for shard in json.loads((plain / split / "index.json").read_text())["shards"]:
            shard["raw_data"]["basename"] = f"{split}/{shard['raw_data']['basename']}"
            merged["shards"].append(shard)
    (plain / "index.json").write_text(json.dumps(merged))
    rows = read("mds", plain, MDS_COLUMNS)
    check(rows, samples(7, 1) + samples(3, 2))
    assert [row["split"] for row in rows] == ["train"] * 7 + ["val"] * 3


@given(
    st.sampled_from(["int", "ndarray", "ndarray:int16", "ndarray:float32:2", "json", "str_int", "uint16"]),
    st.binary(max_size=40),
)
def test_damaged_values_raise_nothing_else(encoding: str, content: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode(encoding, content)


# --- WebDataset
# ----------------------------------------------------------------------------------------------------------


def write_tar(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path)) as out:
        for row in rows:
            meta = {
                "patient_id": row["patient"],
                "age": row["age"],
                "Mass": 0,
                "Edema": 1,
                "text": row["text"],
            }
            out.write(
                {
                    "__key__": row["sample_id"],
                    "window.npy": row["window"],
                    "arrays.npz": {"trace": row["trace"], "bins": row["bins"]},
                    "png": row["image"],
                    "json": meta,
                    "visit.cls": row["visit"],
                    "extra.pyd": ["a", "pickle", "that", "is", "not", "asked", "for"],
                }
            )


TAR_COLUMNS = {"image": "jpg;png"}


def test_tars_of_the_library_bring_every_value(tmp_path: Path) -> None:
    train, val = samples(4, 5), samples(2, 6)
    write_tar(tmp_path / "train-000.tar", train)
    write_tar(tmp_path / "val" / "000.tar", val)
    rows = read("webdataset", tmp_path, TAR_COLUMNS)
    assert [row["sample_id"] for row in rows[:2]] == ["train-000/s5-0", "train-000/s5-1"]
    check([row | {"sample_id": row["sample_id"].rpartition("/")[2]} for row in rows], train + val)
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] * 2


def test_tars_say_what_is_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2, 5))
    assert "no column 'image'" in refused("webdataset", tmp_path)
    assert "no column 'jpg;jpeg'" in refused("webdataset", tmp_path, {"image": "jpg;jpeg"})
    with wds.TarWriter(str(tmp_path / "b.tar")) as out:
        out.write({"__key__": "x", "x.npy": np.zeros(2), "json": {"patient_id": "p"}})
        out.write({"__key__": "y", "x.npy": np.zeros(2), "json": {}})
        out.write({"__key__": "z", "json": {"patient_id": "p"}})
    (tmp_path / "a.tar").unlink()
    good, no_group, no_array = light("webdataset", tmp_path, None, small(x=Column("float32", (2,))))
    assert good["patient_id"] == "p"
    assert "no 'json/patient_id'" in no_group.reason
    assert "no 'x.npy'" in no_array.reason
