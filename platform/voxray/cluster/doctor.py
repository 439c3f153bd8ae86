"""What is wrong with this machine, and the mend: the checks of `voxray doctor`."""

import importlib
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# torch and torchvision come in pairs built for each other: torch 2.N goes with torchvision 0.(N+15).
TORCHVISION_MINOR_AHEAD = 15
MAX_SOCKET_PATH = 107  # a longer temporary folder breaks Ray's sockets
LOW_DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, what was seen, and the mend."""

    check: str
    ok: bool
    seen: str
    mend: str = ""


def findings() -> list[Finding]:
    """Run every check."""
    return [python(), torch_pair(), disk(), temp_folder(), stale_cluster_file(), shared_memory()]


def python() -> Finding:
    """Check for Python 3.11 or newer."""
    seen = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), seen, "install Python 3.11 or newer")


def torch_pair() -> Finding:
    """Check that torch and torchvision import together; a CPU wheel beside a CUDA wheel does not."""
    mend = "install the pair of requirements.lock: `make setup`"
    try:
        torch, torchvision = version("torch"), version("torchvision")
        pair = int(torchvision.split(".")[1]) - int(torch.split(".")[1]) == TORCHVISION_MINOR_AHEAD
        importlib.import_module("torchvision")
    except PackageNotFoundError as error:
        return Finding("torch + torchvision", False, f"{error.name} is not installed", mend)
    except (ImportError, RuntimeError) as error:
        return Finding("torch + torchvision", False, str(error), mend)
    return Finding("torch + torchvision", pair, f"{torch} + {torchvision}", mend)


def disk() -> Finding:
    """Check for room for checkpoints and shards in the working directory."""
    free_gb = shutil.disk_usage(".").free / 1e9
    return Finding(
        "disk", free_gb > LOW_DISK_GB, f"{free_gb:.1f} GB free", "free some, or set storage.path elsewhere"
    )


def temp_folder() -> Finding:
    """Check that Ray's sockets fit below the temporary folder."""
    longest = len(f"{_ray_temp()}/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
    return Finding(
        "temporary folder", longest <= MAX_SOCKET_PATH, _ray_temp(), "set RAY_TMPDIR to a short path"
    )


def stale_cluster_file() -> Finding:
    """Look for a cluster file left by a killed `ray start`: it sends new processes to a dead cluster (Ray
    2.60).
    """
    file = Path(_ray_temp()) / "ray_current_cluster"
    if not file.exists():
        return Finding("stale Ray cluster file", True, "none")
    host, _, port = file.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return Finding("stale Ray cluster file", False, f"{file} names a dead cluster", f"delete {file}")
    return Finding("stale Ray cluster file", True, f"{file} names a live cluster")


def shared_memory() -> Finding:
    """Check for room in /dev/shm: Ray's object store lives there, or falls back to slow files."""
    shm = Path("/dev/shm")
    if not shm.exists():
        return Finding("/dev/shm", True, "not on this system")
    free_gb = shutil.disk_usage(shm).free / 1e9
    return Finding(
        "/dev/shm", free_gb > 1, f"{free_gb:.1f} GB free", "start the container with --shm-size=4g"
    )


def _ray_temp() -> str:
    return os.environ.get("RAY_TMPDIR", "/tmp") + "/ray"
