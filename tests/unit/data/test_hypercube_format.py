"""The hypercube reader against files written by h5py and Pillow: values, the table, what is refused."""

import csv
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats import cube_hdf5
from voxray.data.formats.hypercube import SPECTRALEYE_BANDS, load_hypercube, load_rgb, read_hypercubes

HEADER = "ID,label,hs_file,rgb_file"
NANOMETRES = np.linspace(450, 900, 6)


def cube(seed: int = 0, shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def write_cube(path: Path, values: np.ndarray, wavelengths: np.ndarray | None = NANOMETRES, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("Cube/Images", data=values, **how)
        if wavelengths is not None:
            file["Cube/Wavelength"] = wavelengths
    return path


def write_table(folder: Path, *lines: str, header: str = HEADER, name: str = "dataset.csv") -> None:
    (folder / name).write_text("\n".join([header, *lines]) + "\n")


def read(folder: Path, **how) -> list:
    return list(read_hypercubes(folder, **how))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    write_cube(tmp_path / "P0001" / "a.h5", cube())
    write_table(tmp_path, "P0001,AMD,P0001/a.h5,")
    return tmp_path


def test_a_row_and_its_cube(one: Path) -> None:
    (row,) = read(one)
    assert (row["sample_id"], row["patient_id"], row["label"]) == ("P0001/a.h5", "P0001", "AMD")
    assert row["origin"] == "dataset.csv row 2"
    assert "split" not in row
    loaded = load_hypercube(pickle.loads(pickle.dumps(row)))
    assert loaded["cube"].dtype == np.float32
    assert loaded["cube"].flags.c_contiguous
    np.testing.assert_array_equal(loaded["cube"], cube())
    np.testing.assert_array_equal(loaded["wavelengths_nm"], NANOMETRES.astype(np.float32))
    assert row.items() <= loaded.items()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
def test_a_table_that_pandas_wrote(tmp_path: Path, quoting: int) -> None:
    files = ["P1/a.h5", "P1/b, second eye.h5", "P2/ä.h5"]
    table = pd.DataFrame(
        {
            "ID": [1, 1, 2],
            "label": ["AMD", 'GA, "late"', "None"],
            "hs_file": files,
            "rgb_file": [np.nan, np.nan, np.nan],
            "age": [70.5, 71.0, np.nan],
        }
    )
    table.to_csv(tmp_path / "dataset.csv", index=False, quoting=quoting)
    for seed, file in enumerate(files):
        write_cube(tmp_path / file, cube(seed))
    rows = read(tmp_path)
    assert [row["patient_id"] for row in rows] == ["1", "1", "2"]
    assert [row["label"] for row in rows] == table["label"].tolist()
    assert [row["rgb_path"] for row in rows] == [""] * 3
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(load_hypercube(row)["cube"], cube(seed))


@pytest.mark.parametrize("dtype", ["float64", "uint16", ">f4", "float16"])
def test_stored_types_and_compressed_chunks(one: Path, dtype: str) -> None:
    values = (cube() * 100).astype(dtype)
    write_cube(one / "P0001" / "a.h5", values, chunks=(2, 5, 4), compression="gzip", shuffle=True)
    np.testing.assert_array_equal(load_hypercube(read(one)[0])["cube"], values.astype(np.float32))


def test_listing_opens_no_cube(one: Path) -> None:
    (one / "P0001" / "a.h5").write_bytes(b"no HDF5 at all")
    (row,) = read(one)
    with pytest.raises(BadRowError, match=r"a\.h5': cannot be read"):
        load_hypercube(row)


def test_bands_are_chosen_with_their_wavelengths(tmp_path: Path) -> None:
    assert len(SPECTRALEYE_BANDS) == 30
    np.testing.assert_array_equal(SPECTRALEYE_BANDS, np.r_[0:58:2, 80])
    raw, nm = cube(shape=(81, 3, 2)), np.linspace(450, 900, 81)
    write_cube(tmp_path / "a.h5", raw, nm)
    write_table(tmp_path, "P1,All,a.h5,")
    loaded = load_hypercube(read(tmp_path, bands=SPECTRALEYE_BANDS)[0])
    np.testing.assert_array_equal(loaded["cube"], raw[np.r_[0:58:2, 80]])
    np.testing.assert_array_equal(loaded["wavelengths_nm"], nm[np.r_[0:58:2, 80]].astype(np.float32))
    with pytest.raises(BadRowError, match="band 81 is asked for, but the cube has 81 bands"):
        load_hypercube(read(tmp_path, bands=[0, 81])[0])


@pytest.mark.parametrize("bands", [[], [-1, 2], [2, 1], [1, 1]])
def test_bands_that_are_no_increasing_indices(one: Path, bands: list[int]) -> None:
    with pytest.raises(InputError, match="increasing indices"):
        read(one, bands=bands)


def test_another_dataset_and_no_wavelengths(one: Path) -> None:
    with h5py.File(one / "P0001" / "a.h5", "w") as file:
        file["reflectance"] = cube(1)
    loaded = load_hypercube(read(one, dataset="/reflectance")[0])
    np.testing.assert_array_equal(loaded["cube"], cube(1))
    assert loaded["wavelengths_nm"].shape == (6,)
    assert np.isnan(loaded["wavelengths_nm"]).all()
    with pytest.raises(BadRowError, match=r"'Cube' is missing; '/' holds reflectance"):
        load_hypercube(read(one)[0])


@pytest.mark.parametrize(
    ("wavelengths", "words"),
    [
        (np.linspace(450, 900, 4), "6 bands on its first axis, but '/Cube/Wavelength' has 4"),
        (NANOMETRES / 1000, "0.45 to 0.9, which are no nanometres"),
        (np.full(6, np.nan), "no nanometres"),
        (np.full((6, 1), 500.0), "1 axes"),
    ],
)
def test_wavelengths_that_do_not_fit(one: Path, wavelengths: np.ndarray, words: str) -> None:
    write_cube(one / "P0001" / "a.h5", cube(), wavelengths)
    with pytest.raises(BadRowError, match=words):
        load_hypercube(read(one)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(one: Path, value: float) -> None:
    values = cube().astype(np.float64)
    values[1, 2, 3] = value
    write_cube(one / "P0001" / "a.h5", values)
    with pytest.raises(BadRowError, match=r"a\.h5' holds 1 of 120 values that are not finite"):
        load_hypercube(read(one)[0])


# --- what lies elsewhere or is no array


def _external_link(file: h5py.File) -> None:
    file["Cube/Images"] = h5py.ExternalLink("outside.h5", "/Cube/Images")


def _external_group(file: h5py.File) -> None:
    file["Cube"] = h5py.ExternalLink("outside.h5", "/Cube")


def _soft_link_to_external(file: h5py.File) -> None:
    file["real"] = h5py.ExternalLink("outside.h5", "/Cube/Images")
    file["Cube/Images"] = h5py.SoftLink("/real")


def _raw_storage(file: h5py.File) -> None:
    file.create_dataset("Cube/Images", (6, 5, 4), "f4", external=[("secret.bin", 0, 480)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6, 5, 4), "f4")
    layout[:] = h5py.VirtualSource("outside.h5", "/Cube/Images", (6, 5, 4))
    file.create_virtual_dataset("Cube/Images", layout)


def _references(file: h5py.File) -> None:
    file.create_dataset("Cube/Images", (6, 5, 4), h5py.ref_dtype)


def _ragged(file: h5py.File) -> None:
    file.create_dataset("Cube/Images", (6, 5, 4), h5py.vlen_dtype(np.float32))


def _complex(file: h5py.File) -> None:
    file.create_dataset("Cube/Images", (6, 5, 4), "c8")


def _group(file: h5py.File) -> None:
    file.create_group("Cube/Images")


def _flat(file: h5py.File) -> None:
    file["Cube/Images"] = np.zeros((6, 5))


def _empty(file: h5py.File) -> None:
    file["Cube/Images"] = np.zeros((6, 0, 4))


def _huge(file: h5py.File) -> None:
    file.create_dataset("Cube/Images", (30, 2**20, 2**20), "f4", chunks=(1, 64, 64))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_external_link, "'Images' is a link"),
        (_external_group, "'Cube' is a link"),
        (_soft_link_to_external, "links are refused"),
        (_raw_storage, "keeps its values in other files"),
        (_virtual, "keeps its values in other files"),
        (_references, "floats are needed"),
        (_ragged, "floats are needed"),
        (_complex, "floats are needed"),
        (_group, "is no dataset"),
        (_flat, r"shape \(6, 5\); 3 axes"),
        (_empty, r"shape \(6, 0, 4\)"),
        (_huge, "claims 122,880.0 GiB"),
    ],
)
def test_what_is_refused(one: Path, write, words: str) -> None:
    path = one / "P0001" / "a.h5"
    write_cube(path.with_name("outside.h5"), cube())
    path.with_name("secret.bin").write_bytes(cube().tobytes())
    with h5py.File(path, "w") as file:
        write(file)
    with pytest.raises(BadRowError, match=words) as error:
        load_hypercube(read(one)[0])
    assert str(path) in str(error.value)


