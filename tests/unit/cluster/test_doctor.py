"""Each thing that the doctor looks at, broken on purpose: seen, with its mend, and well again when mended."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from voxray.cli.main import main
from voxray.cluster import doctor
from voxray.cluster.doctor_checks import access, machine, packages, services
from voxray.cluster.doctor_checks.finding import Finding

RAY_VARIABLES = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
)
OTHER_VARIABLES = (
    "HF_TOKEN",
    "HF_HOME",
    "HF_TOKEN_PATH",
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "MLFLOW_TRACKING_URI",
)


@pytest.fixture(autouse=True)
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without tokens or logins, and an environment without settings."""
    for name in (*RAY_VARIABLES, *OTHER_VARIABLES, "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def listening() -> Iterator[int]:
    """A port on which something else than Ray listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    assert finding.ok or finding.mend
    return finding


def test_versions_that_are_no_pair(monkeypatch: pytest.MonkeyPatch):
    assert only(packages.torch_pair()).ok
    versions = {"torch": "2.14.1", "torchvision": "0.28.0"}
    monkeypatch.setattr(packages, "version", versions.__getitem__)
    assert not only(packages.torch_pair()).ok


def test_a_required_package_that_is_missing_and_an_extra_that_is(monkeypatch: pytest.MonkeyPatch):
    needs = ["ray>=2", "no-such-package>=1", 'no-extra-package; extra == "export"', 'ray; extra == "whole"']
    monkeypatch.setattr(packages, "requires", lambda name: needs)
    broken = only(packages.extras())
    assert (broken.ok, broken.seen) == (False, "missing, or of another version: no-such-package>=1")
    needs[1] = "ray>=99"
    assert only(packages.extras()).seen == "missing, or of another version: ray>=99"
    del needs[1]
    assert only(packages.extras()) == Finding(
        "packages", True, "extras: whole; not installed: export (pip install 'voxray[NAME]')"
    )


def fake_nvidia_smi(folder: Path, text: str, code: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    program.chmod(0o755)


def test_a_gpu_that_torch_cannot_use(bare_home: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setenv("PATH", f"{bare_home}:/usr/bin:/bin")
    fake_nvidia_smi(bare_home, "NVIDIA-SMI has failed because it could not communicate with the driver", 9)
    assert "could not communicate" in only(machine.gpu()).seen
    fake_nvidia_smi(bare_home, "NVIDIA H100, 580.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a CPU build" in only(machine.gpu()).seen
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert only(machine.gpu()).mend.startswith("update the driver to one for CUDA 13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert only(machine.gpu()).ok


@pytest.mark.parametrize("check", [machine.disk, machine.shared_memory])
def test_a_full_disk(check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=100e9))
    assert only(check()).ok
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=0.5e9))
    assert not only(check()).ok


def test_a_temporary_folder_too_long_for_a_socket(bare_home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert only(machine.temp_folder()).ok
    folder = bare_home / ("x" * 90)
    folder.mkdir()
    # The kernel's own limit: a socket cannot be bound there.
    with socket.socket(socket.AF_UNIX) as unix, pytest.raises(OSError, match="too long"):
        unix.bind(str(folder / "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert not only(machine.temp_folder()).ok


def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch):
    now = machine.time.time
    assert only(machine.clock()).ok
    monkeypatch.setattr(machine.time, "time", lambda: now() - 60)
    assert not only(machine.clock()).ok
    monkeypatch.setattr(machine.time, "time", lambda: 0.0)
    assert only(machine.clock()).seen.startswith("1970")


def test_a_cluster_file_of_a_dead_cluster(bare_home: Path, listening: int):
    assert only(machine.stale_cluster_file()).ok
    file = bare_home / "ray/ray_current_cluster"
    file.parent.mkdir()
    file.write_text(f"127.0.0.1:{listening}")
    assert only(machine.stale_cluster_file()).ok
    file.write_text(f"127.0.0.1:{free_port()}")
    assert only(machine.stale_cluster_file()).mend == f"delete {file}"


def test_several_rays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_gcs_processes", lambda: [11])
    assert only(machine.ray_clusters()).ok
    monkeypatch.setattr(machine, "_gcs_processes", lambda: [11, 12])
    assert "process 11, 12" in only(machine.ray_clusters()).seen
    assert not only(machine.ray_clusters()).ok
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert only(machine.ray_clusters()).ok


def test_a_port_that_another_program_has(listening: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_gcs_processes", list)
    monkeypatch.setattr(machine, "PORTS", {listening: "--dashboard-agent-listen-port", free_port(): "--port"})
    taken = only(machine.ports())
    assert (taken.ok, taken.seen) == (False, f"{listening} taken by another program")
    assert taken.mend.endswith("--dashboard-agent-listen-port=PORT")
    monkeypatch.setattr(machine, "PORTS", {free_port(): "--port"})
    assert only(machine.ports()).ok


def test_the_token_and_its_files_rights(bare_home: Path, monkeypatch: pytest.MonkeyPatch):
    assert "is not there" in only(access.token()).seen
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert not only(access.token()).ok
    file = bare_home / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("canary")
    file.chmod(0o644)
    readable = only(access.token())
    assert (readable.ok, readable.mend) == (False, f"chmod 600 {file}")
    file.chmod(0o600)
    assert only(access.token()).ok
    assert "canary" not in only(access.token()).seen
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(bare_home / "elsewhere"))
    assert not only(access.token()).ok
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "lets everybody in" in only(access.token()).seen


@pytest.mark.parametrize(("status", "ok"), [(200, False), (401, True), (403, True)])
def test_a_dashboard_that_asks_for_no_token(status: int, ok: bool, monkeypatch: pytest.MonkeyPatch):
    class Jobs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/jobs/" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Jobs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
        assert only(access.open_dashboard()).ok == ok
        server.shutdown()
    assert "none at" in only(access.open_dashboard()).seen


def test_the_hubs_token_is_nobody_elses(bare_home: Path):
    assert only(services.hub_token()).ok
    file = bare_home / ".cache/huggingface/token"
    file.parent.mkdir(parents=True)
    file.write_text("canary")
    file.chmod(0o644)
    assert only(services.hub_token()).mend == f"chmod 600 {file}"
    file.chmod(0o600)
    assert only(services.hub_token()).ok


def test_a_login_at_another_server_than_runs_go_to(bare_home: Path, monkeypatch: pytest.MonkeyPatch):
    assert only(services.wandb()).ok
    login = bare_home / ".netrc"
    login.write_text("machine api.wandb.ai login user password canary\n")
    login.chmod(0o600)
    assert only(services.wandb()).seen == "logged in at api.wandb.ai"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    wrong = only(services.wandb())
    assert (wrong.ok, wrong.mend) == (False, "wandb login --host https://wandb.lab.example")
    assert "canary" not in str(wrong)


def test_an_mlflow_server_that_is_not_there(listening: int, monkeypatch: pytest.MonkeyPatch):
    assert only(services.mlflow()).ok
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:canary@127.0.0.1:{free_port()}")
    gone = only(services.mlflow())
    assert not gone.ok
    assert "canary" not in str(gone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening}")
    assert only(services.mlflow()).ok


def test_storage_that_cannot_be_written(bare_home: Path):
    assert only(services.storage("runs")).ok
    assert only(services.storage(f"file://{bare_home}")).ok
    assert not list(bare_home.glob(".voxray*"))
    (bare_home / "file").touch()
    assert not only(services.storage("file/below")).ok
    assert not only(services.storage("nosuchscheme://bucket")).ok


def test_a_check_that_breaks_is_a_finding_and_the_others_are_made():
    def broken() -> list[Finding]:
        raise RuntimeError("no organ")

    found = doctor.findings({"broken": broken, "python": packages.python})
    assert [(finding.check, finding.ok) for finding in found] == [("broken", False), ("python", True)]


@pytest.mark.parametrize("ok", [True, False])
def test_the_command_exits_with_1_where_something_is_wrong(ok, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "all_checks", lambda storage: {"x": lambda: [Finding("x", ok, storage, "mend it")]}
    )
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json", "--storage", "there"])
    assert ended.value.code == int(not ok)
    assert json.loads(capsys.readouterr().out) == [
        {"check": "x", "ok": ok, "seen": "there", "mend": "" if ok else "mend it"}
    ]
