"""Frozen networks on a real Ray cluster: what transformers gives alone, once per input, across a kill."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from voxray.config.errors import InputError
from voxray.core.embedder import Embedder
from voxray.core.schema import Column
from voxray.core.task import MapStage
from voxray.data.config import DataConfig, EmbedConfig
from voxray.data.embed import EmbedReport, embed
from voxray.data.embed_actor import run_padded
from voxray.data.embed_cache import EmbedCache, input_key, network_of
from voxray.data.prepare import prepare
from voxray.data.reader import ShardReader
from voxray.data.verify import verify
from voxray.testing.frozen import (
    TOWER_COLUMNS,
    Clip,
    Pictures,
    PicturesConfig,
    PicturesModelConfig,
    load_picture,
    picture,
    save_tiny_clip,
)

STAGES = [MapStage("load", load_picture)]


CLIP = Embedder("voxray.testing.frozen:Clip", "clip", ("image",), TOWER_COLUMNS, "1")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def by_transformers(clip_folder):
    """The authority: the library's own class on pictures 0 … 3, one at a time."""
    model = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        made = [model(torch.from_numpy(picture(number)[None]) / 255) for number in range(4)]
    return {
        "clip": np.stack([one.image_embeds[0].numpy() for one in made]),
        "tokens": np.stack([one.last_hidden_state[0].numpy() for one in made]),
    }


def open_cache(root, embedder):
    return EmbedCache.of(root, embedder, network_of(embedder))


def test_an_input_gives_the_same_bits_in_any_company(clip_folder, by_transformers):
    network = Clip(str(clip_folder), "", "float32", "cpu")
    rows = [{"image": picture(number)} for number in range(4)]
    together = run_padded(network, CLIP, rows, 4)
    apart = [run_padded(network, CLIP, [row], 4) for row in rows]
    backwards = run_padded(network, CLIP, rows[::-1], 4)
    for name, values in by_transformers.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-5, atol=1e-6)
        for number in range(4):
            bits = together[name][number].tobytes()
            assert bits == apart[number][name][0].tobytes() == backwards[name][3 - number].tobytes()


@pytest.mark.usefixtures("ray_cluster")
def test_each_distinct_input_is_computed_once(tmp_path):
    (tmp_path / "calls").mkdir()
    embedder, config = counting(tmp_path / "calls"), EmbedConfig(batch_size=3, num_actors=2)
    cache, told = open_cache(tmp_path, embedder), []
    rows = [{"x": np.full(8, number, "float32"), "picture": 0} for number in (3, 1, 3, 4, 1, 5, 9, 2, 6, 5)]
    rows[3]["picture"] = -1  # refused by a stage
    stages = [MapStage("load", load_picture)]
    report = embed(embedder, rows, stages, cache, config, lambda *done: told.append(done))
    assert report == EmbedReport(num_rows=9, num_distinct=6, num_computed=6)
    assert told[-1] == (6, 6)
    keys = [input_key(embedder, row) for row in rows]
    assert cache.missing(keys) == [keys[3]]
    assert cache.get([keys[0], keys[-1], keys[1]])["twice"][:, 0].tolist() == [6, 10, 2]
    assert set(computed(tmp_path)) == {1, 2, 3, 5, 6, 9}
    again = embed(embedder, rows[:3], stages, cache, config)
    assert again == EmbedReport(num_rows=3, num_distinct=2, num_computed=0)


