"""Raw files behind a URL: those that the task reads, once, whole, within the limit."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from hub_server import serving
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.core.task import TaskData
from voxray.data import raw_copy
from voxray.data.raw_copy import local_raw
from voxray.tasks.mindeye.spellings import HUB

FILES = {
    "train/train_subj01_0.tar": 3000,
    "train/train_subj02_0.tar": 5000,
    "test/test_subj01_0.tar": 2000,
    "metadata_subj01.json": 10,
    "clip.npz": 40,
    "notes/readme.md": 5,
}
OF_SUBJECT_1 = {"train/train_subj01_0.tar", "test/test_subj01_0.tar", "clip.npz"}


def task(folder: Path, **values: object) -> TaskData:
    keys = {"data.cache_dir": str(folder), "data.prepare.subjects": ["subj01"]} | values
    return task_data("mindeye")(default_config("mindeye", keys, "test").config)


def found(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, size in FILES.items():
        system.pipe(f"/nsd/{name}", bytes(size))
    yield "memory://nsd"
    system.rm("/nsd", recursive=True)


def test_what_the_task_reads_is_copied_once(memory: str, tmp_path: Path) -> None:
    told: list[str] = []
    folder = local_raw(task(tmp_path), memory, told.append)
    assert found(folder) == OF_SUBJECT_1
    assert folder.is_relative_to(tmp_path)
    assert told == [f"copying 3 files, 0.00 GB, of memory://nsd to {folder}"]
    assert local_raw(task(tmp_path), memory, told.append) == folder
    assert len(told) == 1
    (folder / "clip.npz").write_bytes(bytes(7))  # of another size
    local_raw(task(tmp_path, **{"data.prepare.subjects": []}), memory, told.append)
    assert told[1].startswith("copying 2 files")
    assert found(folder) == FILES.keys() - {"metadata_subj01.json", "notes/readme.md"}
    assert (folder / "clip.npz").stat().st_size == 40


def test_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert local_raw(task(tmp_path), "raw/files", print) == Path("raw/files")


def test_what_cannot_be_is_told_before_anything_is_fetched(memory: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has 0\.00 GB, and data\.cache_gb keeps 1e-06; raise it, or take less"
    ):
        local_raw(task(tmp_path, **{"data.cache_gb": 1e-6}), memory, print)
    with pytest.raises(
        InputError, match=r"holds no file that mindeye reads, it holds readme\.md; name the URL"
    ):
        local_raw(task(tmp_path), "memory://nsd/notes", print)
    with pytest.raises(InputError, match=r"'memory://absent' holds nothing, or cannot be reached"):
        local_raw(task(tmp_path), "memory://absent", print)
    with pytest.raises(InputError, match=r"'nowhere://x' cannot be opened"):
        local_raw(task(tmp_path), "nowhere://x", print)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tar"]
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"Not a directory; set data\.cache_dir to a folder that can be written"
    ):
        local_raw(task(tmp_path / "file"), memory, print)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, Counter[str]]]:
    """A web server's folder, of which each file's content comes cut off the first time."""
    root, asked = tmp_path / "served", Counter[str]()
    for name, size in FILES.items():
        (root / "nsd" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "nsd" / name).write_bytes(bytes(size))

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(root))

        def do_GET(self) -> None:
            asked[self.path] += 1
            if self.path.endswith(".tar") and asked[self.path] == 1:
                self.send_response(503)
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/nsd", root, asked
        http.shutdown()
        thread.join()


def test_a_web_servers_folder(
    web: tuple[str, Path, Counter[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, root, asked = web
    monkeypatch.setattr(raw_copy, "FIRST_WAIT_S", 0.0)
    folder = local_raw(task(tmp_path / "cache"), url, print)
    assert found(folder) == OF_SUBJECT_1
    for name in OF_SUBJECT_1:
        assert (folder / name).read_bytes() == (root / "nsd" / name).read_bytes()
    assert asked["/nsd/train/train_subj01_0.tar"] == 2
    assert asked["/nsd/train/train_subj02_0.tar"] == 0


def test_a_server_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'http://127\.0\.0\.1:9/nsd' .*check the URL, that you are online"):
        local_raw(task(tmp_path), "http://127.0.0.1:9/nsd", print)


def test_the_guides_data_in_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_copy, "FIRST_WAIT_S", 0.0)
    with serving(monkeypatch) as hub:
        for name, size in FILES.items():
            hub.put(
                "datasets/pscotti/naturalscenesdataset", f"webdataset_avg_split/{name}", name.encode() * size
            )
        folder = local_raw(task(tmp_path), HUB, print)
        hub.put("datasets/lab/damaged", "train_subj01_0.tar", b"x", stated="0" * 64)
        with pytest.raises(
            InputError, match=f"could not be fetched in 4 tries: .* the hub states {'0' * 64}"
        ):
            local_raw(task(tmp_path), "hf://datasets/lab/damaged", print)
    assert not list(tmp_path.rglob("*.partial-*"))
    assert found(folder) == OF_SUBJECT_1
    assert (folder / "clip.npz").read_bytes() == b"clip.npz" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="check the URL, that you are online and that you are logged in"):
        local_raw(task(tmp_path), HUB.replace("webdataset", "other"), print)
