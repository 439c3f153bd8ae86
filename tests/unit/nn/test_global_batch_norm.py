"""GlobalBatchNorm on two processes against torch's BatchNorm on the whole batch."""

from pathlib import Path

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from voxray.nn.global_batch_norm import GlobalBatchNorm
from voxray.testing.spawn import spawn

ROWS = (5, 2)  # uneven, as a short last batch is


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    ).double()


def inputs() -> torch.Tensor:
    return torch.randn(sum(ROWS), 2, 8, 8, generator=torch.Generator().manual_seed(1)).double() * 3 + 2


def on_one_rank(folder: str) -> None:
    rank = dist.get_rank()
    model = build()
    mine = inputs().split(ROWS)[rank]
    with GlobalBatchNorm():
        model(mine).square().sum().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    if rank == 0:
        grads = [p.grad for p in model.parameters()]
        torch.save({"grads": grads, "buffers": [b.clone() for b in model.buffers()]}, f"{folder}/out.pt")


def test_two_processes_equal_one_batch(tmp_path: Path):
    spawn(2, on_one_rank, str(tmp_path))
    ours = torch.load(tmp_path / "out.pt", weights_only=True)
    model = build()
    model(inputs()).square().sum().backward()
    for mine, reference in zip(ours["grads"], model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference.grad, rtol=1e-4, atol=1e-4)
    for mine, reference in zip(ours["buffers"], model.buffers(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_alone_and_in_evaluation_it_is_torch():
    model = build()
    x = inputs()
    for mode in (True, False):
        model.train(mode)
        with GlobalBatchNorm():
            ours = model(x)
        assert (
            torch.equal(ours, model(x)) or mode
        )  # in training the running statistics moved, the output did not
        torch.testing.assert_close(ours, model(x))
