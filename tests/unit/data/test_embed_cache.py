"""The cache of frozen networks' outputs: what goes in comes out, whole, once, whoever is killed."""

import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from voxray.config.errors import InputError
from voxray.core.embedder import Embedder
from voxray.core.registry import import_object
from voxray.core.schema import BYTES, TEXT, Column
from voxray.data import embed_cache
from voxray.data.embed_actor import run_padded
from voxray.data.embed_cache import EmbedCache, input_key, network_of

EMBEDDER = Embedder(
    "voxray.testing.frozen:Spelled",
    model_id="speller",
    revision="1",
    inputs=("text",),
    outputs={
        "codes": Column("int32", (None, 2), ragged=True),
        "vector": Column("float32", (None,)),
        "loud": Column(TEXT),
        "raw": Column(BYTES),
    },
)


@pytest.fixture(autouse=True)
def own_user_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user")))


def open_cache(root, embedder=EMBEDDER):
    return EmbedCache.of(root, embedder, network_of(embedder))


def outputs(keys, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "codes": [
            generator.integers(0, 9, (len(key) % 3 + i % 4, 2)).astype("int32") for i, key in enumerate(keys)
        ],
        "vector": generator.standard_normal((len(keys), 5)).astype("float32"),
        "loud": [key.upper() for key in keys],
        "raw": [key.encode() * i for i, key in enumerate(keys)],
    }


def keys_of(*texts):
    return [input_key(EMBEDDER, {"text": text}) for text in texts]


def assert_same(found, wanted, order):
    for name in wanted:
        for value, place in zip(found[name], order, strict=True):
            np.testing.assert_array_equal(value, wanted[name][place])
            assert type(value) is type(wanted[name][place])
            assert getattr(value, "dtype", None) == getattr(wanted[name][place], "dtype", None)


# --- what goes in comes out
# ------------------------------------------------------------------------------------------


def test_entries_come_back_in_any_order_in_any_process(tmp_path):
    cache, keys = open_cache(tmp_path), keys_of(*"abcdefg")
    made = outputs(keys)
    for some in (slice(0, 4), slice(4, 7)):
        cache.put(keys[some], {name: values[some] for name, values in made.items()})
    order = [6, 0, 3, 3, 5]
    for reader in (cache, open_cache(tmp_path), EmbedCache(cache.folder, EMBEDDER.outputs)):
        found = reader.get([keys[i] for i in order])
        assert found["vector"].shape == (5, 5)
        assert_same(found, made, order)
        assert len(reader) == 7
    assert cache.missing([*keys_of("x", "a", "y", "x"), keys[0]]) == keys_of("x", "y")


def test_an_entry_is_stored_once(tmp_path):
    first, second, keys = open_cache(tmp_path), open_cache(tmp_path), keys_of(*"abc")
    made = outputs(keys)
    first.put(keys[:2], made)
    second.put(keys, {name: list(values)[::-1] for name, values in made.items()})
    found = first.get(keys)
    assert_same({name: values[:2] for name, values in found.items()}, made, [0, 1])
    parts = [pa.ipc.open_file(path).read_all() for path in (first.folder / "shards").glob("*.arrow")]
    assert sorted(map(len, parts)) == [1, 2]
    first.put([], {name: [] for name in made})
    assert len(list((first.folder / "shards").iterdir())) == 2


def test_a_missing_entry_is_an_error_with_a_mend(tmp_path):
    cache = open_cache(tmp_path)
    with pytest.raises(InputError, match=r"no entry for 1 of 1 inputs.*run the command again"):
        cache.get(keys_of("a"))
    assert cache.missing([]) == []
    assert len(cache) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(["float16", "float32", "int64", "uint8"]))
def test_any_array_survives(tmp_path_factory, data, dtype):
    embedder = replace(EMBEDDER, outputs={"codes": Column(dtype, (None, 3), ragged=True)})
    values = data.draw(st.lists(arrays.arrays(dtype, st.tuples(st.integers(0, 5), st.just(3))), max_size=6))
    cache = open_cache(tmp_path_factory.mktemp("any"), embedder)
    keys = [input_key(embedder, {"text": str(i)}) for i in range(len(values))]
    cache.put(keys, {"codes": values})
    for value, found in zip(values, cache.get(keys)["codes"], strict=True):
        assert found.tobytes() == value.tobytes()
        assert (found.shape, found.dtype) == (value.shape, value.dtype)


def test_pyarrow_alone_reads_a_part(tmp_path):
    cache, keys = open_cache(tmp_path), keys_of("a", "b")
    made = outputs(keys)
    cache.put(keys, made)
    (part,) = (cache.folder / "shards").glob("*.arrow")
    table = pa.ipc.open_file(part).read_all()
    assert table["key"].to_pylist() == keys
    np.testing.assert_array_equal(table["vector"].to_pylist(), made["vector"])
    assert json.loads((cache.folder / "network.json").read_text())["model_id"] == "speller"


