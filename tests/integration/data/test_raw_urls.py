"""Raw files behind a URL → a dataset, by `data prepare` and by `data.path=raw:URL`, on a real Ray cluster."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import typer
from typer.testing import CliRunner

from voxray.cli import data
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data import dataset
from voxray.data.dataset import dataset_path, ensure_dataset
from voxray.data.manifest import load_manifest
from voxray.data.verify import verify
from voxray.tasks.mindeye.synth import SYNTH_SIZES, SynthSize

pytestmark = pytest.mark.usefixtures("ray_cluster")
URL = "memory://raw-urls"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tars of a synthetic subject, in a folder and behind a URL."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setitem(SYNTH_SIZES, "tiny", SynthSize({"train": 12, "val": 3, "test": 4}, 20, 16, 8, 0.5))
    task_data("mindeye")(default_config("mindeye", {}, "test").config).synth(tmp_path / "raw", "tiny", 0)
    system = fsspec.filesystem("memory")
    system.put(f"{tmp_path / 'raw'}/", "/raw-urls/", recursive=True)
    yield tmp_path / "raw"
    system.rm("/raw-urls", recursive=True)


def test_prepared_from_a_url_it_is_the_same_dataset(raw: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    data.register(app)
    app.callback()(lambda: None)
    for source, out in ((URL, tmp_path / "far"), (str(raw), tmp_path / "near")):
        words = ["data", "prepare", "mindeye", source, str(out), f"data.cache_dir={tmp_path / 'copies'}"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    far, near = load_manifest(tmp_path / "far"), load_manifest(tmp_path / "near")
    assert [shard.sha256 for shard in far.shards] == [shard.sha256 for shard in near.shards]
    assert (far.source.path, near.source.path) == (URL, str(raw))
    assert list((tmp_path / "copies").rglob("val_subj01_0.tar"))


def test_a_run_makes_it_in_the_cache_once(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = default_config("mindeye", {"data.path": f"raw:{URL}"}, "test").config
    made = ensure_dataset(config)
    assert Path(made).is_relative_to(tmp_path / "user")
    assert verify(made) == []
    assert load_manifest(made).counts["train"].rows == 12
    monkeypatch.setattr(dataset, "_make", None)  # it is not made again
    assert ensure_dataset(config) == dataset_path(config) == made
    other = default_config("mindeye", {"data.path": f"raw:{URL}", "data.prepare.seed": 1}, "test").config
    with pytest.raises(TypeError):
        ensure_dataset(other)
