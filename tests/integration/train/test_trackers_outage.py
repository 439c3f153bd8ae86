"""A tracker's server refuses, hangs, fails half-way or says no: the run ends with exit code 0 and one note.

Each case is a driver process of its own, as what a library leaves for the interpreter's exit counts too.
"""

import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from voxray.core.experiment import default_config
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.launch import launch
from voxray.train.trackers.tracker import TrackerState

DRIVER = """
import json, sys, time
from pathlib import Path
from rich.console import Console
from voxray.testing.tiny import TinyConfig
from voxray.train.progress import follow
from voxray.train.run_folder import RunFolder

run = RunFolder(Path(sys.argv[1]))
with follow(run, TinyConfig.model_validate(json.loads(sys.argv[2])), Console()):
    before = time.monotonic()
    for step in range(1, 101):
        run.log({"kind": "step", "stage": "main", "epoch": 0, "step": step, "train/loss": 1 / step})
        time.sleep(0.01)
    run.log({"kind": "epoch", "stage": "main", "epoch": 0, "step": 100, "train/loss": 0.1, "val/loss": 0.2})
    run.log({"kind": "end", "status": "finished", "best": None})
    print(f"trained in {time.monotonic() - before:.3f}")
"""
KEY = "0123456789abcdef" * 2 + "01234567"  # as long as W&B's, of nobody


@contextmanager
def refuses() -> Iterator[str]:
    """The address of a port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def hangs() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def answers(post) -> Iterator[str]:
    """A server that answers GET, and each POST by `post`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            post(self)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def hangs_after_the_first() -> object:
    """A server that is there, and whose API then never answers."""
    return answers(lambda _: time.sleep(600))


def knows_no_such_project() -> object:
    """A server that refuses each request, as W&B's does for a wrong project or key."""

    def refuse(handler):
        body = json.dumps({"errors": [{"message": "project not found"}], "data": None}).encode()
        handler.send_response(404)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        handler.wfile.write(body)

    return answers(refuse)


