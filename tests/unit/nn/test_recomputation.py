"""Gradient checkpointing beside none: the same gradients, and running statistics that move once."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from voxray.nn.global_batch_norm import GlobalBatchNorm
from voxray.nn.recomputation import count_batches_once
from voxray.testing.spawn import spawn


def backbone(name: str, recomputes: bool, counts_once: bool = True) -> nn.Module:
    import timm  # takes seconds, which the spawned processes need not spend

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, in_chans=1)
    if recomputes:
        model.set_grad_checkpointing()
    if recomputes and counts_once:
        count_batches_once(model)
    return model.train()


def after_updates(model: nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients and buffers after three passes forward and backward."""
    for part in images.chunk(3):
        model(part).square().sum().backward()
    return [p.grad for p in model.parameters()], [b.clone() for b in model.buffers()]


def images(rows: int = 12) -> torch.Tensor:
    return torch.randn(rows, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_gradients_and_running_statistics_are_those_without(name):
    plain = after_updates(backbone(name, False), images())
    again = after_updates(backbone(name, True), images())
    for kind in (0, 1):
        for ours, expected in zip(again[kind], plain[kind], strict=True):
            assert torch.equal(ours, expected)
    twice = after_updates(backbone(name, True, counts_once=False), images())
    assert not all(torch.equal(a, b) for a, b in zip(twice[1], plain[1], strict=True))


def test_a_cumulative_average_and_a_layer_in_evaluation_mode():
    """`momentum=None` averages over all batches; a frozen layer has no batch to count."""
    layers = [nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2).eval(), nn.ReLU()]
    model = nn.Sequential(*layers)
    count_batches_once(model)
    parts = images(6).reshape(3, 8, 2, -1)[..., :5]
    for part in parts:
        checkpoint(model, part.requires_grad_(), use_reentrant=False).sum().backward()
    expected = nn.BatchNorm1d(2, momentum=None)
    with torch.no_grad():
        for part in parts:
            expected(layers[0](part))
    assert torch.equal(model[1].running_var, expected.running_var)
    assert int(model[1].num_batches_tracked) == 3
    assert model[1].momentum is None
    assert int(model[2].num_batches_tracked) == 0


class Checkpointed(nn.Module):
    """A convolution with BatchNorm, run again in the backward pass where that is asked for."""

    def __init__(self, recomputes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recomputes = recomputes
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
        count_batches_once(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.body, x, use_reentrant=False) if self.recomputes else self.body(x)


def on_one_rank(folder: str) -> None:
    """Both ways on one half of the batch, normalised over both workers; the backward pass inside, as the
    loop has it.
    """
    mine = images(8).split((5, 3))[dist.get_rank()]
    kept = []
    for recomputes in (False, True):
        model = Checkpointed(recomputes)
        with GlobalBatchNorm():
            model(mine).square().sum().backward()
        kept.append([p.grad for p in model.parameters()] + [b.clone() for b in model.buffers()])
    if dist.get_rank() == 0:
        torch.save(kept, f"{folder}/out.pt")


def test_together_with_statistics_over_all_workers(tmp_path: Path):
    spawn(2, on_one_rank, str(tmp_path))
    plain, again = torch.load(tmp_path / "out.pt", weights_only=True)
    for ours, expected in zip(again, plain, strict=True):
        assert torch.equal(ours, expected)