@pytest.mark.usefixtures("ray_cluster")
def test_prepare_joins_the_columns(tmp_path, clip_folder, by_transformers):
    (tmp_path / "raw").mkdir()
    config = PicturesConfig(
        model=PicturesModelConfig(clip=str(clip_folder)),
        data=DataConfig(embed=EmbedConfig(cache_dir=str(tmp_path / "cache"), batch_size=4)),
    )
    report = prepare(Pictures(config), tmp_path / "raw", tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert report.manifest.schema.columns["tokens"].shape == (17, 32)
    (clip, speller) = report.manifest.recipe.networks
    assert clip["weights_xxh3"] != speller["model_id"] == "speller"
    num_rows = 0
    for shard in report.manifest.shards:
        reader = ShardReader(tmp_path / "out" / shard.file)
        columns = reader.take(np.arange(reader.num_rows))
        for row, name in enumerate(columns["sample_id"]):
            number = int(name[-1])
            for tower, values in by_transformers.items():
                np.testing.assert_allclose(columns[tower][row], values[number], rtol=1e-5, atol=1e-6)
            letters = "word " * number
            assert columns["codes"][row].tolist() == [[ord(letter), i] for i, letter in enumerate(letters)]
            num_rows += 1
    assert num_rows == 24
    entries = [len(EmbedCache(folder, {})) for folder in (tmp_path / "cache").iterdir()]
    assert entries == [4, 4]  # 24 rows of 4 pictures


def counting(calls, wait_s=0.0):
    return Embedder(
        "voxray.testing.frozen:Counting",
        "counting",
        ("x",),
        {"twice": Column("float32", (8,))},
        revision="1",
        options={"calls": str(calls), "wait_s": wait_s},
    )


def numbered(num):
    return [{"x": np.full(8, i, "float32"), "origin": f"row {i}"} for i in range(num)]


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {paths}
from test_embed import counting, numbered, open_cache
from voxray.cluster.connect import connect
from voxray.data import embed as module
from voxray.data.config import EmbedConfig
from voxray.data.embed import embed
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    embedder = counting(folder / "calls", wait_s=0.15)
    module.BATCHES_PER_TASK = 4
    with connect(num_cpus=4):
        embed(embedder, numbered(200), [], open_cache(folder, embedder), EmbedConfig(batch_size=2))
"""


def computed(folder):
    return Counter(int(line) for file in (folder / "calls").iterdir() for line in file.read_text().split())


@pytest.mark.chaos
def test_a_killed_driver_goes_on_where_it_was(tmp_path):
    (tmp_path / "calls").mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(paths=[str(Path(__file__).parent)]))
    embedder = counting(tmp_path / "calls", wait_s=0.15)
    cache = open_cache(tmp_path, embedder)
    driver = subprocess.Popen([sys.executable, script, tmp_path], start_new_session=True)
    deadline = time.monotonic() + 60
    while not len(cache):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until_quiet(tmp_path)
    keys = [input_key(embedder, row) for row in numbered(200)]
    absent = set(cache.missing(keys))
    before, stored = computed(tmp_path), {number for number, key in enumerate(keys) if key not in absent}
    assert 0 < len(stored) < 200
    assert subprocess.run([sys.executable, script, tmp_path], check=False).returncode == 0
    after = computed(tmp_path)
    assert set(after) == set(range(200))
    for number, count in after.items():
        assert count == 1 or number not in stored, f"{number} was stored and computed again"
        assert count <= 2 if number in before else count == 1
    np.testing.assert_array_equal(cache.get(keys)["twice"][:, 0], 2 * np.arange(200))
    assert len(cache) == 200


def wait_until_quiet(folder):
    """Wait for the actors of a killed driver: Ray ends them shortly after."""
    last = None
    while (now := sum(computed(folder).values())) != last:
        last = now
        time.sleep(1.5)


@pytest.mark.usefixtures("ray_cluster")
def test_errors_name_the_network_and_the_mend(tmp_path):
    def refused(embedder, rows, **values):
        with pytest.raises(InputError) as error:
            embed(embedder, rows, [], open_cache(tmp_path, embedder), EmbedConfig(batch_size=2, **values))
        return str(error.value)

    absent = Embedder("voxray.testing.frozen:Spelled", "absent", ("text",), {"loud": Column("text")}, "1")
    assert "'absent' cannot be loaded by voxray.testing.frozen:Spelled: absent is not a" in refused(
        absent, [{"text": "a"}]
    )
    wrong = Embedder(
        "voxray.testing.frozen:Wrong",
        "m",
        ("x",),
        {"twice": Column("float32", (8,))},
        "1",
        options={"how": "nan"},
    )
    assert "that is not finite (the network's dtype may be too narrow), for row 0" in refused(
        wrong, numbered(1)
    )
    assert "needs the column 'x'" in refused(wrong, [{"text": "a"}])
    assert "Ray sees no GPU" in refused(wrong, numbered(1), device="gpu")
    assert embed(wrong, [], [], open_cache(tmp_path, wrong), EmbedConfig()) == EmbedReport(0, 0, 0)
