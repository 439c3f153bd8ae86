"""Flat datasets → shards on a real Ray cluster: the same from every format, and what bad input says."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import webdataset as wds
from PIL import Image
from typer.testing import CliRunner

from fixtures.make_mds import samples
from nih_folder import write_nih
from voxray.cli import data
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data.manifest import load_manifest
from voxray.data.prepare import PrepareReport, prepare
from voxray.data.reader import ShardReader
from voxray.data.verify import verify

pytestmark = pytest.mark.usefixtures("ray_cluster")

MDS = Path(__file__).parents[2] / "fixtures" / "mds" / "plain"
TASK = "tests.flat_task:FlatTask"
ROWS = {"train": samples(7, 1), "val": samples(3, 2)}
SPLITS = {"splits.train": 0.7, "splits.val": 0.3, "splits.test": 0.0}


def run(source: Path, out: Path, **values: object) -> PrepareReport:
    """Prepare with several shards, so that several tasks read parts of the same files."""
    chosen = {"shard_mb": 0.0015, **SPLITS, **values}
    config = default_config(TASK, {f"data.prepare.{key}": value for key, value in chosen.items()}, "test")
    return prepare(task_data(TASK)(config.config), source, out)


def stored(out: Path) -> dict[str, dict]:
    rows = {}
    for shard in load_manifest(out).shards:
        reader = ShardReader(out / shard.file, shard)
        columns = reader.take(np.arange(reader.num_rows))
        for i, name in enumerate(columns["sample_id"]):
            rows[name] = {"split": shard.split, **{column: values[i] for column, values in columns.items()}}
    return rows


def check(report: PrepareReport) -> None:
    rows = stored(report.out)
    assert verify(report.out) == []
    assert len(rows) == 10
    assert len(report.manifest.shards) > 2
    assert report.manifest.schema.columns["trace"].shape == (None, 2)
    for split, expected in ROWS.items():
        for sample in expected:
            (row,) = [row for name, row in rows.items() if name.endswith(sample["sample_id"])]
            assert (row["split"], row["patient_id"]) == (split, str(sample["patient"]))
            assert (row["age"], row["visit"], row["text"]) == (sample["age"], sample["visit"], sample["text"])
            np.testing.assert_array_equal(row["window"], sample["window"])
            np.testing.assert_array_equal(row["trace"], sample["trace"].astype(np.float32))
            np.testing.assert_array_equal(row["bins"], sample["bins"])
            np.testing.assert_array_equal(row["labels"], [0, 1])
            pictures = [np.asarray(Image.open(io.BytesIO(each["image"]))) for each in (row, sample)]
            np.testing.assert_array_equal(*pictures)


def test_mds(tmp_path: Path) -> None:
    report = run(
        MDS, tmp_path / "out", format="mds", columns={"patient_id": "patient", "labels": "meta/labels"}
    )
    check(report)
    assert report.manifest.recipe.prepare["columns"] == {"patient_id": "patient", "labels": "meta/labels"}


def test_webdataset(tmp_path: Path) -> None:
    for split, rows in ROWS.items():
        (tmp_path / "raw" / split).mkdir(parents=True)
        with wds.TarWriter(str(tmp_path / "raw" / split / "0.tar")) as out:
            for row in rows:
                names = ("window", "trace", "bins")
                meta = {"patient": row["patient"], "labels": [0, 1], "age": row["age"], "visit": row["visit"]}
                arrays = {f"{name}.npy": row[name] for name in names}
                out.write(
                    {
                        "__key__": row["sample_id"],
                        **arrays,
                        "png": row["image"],
                        "json": meta,
                        "text.txt": row["text"],
                    }
                )
    check(
        run(
            tmp_path / "raw",
            tmp_path / "out",
            format="webdataset",
            columns={"image": "png", "patient_id": "patient"},
        )
    )


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    for split, rows in ROWS.items():
        columns = {
            name: [row[name] for row in rows] for name in ("sample_id", "age", "visit", "text", "image")
        }
        columns |= {name: [row[name].tolist() for row in rows] for name in ("window", "trace", "bins")}
        table = pa.table(
            {**columns, "patient_id": [str(row["patient"]) for row in rows], "labels": [[0, 1]] * len(rows)}
        )
        (tmp_path / "raw").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "raw" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return tmp_path / "raw"


def test_parquet_twice_gives_the_same_bytes(parquet: Path, tmp_path: Path) -> None:
    first = run(parquet, tmp_path / "one", format="parquet")
    check(first)
    assert run(parquet, tmp_path / "two", format="parquet").manifest == first.manifest


def test_the_command_line_takes_format_and_columns(parquet: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    data.register(app)
    app.callback()(lambda: None)
    named = "columns={text: =none, age: visit}"
    values = ["format=parquet", named, *(f"{key}={value}" for key, value in SPLITS.items())]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["data", "prepare", TASK, str(parquet), str(out), *values])
    assert done.exit_code == 0, done.output
    rows = stored(out)
    assert {row["text"] for row in rows.values()} == {"none"}
    assert all(row["age"] == row["visit"] for row in rows.values())


def test_table(tmp_path: Path) -> None:
    for split, rows in ROWS.items():
        folder = tmp_path / "raw" / split
        folder.mkdir(parents=True)
        longest = max(len(row["trace"]) for row in rows)
        trace = np.stack([np.pad(row["trace"], ((0, longest - len(row["trace"])), (0, 0))) for row in rows])
        np.save(folder / "trace.npy", trace)
        np.savez(folder / "more.npz", window=[row["window"] for row in rows], labels=[[0.0, 1.0]] * len(rows))
        table = {
            name: [row[name] for row in rows] for name in ("sample_id", "patient", "age", "visit", "text")
        }
        table |= {"trace.length": [len(row["trace"]) for row in rows]}
        table |= {"image": [row["image"] for row in rows], "bins": [row["bins"] for row in rows]}
        pq.write_table(pa.table(table), folder / "rows.parquet")
    check(run(tmp_path / "raw", tmp_path / "out", format="table", columns={"patient_id": "patient"}))


def test_bad_rows_end_the_command_or_are_set_aside(parquet: Path, tmp_path: Path) -> None:
    path = parquet / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    ages = pa.array([*table["age"].to_pylist()[:-1], 1e300])
    images = pa.array([b"no image", *table["image"].to_pylist()[1:]])
    table = table.set_column(table.schema.get_field_index("age"), "age", ages)
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", images), path)
    with pytest.raises(InputError) as error:
        run(parquet, tmp_path / "out", format="parquet")
    first, second, mend = sorted(error.value.problems, key=lambda problem: "quarantine" in problem)
    assert f"{path.name} row 0: column 'image' does not start like a JPEG" in first
    assert f"{path.name} row 6: column 'age' holds values that float32 cannot hold" in second
    assert "quarantine" in mend
    assert not (tmp_path / "out").exists()
    run(parquet, tmp_path / "out", format="parquet", on_error="quarantine")
    assert len(stored(tmp_path / "out")) == 8
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["origin"] for line in lines} == {f"{path.name} row 0", f"{path.name} row 6"}


def test_a_group_in_two_declared_splits_is_refused(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="declared in two splits"):
        run(parquet, tmp_path / "out", format="parquet", columns={"patient_id": "=one"})


def test_shards_that_were_saved_as_parquet_come_back_the_same(tmp_path: Path) -> None:
    write_nih(tmp_path / "raw", num_patients=20, visits=2)

    def make(source: str, out: str, **values: object) -> Path:
        config = default_config(
            "cxr_memory", {f"data.prepare.{k}": v for k, v in values.items()}, "test"
        ).config
        return prepare(task_data("cxr_memory")(config), tmp_path / source, tmp_path / out).out

    first = make("raw", "one", image_size=16)
    (tmp_path / "flat").mkdir()
    for shard in load_manifest(first).shards:
        table = pa.ipc.open_file(first / shard.file).read_all()
        pq.write_table(table, tmp_path / "flat" / f"{shard.split}.parquet")
    second = make("flat", "two", image_size=16, format="parquet")
    one, two = load_manifest(first), load_manifest(second)
    assert (one.shards, one.schema, one.statistics) == (two.shards, two.schema, two.statistics)
