"""Brain-to-text and hyperspectral raw data → shards on Ray: every row, ragged and encoded ones too."""

from pathlib import Path

import numpy as np
import pytest

from voxray.core.batch import BatchRules, EpochRequest
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.schema import SPLITS
from voxray.core.task import BadRow, TaskData
from voxray.data.local import LocalStream
from voxray.data.manifest import load_manifest
from voxray.data.prepare import PrepareReport, prepare
from voxray.data.reader import ShardReader

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make_task(name: str, **values: object) -> TaskData:
    resolved = default_config(
        name, {f"data.prepare.{k.replace('__', '.')}": v for k, v in values.items()}, "test"
    )
    return task_data(name)(resolved.config)


def prepared_rows(dataset: Path) -> dict[str, dict]:
    rows = {}
    for shard in load_manifest(dataset).shards:
        reader = ShardReader(dataset / shard.file, shard)
        columns = reader.take(np.arange(reader.num_rows))
        for i, name in enumerate(columns["sample_id"]):
            rows[name] = {"split": shard.split, **{column: values[i] for column, values in columns.items()}}
    return rows


def check_every_row(made: TaskData, raw: Path, report: PrepareReport) -> dict[str, dict]:
    """Compare the dataset with what the task's own stages make of the raw rows; return its rows."""
    rows = prepared_rows(report.out)
    (stage,) = made.map_stages()
    raw_rows = list(made.read_raw(raw))
    assert not any(isinstance(row, BadRow) for row in raw_rows)
    assert rows.keys() == {row["sample_id"] for row in raw_rows}
    for row in raw_rows:
        expected = stage.function(row)
        for name in made.schema().columns:
            np.testing.assert_array_equal(rows[row["sample_id"]][name], expected[name], err_msg=name)
    return rows


def test_synthetic_trials(tmp_path: Path) -> None:
    made = make_task("brain_text", shard_mb=2)
    expected = made.synth(tmp_path / "raw", "tiny", seed=0)
    report = prepare(made, tmp_path / "raw", tmp_path / "out")
    rows = check_every_row(made, tmp_path / "raw", report)
    assert len(rows) == expected.num_rows
    assert all(row["split"] == name.split("/")[1] for name, row in rows.items())  # as T15 declares
    columns = report.manifest.schema.columns
    assert (columns["neural"].shape, columns["phonemes"].shape) == ((None, 512), (None,))
    assert {split: counts.rows for split, counts in report.manifest.counts.items()} == dict(
        zip(SPLITS, (78, 20, 20), strict=True)
    )
    assert len({len(row["neural"]) for row in rows.values()}) > 10
    assert len(report.manifest.shards) > 3
    objective = made.config.objective.model_copy(update={"beta": 0.0})  # else texts need a tokenizer
    config = made.config.model_copy(update={"objective": objective})
    trained = type(made)(config, report.manifest.statistics, report.manifest.schema)
    check_batches_of_a_session(trained, report.out, rows)


def check_batches_of_a_session(made: TaskData, dataset: Path, rows: dict[str, dict]) -> None:
    """Batches by session, through the local transport and the task's collate: padded with zeros, no more."""
    request = EpochRequest("train", 16, seed=0, rules=BatchRules(group_by="session"))
    seen = []
    for columns in LocalStream(dataset).batches(request):
        batch = made.collate(columns)
        assert len({s for s, valid in zip(batch.session, batch.valid_B, strict=True) if valid}) == 1
        for i in np.flatnonzero(batch.valid_B.numpy()):
            row = rows[batch.sample_id[i]]
            length, num_phonemes = int(batch.num_time_steps_B[i]), int(batch.num_phonemes_B[i])
            np.testing.assert_array_equal(batch.neural_BTF[i, :length], row["neural"])
            assert not batch.neural_BTF[i, length:].any()
            assert batch.phonemes_BL[i, :num_phonemes].tolist() == row["phonemes"].tolist()
            assert (batch.text[i], int(batch.day_B[i])) == (row["text"], row["day"])
            seen.append(batch.sample_id[i])
    assert sorted(seen) == sorted(name for name, row in rows.items() if row["split"] == "train")


def test_synthetic_cubes(tmp_path: Path) -> None:
    made = make_task("hyperspectral", shard_mb=4)
    expected = made.synth(tmp_path / "raw", "tiny", seed=0)
    report = prepare(made, tmp_path / "raw", tmp_path / "out")
    rows = check_every_row(made, tmp_path / "raw", report)
    assert len(rows) == expected.num_rows
    patients = [{r["patient_id"] for r in rows.values() if r["split"] == split} for split in SPLITS]
    assert all(patients)
    assert not (patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2])
    assert report.manifest.schema.columns["cube"].shape == (30, 40, 40)
    assert all(row["rgb"].startswith(b"\x89PNG") for row in rows.values())
    columns = next(LocalStream(report.out).batches(EpochRequest("val", 4, seed=0)))
    batch = made.collate(columns)
    for i, name in enumerate(batch.sample_id):
        np.testing.assert_array_equal(batch.cube_BCHW[i], rows[name]["cube"])
        np.testing.assert_array_equal(batch.measured_BHW[i], rows[name]["measured"] == 1)
        assert batch.rgb[i] == rows[name]["rgb"]


@pytest.mark.parametrize(
    ("task", "folder", "values", "num_rows"),
    [
        ("brain_text", "neural/it_objects_text", {"split_by": "repetition"}, 294),
        ("brain_text", "neural/monkey_reach", {"text": "direction"}, 560),
        (
            "hyperspectral",
            "hyperspectral/indian_pines",
            {"tile": 29, "scale": 1e-4, "split_by": "row"},
            25,
        ),
    ],
)
def test_real_sets(
    shared_data: Path, tmp_path: Path, task: str, folder: str, values: dict, num_rows: int
) -> None:
    made = make_task(task, **values)
    report = prepare(made, shared_data / folder, tmp_path / "out")
    rows = check_every_row(made, shared_data / folder, report)
    assert len(rows) == num_rows
    groups = [{r["group"] for r in rows.values() if r["split"] == split} for split in SPLITS]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups))
