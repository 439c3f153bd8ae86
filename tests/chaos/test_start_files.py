"""Clusters started by each of the shipped files, on their own ports: nobody gets in without the token.

Each runs in network and process namespaces of its own, so that even its `ray stop` reaches nobody else. What
stands for a cloud is said where it is: nothing here asks AWS, GCP, SLURM or Kubernetes.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from who_gets_in import ADDRESS

from voxray.cluster.launch_files import Launch, slurm_script

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = ("cluster.yaml", "docs/cluster/gcp.yaml", "docs/cluster/on_premises.yaml")
KUBERAY = ("docs/cluster/kuberay_raycluster.yaml", "docs/cluster/kuberay_rayjob.yaml")


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="vxs", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def who_gets_in(home: Path, script: str, **environment: str) -> dict:
    """Start a cluster by a bash script in namespaces of its own; return what `who_gets_in.py` prints."""
    (home / "start.sh").write_text(script)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    set_here = {
        "HOME": str(home), "RAY_TMPDIR": str(home / "r"), "PATH": f"{home}/stubs:{BIN}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    (home / "r").mkdir()
    inside = (sys.executable, str(Path(__file__).with_name("who_gets_in.py")))
    apart = ("unshare", "--pid", "--net", "--fork", "--mount-proc", "--kill-child")
    command = (*apart, *inside, "start.sh", ".ray/auth_token", "ran")
    done = subprocess.run(
        command, cwd=home, env=keep | set_here | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def give_token(home: Path) -> str:
    """Put a token where it is copied to, readable by all until the file's own commands tighten it."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(token := secrets.token_hex(32))
    (home / ".ray" / "auth_token").chmod(0o644)
    return token


def shut(found: dict) -> bool:
    wanted = {"post without": 401, "post with another": 403, "get without": 401, "ran": False}
    return {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("file", LAUNCHERS)
def test_ray_up(file: str, home: Path):
    """The head's own commands; the machine's list of nodes stands for the cloud's."""
    give_token(home)
    config = yaml.safe_load((ROOT / file).read_text())
    alone = {"cluster_name": "alone", "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}}
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(alone))
    commands = "\n".join(config["head_start_ray_commands"]).replace("VENV/bin", str(BIN))
    found = who_gets_in(home, f"{commands}\n")
    assert shut(found), found
    assert found["listens on"] == ["127.0.0.1"]
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("file", KUBERAY)
def test_kuberay(file: str, home: Path):
    """`ray start` with the file's parameters; the operator sets the mode and the secret's token itself, as
    `authOptions` says, and listens on all addresses, which the network policy closes.
    """
    token = give_token(home)
    documents = [document["spec"] for document in yaml.safe_load_all((ROOT / file).read_text()) if document]
    clusters = [spec.get("rayClusterSpec", spec) for spec in documents]
    (cluster,) = [spec for spec in clusters if "headGroupSpec" in spec]
    assert cluster["authOptions"]["mode"] == "token"
    given = cluster["headGroupSpec"]["rayStartParams"]
    parameters = " ".join(f"--{name}={value}" for name, value in given.items())
    script = f"ray start --head --block --port=6379 --dashboard-host=0.0.0.0 {parameters}\n"
    found = who_gets_in(home, script, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert shut(found), found


def test_slurm(home: Path):
    """The script on an allocation of one machine, which makes its token itself; `srun` runs it here."""
    (home / "stubs").mkdir()
    stubs = {"srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"', "scontrol": f"echo {ADDRESS}"}
    for name, body in stubs.items():
        (home / "stubs" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (home / "stubs" / name).chmod(0o755)
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "activate").write_text("")
    words = ("train", str(ROOT / "experiments/cxr_memory/dev_fast.yaml"), "storage.path=runs")
    script = slurm_script(Launch(words, "alone", nodes=1, gpus=0), "1:00:00")
    found = who_gets_in(home, script, SLURM_JOB_NODELIST="machine", SLURM_JOB_ID="1")
    assert shut(found), found
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