# --- killed, damaged, shared
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["write_shard", "_write_whole"])
def test_a_writer_that_dies_leaves_no_entry_and_the_next_one_cleans_up(tmp_path, monkeypatch, at):
    cache, keys = open_cache(tmp_path), keys_of("a", "b")
    real = getattr(embed_cache, at)

    def dies(*arguments):
        if at == "write_shard":
            real(*arguments)
        raise KeyboardInterrupt  # as little is cleaned up as by a kill

    monkeypatch.setattr(embed_cache, at, dies)
    with pytest.raises(KeyboardInterrupt):
        cache.put(keys, outputs(keys))
    monkeypatch.undo()
    (cache.folder / "parts" / "0.json.1.partial").write_text("{")
    assert len(list((cache.folder / "shards").iterdir())) == 1
    later = open_cache(tmp_path)
    assert later.missing(keys) == keys
    later.put(keys, outputs(keys))
    assert_same(later.get(keys), outputs(keys), range(2))
    for folder in ("shards", "index", "parts"):
        assert len(list((cache.folder / folder).iterdir())) == 1, folder


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    cache, keys = open_cache(tmp_path), keys_of("a")

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed_cache, "write_shard", full)
    with pytest.raises(OSError, match="No space"):
        cache.put(keys, outputs(keys))
    assert not list((cache.folder / "shards").iterdir())


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_makes_a_parts_entries_missing(tmp_path, caplog, place):
    cache, keys = open_cache(tmp_path), keys_of(*"abcd")
    made = outputs(keys)
    for i in range(2):
        cache.put(keys[2 * i : 2 * i + 2], {name: values[2 * i : 2 * i + 2] for name, values in made.items()})
    part = next(path for path in (cache.folder / "shards").iterdir() if keys[0].encode() in path.read_bytes())
    data = bytearray(part.read_bytes())
    data[int(place * len(data))] ^= 4
    part.write_bytes(data)
    again = open_cache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert again.missing(keys) == keys[:2]
        assert len(again) == 2
    assert len(caplog.messages) == 1
    assert part.name in caplog.messages[0]
    assert f"remove '{cache.folder / 'parts' / part.stem}.json'" in caplog.messages[0]
    again.put(keys[:2], made)
    assert_same(again.get(keys), made, range(4))


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_description_that_is_none(tmp_path, caplog, content):
    cache, keys = open_cache(tmp_path), keys_of("a")
    cache.put(keys, outputs(keys))
    (description,) = (cache.folder / "parts").iterdir()
    description.write_text(content)
    assert open_cache(tmp_path).missing(keys) == keys
    assert str(description) in caplog.text
    (cache.folder / "parts" / "gone.json").write_text("{}")
    description.unlink()
    assert open_cache(tmp_path).missing(keys) == keys


WRITER = """
import sys, time, numpy as np
from pathlib import Path
from voxray.core.schema import Column
from voxray.data import embed_cache
from voxray.data.embed_cache import EmbedCache
write_shard = embed_cache.write_shard
def slowly(*arguments):
    time.sleep(0.05)
    return write_shard(*arguments)
embed_cache.write_shard = slowly
cache = EmbedCache(Path(sys.argv[1]), {"v": Column("float32", (2,))})
for start in range(0, 60, 8):
    keys = [f"{i:032x}" for i in range(start, start + 8)]
    cache.put(keys, {"v": np.arange(start, start + 8, dtype="float32").repeat(2).reshape(-1, 2)})
"""


