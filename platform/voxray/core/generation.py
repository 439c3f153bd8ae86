"""The `generation` section: pictures from predicted embeddings, by a diffusers pipeline."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any, Literal, Protocol, TypeVar

from pydantic import Field

from voxray.config.errors import InputError, RunError
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
    networks: str = Field(
        default="",
        description="a folder with published weights of AlexNet, InceptionV3, CLIP ViT-L/14, EfficientNet-B1 "
        "and SwAV, e.g. ~/.cache/torch/hub/checkpoints: those that it holds compare pictures with what was "
        "shown",
    )

    def named_pipeline(self) -> str:
        """Return `pipeline`. Raises InputError where it names none."""
        if self.pipeline:
            return self.pipeline
        raise InputError(
            "generation.pipeline names no pipeline; add generation.pipeline=FOLDER or a hub's id, e.g. "
            "stabilityai/stable-diffusion-2-1-unclip-small"
        )


class PipelineFacts(Protocol):
    """What a pipeline's small files tell."""

    @property
    def location(self) -> str:
        """Its folder or id."""
        ...

    @property
    def embedding_dim(self) -> int:
        """How many numbers it takes."""
        ...


Facts = TypeVar("Facts", bound=PipelineFacts)


def facts_for(
    read: Callable[[str, str, Any], Facts],
    config: GenerationConfig,
    embedding_dim: int,
    target: str,
    mend: str,
) -> Facts:
    """Return what `read` (`nn.generation.read_pipeline`) tells of the pipeline that `config` names.

    Raises InputError where it names none, cannot be read, or takes other than the `embedding_dim` numbers of
    `target`; `mend` says then what else to do than to name another, with the number it takes as `{wanted}`.
    """
    with told_of_pipeline():
        facts = read(config.named_pipeline(), config.revision, config.kind)
    wanted = facts.embedding_dim
    if wanted != embedding_dim:
        raise InputError(
            f"generation.pipeline: '{facts.location}' takes embeddings of {wanted:,} numbers, and the model "
            f"predicts {embedding_dim:,} (target '{target}'); name another pipeline, or "
            + mend.format(wanted=f"{wanted:,}")
        )
    return facts


@contextlib.contextmanager
def told_of_pipeline() -> Generator[None, None, None]:
    """Name the key: a ValueError of `nn.generation` becomes an InputError, too little memory a RunError."""
    import torch

    try:
        yield
    except ValueError as error:
        raise InputError(f"generation.pipeline: {error}") from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the GPU's memory does not hold the pipeline and its pictures; make them fewer or smaller "
            "with generation.num_images or generation.size"
        ) from error


@contextlib.contextmanager
def told_of_networks() -> Generator[None, None, None]:
    """Name the key: a ValueError of `nn.picture_networks` becomes an InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"generation.networks: {error}") from error
