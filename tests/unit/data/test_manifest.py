"""The manifest comes back whole, and every way it can be wrong is a clear error."""

import json
from pathlib import Path

import pytest

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.data.manifest import (
    Manifest,
    Recipe,
    ShardInfo,
    Source,
    SplitCounts,
    Window,
    load_manifest,
    write_manifest,
)

SCHEMA = Schema(
    {
        "sample_id": Column(TEXT),
        "patient_id": Column(TEXT),
        "image": Column("uint8", (1, 4, 4), "grey"),
        "labels": Column("float32", (2,), names=("a", "b")),
    },
    group="patient_id",
)


def shard(name: str, rows: int, size: int, sha256: str) -> ShardInfo:
    windows = (Window(rows, size - 20, "aa"), Window(rows, size, "bb"))
    return ShardInfo(
        f"shards/{name}.arrow", name.split("-", maxsplit=1)[0], rows, size, sha256, windows, "cc"
    )


MANIFEST = Manifest(
    schema=SCHEMA,
    shards=(
        shard("train-00000", 5, 100, "00"),
        shard("train-00001", 4, 90, "11"),
        shard("val-00000", 2, 50, "22"),
    ),
    counts={"val": SplitCounts(2, 1), "train": SplitCounts(9, 3)},
    statistics={"image": {"mean": 0.1234567890123456, "std": 0.25, "count": 144}},
    source=Source("/raw", "abc"),
    recipe=Recipe("cxr_memory", "0.1.0", {"seed": 0, "splits": {"train": 0.7}}),
    num_quarantined=1,
)


def test_it_comes_back_equal(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert load_manifest(tmp_path) == MANIFEST


def test_splits_in_their_order() -> None:
    assert MANIFEST.splits == ("train", "val")
    assert MANIFEST.num_rows("train") == 9
    assert [shard.rows for shard in MANIFEST.shards_of("train")] == [5, 4]
    with pytest.raises(InputError, match="no split 'test'; it has: train, val"):
        MANIFEST.num_rows("test")


def test_no_manifest_no_dataset(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="is no dataset"):
            load_manifest(folder)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("version",), 99, "version 99"),
        (("shards", 0, "rows"), "many", r"shards\.0\.rows"),
        (("shards", 0, "rows"), 6, "'train' has 10 rows in its shards but counts 9"),
        (("shards", 0, "file"), "../../etc/passwd", "no name of a shard"),
        (("shards", 0, "file"), "/etc/passwd", "no name of a shard"),
        (("shards", 0, "split"), "trian", "'trian'"),
        (("schema", "group"), "nobody", "no column 'nobody'"),
        (("schema", "columns", "image", "shape"), "4x4", r"schema\.columns\.image\.shape"),
        (("counts",), None, "counts"),
        (("recipe",), {}, r"recipe\.task"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, path: tuple, value: object, words: str) -> None:
    write_manifest(tmp_path, MANIFEST)
    file = tmp_path / "manifest.json"
    content = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        load_manifest(tmp_path)
    assert all("manifest.json" in problem for problem in error.value.problems)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}'])
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_manifest(tmp_path)