def test_processes_share_a_folder(tmp_path):
    cache = open_cache(tmp_path, replace(EMBEDDER, outputs={"v": Column("float32", (2,))}))
    command = [sys.executable, "-c", WRITER, str(cache.folder)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    keys = [f"{i:032x}" for i in range(64)]
    np.testing.assert_array_equal(cache.get(keys)["v"][:, 0], np.arange(64))
    tables = [pa.ipc.open_file(path).read_all() for path in (cache.folder / "shards").glob("*.arrow")]
    assert sorted(key for table in tables for key in table["key"].to_pylist()) == keys


def test_threads_share_a_cache(tmp_path, monkeypatch):
    keys = keys_of(*map(str, range(40)))
    made = outputs(keys)
    for start in range(0, 40, 4):
        open_cache(tmp_path).put(
            keys[start : start + 4], {name: values[start : start + 4] for name, values in made.items()}
        )
    sort, fresh = embed_cache._Entries.of, open_cache(tmp_path)

    def slowly(parts):
        time.sleep(0.1)
        return sort(parts)

    monkeypatch.setattr(embed_cache._Entries, "of", slowly)
    with ThreadPoolExecutor(4) as pool:
        for key, found in zip(keys, pool.map(lambda key: fresh.get([key]), keys), strict=True):
            assert found["loud"][0] == key.upper()


# --- what tells inputs and networks apart
# -----------------------------------------------------------------------------------


def test_an_inputs_key_is_its_kind_shape_and_bytes():
    embedder = replace(EMBEDDER, inputs=("x",))
    numbers = np.arange(6, dtype="<i4")
    values = [
        numbers,
        numbers.reshape(2, 3),
        numbers.reshape(3, 2),
        numbers.astype("<i8"),
        numbers.astype("<f4"),
        numbers.view("<u4"),
        np.int32(0),
        np.zeros(0, "<i4"),
        "ab",
        "ba",
        b"ab",
        "",
        b"",
    ]
    keys = [input_key(embedder, {"x": value}) for value in values]
    assert len(set(keys)) == len(values)
    for same in (
        numbers.astype(">i4"),
        np.stack([numbers, numbers], 1)[:, 0],
        np.arange(12, dtype="<i4")[:6],
    ):
        assert input_key(embedder, {"x": same}) == keys[0]
    both = replace(EMBEDDER, inputs=("x", "y"))
    assert input_key(both, {"x": "ab", "y": "c"}) != input_key(both, {"x": "a", "y": "bc"})
    with pytest.raises(InputError, match="needs the column 'x', which no map stage makes; a row has: text"):
        input_key(embedder, {"text": "a"})


def test_a_networks_folder_is_named_by_all_that_its_outputs_depend_on(tmp_path):
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "w.safetensors").write_bytes(b"weights")
    changes = [
        {},
        {"factory": "a:b"},
        {"model_id": "other"},
        {"revision": "2"},
        {"dtype": "float16"},
        {"options": {"layer": 3}},
        {"inputs": ("other",)},
        {"outputs": {"loud": Column(TEXT)}},
        {"outputs": {**EMBEDDER.outputs, "vector": Column("float16", (None,))}},
        {"model_id": str(weights)},
    ]
    folders = [open_cache(tmp_path / "c", replace(EMBEDDER, **change)).folder for change in changes]
    assert len(set(folders)) == len(changes)
    local = replace(EMBEDDER, model_id=str(weights))
    copy = weights.rename(tmp_path / "moved")
    (copy / ".lock").write_bytes(b"")
    moved = replace(EMBEDDER, model_id=str(copy))
    assert open_cache(tmp_path / "c", moved).folder == folders[-1]  # the bytes count, not where they lie
    (copy / "w.safetensors").write_bytes(b"Weights")
    assert open_cache(tmp_path / "c", moved).folder != folders[-1]
    told = replace(EMBEDDER, outputs={**EMBEDDER.outputs, "loud": Column(TEXT, unit="dB")})
    assert open_cache(tmp_path / "c", told).folder == folders[0]
    with pytest.raises(InputError, match="give the revision"):
        network_of(replace(local, model_id="openai/clip", revision=""))


# --- one forward pass
# ------------------------------------------------------------------------------------------------


def wrong(how):
    network = import_object("voxray.testing.frozen:Wrong")("m", "", "float32", "cpu", how)
    embedder = Embedder("m:Wrong", "m", ("x",), {"twice": Column("float32", (None, 2)[1:])}, "1")
    rows = [{"x": np.ones(2, "float32"), "origin": "table.csv row 3"}]
    with pytest.raises(InputError) as error:
        run_padded(network, embedder, rows, 4)
    return str(error.value)


def test_outputs_are_checked():
    assert "gives no 'twice'; it gives: thrice" in wrong("name")
    assert "gives 3 rows of 'twice' for 4 inputs" in wrong("rows")
    assert "of dtype float64, not float32" in wrong("dtype")
    assert "of shape (1,), not (2,)" in wrong("shape")
    assert "not a numpy array" in wrong("list")
    assert "not finite" in wrong("nan")
    assert "table.csv row 3" in wrong("nan")


def test_a_short_batch_is_filled_up_and_inputs_of_any_kind_are_stacked():
    seen = []

    def network(columns):
        seen.append(columns)
        return {"n": np.arange(4, dtype="int32")}

    embedder = Embedder("m:n", "m", ("text", "even", "ragged"), {"n": Column("int32")}, "1")
    rows = [{"text": "a" * i, "even": np.full(2, i), "ragged": np.zeros(i)} for i in range(3)]
    assert run_padded(network, embedder, rows, 4)["n"].tolist() == [0, 1, 2]
    assert seen[0]["text"].tolist() == ["", "a", "aa", "aa"]
    assert seen[0]["even"].tolist() == [[0, 0], [1, 1], [2, 2], [2, 2]]
    assert [len(value) for value in seen[0]["ragged"]] == [0, 1, 2, 2]
