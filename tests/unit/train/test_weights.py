"""What `training.start_from` may name, how it is read safely, and what happens when it fits in part only."""

import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from voxray.config.errors import InputError, RunError
from voxray.train.checkpoints import checkpoint, weights
from voxray.train.checkpoints.checkpoint import Best, Saver
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.checkpoints.weights import WeightsAt, load_into, read_weights, resolve


class Net(nn.Module):
    """A body with statistics, and a head whose width a new problem changes."""

    def __init__(self, num_outputs=2, head="head"):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        setattr(self, head, nn.Linear(4, num_outputs))


def net(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Net(**kwargs)


def assert_same(state, other):
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def written(folder, run="task/one", first_stage_best=True):
    """Write a run of two stages: `align` with steps 1 to 3 (best: 2), `prior` with 4 to 6 (best: 4)."""
    path = folder / run
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    saver = Saver(path / "checkpoints", keep=1, asynchronous=False, tell=print)
    for step, stage, is_best in ((1, 0, 1), (2, 0, 1), (3, 0, 0), (4, 1, 1), (5, 1, 0), (6, 1, 0)):
        best = Best("val/loss", 1 / step, ("align", "prior")[stage], stage) if is_best else None
        if stage == 0 and not first_stage_best:
            best = None
        model = {"w": torch.full((2,), float(step))}
        saver.save(snapshot(step, {"model": model}, {}, {}), best, ends_stage=0 if step == 3 else None)
    return path


def step_of(at):
    return float(read_weights(at)["w"][0])


def find(reference, root, run="task/one", earlier=()):
    return resolve(str(reference), root, root / run / "checkpoints", earlier)


# What a reference means


def test_a_run_a_pointer_and_a_checkpoint(tmp_path):
    run = written(tmp_path)
    assert step_of(find(run, tmp_path)) == 4
    assert step_of(find(run / "best", tmp_path)) == 4
    assert step_of(find(run / "last", tmp_path)) == 6
    assert step_of(find(run / "checkpoints" / "step-00000002", tmp_path)) == 2
    assert step_of(find("task/one", tmp_path)) == 4  # below storage.path
    assert step_of(find("task/one/last", tmp_path)) == 6
    assert find(run, tmp_path).text == f"step-00000004, the best of {run}"


def test_a_run_without_a_best_is_its_newest(tmp_path):
    run = tmp_path / "task" / "one"
    checkpoint.write(run / "checkpoints", snapshot(1, {"model": {"w": torch.ones(2)}}, {}, {}))
    (run / "config.json").write_text("{}")
    assert step_of(find(run, tmp_path)) == 1
    with pytest.raises(InputError, match="holds no best checkpoint"):
        find(run / "best", tmp_path)


def test_an_earlier_stage(tmp_path):
    written(tmp_path)
    assert step_of(find("align/best", tmp_path, earlier=("align",))) == 2
    assert step_of(find("align/last", tmp_path, earlier=("align",))) == 3
    assert step_of(find("best", tmp_path, earlier=("align",))) == 2
    assert step_of(find("last", tmp_path, earlier=("align",))) == 3
    assert step_of(find("best", tmp_path, earlier=("align", "prior"))) == 4
    assert step_of(find("align/best", tmp_path, earlier=("align", "prior"))) == 2
    with pytest.raises(RunError, match="stage 'prior' left no last checkpoint"):
        find("last", tmp_path, earlier=("align", "prior"))
    with pytest.raises(InputError, match="the first stage has none"):
        find("best", tmp_path)


def test_an_earlier_stage_that_kept_no_best(tmp_path):
    written(tmp_path, first_stage_best=False)
    with pytest.raises(RunError, match=r"stage 'align' left no best .* checkpoints\.save_best=true"):
        find("align/best", tmp_path, earlier=("align",))


def test_the_moving_average_is_what_a_checkpoint_gives(tmp_path):
    tensors = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}
    saved = checkpoint.write(tmp_path, snapshot(1, tensors, {}, {}))
    assert step_of(find(saved, tmp_path)) == 0


def test_a_reference_to_nothing_names_what_is_near(tmp_path):
    written(tmp_path)
    with pytest.raises(
        InputError, match="no earlier stage, run, checkpoint or weights file; did you mean task/one"
    ):
        find("task/onee", tmp_path)
    with pytest.raises(InputError, match="did you mean align/best"):
        find("alingn/best", tmp_path, earlier=("align",))
    with pytest.raises(InputError, match="neither a run nor a checkpoint"):
        find(tmp_path / "task", tmp_path)
    (tmp_path / "model.ckpt").write_text("")
    with pytest.raises(InputError, match=r"model\.ckpt cannot be started from: it is no \.safetensors"):
        find(tmp_path / "model.ckpt", tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run = written(tmp_path)
    file = run / "checkpoints" / "step-00000004" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 8
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"model\.safetensors does not match its sha256"):
        read_weights(find(run, tmp_path))


