"""`voxray data …` as a user types it: synth → prepare → verify → inspect → stats, and its errors."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from nih_folder import write_nih
from voxray.cli import data
from voxray.config.errors import InputError
from voxray.data.manifest import load_manifest

app = typer.Typer()
data.register(app)


@app.callback()
def _root() -> None:
    pass


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def refused(*arguments: object) -> tuple[str, ...]:
    error = run(*arguments).exception
    assert isinstance(error, InputError)
    return error.problems


@pytest.mark.usefixtures("ray_cluster")
def test_from_synthetic_raw_files_to_statistics(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "ds"
    made = run("synth", "cxr_memory", raw, "--seed", 3)
    assert made.exit_code == 0, made.output
    for words in (
        "900 rows",
        "oracle ceiling",
        "linear floor",
        "chance",
        f"voxray data prepare cxr_memory {raw}",
    ):
        assert words in made.output
    prepared = run(
        "prepare", "cxr_memory", raw, out, "image_size=32", "--splits.val=0.2", "data.prepare.seed=5"
    )
    assert prepared.exit_code == 0, prepared.output
    assert f"voxray data verify {out}" in prepared.output
    manifest = load_manifest(out)
    assert manifest.schema.columns["image"].shape == (1, 32, 32)
    assert manifest.recipe.prepare["splits"]["val"] == 0.2
    assert manifest.recipe.prepare["seed"] == 5
    verified = run("verify", out)
    assert verified.exit_code == 0
    assert verified.output.startswith(f"ok: {len(manifest.shards)} shards, 900 rows")
    inspected = json.loads(run("inspect", out, "--json").stdout)
    assert sum(row["rows"] for row in inspected["splits"]) == 900
    counted = json.loads(run("stats", out, "--json").stdout)
    assert [row["train positives"] for row in counted["labels"]] == manifest.statistics["labels"]["positives"]
    assert "Hernia" in run("stats", out).output
    assert "patient_id" in run("inspect", out).output


@pytest.mark.usefixtures("ray_cluster")
def test_quarantine_and_leftovers(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "ds"
    write_nih(raw)
    next(raw.rglob("*.png")).unlink()
    assert "--on-error quarantine" in refused("prepare", "cxr_memory", raw, out)[-1]
    (tmp_path / ".ds.partial-00000000").mkdir()
    result = run("prepare", "cxr_memory", raw, out, "--on-error", "quarantine")
    assert result.exit_code == 0, result.output
    assert f"1 rows set aside, listed in {out}/quarantine.jsonl" in result.output
    assert ".ds.partial-00000000' is left of an attempt" in result.output


def test_wrong_options_are_named_before_anything_starts(tmp_path: Path) -> None:
    (problem,) = refused("prepare", "cxr_memory", tmp_path, tmp_path / "ds", "image_siz=64")
    assert "data.prepare.image_size" in problem
    assert "splits.val" in refused("prepare", "cxr_memory", tmp_path, tmp_path / "ds", "splits.val=2")[0]
    assert "cxr_memory" in refused("prepare", "cxr_memry", tmp_path, tmp_path / "ds")[0]
    assert run("prepare", "cxr_memory", tmp_path, tmp_path / "ds", "--on-error", "ignore").exit_code == 2


def test_synth_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "already exists" in refused("synth", "cxr_memory", tmp_path)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_verify_of_a_damaged_dataset_and_of_none(tmp_path: Path) -> None:
    assert "is no dataset" in refused("verify", tmp_path)[0]
    assert "is no dataset" in refused("inspect", tmp_path)[0]
