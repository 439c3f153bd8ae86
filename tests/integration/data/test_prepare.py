"""Raw X-rays → shards on a real Ray cluster: what comes out, what bad input says, nothing half-written."""

import errno
import filecmp
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nih_folder import TABLE, table_row, write_image, write_nih, write_table
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.core.registry import task_class
from voxray.data import prepare as prepare_module
from voxray.data.decode import ShardJob, write_planned_shard
from voxray.data.formats.radiograph import decode_image
from voxray.data.inspect import inspect, stats
from voxray.data.manifest import load_manifest
from voxray.data.prepare import PrepareReport, leftovers, prepare
from voxray.data.reader import ShardReader
from voxray.data.verify import verify

pytestmark = pytest.mark.usefixtures("ray_cluster")


def make_task(**values: object) -> object:
    config = default_config(
        "cxr_memory", {f"data.prepare.{k.replace('__', '.')}": v for k, v in values.items()}, "test"
    )
    return task_class("cxr_memory")(config.config)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    write_nih(folder, num_patients=20, visits=2)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder to prepare into, alone in its parent: whatever a test leaves there is an error."""
    (tmp_path / "out").mkdir()
    yield tmp_path / "out" / "ds"
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"ds"}
    assert not (tmp_path / "out" / "ds").exists() or verify(tmp_path / "out" / "ds") == []


def refused(raw: Path, out: Path, **values: object) -> list[str]:
    with pytest.raises(InputError) as error:
        prepare(make_task(**values), raw, out)
    assert not out.exists()
    return list(error.value.problems)


def all_rows(report: PrepareReport) -> dict[str, dict]:
    rows = {}
    for shard in report.manifest.shards:
        reader = ShardReader(report.out / shard.file)
        columns = reader.take(np.arange(reader.num_rows))
        for i, name in enumerate(columns["sample_id"]):
            rows[name] = {"split": shard.split, **{column: values[i] for column, values in columns.items()}}
    return rows


def test_every_raw_row_is_in_the_dataset(raw: Path, out: Path) -> None:
    seen = []
    report = prepare(make_task(shard_mb=0.002), raw, out, lambda done, total: seen.append((done, total)))
    task = make_task()
    expected = {row["sample_id"]: row for row in task.read_raw(raw)}
    rows = all_rows(report)
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        np.testing.assert_array_equal(row["image"], decode_image(expected[name]["path"], 16))
        np.testing.assert_array_equal(row["labels"], expected[name]["labels"])
        for column in ("patient_id", "view", "sex", "age_years", "follow_up"):
            assert row[column] == expected[name][column]
    manifest = load_manifest(out)
    assert manifest == report.manifest
    assert manifest.schema.columns["image"].shape == (1, 16, 16)
    assert {split: counts.rows for split, counts in manifest.counts.items()} == {
        "train": 28,
        "val": 6,
        "test": 6,
    }
    assert {split: counts.groups for split, counts in manifest.counts.items()} == {
        "train": 14,
        "val": 3,
        "test": 3,
    }
    assert len(manifest.shards) > 6
    assert sorted(seen) == [(i + 1, len(manifest.shards)) for i in range(len(manifest.shards))]
    pixels = np.stack([row["image"] for row in rows.values() if row["split"] == "train"]) / 255
    assert manifest.statistics["image"]["mean"] == pytest.approx(pixels.mean(), rel=1e-12)
    assert manifest.statistics["image"]["std"] == pytest.approx(pixels.std(), rel=1e-9)
    mass = list(manifest.schema.columns["labels"].names).index("Mass")
    assert manifest.statistics["labels"]["positives"][mass] == 14
    assert manifest.recipe.prepare["shard_mb"] == 0.002


def test_two_prepares_are_byte_identical(raw: Path, out: Path, tmp_path: Path) -> None:
    first = prepare(make_task(shard_mb=0.004), raw, out)
    second = prepare(make_task(shard_mb=0.004), raw, tmp_path / "second")
    assert first.manifest == second.manifest
    names = ["manifest.json", *(shard.file for shard in first.manifest.shards)]
    assert filecmp.cmpfiles(out, tmp_path / "second", names, shallow=False)[0] == names
    third = prepare(make_task(shard_mb=0.004, seed=1), raw, tmp_path / "third")
    assert third.manifest.shards != first.manifest.shards
    write_image(raw / "images_001" / "images" / "00000000_000.png", seed=99)
    table = raw / TABLE
    table.write_bytes(table.read_bytes().replace(b"058Y", b"059Y", 1))
    fourth = prepare(make_task(shard_mb=0.004), raw, tmp_path / "fourth")
    assert fourth.manifest.source.fingerprint != first.manifest.source.fingerprint


def test_splits_are_the_configs(raw: Path, out: Path) -> None:
    report = prepare(make_task(splits__train=0.5, splits__val=0.5, splits__test=0), raw, out)
    assert report.manifest.splits == ("train", "val")
    rows = all_rows(report)
    patients = [
        {row["patient_id"] for row in rows.values() if row["split"] == split} for split in ("train", "val")
    ]
    assert not patients[0] & patients[1]


def test_declared_lists_are_kept(raw: Path, out: Path) -> None:
    names = sorted(path.name for path in raw.rglob("*.png"))
    (raw / "train_val_list.txt").write_text("\n".join(names[:30]))
    (raw / "test_list.txt").write_text("\n".join(names[30:]))
    rows = all_rows(prepare(make_task(), raw, out))
    assert {name for name, row in rows.items() if row["split"] == "test"} == set(names[30:])
    assert {row["split"] for row in rows.values()} == {"train", "val", "test"}


@pytest.mark.parametrize(("name", "num_rows"), [("nih64", 642), ("nih320", 85)])
def test_real_x_rays(shared_data: Path, out: Path, name: str, num_rows: int) -> None:
    report = prepare(make_task(), shared_data / "cxr" / name, out)
    rows = all_rows(report)
    assert len(rows) == num_rows
    raw = {row["sample_id"]: row for row in make_task().read_raw(shared_data / "cxr" / name)}
    for sample in sorted(rows)[::50]:
        np.testing.assert_array_equal(
            rows[sample]["image"], decode_image(raw[sample]["path"], raw[sample]["image_size"])
        )
    tables = stats(out)["labels"]
    total = sum(row[f"{split} positives"] for row in tables for split in ("train", "val", "test"))
    assert total == sum(row["labels"].sum() for row in raw.values())
    assert [row["rows"] for row in inspect(out)["splits"]] == [
        c.rows for c in report.manifest.counts.values()
    ]


# --- bad input -------------------------------------------------------------------------------------------


def test_a_missing_an_unreadable_and_a_truncated_image(raw: Path, out: Path) -> None:
    first, second, third = sorted(raw.rglob("*.png"))[:3]
    first.unlink()
    (problem, hint) = refused(raw, out)
    assert problem.startswith(f"{TABLE} row ")
    assert first.name in problem
    assert "--on-error quarantine" in hint
    write_image(first)
    second.write_bytes(b"no image")
    third.write_bytes(third.read_bytes()[:-40])
    *problems, hint = refused(raw, out)
    assert len(problems) == 2
    assert all(any(path.name in problem for problem in problems) for path in (second, third))
    assert all(problem.startswith(f"{TABLE} row ") for problem in problems)


def test_a_long_list_of_bad_rows_is_cut(raw: Path, out: Path) -> None:
    for path in sorted(raw.rglob("*.png"))[:25]:
        path.write_bytes(b"")
    problems = refused(raw, out)
    assert len(problems) == 22
    assert problems[20] == "and 5 more"


def test_quarantine_sets_rows_aside(raw: Path, out: Path) -> None:
    images = sorted(raw.rglob("*.png"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:50])
    table = raw / TABLE
    lines = table.read_text().splitlines()
    lines += [table_row(images[2].name, "Efusion", 99), table_row(images[5].name)]
    table.write_text("\n".join(lines))
    report = prepare(make_task(on_error="quarantine"), raw, out)
    rows = all_rows(report)
    assert len(rows) == 38
    assert {images[0].name, images[1].name}.isdisjoint(rows)
    assert report.manifest.num_quarantined == len(report.quarantined) == 4
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    reasons = {row["origin"]: row["reason"] for row in listed}
    assert len(reasons) == 4
    assert "did you mean 'Effusion'" in reasons[f"{TABLE} row 42"]
    assert "second time" in reasons[f"{TABLE} row 43"]
    assert sum(images[1].name in reason for reason in reasons.values()) == 1
    assert sum(counts.rows for counts in report.manifest.counts.values()) == 38


def test_quarantine_does_not_hide_that_nothing_is_left(raw: Path, out: Path) -> None:
    for path in raw.rglob("*.png"):
        path.write_bytes(b"")
    assert refused(raw, out, on_error="quarantine")[-1] == "no row is left to prepare"


def test_quarantine_does_not_empty_a_split(raw: Path, out: Path) -> None:
    names = sorted(path.name for path in raw.rglob("*.png"))
    (raw / "train_val_list.txt").write_text("\n".join(names[:-2]))
    (raw / "test_list.txt").write_text("\n".join(names[-2:]))
    for name in names[-2:]:
        next(raw.rglob(name)).write_bytes(b"")
    assert "split 'test' is empty" in refused(raw, out, on_error="quarantine")[0]


def test_a_table_without_a_column(raw: Path, out: Path) -> None:
    table = raw / TABLE
    table.write_bytes(table.read_bytes().replace(b"Patient ID", b"Patient", 1))
    assert "column 'Patient ID' is missing" in refused(raw, out)[0]


def test_a_label_that_nobody_knows(raw: Path, out: Path) -> None:
    table = raw / TABLE
    table.write_bytes(table.read_bytes().replace(b"No Finding", b"Pleural Thickening", 1))
    problem = refused(raw, out)[0]
    assert "unknown label 'Pleural Thickening'; did you mean 'Pleural_Thickening'?" in problem


def test_a_patient_in_two_splits(raw: Path, out: Path) -> None:
    names = sorted(path.name for path in raw.rglob("*.png"))
    (raw / "train_val_list.txt").write_text("\n".join(names[1:]))
    (raw / "test_list.txt").write_text(names[0])
    (problem,) = refused(raw, out)
    assert f"{TABLE}: patient '0' is in two splits" in problem


def test_an_empty_split(tmp_path: Path, out: Path) -> None:
    write_nih(tmp_path / "two", num_patients=2)
    assert "split 'test' would be empty" in refused(tmp_path / "two", out)[0]


def test_an_empty_table(tmp_path: Path, out: Path) -> None:
    (tmp_path / "none").mkdir()
    write_table(tmp_path / "none", [])
    assert "not a single row" in refused(tmp_path / "none", out)[0]


def test_an_output_folder_that_holds_something(raw: Path, out: Path) -> None:
    report = prepare(make_task(), raw, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already exists and is not empty"):
        prepare(make_task(), raw, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert load_manifest(out) == report.manifest


def test_an_output_folder_that_is_empty_or_inside_the_raw_one(raw: Path, out: Path) -> None:
    assert "inside the raw folder" in refused(raw, raw / "ds")[0]
    out.mkdir()
    prepare(make_task(), raw, out)


def test_an_output_folder_that_cannot_be_made(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(raw, tmp_path / "file" / "ds")[0]


# --- full disks and interruptions ------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no tmpfs may be mounted here")
    yield folder
    for _ in range(20):  # a task that was cancelled may hold its file for a moment
        if subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.25)
    pytest.fail("a process still holds files on the small disk")


@pytest.fixture
def big_raw(tmp_path: Path) -> Path:
    write_nih(tmp_path / "big", num_patients=20, visits=2, side=224)  # 2 MB of pixels
    return tmp_path / "big"


def test_a_disk_that_is_too_small_is_noticed_beforehand(big_raw: Path, small_disk: Path) -> None:
    (problem,) = refused(big_raw, small_disk / "ds")
    assert f"the dataset needs about 2.0 MB, but '{small_disk}' has 1.0 MB free" in problem
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_meanwhile(
    big_raw: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "check_free_space", lambda *_: None)
    (problem,) = refused(big_raw, small_disk / "ds", shard_mb=0.5)
    assert f"'{small_disk}' became full" in problem
    assert "about 2.0 MB, 1.0 MB are free now" in problem
    assert not list(small_disk.iterdir())


def test_a_task_tells_of_a_full_disk_instead_of_failing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    import ray

    monkeypatch.setattr("voxray.data.decode.write_shard", full)
    task = make_task()
    shard = ("train-00000.arrow", "train", ray.put(list(task.read_raw(raw))))
    job = ShardJob("cxr_memory", task.config.model_dump(mode="json"), task.schema(), str(tmp_path), [shard])
    result = json.loads(write_planned_shard({"id": 0}, job)["result"])
    assert result == {"failure": [errno.ENOSPC, "No space left on device"]}


def test_a_manifest_that_finds_the_disk_full(raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_manifest", full)
    assert "became full" in refused(raw, out)[0]


def test_ctrl_c_leaves_nothing(raw: Path, out: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(make_task(shard_mb=0.002), raw, out, interrupt)
    assert not list(out.parent.iterdir())


def test_leftovers_of_a_killed_attempt_are_named(out: Path) -> None:
    killed = out.parent / ".ds.partial-0123abcd"
    killed.mkdir()
    assert leftovers(out) == [killed]
    killed.rmdir()


# --- verify ----------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(raw: Path, tmp_path: Path) -> Path:
    prepare(make_task(shard_mb=0.004), raw, tmp_path / "made")
    assert verify(tmp_path / "made") == []
    return tmp_path / "made"


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9999])
def test_one_flipped_bit_in_a_shard(dataset: Path, place: float) -> None:
    shard = dataset / load_manifest(dataset).shards[1].file
    data = bytearray(shard.read_bytes())
    data[int(place * len(data))] ^= 0b100
    shard.write_bytes(data)
    (problem,) = verify(dataset)
    assert shard.name in problem
    assert "sha256" in problem


def test_missing_shortened_and_extra_files(dataset: Path) -> None:
    first, second, *_ = [dataset / shard.file for shard in load_manifest(dataset).shards]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    (dataset / "shards" / "extra.arrow").write_bytes(b"")
    problems = verify(dataset)
    assert len(problems) == 3
    assert "extra.arrow" in problems[0]
    assert "missing" in problems[1]
    assert "bytes instead of" in problems[2]


def forge(dataset: Path, **changes: object) -> None:
    """Change the manifest by hand; hashes of the shards stay right."""
    path = dataset / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_group_that_leaks_and_a_repeated_sample(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    train, test = (next(s for s in manifest.shards if s.split == split) for split in ("train", "test"))
    for there, here in ((train.file, test.file), (train.index_file, test.index_file)):
        (dataset / here).write_bytes((dataset / there).read_bytes())
    same = replace(train, file=test.file, split="test")
    shards = [asdict(same if s == test else s) for s in manifest.shards]
    rows = sum(shard["rows"] for shard in shards if shard["split"] == "test")
    counts = {split: vars(c) for split, c in manifest.counts.items()} | {"test": {"rows": rows, "groups": 3}}
    forge(dataset, shards=shards, counts=counts)
    problems = verify(dataset)
    names = ShardReader(dataset / train.file).take(np.arange(train.rows), ["sample_id", "patient_id"])
    for name in names["sample_id"]:
        assert any(f"sample '{name}' is in" in problem for problem in problems)
    for name in set(names["patient_id"]):
        assert any(
            f"patient_id '{name}' leaks across the splits test, train" in problem for problem in problems
        )


def test_a_schema_that_is_not_the_shards(dataset: Path) -> None:
    content = json.loads((dataset / "manifest.json").read_text())
    content["schema"]["columns"]["labels"]["names"].reverse()
    forge(dataset, schema=content["schema"])
    problems = verify(dataset)
    assert len(problems) == len(content["shards"])
    assert all("other columns" in problem for problem in problems)


def test_counts_of_groups(dataset: Path) -> None:
    counts = {split: vars(c) for split, c in load_manifest(dataset).counts.items()}
    forge(dataset, counts=counts | {"val": counts["val"] | {"groups": 99}})
    assert verify(dataset) == ["split 'val' has 3 groups, the manifest says 99"]


def test_shards_are_plain_arrow(dataset: Path) -> None:
    for shard in load_manifest(dataset).shards:
        with pa.memory_map(str(dataset / shard.file)) as source:
            assert pa.ipc.open_file(source).read_all().num_rows == shard.rows
