"""The `generation` section: pictures from predicted embeddings, by a diffusers pipeline."""

from typing import Literal

from pydantic import Field

from voxray.config.section import Section


class GenerationConfig(Section, frozen=True):
    """Pictures from predicted embeddings, by a diffusers pipeline (`voxray predict --images`)."""

    pipeline: str = Field(default="", description="a folder or a hub's id; default: no pictures are made")
    revision: str = "main"
    kind: Literal["auto", "unclip", "image_variation", "stable_diffusion"] = Field(
        default="auto",
        description="what takes the embedding: image_embeds (unCLIP), the image encoder's place "
        "(variations), or prompt_embeds (Stable Diffusion 1.5 with 768, 2.1 with 1,024 numbers); auto: as "
        "the folder says",
    )
    steps: int = Field(default=50, ge=1, description="denoising steps")
    guidance: float = Field(default=7.5, ge=0, description="classifier-free guidance; 1: none")
    seed: int = 42
    embedding_norm: float | None = Field(
        default=None,
        gt=0,
        description="norm that embeddings are given, as predictions have norm 1; default: that of the "
        "dataset's targets, else what the pipeline tells",
    )
    num_images: int = Field(default=1, ge=1, description="pictures per row")
    num_rows: int = Field(
        default=8, ge=1, description="rows that get pictures: the first by sample id, one per stimulus"
    )
    size: int | None = Field(
        default=None, ge=8, multiple_of=8, description="side in pixels; default: the pipeline's own"
    )
