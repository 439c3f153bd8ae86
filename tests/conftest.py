"""Fixtures that all tests share: one Ray cluster per session, the shared real data."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two threads were about 20 times slower than one under load (FACTS.md); workers inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A private Ray cluster with 4 logical CPUs and the State API, stopped at the end of the session."""
    from voxray.cluster.connect import connect

    # Unix sockets below the folder must stay under 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="vx", dir="/tmp", ignore_cleanup_errors=True) as folder,
        connect(dashboard=True, num_cpus=4, temp_dir=folder),
    ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The small real datasets beside the checkout; the test is skipped where they are absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared real datasets are not beside this checkout")
    return SHARED / "data"


@pytest.fixture
def wandb_alone(tmp_path, monkeypatch):
    """W&B without this user's settings and credentials, its process ended afterwards."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    yield
    wandb.teardown()
