"""The MAT scene reader against scipy's and h5py's files, v5 and v7.3, and against the real scenes."""

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats import cube_hdf5, scene_mat
from voxray.data.formats.scene_mat import load_scene, read_scenes

ROWS, COLS, BANDS = 7, 5, 3


def cube(seed: int = 0, shape: tuple[int, ...] = (ROWS, COLS, BANDS)) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 9999, shape).astype(np.uint16)


def truth(shape: tuple[int, ...] = (ROWS, COLS)) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 17, shape).astype(np.uint8)


def save_v5(path: Path, **arrays: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, arrays)
    return path


def save_v5_compressed(path: Path, **arrays: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, arrays, do_compression=True)
    return path


CLASSES = {"float64": "double", "float32": "single"}


def save_v73(path: Path, **arrays: np.ndarray) -> Path:
    """Write what MATLAB writes: HDF5 behind a 512-byte header, axes in reverse, the class as an attribute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            dataset = file.create_dataset(name, data=values.T, chunks=True, compression="gzip")
            dataset.attrs["MATLAB_class"] = np.bytes_(CLASSES.get(values.dtype.name, values.dtype.name))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(116) + b"\0" * 8 + b"\x00\x02IM")
    return path


SAVERS = pytest.mark.parametrize("save", [save_v5, save_v5_compressed, save_v73])


def read(folder: Path, **how) -> list:
    return list(read_scenes(folder, **how))


def bad(folder: Path, **how) -> BadRow:
    (row,) = [row for row in read(folder, **how) if isinstance(row, BadRow)]
    return row


@SAVERS
def test_a_scene_with_its_ground_truth(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(tmp_path / "x" / "Pines_corrected.mat", pines=cube())
    save(tmp_path / "x" / "Pines_gt.mat", pines_gt=truth())
    (row,) = read(tmp_path)
    assert (row["sample_id"], row["scene"], row["variable"]) == ("x/Pines_corrected", "x/Pines", "pines")
    assert (row["top"], row["left"], row["height"], row["width"]) == (0, 0, ROWS, COLS)
    assert row["origin"] == "x/Pines_corrected.mat"
    loaded = load_scene(pickle.loads(pickle.dumps(row)))
    assert [loaded[name].dtype for name in ("cube", "labels", "valid")] == [np.float32, np.int16, np.bool_]
    assert loaded["cube"].flags.c_contiguous
    np.testing.assert_array_equal(loaded["cube"], cube().transpose(2, 0, 1))
    np.testing.assert_array_equal(loaded["labels"], truth())
    assert loaded["valid"].all()
    assert loaded["valid"].shape == (ROWS, COLS)


@SAVERS
@pytest.mark.parametrize("tile", [1, 3, 5, 100])
def test_tiles_cover_every_pixel_once(tmp_path: Path, save: Callable[..., Path], tile: int) -> None:
    save(tmp_path / "a.mat", cube=cube(), abundance=cube(1, (ROWS, COLS, 2)))
    save(tmp_path / "a_gt.mat", gt=truth())
    rows = read(tmp_path, tile=tile)
    assert len({row["sample_id"] for row in rows}) == len(rows) == -(-ROWS // tile) * -(-COLS // tile)
    assert {row["scene"] for row in rows} == {"a"}
    whole, labels = np.zeros((BANDS, ROWS, COLS)), np.full((ROWS, COLS), -1)
    count = np.zeros((ROWS, COLS), dtype=int)
    for row in map(load_scene, rows):
        assert row["cube"].shape == (BANDS, tile, tile)
        assert row["labels"].shape == row["valid"].shape == (tile, tile)
        inside_r, inside_c = np.nonzero(row["valid"])
        place = (inside_r + row["top"], inside_c + row["left"])
        count[place] += 1
        whole[:, *place] = row["cube"][:, inside_r, inside_c]
        labels[place] = row["labels"][inside_r, inside_c]
        assert (row["cube"][:, ~row["valid"]] == 0).all()
        assert (row["labels"][~row["valid"]] == 0).all()
    assert (count == 1).all()
    np.testing.assert_array_equal(whole, cube().transpose(2, 0, 1))
    np.testing.assert_array_equal(labels, truth())


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8", "int32"])
@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_stored_types(tmp_path: Path, save: Callable[..., Path], dtype: str) -> None:
    values = cube().astype(dtype)
    save(tmp_path / "a.mat", cube=values)
    np.testing.assert_array_equal(load_scene(read(tmp_path)[0])["cube"], values.transpose(2, 0, 1))


def test_without_ground_truth_nothing_is_labelled(tmp_path: Path) -> None:
    save_v5(tmp_path / "a.mat", cube=cube())
    loaded = load_scene(read(tmp_path)[0])
    np.testing.assert_array_equal(loaded["labels"], np.zeros((ROWS, COLS)))
    assert loaded["labels_path"] == ""


def test_variants_share_their_group_and_names_that_begin_alike_do_not(tmp_path: Path) -> None:
    for name in ("Salinas", "Salinas_corrected", "SalinasA", "PaviaU"):
        save_v5(tmp_path / f"{name}.mat", x=cube())
    save_v5(tmp_path / "Salinas_gt.mat", y=truth())
    save_v5(tmp_path / "SalinasA_gt.mat", y=truth() + np.uint8(1))
    rows = {row["sample_id"]: row for row in read(tmp_path)}
    assert {name: row["scene"] for name, row in rows.items()} == {
        "Salinas": "Salinas",
        "Salinas_corrected": "Salinas",
        "SalinasA": "SalinasA",
        "PaviaU": "PaviaU",
    }
    paths = {name: Path(row["labels_path"]).name for name, row in rows.items()}
    assert paths["Salinas"] == paths["Salinas_corrected"] == "Salinas_gt.mat"
    assert paths["SalinasA"] == "SalinasA_gt.mat"
    assert paths["PaviaU"] == ""


@SAVERS
def test_which_array_is_the_cube(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(tmp_path / "a.mat", first=cube(1), second=cube(2))
    assert "first 7×5×3 uint16, second 7×5×3 uint16" in bad(tmp_path).reason
    assert "no 3-D numeric array 'cube', and not exactly one" in bad(tmp_path).reason
    loaded = load_scene(read(tmp_path, variable="second")[0])
    np.testing.assert_array_equal(loaded["cube"], cube(2).transpose(2, 0, 1))
    assert "no 3-D numeric array 'third'" in bad(tmp_path, variable="third").reason
    save(tmp_path / "a.mat", first=cube(1), cube=cube(2))
    assert read(tmp_path)[0]["variable"] == "cube"
    save(tmp_path / "a.mat", flat=truth())
    assert "it holds flat 7×5 uint8" in bad(tmp_path).reason


def test_cells_structs_text_and_complex_numbers_are_no_cubes(tmp_path: Path) -> None:
    objects = np.empty((2, 2, 2), dtype=object)
    objects[...] = 1.0
    save_v5(tmp_path / "a.mat", cube=objects, names=np.array(["x"], dtype=object), s={"cube": cube()}, t="t")
    assert "it holds no numeric array" in bad(tmp_path).reason
    save_v5(tmp_path / "a.mat", cube=cube() * 1j)
    with pytest.raises(BadRowError, match=r"a\.mat': 'cube' holds complex128"):
        load_scene(read(tmp_path)[0])


@SAVERS
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_values_that_are_not_finite(tmp_path: Path, save: Callable[..., Path], value: float) -> None:
    values = cube().astype(np.float64)
    values[6, 4, 1] = value
    save(tmp_path / "a.mat", cube=values)
    first, *_, last = read(tmp_path, tile=3)
    load_scene(first)
    with pytest.raises(BadRowError, match=r"a\.mat' holds 1 of 6 values that are not finite"):
        load_scene(last)


@SAVERS
@pytest.mark.parametrize("value", [0.5, -1, 40_000, 70_000, np.nan])
def test_labels_that_are_no_classes(tmp_path: Path, save: Callable[..., Path], value: float) -> None:
    labels = truth().astype(np.float64)
    save(tmp_path / "a.mat", cube=cube())
    save(tmp_path / "a_gt.mat", gt=labels)
    np.testing.assert_array_equal(load_scene(read(tmp_path)[0])["labels"], truth())
    labels[3, 2] = value
    save(tmp_path / "a_gt.mat", gt=labels)
    with pytest.raises(BadRowError, match=r"a_gt\.mat' holds values that are no classes"):
        load_scene(read(tmp_path)[0])


@SAVERS
def test_ground_truth_that_does_not_fit(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(tmp_path / "a.mat", cube=cube())
    save(tmp_path / "a_gt.mat", gt=truth().T)
    found = bad(tmp_path)
    assert found.origin == "a.mat"
    assert "has 5 × 7 pixels, the scene 7 × 5" in found.reason
    save(tmp_path / "a_gt.mat", one=truth(), two=truth())
    assert "a_gt.mat' has no 2-D numeric array 'gt'" in bad(tmp_path).reason
    (tmp_path / "a.mat").unlink()
    assert bad(tmp_path) == BadRow(
        "a_gt.mat", "no scene 'a.mat' lies beside this ground truth; add it or rename one"
    )


@SAVERS
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.6, -1])
def test_a_file_that_is_cut_short_is_noticed_when_listed(
    tmp_path: Path, save: Callable[..., Path], keep: float
) -> None:
    path = save(tmp_path / "a.mat", cube=cube(shape=(20, 20, 10)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep >= 0 else -1])
    assert str(path) in bad(tmp_path).reason


@pytest.mark.parametrize("save", [save_v5_compressed, save_v73])
def test_a_damaged_compressed_array(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(tmp_path / "a.mat", cube=cube(shape=(20, 20, 10)))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if save is save_v73:
        with h5py.File(path) as file:
            middle = content.index(file["cube"].id.read_direct_chunk((0, 0, 0))[1]) + 40
    content[middle : middle + 8] = bytes(b ^ 0xFF for b in content[middle : middle + 8])
    (row,) = read(tmp_path)
    path.write_bytes(content)
    with pytest.raises(BadRowError, match=r"a\.mat':? cannot be read"):
        load_scene(row)


@SAVERS
def test_a_file_that_vanished_or_changed(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(tmp_path / "a.mat", cube=cube())
    (row,) = read(tmp_path)
    load_scene(row)
    save(path, cube=cube(5))
    np.testing.assert_array_equal(load_scene(row)["cube"], cube(5).transpose(2, 0, 1))
    path.unlink()
    with pytest.raises(BadRowError, match=r"a\.mat' cannot be read as MAT"):
        load_scene(row)


def test_a_scene_is_read_once_for_all_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_v5(tmp_path / "a.mat", cube=cube())
    calls = []
    loadmat = scipy.io.loadmat
    monkeypatch.setattr(scipy.io, "loadmat", lambda *args, **how: calls.append(args) or loadmat(*args, **how))
    rows = [load_scene(row) for row in read(tmp_path, tile=2)]
    assert len(rows) == 12
    assert len(calls) == 1
    rows[0]["cube"][...] = 0
    np.testing.assert_array_equal(load_scene(read(tmp_path)[0])["cube"], cube().transpose(2, 0, 1))


def test_sizes_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cube_hdf5, scene_mat):
        monkeypatch.setattr(module, "MAX_ARRAY_BYTES", cube().nbytes - 1)
    for save in (save_v5, save_v73):
        save(tmp_path / "a.mat", cube=cube())
        assert "'cube'" in bad(tmp_path).reason
        assert "claims" in bad(tmp_path).reason


# --- v7.3: what lies elsewhere


def _external(file: h5py.File) -> None:
    file["cube"] = h5py.ExternalLink("outside.h5", "/cube")


def _soft(file: h5py.File) -> None:
    file["real"] = h5py.ExternalLink("outside.h5", "/cube")
    file["cube"] = h5py.SoftLink("/real")


def _raw(file: h5py.File) -> None:
    file.create_dataset("cube", (BANDS, COLS, ROWS), "u2", external=[("secret.bin", 0, 210)])
    file["cube"].attrs["MATLAB_class"] = np.bytes_("uint16")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((BANDS, COLS, ROWS), "u2")
    layout[:] = h5py.VirtualSource("outside.h5", "/cube", (BANDS, COLS, ROWS))
    file.create_virtual_dataset("cube", layout)
    file["cube"].attrs["MATLAB_class"] = np.bytes_("uint16")


def _references(file: h5py.File) -> None:
    file.create_dataset("cube", (BANDS, COLS, ROWS), h5py.ref_dtype)
    file["cube"].attrs["MATLAB_class"] = np.bytes_("double")


def _complex(file: h5py.File) -> None:
    file.create_dataset("cube", (BANDS, COLS, ROWS), [("real", "f8"), ("imag", "f8")])
    file["cube"].attrs["MATLAB_class"] = np.bytes_("double")


def _cell(file: h5py.File) -> None:
    file.create_dataset("cube", (BANDS, COLS, ROWS), h5py.ref_dtype)
    file["cube"].attrs["MATLAB_class"] = np.bytes_("cell")


def _not_matlab(file: h5py.File) -> None:
    file["cube"] = cube()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_external, "is a link"),
        (_soft, "is a link"),
        (_raw, "in other files"),
        (_virtual, "in other files"),
        (_references, "floats are needed"),
        (_complex, "floats are needed"),
        (_cell, "no numeric array"),
        (_not_matlab, "no MATLAB_class"),
    ],
)
def test_what_is_refused_in_v73(tmp_path: Path, write: Callable, words: str) -> None:
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["cube"] = cube().T
    (tmp_path / "secret.bin").write_bytes(cube().tobytes())
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        write(file)
    found = bad(tmp_path)
    assert words in found.reason
    assert "a.mat" in found.reason


# --- the folder


def test_old_versions_other_files_and_links(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    save_v5(raw / "a.mat", cube=cube())
    outside = save_v5(tmp_path / "outside" / "b.mat", cube=cube())
    scipy.io.savemat(raw / "b.mat", {"x": truth()}, format="4")
    (raw / "c.mat").write_text("hello" * 100)
    (raw / "d.mat").symlink_to(outside)
    (raw / "e.mat").mkdir()
    (raw / "folder").symlink_to(outside.parent)
    (raw / "notes.txt").write_text("not a scene")
    good, *others = read(raw)
    assert good["sample_id"] == "a"
    assert [row.origin for row in others] == ["b.mat", "c.mat", "d.mat"]
    assert "version 5 or 7.3" in others[0].reason
    assert "version 5 or 7.3" in others[1].reason
    assert "link out of" in others[2].reason


def test_no_folder_no_files_no_tile(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds no file \*\.mat"):
        read(tmp_path)
    with pytest.raises(InputError, match="tile 0"):
        read(tmp_path, tile=0)


# --- the real scenes


def test_the_real_scenes(shared_data: Path) -> None:
    folder = shared_data / "hyperspectral"
    rows = {row["scene"]: row for row in read(folder)}
    assert set(rows) == {"indian_pines/Indian_pines", "muufl_gulfport/muufl_gulfport", "samson/samson"}
    pines = load_scene(rows["indian_pines/Indian_pines"])
    assert pines["cube"].shape == (200, 145, 145)
    assert (pines["cube"].min(), pines["cube"].max()) == (955, 9604)
    assert np.count_nonzero(pines["labels"]) == 10249
    # Published class sizes: Alfalfa 46, Oats 20, Soybean-mintill 2455.
    sizes = np.bincount(pines["labels"].ravel())
    assert (len(sizes), sizes[1], sizes[9], sizes[11]) == (17, 46, 20, 2455)
    for name, shape in (("samson/samson", (156, 95, 95)), ("muufl_gulfport/muufl_gulfport", (64, 90, 90))):
        loaded = load_scene(rows[name])
        assert loaded["cube"].shape == shape
        stored = scipy.io.loadmat(folder / f"{name}.mat")["cube"]
        np.testing.assert_array_equal(loaded["cube"], stored.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["samson", "muufl_gulfport"])
def test_the_linear_mixture_holds_in_our_axes_only(shared_data: Path, name: str) -> None:
    """Abundances × endmembers resemble the scene where rows, columns and bands are what we say they are."""
    folder = shared_data / "hyperspectral" / name
    stored = scipy.io.loadmat(folder / f"{name}.mat")
    mixture_BHW = np.einsum("hwm,mb->bhw", stored["abundance"], stored["endmembers"])
    cube_BHW = load_scene(read(folder)[0])["cube"]
    turned = (cube_BHW.transpose(0, 2, 1), cube_BHW[:, ::-1], cube_BHW[:, :, ::-1], cube_BHW[:, ::-1, ::-1])
    right, *wrong = (np.corrcoef(view.ravel(), mixture_BHW.ravel())[0, 1] for view in (cube_BHW, *turned))
    assert right > max(wrong) + 0.1


def test_tiles_of_indian_pines(shared_data: Path) -> None:
    folder = shared_data / "hyperspectral" / "indian_pines"
    rows = [load_scene(row) for row in read(folder, tile=25)]
    assert len(rows) == 36
    assert {row["cube"].shape for row in rows} == {(200, 25, 25)}
    assert sum(np.count_nonzero(row["valid"]) for row in rows) == 145 * 145
    assert sum(np.count_nonzero(row["labels"]) for row in rows) == 10249
