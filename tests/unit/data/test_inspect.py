"""`voxray data inspect|stats`: the tables say what numpy says about the rows that were written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from voxray.cli import data
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.data import verify as verify_module
from voxray.data.inspect import inspect, short, stats
from voxray.data.manifest import load_manifest, write_manifest
from voxray.testing.datasets import write_dataset

SCHEMA = Schema(
    {
        "sample_id": Column(TEXT),
        "patient": Column(TEXT),
        "image": Column("uint8", (1, 4, 4)),
        "jpeg": Column(BYTES),
        "trace": Column("float32", (None, 3), "spikes", ragged=True),
        "spectrum": Column("float64", (50,)),
        "labels": Column("float32", (2,), names=("Mass", "Edema")),
        "age": Column("float32", unit="years"),
        "view": Column(TEXT),
        "bins": Column("int32", (None,), ragged=True),
    },
    group="patient",
)
SIZES = {"train": 23, "test": 9}


def objects(values):
    out = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        out[place] = value
    return out


def some_nan(array, generator):
    array[generator.random(array.shape) < 0.1] = np.nan
    return array


@pytest.fixture(scope="module")
def rows():
    made = {}
    for split, num in SIZES.items():
        generator = np.random.default_rng(num)
        made[split] = {
            "sample_id": objects([f"{split}{i}" for i in range(num)]),
            "patient": objects([f"{split} patient {i // 4}" for i in range(num)]),
            "image": generator.integers(0, 256, (num, 1, 4, 4), dtype=np.uint8),
            "jpeg": objects([b"\xff\xd8\xff" + generator.bytes(2000) for _ in range(num)]),
            "trace": objects(
                [some_nan(generator.random((i % 5, 3), dtype=np.float32), generator) for i in range(num)]
            ),
            "spectrum": some_nan(generator.random((num, 50)), generator),
            "labels": generator.choice([0, 1, np.nan], (num, 2)).astype(np.float32),
            "age": generator.choice([30, 40, np.nan], num).astype(np.float32),
            "view": objects([["PA", "AP", ""][i % 3] for i in range(num)]),
            "bins": objects([np.arange(i % 3, dtype=np.int32) for i in range(num)]),
        }
    return made


@pytest.fixture(scope="module")
def dataset(rows, tmp_path_factory):
    statistics = {
        "spectrum": {"mean": 0.5, "std": 0.25, "count": 7},
        "labels": {"positives": [1, 2], "negatives": [3, 4], "unknown": [5, 6]},
    }
    out = write_dataset(tmp_path_factory.mktemp("inspect") / "ds", SCHEMA, rows, 6, statistics)
    manifest = load_manifest(out)
    network = {
        "factory": "m:Clip",
        "weights_xxh3": "ab",
        "revision": "",
        "dtype": "float16",
        "outputs": {"c": {}},
    }
    write_manifest(out, replace(manifest, recipe=replace(manifest.recipe, networks=(network,))))
    return out


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))


def by(table, **wanted):
    (row,) = [row for row in table if all(row[key] == value for key, value in wanted.items())]
    return row


def test_missing_values_are_counted_in_every_split(rows, dataset, monkeypatch):
    whole = inspect(dataset)["missing"]
    monkeypatch.setattr(verify_module, "_PIECE_BYTES", 5000)
    assert inspect(dataset)["missing"] == whole
    assert [row["column"] for row in whole] == ["patient", "trace", "spectrum", "labels", "age", "view"]
    for split, columns in rows.items():
        for name in ("spectrum", "labels", "age", "trace"):
            values = np.concatenate(list(columns[name])) if name == "trace" else columns[name]
            row = by(whole, column=name)
            assert row[split] == np.isnan(values).sum() > 0
            assert row[f"{split} %"] == pytest.approx(100 * np.isnan(values).mean())
        assert by(whole, column="view")[split] == sum(text == "" for text in columns["view"])
        assert by(whole, column="patient")[split] == 0


def test_splits_columns_lengths_and_shards(rows, dataset):
    tables = inspect(dataset)
    train = by(tables["splits"], split="train")
    assert (train["rows"], train["groups (patient)"], train["shards"]) == (23, 6, 4)
    assert [train[f"rows per group, {name}"] for name in ("min", "median", "max")] == [3, 4, 4]
    assert train["MB"] == sum(p.stat().st_size for p in (dataset / "shards").glob("train-*")) / 1e6
    assert by(tables["columns"], column="trace")["shape"] == "T×3"
    assert by(tables["columns"], column="age")["unit"] == "years"
    assert by(tables["columns"], column="patient")["role"] == "group"
    lengths = [len(value) for value in rows["test"]["trace"]]
    assert by(tables["lengths"], column="trace", split="test") == {
        "column": "trace",
        "split": "test",
        "min": min(lengths),
        "median": np.median(lengths),
        "max": max(lengths),
        "sum": sum(lengths),
    }
    assert [row["rows"] for row in tables["shards"]] == [6, 6, 6, 5, 6, 3]
    assert by(tables["dataset"], what="frozen network 1")["value"] == "m:Clip: local weights ab, float16 → c"


def test_samples_are_shortened(rows, dataset):
    samples = inspect(dataset)["samples"]
    assert [row["column"] for row in samples] == list(SCHEMA.columns)
    assert by(samples, column="sample_id")["test 1"] == "test1"
    assert by(samples, column="jpeg")["train 0"] == "JPEG of 2,003 bytes"
    assert by(samples, column="trace")["train 0"] == "0×3: "
    assert by(samples, column="age")["train 1"] == pytest.approx(rows["train"]["age"][1], nan_ok=True)
    first = rows["train"]["image"][0]
    assert by(samples, column="image")["train 0"] == (
        f"1×4×4: {' '.join(map(str, first.reshape(-1)[:4]))} … (from {first.min()} to {first.max()})"
    )


def test_one_value():
    labels = Column("float32", (2,), names=("Mass", "Edema"))
    assert short(np.float32([1, np.nan]), labels) == "2: Mass"
    assert short(np.float32([0, 0]), labels) == "2: none is 1"
    assert short("ab" * 30, Column(TEXT)) == "ab" * 19 + "a…"
    assert short(b"GIF8", Column(BYTES)) == "bytes of 4 bytes"
    assert (
        short(np.float32([np.nan, 0.123456]), Column("float32", (2,)))
        == "2: nan 0.1235 (from 0.1235 to 0.1235)"
    )
    assert short(np.array([np.nan]), Column("float64", (1,))) == "1: nan"
    assert short(np.array([True, False]), Column("bool", (2,))) == "2: 1 0 (from 0 to 1)"
    assert short(np.int32(7), Column("int32")) == 7


def test_statistics_and_label_counts(rows, dataset):
    tables = stats(dataset)
    assert tables["numbers"] == [{"column": "spectrum", "unit": "", "mean": 0.5, "std": 0.25, "count": 7}]
    assert tables["numbers"] == inspect(dataset)["statistics"]
    for split, columns in rows.items():
        for place, label in enumerate(("Mass", "Edema")):
            row, values = by(tables["labels"], label=label), columns["labels"][:, place]
            assert row[f"{split} positives"] == (values == 1).sum()
            assert row[f"{split} negatives"] == (values == 0).sum()
            assert row[f"{split} unknown"] == np.isnan(values).sum()
    assert len(tables["lengths"]) == 4


def test_the_commands_print_tables_and_json(dataset):
    app = typer.Typer()
    app.callback()(lambda: None)
    data.register(app)
    for name, function in (("inspect", inspect), ("stats", stats)):
        printed = CliRunner().invoke(app, ["data", name, str(dataset)])
        assert printed.exit_code == 0, printed.output
        as_json = json.loads(CliRunner().invoke(app, ["data", name, str(dataset), "--json"]).stdout)
        assert list(as_json) == list(function(dataset))
        assert "spectrum" in printed.stdout
