"""Hyperspectral rows of three layouts, their scaling, batches, and what the synthetic retinas promise."""

import filecmp
import io
import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.linear_model import LinearRegression

from voxray.config.errors import InputError
from voxray.core.splits import assign_splits
from voxray.core.task import BadRow, BadRowError, SynthReport
from voxray.data.config import SplitsConfig
from voxray.data.formats.cube_files import load_npy_cube, read_cube_files
from voxray.tasks.hyperspectral import retina, synth
from voxray.tasks.hyperspectral.config import Config
from voxray.tasks.hyperspectral.data import HyperspectralData
from voxray.tasks.hyperspectral.reflectance import log_reflectance

KEPT = {"intensity": "reflectance"}


def task(**prepare: object) -> HyperspectralData:
    return HyperspectralData(Config.model_validate({"data": {"prepare": prepare}}))


def rows_of(folder: Path, **prepare: object) -> list:
    """Return the loaded rows of a folder."""
    made = task(**prepare)
    (stage,) = pickle.loads(pickle.dumps(made.map_stages()))
    rows = [row if isinstance(row, BadRow) else stage.function(row) for row in made.read_raw(folder)]
    for row in rows:
        assert isinstance(row, BadRow) or made.schema().columns.keys() <= row.keys()
    return rows


def cube(shape: tuple[int, ...] = (5, 6, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 1, shape).astype(np.float32)


def write_cube(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["Cube/Images"] = values
        file["Cube/Wavelength"] = np.linspace(450, 900, len(values))


# --- the scale of the models


def test_log_reflectance_has_the_gold_values() -> None:
    """DOMAINS.md section 7, and S2.c for the other bands."""
    values = np.array([[0.0005, 0.1, 1.0], [0.5, 0.0001, 0.0]], np.float32).reshape(2, 1, 3)
    before = values.copy()
    scaled, background = log_reflectance(values)
    assert scaled[0].ravel().tolist() == pytest.approx([1, 2 / 3, 1], abs=1e-6)
    assert scaled[1].ravel().tolist() == pytest.approx([1, -1 / 3, -1], abs=1e-6)
    assert background.tolist() == [[True, False, False]]
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(values, before)


# --- rows


def test_a_cube_of_a_table(tmp_path: Path) -> None:
    values = cube()
    values[0, 0, 0] = 0
    write_cube(tmp_path / "P0001" / "a.h5", values)
    Image.fromarray(np.full((6, 8, 3), 7, np.uint8)).save(tmp_path / "P0001" / "a_rgb.png")
    (tmp_path / "d.csv").write_text(
        "ID,label,hs_file,rgb_file\nP0001,GA,P0001/a.h5,P0001/a_rgb.png\nP0001,GA,P0001/a.h5,\n"
    )
    row, without = rows_of(tmp_path)
    assert (row["sample_id"], row["group"], row["patient_id"], row["label"]) == (
        *("P0001/a.h5", "P0001", "P0001"),
        "GA",
    )
    expected = (np.log10(values.astype(np.float64).clip(1e-6)) + 3) / 3
    expected[:, 0, 0] = 1
    np.testing.assert_allclose(row["cube"], expected, atol=1e-6)
    assert row["cube"].dtype == np.float32
    assert row["measured"].dtype == np.uint8
    assert row["measured"].sum() == 6 * 8 - 1
    assert row["measured"][0, 0] == 0
    assert not row["classes"].any()
    np.testing.assert_allclose(row["wavelengths_nm"], np.linspace(450, 900, 5))
    assert np.asarray(Image.open(io.BytesIO(row["rgb"]))).tolist() == np.full((6, 8, 3), 7).tolist()
    assert without["rgb"] == b""
    np.testing.assert_array_equal(rows_of(tmp_path, **KEPT)[0]["cube"], values)
    chosen = rows_of(tmp_path, bands=[1, 4], **KEPT)[0]
    np.testing.assert_array_equal(chosen["cube"], values[[1, 4]])
    assert chosen["wavelengths_nm"].tolist() == [562.5, 900]
    assert task(bands=[1, 4]).schema().columns["cube"].shape == (2, None, None)


def test_an_rgb_file_that_is_no_png_is_refused(tmp_path: Path) -> None:
    write_cube(tmp_path / "a.h5", cube())
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "d.csv").write_text("ID,label,hs_file,rgb_file\n1,GA,a.h5,a.png\n")
    with pytest.raises(BadRowError, match=r"a\.png' cannot be read as PNG"):
        rows_of(tmp_path)


def test_scenes_in_tiles(tmp_path: Path) -> None:
    scene = np.random.default_rng(0).integers(1000, 9000, (5, 7, 4)).astype(np.uint16)
    truth = np.arange(35, dtype=np.uint8).reshape(5, 7)
    scipy.io.savemat(tmp_path / "Farm_corrected.mat", {"farm": scene})
    scipy.io.savemat(tmp_path / "Farm_gt.mat", {"farm_gt": truth})
    tiles = rows_of(tmp_path, tile=4, scale=1e-4, **KEPT)
    assert [row["sample_id"] for row in tiles] == [
        f"Farm_corrected:{top}:{left}" for top in (0, 4) for left in (0, 4)
    ]
    assert {row["group"] for row in tiles} == {row["patient_id"] for row in tiles} == {"Farm"}
    last = tiles[-1]
    assert last["cube"].shape == (4, 4, 4)
    np.testing.assert_allclose(last["cube"][:, :1, :3], np.moveaxis(scene[4:, 4:], -1, 0) * 1e-4, rtol=1e-6)
    assert not last["cube"][:, 1:].any()
    np.testing.assert_array_equal(last["classes"][:1, :3], truth[4:, 4:])
    assert last["measured"].sum() == 3
    assert np.isnan(last["wavelengths_nm"]).all()
    assert task(tile=4).schema().columns["cube"].shape == (None, 4, 4)
    split = rows_of(tmp_path, tile=4, scale=1e-4, split_by="row", bands=[0, 3])
    assert [row["group"] for row in split] == [row["sample_id"] for row in tiles]
    np.testing.assert_allclose(
        split[0]["cube"], (np.log10(np.moveaxis(scene[:4, :4, [0, 3]], -1, 0) * 1e-4) + 3) / 3, rtol=1e-5
    )
    with pytest.raises(BadRowError, match="band 4 is asked for, but the cube has 4 bands"):
        rows_of(tmp_path, tile=4, bands=[4], **KEPT)
    with pytest.raises(
        BadRowError, match=r"Farm_corrected\.mat' holds values up to .*; set scale, e\.g\. 1e-4"
    ):
        rows_of(tmp_path, tile=4)


def test_single_files(tmp_path: Path) -> None:
    write_cube(tmp_path / "P1" / "a.hdf5", cube(seed=1))
    (tmp_path / "P1" / "deep").mkdir()
    np.save(tmp_path / "P1" / "deep" / "b.npy", cube(seed=2).astype(np.float64))
    np.save(tmp_path / "c.npy", np.asfortranarray(cube(seed=3)))
    rows = rows_of(tmp_path, **KEPT)
    assert [(row["sample_id"], row["group"]) for row in rows] == [
        *(("P1/a.hdf5", "P1"), ("P1/deep/b.npy", "P1")),
        ("c.npy", "c"),
    ]
    for seed, row in enumerate(rows, 1):
        np.testing.assert_array_equal(row["cube"], cube(seed=seed))
        assert row["cube"].dtype == np.float32
        assert row["measured"].all()
    assert rows[0]["wavelengths_nm"][0] == 450
    assert np.isnan(rows[1]["wavelengths_nm"]).all()
    np.save(tmp_path / "P1" / "deep" / "b.npy", np.moveaxis(cube(seed=2), 0, -1))
    np.testing.assert_array_equal(rows_of(tmp_path, band_axis="last", **KEPT)[1]["cube"], cube(seed=2))


def test_single_cubes_in_tiles(tmp_path: Path) -> None:
    values = cube((3, 5, 7))
    write_cube(tmp_path / "P1" / "a.h5", values)
    np.save(tmp_path / "b.npy", np.moveaxis(values, 0, -1))
    rows = rows_of(tmp_path, tile=4, bands=[0, 2], band_axis="last", split_by="block", block=4, **KEPT)
    places = [(top, left) for top in (0, 4) for left in (0, 4)]
    assert [row["sample_id"] for row in rows] == [
        f"{name}:{top}:{left}" for name in ("P1/a.h5", "b.npy") for top, left in places
    ]
    assert len({row["group"] for row in rows}) == 8
    for number in (0, 1):
        tiles = rows[4 * number : 4 * number + 4]
        halves = [np.concatenate([row["cube"] for row in tiles[i : i + 2]], 2) for i in (0, 2)]
        whole = np.concatenate(halves, 1)
        np.testing.assert_array_equal(whole[:, :5, :7], values[[0, 2]])
        assert not whole[:, 5:].any()
        assert [row["measured"].sum() for row in tiles] == [16, 12, 4, 3]
    (tmp_path / "P1" / "a.h5").write_bytes(b"no file")
    assert isinstance(rows_of(tmp_path, tile=4, band_axis="last")[0], BadRow)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([{"a": 1}], dtype=object), "pickled objects, which are not read"),
        (np.zeros((3, 4)), r"float64 of the shape \[3, 4\]; a cube has numbers on 3 axes"),
        (np.zeros((3, 0, 4)), r"shape \[3, 0, 4\]"),
        (np.full((1, 2, 2), 1j), "complex128"),
        (np.full((1, 2, 2), np.nan), "4 of 4 values that are not finite"),
    ],
)
def test_npy_files_that_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", values)
    (row,) = read_cube_files(tmp_path)
    with pytest.raises(BadRowError, match=rf"a\.npy'.*{words}"):
        load_npy_cube(row)


