"""Where a run came from: commit, uncommitted diff, lock, versions (asked without importing), command."""

import difflib
import fnmatch
import functools
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from voxray.config.files import project_root
from voxray.config.secrets import HIDDEN, masked_command

FILE, DIFF_FILE = "provenance.json", "uncommitted.diff"
PACKAGES = (
    "voxray",
    "torch",
    "torchvision",
    "ray",
    "numpy",
    "pyarrow",
    "pydantic",
    "optuna",
    "timm",
    "transformers",
)
MAX_DIFF_CHARACTERS = 1_000_000
MAX_UNTRACKED_BYTES = 100_000  # per file: code and settings, not data
GIT_TIMEOUT_S = 20
_SECRET_FILES = (
    ".env*",
    "*.env",
    "*.pem",
    "*.key",
    ".netrc",
    ".pypirc",
    "*credential*",
    "*secret*",
    "*token",
    "*token.*",
)
# A literal of 12 characters or more under a telling key: `api_key: …`, `"token": "…"`, `PASSWORD=…`.
_SECRET_VALUE = re.compile(
    r"""((?:token|secret|password|passwd|api_?key|credentials?)["']?\s*[:=]\s*["']?)[^\s"'()\[\]]{12,}""",
    re.IGNORECASE,
)


def write_provenance(run_dir: Path, root: Path | None = None, *, is_one_of_many: bool = False) -> None:
    """Write provenance.json and, with uncommitted changes, uncommitted.diff into a run's folder.

    `is_one_of_many`: for all runs of one command, git and the versions are asked once (0.1 s and more).
    """
    facts, diff = _of_this_command(root) if is_one_of_many else provenance(root)
    facts = {**facts, "started": _now(), "uncommitted_diff": DIFF_FILE if diff else None}
    run_dir.mkdir(parents=True, exist_ok=True)
    if diff:
        (run_dir / DIFF_FILE).write_text(diff, encoding="utf-8")
    (run_dir / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def provenance(root: Path | None = None) -> tuple[dict[str, Any], str]:
    """Return the facts of a run and the text of the uncommitted diff, "" where there is none.

    `root` defaults to the project around the working directory. Outside a git repository the commit is None.
    """
    root = root or project_root(Path.cwd()) or Path.cwd()
    lock = root / "requirements.lock"
    commit = (_git(root, "rev-parse", "HEAD") or "").strip() or None
    facts = {
        "commit": commit,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "versions": {"python": platform.python_version(), **_versions()},
        "command": masked_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": _now(),
    }
    return facts, uncommitted_diff(root) if commit else ""


@functools.cache
def _of_this_command(root: Path | None) -> tuple[dict[str, Any], str]:
    return provenance(root)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def uncommitted_diff(root: Path) -> str:
    """Return what `git apply` turns the commit into the working tree with, untracked text files included.

    Files that look like keys are left out, values that look like secrets are masked, and a long diff is cut.
    """
    top = Path((_git(root, "rev-parse", "--show-toplevel") or str(root)).strip())
    tracked = _git(top, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    untracked = (_git(top, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    diff = tracked
    for name in sorted(filter(None, untracked)):
        if len(diff) > MAX_DIFF_CHARACTERS:
            break
        diff += _as_new_file(top, name)
    diff = _SECRET_VALUE.sub(rf"\1{HIDDEN}", diff)
    if len(diff) > MAX_DIFF_CHARACTERS:
        return f"{diff[:MAX_DIFF_CHARACTERS]}\n# cut: longer than {MAX_DIFF_CHARACTERS} characters\n"
    return diff


def _as_new_file(top: Path, name: str) -> str:
    path = top / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_UNTRACKED_BYTES:
        return ""
    if path.suffix != ".py" and any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in _SECRET_FILES):
        return ""
    data = path.read_bytes()
    if b"\0" in data:
        return ""
    lines = data.decode("utf-8", errors="replace").splitlines(keepends=True)
    body = "".join(difflib.unified_diff([], lines, "/dev/null", f"b/{name}"))
    end = "" if not lines or lines[-1].endswith("\n") else "\n\\ No newline at end of file\n"
    return f"diff --git a/{name} b/{name}\nnew file mode 100644\n{body}{end}"


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output; None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git is found on PATH like any tool
            capture_output=True, timeout=GIT_TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace")
