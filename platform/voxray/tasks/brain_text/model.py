"""Neural features → hidden states → audio-like embeddings, units' logits, text (DOMAINS.md S1.a).

Shapes: B trials, T time bins, F features, P steps, H units of the GRU, D audio embedding, K units of CTC.
"""

from typing import NamedTuple

import torch
from torch import nn

from voxray.tasks.brain_text.config import Config
from voxray.tasks.brain_text.encoder import DayLayers, PatchedGru, num_patches
from voxray.tasks.brain_text.language import LanguageModel
from voxray.tasks.brain_text.transforms import smoothed


class Encoded(NamedTuple):
    """What a forward pass gives: the embedding [B, P, D] and CTC's logits [B, P, K], where the model has
    them, and how many of the P steps are the trial's own, [B].
    """

    brain_BPD: torch.Tensor | None
    logits_BPK: torch.Tensor | None
    num_steps_B: torch.Tensor


class BrainTextModel(nn.Module):
    """Smoothing, sessions' layers, patches, GRU; then a projector to audio embeddings, a head for CTC, and
    the frozen language model, each where the objective has a weight for it.
    """

    def __init__(
        self, config: Config, num_features: int, num_days: int, num_units: int, audio_dim: int | None
    ) -> None:
        """Build it for a dataset. Raises InputError where widths do not fit or nothing tells them."""
        super().__init__()
        model, own = config.model, config.objective
        self.config, self.transforms = model, config.data.transforms
        self.day_layers = DayLayers(num_days, num_features) if model.day_layers else None
        self.dropout = nn.Dropout(model.input_dropout)
        self.gru = PatchedGru(model, num_features)
        self.llm = LanguageModel(model.llm, audio_dim) if own.beta else None
        width = self.llm.embedding_dim if self.llm is not None else audio_dim
        self.projector = None
        if own.alpha or own.beta:
            assert width is not None
            self.projector = nn.Sequential(nn.Linear(model.n_units, width), nn.LayerNorm(width))
        self.head = nn.Linear(model.n_units, num_units) if own.gamma else None
        if self.head is not None:
            nn.init.xavier_uniform_(self.head.weight)

    def forward(
        self, neural_BTF: torch.Tensor, num_time_steps_B: torch.Tensor, day_B: torch.Tensor
    ) -> Encoded:
        """Return embedding and logits of raw features, the sessions by their place in the dataset's table."""
        x_BTF = smoothed(neural_BTF, num_time_steps_B, self.transforms)
        if self.day_layers is not None:
            x_BTF = self.day_layers(x_BTF, day_B)
        states_BPH = self.gru(self.dropout(x_BTF))
        return Encoded(
            None if self.projector is None else self.projector(states_BPH),
            None if self.head is None else self.head(states_BPH),
            num_patches(num_time_steps_B, self.config.patch_size, self.config.patch_stride),
        )
