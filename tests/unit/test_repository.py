"""The files around the code: the lock, the make targets, the cluster files."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_pins_everything_exactly_and_names_no_index():
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    assert {"torch==2.14.1", "torchvision==0.29.1", "ray==2.60.0"} <= set(lines)
    assert "://" not in LOCK


def test_every_direct_dependency_is_in_the_lock():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["dev"], *extras["docs"]]]
    locked = dict(line.split("==") for line in LOCK.splitlines() if "==" in line)
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    for requirement in wanted:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_ci_and_the_workflow_run_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "test", "chaos", "bench", "docs", "lint"} <= targets
    for file in (".ci/run", ".github/workflows/ci.yml"):
        used = re.findall(r"\bmake ([a-z]+)", (ROOT / file).read_text())
        assert used
        assert set(used) <= targets
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_clusters_file_is_one_that_ray_accepts_and_asks_for_a_token():
    from ray.autoscaler._private.util import prepare_config, validate_config

    text = (ROOT / "cluster.yaml").read_text()
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    for kind in ("head", "worker"):
        assert any("RAY_AUTH_MODE=token ray start" in line for line in config[f"{kind}_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in text


def test_submitted_jobs_import_the_submitted_tree():
    environment = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    assert environment["env_vars"]["PYTHONPATH"] == "platform"
    assert (ROOT / "platform" / "voxray" / "__init__.py").exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index_and_the_readmes_links_lead_somewhere():
    index = (ROOT / "docs" / "index.md").read_text()
    assert all(page.stem in index for page in (ROOT / "docs").glob("*.md") if page.stem != "index")
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_readmes_commands_exist():
    commands = set(re.findall(r"`voxray ([a-z]+)", (ROOT / "README.md").read_text()))
    from typer.main import get_command

    from voxray.cli.main import app

    assert commands <= set(get_command(app).commands)  # type: ignore[attr-defined]


def test_nothing_generated_is_tracked():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert not [name for name in tracked.splitlines() if name.startswith(("runs/", "demo/", ".venv/"))]
