"""The WebDataset reader and its MindEye layer, against tars written by tarfile, numpy and Pillow."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats import webdataset
from voxray.data.formats.mindeye import load_mindeye, read_mindeye
from voxray.data.formats.webdataset import load_sample, read_webdataset

Entry = tuple[str, bytes]


def npy(value: object, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(value), **options)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def image(seed: int, kind: str = "png", side: int = 8) -> tuple[np.ndarray, bytes]:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return pixels, file.getvalue()


def pack(path: Path, entries: list[Entry], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in entries:
            add(tar, name, content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def read(folder: Path, fields: list[str] | None = None) -> list:
    return list(read_webdataset(folder, fields))


def bad(folder: Path, fields: list[str] | None = None) -> BadRow:
    (row,) = [row for row in read(folder, fields) if isinstance(row, BadRow)]
    return row


# --- any WebDataset
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_type_comes_back_exactly(tmp_path: Path, format: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    png, jpg = image(0)[1], image(1, "jpeg")[1]
    entries = [
        ("a.x.npy", npy(x)),
        ("a.f.npy", npy(fortran)),
        ("a.npz", npz(one=x, two=np.array(["è", "b"]))),
        ("a.empty.npy", npy(np.zeros((0, 4), np.int32))),
        ("a.png", png),
        ("a.view.JPG", jpg),
        ("a.txt", "Größe".encode()),
        ("a.json", json.dumps({"k": [1, None]}).encode()),
        ("a.cls", b"-7\n"),
        ("a" * 90 + ".cls", b"1"),
    ]
    pack(tmp_path / "deep" / "s-000.tar", entries, format)
    row, other = read(tmp_path)
    assert (row["sample_id"], row["key"], row["origin"]) == (
        "deep/s-000/a",
        "a",
        "deep/s-000.tar sample 'a'",
    )
    assert not any(isinstance(value, np.ndarray | bytes) for value in row.values())
    found = load_sample(pickle.loads(pickle.dumps(row)))
    for name, expected in (
        ("x.npy", x),
        ("f.npy", fortran),
        ("npz/one", x),
        ("npz/two", np.array(["è", "b"])),
        ("empty.npy", np.zeros((0, 4), np.int32)),
    ):
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
    assert (found["png"], found["view.jpg"]) == (png, jpg)
    assert (found["txt"], found["json"], found["cls"]) == ("Größe", {"k": [1, None]}, -7)
    assert load_sample(other)["cls"] == 1
    assert other["key"] == "a" * 90


def test_samples_are_grouped_by_the_key_before_the_first_dot(tmp_path: Path) -> None:
    names = ["d.e/a.b.cls", "d.e/a.cls", "d.e/ab.cls", "f/a.cls", "._a.cls"]
    pack(tmp_path / "0.tar", [(name, b"1") for name in names])
    pack(tmp_path / "1.tar", [("f/a.cls", b"2")])
    rows = read(tmp_path)
    assert [(row["key"], list(row["members"])) for row in rows] == [
        ("d.e/a", ["b.cls", "cls"]),
        ("d.e/ab", ["cls"]),
        ("f/a", ["cls"]),
        ("f/a", ["cls"]),
    ]
    assert len({row["sample_id"] for row in rows}) == 4
    assert load_sample(rows[3])["cls"] == 2


def test_fields_choose(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [("a.cls", b"1"), ("a.pth", b"?"), ("a.jpg", image(0, "jpeg")[1])])
    (row,) = read(tmp_path, ["png;jpg", "cls"])
    assert list(row["members"]) == ["jpg", "cls"]
    assert "no 'txt', it has cls, jpg, pth" in bad(tmp_path, ["txt"]).reason
    assert "'pth' is of no type that is read" in bad(tmp_path).reason


def test_a_tar_of_the_webdataset_library(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    pixels, _ = image(0)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    with wds.TarWriter(str(tmp_path / "0.tar")) as writer:
        for key in ("a", "b/c"):
            writer.write({"__key__": key, "x.npy": x, "cls": 3, "json": {"k": 1}, "txt": "t", "png": pixels})
    for row, key in zip(read(tmp_path), ("a", "b/c"), strict=True):
        found = load_sample(row)
        np.testing.assert_array_equal(found["x.npy"], x, strict=True)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found["png"]))), pixels)
        assert (found["key"], found["cls"], found["json"], found["txt"]) == (key, 3, {"k": 1}, "t")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("a.cls", b"1"), ("b.cls", b"1"), ("a.txt", b"x")], ["'a'", "stand together"]),
        ([("a.cls", b"1"), ("a.CLS", b"1")], ["'cls' comes twice"]),
        ([("README", b"1")], ["member 'README'", "no extension"]),
        ([("a.pkl", pickle.dumps(1))], ["'pkl'", "no type"]),
    ],
)
def test_bad_samples_say_where_and_why(tmp_path: Path, entries: list[Entry], words: list[str]) -> None:
    pack(tmp_path / "0.tar", entries)
    found = bad(tmp_path)
    assert found.origin.startswith("0.tar ")
    assert all(word in found.origin + found.reason for word in words), found


def test_a_member_over_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 1000)
    pack(
        tmp_path / "0.tar", [("a.txt", b"x" * 1000), ("b.txt", b"x" * 1001), ("c.npz", npz(x=np.zeros(999)))]
    )
    good, over, bomb = read(tmp_path)
    assert len(load_sample(good)["txt"]) == 1000
    assert "'txt' has 1,001 bytes" in over.reason
    with pytest.raises(BadRowError, match="unpacks to"):
        load_sample(bomb)


HUGE = npy(np.zeros(4)).replace(b"(4,), }            ", b"(4000000000000,), }")


@pytest.mark.parametrize(
    ("field", "content", "words"),
    [
        ("x.npy", npy([{"a": 1}], allow_pickle=True), "pickled objects"),
        ("x.npy", npy(np.zeros(2, [("a", "f4")])), "values of the type"),
        ("x.npy", npy(np.zeros(4))[:-1], "promises 32 bytes .*31 follow"),
        ("x.npy", npy(np.zeros(4)) + b"0", "33 follow"),
        ("x.npy", npy(np.zeros(4))[:20], "no .npy array, or cut off"),
        ("x.npy", HUGE, "promises 32,000,000,000,000 bytes"),
        ("x.npy", pickle.dumps([1]), "no .npy array"),
        ("npz", npz(x=np.array([{}], dtype=object)), "pickled objects"),
        ("npz", npz(x=np.arange(900))[:-30], "no .npz, or damaged"),
        ("png", b"GIF89a", "do not start like a png"),
        ("jpg", image(0)[1], "do not start like a jpg"),
        ("txt", b"\xff\xfe", "UTF-8"),
        ("json", b"{", "no JSON"),
        ("json", b"[" * 200_000, "nested too deeply"),
        ("cls", b"one", "no whole number"),
    ],
)
def test_bad_bytes_name_tar_and_member(tmp_path: Path, field: str, content: bytes, words: str) -> None:
    pack(tmp_path / "0.tar", [(f"a.{field}", content)])
    (row,) = read(tmp_path)
    with pytest.raises(BadRowError, match=rf"^0\.tar sample 'a' member '{field}': .*{words}"):
        load_sample(row)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("/etc/a.cls", {}, "leads out"),
        ("../a.cls", {}, "leads out"),
        ("b/../../a.cls", {}, "leads out"),
        ("..\\a.cls", {}, "leads out"),
        ("a.cls", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link or a device"),
        ("a.cls", {"type": tarfile.LNKTYPE, "linkname": "b.cls"}, "link or a device"),
        ("a.cls", {"type": tarfile.FIFOTYPE}, "link or a device"),
        ("a.cls", {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}}, "with holes"),
        ("a.cls", {"pax_headers": {"size": "-1024"}}, "negative size"),
    ],
)
def test_unsafe_members_are_refused(tmp_path: Path, name: str, fields: dict, words: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, name, b"", **fields)
    with pytest.raises(InputError, match=rf"0\.tar': member .*{words}"):
        read(tmp_path)


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    path = pack(tmp_path / "0.tar", [(f"{i}.txt", b"x" * 700) for i in range(3)], tarfile.USTAR_FORMAT)
    content = path.read_bytes()
    for length in [*range(0, 3 * 1536 + 512, 256), 3 * 1536 + 511]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"0\.tar' is .*fetch it again"):
            read(tmp_path)
    path.write_bytes(content[: 3 * 1536 + 512])  # one block of zeros is an end mark
    assert len(read(tmp_path)) == 3


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = pack(tmp_path / "0.tar", [(f"{i}.txt", b"x") for i in range(3)], tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged at byte 1,024"):
        read(tmp_path)


def test_tars_put_together_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "0.tar", [("a.cls", b"1")])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(InputError, match="goes on after its end mark"):
        read(tmp_path)


def test_what_is_no_folder_of_tars(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        read(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read(tmp_path / "nothing")
    (tmp_path / "0.tar").write_bytes(b"hello" * 300)
    with pytest.raises(InputError, match="no tar"):
        read(tmp_path)
    (tmp_path / "0.tar").write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match="unpack it: gunzip"):
        read(tmp_path)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    outside = pack(tmp_path / "outside" / "0.tar", [("a.cls", b"1")])
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "0.tar").symlink_to(outside)
    with pytest.raises(InputError, match="leads out of the folder"):
        read(raw)


def test_a_tar_that_changed_after_it_was_listed(tmp_path: Path) -> None:
    path = pack(tmp_path / "0.tar", [("a.txt", b"x" * 700)])
    (row,) = read(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadRowError, match=r"0\.tar' ends inside 'a\.txt'"):
        load_sample(row)
    path.unlink()
    with pytest.raises(BadRowError, match="No such file"):
        load_sample(row)


# --- MindEye
# -------------------------------------------------------------------------------------------------------


def sample(key: str, picture: int, seed: int, num_voxels: int = 7, **changed: bytes) -> list[Entry]:
    voxels = np.random.default_rng(seed).normal(size=(3, num_voxels))
    members = {
        "coco73k.npy": npy(picture),
        "jpg": image(seed, "jpeg")[1],
        "nsdgeneral.npy": npy(voxels),
        "num_uniques.npy": npy([3]),
        "trial.npy": npy([seed, seed + 1, seed + 2]),
        "wholebrain_3d.npy": npy(np.zeros((3, 2, 2, 2), np.float32)),
    }
    for name, content in changed.items():
        members[name if name == "jpg" else f"{name}.npy"] = content
    return [(f"{key}.{name}", content) for name, content in members.items()]


def mindeye(folder: Path, **changed: bytes) -> BadRow:
    pack(folder / "train" / "train_subj01_0.tar", sample("s0", 0, 0) + sample("s1", 1, 1, **changed))
    good, found = read_mindeye(folder)
    assert good["stimulus_id"] == "nsd00000"
    return found


def test_mindeye_rows(tmp_path: Path) -> None:
    pack(tmp_path / "train" / "train_subj01_0.tar", sample("s0", 72_999, 0) + sample("s1", 5, 1))
    pack(tmp_path / "train" / "train_subj02_0.tar", sample("s0", 5, 2, num_voxels=4))
    pack(tmp_path / "test" / "test_subj01_0.tar", sample("s0", 6, 3))
    rows = list(read_mindeye(tmp_path))
    assert [(row["sample_id"], row["stimulus_id"], row["split"], row["subject"]) for row in rows] == [
        ("subj01/test/s0", "nsd00006", "test", "subj01"),
        ("subj01/train/s0", "nsd72999", "train", "subj01"),
        ("subj01/train/s1", "nsd00005", "train", "subj01"),
        ("subj02/train/s0", "nsd00005", "train", "subj02"),
    ]
    assert (rows[0]["trials"], rows[0]["num_unique"]) == ([3, 4, 5], 3)
    assert [(row["num_repeats"], row["num_voxels"]) for row in rows] == [(3, 7), (3, 7), (3, 7), (3, 4)]
    for row, seed in zip(rows, (3, 0, 1, 2), strict=True):
        found = load_mindeye(pickle.loads(pickle.dumps(row)))
        expected = np.random.default_rng(seed).normal(size=(3, row["num_voxels"])).astype(np.float32)
        np.testing.assert_array_equal(found["voxels"], expected, strict=True)
        decoded = np.asarray(Image.open(io.BytesIO(image(seed, "jpeg")[1])))
        np.testing.assert_array_equal(found["image"], decoded, strict=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"coco73k": npy(73_000)}, "'coco73k.npy' is 73000"),
        ({"coco73k": npy([1, 2])}, "holds 2 numbers"),
        ({"coco73k": npy(1.5)}, "no whole numbers"),
        ({"coco73k": npy(np.nan)}, "no whole numbers"),
        ({"trial": npy(["a"])}, "'trial.npy': .*no whole numbers"),
        ({"num_uniques": npy(4)}, "'num_uniques.npy' is 4, but there are 3 repeats"),
        ({"nsdgeneral": npy(np.zeros(7))}, r"float64 \[7\], not floating point \[repeats, voxels\]"),
        ({"nsdgeneral": npy(np.zeros((3, 8)))}, "8 voxels, but train/train_subj01_0.tar sample 's0'"),
        ({"nsdgeneral": npy([[None]], allow_pickle=True)}, "pickled objects"),
    ],
)
def test_mindeye_bad_samples(tmp_path: Path, changed: dict[str, bytes], words: str) -> None:
    found = mindeye(tmp_path, **changed)
    assert found.origin == "train/train_subj01_0.tar sample 's1'"
    with pytest.raises(ValueError, match=words):
        raise ValueError(found.reason)


def test_mindeye_bad_values(tmp_path: Path) -> None:
    row = mindeye(tmp_path, nsdgeneral=npy(np.array([[0, np.nan, np.inf, 0, 0, 0, 0]] * 3)))
    with pytest.raises(BadRowError, match=r"sample 's1': 6 of 21 values"):
        load_mindeye(row)
    row = mindeye(tmp_path, jpg=image(0, "jpeg")[1][:200])
    with pytest.raises(BadRowError, match=r"sample 's1' member 'jpg': the image cannot be read"):
        load_mindeye(row)


def test_mindeye_stimulus_in_two_splits(tmp_path: Path) -> None:
    pack(tmp_path / "train_subj01_0.tar", sample("s0", 5, 0))
    pack(tmp_path / "test_subj02_0.tar", sample("s9", 5, 1))
    with pytest.raises(
        InputError, match=r"'nsd00005' is in two splits: test_subj02_0.* in test, .*'s0' in train"
    ):
        list(read_mindeye(tmp_path))


def test_mindeye_tar_without_split(tmp_path: Path) -> None:
    pack(tmp_path / "subj01.tar", sample("s0", 5, 0))
    with pytest.raises(InputError, match=r"not named like 'train_subj01_0\.tar'"):
        list(read_mindeye(tmp_path))
