"""`voxray data verify`: whatever is broken on purpose is found, named, and nothing else is."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from voxray.cli.data import verify as verify_command
from voxray.config.errors import InputError
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.data import verify as module
from voxray.data.manifest import load_manifest, write_manifest
from voxray.data.verify import Findings, content_columns, examine, verify
from voxray.testing.datasets import write_dataset

SCHEMA = Schema(
    {
        "sample_id": Column(TEXT),
        "patient": Column(TEXT),
        "image": Column("uint8", (1, 4, 4)),
        "jpeg": Column(BYTES),
        "trace": Column("float32", (None, 3), ragged=True),
        "labels": Column("float32", (2,), names=("Mass", "Edema")),
        "age": Column("float32"),
        "view": Column(TEXT),
    },
    group="patient",
)
SIZES = {"train": 12, "val": 5, "test": 4}


def objects(values) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        out[place] = value
    return out


def make_rows(split: str, num: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(sorted(SIZES).index(split))
    return {
        "sample_id": objects([f"{split}{i}" for i in range(num)]),
        "patient": objects([f"{split} patient {i // 2}" for i in range(num)]),
        "image": generator.integers(0, 256, (num, 1, 4, 4), dtype=np.uint8),
        "jpeg": objects([generator.bytes(i + 1) for i in range(num)]),
        "trace": objects([generator.random((i % 4, 3), dtype=np.float32) for i in range(num)]),
        "labels": generator.choice([0, 1, np.nan], (num, 2)).astype(np.float32),
        "age": generator.choice([30, 40, np.nan], num).astype(np.float32),
        "view": objects(["PA", ""] * num)[:num],
    }


@pytest.fixture
def rows() -> dict[str, dict[str, np.ndarray]]:
    return {split: make_rows(split, num) for split, num in SIZES.items()}


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))


def made(rows, tmp_path) -> Path:
    return write_dataset(tmp_path / "ds", SCHEMA, rows, rows_per_shard=5)


def copy_content(rows, source, target) -> None:
    for name in ("image", "jpeg", "trace"):
        rows[target[0]][name][target[1]] = rows[source[0]][name][source[1]]


def test_a_whole_dataset_has_no_problem(rows, tmp_path):
    assert examine(made(rows, tmp_path)) == Findings()


# --- rows
# -----------------------------------------------------------------------------------------------------------


def test_the_same_content_in_two_splits_is_a_problem(rows, tmp_path):
    copy_content(rows, ("train", 7), ("test", 3))
    (problem,) = verify(made(rows, tmp_path))
    assert problem == (
        "samples 'train7' (train) and 'test3' (test) have the same image and jpeg and trace, in 2 splits; "
        "remove one from the raw data, or give both one patient"
    )


def test_the_same_content_in_one_split_is_a_note(rows, tmp_path):
    copy_content(rows, ("train", 1), ("train", 8))
    copy_content(rows, ("train", 1), ("train", 11))
    found = examine(made(rows, tmp_path))
    assert found.problems == ()
    assert found.notes == (
        "split 'train' repeats another row's image and jpeg and trace (2×), e.g. 'train8' that of 'train1'",
    )


def test_half_the_content_is_not_the_same(rows, tmp_path):
    rows["test"]["image"][0] = rows["train"]["image"][0]
    rows["test"]["labels"][1] = rows["train"]["labels"][1]
    rows["test"]["age"][:] = rows["train"]["age"][0]
    assert examine(made(rows, tmp_path)) == Findings()


def test_rows_without_content_are_not_the_same(tmp_path):
    schema = replace(SCHEMA, columns={n: SCHEMA.columns[n] for n in ("sample_id", "patient", "trace")})
    rows = {
        split: {name: make_rows(split, 4)[name] for name in schema.columns} for split in ("train", "test")
    }
    for columns in rows.values():
        columns["trace"][0] = np.zeros((0, 3), np.float32)
    assert examine(write_dataset(tmp_path / "ds", schema, rows, 3)) == Findings()
    assert content_columns(schema) == ["trace"]
    assert content_columns(SCHEMA) == ["image", "jpeg", "trace"]


def test_ragged_pieces_that_join_to_the_same_are_not_the_same(tmp_path):
    columns = {
        "sample_id": Column(TEXT),
        "a": Column("uint8", (None,), ragged=True),
        "b": Column("uint8", (None,), ragged=True),
    }
    schema = Schema(columns, group="sample_id")
    pieces = {"train": ([1], [2, 3]), "test": ([1, 2], [3])}
    rows = {
        split: {
            "sample_id": objects([split]),
            "a": objects([np.array(a, np.uint8)]),
            "b": objects([np.array(b, np.uint8)]),
        }
        for split, (a, b) in pieces.items()
    }
    assert examine(write_dataset(tmp_path / "ds", schema, rows, 3)) == Findings()


def test_a_group_in_two_splits(rows, tmp_path):
    rows["val"]["patient"][2] = rows["train"]["patient"][9]
    rows["val"]["patient"][3] = "alone"
    (problem,) = verify(made(rows, tmp_path))
    assert problem == "patient 'train patient 4' leaks across the splits train, val; prepare again"


def test_sample_ids_that_come_twice(rows, tmp_path):
    rows["train"]["sample_id"][9] = "train0"
    rows["val"]["sample_id"][1] = "val0"
    assert verify(made(rows, tmp_path)) == [
        "sample 'train0' is in 'shards/train-00000.arrow' and in 'shards/train-00001.arrow'; "
        "sample ids must be unique",
        "sample 'val0' is 2 times in 'shards/val-00000.arrow'; sample ids must be unique",
    ]


def test_a_long_list_is_cut(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHOWN", 2)
    for i in range(4):
        copy_content(rows, ("train", i), ("test", i))
    problems = verify(made(rows, tmp_path))
    assert len(problems) == 3
    assert problems[2] == "and 2 more rows that share their image and jpeg and trace with another split"


def test_content_is_found_over_pieces_and_shards(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    copy_content(rows, ("train", 11), ("val", 4))
    (problem,) = verify(made(rows, tmp_path))
    assert "'train11' (train) and 'val4' (val)" in problem


# --- files
# -----------------------------------------------------------------------------------------------------------


def flip(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("place", "where"), [(0.3, "rows 0 to 4"), (0.99, "its footer")])
def test_a_flipped_bit_is_named_with_its_rows(rows, tmp_path, place, where):
    dataset = made(rows, tmp_path)
    flip(dataset / "shards" / "train-00001.arrow", place)
    (problem,) = verify(dataset)
    assert problem.startswith(f"shard 'shards/train-00001.arrow' is damaged in {where}: its sha256 is not")


def test_indexes_that_are_damaged_missing_or_another_shards(rows, tmp_path):
    dataset = made(rows, tmp_path)
    assert verify(dataset) == []
    first, second, third = (dataset / "index" / f"train-0000{i}.arrow" for i in range(3))
    flip(first, 0.4)
    second.unlink()
    info = load_manifest(dataset)
    other = next(shard for shard in info.shards if shard.split == "val")
    third.write_bytes((dataset / other.index_file).read_bytes())
    shards = tuple(
        replace(s, index_xxh3=other.index_xxh3) if s.file.endswith("train-00002.arrow") else s
        for s in info.shards
    )
    write_manifest(dataset, replace(info, shards=shards))
    problems = verify(dataset)
    assert "index 'index/train-00000.arrow' is damaged" in problems[0]
    assert "index 'index/train-00001.arrow' is missing" in problems[1]
    assert all("index 'index/train-00002.arrow' differs from its shard in '" in p for p in problems[2:])
    assert len(problems) > 3


def test_missing_shortened_and_extra_files(rows, tmp_path):
    dataset = made(rows, tmp_path)
    (dataset / "shards" / "train-00000.arrow").unlink()
    path = dataset / "shards" / "val-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    (dataset / "index" / "notes.txt").write_text("mine")
    (dataset / "quarantine.jsonl").write_text("")
    problems = verify(dataset)
    assert len(problems) == 3
    assert problems[0] == "'index/notes.txt' is not in the manifest; remove it"
    assert "'shards/train-00000.arrow' is missing" in problems[1]
    assert "bytes instead of" in problems[2]


def test_a_manifest_that_says_otherwise(rows, tmp_path):
    dataset = made(rows, tmp_path)
    manifest = load_manifest(dataset)
    counts = {**manifest.counts, "val": replace(manifest.counts["val"], groups=9)}
    write_manifest(dataset, replace(manifest, counts=counts))
    assert verify(dataset) == ["split 'val' has 3 groups, the manifest says 9"]
    first = manifest.shards[0]
    forged = replace(first, windows=(replace(first.windows[0], xxh3="0" * 32), *first.windows[1:]))
    write_manifest(dataset, replace(manifest, shards=(forged, *manifest.shards[1:])))
    (problem,) = verify(dataset)
    assert "the manifest's hashes of rows 0 to 4 are not the file's" in problem
    columns = {**SCHEMA.columns, "age": Column("float32", unit="years")}
    write_manifest(dataset, replace(manifest, schema=replace(SCHEMA, columns=columns)))
    problems = verify(dataset)
    assert len(problems) == len(manifest.shards)
    assert all("other columns than the manifest's schema" in problem for problem in problems)


def test_no_dataset(tmp_path):
    with pytest.raises(InputError, match="is no dataset"):
        examine(tmp_path)


# --- the command
# -----------------------------------------------------------------------------------------------------------


def command(*arguments):
    import typer

    app = typer.Typer()
    app.command()(verify_command)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command(rows, tmp_path):
    copy_content(rows, ("train", 1), ("train", 8))
    dataset = made(rows, tmp_path)
    result = command(dataset)
    assert result.exit_code == 0
    assert result.stdout == "ok: 5 shards, 21 rows, splits train, val, test\n"
    assert result.stderr.startswith("note: split 'train' repeats")
    assert json.loads(command(dataset, "--json").stdout) == [{"note": examine(dataset).notes[0]}]
    flip(dataset / "shards" / "test-00000.arrow", 0.5)
    found = json.loads(command(dataset, "--json").stdout)
    assert [list(row) for row in found] == [["problem"], ["note"]]
    assert command(dataset, "--json").exit_code == 2
    assert isinstance(command(dataset).exception, InputError)
    assert asdict(examine(dataset))["problems"] == (found[0]["problem"],)
