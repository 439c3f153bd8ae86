"""The checkpoint protocol: whole or not at all, every bit verified, the one before is used."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as reference_bytes

from voxray.config.errors import RunError
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints import files as checkpoint_files
from voxray.train.checkpoints import pointers as checkpoint_pointers
from voxray.train.checkpoints.checkpoint import Best, Saver
from voxray.train.checkpoints.snapshot import snapshot, tree_bytes

FILES = ("model.safetensors", "state.safetensors", "state.pt", "config.json", "MANIFEST.json")


def taken(step, size=50):
    model = {"w": torch.full((size,), float(step)), "b": torch.arange(7)}
    return snapshot(step, {"model": model}, {"step": step, "moment": torch.ones(3)}, {"seed": 1})


def write(folder, step, best_value=None, ends_stage=None, stage=0):
    best = None if best_value is None else Best("val/loss", best_value, f"stage{stage}", stage)
    return checkpoint.write(folder, taken(step), best, ends_stage)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(saver, step, best_value=None, stage=0, **marks):
    best = None if best_value is None else Best("val/loss", best_value, f"stage{stage}", stage)
    saver.save(taken(step), best, **marks)


def flip_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


# What is written and read


def test_round_trip(tmp_path):
    tensors, state = checkpoint.load(write(tmp_path, 3))
    assert torch.equal(tensors["model"]["w"], torch.full((50,), 3.0))
    assert state["step"] == 3
    assert torch.equal(state["moment"], torch.ones(3))


def test_the_files_are_byte_for_byte_what_safetensors_writes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(5, 3, generator=generator)
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    dtypes += [torch.float8_e5m2, torch.complex64]
    dtypes += [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64]
    dtypes += [torch.uint64, torch.bool]
    tensors = {f"{name}.{dtype}": (floats * 3).to(dtype) for dtype in dtypes for name in ("z", "a")}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), 'quote" é': torch.ones(1)}
    saved = checkpoint.write(tmp_path, snapshot(1, {"model": tensors}, {}, {}))
    assert (saved / "model.safetensors").read_bytes() == reference_bytes(tensors)


def test_an_optimizers_state_comes_back_as_it_was(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.9))
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "scaler": {}, "skipped": [[0, 1, 2]], "best": float("nan")}
    saved = checkpoint.write(tmp_path, snapshot(1, {"model": model.state_dict()}, state, {}))
    _, back = checkpoint.load(saved)
    assert back["skipped"] == [[0, 1, 2]]
    assert back["scaler"] == {}
    assert back["best"] != back["best"]
    assert back["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(back["optimizer"]["state"][index][name], value), name
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(back["optimizer"])
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_loaded_moments_have_aligned_memory_of_their_own(tmp_path):
    moments = {f"moment{size}": torch.arange(size, dtype=torch.float32) for size in range(1, 40)}
    saved = checkpoint.write(tmp_path, snapshot(1, {"model": {"w": torch.ones(3)}}, moments, {}))
    on_disk = load_file(saved / "state.safetensors")
    assert any(value.data_ptr() % 64 for value in on_disk.values())  # as the file has them
    assert all(value.data_ptr() % 64 == 0 for value in checkpoint.load(saved)[1].values())


def test_tied_weights_are_kept_once_and_come_back_tied(tmp_path):
    weight = torch.randn(20, 4)
    tensors = {"embed.weight": weight, "head.weight": weight, "rows": weight[:5], "turned": weight.T}
    taken_now = snapshot(1, {"model": tensors}, {"moment": weight}, {})
    assert taken_now.num_bytes == 4 * (80 + 20 + 80)
    saved = checkpoint.write(tmp_path, taken_now)
    on_disk = load_file(saved / "model.safetensors")
    assert sorted(on_disk) == ["embed.weight", "rows", "turned"]
    back = checkpoint.load(saved)[0]["model"]
    assert back["head.weight"] is back["embed.weight"]
    for name, value in tensors.items():
        assert torch.equal(back[name], value), name


def test_a_snapshot_does_not_change_with_what_it_was_taken_of(tmp_path):
    weight, moment, config = torch.ones(4), torch.zeros(4), {"seed": [1]}
    state = {"moments": [moment], "place": {"step": 1}}
    kept = snapshot(1, {"model": {"w": weight}}, state, config)
    weight += 1
    moment += 1
    state["place"]["step"] = 2
    config["seed"].append(2)
    tensors, back = checkpoint.load(checkpoint.write(tmp_path, kept))
    assert torch.equal(tensors["model"]["w"], torch.ones(4))
    assert torch.equal(back["moments"][0], torch.zeros(4))
    assert back["place"] == {"step": 1}
    assert json.loads((tmp_path / "step-00000001" / "config.json").read_text()) == {"seed": [1]}


def test_a_value_that_would_not_load_is_refused_when_it_is_saved():
    import numpy as np

    assert type(snapshot(1, {}, {"rate": np.float64(0.5)}, {}).state["rate"]) is float
    with pytest.raises(AssertionError, match=r"state\.place\.0 is a int64"):
        snapshot(1, {}, {"place": [np.int64(3)]}, {})


def test_tree_bytes_counts_a_tensor_once():
    weight = torch.zeros(10)
    assert tree_bytes({"a": weight, "b": [weight, torch.zeros(3, dtype=torch.int64)]}, {"c": 1}) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_snapshot_of_gpu_tensors_is_complete_when_it_returns():
    weight = torch.zeros(64 << 20, device="cuda")
    for value in (1.0, 2.0):
        weight.fill_(value)
        kept = snapshot(1, {"model": {"w": weight, "t": weight[::2]}}, {"moment": weight.bfloat16()}, {})
        weight.fill_(-1.0)
        assert kept.tensors["model"]["w"].is_pinned()
        assert bool((kept.tensors["model"]["w"] == value).all())
        assert bool((kept.tensors["model"]["t"] == value).all())
        assert bool((kept.state["moment"] == value).all())


# What is damaged


def test_every_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path):
    rng = random.Random(0)
    for trial in range(40):
        folder = tmp_path / str(trial)
        write(folder, 1)
        newest = write(folder, 2)
        file = rng.choice(sorted(newest.iterdir()))
        flip_bit(file, rng)
        told = []
        assert checkpoint.newest(folder, told.append).name == "step-00000001", file
        assert len(told) == 1
        assert "set aside" in told[0]
        assert (folder / "corrupt-step-00000002").exists()


def test_each_single_bit_of_a_manifest_counts(tmp_path):
    saved = write(tmp_path, 1, best_value=0.25)
    whole = (saved / "MANIFEST.json").read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        (saved / "MANIFEST.json").write_bytes(data)
        with pytest.raises(ValueError):
            checkpoint_files.read_manifest(saved)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_noticed(tmp_path, damage, name):
    saved = write(tmp_path, 1)
    if damage == "remove":
        (saved / name).unlink()
    else:
        (saved / name).write_bytes((saved / name).read_bytes()[:-5])
    assert checkpoint.problem(saved) is not None
    with pytest.raises(RunError, match="cannot be used"):
        checkpoint.load(saved)


def test_weights_alone_are_the_moving_average_and_verified(tmp_path):
    model, ema = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    saved = checkpoint.write(tmp_path, snapshot(1, {"model": model, "ema": ema}, {}, {}))
    assert torch.equal(checkpoint.load_weights(saved)["w"], torch.zeros(3))
    flip_bit(saved / "model.safetensors", random.Random(0))
    assert torch.equal(checkpoint.load_weights(saved)["w"], torch.zeros(3))
    flip_bit(saved / "ema.safetensors", random.Random(0))
    with pytest.raises(RunError, match=r"ema\.safetensors does not match"):
        checkpoint.load_weights(saved)
    (saved / "ema.safetensors").unlink()
    with pytest.raises(RunError, match=r"ema\.safetensors is missing"):
        checkpoint.load_weights(saved)


def test_what_is_set_aside_never_replaces_what_was_set_aside_before(tmp_path):
    for _ in range(3):
        flip_bit(write(tmp_path, 1) / "model.safetensors", random.Random(0))
        assert checkpoint.newest(tmp_path, lambda _: None) is None
    assert names(tmp_path) == [f"corrupt-step-00000001{end}" for end in ("", "-2", "-3")]


def test_a_manifest_cannot_point_outside_the_checkpoint(tmp_path):
    saved = write(tmp_path, 1)
    body = checkpoint_files.read_manifest(saved)
    body["files"]["../../outside"] = {"sha256": "0" * 64, "bytes": 0}
    checkpoint_files.write_manifest(saved, body)
    assert "outside the checkpoint" in checkpoint.problem(saved)


def test_a_checkpoint_never_loads_code(tmp_path):
    import hashlib
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    saved = write(tmp_path, 1)
    payload = pickle.dumps(Payload())
    (saved / "state.pt").write_bytes(payload)
    body = checkpoint_files.read_manifest(saved)
    body["files"]["state.pt"] = {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
    checkpoint_files.write_manifest(saved, body)
    assert checkpoint.problem(saved) is None
    with pytest.raises(RunError, match="cannot be read"):
        checkpoint.load(saved)
    assert not (tmp_path / "ran").exists()


# What is kept


def test_a_second_checkpoint_of_the_same_update_replaces_none(tmp_path):
    found = [write(tmp_path, 10).name for _ in range(11)]
    assert found[:2] == ["step-00000010", "step-00000010.2"]
    assert checkpoint.last(tmp_path).name == "step-00000010.11"
    assert checkpoint.newest(tmp_path, print).name == "step-00000010.11"
    write(tmp_path, 11)
    assert checkpoint.newest(tmp_path, print).name == "step-00000011"


def test_a_saver_keeps_the_newest_and_the_best_of_every_stage(tmp_path):
    saver = Saver(tmp_path, keep=2, asynchronous=True, tell=print)
    (tmp_path / ".step-00000009.partial-1").mkdir()
    for step, best_value, stage in ((1, 0.9, 0), (2, 0.5, 0), (3, None, 0), (4, 0.8, 1), (5, None, 1)):
        save(saver, step, best_value, stage, ends_stage=0 if step == 3 else None)
    for step in (6, 7):
        save(saver, step)
    saver.wait()
    kept = [f"step-{step:08d}" for step in (2, 3, 4, 6, 7)]
    assert names(tmp_path) == ["best-0.json", "best-1.json", "best.json", "last-0.json", *kept]
    assert checkpoint.best(tmp_path).name == "step-00000004"
    assert checkpoint.best(tmp_path, 0).name == "step-00000002"
    assert checkpoint.best(tmp_path, 2) is None
    assert checkpoint.last(tmp_path).name == "step-00000007"
    assert checkpoint.last(tmp_path, 0).name == "step-00000003"
    pointer = json.loads((tmp_path / "best.json").read_text())
    assert pointer == {
        "checkpoint": "step-00000004",
        "metric": "val/loss",
        "value": 0.8,
        "stage": "stage1",
    }


def test_the_only_valid_checkpoint_is_never_deleted(tmp_path):
    told = []
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    for step in (3, 4):
        flip_bit(tmp_path / f"step-{step:08d}" / "model.safetensors", random.Random(0))
    checkpoint.prune(tmp_path, 1, told.append)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 3, 4)]
    assert "step-00000002 is kept" in told[0]
    flip_bit(tmp_path / "step-00000002" / "state.pt", random.Random(0))
    checkpoint.prune(tmp_path, 1, told.append)
    assert len(names(tmp_path)) == 3


def test_a_broken_pointer_is_an_error_and_nothing_is_deleted(tmp_path):
    saver = Saver(tmp_path, keep=1, asynchronous=False, tell=(told := []).append)
    save(saver, 1, 0.5)
    save(saver, 2)
    (tmp_path / "best.json").write_text('{"checkpoint": "../step')
    with pytest.raises(RunError, match=r"best\.json is broken"):
        checkpoint.best(tmp_path)
    save(saver, 3)
    assert [name for name in names(tmp_path) if name.startswith("step")] == [
        f"step-{step:08d}" for step in (1, 2, 3)
    ]
    assert "no checkpoint was deleted" in told[0]
    checkpoint.newest(tmp_path, print)
    assert checkpoint.best(tmp_path).name == "step-00000001"


def test_a_pointer_that_a_kill_left_behind_is_moved_when_the_run_goes_on(tmp_path):
    saver = Saver(tmp_path, keep=2, asynchronous=False, tell=print)
    save(saver, 1, 0.5)
    write(tmp_path, 2, best_value=0.25)  # killed here: the pointer still names the first
    assert checkpoint.best(tmp_path).name == "step-00000001"
    checkpoint.newest(tmp_path, print)
    assert checkpoint.best(tmp_path).name == "step-00000002"
    assert json.loads((tmp_path / "best-0.json").read_text())["value"] == 0.25


def test_a_best_that_is_damaged_gives_way_to_the_best_before(tmp_path):
    saver = Saver(tmp_path, keep=2, asynchronous=False, tell=print)
    save(saver, 1, 0.5)
    save(saver, 2, 0.25)
    flip_bit(tmp_path / "step-00000002" / "model.safetensors", random.Random(0))
    assert checkpoint.newest(tmp_path, lambda _: None).name == "step-00000001"
    assert checkpoint.best(tmp_path).name == "step-00000001"


def test_a_pointer_names_a_checkpoint_beside_it_alone(tmp_path):
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": "../elsewhere"}))
    with pytest.raises(RunError, match="no checkpoint's name"):
        checkpoint_pointers.follow(tmp_path / "best.json")
