"""NIfTI series and BOLD with events, against files written and read by nibabel, and Haxby's real runs."""

import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import zscore

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats import nifti
from voxray.data.formats.bold_events import EventOptions, read_bold_events
from voxray.data.formats.nifti import read_header, read_mask, read_masked
from voxray.data.formats.volumes import MaskedVolumes, load_volumes, zscored

nib = pytest.importorskip("nibabel")

SHAPE, NUM_VOLUMES = (4, 3, 5), 7


def series(seed: int = 0, dtype: object = np.int16) -> np.ndarray:
    return np.random.default_rng(seed).normal(1000, 30, (*SHAPE, NUM_VOLUMES)).astype(dtype)


def mask_of(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) < 0.3


def save(path: Path, values: np.ndarray, kind: str = "Nifti1Image", **header: object) -> Path:
    image = getattr(nib, kind)(values, np.eye(4), dtype=values.dtype)
    image.header.set_xyzt_units("mm", header.get("unit", "sec"))
    if values.ndim == 4:
        image.header.set_zooms((2, 2, 2, header.get("step", 2.5)))
    if "slope" in header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, ">i2"])
def test_voxels_are_those_of_nibabel(tmp_path: Path, name: str, kind: str, dtype: object) -> None:
    path, mask = save(tmp_path / name, series(dtype=dtype), kind), mask_of()
    expected = nib.load(path).get_fdata()[mask].T.astype(np.float32)
    np.testing.assert_array_equal(read_masked(path, mask), expected, strict=True)
    assert expected.shape == (NUM_VOLUMES, mask.sum())


def test_a_slope_scales(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(series(dtype=np.float32) / 777, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, path)
    expected = nib.load(path).get_fdata()[mask_of()].T.astype(np.float32)
    assert not read_header(path).is_integer
    np.testing.assert_array_equal(read_masked(path, mask_of()), expected)
    assert read_header(save(tmp_path / "b.nii", series())).is_integer


@pytest.mark.parametrize("num_bytes", [1, 1200, 10**6])
def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    path = save(tmp_path / "a.nii.gz", series())
    expected = series()[mask_of()].T.astype(np.float32)
    monkeypatch.setattr(nifti, "BLOCK_BYTES", num_bytes)
    np.testing.assert_array_equal(read_masked(path, mask_of()), expected)


def test_a_single_volume_is_a_series_of_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", series()[..., 0])
    assert read_header(path).num_volumes == 1
    np.testing.assert_array_equal(read_masked(path, mask_of()), series()[..., 0][mask_of()][None])


@pytest.mark.parametrize(
    ("unit", "step", "seconds"), [("sec", 2.5, 2.5), ("msec", 1600, 1.6), ("unknown", 2, 2)]
)
def test_the_repetition_time(tmp_path: Path, unit: str, step: float, seconds: float) -> None:
    header = read_header(save(tmp_path / "a.nii", series(), unit=unit, step=step))
    assert header.repetition_s == pytest.approx(seconds)
    assert (header.shape, header.num_volumes) == (SHAPE, NUM_VOLUMES)


def test_a_mask_is_what_is_above_zero(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1, 3, SHAPE).astype(np.int16)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.nii.gz", values)), values > 0, strict=True)
    with pytest.raises(ValueError, match="mask is empty"):
        read_mask(save(tmp_path / "e.nii", np.zeros(SHAPE, np.int16)))
    with pytest.raises(ValueError, match="holds 7 volumes, a mask is one"):
        read_mask(save(tmp_path / "s.nii", series()))
    path = save(tmp_path / "a.nii", series())
    with pytest.raises(ValueError, match="volumes are 4×3×5, the mask is 5×3×4"):
        read_masked(path, mask_of().T)


def test_what_memory_must_hold_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", series())
    monkeypatch.setattr(nifti, "MAX_MASKED_BYTES", 100)
    with pytest.raises(ValueError, match="bytes lie inside the mask, more than 100"):
        read_masked(path, mask_of())
    monkeypatch.setattr(nifti, "MAX_VOLUME_BYTES", 100)
    with pytest.raises(ValueError, match="header claims volumes of 480 bytes"):
        read_header(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, series())
    content = path.read_bytes()
    for length in range(0, len(content), 31):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"replace it|file again|download"):
            read_masked(path, mask_of())