def test_npy_files_that_are_cut_short_or_vanished(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, cube())
    (row,) = read_cube_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadRowError, match=r"a\.npy': .*cut off"):
        load_npy_cube(row)
    path.unlink()
    with pytest.raises(BadRowError, match=r"a\.npy': .*No such file"):
        load_npy_cube(row)


def test_folders_without_cubes_and_links_out_of_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        rows_of(tmp_path / "nothing")
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(InputError, match=r"raw' holds no cube; files end in \.h5, \.hdf5, \.npy"):
        rows_of(raw)
    np.save(tmp_path / "b.npy", cube())
    (raw / "b.npy").symlink_to(tmp_path / "b.npy")
    (bad,) = rows_of(raw)
    assert "link out of" in bad.reason
    scipy.io.savemat(raw / "s.mat", {"cube": cube()})
    assert rows_of(raw, **KEPT)[0]["patient_id"] == "s"
    assert isinstance(rows_of(raw, layout="file")[0], BadRow)


def test_shrinking_is_pillows(tmp_path: Path) -> None:
    values = cube((3, 10, 10))
    np.save(tmp_path / "a.npy", values)
    (row,) = rows_of(tmp_path, image_size=4, **KEPT)
    expected = [Image.fromarray(band).resize((4, 4), Image.Resampling.BILINEAR) for band in values]
    np.testing.assert_allclose(row["cube"], np.stack([np.asarray(band) for band in expected]), atol=1e-5)
    assert row["measured"].shape == row["classes"].shape == (4, 4)
    assert task(image_size=4).schema().columns["cube"].shape == (None, 4, 4)
    for shape in ((3, 3, 3), (3, 10, 12)):
        np.save(tmp_path / "a.npy", cube(shape))
        with pytest.raises(
            BadRowError, match=f"{shape[1]} × {shape[2]} pixels; image_size=4 shrinks squares"
        ):
            rows_of(tmp_path, image_size=4)


