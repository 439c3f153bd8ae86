"""Config of MindEye's low-level branch, and of the frozen autoencoder whose latents it learns. No torch."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from voxray.config.section import Section
from voxray.core.embedder import Embedder
from voxray.core.schema import Column

LATENT = "vae_latent"  # the dataset's column
LOW_LEVEL = "low_level"  # the model's part, and its loss term


class VaeTargetConfig(Section, frozen=True):
    """Latents of the pictures by one autoencoder, computed once when raw files are prepared: `vae_latent`."""

    model: str = Field(
        default="", description="a folder or a hub's id of a pipeline or an AutoencoderKL; default: none"
    )
    revision: str = Field(default="main", description="of the hub's id")
    subfolder: str = Field(default="vae", description="where it lies in there; '' for an autoencoder alone")
    side: int = Field(
        default=512, ge=8, multiple_of=8, description="side in pixels at which it sees pictures"
    )


class LowLevelConfig(Section, frozen=True):
    """The low-level branch: voxels to the latents of an autoencoder (`data.prepare.vae`), by an MLP of its
    own and an upsampling decoder.
    """

    enabled: bool = False
    weight: float = Field(
        default=5.49, gt=0, description="of the latents' absolute error; upstream's is 1 / 0.18215"
    )
    hidden_dim: int = Field(default=4096, ge=1, description="width of its residual blocks")
    n_blocks: int = Field(default=4, ge=0, description="residual blocks")
    dropout_in: float = Field(default=0.5, ge=0, lt=1, description="after the first layer")
    dropout: float = Field(default=0.25, ge=0, lt=1, description="in the blocks")
    map_channels: int = Field(
        default=64, ge=1, description="channels of the map that the decoder begins with"
    )
    channels: tuple[int, ...] = Field(
        default=(64, 128, 256),
        min_length=1,
        description="of the decoder's blocks, the last first; each but one doubles the side",
    )
    norm_groups: int = Field(default=32, ge=1, description="groups of the decoder's GroupNorm")

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> Self:
        if wrong := [num for num in self.channels if num % self.norm_groups]:
            raise ValueError(f"channels: {wrong[0]} is no multiple of norm_groups={self.norm_groups}")
        return self


def vae_columns(vae: VaeTargetConfig) -> dict[str, Column]:
    """Return the column that an autoencoder makes; its sizes only the network tells."""
    return {LATENT: Column("float32", (None, None, None), unit="latent of the picture")} if vae.model else {}


def vae_embedders(vae: VaeTargetConfig) -> list[Embedder]:
    """Return the frozen network that makes it of `pixels`, if one is named."""
    if not vae.model:
        return []
    folder = Path(vae.model).expanduser()
    is_folder = folder.is_dir()
    own = {"side": vae.side} if is_folder else {"side": vae.side, "subfolder": vae.subfolder}
    return [
        Embedder(
            "voxray.nn.vae_latents:VaeLatents",
            str((folder / vae.subfolder).absolute()) if is_folder else vae.model,
            ("pixels",),
            vae_columns(vae),
            revision="" if is_folder else vae.revision,
            options=own,
        )
    ]
