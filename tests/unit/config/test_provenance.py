"""Provenance: the saved diff turns the commit into the working tree again, and holds no secret."""

import hashlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from voxray.config.provenance import MAX_DIFF_CHARACTERS, provenance, uncommitted_diff, write_provenance


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "experiments").mkdir(parents=True)
    git(tmp_path, "init", "-q", "repository")
    (root / "experiments/a.yaml").write_text("task: x\nvalue: 1\n")
    (root / "requirements.lock").write_text("torch==2\n")
    (root / ".gitignore").write_text("runs/\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    return root


def test_the_saved_diff_applied_to_the_commit_gives_the_working_tree(
    repository: Path, tmp_path: Path
) -> None:
    changed = {
        "experiments/a.yaml": "task: x\nvalue: 2\n",
        "experiments/new.yaml": "task: y\n",
        "notes.txt": "no newline at the end, ü",
    }
    for name, text in changed.items():
        (repository / name).write_text(text, encoding="utf-8")
    write_provenance(repository / "runs/x", repository)
    facts = json.loads((repository / "runs/x/provenance.json").read_text())
    assert facts["commit"] == git(repository, "rev-parse", "HEAD").strip()
    git(tmp_path, "clone", "-q", str(repository), "again")
    git(tmp_path / "again", "apply", str(repository / "runs/x" / facts["uncommitted_diff"]))
    for name, text in changed.items():
        assert (tmp_path / "again" / name).read_text(encoding="utf-8") == text


def test_a_clean_tree_has_no_diff(repository: Path) -> None:
    write_provenance(repository / "runs/x", repository)
    assert json.loads((repository / "runs/x/provenance.json").read_text())["uncommitted_diff"] is None
    assert not (repository / "runs/x/uncommitted.diff").exists()


def test_many_runs_of_one_command_ask_git_once(repository: Path) -> None:
    write_provenance(repository / "runs/0", repository, is_one_of_many=True)
    (repository / "notes.txt").write_text("written while the command ran")
    write_provenance(repository / "runs/1", repository, is_one_of_many=True)
    first, second = (json.loads((repository / f"runs/{n}/provenance.json").read_text()) for n in (0, 1))
    assert first | {"started": ""} == second | {"started": ""}
    assert second["uncommitted_diff"] is None
    assert second["started"] >= first["started"]


def test_versions_and_the_locks_hash_are_those_of_the_machine(repository: Path) -> None:
    facts, _ = provenance(repository)
    assert facts["lock_sha256"] == hashlib.sha256(b"torch==2\n").hexdigest()
    assert facts["versions"]["pydantic"] == version("pydantic")
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_no_secret_is_saved(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2hunter2hunter2"
    (repository / ".env").write_text(f"WANDB={secret}")
    (repository / "id.pem").write_text(secret)
    (repository / "settings.yaml").write_text(f"wandb_api_key: {secret}\ntoken = '{secret}'\n")
    monkeypatch.setattr(
        sys, "argv", ["/home/me/bin/voxray", "train", f"logging.wandb.api_key={secret}", "--token", secret]
    )
    facts, diff = provenance(repository)
    assert "settings.yaml" in diff
    assert secret not in diff
    assert secret not in json.dumps(facts)
    assert facts["command"][:2] == ["voxray", "train"]


def test_data_and_long_diffs_are_left_out(repository: Path) -> None:
    (repository / "data.bin").write_bytes(b"\0" * 10)
    (repository / "big.txt").write_text("x" * 200_000)
    assert uncommitted_diff(repository) == ""
    for index in range(30):
        (repository / f"part{index}.txt").write_text("a line of text\n" * 6000)
    assert len(uncommitted_diff(repository)) < MAX_DIFF_CHARACTERS + 100


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    facts, diff = provenance(tmp_path)
    assert (facts["commit"], facts["lock_sha256"], diff) == (None, None, "")
