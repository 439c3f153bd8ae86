"""Typed config of the MindEye task (DOMAINS.md S3): voxels → CLIP embeddings, refined by a prior."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from voxray.config.section import Section, errors_at
from voxray.core.clip_tower import ClipTargetConfig, check_stems
from voxray.core.generation import GenerationConfig
from voxray.core.run_config import RunConfig
from voxray.data.config import DataConfig, PrepareConfig
from voxray.tasks.mindeye import spellings
from voxray.tasks.mindeye.low_level_config import LowLevelConfig, VaeTargetConfig

ALIASES = spellings.ALIASES
VOXEL2CLIP, PRIOR = "voxel2clip", "prior"  # the model's two parts


class MindEyePrepareConfig(PrepareConfig, frozen=True):
    """How MindEye's tars become rows."""

    subjects: tuple[str, ...] = Field(
        default=(), description="which subjects are taken; default: all, if they have equally many voxels"
    )
    voxels: str = Field(
        default="nsdgeneral.npy", pattern=r"\.npy$", description="the tars' member with [repeats, voxels]"
    )
    images: Literal["encoded", "pixels", "none"] = Field(
        default="encoded",
        description="the picture in each row: its bytes as in the tar, uint8 [3, H, W], or none",
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="with a flat format: the files' columns clip_NAME, vectors; clip_hidden has several; of "
        ".npz files further arrays [trials, …]",
    )
    clip: tuple[ClipTargetConfig, ...] = Field(
        default=(),
        description="towers whose targets are computed of the pictures; default: those of clip.npz alone",
    )
    views: int = Field(
        default=0,
        ge=0,
        description="augmented views of each picture, whose targets the towers of `clip` compute too; "
        "training draws one of them whenever it sees the row",
    )
    vae: VaeTargetConfig = VaeTargetConfig()
    pad_voxels: bool = Field(
        default=False,
        description="subjects with fewer voxels than the widest get zeros behind theirs, for model.subjects; "
        "false: subjects of different widths are refused",
    )

    @model_validator(mode="after")
    def _targets_have_towers(self) -> Self:
        check_stems(self.clip)
        if self.clip and self.format != "raw":
            raise ValueError(
                "clip computes targets of raw files; of flat files name those that they hold: targets"
            )
        if self.vae.model and self.format != "raw":
            raise ValueError("vae computes latents of raw files; leave it out, flat files hold no pictures")
        if self.views and not self.clip:
            raise ValueError("views are of the towers of `clip`; name one, e.g. clip=[{model: vit_l14}]")
        return self


class MindEyeDataConfig(DataConfig, frozen=True):
    """Which fMRI rows a run reads."""

    prepare: MindEyePrepareConfig = MindEyePrepareConfig()
    image_size: int | None = Field(
        default=None,
        ge=8,
        description="side of the pictures in a batch, in pixels; default: none are decoded, as training on "
        "stored targets needs none",
    )
    augmented_views: bool = Field(
        default=True,
        description="training takes targets of augmented views of the pictures, where the dataset has them "
        "(data.prepare.views); evaluation never does",
    )


class BrainNetworkConfig(Section, frozen=True):
    """The network from voxels to a CLIP embedding."""

    hidden_dim: int = Field(default=4096, ge=1, description="width of its residual blocks")
    n_blocks: int = Field(default=4, ge=0, description="residual blocks")
    norm: Literal["layer", "batch"] = Field(
        default="layer", description="layer: LayerNorm and GELU (release); batch: BatchNorm and ReLU (before)"
    )
    act_first: bool = Field(
        default=False, description="the activation before the norm, as before the release"
    )
    projector: bool = Field(
        default=True, description="a head of its own for the contrastive loss; the prior takes what is before"
    )
    projector_dim: int = Field(default=2048, ge=1, description="width of the projector's hidden layers")
    dropout_in: float = Field(default=0.5, ge=0, lt=1, description="after the first layer")
    dropout: float = Field(default=0.15, ge=0, lt=1, description="in the blocks")


