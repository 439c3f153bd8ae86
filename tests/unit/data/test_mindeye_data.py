"""The data of the MindEye task: synthetic tars as the webdataset library reads them, options, batches."""

import filecmp
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.batch import Batch
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.schema import BYTES, Schema
from voxray.core.task import BadRow, BadRowError
from voxray.data.decode import apply_stages
from voxray.tasks.mindeye import synth
from voxray.tasks.mindeye.data import MindEyeBatch, MindEyeData, draw_view
from voxray.tasks.mindeye.synth import SYNTH_SIZES, SynthSize

SIZE = SynthSize({"train": 30, "val": 5, "test": 12}, 20, 16, 8, 0.5)


def make(schema: Schema | None = None, image_size: int = 256, **values: object) -> MindEyeData:
    keys = {f"data.prepare.{key}": value for key, value in values.items()} | {"data.image_size": image_size}
    task = task_data("mindeye")(default_config("mindeye", keys, "test").config, schema=schema)
    assert isinstance(task, MindEyeData)
    return task


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SYNTH_SIZES, "tiny", SIZE)
    monkeypatch.setattr(synth, "ROWS_PER_TAR", 20)
    make().synth(tmp_path / "raw", "tiny", 0)
    return tmp_path / "raw"


def rows_of(raw: Path, **values: object) -> tuple[Schema, list[dict]]:
    task = make(**values)
    rows = list(task.read_raw(raw))
    return task.schema(), [apply_stages(task.map_stages(), row) for row in rows]


def columns_of(schema: Schema, rows: list[dict]) -> dict[str, np.ndarray]:
    columns = {
        name: np.stack([row[name] for row in rows])
        if column.is_tensor
        else np.array([row[name] for row in rows] + [None], object)[:-1]
        for name, column in schema.columns.items()
    }
    return columns | {"valid": np.ones(len(rows), bool), "position": np.arange(len(rows))}


