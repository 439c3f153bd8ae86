"""Runs, studies and datasets on an S3-compatible server (moto's), which is restarted in the middle of a save.

Machines are processes with a cache folder of their own. Needs `moto[server]`.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from voxray.data.location import working_folder
from voxray.data.store import Store
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.mirror import Mirror
from voxray.train.run_folder import RunFolder, run_folder
from voxray.train.worker import train_here

moto = pytest.importorskip("moto.server", reason="needs moto[server]")
pytestmark = pytest.mark.chaos
BUCKET = "lab"
STORAGE = f"s3://{BUCKET}/runs"
WITHIN_S = 300
EXPERIMENT = """
task: voxray.testing.chaos:SlowTiny
data: {{path: {data}}}
model: {{dropout: 0.3, batch_norm: true}}
training: {{epochs: 6, batch_size: 8}}
checkpoints: {{save_every_n_steps: 5}}
logging: {{log_every_n_steps: 1}}
"""
SPACE = """
description: on an object store
experiment: base.yaml
objective: {metric: val/loss, mode: min}
search:
  trials: 6
  max_concurrent: 2
  space:
    training.learning_rate: {loguniform: [1e-4, 1e-1]}
"""


class Server:
    """moto's server on one port; what it holds outlives a restart, since it lies in this process."""

    def __init__(self) -> None:
        self._server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=self.port)
        self._server.start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(server: Server, monkeypatch, tmp_path) -> Server:
    """An empty bucket, and an environment that leads to it, from a machine without a cache."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "lab",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XDG_CACHE_HOME": str(tmp_path / "here"),
    }.items():
        monkeypatch.setenv(name, value)
    for path, method in (("moto-api/reset", "POST"), (BUCKET, "PUT")):
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/{path}", method=method)).close()
    return server


@pytest.fixture
def dataset(tmp_path) -> Path:
    rows = {"train": tiny_rows(80, 1), "val": tiny_rows(20, 2)}
    return write_dataset(tmp_path / "tiny", Tiny(TinyConfig()).schema(), rows, 20)


@pytest.fixture
def experiment(dataset: Path, bucket: Server, tmp_path) -> Path:
    """An experiment whose dataset lies on the server."""
    store = Store.of(f"s3://{BUCKET}/data/tiny")
    for file in dataset.rglob("*"):
        if file.is_file():
            store.upload(file, file.relative_to(dataset).as_posix())
    path = tmp_path / "base.yaml"
    path.write_text(EXPERIMENT.format(data=store.location))
    (tmp_path / "six.yaml").write_text(SPACE)
    return path


def start(machine: Path, *words: object) -> subprocess.Popen[str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "voxray", *map(str, words)], env=keep | {"XDG_CACHE_HOME": str(machine)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def done(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=WITHIN_S)[0]
    assert process.returncode == 0, said[-3000:]
    return said


def weights(run: Path) -> str:
    newest = checkpoint.last(run / "checkpoints")
    assert newest
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def copy_of(machine: Path) -> Path:
    return machine / f"voxray/storage/s3/{BUCKET}/runs/SlowTiny"


def wait_until(condition, process: subprocess.Popen[str], what: str) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.1)


def stored_steps(name: str) -> list[str]:
    files = Store.of(STORAGE).files(f"SlowTiny/{name}/checkpoints")
    return sorted(file.split("/")[0] for file in files if file.endswith("/MANIFEST.json"))


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL a driver and all that it has started, as the end of a machine does."""
    driver = psutil.Process(process.pid)
    for each in [driver, *driver.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()


def test_a_killed_run_goes_on_on_another_machine(experiment, bucket, tmp_path):
    done(start(tmp_path / "alone", "train", experiment, f"storage.path={tmp_path}/runs"))
    driver = start(tmp_path / "one", "train", experiment, f"storage.path={STORAGE}")
    wait_until(lambda: "step-00000020" in stored_steps("base"), driver, "the fourth checkpoint")
    kill(driver)
    said = done(start(tmp_path / "two", "train", experiment, f"storage.path={STORAGE}"))
    assert f"stored at {STORAGE}/SlowTiny/base" in said
    assert "resumed from step-000000" in said
    run = copy_of(tmp_path / "two") / "base"
    assert weights(run) == weights(tmp_path / "runs/SlowTiny/base")
    said = done(start(tmp_path / "three", "train", experiment, f"storage.path={STORAGE}"))
    assert "is finished already" in said
    assert weights(copy_of(tmp_path / "three") / "base") == weights(run)


def test_a_killed_study_goes_on_on_another_machine(experiment, bucket, tmp_path):
    space, journal = tmp_path / "six.yaml", "SlowTiny/studies/six/journal.log"
    driver = start(tmp_path / "one", "tune", space, f"storage.path={STORAGE}", "training.epochs=2")

    def told() -> int:
        """Trials whose end the store's journal has."""
        store = Store.of(STORAGE)
        if "journal.log" not in store.files("SlowTiny/studies/six"):
            return 0
        operations = [json.loads(line) for line in store.fetch(journal).splitlines()]
        return sum(each["op_code"] == 6 and each["state"] == 1 for each in operations)

    wait_until(lambda: told() >= 2, driver, "the second trial's end")
    kill(driver)
    before = told()
    words = ("tune", space, f"storage.path={STORAGE}", "training.epochs=2", "--json")
    out = done(start(tmp_path / "two", *words))
    rows = json.loads(out[out.index("[\n") :] if "[\n" in out else out[out.index("[") :])
    assert [(row["trial"], row["state"]) for row in rows] == [(index, "complete") for index in range(6)]
    assert told() == 6
    assert sum(f"trial {index:>3}  " in out for index in range(6)) == 6 - before  # none was repeated
    files = Store.of(STORAGE).files("SlowTiny/studies/six")
    assert {"study.json", "best.yaml", "journal.log"} <= set(files)
    for index in range(6):
        assert f"trials/{index:04d}/config.json" in files
        assert any(name.startswith(f"trials/{index:04d}/checkpoints/step-") for name in files)


def config_of(dataset: Path) -> TinyConfig:
    values = {
        "task": "voxray.testing.tiny:Tiny",
        "experiment_name": "saved",
        "data": {"path": str(dataset)},
        "storage": {"path": STORAGE},
        "training": {"batch_size": 8, "epochs": 1},
        "checkpoints": {"save_every_n_steps": 5, "asynchronous": False, "keep": 9},
    }
    return TinyConfig.model_validate(values)


def newest_elsewhere(config: TinyConfig, monkeypatch, cache: Path) -> Path:
    """The newest checkpoint that another machine finds; it loads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    mirror = Mirror.of(STORAGE, working_folder(STORAGE) / "Tiny/saved")
    assert mirror
    mirror.pull()
    found = checkpoint.newest(mirror.folder / "checkpoints", pytest.fail)
    assert found
    checkpoint.load(found)
    return found


@pytest.mark.parametrize("down_s", [1.0, None])
def test_the_server_is_restarted_in_the_middle_of_a_save(down_s, bucket, dataset, tmp_path, monkeypatch):
    """It is gone after two files of the second checkpoint: for a second, or until that save has given up."""
    upload, sent, seen = Store.upload, [], []
    config = config_of(dataset)

    def upload_with_a_restart(self, source: Path, file: str) -> None:
        if "step-00000010" in file and "step-00000010" not in str(seen):
            sent.append(file)
            if len(sent) == 3:
                bucket.stop()
                if down_s:
                    threading.Timer(down_s, bucket.start).start()
        upload(self, source, file)

    tell = Mirror.push_or_tell

    def push_or_tell(self, say) -> None:
        def heard(text: str) -> None:
            say(text)
            seen.append(text)
            bucket.start()
            home = os.environ["XDG_CACHE_HOME"]
            seen.append(newest_elsewhere(config, monkeypatch, tmp_path / "meanwhile").name)
            monkeypatch.setenv("XDG_CACHE_HOME", home)

        tell(self, heard)

    monkeypatch.setattr(Store, "upload", upload_with_a_restart)
    monkeypatch.setattr(Mirror, "push_or_tell", push_or_tell)
    run = run_folder(config)
    train_here(config, run.path, lambda metrics: None)
    assert len(sent) >= 3
    notes = [record["text"] for record in run.records() if record["kind"] == "note"]
    if down_s:
        assert not [text for text in notes if "not sent" in text]
    else:
        assert "checkpoint step-00000010 was not sent to s3://lab/runs/Tiny/saved: " in str(notes)
        assert seen[1] == "step-00000005"  # the last good one is what loads meanwhile
    found = newest_elsewhere(config, monkeypatch, tmp_path / "elsewhere")
    assert weights(found.parents[1]) == weights(run.path)
    assert RunFolder(found.parents[1]).is_finished()
