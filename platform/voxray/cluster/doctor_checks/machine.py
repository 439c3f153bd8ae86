"""The machine: GPU and driver, disk, shared memory, temporary folder, clock, other Rays and their ports."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from voxray.cluster.doctor_checks.finding import Finding

MAX_SOCKET_PATH = 107  # a longer temporary folder breaks Ray's sockets
LOW_DISK_GB = 5.0
LOW_SHARED_MEMORY_GB = 1.0
MAX_CLOCK_AHEAD_S = 5.0
EARLIEST_S = 1_760_000_000  # October 2025, before this program was written
# What a head listens on unless told otherwise. Taken by another program, Ray's own does not start, or a job
# ends with "No available agent" (52365).
PORTS = {
    6379: "--port",
    8265: "--dashboard-port",
    10001: "--ray-client-server-port",
    52365: "--dashboard-agent-listen-port",
}
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def gpu() -> list[Finding]:
    """Check that torch can use the GPUs that the driver shows."""
    if shutil.which(GPU_QUERY[0]) is None:
        return [Finding("GPU", True, "no NVIDIA driver; training uses the CPU")]
    try:
        asked = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=20)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [Finding("GPU", False, "nvidia-smi does not answer", "restart the machine or its driver")]
    cards = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode or not cards:
        said = (asked.stdout + asked.stderr).strip().splitlines() or ["nothing"]
        return [Finding("GPU", False, f"nvidia-smi says: {said[0]}", "install or reload the NVIDIA driver")]
    import torch

    if torch.cuda.is_available():
        return [Finding("GPU", True, f"{'; '.join(cards)}; torch for CUDA {torch.version.cuda}")]
    if torch.version.cuda is None:
        mend = "install torch with CUDA: the build of requirements.lock (`make setup`)"
        return [Finding("GPU", False, f"{cards[0]}, but torch {torch.__version__} is a CPU build", mend)]
    mend = f"update the driver to one for CUDA {torch.version.cuda}, or unset CUDA_VISIBLE_DEVICES"
    return [Finding("GPU", False, f"{cards[0]}, which torch for CUDA {torch.version.cuda} cannot use", mend)]


def disk() -> list[Finding]:
    """Check for room for checkpoints and shards in the working directory."""
    free_gb = shutil.disk_usage(".").free / 1e9
    mend = "free some, or set storage.path elsewhere"
    return [Finding("disk", free_gb > LOW_DISK_GB, f"{free_gb:.1f} GB free", mend)]


def shared_memory() -> list[Finding]:
    """Check for room in /dev/shm: Ray's object store lives there, or falls back to slow files."""
    shm = Path("/dev/shm")
    if not shm.exists():
        return [Finding("/dev/shm", True, "not on this system")]
    free_gb = shutil.disk_usage(shm).free / 1e9
    mend = "start the container with --shm-size=8g"
    return [Finding("/dev/shm", free_gb > LOW_SHARED_MEMORY_GB, f"{free_gb:.1f} GB free", mend)]


def temp_folder() -> list[Finding]:
    """Check that Ray's sockets fit below the temporary folder."""
    folder = ray_temp()
    longest = len(f"{folder}/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
    return [
        Finding("temporary folder", longest <= MAX_SOCKET_PATH, str(folder), "set RAY_TMPDIR to a short path")
    ]


def clock() -> list[Finding]:
    """Check that the clock is not far behind, nor behind the file system's."""
    now = time.time()
    mend = "set the clock (timedatectl set-ntp true): checkpoints, certificates and tokens go by it"
    if now < EARLIEST_S:
        return [Finding("clock", False, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)), mend)]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        ahead_s = Path(folder).stat().st_mtime - now
    seen = f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(now))}, {abs(ahead_s):.1f} s from the disk's"
    return [Finding("clock", abs(ahead_s) < MAX_CLOCK_AHEAD_S, seen, mend)]


def stale_cluster_file() -> list[Finding]:
    """Look for a cluster file left by a killed `ray start`: it sends new processes to a dead cluster (Ray
    2.60).
    """
    check, file = "stale Ray cluster file", ray_temp() / "ray_current_cluster"
    if not file.exists():
        return [Finding(check, True, "none")]
    alive = _answers(file.read_text().strip())
    return [Finding(check, alive, f"{file} names a {'live' if alive else 'dead'} cluster", f"delete {file}")]


def ray_clusters() -> list[Finding]:
    """Look for several Rays on this machine, of which a process may join the wrong one."""
    heads = _gcs_processes()
    mend = "end the ones that you do not need, or set RAY_ADDRESS to the one that is meant"
    chosen = len(heads) <= 1 or bool(os.environ.get("RAY_ADDRESS"))
    seen = f"{len(heads)} on this machine" + (f" (process {', '.join(map(str, heads))})" if heads else "")
    return [Finding("Ray clusters", chosen, seen, mend)]


def ports() -> list[Finding]:
    """Check that what a head listens on by default is free, where no Ray is what listens."""
    if _gcs_processes():
        return [Finding("ports", True, "a Ray runs here and has them")]
    taken = [port for port in PORTS if _answers(f"127.0.0.1:{port}")]
    if not taken:
        return [Finding("ports", True, f"{', '.join(map(str, PORTS))} are free")]
    mend = "end what listens there, or start Ray with " + ", ".join(f"{PORTS[port]}=PORT" for port in taken)
    return [Finding("ports", False, f"{', '.join(map(str, taken))} taken by another program", mend)]


def ray_temp() -> Path:
    """Return the folder below which Ray keeps its sessions."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"


def _gcs_processes() -> list[int]:
    """Return the process ids of the clusters' heads on this machine."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == "gcs_server":
                found.append(int(process.name))
        except OSError:  # it has ended since
            continue
    return sorted(found)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True