def test_synthetic_tars_are_webdatasets(raw: Path) -> None:
    wds = pytest.importorskip("webdataset")
    tars = sorted(str(path) for path in raw.rglob("*.tar"))
    assert [Path(tar).name for tar in tars] == [
        "test_subj01_0.tar",
        "train_subj01_0.tar",
        "train_subj01_1.tar",
        "val_subj01_0.tar",
    ]
    theirs = list(wds.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    schema, ours = rows_of(raw, images="pixels")
    assert len(ours) == len(theirs) == 47
    for row, sample in zip(ours, theirs, strict=True):
        assert row["sample_id"].endswith(f"/{sample['__key__']}")
        np.testing.assert_array_equal(row["voxels"], sample["nsdgeneral.npy"], strict=True)
        np.testing.assert_array_equal(row["image"], sample["jpg"].transpose(2, 0, 1))
        np.testing.assert_array_equal(row["trials"], sample["trial.npy"])
        assert row["nsd_id"] == sample["coco73k.npy"]
        assert row["num_unique"] == sample["num_uniques.npy"]
    assert (ours[0]["voxels"].shape, schema.group) == ((3, 20), "stimulus_id")
    totals = json.loads((raw / "webdataset_avg_split" / "metadata_subj01.json").read_text())["totals"]
    assert totals == {split: sum(row["split"] == split for row in ours) for split in ("train", "val", "test")}


def test_targets_are_those_of_clip_npz(raw: Path) -> None:
    schema, rows = rows_of(raw)
    with np.load(raw / "clip.npz") as clip:
        final = dict(zip(clip["nsd_id"].tolist(), clip["final"], strict=True))
    assert schema.columns["clip_final"].shape == (768,)
    for row in rows:
        np.testing.assert_array_equal(row["clip_final"], final[row["nsd_id"]], strict=True)
    (raw / "clip.npz").unlink()
    assert "clip_final" not in rows_of(raw)[0].columns


def test_a_batch(raw: Path) -> None:
    schema, rows = rows_of(raw)
    assert schema.columns["image"].dtype == BYTES
    assert all(row["image"].startswith(b"\xff\xd8\xff") for row in rows)
    task = make(schema, image_size=16)
    (stage,) = task.read_stages()
    columns = dict(stage.function(columns_of(schema, rows[:5])))
    batch = task.collate(columns)
    assert batch.image_BCHW is not None
    for image, row in zip(batch.image_BCHW, rows[:5], strict=True):
        expected = np.asarray(Image.open(io.BytesIO(row["image"]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(image.numpy(), expected)
    assert batch.voxels_BRV.shape == (5, 3, 20)
    torch.testing.assert_close(batch.targets["final"][2], torch.tensor(rows[2]["clip_final"]))
    assert batch.group_id == [row["stimulus_id"] for row in rows[:5]]
    assert (batch.num_unique_B.tolist(), batch.subject[0]) == ([3] * 5, "subj01")
    assert batch.to(torch.device("meta")).targets["final"].is_meta
    assert make(schema, image_size=8).read_stages()[0].function(columns_of(schema, rows))["image"].shape == (
        47,
        3,
        8,
        8,
    )


def test_a_row_that_only_pads_has_a_black_picture(raw: Path) -> None:
    schema, rows = rows_of(raw)
    columns = columns_of(schema, [rows[0], rows[1] | {"image": b""}])
    images = make(schema, image_size=16).read_stages()[0].function(columns)["image"]
    assert images[0].any()
    assert not images[1].any()


def test_pictures_can_be_left_out(raw: Path) -> None:
    schema, rows = rows_of(raw, images="none")
    assert "image" not in schema.columns
    assert make(schema).read_stages() == []
    assert make(schema).collate(columns_of(schema, rows)).image_BCHW is None


def test_towers_make_targets_and_views(raw: Path) -> None:
    towers = [{"model": "vit_l14"}, {"model": "lab/own", "prefix": "b", "layers": [2]}]
    task = make(clip=towers, views=4, seed=3)
    columns = {name: column.shape for name, column in task.schema().columns.items() if "_" in name}
    for name, shape in {
        "clip_final": (768,),
        "clip_b_layer_2": (None,),
        "views_final": (4, 768),
        "views_b_final": (4, None),
        "views_b_layer_2": (4, None),
    }.items():
        assert columns[name] == shape
    clean, own, views, own_views = task.embedders()
    assert [set(one.outputs) for one in (clean, views)] == [{"clip_final"}, {"views_final"}]
    assert set(own_views.outputs) == {"views_b_final", "views_b_layer_2"}
    assert views.options == {"layers": "", "prefix": "views_", "num_views": 4, "seed": 3}
    assert own.model_id == own_views.model_id == "lab/own"
    assert [len(make(clip=towers[:1]).embedders()), len(make().embedders())] == [1, 0]
    with pytest.raises(InputError, match=r"clip\.npz' holds the target 'clip_final', .* move clip\.npz away"):
        list(task.read_raw(raw))
    (row, *_) = rows_of(raw, clip=[{"model": "vit_l14", "prefix": "l"}], images="none")[1]
    assert (row["pixels"].shape, row["pixels"].dtype) == ((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": 2}, r"name one, e\.g\. clip=\[\{model: vit_l14\}\]"),
        ({"clip": [{"model": "vit_l14"}, {"model": "vit_b32"}]}, "give each a `prefix`"),
        ({"clip": [{"model": "vit_l14"}], "format": "parquet"}, "of flat files name those that they hold"),
        ({"clip": [{"model": "vit_b32", "layers": [13]}]}, "vit_b32 has the blocks 1 to 12, none is 13"),
    ],
)
def test_towers_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**values)


def test_a_row_s_view_is_drawn_by_key_and_place(raw: Path) -> None:
    """View k of row i is the number 10 i + k; all targets take the same one, evaluation the clean one."""
    schema, rows = rows_of(raw)
    columns = columns_of(schema, rows)
    num = len(rows)
    numbers_NK1 = (10.0 * np.arange(num)[:, None] + np.arange(4))[..., None]
    columns |= {
        "clip_b": np.full((num, 2), -1, np.float32),
        "views_final": np.repeat(numbers_NK1, 768, -1).astype(np.float32),
        "views_b": np.repeat(numbers_NK1, 2, -1).astype(np.float32),
    }
    task = make(schema)
    clean = task.collate({name: values for name, values in columns.items() if name != "image"})
    np.testing.assert_array_equal(clean.targets["final"][3], rows[3]["clip_final"])
    drawn = [draw_view(clean, key) for key in range(40)]
    for batch in drawn:
        torch.testing.assert_close(batch.targets["final"][:, :2], batch.targets["b"])
    place_KN = np.stack([batch.targets["b"][:, 0].numpy() - 10 * np.arange(num) for batch in drawn])
    counts = np.bincount(place_KN.astype(int).ravel(), minlength=4) / place_KN.size
    np.testing.assert_allclose(counts, 0.25, atol=0.04)
    assert (np.diff(place_KN, axis=0) != 0).any(1).all()
    part = draw_view(clean.rows(slice(5, 9)), 11)
    torch.testing.assert_close(part.targets["final"], drawn[11].targets["final"][5:9])
    switched_off = task_data("mindeye")(
        default_config("mindeye", {"data.augmented_views": False}, "test").config, schema=schema
    )
    assert draws_nothing(switched_off.collate({n: v for n, v in columns.items() if n != "image"}))
    assert draws_nothing(
        task.collate({n: v for n, v in columns.items() if n not in ("image", "views_final", "views_b")})
    )


def draws_nothing(batch: Batch) -> bool:
    assert isinstance(batch, MindEyeBatch)
    return draw_view(batch, 1) is batch


def test_subjects_of_different_widths(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYNTH_SIZES, "tiny", SynthSize({"train": 3, "val": 1, "test": 2}, 9, 16, 8, 0.5))
    make().synth(tmp_path / "other", "tiny", 5)
    for path in (tmp_path / "other").rglob("train_*.tar"):
        path.rename(raw / "webdataset_avg_split" / "train" / "train_subj02_0.tar")
    (raw / "clip.npz").unlink()
    with pytest.raises(InputError, match=r"subj01 has 20, subj02 has 9; .* subjects=\[subj01\]"):
        rows_of(raw)
    assert len(rows_of(raw, subjects=["subj02"])[1]) == 3
    narrow = {row["sample_id"]: row["voxels"] for row in rows_of(raw, subjects=["subj02"])[1]}
    padded = rows_of(raw, pad_voxels=True)[1]
    assert {row["voxels"].shape for row in padded} == {(3, 20)}
    assert sum(row["subject"] == "subj02" for row in padded) == 3
    for row in padded:
        if row["subject"] == "subj02":
            np.testing.assert_array_equal(row["voxels"][:, :9], narrow[row["sample_id"]])
            assert not row["voxels"][:, 9:].any()
    with pytest.raises(InputError, match="no subject 'subj07'; it has: subj01, subj02"):
        rows_of(raw, subjects=["subj07"])


def test_rows_that_cannot_be_used(raw: Path) -> None:
    with np.load(raw / "clip.npz") as clip:
        arrays = dict(clip)
    np.savez(raw / "clip.npz", nsd_id=arrays["nsd_id"][1:], final=arrays["final"][1:])
    (bad,) = [row for row in make().read_raw(raw) if isinstance(row, BadRow)]
    assert "has no embedding of 'nsd" in bad.reason
    task = make()
    row = next(row for row in task.read_raw(raw) if not isinstance(row, BadRow))
    with pytest.raises(BadRowError, match=r"'trial\.npy' names 2 trials, but there are 3 repeats"):
        apply_stages(task.map_stages(), row | {"trials": [1, 2]})


def test_the_same_seed_writes_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    report = make().synth(tmp_path / "again", "tiny", 0)
    names = [str(path.relative_to(raw)) for path in raw.rglob("*") if path.is_file()]
    assert len(names) == 6
    assert len(filecmp.cmpfiles(raw, tmp_path / "again", names, shallow=False)[0]) == 6
    make().synth(tmp_path / "other", "tiny", 1)
    equal = filecmp.cmpfiles(raw, tmp_path / "other", names, shallow=False)[0]
    assert equal == ["webdataset_avg_split/metadata_subj01.json"]
    assert report.num_rows == 47
    with tarfile.open(raw / "webdataset_avg_split/val/val_subj01_0.tar") as tar:
        assert {member.name.partition(".")[2] for member in tar} == {
            "coco73k.npy",
            "jpg",
            "nsdgeneral.npy",
            "num_uniques.npy",
            "trial.npy",
        }


def test_tiny_is_small_and_honest(tmp_path: Path) -> None:
    report = make().synth(tmp_path, "tiny", 0)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20e6
    assert report.metric == "r1_of_100"
    assert report.chance < report.floor < report.oracle <= 1


def test_full_has_subject_1s_numbers() -> None:
    full = SYNTH_SIZES["full"]
    assert (full.rows, full.num_voxels) == ({"train": 8559, "val": 300, "test": 982}, 15_724)
