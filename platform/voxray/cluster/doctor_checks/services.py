"""Services around a run: the model hub, Weights & Biases, MLflow, where runs are stored."""

import netrc
import os
import socket
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from voxray.cluster.doctor_checks.finding import Finding

_ASK_S = 3.0
WANDB_HOST = "api.wandb.ai"


def hub_token() -> list[Finding]:
    """Look for a token of the model hub; gated models need one, nothing else does."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    if os.environ.get("HF_TOKEN"):
        return [Finding("model hub", True, "token from HF_TOKEN")]
    if file.is_file():
        if file.stat().st_mode & 0o077:
            return [Finding("model hub", False, f"{file} can be read by others", f"chmod 600 {file}")]
        return [Finding("model hub", True, f"token in {file}")]
    offline = ", offline" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    return [Finding("model hub", True, f"no token{offline}: public models only (`hf auth login`)")]


def wandb() -> list[Finding]:
    """Check that the login is for the server that runs would go to."""
    url = os.environ.get("WANDB_BASE_URL", f"https://{WANDB_HOST}")
    host = urlsplit(url).hostname or ""
    if not host:
        return [Finding("W&B", False, f"WANDB_BASE_URL={url} is no address", "write https://HOST")]
    if os.environ.get("WANDB_API_KEY"):
        return [Finding("W&B", True, f"key from WANDB_API_KEY, for {host}")]
    try:
        hosts = set(netrc.netrc(os.environ.get("NETRC")).hosts)
    except FileNotFoundError:
        hosts = set()
    except netrc.NetrcParseError as error:
        return [Finding("W&B", False, f"the netrc file cannot be read: {error.msg}", "mend or delete it")]
    if host in hosts:
        return [Finding("W&B", True, f"logged in at {host}")]
    if "WANDB_BASE_URL" in os.environ:
        elsewhere = f", but at {WANDB_HOST}" if WANDB_HOST in hosts else ""
        mend = f"wandb login --host {url}"
        return [Finding("W&B", False, f"not logged in at {host}{elsewhere}", mend)]
    return [Finding("W&B", True, "not logged in: runs are kept in files (`wandb login`)")]


def mlflow() -> list[Finding]:
    """Check that MLflow's server answers, where one is set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return [Finding("MLflow", True, uri or "no server set: a file beside the runs")]
    port = parts.port or (443 if parts.scheme == "https" else 80)
    place = f"{parts.hostname}:{port}"  # without the password that the address may hold
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_ASK_S).close()
    except OSError as error:
        mend = "start it, or mend MLFLOW_TRACKING_URI; runs go on without it"
        return [Finding("MLflow", False, f"{place} does not answer: {error.strerror or error}", mend)]
    return [Finding("MLflow", True, f"{place} answers")]


def storage(path: str = "runs") -> list[Finding]:
    """Check that runs can be written, read back and deleted where they are stored: a folder or a URL."""
    from pyarrow import fs

    place = path if "://" in path else str(Path(path).absolute())
    mend = "mend storage.path, its rights or its credentials"
    shown = place if "@" not in place else place.partition("://")[0] + "://…" + place.rpartition("@")[2]
    try:
        system, folder = (
            fs.FileSystem.from_uri(place) if "://" in place else (fs.LocalFileSystem(), _existing(place))
        )
        name = f"{folder}/.voxray-doctor-{uuid.uuid4().hex}"
        with system.open_output_stream(name) as file:
            file.write(b"here")
        with system.open_input_stream(name) as file:
            back = file.read()
        system.delete_file(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        return [Finding("storage", False, f"{shown}: {reason}", mend)]
    return [Finding("storage", back == b"here", f"{shown} can be written", mend)]


def _existing(folder: str) -> str:
    """Return the nearest folder at or above one that need not exist yet."""
    path = Path(folder)
    return str(next(place for place in (path, *path.parents) if place.exists()))