def test_class_maps_shrink_to_the_nearest_pixel(tmp_path: Path) -> None:
    truth = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 3, 0), 3, 1)
    scipy.io.savemat(tmp_path / "s.mat", {"cube": cube((6, 6, 2))})
    scipy.io.savemat(tmp_path / "s_gt.mat", {"gt": truth})
    assert rows_of(tmp_path, image_size=2, **KEPT)[0]["classes"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("bands", [[], [2, 1], [1, 1], [-1, 2], "some"])
def test_bands_are_increasing_numbers(bands: object) -> None:
    with pytest.raises(ValidationError):
        task(bands=bands)


@pytest.mark.parametrize(
    ("name", "bands", "scale"),
    [("indian_pines", 200, 1e-4), ("samson", 156, 1.0), ("muufl_gulfport", 64, 1.0)],
)
def test_the_real_scenes(shared_data: Path, name: str, bands: int, scale: float) -> None:
    folder = shared_data / "hyperspectral" / name
    (row,) = rows_of(folder, scale=scale, **KEPT)
    stored = scipy.io.loadmat(next(path for path in folder.glob("*.mat") if "_gt" not in path.name))
    scene = stored["indian_pines_corrected" if name == "indian_pines" else "cube"]
    np.testing.assert_allclose(row["cube"], np.moveaxis(scene, -1, 0) * scale, rtol=1e-6)
    assert len(row["cube"]) == bands
    if name == "indian_pines":
        assert np.count_nonzero(row["classes"]) == 10249
        tiles = rows_of(folder, scale=scale, tile=29, split_by="row")
        assert len(tiles) == len({tile["group"] for tile in tiles}) == 25
        assert sum(np.count_nonzero(tile["classes"]) for tile in tiles) == 10249
        assert 0.6 < np.median([tile["cube"].min() for tile in tiles]) < np.max(tiles[0]["cube"]) <= 1


# --- batches


def test_collate_owns_its_memory_and_hides_padding() -> None:
    columns = {
        **{name: np.array(["a", "b"], dtype=object) for name in ("sample_id", "group", "label")},
        "rgb": np.array([b"png", b""], dtype=object),
        "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "wavelengths_nm": np.full((2, 3), np.nan, np.float32),
        "measured": np.array([[[1, 0], [1, 1]]] * 2, np.uint8),
        "classes": np.full((2, 2, 2), 5, np.int16),
        "valid": np.array([True, False]),
        "position": np.array([7, 9]),
    }
    for column in columns.values():
        column.flags.writeable = False  # as a memory map is
    batch = task().collate(columns)
    assert torch.equal(batch.cube_BCHW, torch.arange(24.0).reshape(2, 3, 2, 2))
    assert batch.cube_BCHW.data_ptr() != columns["cube"].ctypes.data
    assert batch.measured_BHW.tolist() == [[[True, False], [True, True]], [[False] * 2] * 2]
    assert batch.classes_BHW.dtype == torch.int16
    assert (batch.rgb, batch.label, batch.sample_id) == ([b"png", b""], ["a", "b"], ["a", "b"])
    assert batch.position_B.tolist() == [7, 9]


# --- synthetic retinas


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SynthReport]:
    out = tmp_path_factory.mktemp("retina") / "raw"
    return out, task().synth(out, "tiny", seed=0)


