"""The ENVI reader against files that the library spectral writes, and against headers with mistakes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.envi import load_envi, read_envi_scenes
from voxray.tasks.hyperspectral.config import Config
from voxray.tasks.hyperspectral.data import HyperspectralData
from voxray.tasks.hyperspectral.task import Hyperspectral

envi = pytest.importorskip("spectral.io.envi", reason="needs the extra `envi`")

ROWS, COLS, BANDS = 7, 5, 3


def cube(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 9999, (ROWS, COLS, BANDS)).astype(np.int16)


def save(path: Path, values: np.ndarray, interleave: str = "bsq", **metadata: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"byteorder": metadata.pop("byteorder", 0), "ext": metadata.pop("ext", ".img")}
    envi.save_image(str(path), values, interleave=interleave, metadata=metadata, force=True, **how)
    return path


def header_with(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def only(folder: Path, **how: Any) -> dict[str, Any]:
    (row,) = read_envi_scenes(folder, **how)
    assert not isinstance(row, BadRow), row
    return load_envi(row)


@pytest.mark.parametrize("interleave", ["bsq", "bil", "bip"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("byteorder", [0, 1])
def test_every_interleave_type_and_byte_order(
    tmp_path: Path, interleave: str, dtype: type, byteorder: int
) -> None:
    values = (cube() % 250).astype(dtype)
    save(tmp_path / "farm.hdr", values, interleave, byteorder=byteorder)
    row = only(tmp_path)
    np.testing.assert_array_equal(row["cube"], np.moveaxis(values, -1, 0))
    assert (row["cube"].dtype, row["cube"].flags.c_contiguous) == (np.float32, True)
    assert (row["sample_id"], row["scene"]) == ("farm", "farm")
    assert row["valid"].all()
    assert np.isnan(row["wavelengths_nm"]).all()


@pytest.mark.parametrize(
    ("unit", "values", "nm"),
    [
        ("Nanometers", [450, 550.5, 900], [450, 550.5, 900]),
        ("Micrometers", [0.45, 0.55, 2.5], [450, 550, 2500]),
        (None, [450, 550, 900], [450, 550, 900]),
        (None, [0.45, 0.55, 0.9], None),
        ("Wavenumber", [450, 550, 900], None),
    ],
)
def test_wavelengths_are_in_nm(
    tmp_path: Path, unit: str | None, values: list[float], nm: list[float] | None
) -> None:
    save(
        tmp_path / "a.hdr",
        cube(),
        wavelength=values,
        **({} if unit is None else {"wavelength units": unit}),
    )
    found = only(tmp_path)["wavelengths_nm"]
    np.testing.assert_allclose(found, np.full(BANDS, np.nan) if nm is None else nm, rtol=1e-6)


def test_values_are_reflectances_and_ignored_pixels_are_not_measured(tmp_path: Path) -> None:
    values = cube()
    values[2, 3] = -9999
    values[1, 1, 0] = -9999  # one band alone does not make a pixel unmeasured
    save(tmp_path / "a.hdr", values, **{"reflectance scale factor": 10000, "data ignore value": -9999})
    row = only(tmp_path)
    expected = np.ones((ROWS, COLS), bool)
    expected[2, 3] = False
    np.testing.assert_array_equal(row["valid"], expected)
    truth = np.where(expected[..., None], values, 0) / 1e4
    np.testing.assert_allclose(row["cube"], np.moveaxis(truth, -1, 0), rtol=1e-6)
    np.testing.assert_allclose(envi.open(str(tmp_path / "a.hdr")).load()[0, 0], row["cube"][:, 0, 0])


def test_tiles_with_their_ground_truth(tmp_path: Path) -> None:
    values, truth = cube(), np.random.default_rng(9).integers(0, 17, (ROWS, COLS)).astype(np.uint8)
    save(tmp_path / "deep" / "Farm_corrected.hdr", values, "bil", ext=".bil")
    envi.save_classification(
        str(tmp_path / "deep" / "Farm_gt.hdr"), truth, class_names=[str(i) for i in range(17)]
    )
    rows = list(read_envi_scenes(tmp_path, tile=4))
    assert [row["sample_id"] for row in rows] == [
        f"deep/Farm_corrected:{top}:{left}" for top in (0, 4) for left in (0, 4)
    ]
    assert {row["scene"] for row in rows} == {"deep/Farm"}
    loaded = [load_envi(row) for row in rows]
    joined = np.block([[one["labels"] for one in loaded[i : i + 2]] for i in (0, 2)])
    np.testing.assert_array_equal(joined[:ROWS, :COLS], truth)
    assert not joined[ROWS:].any()
    assert sum(one["valid"].sum() for one in loaded) == ROWS * COLS
    np.testing.assert_array_equal(loaded[3]["cube"][:, :3, :1], np.moveaxis(values[4:, 4:], -1, 0))


def test_the_task_prepares_them(tmp_path: Path) -> None:
    values = cube()
    save(
        tmp_path / "a.hdr",
        values,
        **{"wavelength": [450, 550, 900], "wavelength units": "nm", "reflectance scale factor": 1e4},
    )
    prepare = {"tile": 5, "bands": [0, 2], "intensity": "reflectance", "split_by": "block", "block": 5}
    task: HyperspectralData = Hyperspectral(Config.model_validate({"data": {"prepare": prepare}}))
    (stage,) = task.map_stages()
    rows = [stage.function(row) for row in task.read_raw(tmp_path)]
    assert [row["group"] for row in rows] == ["a:0:0", "a:1:0"]
    assert rows[0]["wavelengths_nm"].tolist() == [450, 900]
    np.testing.assert_allclose(rows[0]["cube"], np.moveaxis(values[:5, :, [0, 2]], -1, 0) / 1e4, rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ENVI", "NOTHING", "cannot be read as an ENVI header"),
        ("bands = 3", "bands = three", "cannot be read as an ENVI header"),
        ("bands = 3", "bands = 4", r"a\.img' is cut short: 210 bytes are there, its header needs 280"),
        ("bands = 3", "bands = 0", "describes no image"),
        ("interleave = bsq", "interleave = bsx", "describes no image"),
        ("header offset = 0", "header offset = -8", "describes no image"),
        ("data type = 2", "data type = 6", "holds complex64, not real numbers"),
        ("lines = 7", "", "lines"),
        ("bsq", "bsq\nfile compression = 1", "are compressed"),
        ("bsq", "bsq\ndescription = {without an end", "cannot be read as an ENVI header"),
        ("bsq", "bsq\nfile type = ENVI Spectral Library\n", "describes no image"),
    ],
)
def test_a_header_with_a_mistake_is_a_bad_row(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = save(tmp_path / "a.hdr", cube())
    header_with(path, "file type = ENVI Standard\n", "")
    header_with(path, old, new)
    (row,) = read_envi_scenes(tmp_path)
    assert isinstance(row, BadRow)
    assert re.search(words, row.reason), row.reason


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"reflectance scale factor": 0}, "'reflectance scale factor' is 0; values are divided by it"),
        ({"data ignore value": "none"}, "'data ignore value' is 'none', no number"),
        ({"wavelength": [450, 550]}, "has 3 bands, but 2 wavelengths"),
        (
            {"wavelength": [450, 550, 900], "wavelength units": "Micrometers"},
            "run from 450 to 900 micrometers, which no camera has",
        ),
    ],
)
def test_values_of_a_header_that_make_no_sense(tmp_path: Path, metadata: dict, words: str) -> None:
    save(tmp_path / "a.hdr", cube(), **metadata)
    (row,) = read_envi_scenes(tmp_path)
    with pytest.raises(BadRowError, match=words):
        load_envi(row)


def test_what_leads_out_of_the_folder_is_not_opened(tmp_path: Path) -> None:
    outside = save(tmp_path / "out" / "a.hdr", cube())
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.hdr").write_bytes(outside.read_bytes())
    (raw / "a.img").symlink_to(outside.with_suffix(".img"))
    (row,) = read_envi_scenes(raw)
    assert isinstance(row, BadRow)
    assert "is a link out of" in row.reason


def test_folders_and_ground_truth_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        list(read_envi_scenes(tmp_path / "none"))
    with pytest.raises(InputError, match=r"holds no file \*\.hdr"):
        list(read_envi_scenes(tmp_path))
    with pytest.raises(InputError, match="at least 1 pixel"):
        list(read_envi_scenes(tmp_path, tile=0))
    save(tmp_path / "a_gt.hdr", cube()[:, :, :1])
    (alone,) = read_envi_scenes(tmp_path)
    assert isinstance(alone, BadRow)
    assert "no scene 'a.hdr' lies beside this ground truth" in alone.reason
    save(tmp_path / "a.hdr", cube()[:6])
    (unlike,) = read_envi_scenes(tmp_path)
    assert isinstance(unlike, BadRow)
    assert "it is to have one band of as many rows and columns" in unlike.reason