class WandbServer:
    """As much of W&B's server as a run needs; `rows` is the history that it was sent, with each run's id."""

    def __init__(self, dies: bool) -> None:
        self.dies, self.rows = dies, []

    def post(self, handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if handler.path.endswith("/file_stream"):
            if self.dies:
                time.sleep(600)
            history = body.get("files", {}).get("wandb-history.jsonl", {"content": []})
            run_id = handler.path.split("/")[-2]
            self.rows += [(run_id, json.loads(row)) for row in history["content"]]
            answer = {"exitcode": None, "limits": {}}
        else:
            names = {"project": {"id": "p", "name": "voxray", "entity": {"id": "e", "name": "lab"}}}
            run = {"id": "b", "name": body["variables"].get("name", ""), "displayName": "first", **names}
            answer = {
                "data": {
                    "upsertBucket": {
                        "bucket": {**run, "config": "{}", "historyLineCount": 0},
                        "inserted": True,
                    },
                    "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
                    "model": {"bucket": None},
                    "viewer": {"id": "u", "entity": "lab", "username": "me", "flags": "{}"},
                    "serverInfo": {"cliVersionInfo": {}, "features": []},
                }
            }
        data = json.dumps(answer).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def drive(tmp_path: Path, logging: dict, **environment) -> tuple[subprocess.CompletedProcess, float]:
    """Run a driver in a process of its own; return it and its seconds from start to exit."""
    run = tmp_path / "runs" / "Tiny" / "first"
    run.mkdir(parents=True, exist_ok=True)
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    values = {"run": {"name": "first"}, "storage": {"path": str(tmp_path / "runs")}, "logging": logging}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(run), json.dumps(values)],
        env={**kept, "HOME": str(home), "WANDB_ERROR_REPORTING": "false", "COLUMNS": "250", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, time.monotonic() - before


def lines_of(done: subprocess.CompletedProcess, start: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(start)]


def assert_trained(done: subprocess.CompletedProcess) -> None:
    """The run ended by itself, its 100 steps of 10 ms held up by nothing but a library's import."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines_of(done, "finished in"), done.stdout
    (trained,) = lines_of(done, "trained in")
    assert float(trained.split()[-1]) < 10.0


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (refuses, "does not answer (no connection)"),
        pytest.param(hangs, "does not answer (no answer within 5 s)", marks=pytest.mark.chaos),
        pytest.param(knows_no_such_project, "the server did not take the run (", marks=pytest.mark.chaos),
        # Whether W&B gives up before we stop waiting for it depends on the machine.
        pytest.param(
            hangs_after_the_first,
            "102 records were not sent; the same command sends them|the server did not take the run (",
            marks=pytest.mark.chaos,
        ),
    ],
)
def test_a_run_that_wandb_does_not_take_is_kept_in_files(tmp_path, server, why):
    with server() as host:
        done, seconds = drive(tmp_path, {"wandb": {"enabled": True, "host": host}}, WANDB_API_KEY=KEY)
    assert_trained(done)
    notes = lines_of(done, "W&B")
    assert len(notes) == 1, done.stdout
    assert any(text in notes[0] for text in why.split("|"))
    assert seconds < 60
    if "were not sent" not in notes[0]:
        folder = Path(notes[0].rpartition("`wandb sync ")[2].rstrip("`"))
        assert list(folder.glob("*.wandb"))
        position = json.loads((tmp_path / "runs/Tiny/first/trackers/wandb.json").read_text())["position"]
        assert position == (tmp_path / "runs/Tiny/first/log.jsonl").stat().st_size


def test_a_wandb_server_gets_one_run_of_two_drivers(tmp_path):
    server = WandbServer(dies=False)
    with answers(server.post) as host:
        for _ in range(2):
            done, _ = drive(tmp_path, {"wandb": {"enabled": True, "host": host}}, WANDB_API_KEY=KEY)
            assert_trained(done)
            (where,) = lines_of(done, "W&B")
    run_id = json.loads((tmp_path / "runs/Tiny/first/trackers/wandb.json").read_text())["id"]
    assert where == f"W&B: {host}/lab/voxray/runs/{run_id}"
    assert {of for of, _ in server.rows} == {run_id}
    losses = [(row["step"], row["train/loss"]) for _, row in server.rows if "train/loss" in row]
    assert losses == 2 * [(step, 1 / step) for step in range(1, 101)]


@pytest.mark.chaos
def test_a_wandb_server_that_dies_half_way_costs_a_note(tmp_path):
    with answers(WandbServer(dies=True).post) as host:
        done, seconds = drive(tmp_path, {"wandb": {"enabled": True, "host": host}}, WANDB_API_KEY=KEY)
    assert_trained(done)
    where, note = lines_of(done, "W&B")
    assert where.startswith(f"W&B: {host}")
    assert note.startswith(
        "W&B failed at the end (the server did not take all in time; send the rest by `wandb"
    )
    folder = Path(note.rpartition("`wandb sync ")[2].rstrip("`)"))
    assert list(folder.glob("*.wandb"))
    assert seconds < 60


@pytest.mark.parametrize("server", [refuses, pytest.param(hangs, marks=pytest.mark.chaos)])
def test_an_mlflow_server_that_is_away_costs_a_note(tmp_path, server):
    pytest.importorskip("mlflow")
    with server() as uri:
        done, seconds = drive(tmp_path, {"mlflow": {"enabled": True, "tracking_uri": uri}})
    assert_trained(done)
    notes = lines_of(done, "MLflow")
    assert 1 <= len(notes) <= 2, done.stdout  # that it is away, and at the end what was not sent
    assert "102 records were not sent; the same command sends them" in notes[-1]
    assert seconds < 60


def test_a_folder_that_cannot_be_written_costs_a_note(tmp_path):
    run = tmp_path / "runs" / "Tiny" / "first"
    run.mkdir(parents=True)
    (run / "tensorboard").write_text("a file where the folder should be")
    done, _ = drive(tmp_path, {"tensorboard": True})
    assert_trained(done)
    assert [line.split(" (")[0] for line in lines_of(done, "TensorBoard")] == [
        "TensorBoard is off for now",
        "TensorBoard failed at the end",
    ]


@pytest.mark.chaos
def test_a_run_on_ray_ends_well_without_its_trackers(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    rows = {"train": tiny_rows(200, 1), "val": tiny_rows(60, 2)}
    dataset = write_dataset(tmp_path / "data", Tiny(TinyConfig()).schema(), rows, 70)
    shown = io.StringIO()
    with refuses() as host:
        values = {
            "data.path": str(dataset),
            "storage.path": str(tmp_path / "runs"),
            "training.epochs": 2,
            "logging.log_every_n_steps": 1,
            "logging.tensorboard": True,
            "logging.wandb.enabled": True,
            "logging.wandb.host": host,
        }
        run = launch(
            default_config("voxray.testing.tiny:Tiny", values, "the test"),
            "auto",
            Console(file=shown, width=250),
        )
    assert run.is_finished()
    lines = shown.getvalue().splitlines()
    assert sum(line.startswith(f"W&B, {host} does not answer") for line in lines) == 1
    end = run.log_file.stat().st_size
    for tracker in ("tensorboard", "wandb"):
        assert TrackerState(run, tracker).position == end
    # The loop's processes know of no tracker: what is in RUN beside the log was written by the driver.
    assert {record["pid"] for record in run.records() if record["kind"] == "rank"}.isdisjoint({os.getpid()})
