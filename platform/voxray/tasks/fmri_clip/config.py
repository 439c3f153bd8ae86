"""Typed config of the fMRI-to-CLIP task (DOMAINS.md S0), and the guide's spellings of it."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from voxray.config.section import Section, errors_at
from voxray.core.clip_tower import CLIPS, ClipTargetConfig, check_stems
from voxray.core.generation import GenerationConfig
from voxray.core.run_config import RunConfig
from voxray.core.trained_config import read_trained_config
from voxray.data.config import DataConfig, PrepareConfig
from voxray.tasks.fmri_clip import spellings

ALIASES = spellings.ALIASES


_LAYER = re.compile(r"(?:^|_)layer_(\d+)$")


class FmriClipPrepareConfig(PrepareConfig, frozen=True):
    """How raw fMRI becomes rows. Patterns of `.npz` files are taken as they are; `mask` and `zscore` are for
    NIfTI and HDF5.
    """

    layout: Literal["auto", "nsd", "events", "npz", "mindeye", "mindeye2"] = Field(
        default="auto",
        description="nsd: betas and NSD's stimulus table; events: BOLD with *_events.tsv; npz: arrays "
        "[trials, voxels]; mindeye: its tars; mindeye2: its HDF5 files and tars; auto: whichever of them the "
        "folder holds",
    )
    files: str = Field(
        default="", description="glob of the files with the patterns, e.g. `*_25mm.nii.gz`; default: all"
    )
    subjects: tuple[str, ...] = Field(
        default=(), description="which subjects are taken; default: all, if they have equally many voxels"
    )
    mask: str = Field(
        default="",
        description="glob of the mask's file; default: nsdgeneral.nii.gz for NSD, else the one *mask* file",
    )
    zscore: bool = Field(
        default=True, description="give each voxel mean 0 and standard deviation 1 within each session (run)"
    )
    hrf_delay_s: float = Field(
        default=5.0, ge=0, le=30, description="seconds from an event to the BOLD volumes that show it"
    )
    group: Literal["stimulus_id", "session_id"] = Field(
        default="stimulus_id", description="what is never in two splits: a stimulus, or a session (run)"
    )
    test_split: Literal["shared1000", "drawn"] = Field(
        default="shared1000",
        description="the test split of NSD: the 1,000 pictures that all subjects saw (if stimuli are the "
        "groups), or drawn like the others",
    )
    test_sessions: tuple[int, ...] = Field(
        default=(),
        description="with group=session_id: numbers of the sessions (runs) that are the test split",
    )
    images: Literal["auto", "none", "encoded", "pixels"] = Field(
        default="auto",
        description="the stimuli in each row: none, a PNG, or uint8 pixels; auto: a PNG where there is a "
        "picture but no CLIP target",
    )
    image_size: int = Field(default=224, ge=8, description="side of a stored picture; CLIP takes 224")
    clip: tuple[ClipTargetConfig, ...] = Field(
        default=(), description="towers whose targets are computed; default: those that the raw files hold"
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="further targets: `label`, a stimulus' category as 0 and 1, or an array [trials, …] of "
        "`.npz` files by its name, e.g. stimuli; the columns clip_label, clip_stimuli. With a flat format: "
        "the files' columns clip_NAME",
    )
    repeats: Literal["trials", "averaged", "stacked"] = Field(
        default="trials",
        description="trials: a row each; averaged: one row per stimulus, the mean of its trials; stacked: "
        "one row per stimulus with all its trials, of which training draws one and evaluation takes the mean",
    )
    reliability: bool = Field(
        default=True, description="measure each voxel's split-half reliability over repeated training stimuli"
    )

    @model_validator(mode="after")
    def _names_come_once(self) -> Self:
        check_stems(self.clip)
        if self.test_sessions and self.group != "session_id":
            raise ValueError("test_sessions need group=session_id, so that no session is in two splits")
        return self


class FmriClipDataConfig(DataConfig, frozen=True):
    """Which fMRI rows a run reads, and how training rows are augmented."""

    prepare: FmriClipPrepareConfig = FmriClipPrepareConfig()
    augmentation: bool = Field(default=False, description="augment training rows by the values below")
    noise_std: float = Field(default=0.1, ge=0, description="standard deviation of noise added to each voxel")
    voxel_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of voxels set to 0, per row")
    mixup: float = Field(
        default=0.0,
        ge=0,
        description="rows are blended with another row of the batch, the share drawn from Beta(a, a); 0: not",
    )


class EncoderConfig(Section, frozen=True):
    """A network from voxels to CLIP embeddings (DOMAINS.md S0.a)."""

    architecture: Literal["ridge", "mlp", "two_stage", "clip_adapter", "clip2fmri"] = Field(
        default="mlp",
        description="ridge: linear, in closed form; clip_adapter: a trained encoder, frozen, and a map "
        "to another CLIP's space; clip2fmri: from CLIP to voxels",
    )
    clip: str = Field(
        default="",
        description="vit_b32, vit_l14 …: the tower of the targets, against which widths are checked; "
        "default: what the dataset holds",
    )
    target: str = Field(default="final", description="the dataset's column clip_TARGET that is predicted")
    layers: tuple[str, ...] = Field(
        default=(), description="two_stage: further targets, e.g. [layer_4, layer_8, layer_12]"
    )
    # mlp
    hidden_dims: tuple[int, ...] = Field(default=(256,), description="mlp: widths of the hidden layers")
    activation: Literal["relu", "gelu"] = "relu"
    norm: Literal["none", "batch", "layer"] = Field(
        default="none", description="mlp: after each linear layer"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1)
    # two_stage
    latent_dim: int = Field(default=768, ge=1, description="two_stage: width of the residual blocks")
    n_blocks: int = Field(default=4, ge=0, description="two_stage, residual inverse: residual blocks")
    head: Literal["linear", "mlp"] = Field(default="linear", description="two_stage: its second stage")
    head_dim: int = Field(default=512, ge=1, description="two_stage: width of an mlp head")
    shared_head: bool = Field(
        default=True, description="two_stage with layers: one mlp layer for all targets before their own"
    )
    # clip2fmri
    inverse: Literal["linear", "mlp", "residual"] = Field(default="mlp", description="clip2fmri: its form")
    inverse_dim: int = Field(default=1024, ge=1, description="clip2fmri: width of its hidden layer")
    min_reliability: float | None = Field(
        default=None, description="voxels below this split-half reliability are left out, e.g. 0.1"
    )

    @model_validator(mode="after")
    def _tower_has_the_targets(self) -> Self:
        if self.clip and self.clip not in CLIPS:
            near = get_close_matches(self.clip, CLIPS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CLIPS)};"
            raise errors_at(
                [(("clip",), f"no tower's widths are known as '{self.clip}'; {hint} or leave it out")]
            )
        for key in ("layers", "target"):
            names = self.layers if key == "layers" else (self.target,)
            for name in names:
                found = _LAYER.search(name)
                last = CLIPS[self.clip].num_blocks if self.clip else None
                if found and last and not 1 <= int(found[1]) <= last:
                    raise errors_at([((key,), f"{self.clip} has the blocks 1 to {last}, and no '{name}'")])
        return self


class ModelConfig(EncoderConfig, frozen=True):
    """The network that is trained, and the trained ones that it stands on."""

    encoder: EncoderConfig | None = Field(
        default=None, description="clip_adapter: its encoder; read from training.parts.encoder"
    )
    brain: EncoderConfig | None = Field(
        default=None, description="brain consistency: the inverse network; read from training.parts.brain"
    )
    adapter_dims: tuple[int, ...] = Field(default=(), description="clip_adapter: widths of hidden layers")
    adapter_norm: bool = Field(default=True, description="clip_adapter: LayerNorm before unit length")


class FmriClipObjectiveConfig(Section, frozen=True):
    """Weights of the loss terms (DOMAINS.md S0.b), and what the metrics are over."""

    mse: float = Field(
        default=0.0, ge=0, description="mean squared error of unit-length embeddings (or voxels)"
    )
    cosine: float = Field(default=1.0, ge=0, description="1 − cosine")
    info_nce: float = Field(default=0.0, ge=0, description="symmetric InfoNCE over the rows of an update")
    tau: float = Field(default=0.05, gt=0, description="InfoNCE's temperature")
    layer_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={"layer_4": 0.15, "layer_8": 0.20, "layer_12": 0.25, "final": 0.40},
        description="with model.layers: each target's weight; they are scaled to a sum of 1",
    )
    learn_layer_weights: bool = Field(
        default=False, description="train the layers' weights, as a softmax that begins with these"
    )
    brain_consistency: float = Field(
        default=0.0,
        ge=0,
        description="squared error of the voxels that a frozen clip2fmri makes of the output",
    )
    gallery: Annotated[int, Field(ge=2)] | Literal["all"] = Field(
        default=300, description="pictures that retrieval chooses among, the mean over disjoint galleries"
    )
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 5, 10, 50), description="the K of recall at K"
    )


class Config(RunConfig, frozen=True):
    """An fMRI-to-CLIP experiment."""

    AFTER_TRAINING: ClassVar[tuple[str, ...]] = ("generation",)

    task: str = "fmri_clip"
    data: FmriClipDataConfig = FmriClipDataConfig()
    model: ModelConfig = ModelConfig()
    objective: FmriClipObjectiveConfig = FmriClipObjectiveConfig()
    generation: GenerationConfig = GenerationConfig()

    def global_terms(self) -> tuple[str, ...]:
        """Return InfoNCE, where it has a weight."""
        return ("info_nce",) if self.objective.info_nce else ()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise errors_at(problems)
        return self

    def _problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield what does not fit together: (key, sentence)."""
        model, objective, parts = self.model, self.objective, self.training.parts
        kind = model.architecture
        if self.training.stepper == "closed_form" and kind != "ridge":
            text = (
                f"closed_form solves model.architecture=ridge alone, and it is {kind}; write stepper=gradient"
            )
            yield ("training", "stepper"), text
        if model.layers and kind != "two_stage":
            yield ("model", "layers"), f"further targets are for two_stage, and architecture is {kind}"
        if model.layers:
            weighted = [name for name in (*model.layers, model.target) if name not in objective.layer_weights]
            if weighted:
                named = ", ".join(objective.layer_weights) or "none"
                text = f"there is no weight for {', '.join(weighted)}, only for {named}; give each target one"
                yield ("objective", "layer_weights"), text
        if "encoder" in parts and kind != "clip_adapter":
            text = (
                f"only clip_adapter stands on an encoder, and architecture is {kind}; to begin with a run's "
            )
            yield ("training", "parts", "encoder"), text + "weights write training.start_from=RUN"
        if objective.brain_consistency:
            if kind in ("clip_adapter", "clip2fmri"):
                yield (
                    ("objective", "brain_consistency"),
                    f"is for encoders that are trained, and {kind} is none",
                )
            elif model.brain is None and "brain" not in parts:
                text = "needs a trained clip2fmri: name its run with training.parts.brain=RUN"
                yield ("objective", "brain_consistency"), text

    def missing(self) -> list[str]:
        """Return that an adapter needs its encoder."""
        model = self.model
        if (
            model.architecture == "clip_adapter"
            and model.encoder is None
            and not self.training.parts.get("encoder")
        ):
            return [
                "the adapter stands on a trained encoder; name its run with training.parts.encoder=RUN "
                "(the guide's --pretrained RUN)"
            ]
        return []

    def told(self) -> list[str]:
        """Return what InfoNCE costs under accumulation, and values that do nothing as they stand."""
        said = super().told()
        training = self.training
        if training.accumulate_grad_batches > 1 and self.global_terms():
            rows = training.batch_size * training.accumulate_grad_batches
            said.append(
                f"objective.info_nce compares all {rows} rows of an update, so each micro-batch runs twice"
            )
        for key in ("noise_std", "voxel_dropout", "mixup"):
            is_given = key in self.data.model_fields_set and getattr(self.data, key)
            if is_given and not self.data.augmentation:
                said.append(f"data.{key} does nothing without data.augmentation=true")
        return said

    def completed(self) -> dict[str, Any]:
        """Return the shapes of the trained networks in `training.parts`, as their runs' configs say them."""
        found: dict[str, Any] = {}
        for part, own in (("encoder", self.model.encoder), ("brain", self.model.brain)):
            reference = self.training.parts.get(part)
            if reference and own is None:
                trained = read_trained_config(reference, self.storage.path)["model"]
                found[f"model.{part}"] = {
                    key: trained[key] for key in EncoderConfig.model_fields if key in trained
                }
        return found
