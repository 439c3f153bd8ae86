"""BatchNorm over the rows of all workers. torch's SyncBatchNorm refuses CPU tensors; this runs anywhere.

`with GlobalBatchNorm():` around a forward pass makes every module that normalises through `F.batch_norm`,
timm's fused ones too, use the mean and variance of the global batch. The model, its keys and its checkpoint
stay what they were.
"""

from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class GlobalBatchNorm(TorchFunctionMode):
    """Replaces `F.batch_norm` in training mode while it is entered; identity in evaluation or when alone.

    torch leaves such a mode while a backward pass runs; `nn/recomputation.py` enters it again there.
    """

    _depth: ClassVar[int] = 0

    def __enter__(self) -> Self:
        """Take the place of `F.batch_norm`."""
        GlobalBatchNorm._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Give it back."""
        GlobalBatchNorm._depth -= 1
        super().__exit__(*error)

    @classmethod
    def is_entered(cls) -> bool:
        """Whether a forward pass runs under it."""
        return cls._depth > 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Route `F.batch_norm` to `global_batch_norm`, everything else to torch."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return global_batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


class _AllReduceSum(torch.autograd.Function):
    """The sum over workers; its gradient is the sum of the workers' gradients."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return _AllReduceSum.forward(ctx, grad_outputs[0])


def _all_reduce(value: torch.Tensor) -> torch.Tensor:
    total = _AllReduceSum.apply(value)
    assert isinstance(total, torch.Tensor)
    return total


def global_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Normalise `input` [B, C, …] over the batch and spatial axes of all workers; same formula as
    `F.batch_norm`.

    Mean first, then the variance of what is left, so that nothing is lost to cancellation. Workers may hold
    different numbers of rows. Running statistics get the unbiased variance, as torch's do.
    """
    if not (training and dist.is_initialized() and dist.get_world_size() > 1):
        with torch._C.DisableTorchFunction():
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = [0, *range(2, input.dim())]
    shape = [1, -1, *([1] * (input.dim() - 2))]
    x = input if input.dtype == torch.float64 else input.float()
    count = x.new_tensor([x.numel() / x.shape[1]])
    dist.all_reduce(count)
    mean_C = _all_reduce(x.sum(axes)) / count
    centred = x - mean_C.view(shape)
    var_C = _all_reduce(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean_C, momentum)
            running_var.lerp_(var_C * (count / (count - 1).clamp(min=1)), momentum)
    out = centred * torch.rsqrt(var_C + eps).view(shape)
    if weight is not None and bias is not None:
        out = out * weight.view(shape) + bias.view(shape)
    return out.to(input.dtype)