def test_synth_is_the_layout_of_the_real_cubes(tiny: tuple[Path, SynthReport]) -> None:
    """Read by pandas, h5py and Pillow alone, against DOMAINS.md S2.c."""
    out, report = tiny
    table = pd.read_csv(out / "dataset.csv")
    assert list(table) == ["ID", "label", "hs_file", "rgb_file"]
    assert len(table) == report.num_rows == 92
    assert set(table["label"]) <= set(retina.LABELS)
    assert table["label"].nunique() >= 4
    assert (table.groupby("ID")["label"].nunique() == 1).all()
    assert 25 < table["ID"].nunique() < 60
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= 20e6
    for row in table.itertuples():
        assert Path(row.hs_file).parent.name[:5] == row.ID
        assert row.rgb_file == row.hs_file.replace(".h5", "_rgb.png")
    with h5py.File(out / table["hs_file"][0], locking=False) as file:
        values, nm = file["/Cube/Images"][:], file["/Cube/Wavelength"][:]
    assert (values.dtype, values.shape, len(nm)) == (np.float32, (30, 40, 40), 30)
    assert (nm[0], nm[-1]) == (450, 900)
    inside = values[0] > 0
    assert 0.7 < inside.mean() < 0.8  # a circle of radius 0.98 covers 75 % of its square
    assert (values[:, inside] >= 2e-3).all()
    assert (values[:, ~inside] == 0).all()
    assert values.max() <= 1
    image = Image.open(out / table["rgb_file"][0])
    assert (image.mode, image.size) == ("RGB", (40, 40))
    red, green, blue = np.asarray(image)[inside].mean(axis=0)
    assert red > green > blue  # a fundus is orange


def test_the_reader_returns_what_was_written(tiny: tuple[Path, SynthReport]) -> None:
    rows = rows_of(tiny[0], **KEPT)
    assert len(rows) == tiny[1].num_rows
    for row in rows[::20]:
        with h5py.File(row["path"], locking=False) as file:
            np.testing.assert_array_equal(row["cube"], file["/Cube/Images"][:])
        assert row["rgb"] == Path(row["rgb_path"]).read_bytes()


def test_the_same_seed_writes_the_same_bytes(tiny: tuple[Path, SynthReport], tmp_path: Path) -> None:
    assert task().synth(tmp_path / "again", "tiny", seed=0) == tiny[1]
    names = [path.relative_to(tiny[0]).as_posix() for path in tiny[0].rglob("*") if path.is_file()]
    assert len(names) == 2 * 92 + 1
    assert filecmp.cmpfiles(tiny[0], tmp_path / "again", names, shallow=False)[0] == names
    assert task().synth(tmp_path / "other", "tiny", seed=1) != tiny[1]


