"""One model on one or many workers: DDP, FSDP, torch.compile, and its state as one process would hold it.

States are keyed by parameter names and hold whole tensors, so a checkpoint does not depend on how the model
was split when it was written.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from voxray.core import collectives
from voxray.core.batch import Batch
from voxray.core.losses import LossTerms
from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.nn.global_batch_norm import GlobalBatchNorm

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

OWN_SHARD = 1_000_000  # parameters from which a repeated block is a shard of its own
FSDP, TENSOR = "torch.distributed.fsdp", "torch.distributed.tensor"  # 0.5 s to import: only where needed


def is_split_model(model: nn.Module) -> bool:
    """Whether a model is split over the workers."""
    return FSDP in sys.modules and isinstance(model, sys.modules[FSDP].FSDPModule)


def is_split_tensor(value: object) -> bool:
    """Whether a tensor is split over the workers."""
    return TENSOR in sys.modules and isinstance(value, sys.modules[TENSOR].DTensor)


class LossModule(nn.Module):
    """The one module that DDP wraps: forward(batch, stage) is the task's weighted sums.

    They leave it as a dict of tensors, since wrappers look for tensors in what a forward pass returns; the
    terms themselves stay in `terms` until the next pass.
    """

    def __init__(self, task: Task, model: nn.Module) -> None:
        """Hold the model; the task is no module and stays outside the state."""
        super().__init__()
        self.model = model
        self.task = task
        self._last: list[LossTerms] = [{}]  # in a list, as Module's __setattr__ would take 10 µs each time

    @property
    def terms(self) -> LossTerms:
        """The terms of the last forward pass."""
        return self._last[0]

    def forward(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Return each loss term's weighted sum over this worker's entries."""
        self._last[0] = self.task.loss(self.model, batch, stage)
        return {
            name: term.sum if term.weight == 1 else term.weight * term.sum
            for name, term in self._last[0].items()
        }


def place(model: nn.Module, stage: Stage, device: torch.device) -> None:
    """Split the model over the workers (FSDP) and compile it, in place, where the config says so."""
    wants_split = stage.config.scale.strategy == "fsdp" and collectives.is_distributed()
    if wants_split and not is_split_model(model):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (collectives.world_size(),))
        for block in _large_blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    mode = stage.training.compile
    if mode != "off":
        model.compile(mode=mode)


def wrap(module: LossModule, device: torch.device) -> nn.Module:
    """Wrap in DDP when several workers hold whole models. Its buffers are global already (GlobalBatchNorm).

    From three workers on the order in which gradients are added follows DDP's buckets, which it deals anew
    after the first update unless it looks for unused parameters: then a resumed run would not be bit-equal.
    """
    if not collectives.is_distributed() or is_split_model(module.model):
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        find_unused_parameters=collectives.world_size() > 2,
    )


def unwrapped(module: nn.Module) -> LossModule:
    """Return the LossModule inside of `wrap`."""
    return cast(LossModule, module.module if isinstance(module, DistributedDataParallel) else module)


def forward_context(
    module: nn.Module, stage: Stage, device: torch.device, ends_update: bool
) -> contextlib.AbstractContextManager[None]:
    """Autocast, BatchNorm over all workers, and the gradients' exchange at the update's last micro-batch
    only.
    """
    if stage.training.precision == "fp32" and not collectives.is_distributed():
        return _NOTHING
    return _entered(module, stage, device, ends_update)


_NOTHING = contextlib.nullcontext()


@contextlib.contextmanager
def _entered(module: nn.Module, stage: Stage, device: torch.device, ends_update: bool) -> Generator[None]:
    training = stage.training
    with contextlib.ExitStack() as stack:
        if training.precision != "fp32":
            dtype = torch.bfloat16 if training.precision == "bf16" else torch.float16
            stack.enter_context(torch.autocast(device.type, dtype=dtype))
        if training.sync_batchnorm and collectives.is_distributed():
            stack.enter_context(GlobalBatchNorm())
        inner = unwrapped(module).model
        if is_split_model(inner):
            cast("FSDPModule", inner).set_requires_gradient_sync(ends_update)
        elif isinstance(module, DistributedDataParallel) and not ends_update:
            stack.enter_context(module.no_sync())
        yield


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor that may be split over the workers, whole; every worker calls this."""
    return cast("DTensor", value).full_tensor() if is_split_tensor(value) else value


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state dict, whole."""
    return {name: whole(value.detach()) for name, value in model.state_dict().items()}


def load_model(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load a whole state dict into a model that may be split; keys and shapes must match."""
    there = model.state_dict()
    model.load_state_dict({name: _like(value, there.get(name)) for name, value in weights.items()})


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's state by parameter names, whole, of tensors and plain values."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups, moments = [], {}
    for group in optimizer.param_groups:
        own = {key: value for key, value in group.items() if key != "params"}
        groups.append({**own, "params": [names[id(parameter)] for parameter in group["params"]]})
        for parameter in group["params"]:
            moments[names[id(parameter)]] = {
                key: whole(value) if isinstance(value, torch.Tensor) else value
                for key, value in optimizer.state[parameter].items()
            }
    return {"groups": groups, "state": moments}


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over the moments that `optimizer_state` returned, by parameter names; the same ones are trained.

    Rates, weight decay, betas and the like stay as the optimiser was built: they are the config's, which may
    be another than the saved one's (PBT). torch moves each moment to where its parameter lies.
    """
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    trained = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(trained) == sorted(name for group in saved["groups"] for name in group["params"])
    moments = {
        number: {
            key: _like(value, parameters[name]) if isinstance(value, torch.Tensor) and value.ndim else value
            for key, value in saved["state"][name].items()
        }
        for number, name in enumerate(trained)
    }
    # torch numbers the parameters in the order of the groups.
    optimizer.load_state_dict({"param_groups": optimizer.state_dict()["param_groups"], "state": moments})


def _like(value: torch.Tensor, there: torch.Tensor | None) -> torch.Tensor:
    """Split a whole tensor as `there` is split, on its device."""
    if there is None:
        return value
    moved = value.to(there.device)
    if is_split_tensor(there):
        from torch.distributed.tensor import distribute_tensor

        split = cast("DTensor", there)
        return distribute_tensor(moved, split.device_mesh, split.placements)
    return moved


def _large_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of lists (a transformer's blocks) that are large enough to be gathered one by one."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    blocks = [block for held in lists for block in held if _num_parameters(block) >= OWN_SHARD]
    return list(dict.fromkeys(reversed(blocks)))  # inner blocks before those that hold them


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
