"""`FrozenPart`: a pretrained network inside a model that no stage trains, kept out of checkpoints.

Gradients go through it and its weights stay what they are. A state dict holds a digest of the weights in
their place, and whatever else of the network is trained (low-rank adapters); loading compares the digests.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownMemberType=false

import copy
from collections.abc import Callable
from typing import Any

import torch
import xxhash
from torch import nn

from voxray.config.errors import InputError


class FrozenPart(nn.Module):
    """A network whose own parameters are frozen, always in evaluation mode.

    `adapt` may add parameters to it (adapters), which are trained and saved as any others. `origin` says
    where the weights come from, for errors. Copies share the frozen weights.
    """

    def __init__(
        self, network: nn.Module, origin: str, adapt: Callable[[nn.Module], None] | None = None
    ) -> None:
        """Digest the weights of the network, which lies on the CPU, and freeze them."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.origin = origin
        self._digest = _digest(network)
        own = {id(parameter) for parameter in network.parameters()}
        if adapt is not None:
            adapt(network)
        parameters = self.named_parameters(remove_duplicate=False)
        self._frozen = frozenset(name for name, value in parameters if id(value) in own)
        self._register_state_dict_hook(_leave_out)
        self.register_load_state_dict_post_hook(_expect_none)

    def train(self, mode: bool = True) -> "FrozenPart":
        """Stay in evaluation mode: the weights were not trained here, nor with this dropout."""
        return super().train(False)

    def left_out(self) -> set[str]:
        """Return the names, below this module, that a state dict leaves out: frozen weights, and buffers."""
        return {*self._frozen, *(name for name, _ in self.named_buffers(remove_duplicate=False))}

    def get_extra_state(self) -> torch.Tensor:
        """Return the weights' digest, uint8 [16]."""
        return self._digest

    def set_extra_state(self, state: Any) -> None:
        """Compare with the digest of the weights that a saved model stood on. Raises InputError where it is
        another one.
        """
        if not torch.equal(state.cpu(), self._digest):
            raise InputError(
                f"the frozen weights of '{self.origin}' are not those that the saved model was trained with; "
                "name the folder, or the hub's revision, that it had"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenPart":
        """Return a copy on the same frozen weights (a moving average need not hold them twice)."""
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if name in self._frozen:
                memo[id(parameter)] = parameter
        other = FrozenPart.__new__(FrozenPart)
        memo[id(self)] = other
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other


def _leave_out(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in module.left_out():
        state.pop(prefix + name, None)


def _expect_none(module: Any, incompatible: Any) -> None:
    """Take the frozen names out of those that a state dict is said to lack."""
    names = module.left_out()
    missing: list[str] = incompatible.missing_keys
    missing[:] = [
        key for key in missing if not any(key == name or key.endswith(f".{name}") for name in names)
    ]


def _digest(network: nn.Module) -> torch.Tensor:
    """Return xxh3-128 over the weights' names, dtypes, shapes and bytes, uint8 [16]."""
    digest = xxhash.xxh3_128()
    for name, value in network.named_parameters():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
