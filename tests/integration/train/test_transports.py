"""Training reads the same batches by every transport: the same losses, bit for bit."""

import pytest

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.run_folder import RunFolder
from voxray.train.worker import train_here

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"train": tiny_rows(201, 1), "val": tiny_rows(50, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "d", Tiny(TinyConfig()).schema(), rows, 40)


def losses_of(dataset, folder, **data):
    values = {
        "data": {"path": str(dataset), "shuffle_mb": 0.01, "cache_dir": str(folder / "cache"), **data},
        "training": {"batch_size": 16, "steps": 20},
        "logging": {"log_every_n_steps": 1},
    }
    folder.mkdir()
    train_here(TinyConfig.model_validate(values), folder, lambda metrics: None)
    return [
        (record["step"], record["train/loss"]) if record["kind"] == "step" else record["val/loss"]
        for record in RunFolder(folder).records()
        if record["kind"] in ("step", "epoch")
    ]


@pytest.mark.parametrize("sampling", ["epoch", "with_replacement"])
def test_every_transport_trains_alike(dataset, tmp_path, sampling):
    local, cache, stream = (
        losses_of(dataset, tmp_path / transport, transport=transport, sampling=sampling)
        for transport in ("local", "cache", "stream")
    )
    assert len(local) == 22, "20 updates over two epochs, each evaluated"
    assert local == cache == stream


def test_what_is_set_aside_stands_in_the_runs_log(dataset, tmp_path):
    own = write_dataset(
        tmp_path / "d", Tiny(TinyConfig()).schema(), {"train": tiny_rows(90, 1), "val": tiny_rows(20, 2)}, 30
    )
    (own / "shards" / "train-00001.arrow").unlink()
    assert losses_of(own, tmp_path / "run", on_error="quarantine")
    notes = [record["text"] for record in RunFolder(tmp_path / "run").records() if record["kind"] == "note"]
    assert len(notes) == 1
    assert "train-00001.arrow' is missing" in notes[0]