def test_a_flipped_bit_of_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", series())
    plain = gzip.decompress(path.read_bytes())
    content = gzip.compress(plain, compresslevel=0)  # stored: the bytes stand in the file as they are
    for position in (len(content) // 2, len(content) - 20):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(ValueError, match="CRC check failed"):
            read_masked(path, mask_of())


def test_what_is_no_nifti(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"hello" * 100)
    with pytest.raises(ValueError, match="not that of a NIfTI file"):
        read_header(tmp_path / "a.nii")
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ValueError, match="not numbers"):
        read_header(save(tmp_path / "b.nii", rgb))
    with pytest.raises(ValueError, match="not numbers"):
        read_header(save(tmp_path / "c.nii", np.zeros((2, 2, 2, 2, 2), np.int16)))


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", series())

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"voxray\[fmri\]"):
        read_header(path)


def test_zscoring_is_scipys(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(500, [1, 5, 50], (200, 3)).astype(np.float32)
    np.testing.assert_allclose(zscored(x), zscore(x.astype(np.float64)), atol=1e-4)
    constant = np.full((9, 2), 0.1, np.float32)
    np.testing.assert_array_equal(zscored(constant), np.zeros((9, 2), np.float32), strict=True)
    save(tmp_path / "a.nii.gz", series())
    save(tmp_path / "m.nii", mask_of().astype(np.uint8))
    expected = zscore(series()[mask_of()].T.astype(np.float64))
    volumes = MaskedVolumes(str(tmp_path / "a.nii.gz"), str(tmp_path / "m.nii"), zscore=True)
    np.testing.assert_allclose(volumes.read(), expected, atol=1e-5)
    assert volumes.read() is volumes.read()
    raw = MaskedVolumes(volumes.path, volumes.mask, zscore=False, scale=300)
    np.testing.assert_allclose(raw.read(), series()[mask_of()].T / 300, rtol=1e-6)


# --- BOLD with events
# -------------------------------------------------------------------------------------------------------


def write_run(folder: Path, run: str = "sub-03_task-x_run-2", bold: str = "_bold", events: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"{run}{bold}.nii.gz", series())
    save(folder / "brain_mask.nii.gz", mask_of().astype(np.uint8))
    table = "onset\tduration\ttrial_type\n" + (events or "0\t5\tface\n5.0\t4\thouse\n")
    (folder / f"{run}_events.tsv").write_text(table)


def test_an_event_is_the_mean_of_its_volumes(tmp_path: Path) -> None:
    write_run(tmp_path / "sub-03")
    x = series()[mask_of()].T.astype(np.float64)
    # volumes begin at 0, 2.5, … 15 s; 3 s later an event of 5 s from 0 is that of 3 … 8 s
    for delay, spans in ((0, [(0, 2), (2, 4)]), (3, [(2, 4), (4, 5)]), (5, [(2, 4), (4, 6)])):
        options = EventOptions(zscore=False, delay_s=delay)
        first, second = rows = list(read_bold_events(tmp_path, options))
        assert [row["span"] for row in rows] == spans
        for row in rows:
            np.testing.assert_allclose(load_volumes(row)["x"], x[slice(*row["span"])].mean(0), rtol=1e-6)
    assert (first["subject"], first["session"]) == ("sub-03", 2)
    assert (first["label"], second["stimulus_id"]) == ("face", "house")
    assert first["num_voxels"] == mask_of().sum()
    assert first["sample_id"] == "sub-03/sub-03_task-x_run-2/0000"


def test_stim_file_names_the_stimulus(tmp_path: Path) -> None:
    write_run(tmp_path)
    table = "onset\tduration\ttrial_type\tstim_file\n0\t1\tface\ta.png\n2.5\t1\tface\t\n"
    (tmp_path / "sub-03_task-x_run-2_events.tsv").write_text(table)
    assert [row["stimulus_id"] for row in read_bold_events(tmp_path, EventOptions())] == ["a.png", "face"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n/a\t5\tface", "onset is 'n/a'"),
        ("5\t-1\tface", "duration is '-1'"),
        ("nan\t1\tface", "onset is 'nan'"),
        ("14\t1\tface", "no volume was taken 5 s after its onset at 14 s: the series has 7 volumes of 2.5 s"),
    ],
)
def test_bad_events_name_their_line(tmp_path: Path, line: str, words: str) -> None:
    write_run(tmp_path, events=f"0\t5\tface\n{line}\n")
    good, bad = read_bold_events(tmp_path, EventOptions())
    assert isinstance(bad, BadRow)
    assert bad.origin == "sub-03_task-x_run-2_events.tsv line 3"
    assert words in bad.reason
    assert good["label"] == "face"


