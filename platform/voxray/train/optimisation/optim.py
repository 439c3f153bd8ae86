"""Optimisers of a stage: parameter groups by glob. A group keeps its own rate, warm-up and floor as plain
values, which `schedules.set_rates` reads and which go through a checkpoint with it.
"""

import inspect
import sys
from functools import cache
from typing import Any

import torch
from torch import nn

from voxray.train import parallel
from voxray.train.config import TrainingConfig
from voxray.train.optimisation.parameters import options_of

# Fused kernels on a CPU too: 1.4–2.9 × as fast as the default ones on small models, 2.5–4.7 × with 10 M
# parameters (torch 2.14, one thread), with the same error against float64.
FUSED_ON = ("cuda", "cpu")


def build_optimizer(
    model: nn.Module, training: TrainingConfig, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """Return the stage's optimiser over the trainable parameters (at least one) of a model on `device`.

    Matrices and kernels get weight decay; biases, norms and other parameters of at most one axis never do.
    Groups come in the order in which the model names their first parameters.
    """
    _spare_compiler()
    groups = parameter_groups(model, training)
    where: torch.device = groups[0]["params"][0][1].device if device is None else device
    is_split = any(parallel.is_split_tensor(value) for group in groups for _, value in group["params"])
    has_kernel = training.optimizer != "sgd" or not is_split  # torch 2.14: no fused SGD under FSDP
    fused = True if has_kernel and where.type in FUSED_ON else None  # None: torch chooses
    common: dict[str, Any] = {"lr": training.learning_rate, "fused": fused}
    match training.optimizer:
        case "adamw":
            return _eager(torch.optim.AdamW)(groups, betas=training.betas, eps=training.eps, **common)
        case "adam":
            return _eager(torch.optim.Adam)(groups, betas=training.betas, eps=training.eps, **common)
        case "sgd":
            return _eager(torch.optim.SGD)(groups, momentum=training.momentum, **common)


def _spare_compiler() -> None:
    """Let optimisers be made and saved without torch's compiler, unless it has been imported already."""
    if "torch._dynamo" not in sys.modules:
        for method in ("add_param_group", "state_dict", "load_state_dict"):
            plain = getattr(getattr(torch.optim.Optimizer, method), "__wrapped__", None)
            if plain is not None:
                plain.__dynamo_disable = plain  # where torch looks first; another name would only be slow


@cache
def _eager(kind: type[torch.optim.Optimizer]) -> Any:
    """Return the class with a `step` that is the same and leaves torch's compiler alone.

    Torch's own imports it (1.7 s in each process that trains) to break a graph that is not compiled here.
    """
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})


def parameter_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """Return torch's parameter groups, one for each combination of options; `params` are (name, parameter).

    `warmup_steps` and `min_lr_fraction` are None where the stage's own hold.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = options_of(name, training.parameters)
        base_lr = own.learning_rate or training.learning_rate
        decay = training.weight_decay if own.weight_decay is None else own.weight_decay
        values = {
            "lr": base_lr,
            "base_lr": base_lr,
            "warmup_steps": own.warmup_steps,
            "min_lr_fraction": own.min_lr_fraction,
            "weight_decay": decay if parameter.ndim > 1 else 0.0,
        }
        group = groups.setdefault(tuple(values.values()), {"params": [], **values})
        group["params"].append((name, parameter))
    return list(groups.values())
