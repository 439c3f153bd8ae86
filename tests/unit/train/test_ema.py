"""The moving average against its recurrence."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from voxray.train.optimisation.ema import Ema

DECAY = 0.9


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def moved(model: nn.Module, step: int) -> None:
    """Stand in for an update: other weights, other statistics."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.train()
    model(torch.randn(8, 3, generator=generator))


def test_weights_follow_the_recurrence_and_buffers_are_the_models():
    model = make_model()
    ema = Ema(model, DECAY)
    expected: dict[str, torch.Tensor] = {}
    for step in range(6):
        moved(model, step)
        ema.update(model, step)
        for name, weight in model.named_parameters():
            weight = weight.detach().double()
            expected[name] = weight if step == 0 else DECAY * expected[name] + (1 - DECAY) * weight
    averaged = dict(ema.model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name].double(), value, rtol=1e-6, atol=1e-6)
    for (name, ours), (_, its) in zip(ema.model.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(ours, its), name
    assert int(model[1].num_batches_tracked) == 6


def test_saved_by_name_and_loaded_it_goes_on_alike():
    model = make_model()
    ema = Ema(model, DECAY)
    for step in range(3):
        moved(model, step)
        ema.update(model, step)
    assert ema.state_dict().keys() == model.state_dict().keys()
    other = Ema(make_model(), DECAY)
    other.load_state_dict(load(save(ema.state_dict())))
    moved(model, 3)
    for each in (ema, other):
        each.update(model, 3)
    for name, value in ema.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_the_average_is_in_evaluation_mode_without_gradients_and_a_copy():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    ema = Ema(model, DECAY)
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    moved(model, 0)
    for name, value in ema.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False)
            self.second = nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight

    model = Tied()
    ema = Ema(model, DECAY)
    with torch.no_grad():
        model.first.weight.fill_(1.0)
    ema.update(model, 0)
    with torch.no_grad():
        model.first.weight.fill_(2.0)
    ema.update(model, 1)
    assert ema.model.first.weight is ema.model.second.weight
    torch.testing.assert_close(ema.model.first.weight.detach(), torch.full((2, 2), 1.1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_lives_where_the_model_lives():
    model = make_model().cuda()
    ema = Ema(model, DECAY)
    ema.update(model, 0)
    assert {value.device.type for value in ema.state_dict().values()} == {"cuda"}