def test_the_report_holds_for_who_measures_it(tiny: tuple[Path, SynthReport]) -> None:
    """Chance and floor again from the files, the floor by scikit-learn with tokens hidden as it says."""
    out, report = tiny
    assert report.metric == "mse_masked"
    assert 0 < report.oracle < 0.1 * report.floor < report.floor < 0.7 * report.chance
    rows = rows_of(out)
    split_of = assign_splits([row["group"] for row in rows], SplitsConfig(), 0)
    spectra = {
        train: [
            row["cube"][:, row["measured"] == 1].astype(np.float64)
            for row in rows
            if (split_of[row["group"]] == "train") == train
        ]
        for train in (True, False)
    }
    fitted, held_out = np.concatenate(spectra[True], axis=1), np.concatenate(spectra[False], axis=1)
    chance = ((held_out - fitted.mean(axis=1, keepdims=True)) ** 2).mean()
    assert report.chance == pytest.approx(chance, rel=0.15)
    rng, total, count = np.random.default_rng(0), 0.0, 0
    for _ in range(60):  # the bands that a pixel shows are five at a time, each five with probability 0.2
        seen = np.repeat(rng.random(6) > synth.HIDDEN, 5)
        if seen.all():
            continue
        guess = fitted[~seen].mean(axis=1, keepdims=True)
        if seen.any():
            guess = LinearRegression().fit(fitted[seen].T, fitted[~seen].T).predict(held_out[seen].T).T
        total, count = (
            total + ((held_out[~seen] - guess) ** 2).sum(),
            count + guess.shape[0] * held_out.shape[1],
        )
    assert report.floor == pytest.approx(total / count, rel=0.25)


def test_the_floor_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.uniform(0.2, 0.5, (retina.NUM_BANDS, 4))
    absorbances = mixing @ rng.random((2, 4, 400))
    cubes = 10 ** -absorbances.reshape(2, retina.NUM_BANDS, 20, 20)
    floor = synth._Floor()
    floor.add(cubes[0])
    fitted, asked = (log_reflectance(c)[0].reshape(retina.NUM_BANDS, -1).astype(np.float64) for c in cubes)
    seen = np.arange(retina.NUM_BANDS) % 3 == 0
    model = LinearRegression().fit(fitted[seen].T, fitted[~seen].T)
    expected = (asked[~seen] - model.predict(asked[seen].T).T) ** 2
    linear, constant = floor.squared_errors(asked, seen)
    assert linear.mean() == pytest.approx(expected.mean(), abs=2e-6)
    assert constant.mean() == pytest.approx(((asked - fitted.mean(1, keepdims=True))[~seen] ** 2).mean())
    unseen, _ = floor.squared_errors(asked, np.zeros(retina.NUM_BANDS, dtype=bool))
    np.testing.assert_allclose(unseen, (asked - fitted.mean(1, keepdims=True)) ** 2)


def test_80_percent_of_the_tokens_are_hidden() -> None:
    assert synth.draw_hidden(2400, np.random.default_rng(0)).sum() == 1920  # DOMAINS.md S2.a: 480 are kept
    masks = np.array([synth.draw_hidden(10, np.random.default_rng(i)) for i in range(500)])
    assert masks.mean(axis=0) == pytest.approx(np.full(10, 0.8), abs=0.06)


@pytest.mark.parametrize(("size", "limit"), [("tiny", 20e6), ("small", 500e6), ("full", 6e9)])
def test_sizes_keep_to_their_bounds(size: str, limit: float) -> None:
    spec = synth.SYNTH_SIZES[size]
    rgb_and_headers = 3 * spec.side**2 + 5000  # noise hardly compresses
    assert 0.75 * limit < spec.num_cubes * (30 * spec.side**2 * 4 + rgb_and_headers) <= limit
    assert spec.side % spec.patch == 0
    if size == "full":
        assert (spec.side, spec.patch) == (500, 25)


def test_noise_is_as_strong_as_it_says() -> None:
    rng = np.random.default_rng(0)
    noisy, clean = retina.Retina("All", rng).photograph(100, rng)
    inside = (clean[0] > 0) & (clean.max(axis=0) < 0.9)
    relative = (noisy[:, inside] / clean[:, inside] - 1).std(axis=1)
    middle, ends = relative[14:16].mean(), relative[[0, -1]].mean()
    assert (middle, ends) == pytest.approx((retina.NOISE, 2 * retina.NOISE), rel=0.05)