def test_the_size_limit_is_the_arrays(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cube_hdf5, "MAX_ARRAY_BYTES", cube().nbytes)
    load_hypercube(read(one)[0])
    monkeypatch.setattr(cube_hdf5, "MAX_ARRAY_BYTES", cube().nbytes - 1)
    with pytest.raises(BadRowError, match="claims"):
        load_hypercube(read(one)[0])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_file_that_is_cut_short(one: Path, keep: float) -> None:
    path = write_cube(one / "P0001" / "a.h5", cube(shape=(6, 40, 40)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(BadRowError, match=r"a\.h5': cannot be read"):
        load_hypercube(read(one)[0])


def test_a_damaged_compressed_chunk(one: Path) -> None:
    path = write_cube(one / "P0001" / "a.h5", cube(shape=(6, 40, 40)), compression="gzip", fletcher32=True)
    with h5py.File(path) as file:
        offset = file["Cube/Images"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 20] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadRowError, match=r"a\.h5': cannot be read"):
        load_hypercube(read(one)[0])


def test_a_file_that_vanished(one: Path) -> None:
    (row,) = read(one)
    (one / "P0001" / "a.h5").unlink()
    with pytest.raises(BadRowError, match=r"a\.h5': cannot be read"):
        load_hypercube(row)


# --- the table


def test_windows_paths_the_byte_order_mark_and_further_columns(one: Path) -> None:
    (one / "dataset.csv").write_bytes(
        "\ufeffnote, ID ,label,hs_file,rgb_file,\r\nx,7, GA ,P0001\\a.h5,,\r\n,,,,,\r\n".encode()
    )
    (row,) = read(one)
    assert (row["patient_id"], row["label"], row["sample_id"]) == ("7", "GA", "P0001/a.h5")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (",AMD,P0001/a.h5,", ["'P0001/a.h5'", "no ID"]),
        ("P1,AMD,b.h5,", ["hs_file 'b.h5'", "not below"]),
        ("P1,AMD,,", ["hs_file ''", "relative"]),
        ("P1,AMD,P0001,", ["hs_file 'P0001'", "not below"]),
        ("P1,AMD,../raw/P0001/a.h5,", ["without drive or '..'"]),
        ("P1,AMD,/etc/hostname,", ["without drive or '..'"]),
        ("P1,AMD,C:\\data\\a.h5,", ["without drive or '..'"]),
        ("P1,AMD,P0001/a.h5,a.png", ["rgb_file 'a.png'", "not below"]),
        ("P1,AMD", ["before the column 'hs_file'", "too few cells"]),
    ],
)
def test_bad_rows_say_where_and_why(tmp_path: Path, line: str, words: list[str]) -> None:
    folder = tmp_path / "raw"
    write_cube(folder / "P0001" / "a.h5", cube())
    write_table(folder, "P0,GA,P0001/a.h5,", line)
    good, bad = read(folder)
    assert good["label"] == "GA"
    assert isinstance(bad, BadRow)
    assert bad.origin == "dataset.csv row 3"
    assert all(word in bad.reason for word in words), bad.reason


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    inside, outside = write_cube(raw / "a.h5", cube()), write_cube(tmp_path / "outside" / "b.h5", cube())
    (raw / "b.h5").symlink_to(outside)
    (raw / "folder").symlink_to(outside.parent)
    (raw / "c.h5").symlink_to(inside)
    write_table(raw, "1,All,b.h5,", "1,All,folder/b.h5,", "1,All,c.h5,")
    first, second, third = read(raw)
    assert "link out of" in first.reason
    assert "link out of" in second.reason
    assert third["sample_id"] == "c.h5"


