"""A copy of everything that a checkpoint holds, in CPU memory: training goes on while it is written."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from voxray.train.checkpoints.files import DTYPES, Tensors

TENSOR_KEY = "tensor in state.safetensors"  # {TENSOR_KEY: its path} stands in state.pt for a tensor


@dataclass(frozen=True)
class Snapshot:
    """One moment of a run. `tensors` maps a file's stem (`model`, `ema`) to a state dict."""

    step: int
    tensors: dict[str, Tensors]
    state: dict[str, Any]
    config: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, tied ones once."""
        return tree_bytes(self.tensors, self.state)


def snapshot(
    step: int, tensors: dict[str, Tensors], state: dict[str, Any], config: dict[str, Any]
) -> Snapshot:
    """Copy to CPU memory; nothing that happens to the originals afterwards changes the result.

    Tensors of a GPU go to page-locked memory without waiting for each other, then once for all. A tensor that
    is there under two names (tied weights) is copied once. `state` holds maps, lists, tuples, numbers, text,
    None and tensors; anything else is an AssertionError, as `torch.load(weights_only=True)` would refuse it.
    """
    copier = _Copier()
    taken = Snapshot(
        step,
        {stem: {name: copier.copy(value) for name, value in of.items()} for stem, of in tensors.items()},
        copier.tree(state, "state"),
        copy.deepcopy(config),
    )
    copier.wait()
    return taken


def tree_bytes(*trees: Any) -> int:
    """Return the bytes of all tensors in nested maps, lists and tuples, the same tensor once."""
    return sum({_identity(value): value.nbytes for value in _tensors_of(trees)}.values())


def lift(tree: Any, path: str, into: Tensors) -> Any:
    """Return `tree` with every tensor replaced by a map that names it, and put the tensors `into` a map."""
    if isinstance(tree, torch.Tensor):
        if tree.dtype not in DTYPES:
            return tree
        assert path not in into, f"two tensors of the state have the path {path}"
        into[path] = tree
        return {TENSOR_KEY: path}
    if isinstance(tree, dict):
        assert TENSOR_KEY not in tree
        return {key: lift(value, f"{path}/{key}" if path else str(key), into) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(lift(value, f"{path}/{index}", into) for index, value in enumerate(tree))
    return tree


def lower(tree: Any, tensors: Tensors) -> Any:
    """Put back the tensors that `lift` took out."""
    if isinstance(tree, dict):
        if TENSOR_KEY in tree:
            return tensors[tree[TENSOR_KEY]]
        return {key: lower(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(lower(value, tensors) for value in tree)
    return tree


class _Copier:
    """Copies tensors, each once, and remembers which devices still have to be waited for."""

    def __init__(self) -> None:
        self._copies: dict[Any, torch.Tensor] = {}
        self._devices: set[torch.device] = set()

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        """Return the contiguous copy of a tensor in CPU memory, the same object for the same tensor."""
        key = _identity(value)
        if key not in self._copies:
            self._copies[key] = self._copied(value.detach())
        return self._copies[key]

    def _copied(self, value: torch.Tensor) -> torch.Tensor:
        if value.device.type != "cuda":
            return value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._devices.add(value.device)
        locked = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return locked.copy_(value, non_blocking=True)

    def wait(self) -> None:
        """Return once every copy is complete."""
        for device in self._devices:
            torch.cuda.synchronize(device)

    def tree(self, value: Any, path: str) -> Any:
        """Return a copy of nested maps, lists and tuples of tensors and plain values."""
        if isinstance(value, torch.Tensor):
            return self.copy(value)
        if isinstance(value, dict):
            for key in value:
                assert isinstance(key, str | int), f"{path} has the key {key!r}, neither text nor int"
            return {key: self.tree(entry, f"{path}.{key}") for key, entry in value.items()}
        if isinstance(value, list | tuple):
            entries = [self.tree(entry, f"{path}.{index}") for index, entry in enumerate(value)]
            return entries if isinstance(value, list) else tuple(entries)
        for plain in (bool, int, float, str):  # a subclass, such as numpy's float64, becomes the plain type
            if isinstance(value, plain):
                return plain(value)
        assert value is None, f"{path} is a {type(value).__name__}, which a checkpoint cannot hold"
        return None


def _identity(value: torch.Tensor) -> Any:
    """Return a key that two tensors share when they are the same numbers in the same memory."""
    if not value.numel():
        return id(value)
    return value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride()


def _tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors_of(value)
