"""Parameter groups, what weight decay applies to, and updates against torch's plain implementations."""

import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from voxray.train.config import ParameterOptions, TrainingConfig
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.optimisation.parameters import choose_trainable
from voxray.train.optimisation.schedules import Place, set_rates

NAMES = ("adamw", "adam", "sgd")


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def reference_optimizer(name: str, model: nn.Module, lr: float, decay: float) -> torch.optim.Optimizer:
    """torch's one-tensor-at-a-time implementation of the same update."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=(0.8, 0.95), eps=1e-6, foreach=False, fused=False)
        case _:
            return torch.optim.SGD(groups, lr=lr, momentum=0.7, foreach=False, fused=False)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        optimizer.zero_grad()
        x_BI = torch.randn(8, 3, generator=generator, dtype=model[0].weight.dtype)
        model(x_BI).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_biases_and_norms_get_no_weight_decay_and_frozen_parameters_no_update(name):
    model = make_model()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model, TrainingConfig(optimizer=name, weight_decay=0.5))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(p): 0.5 if p.ndim > 1 else 0.0 for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", NAMES)
def test_twenty_updates_equal_torchs_plain_implementation(name):
    training = TrainingConfig(
        optimizer=name, learning_rate=0.02, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6, momentum=0.7
    )
    ours, reference = make_model().double(), make_model().double()
    for model in (
        ours,
        reference,
    ):  # a bias before BatchNorm has no gradient, and Adam would amplify rounding
        model[1] = nn.LayerNorm(4, dtype=torch.float64)
    for model, optimizer in (
        (ours, build_optimizer(ours, training, torch.device("cpu"))),
        (reference, reference_optimizer(name, reference, 0.02, 0.2)),
    ):
        train(model, optimizer, 20)
    for value, expected in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


def test_options_by_glob_make_groups_in_the_models_order_and_a_later_glob_wins():
    training = TrainingConfig(
        learning_rate=1.0,
        weight_decay=0.1,
        parameters={
            "*": ParameterOptions(min_lr_fraction=0.5),
            "0": ParameterOptions(learning_rate=0.01, weight_decay=0.7),
            "0.bias": ParameterOptions(learning_rate=0.02, warmup_steps=3),
            "1": ParameterOptions(freeze=True),
        },
    )
    model = make_model()
    choose_trainable(model, training)
    optimizer = build_optimizer(model, training)
    keys = ("param_names", "lr", "base_lr", "warmup_steps", "min_lr_fraction", "weight_decay")
    assert [tuple(group[key] for key in keys) for group in optimizer.param_groups] == [
        (["0.weight"], 0.01, 0.01, None, 0.5, 0.7),
        (["0.bias"], 0.02, 0.02, 3, 0.5, 0.0),
        (["2.weight"], 1.0, 1.0, None, 0.5, 0.1),
        (["2.bias"], 1.0, 1.0, None, 0.5, 0.0),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_optimizer_loads_without_pickle_and_goes_on_as_if_it_had_not_stopped(name):
    """The saved groups hold: also a rate that only the first process knew (found by the LR finder)."""
    training = TrainingConfig(optimizer=name, schedule="one_cycle", learning_rate=0.02)
    found = training.model_copy(update={"learning_rate": 0.05})
    model, other = make_model(), make_model()
    optimizer = build_optimizer(model, found)
    set_rates(optimizer, training, Place(3, 10, 0, 1))
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = build_optimizer(other, training)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for each, its in ((model, optimizer), (other, resumed)):
        set_rates(its, training, Place(4, 10, 0, 1))
        train(each, its, 3)
    for value, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("alone")
def test_parameters_that_fsdp_holds_are_updated_alike(name):
    """torch has no fused kernel for some optimizers there, on any number of workers."""
    training = TrainingConfig(optimizer=name, learning_rate=0.02)
    whole, split = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(2))
    split.load_state_dict(whole.state_dict())
    fully_shard(split, mesh=dist.init_device_mesh("cpu", (1,)))
    for model in (whole, split):
        train(model, build_optimizer(model, training), 5)
    for value, its in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(its.full_tensor(), value)
