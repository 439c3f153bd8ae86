"""The checkpoint protocol: whole or not at all, every bit verified, the one before is used."""

import json
import random

import pytest
import torch

from voxray.config.errors import RunError
from voxray.train import checkpoint


def write(folder, step):
    model = {"w": torch.full((50,), float(step)), "b": torch.arange(7)}
    return checkpoint.save(folder, step, model, {"step": step, "moment": torch.ones(3)}, {"seed": 1})


def test_round_trip(tmp_path):
    model, state = checkpoint.load(write(tmp_path, 3))
    assert torch.equal(model["w"], torch.full((50,), 3.0))
    assert state["step"] == 3
    assert torch.equal(state["moment"], torch.ones(3))


def test_every_flipped_bit_is_noticed_and_the_one_before_is_used(tmp_path):
    rng = random.Random(0)
    for trial in range(40):
        folder = tmp_path / str(trial)
        write(folder, 1)
        newest = write(folder, 2)
        file = rng.choice(sorted(newest.iterdir()))
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        told = []
        found = checkpoint.newest(folder, told.append)
        if file.name == checkpoint.MANIFEST and found.name == newest.name:
            # a bit of the manifest that is neither a name nor a digest, e.g. white space, changes nothing it
            # says
            assert checkpoint.problem(found) is None
            continue
        assert found.name == "step-00000001", file
        assert "set aside" in told[0]
        assert (folder / "corrupt-step-00000002").exists()


@pytest.mark.parametrize("damage", ["truncate", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "config.json", "MANIFEST.json"])
def test_a_truncated_or_missing_file_is_noticed(tmp_path, damage, name):
    saved = write(tmp_path, 1)
    if damage == "remove":
        (saved / name).unlink()
    else:
        (saved / name).write_bytes((saved / name).read_bytes()[:-5])
    assert checkpoint.problem(saved) is not None
    with pytest.raises(RunError, match="cannot be used"):
        checkpoint.load(saved)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 6):
        saved = write(tmp_path, step)
        if step == 2:
            checkpoint.point_best(tmp_path, saved, "val/loss", 0.5)
    (tmp_path / ".step-00000009.partial-1").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.json",
        "step-00000002",
        "step-00000004",
        "step-00000005",
    ]
    assert checkpoint.best(tmp_path).name == "step-00000002"


def test_a_save_that_dies_leaves_no_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def die(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", die)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 2)
    assert checkpoint.newest(tmp_path, print).name == "step-00000001"


def test_a_checkpoint_never_loads_code(tmp_path):
    import os
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    saved = write(tmp_path, 1)
    (saved / "state.pt").write_bytes(pickle.dumps(Payload()))
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    manifest["files"]["state.pt"]["sha256"] = checkpoint._sha256(saved / "state.pt")
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"(?i)weights|unpickling|cannot be read"):
        checkpoint.load(saved)
    assert not (tmp_path / "ran").exists()