@pytest.mark.parametrize("column", HEADER.split(","))
def test_a_missing_column_is_named(one: Path, column: str) -> None:
    write_table(one, header=HEADER.replace(column, "other"))
    with pytest.raises(InputError, match=rf"dataset\.csv: column '{column}' is missing"):
        read(one)


def test_a_near_name_a_doubled_column_and_no_text(one: Path) -> None:
    write_table(one, header="ID,label,label,hs_files,rgb_file")
    with pytest.raises(InputError) as error:
        read(one)
    assert "'label' comes several times" in error.value.problems[0]
    assert "is 'hs_files' meant?" in error.value.problems[1]
    (one / "dataset.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read(one)
    write_table(one, "1,All,P0001/a.h5,", '"' + "x" * 200_000 + '"')
    with pytest.raises(InputError, match=r"dataset\.csv after row 2: field larger"):
        read(one)


def test_no_table_several_tables_no_folder(one: Path) -> None:
    write_table(one, "9,GA,P0001/a.h5,", name="other.csv")
    with pytest.raises(InputError, match=r"dataset\.csv, other\.csv"):
        read(one)
    assert read(one, table="other.csv")[0]["patient_id"] == "9"
    with pytest.raises(InputError, match=r"no table '\.\./other\.csv'"):
        read(one, table="../other.csv")
    with pytest.raises(InputError, match="holds: none"):
        read(one / "P0001")
    with pytest.raises(InputError, match="no folder"):
        read(one / "nothing")


def test_declared_splits(tmp_path: Path) -> None:
    for name in "abcd":
        write_cube(tmp_path / f"{name}.h5", cube())
    header = f"{HEADER},split"
    write_table(tmp_path, "1,GA,a.h5,,train", "1,GA,b.h5,,train", "2,GA,c.h5,,val", header=header)
    assert [row["split"] for row in read(tmp_path)] == ["train", "train", "val"]
    write_table(tmp_path, "1,GA,a.h5,,train", "2,GA,b.h5,,dev", header=header)
    assert "split 'dev' is unknown" in read(tmp_path)[1].reason
    write_table(tmp_path, "1,GA,a.h5,,train", "1,GA,b.h5,,val", "2,GA,c.h5,,", header=header)
    with pytest.raises(InputError, match=r"'1' is in two splits: .* row 2\) in train, .* row 3\) in val"):
        read(tmp_path)


# --- RGB


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_rgb(one: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(one / "P0001" / "a_rgb.png")
    write_table(one, "1,GA,P0001/a.h5,P0001/a_rgb.png")
    rgb = load_rgb(read(one)[0])["rgb"]
    assert (rgb.dtype, rgb.shape) == (np.uint8, (3, 7, 9))
    grey = np.asarray(image)
    expected = np.stack([grey] * 3) if mode == "L" else pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(rgb, expected)


def test_rgb_that_is_missing_cut_short_16_bit_or_no_png(one: Path) -> None:
    path = one / "P0001" / "a_rgb.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(BadRowError, match=r"a\.h5' has no rgb_file"):
        load_rgb(read(one)[0])
    write_table(one, "1,GA,P0001/a.h5,P0001/a_rgb.png")
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadRowError, match=r"a_rgb\.png' cannot be read as PNG"):
        load_rgb(read(one)[0])
    Image.fromarray(np.full((4, 4), 999, dtype=np.uint16)).save(path)
    with pytest.raises(BadRowError, match="8 bits per channel"):
        load_rgb(read(one)[0])
    Image.fromarray(noise).save(path, format="BMP")
    with pytest.raises(BadRowError, match="cannot be read as PNG"):
        load_rgb(read(one)[0])


def test_the_readers_need_no_torch() -> None:
    # core.task imports torch by itself, so the readers' own imports are what is looked at.
    code = "import voxray.core.task, sys; before = set(sys.modules); import voxray.data.formats.hypercube, "
    code += "voxray.data.formats.scene_mat; print([m for m in set(sys.modules) - before if m[:4] in "
    code += "('torc', 'ray.', 'ray', 'pand')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