class PriorConfig(Section, frozen=True):
    """The diffusion prior: a transformer that removes noise from a CLIP embedding, given voxel2clip's."""

    enabled: bool = True
    depth: int = Field(default=6, ge=1, description="transformer blocks")
    heads: int = Field(default=12, ge=1)
    dim_head: int = Field(default=64, ge=2, multiple_of=2, description="width of a head")
    feed_forward_mult: int = Field(
        default=4, ge=1, description="width of the feed-forward layers over the token's"
    )
    normformer: bool = Field(
        default=False, description="a norm inside the feed-forward, as LAION's prior has"
    )
    timesteps: int = Field(default=1000, ge=2, description="steps from noise; MindEye's hidden form has 100")
    timestep_table: bool = Field(
        default=False,
        description="an embedding for each timestep, as LAION's prior has; false: sines, an MLP",
    )
    num_padding: int = Field(
        default=256,
        ge=0,
        description="tokens in the place of a text, of a target of one token; 256 as LAION's",
    )
    condition_dropout: float = Field(
        default=0.2, ge=0, lt=1, description="share of rows that are denoised without the brain's embedding"
    )
    image_embed_scale: float | None = Field(
        default=None, gt=0, description="factor of the target; default: the root of its width, √768 = 27.71"
    )


class ModelConfig(Section, frozen=True):
    """voxel2clip and the diffusion prior."""

    target: str = Field(
        default="final", description="the dataset's column clip_TARGET: [768], or [257, 768] of hidden tokens"
    )
    voxel2clip: BrainNetworkConfig = BrainNetworkConfig()
    prior: PriorConfig = PriorConfig()
    low_level: LowLevelConfig = LowLevelConfig()
    subjects: tuple[str, ...] = Field(
        default=(),
        description="the dataset's subjects, e.g. [subj01, subj02]: the voxels of each go through a linear "
        "map of their own to voxel2clip, which all share; default: one subject, no map",
    )
    subject_dim: int = Field(default=1024, ge=1, description="width behind the subjects' maps")
    combine_models: bool = Field(
        default=True,
        description="false: voxel2clip stays as training.parts.voxel2clip has it, the prior alone is trained",
    )


class MindEyeObjectiveConfig(Section, frozen=True):
    """loss = alpha · mse + nce (DOMAINS.md S3.b), and what the metrics are over."""

    alpha: float = Field(
        default=0.01, ge=0, description="weight of the prior's squared error; MindEye's hidden form has 30"
    )
    alpha_end: float | None = Field(
        default=None, ge=0, description="alpha goes there, linearly over the epochs; e.g. 0.05"
    )
    nce_weight: Annotated[float, Field(ge=0)] | Literal["1 - alpha"] = Field(
        default=1.0, description="weight of the contrastive term; `1 - alpha`: as upstream's code has it"
    )
    combine_losses: bool = Field(default=True, description="false: the prior's squared error alone")
    contrast: Literal["soft_clip", "info_nce"] = Field(
        default="soft_clip", description="the contrastive term after MixCo"
    )
    mixco_fraction: float = Field(
        default=0.33, ge=0, le=1, description="share of the epochs, from the first, with mixed voxels"
    )
    mixco_beta: float = Field(default=0.15, gt=0, description="shares are drawn from Beta(b, b)")
    mixco_rows: float = Field(default=0.5, ge=0, le=1, description="share of the rows that are mixed")
    tau: float = Field(default=0.006, gt=0, description="temperature of MixCo and InfoNCE")
    soft_tau: float = Field(default=0.004, gt=0, description="temperature with which SoftCLIP begins")
    soft_tau_end: float = Field(default=0.0075, gt=0, description="where it ends, along half a cosine")
    gallery: Annotated[int, Field(ge=2)] | Literal["all"] = Field(
        default=300, description="pictures that retrieval chooses among"
    )
    num_galleries: int = Field(default=30, ge=1, description="galleries that are drawn; the mean is told")


