"""Two hosts, each with a name, an address and a loopback of its own (Linux namespaces), train one job."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_cluster import end_with_children

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.run_folder import RunFolder
from voxray.train.worker import train_here

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ADDRESSES = {"one": "10.197.0.1", "two": "10.197.0.2"}
START_S, JOB_S = 180, 400
S3_PORT = 5000
COPY = "voxray/storage/s3/lab/runs/Tiny/tiny"
SEND = """
import sys, urllib.request
from pathlib import Path
from voxray.data.store import Store
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="PUT"))
for file in Path(sys.argv[2]).rglob("*.*"):
    Store.of("s3://lab/data/tiny").upload(file, file.relative_to(sys.argv[2]).as_posix())
"""
TRAINING = {"batch_size": 20, "epochs": 4, "optimizer": "sgd"}


@dataclass(frozen=True)
class Host:
    """A network namespace; what is run in it sees its own host name, the names of both, and a folder for Ray
    of its own: nodes that share one delete each other's copies of a job's files.
    """

    name: str
    space: str
    hosts_file: Path
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def command(self, *words: object) -> list[str]:
        folder = self.hosts_file.parent
        become = (
            f"hostname vx-{self.name} && mount --bind {self.hosts_file} /etc/hosts && "
            f'mount --bind {folder}/{self.name}-ray {folder}/ray && exec "$@"'
        )
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "sh", "-c", become, "sh",
                *map(str, words)]  # fmt: skip

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*words), cwd=ROOT, env=self.environment,
            stdout=(self.hosts_file.parent / f"{self.name}.txt").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=JOB_S,
        )

    def received_bytes(self) -> int:
        return int(self.run("cat", "/sys/class/net/veth/statistics/rx_bytes").stdout)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    """Two namespaces with a cable between them; skips where this user may not make any."""
    folder = Path(tempfile.mkdtemp(prefix="vxh", dir="/tmp"))
    spaces = {name: f"{folder.name}-{name}" for name in ADDRESSES}
    made: list[str] = []
    try:
        for space in spaces.values():
            try:
                ip("netns", "add", space)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)!r}")
            made.append(space)
        one, two = spaces.values()
        ip("link", "add", "veth", "netns", one, "type", "veth", "peer", "name", "veth", "netns", two)
        for name, space in spaces.items():
            ip("-n", space, "addr", "add", f"{ADDRESSES[name]}/24", "dev", "veth")
            ip("-n", space, "link", "set", "veth", "up")
            ip("-n", space, "link", "set", "lo", "up")
        (folder / "auth_token").write_text(secrets.token_hex(32))
        (folder / "auth_token").chmod(0o600)
        for name in ("ray", *(f"{name}-ray" for name in ADDRESSES)):
            (folder / name).mkdir()
        names = [f"{address} vx-{name}" for name, address in ADDRESSES.items()]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        keep = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = keep | {
            "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"), "OMP_NUM_THREADS": "1",
            "AWS_ENDPOINT_URL": f"http://{ADDRESSES['one']}:{S3_PORT}", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "lab", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        yield {
            name: Host(name, space, folder / "hosts", environment | {"XDG_CACHE_HOME": f"{folder}/{name}"})
            for name, space in spaces.items()
        }
    finally:
        for space in made:
            ip("netns", "delete", space)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(hosts: dict[str, Host]) -> Iterator[Host]:
    """A Ray cluster of both hosts, one CPU each; the head's host. They share no port."""
    one, two = hosts.values()
    common = ("--block", "--num-cpus=1", "--object-store-memory=100000000")
    ray = BIN / "ray"
    processes = [
        one.start(ray, "start", "--head", f"--node-ip-address={one.address}", "--port=6379",
                  "--dashboard-host=127.0.0.1", f"--temp-dir={one.hosts_file.parent}/ray", *common)
    ]  # fmt: skip
    try:
        jobs = (ray, "job", "list", "--address=http://127.0.0.1:8265")
        wait_until(lambda: one.run(*jobs).returncode == 0, processes[0], "the head")
        processes.append(two.start(ray, "start", f"--address={one.address}:6379",
                                   f"--node-ip-address={two.address}", *common))  # fmt: skip
        count = f"import ray; ray.init('{one.address}:6379'); print(len(ray.nodes()))"
        wait_until(
            lambda: one.run(sys.executable, "-c", count).stdout.strip() == "2", processes[1], "host two"
        )
        yield one
    finally:
        for process in reversed(processes):
            end_with_children(process)


