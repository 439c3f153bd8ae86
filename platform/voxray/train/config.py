"""The `training`, `stages`, `scale`, `checkpoints`, `logging` and `storage` sections."""

from typing import Annotated, Any, Literal, Optional

from pydantic import Field, create_model

from voxray.config.section import Section


class TrainingConfig(Section, frozen=True):
    """How one stage is trained. `batch_size` is the rows of one micro-batch over ALL workers."""

    batch_size: int = Field(default=32, ge=1, description="rows of one micro-batch over all workers")
    epochs: int = Field(default=10, ge=1, description="passes over the training rows, unless steps is set")
    steps: int | None = Field(
        default=None, ge=1, description="updates of the stage, over as many epochs as they take"
    )
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="per step, after the warm-up"
    )
    warmup_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of the stage's updates, linear from 0"
    )
    min_lr_fraction: float = Field(
        default=0.01, ge=0, le=1, description="floor of the cosine as a share of the rate"
    )
    accumulate_grad_batches: int = Field(default=1, ge=1, description="micro-batches per update")
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stopping: bool = False
    patience: int = Field(default=10, ge=1, description="epochs without a better `monitor` before stopping")
    monitor: str = Field(default="val/loss", description="the metric that `best` and early stopping look at")
    monitor_mode: Literal["min", "max"] = "min"
    seed: int = Field(default=42, ge=0)


class StageBase(Section, frozen=True):
    """What a stage has beside the values of `training` that it overrides."""

    name: str = ""

    def over(self, training: TrainingConfig) -> TrainingConfig:
        """Return `training` with the values that this stage sets."""
        own = {k: v for k, v in self.model_dump(exclude_unset=True).items() if k != "name" and v is not None}
        return training.model_copy(update=own)


# A stage may set every key of `training` but the run's seed; a key it does not set keeps the value of
# `training`.
_overrides: dict[str, Any] = {
    name: (
        Optional[Annotated[(field.annotation, Field(), *field.metadata)]],  # noqa: UP045 - type checkers refuse `|` here
        Field(default=None, description=field.description),
    )
    for name, field in TrainingConfig.model_fields.items()
    if name != "seed"
}


class StageConfig(create_model("StageFields", __base__=StageBase, **_overrides), frozen=True):
    """One stage: a name and the values of `training` that differ in it."""


class ScaleConfig(Section, frozen=True):
    """How many processes train, and what each gets."""

    num_workers: int = Field(default=1, ge=1)
    gpus_per_worker: float | Literal["auto"] = Field(
        default="auto", description="auto: 1 where every worker can have one"
    )
    cpus_per_worker: float = Field(default=1.0, gt=0)
    threads_per_worker: int = Field(default=1, ge=1, description="torch and OpenMP threads of a CPU worker")


class CheckpointsConfig(Section, frozen=True):
    """Which checkpoints a run keeps in RUN/checkpoints."""

    save_best: bool = True
    save_every_n_epochs: int = Field(default=1, ge=1)
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept beside the best")


class LoggingConfig(Section, frozen=True):
    """What a run writes while it trains."""

    log_every_n_steps: int = Field(default=10, ge=1)


class StorageConfig(Section, frozen=True):
    """Where runs and studies are kept."""

    path: str = Field(default="runs", description="RUN is <storage.path>/<task>/<run.name or experiment>")


class RunNameConfig(Section, frozen=True):
    """The run's own name."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", description="default: the experiment's name")
