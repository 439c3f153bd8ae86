"""MindEye whole: voxel2clip, the diffusion prior that refines its embedding, and beside both the low-level
branch (DOMAINS.md S3.a).

Shapes: B rows, V voxels, T tokens of an embedding, D numbers of a token; an embedding is [B, D], or [B, T, D]
of several tokens.
"""

import torch
from torch import nn

from voxray.tasks.mindeye.brain_network import BrainNetwork
from voxray.tasks.mindeye.config import BrainNetworkConfig, ModelConfig, PriorConfig
from voxray.tasks.mindeye.low_level import LatentShape, LowLevel
from voxray.tasks.mindeye.prior import DiffusionPrior
from voxray.tasks.mindeye.prior_network import PriorNetwork, TokenPriorNetwork
from voxray.tasks.mindeye.prior_transformer import TransformerShape
from voxray.tasks.mindeye.shared_subject import SubjectMaps


class MindEye(nn.Module):
    """x [B, V] → {embedding, compared}: what the prior takes, and what the contrastive loss and retrieval
    compare with pictures: the projector's output, or without one the embedding itself.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_voxels: int,
        tokens: int,
        dim: int,
        is_compared: bool = True,
        latent: LatentShape | None = None,
    ) -> None:
        """`tokens` and `dim` are the target's; without `is_compared` no loss reaches the projector, which
        then stays as it is. With the shape of a `latent` there is a low-level branch, by itself.
        """
        super().__init__()
        num_subjects, width = len(config.subjects), config.subject_dim if config.subjects else num_voxels
        self.subjects = SubjectMaps(num_voxels, width, num_subjects) if num_subjects else None
        self.voxel2clip = _brain_network(config.voxel2clip, width, tokens, dim)
        self.prior = _prior(config.prior, tokens, dim) if config.prior.enabled else None
        self.low_level = LowLevel(config.low_level, num_voxels, latent) if latent else None
        self.is_frozen = not config.combine_models
        if self.voxel2clip.projector is not None:
            self.voxel2clip.projector.requires_grad_(is_compared)
        if self.is_frozen:
            self.voxel2clip.requires_grad_(False)
        if self.is_frozen and self.subjects is not None:
            self.subjects.requires_grad_(False)

    def forward(
        self, voxels_BV: torch.Tensor, subject_B: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return both embeddings [B, D] or [B, T, D]; `subject_B` are places in `model.subjects`."""
        if self.subjects is not None:
            assert subject_B is not None
            voxels_BV = self.subjects(voxels_BV, subject_B)
        embedding, projected = self.voxel2clip(voxels_BV)
        return {"embedding": embedding, "compared": embedding if projected is None else projected}

    def train(self, mode: bool = True) -> "MindEye":
        """A voxel2clip that is not trained stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.voxel2clip.eval()
        return self


def _brain_network(config: BrainNetworkConfig, num_voxels: int, tokens: int, dim: int) -> BrainNetwork:
    return BrainNetwork(
        num_voxels,
        dim,
        hidden=config.hidden_dim,
        n_blocks=config.n_blocks,
        norm="bn" if config.norm == "batch" else "ln",
        act_first=config.act_first,
        projector=config.projector,
        tokens=tokens,
        projector_hidden=config.projector_dim,
        first_dropout=config.dropout_in,
        block_dropout=config.dropout,
    )


def _prior(config: PriorConfig, tokens: int, dim: int) -> DiffusionPrior:
    shape = TransformerShape(
        dim=dim,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.dim_head,
        feed_forward_mult=config.feed_forward_mult,
        normformer=config.normformer,
    )
    table = config.timesteps if config.timestep_table else None
    if tokens == 1:
        network = PriorNetwork(shape, num_padding=config.num_padding, learned_timesteps=table)
    else:
        network = TokenPriorNetwork(tokens, shape, learned_timesteps=table)
    return DiffusionPrior(
        network,
        timesteps=config.timesteps,
        condition_dropout=config.condition_dropout,
        image_embed_scale=config.image_embed_scale,
    )
