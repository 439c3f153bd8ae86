"""BatchNorm under gradient checkpointing: the second forward pass is to be the first one, and leave no trace.

Checkpointing runs a part of the model once more inside of the backward pass. Each layer normalises by the
batch then as well, over the workers it did before, but running statistics must not move twice.
"""

from typing import Any

import torch
from torch import nn

from voxray.nn.global_batch_norm import GlobalBatchNorm


def count_batches_once(model: nn.Module) -> None:
    """Let every layer of `model` with running statistics leave them alone in a forward pass that runs inside
    of a backward pass, and use the same statistics as in the first one: those of all workers' rows, where
    that one ran under `GlobalBatchNorm`.

    What it adds is copied with the model and is no part of its state.
    """
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            again = _Again()
            module.register_forward_pre_hook(again.begin)
            # Recomputation ends by an exception once it has what the backward pass needs.
            module.register_forward_hook(again.end, always_call=True)


class _Again:
    """What one layer's second pass must know of its first one."""

    def __init__(self) -> None:
        self._was_global = False
        self._mode: GlobalBatchNorm | None = None
        self._held: list[Any] = []  # the layer's momentum while a second pass runs

    def begin(self, module: Any, args: Any) -> None:
        """Hold the running statistics: they move by momentum 0 and count no batch."""
        if not module.training:
            return
        if not _is_recomputing():
            self._was_global = GlobalBatchNorm.is_entered()
            return
        self._held.append(module.momentum)
        module.momentum = 0.0
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.sub_(1)
        if self._was_global:
            self._mode = GlobalBatchNorm()
            self._mode.__enter__()

    def end(self, module: Any, args: Any, output: Any) -> None:
        """Let them go."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        if self._held:
            module.momentum = self._held.pop()


def _is_recomputing() -> bool:
    """Whether this is inside of a backward pass; what torch.compile traces is never run twice."""
    # torch.utils.checkpoint tells a running backward pass by this function too.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
