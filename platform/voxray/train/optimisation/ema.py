"""A moving average of a model's weights, which is evaluated in their place."""

# timm annotates its functions in part only.
# pyright: reportUnknownMemberType=false

import torch
from torch import nn

from voxray.train import parallel


class Ema:
    """After each update of a stage: average = decay · average + (1 − decay) · weights; after the first one,
    the weights themselves, so that no random start is in it. Buffers (BatchNorm's statistics, a memory
    bank) are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy the model, to where it lies, in evaluation mode. `decay` is between 0 and 1."""
        from timm.utils.model_ema import ModelEmaV3  # here: it imports all of timm, which takes seconds

        self._average = ModelEmaV3(model, decay=decay, exclude_buffers=True)
        self.model.requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, in evaluation mode, without gradients."""
        return self._average.module

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after the stage's update number `step`, counted from 0."""
        self._average.update(model, step=step + 1)  # timm counts updates from 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return averaged weights and buffers under the model's own names."""
        return parallel.model_state(self.model)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state_dict` returned."""
        parallel.load_model(self.model, state)