class MindEyeGenerationConfig(GenerationConfig, frozen=True):
    """Pictures from what the prior makes of the brain's embedding (`voxray predict --images`)."""

    prior_steps: int = Field(default=64, ge=1, description="denoising steps of the prior")
    prior_guidance: float = Field(
        default=1.0, ge=0, description="classifier-free guidance of the prior; 1: none"
    )
    prior_method: Literal["ddim", "ddpm"] = Field(
        default="ddim", description="ddpm takes all of the prior's timesteps"
    )
    keep_best: bool = Field(
        default=True,
        description="with num_images > 1: show the picture that the pipeline's image encoder finds nearest "
        "to the brain's embedding",
    )


class Config(RunConfig, frozen=True):
    """A MindEye experiment."""

    AFTER_TRAINING: ClassVar[tuple[str, ...]] = ("generation",)

    task: str = "mindeye"
    data: MindEyeDataConfig = MindEyeDataConfig()
    model: ModelConfig = ModelConfig()
    objective: MindEyeObjectiveConfig = MindEyeObjectiveConfig()
    generation: MindEyeGenerationConfig = MindEyeGenerationConfig()

    @property
    def has_nce(self) -> bool:
        """Whether the contrastive term is trained: it needs a voxel2clip that is."""
        own = self.objective
        return self.model.combine_models and own.combine_losses and own.nce_weight != 0

    def global_terms(self) -> tuple[str, ...]:
        """Return the contrastive term, where it is trained."""
        return ("nce",) if self.has_nce else ()

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise errors_at(problems)
        return self

    def _problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield what does not fit together: (key, sentence)."""
        model, own = self.model, self.objective
        if not model.prior.enabled:
            if not model.combine_models:
                text = "false trains the prior alone, and model.prior.enabled=false has none; set one of them"
                yield ("model", "combine_models"), text
            elif not own.combine_losses:
                text = "false keeps the prior's loss alone, and model.prior.enabled=false has none"
                yield ("objective", "combine_losses"), text
            elif own.nce_weight == 0:
                yield ("objective", "nce_weight"), "0 leaves no loss, as there is no prior"
        if own.nce_weight == "1 - alpha" and max(own.alpha, own.alpha_end or 0) > 1:
            text = f"`1 - alpha` is below 0 with alpha={max(own.alpha, own.alpha_end or 0):g}; write a number"
            yield ("objective", "nce_weight"), text
        yield from self._subject_problems()
        if self.training.stepper == "closed_form":
            yield ("training", "stepper"), "mindeye has no closed form; write gradient"

    def _subject_problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        model, subjects = self.model, self.model.subjects
        if len(set(subjects)) < len(subjects):
            yield ("model", "subjects"), "a subject is named twice; name each once"
        if subjects and self.has_nce and self.objective.mixco_fraction > 0:
            text = "voxels of several subjects do not mix; with model.subjects set mixco_fraction=0"
            yield ("objective", "mixco_fraction"), text
        if subjects and model.low_level.enabled:
            text = "the branch takes the voxels of one subject; leave model.subjects out, or the branch"
            yield ("model", "low_level", "enabled"), text

    def missing(self) -> list[str]:
        """Return that a frozen voxel2clip needs its weights."""
        if self.model.combine_models or self.training.parts.get(VOXEL2CLIP) or self.training.start_from:
            return []
        return [
            "voxel2clip stays as it was trained (model.combine_models=false); name its run or file with "
            "training.parts.voxel2clip=RUN (the guide's --voxel2clip_path)"
        ]

    def told(self) -> list[str]:
        """Return what the contrastive term costs under accumulation, and a pipeline under training."""
        said = super().told()
        if self.generation.pipeline:
            said.append(
                "generation.pipeline makes each evaluation draw samples of the prior; leave it to "
                "`voxray predict --images`"
            )
        training = self.training
        if training.accumulate_grad_batches > 1 and self.has_nce:
            rows = training.batch_size * training.accumulate_grad_batches
            said.append(
                f"the contrastive term compares all {rows} rows of an update, so each micro-batch runs twice"
            )
        return said
