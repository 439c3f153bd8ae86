"""`Embedder`: a frozen network whose outputs are columns of a dataset, computed once per distinct input."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from voxray.core.schema import Column

Option = bool | int | float | str


class FrozenNetwork(Protocol):
    """What a factory makes: columns of inputs → columns of outputs, rows first."""

    def __call__(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs of B inputs: per output an array [B, *shape], or for a ragged one B arrays
        [T_i, *rest]; text and bytes are sequences of B.

        Inputs of equal shape come as one array [B, *shape], others as an object array [B]. A row's outputs
        depend on that row alone: nothing random but what is seeded by it, padding masked.
        """
        ...


@dataclass(frozen=True)
class Embedder:
    """A frozen network and the columns that it makes; what is stored is found again by these values.

    `factory` names a class or function, `module:attribute`, that is called in a process of its own with the
    keywords model_id, revision, dtype, device (`cpu` or `cuda`) and the `options`, and returns a
    FrozenNetwork. `model_id` is a local folder or file, whose bytes identify it, or a name in a hub, which
    needs a `revision`. `dtype` is what the network computes in; `outputs` say what is stored. A None in an
    output's shape is a size that only the network tells.
    """

    factory: str
    model_id: str
    inputs: tuple[str, ...]  # columns of a row as the task's map stages leave it
    outputs: Mapping[str, Column]
    revision: str = ""
    dtype: str = "float32"
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])

    def __post_init__(self) -> None:
        """Refuse one without model, inputs or outputs, or with a name that is both."""
        assert self.model_id, f"{self.factory} has no model_id"
        assert self.inputs, f"{self.factory} has no inputs"
        assert self.outputs, f"{self.factory} has no outputs"
        assert not set(self.inputs) & set(self.outputs), f"{self.factory}: an input is also an output"