def test_runs_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \*_events.tsv"):
        list(read_bold_events(tmp_path, EventOptions()))
    write_run(tmp_path)
    (tmp_path / "sub-03_task-x_run-2_events.tsv").write_text("onset\tduration\n")
    with pytest.raises(InputError, match="no column 'trial_type'"):
        list(read_bold_events(tmp_path, EventOptions()))
    write_run(tmp_path, bold="_other")
    with pytest.raises(InputError, match=r"there are: .*_bold.nii.gz, .*_other.nii.gz; choose with `files`"):
        list(read_bold_events(tmp_path, EventOptions()))
    assert list(read_bold_events(tmp_path, EventOptions(bold="*_bold*")))
    save(tmp_path / "other_mask.nii", mask_of().astype(np.uint8))
    with pytest.raises(InputError, match=r"more than one mask: brain_mask\.nii\.gz, other_mask\.nii;"):
        list(read_bold_events(tmp_path, EventOptions(bold="*_bold*")))
    with pytest.raises(InputError, match="leads out of"):
        list(read_bold_events(tmp_path, EventOptions(mask="../brain_mask.nii.gz")))
    save(tmp_path / "sub-03_task-x_run-2_bold.nii.gz", series(), step=0)
    with pytest.raises(InputError, match="no repetition time"):
        list(read_bold_events(tmp_path, EventOptions(bold="*_bold*", mask="brain*")))


def test_run_1_is_not_run_10(tmp_path: Path) -> None:
    for run in ("run-1", "run-10"):
        write_run(tmp_path, run)
    rows = list(read_bold_events(tmp_path, EventOptions()))
    assert {(row["session"], Path(row["volumes"].path).name) for row in rows} == {
        (1, "run-1_bold.nii.gz"),
        (10, "run-10_bold.nii.gz"),
    }


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    write_run(tmp_path)
    values = series(dtype=np.float32)
    values[*np.argwhere(mask_of())[0], 1] = np.nan
    save(tmp_path / "sub-03_task-x_run-2_bold.nii.gz", values)
    row = next(read_bold_events(tmp_path, EventOptions(zscore=False, delay_s=0)))
    with pytest.raises(BadRowError, match=r"events.tsv line 2: 1 of .* voxels are not finite"):
        load_volumes(row)
    Path(row["volumes"].path).unlink()
    with pytest.raises(BadRowError, match="No such file"):
        load_volumes(row)


def test_haxbys_blocks_are_those_that_pymvpa_gives(shared_data: Path, tmp_path: Path) -> None:
    """Without a delay our rows equal slice_blocks.npz, made from the same slice and PyMVPA's own labels."""
    folder = shared_data / "fmri" / "haxby2001_sub001"
    with np.load(folder / "slice_volumes.npz") as volumes:
        mask = volumes["mask"][..., None].astype(np.uint8)
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in folder.glob("run*"):
        (raw / path.name).write_bytes(path.read_bytes())
    save(raw / "slice_mask.nii", mask)
    rows = list(read_bold_events(raw, EventOptions(bold="*_1slice*", delay_s=0)))
    ours = {(row["session"], row["label"]): load_volumes(row)["x"] for row in rows}
    with np.load(folder / "slice_blocks.npz") as blocks:
        expected = dict(
            zip(
                zip(blocks["run"].tolist(), blocks["label"].tolist(), strict=True),
                blocks["patterns"],
                strict=True,
            )
        )
    assert len(ours) == len(expected) == 64
    for key, pattern in expected.items():
        np.testing.assert_allclose(ours[key], pattern, atol=1e-4)