def wait_until(condition, process: subprocess.Popen[bytes], what: str) -> None:
    until = time.monotonic() + START_S
    while not condition():
        assert process.poll() is None, f"{what} has ended"
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.5)


@pytest.fixture
def dataset(tmp_path) -> Path:
    rows = {"train": tiny_rows(400, 1), "val": tiny_rows(50, 2)}
    return write_dataset(tmp_path / "tiny", Tiny(TinyConfig()).schema(), rows, 200)


def trained(host: Host, data: object, storage: object, tmp_path: Path) -> None:
    """Submit a run of two workers, one per host, and wait for its end."""
    values = {"task": "voxray.testing.tiny:Tiny", "data": {"path": str(data)}, "training": TRAINING,
              "logging": {"log_every_n_steps": 1}}  # fmt: skip
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text("\n".join(f"{key}: {value}" for key, value in values.items()))
    done = host.run(
        sys.executable, "-m", "voxray", "submit", "--", "train", experiment, "scale.num_workers=2",
        f"storage.path={storage}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def check(run: RunFolder, dataset: Path, tmp_path: Path) -> None:
    """Both hosts took part, and the losses are those of one worker."""
    assert run.is_finished()
    [record] = [record for record in run.records() if record["kind"] == "workers"]
    assert {worker["host"] for worker in record["workers"]} == {"vx-one", "vx-two"}
    values = {"task": "voxray.testing.tiny:Tiny", "data": {"path": str(dataset)}, "training": TRAINING,
              "logging": {"log_every_n_steps": 1}}  # fmt: skip
    train_here(TinyConfig.model_validate(values), tmp_path / "alone", lambda metrics: None)
    np.testing.assert_allclose(losses(run), losses(RunFolder(tmp_path / "alone")), rtol=1e-5, atol=1e-6)


def test_two_hosts_train_one_job_of_two_workers(hosts, cluster, dataset, tmp_path):
    before = hosts["two"].received_bytes()
    trained(cluster, dataset, tmp_path / "runs", tmp_path)
    check(RunFolder(tmp_path / "runs/Tiny/tiny"), dataset, tmp_path)
    print(f"{hosts['two'].received_bytes() - before:,} bytes came to the second host")


def test_two_hosts_that_share_an_object_store_alone_train_one_job(hosts, cluster, dataset, tmp_path):
    """Each has a cache of its own; the dataset comes from moto's server on host one, the run goes there."""
    pytest.importorskip("moto.server", reason="needs moto[server]")
    server = cluster.start(sys.executable, "-m", "moto.server", "-H", ADDRESSES["one"], "-p", str(S3_PORT))
    try:
        up = f"import socket; socket.create_connection(({ADDRESSES['one']!r}, {S3_PORT}))"
        wait_until(lambda: cluster.run(sys.executable, "-c", up).returncode == 0, server, "the server")
        sent = cluster.run(
            sys.executable, "-c", SEND, f"{cluster.environment['AWS_ENDPOINT_URL']}/lab", dataset
        )
        assert sent.returncode == 0, sent.stderr
        trained(cluster, "s3://lab/data/tiny", "s3://lab/runs", tmp_path)
    finally:
        end_with_children(server)
    copies = [Path(host.environment["XDG_CACHE_HOME"]) / COPY for host in hosts.values()]
    check(RunFolder(copies[0]), dataset, tmp_path)  # the driver's, wherever rank 0 was
    newest = checkpoint.last(copies[0] / "checkpoints")
    assert newest
    checkpoint.load(newest)
    assert (copies[1] / "log.jsonl").exists()


def losses(run: RunFolder) -> list[float]:
    return [record["train/loss"] for record in run.records() if record["kind"] == "step"]
