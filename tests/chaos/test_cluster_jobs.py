"""A head with a token on loopback: jobs by `ray job submit` and `voxray submit`, who gets in, what is leaked.

Everything has a temporary folder and ports of its own; at its end the processes that name it are ended.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from fake_cluster import free_ports

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TRAIN = ("train", "cxr_memory/dev_fast", "logging.log_every_n_steps=1")
START_S, JOB_S = 90, 400


@dataclass(frozen=True)
class Head:
    """A running head: its folder, its dashboard, its metrics' port, and the environment of who may use it."""

    folder: Path
    url: str
    metrics_port: int
    token: str
    canary: str
    environment: dict[str, str]

    def run(self, *command: object, timeout_s: float = JOB_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip

    def submit(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "voxray", "submit", *words)

    def ask(self, path: str, token: str | None, data: bytes | None = None) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {}
        )
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="vxj", dir="/tmp"))
    token, canary = secrets.token_hex(32), f"canary{secrets.token_hex(17)}"[:40]
    (folder / "auth_token").write_text(token)
    (folder / "auth_token").chmod(0o600)
    gcs, dashboard, agent, client, metrics = free_ports(5)
    keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = keep | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"), "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ports = (f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
             f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}")  # fmt: skip
    # Keys belong to the machines: the head's environment has one, as a pod's secret or a login would give it.
    process = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--dashboard-host=127.0.0.1", "--num-cpus=4",
         f"--temp-dir={folder}/ray", "--object-store-memory=300000000", *ports],
        env=environment | {"WANDB_API_KEY": canary}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    head = Head(folder, f"http://127.0.0.1:{dashboard}", metrics, token, canary, environment)
    try:
        wait_until(lambda: answers(head), START_S, "the dashboard")
        yield head
    finally:
        end_processes_of(folder)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def answers(head: Head) -> bool:
    try:
        return head.ask("/api/jobs/", head.token)[0] == 200
    except OSError:
        return False


def end_processes_of(folder: Path) -> None:
    own = [process for process in psutil.process_iter(["cmdline"])
           if any(str(folder) in word for word in process.info["cmdline"] or ())]  # fmt: skip
    for process in own:
        process.terminate()
    for process in psutil.wait_procs(own, timeout=10)[1]:
        process.kill()


def wait_until(condition, timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.3)


def test_nobody_gets_in_without_the_token(head: Head):
    job = json.dumps({"entrypoint": f"touch {head.folder}/ran"}).encode()
    assert head.ask("/api/jobs/", None, job)[0] == 401
    assert head.ask("/api/jobs/", "wrong" * 8, job)[0] == 403
    assert head.ask("/api/jobs/", None)[0] == 401
    time.sleep(2)
    assert not (head.folder / "ran").exists()


def test_ray_job_submit_runs_the_submitted_tree_and_gives_the_exit_code(head: Head):
    submit = ("ray", "job", "submit", "--runtime-env", "runtime_env.yaml", "--working-dir", ".", "--")
    good = head.run(*submit, "python", "-c", "import voxray; print(voxray.__file__)")
    assert good.returncode == 0, good.stdout + good.stderr
    assert f"{head.folder}/ray" in good.stdout  # Ray's copy of the tree, not the installed package
    bad = head.run(*submit, "python", "-m", "voxray", "train", "cxr_memory/dev_fast", "training.bath_size=4")
    assert bad.returncode == 1  # what `ray job submit` makes of every failure
    assert "did you mean training.batch_size" in bad.stdout


def test_voxray_submit_trains_follows_and_leaks_nothing(head: Head):
    storage = head.folder / "runs"
    done = head.submit("--", *TRAIN, f"storage.path={storage}", "training.epochs=1", "run.name=good",
                       "logging.wandb.enabled=true", "logging.wandb.mode=offline")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run: {storage}/cxr_memory/good" in done.stdout
    assert "left out:" in done.stderr
    assert json.loads((storage / "cxr_memory/good/log.jsonl").read_text().splitlines()[-1])["kind"] == "end"
    assert "job good on" in done.stderr
    report = head.run(sys.executable, "-m", "voxray", "report", storage / "cxr_memory/good")
    assert report.returncode == 0, report.stderr
    for secret in (head.canary, head.token):
        places = [path for path in head.folder.rglob("*") if path.is_file() and not path.is_socket()
                  and path.name != "auth_token" and secret.encode() in path.read_bytes()]  # fmt: skip
        assert places == []
        assert secret not in head.ask("/api/jobs/", head.token)[1]
        assert secret not in done.stdout + done.stderr


def test_a_wrong_command_gives_its_own_exit_code(head: Head):
    done = head.submit("--", "train", "cxr_memory/dev_fast", "training.bath_size=4", "run.name=bad")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "did you mean training.batch_size" in done.stdout


def test_a_job_is_stopped_saves_and_is_attached_to_afterwards(head: Head):
    run = head.folder / "runs/cxr_memory/long"
    begun = head.submit("--no-wait", "--", *TRAIN, f"storage.path={head.folder}/runs", "training.epochs=2000",
                        "training.early_stopping=false", "run.name=long")  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    assert "job long on" in begun.stderr
    wait_until(lambda: (run / "log.jsonl").exists() and '"kind": "step"' in (run / "log.jsonl").read_text(),
               JOB_S, "the first update")  # fmt: skip
    wait_until(lambda: "ray_voxray_train_loss{" in metrics(head), 60, "the metrics")
    again = head.submit("--", *TRAIN, "run.name=long")
    assert (again.returncode, "'long' runs already" in again.stderr) == (2, True)
    stopped = head.submit("--stop", "long")
    assert stopped.returncode == 0, stopped.stderr
    assert list((run / "checkpoints").glob("step-*/MANIFEST.json"))
    attached = head.submit("--attach", "long")
    assert attached.returncode == 130
    listed = json.loads(head.submit("--list", "--json").stdout)
    assert {"long": "STOPPED", "bad": "FAILED"}.items() <= {
        row["job"]: row["status"] for row in listed
    }.items()


def metrics(head: Head) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=5) as answer:
        return answer.read().decode()
