"""A head with Ray's fake multi-node provider: an autoscaler whose nodes are processes of this machine.

It listens on loopback, asks for a token, has ports and a folder of its own, and is ended by its own process
ids. `ray.cluster_utils.AutoscalingCluster` cannot be used: the wheel lacks its file, and it runs `ray stop`.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

BIN = Path(sys.executable).parent
TESTS = Path(__file__).resolve().parents[1]
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # that of the provider
STORE_BYTES = 100_000_000
START_S, STOP_S = 60, 10
IDLE_S = 12


@dataclass(frozen=True)
class FakeCluster:
    """A running head: its folder, what a driver's environment must hold, its process."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen

    def start(self, *command: object) -> subprocess.Popen[str]:
        """Start a driver."""
        return subprocess.Popen(
            [sys.executable, *(str(word) for word in command)], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets of the nodes that the autoscaler has started."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        [monitor] = [
            each for each in children if any("_private/monitor.py" in word for word in each.cmdline())
        ]
        return [child for child in monitor.children() if child.name() == "raylet"]


def end_with_children(process: subprocess.Popen) -> None:
    """End a process, and what it has started and leaves behind."""
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        for child in psutil.wait_procs(started, timeout=STOP_S)[1]:
            child.kill()
    process.wait(STOP_S)


@contextmanager
def fake_cluster(head_cpus: int, node_cpus: int, most_nodes: int) -> Iterator[FakeCluster]:
    """Start a head whose autoscaler adds up to `most_nodes` nodes, each gone after IDLE_S seconds without
    work; end it.
    """
    folder = Path(tempfile.mkdtemp(prefix="vxa", dir="/tmp"))
    (folder / "auth_token").write_text(secrets.token_hex(32))
    (folder / "auth_token").chmod(0o600)
    gcs, client, metrics = free_ports(3)
    config = folder / "cluster.yaml"
    config.write_text(yaml.safe_dump(cluster_file(gcs, head_cpus, node_cpus, most_nodes)))
    keep = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = keep | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"),
        "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (folder / "head.txt").open("w") as said:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
             f"--ray-client-server-port={client}", f"--num-cpus={head_cpus}", "--include-dashboard=false",
             f"--object-store-memory={STORE_BYTES}", f"--temp-dir={folder}/ray",
             f"--autoscaling-config={config}"],
            env=environment | {
                "RAY_FAKE_CLUSTER": "1", "PYTHONUNBUFFERED": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "AUTOSCALER_METRIC_PORT": str(metrics), "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            },
            stdout=said, stderr=said,
        )  # fmt: skip
    cluster = FakeCluster(folder, environment | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}, process)
    try:
        until = time.monotonic() + START_S
        while "Ray runtime started" not in (folder / "head.txt").read_text():
            assert process.poll() is None, (folder / "head.txt").read_text()
            assert time.monotonic() < until, (folder / "head.txt").read_text()
            time.sleep(0.2)
        yield cluster
    finally:
        end_with_children(process)
        shutil.rmtree(folder, ignore_errors=True)


def cluster_file(gcs: int, head_cpus: int, node_cpus: int, most_nodes: int) -> dict:
    """Return the cluster's file, with every key that Ray would else fill in from a cloud's defaults."""
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
             "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
             "rsync_filter")  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": most_nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": f"127.0.0.1:{gcs}",
            "head_node_id": HEAD_ID,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": node_cpus, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most_nodes,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty},
    }


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