# Files of other programs


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_a_torch_file_bare_or_nested(tmp_path, suffix, key):
    state = net(1).state_dict()
    path = tmp_path / f"w{suffix}"
    torch.save(state if key is None else {key: state, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    model = net(2)
    found = find(path, tmp_path)
    assert load_into(model, read_weights(found), pytest.fail) == weights.Loaded((), ())
    assert_same(model.state_dict(), state)


def test_a_safetensors_file(tmp_path):
    state = net(1).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model = net(2)
    load_into(model, read_weights(find("w.safetensors", tmp_path)), pytest.fail)
    assert_same(model.state_dict(), state)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    with pytest.raises(InputError, match=r"w\.safetensors is no whole safetensors file"):
        read_weights(find("w.safetensors", tmp_path))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_ddp_and_compile_put_in_front_of_a_name_is_left_out(prefix):
    state = net(1).state_dict()
    model = net(2)
    load_into(model, {prefix + name: value for name, value in state.items()}, pytest.fail)
    assert_same(model.state_dict(), state)


def test_states_that_torch_itself_prefixed_load():
    source = net(1)
    compiled = torch.compile(source)
    inside = net(3)
    inside.body = torch.compile(inside.body)
    parallel = nn.DataParallel(source)
    assert "module.head.weight" in parallel.state_dict()
    assert "_orig_mod.head.weight" in compiled.state_dict()
    assert "body._orig_mod.0.weight" in inside.state_dict()
    for wrapped in (compiled, parallel, inside):
        model = net(2)
        load_into(model, dict(wrapped.state_dict()), pytest.fail)
        assert_same(
            model.state_dict(),
            {
                n.replace("body._orig_mod", "body"): v
                for n, v in (inside if wrapped is inside else source).state_dict().items()
            },
        )


def test_a_model_with_a_part_of_that_name_loads_too():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, model = Wrapper(), Wrapper()
    load_into(model, source.state_dict(), pytest.fail)
    assert_same(model.state_dict(), source.state_dict())


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("how", ["torch", "pickle", "whole module"])
def test_a_file_that_needs_pickle_is_refused_in_one_sentence(tmp_path, how):
    path = tmp_path / "w.pt"
    if how == "torch":
        torch.save({"state_dict": {"w": torch.ones(1)}, "hook": Payload(tmp_path / "ran")}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    else:
        torch.save(net(), path)
    with pytest.raises(InputError, match="could run code") as raised:
        read_weights(WeightsAt(path, ""))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a map"),
        ({"epoch": 3, "note": "x"}, "holds no weights: .* its keys are epoch, note"),
        ({"model": {"w": 3}}, "holds no weights"),
    ],
)
def test_a_torch_file_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        read_weights(WeightsAt(tmp_path / "w.pt", ""))


def test_a_torch_file_cut_short(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"w\.pt"):
        read_weights(WeightsAt(tmp_path / "w.pt", ""))


# What fits


def test_a_new_head_is_told_and_left_as_it_was():
    source, model, told = net(1, head="old"), net(2), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_into(model, source.state_dict(), told.append)
    assert loaded == weights.Loaded(("head.weight", "head.bias"), ("old.weight", "old.bias"))
    assert "new in the model: head.weight, head.bias" in told[0]
    assert "left out: old.weight, old.bias" in told[1]
    for name, value in model.state_dict().items():
        origin = source.state_dict() if name.startswith("body") else before
        assert torch.equal(value, origin[name]), name


def test_another_shape_is_an_error_and_changes_nothing():
    model = net(2, num_outputs=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as raised:
        load_into(model, net(1).state_dict(), pytest.fail)
    assert raised.value.problems == (
        "head.weight is [2, 4] in the weights and [3, 4] in the model",
        "head.bias is [2] in the weights and [3] in the model",
    )
    assert_same(model.state_dict(), before)


def test_weights_of_another_model_are_an_error():
    with pytest.raises(
        InputError, match=r"no weight fits the model: they are named encoder\.weight; .* body\.0"
    ):
        load_into(net(), {"encoder.weight": torch.ones(1)}, pytest.fail)


def test_tied_weights_are_not_missing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    assert load_into(model, {"embed.weight": torch.ones(5, 3)}, pytest.fail) == weights.Loaded((), ())
    assert torch.equal(model.head.weight, torch.ones(5, 3))
