"""Trials of one node share what was fetched and decoded: four of them fetch and decode what one does."""

import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from voxray.data import index, manifest
from voxray.data.manifest import load_manifest
from voxray.testing.datasets import write_dataset
from voxray.testing.packed import Packed, PackedConfig, packed_rows
from voxray.train.worker import train_here
from voxray.tune.plan import load_plan
from voxray.tune.search import search
from voxray.tune.study.folder import open_study

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_TRAIN, NUM_VAL, PROBED = 100, 50, 4
EXPERIMENT = """
task: voxray.testing.packed:Packed
data: {filter: "group != 'row00003'"}
training: {epochs: 3, batch_size: 25}
"""
SPACE = """
description: the packed task
experiment: base.yaml
objective: {metric: val/loss, mode: min}
search:
  trials: 4
  max_concurrent: 2
  space: {training.learning_rate: {loguniform: [1e-4, 1e-1]}}
"""


@pytest.fixture
def server(tmp_path):
    """A dataset behind HTTP, and how often each of its files was asked for."""
    rows = {"train": packed_rows(NUM_TRAIN, 1), "val": packed_rows(NUM_VAL, 2)}
    folder = write_dataset(tmp_path / "served" / "data", Packed(PackedConfig()).schema(), rows, 20)
    asked: Counter[str] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder.parent))

        def do_GET(self):
            asked[self.path.removeprefix("/data/")] += 1
            super().do_GET()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/data", folder, asked
        http.shutdown()
        thread.join()


def run(url: str, folder: Path, trials: int) -> int:
    """Search with an empty node cache; return how many rows were decoded."""
    (folder / "calls").mkdir(parents=True)
    (folder / "base.yaml").write_text(EXPERIMENT)
    (folder / "space.yaml").write_text(SPACE)
    overrides = [
        f"storage.path={folder / 'runs'}",
        f"data.path={url}",
        f"data.cache_dir={folder / 'cache'}",
        f"model.calls={folder / 'calls'}",
        f"search.trials={trials}",
    ]
    plan = load_plan(str(folder / "space.yaml"), overrides)
    with open_study(plan) as ledger:
        assert search(plan, ledger, train_here, lambda text: None, lambda row: None)
        assert [row.state for row in ledger.rows()] == ["complete"] * trials
    return sum(file.stat().st_size for file in (folder / "calls").iterdir())


def test_four_trials_fetch_and_decode_as_one_does(server, tmp_path):
    url, dataset, asked = server
    counts, indexes = {}, Counter()
    for trials in (1, 4):
        index.read_index.cache_clear()
        manifest._read_once.cache_clear()
        decoded = run(url, tmp_path / f"{trials}-trials", trials)
        counts[trials] = (decoded, {file: n for file, n in asked.items() if file.startswith("shards/")})
        # One process asks for the manifest once: the driver, and at most two actors.
        assert asked["manifest.json"] <= 3
        indexes.update({file: n for file, n in asked.items() if file.startswith("index/")})
        asked.clear()
    assert counts[1] == counts[4]
    assert max(indexes.values(), default=0) <= 2, "two actors that begin together may both ask"
    decoded, fetched = counts[4]
    assert fetched == {shard.file: 1 for shard in load_manifest(dataset).shards}
    assert decoded == NUM_TRAIN + NUM_VAL + PROBED
