"""The `training`, `stages`, `scale`, `checkpoints`, `logging` and `storage` sections."""

from typing import Annotated, Literal, Self

from pydantic import Field, create_model

from voxray.config.section import Section


class TrainingConfig(Section):
    """How one stage is trained. `batch_size` is the rows of one micro-batch over ALL workers."""

    batch_size: int = Field(32, ge=1, description="rows of one micro-batch over all workers")
    epochs: int = Field(10, ge=1)
    max_steps: int | None = Field(None, ge=1, description="stop the stage after this many updates")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["constant", "cosine"] = Field("cosine", description="per step, after the warm-up")
    warmup_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of the stage's updates, linear from 0"
    )
    min_lr_fraction: float = Field(0.01, ge=0, le=1, description="floor of the cosine as a share of the rate")
    accumulate_grad_batches: int = Field(1, ge=1, description="micro-batches per update")
    clip_grad_norm: float | None = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    early_stopping: bool = False
    patience: int = Field(10, ge=1, description="epochs without a better `monitor` before stopping")
    monitor: str = Field("val/loss", description="the metric that `best` and early stopping look at")
    monitor_mode: Literal["min", "max"] = "min"
    seed: int = Field(42, ge=0)


class StageBase(Section):
    """What a stage has beside the values of `training` that it overrides."""

    name: str = ""

    def over(self, training: TrainingConfig) -> TrainingConfig:
        """Return `training` with the values that this stage sets."""
        own = {k: v for k, v in self.model_dump(exclude_unset=True).items() if k != "name" and v is not None}
        return training.model_copy(update=own)


# A stage may set every key of `training`; a key it does not set keeps the value of `training`.
StageConfig: type[StageBase] = create_model(
    "StageConfig",
    __base__=StageBase,
    __doc__="One stage: a name and the values of `training` that differ in it.",
    **{
        name: (
            Annotated[(field.annotation, Field(), *field.metadata)] | None,
            Field(None, description=field.description),
        )
        for name, field in TrainingConfig.model_fields.items()
        if name != "seed"
    },
)


class ScaleConfig(Section):
    """How many processes train, and what each gets."""

    num_workers: int = Field(1, ge=1)
    gpus_per_worker: float | Literal["auto"] = Field(
        "auto", description="auto: 1 where every worker can have one"
    )
    cpus_per_worker: float = Field(1.0, gt=0)
    threads_per_worker: int = Field(1, ge=1, description="torch and OpenMP threads of a CPU worker")


class CheckpointsConfig(Section):
    """Which checkpoints a run keeps in RUN/checkpoints."""

    save_best: bool = True
    save_every_n_epochs: int = Field(1, ge=1)
    keep: int = Field(2, ge=1, description="newest checkpoints kept beside the best")


class LoggingConfig(Section):
    """What a run writes while it trains."""

    log_every_n_steps: int = Field(10, ge=1)


class StorageConfig(Section):
    """Where runs and studies are kept."""

    path: str = Field("runs", description="RUN is <storage.path>/<task>/<run.name or experiment>")


class RunNameConfig(Section):
    """The run's own name."""

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="default: the experiment's name")

    def or_default(self, default: str) -> Self:
        """Return self with `default` where no name was given."""
        return self if self.name else self.model_copy(update={"name": default})
