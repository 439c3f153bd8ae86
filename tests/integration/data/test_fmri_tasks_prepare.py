"""Raw fMRI → datasets on a real Ray cluster: the real sets and synthetic folders, row for row."""

from pathlib import Path

import numpy as np
import pytest

from nsd_folder import shown_by, write_nsd, write_stimuli
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.schema import BYTES
from voxray.core.task import BadRow, TaskData
from voxray.data.decode import apply_stages
from voxray.data.manifest import Manifest
from voxray.data.prepare import prepare
from voxray.data.reader import ShardReader
from voxray.data.verify import verify
from voxray.tasks.fmri_clip.synth import SynthSize, write_subject
from voxray.tasks.mindeye import synth as mindeye_synth

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make(name: str, **values: object) -> TaskData:
    keys = {f"data.prepare.{key.replace('__', '.')}": value for key, value in values.items()}
    return task_data(name)(default_config(name, keys, "test").config)


def check(name: str, raw: Path, out: Path, **values: object) -> tuple[Manifest, dict[str, dict]]:
    """Prepare, compare every stored value with what the map stages give here; return manifest and rows."""
    report = prepare(make(name, **values), raw, out)
    assert verify(out) == []
    task = make(name, **values)
    expected = {}
    for row in task.read_raw(raw):
        assert not isinstance(row, BadRow)
        expected[row["sample_id"]] = apply_stages(task.map_stages(), row)
    rows = {}
    for shard in report.manifest.shards:
        reader = ShardReader(out / shard.file)
        columns = reader.take(np.arange(reader.num_rows))
        assert columns.keys() == task.schema().columns.keys()
        for i, sample_id in enumerate(columns["sample_id"]):
            rows[sample_id] = {"split": shard.split, **{key: values[i] for key, values in columns.items()}}
            for key in columns:
                np.testing.assert_array_equal(rows[sample_id][key], expected[sample_id][key])
    assert rows.keys() == expected.keys()
    return report.manifest, rows


def splits_of(rows: dict[str, dict], group: str) -> dict[str, set[str]]:
    """Return each group's splits."""
    found: dict[str, set[str]] = {}
    for row in rows.values():
        found.setdefault(row[group], set()).add(row["split"])
    return found


def test_haxbys_runs_are_kept_apart(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    manifest, rows = check(
        "fmri_clip",
        shared_data / "fmri" / "haxby2001_sub001",
        tmp_path / "ds",
        layout="events",
        files="*_25mm.nii.gz",
        mask="masks25mm_brain.nii.gz",
        group="session_id",
    )
    assert len(rows) == 64
    assert manifest.schema.group == "session_id"
    assert all(len(splits) == 1 for splits in splits_of(rows, "session_id").values())
    assert len({row["label"] for row in rows.values()}) == 8


def test_the_digits_keep_their_declared_split(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "fmri" / "digits69"
    manifest, rows = check("fmri_clip", folder, tmp_path / "ds", image_size=28, shard_mb=0.4)
    assert manifest.schema.columns["image"].dtype == BYTES
    assert manifest.schema.columns["x"].shape == (3092,)
    with np.load(folder / "digits69.npz") as raw:
        declared = dict(zip((f"digits69/{i:06d}" for i in range(70)), raw["source_split"], strict=True))
    assert {name for name, row in rows.items() if row["split"] == "test"} == {
        name for name, split in declared.items() if split == "test"
    }
    assert len(manifest.shards) > 3


def test_the_rdms_with_their_pictures(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "fmri" / "kriegeskorte92"
    values = {"files": "hIT_rdms.npz", "images": "pixels", "image_size": 24, "subjects": ["BE"]}
    manifest, rows = check("fmri_clip", folder, tmp_path / "ds", **values)
    assert (len(rows), manifest.schema.columns["image"].shape) == (184, (3, 24, 24))
    assert all(len(splits) == 1 for splits in splits_of(rows, "stimulus_id").values())


def test_an_nsd_folder(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    write_nsd(tmp_path / "raw", kind="nii.gz", sessions=1)
    write_stimuli(tmp_path / "raw")
    manifest, rows = check("fmri_clip", tmp_path / "raw", tmp_path / "ds", image_size=8, shard_mb=20)
    assert {row["nsd_id"] for row in rows.values() if row["split"] == "test"} == {
        nsd_id for nsd_id in shown_by(1)[:750].tolist() if nsd_id % 5 == 0
    }
    assert all(len(splits) == 1 for splits in splits_of(rows, "stimulus_id").values())
    assert set(manifest.splits) == {"train", "val", "test"}
    assert manifest.statistics["x"]["std"] == pytest.approx(1, abs=0.05)


def test_a_synthetic_npz(tmp_path: Path) -> None:
    write_subject(tmp_path / "raw", SynthSize("npz", 2, 45, 12), 0)
    manifest, rows = check("fmri_clip", tmp_path / "raw", tmp_path / "ds")
    assert len(rows) == 90
    assert manifest.schema.columns["clip_final"].shape == (768,)


def test_mindeyes_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = mindeye_synth.SynthSize({"train": 30, "val": 5, "test": 12}, 20, 16, 8, 0.5)
    monkeypatch.setitem(mindeye_synth.SYNTH_SIZES, "tiny", size)
    make("mindeye").synth(tmp_path / "raw", "tiny", 0)
    manifest, rows = check("mindeye", tmp_path / "raw", tmp_path / "ds")
    assert {split: count.rows for split, count in manifest.counts.items()} == size.rows
    assert manifest.schema.columns["voxels"].shape == (3, 20)
    assert rows["subj01/val/sample000000030"]["image"].startswith(b"\xff\xd8\xff")
