"""The `training`, `scale`, `checkpoints`, `logging` and `storage` sections."""

from typing import Literal, Self

from pydantic import Field, model_validator

from voxray.config.section import NAME_PATTERN, Section

MODEL_PARAMS = "model/params"  # reported with the task's metrics: the parameters that the model has


class ParameterOptions(Section, frozen=True):
    """What differs for the parameters whose names match a glob."""

    learning_rate: float | None = Field(default=None, gt=0)
    min_lr_fraction: float | None = Field(default=None, ge=0, le=1)
    warmup_steps: int | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    freeze: bool | None = Field(
        default=None, description="true: no gradient, and BatchNorm keeps its statistics"
    )


class ValidateEvery(Section, frozen=True):
    """When the validation split is evaluated; always at the end of a stage too."""

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1, description="every so many updates instead of epochs")


class ClosedFormConfig(Section, frozen=True):
    """Ridge regression by one pass over the rows (`stepper: closed_form`)."""

    alphas: tuple[float, ...] = Field(default=(1.0,), min_length=1, description="penalties to choose from")
    folds: int = Field(default=5, ge=2, description="folds by group, where there are several alphas")
    per_target: bool = Field(default=False, description="an alpha of its own for each output")
    fit_intercept: bool = True
    components: int | None = Field(
        default=None,
        ge=1,
        description="regress on so many principal components of the training rows' features (of each fold's "
        "own); default: on the features",
    )

    @model_validator(mode="after")
    def _alphas_are_penalties(self) -> Self:
        if min(self.alphas) < 0:
            raise ValueError(f"alphas are penalties of 0 or more, and {min(self.alphas):g} is less")
        return self


class TrainingConfig(Section, frozen=True):
    """How one stage is trained. `batch_size` is the rows of one micro-batch over ALL workers."""

    # how much
    batch_size: int = Field(default=32, ge=1, description="rows of one micro-batch over all workers")
    batch_size_per_worker: int | None = Field(
        default=None, ge=1, description="the other spelling: batch_size is this times scale.num_workers"
    )
    accumulate_grad_batches: int = Field(default=1, ge=1, description="micro-batches per update")
    epochs: int = Field(default=10, ge=1, description="passes over the training rows, unless steps is set")
    steps: int | None = Field(
        default=None, ge=1, description="updates of the stage, over as many epochs as they take"
    )
    overfit_batches: int | None = Field(
        default=None, ge=1, description="train on this many batches alone and evaluate on the same rows"
    )
    # from where
    start_from: str = Field(
        default="",
        description="weights to begin with: a run (its best, or RUN/last), a .safetensors, .pt or .pth file, "
        "or, in a later stage, `best`, `last`, or an earlier stage's name with /best or /last; "
        "default: a later stage goes on from the one before",
    )
    parts: dict[str, str] = Field(
        default={},
        description="module of the model → a run, checkpoint or weights file that it begins the run with, "
        "e.g. {encoder: runs/fmri_clip/mlp_standard}",
    )
    trainable: tuple[str, ...] = Field(
        default=("*",), description="globs of parameter names that are trained; all others are frozen"
    )
    parameters: dict[str, ParameterOptions] = Field(
        default={}, description="glob of parameter names → options of their own; a later glob wins"
    )
    # how
    stepper: Literal["gradient", "closed_form"] = "gradient"
    closed_form: ClosedFormConfig = ClosedFormConfig()
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    lr_finder: Literal["off", "valley", "minimum", "steep", "slide"] = Field(
        default="off",
        description="look for the rate at the stage's start; learning_rate is used where none is found",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="of weights; biases and norms get none")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of adam and adamw")
    eps: float = Field(default=1e-8, gt=0, description="of adam and adamw")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    schedule: Literal["constant", "cosine", "cosine_epochs", "one_cycle"] = Field(
        default="cosine", description="cosine: per step after the warm-up; cosine_epochs: a rate per epoch"
    )
    warmup_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of the stage's updates, linear from 0"
    )
    warmup_steps: int | None = Field(default=None, ge=0, description="the same in updates, if set")
    min_lr_fraction: float = Field(
        default=0.01, ge=0, le=1, description="floor of the cosine as a share of the rate"
    )
    pct_start: float = Field(default=0.25, gt=0, lt=1, description="one_cycle: share of the rising part")
    div: float = Field(default=25.0, gt=0, description="one_cycle: the first rate is the highest / div")
    div_final: float = Field(default=1e5, gt=0, description="one_cycle: the last is the highest / div_final")
    cycle_momentum: bool = Field(default=True, description="one_cycle: momentum 0.95 → 0.85 → 0.95")
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="keep a moving average of the weights and evaluate that"
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = Field(
        default="off", description="torch.compile and its mode"
    )
    sync_batchnorm: bool = Field(default=True, description="BatchNorm over the rows of all workers")
    # what is watched
    validate_every: ValidateEvery = ValidateEvery()
    validation_samples: int | None = Field(
        default=None, ge=1, description="evaluate on this many rows of the validation split, always the same"
    )
    monitor: str = Field(default="val/loss", description="the metric that `best` and early stopping look at")
    monitor_mode: Literal["min", "max"] = "min"
    early_stopping: bool = False
    patience: int = Field(
        default=10, ge=1, description="evaluations without a better `monitor` before stopping"
    )
    min_delta: float = Field(default=0.0, ge=0, description="a better `monitor` is better by more than this")
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        default="stop",
        description="a NaN or infinite loss or gradient: stop the run, skip the update, or go back to the "
        "last checkpoint and skip that update",
    )
    deterministic: bool = Field(default=False, description="refuse operations that are not reproducible")
    debug: bool = Field(default=False, description="find the operation that made a NaN; log the shapes")
    profile_steps: int | None = Field(
        default=None, ge=1, description="profile this many updates, from the stage's third on"
    )
    seed: int = Field(default=42, ge=0)


class ScaleConfig(Section, frozen=True):
    """How many processes train, and what each gets."""

    num_workers: int | tuple[int, int] = Field(
        default=1, description="processes that train; [least, most]: as many as the cluster has room for"
    )
    gpus_per_worker: float | Literal["auto"] = Field(
        default="auto", description="auto: 1 where every worker can have one"
    )
    cpus_per_worker: float = Field(default=1.0, gt=0)
    threads_per_worker: int = Field(default=1, ge=1, description="torch and OpenMP threads of a CPU worker")
    strategy: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="fsdp: parameters and optimizer state are split over the workers"
    )
    max_restarts: int = Field(
        default=20, ge=0, description="lost workers or nodes after which a run is begun again from its state"
    )
    resize_every_s: float = Field(
        default=60.0, gt=0, description="[least, most]: how often to look for room for more workers"
    )
    hang_timeout_s: float = Field(
        default=1800.0, gt=0, description="a worker without an update for so long is ended and begun again"
    )

    @property
    def most_workers(self) -> int:
        """The workers that a run asks for, or the most that it would take."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fewest_workers(self) -> int:
        """The workers without which a run waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @model_validator(mode="after")
    def _workers_are_a_number_or_a_range(self) -> Self:
        if not 1 <= self.fewest_workers <= self.most_workers:
            raise ValueError("num_workers is at least 1, or [least, most] with least ≤ most")
        return self


class CheckpointsConfig(Section, frozen=True):
    """Which checkpoints a run keeps in RUN/checkpoints, and what it makes of them when it has finished."""

    save_best: bool = True
    save_last: bool = Field(default=True, description="at the end, keep the last one beside the best")
    save_every_n_epochs: int = Field(default=1, ge=1)
    save_every_n_steps: int | None = Field(default=None, ge=1, description="inside an epoch too")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept beside the best")
    asynchronous: bool = Field(default=True, description="write while training goes on, from a copy")
    export_stages: tuple[str, ...] = Field(
        default=(),
        description="stages whose best weights are written to RUN/models/NAME_STAGE.pth when the run has "
        "finished",
    )
    export_name: str = Field(
        default="",
        pattern=NAME_PATTERN,
        description="NAME of the exported weights; default: the run's name",
    )
    evaluate_at_end: tuple[Literal["train", "val", "test"], ...] = Field(
        default=(),
        description="splits that the best weights are evaluated on when the run has finished; their "
        "predictions are also written to RUN/EXPERIMENT_predictions.parquet and .pt",
    )


class WandbConfig(Section, frozen=True):
    """Weights & Biases."""

    enabled: bool = False
    project: str = "voxray"
    entity: str = ""
    group: str = Field(default="", description="default: the experiment's name")
    host: str = Field(default="", description="address of a server of one's own")
    mode: Literal["auto", "online", "offline"] = Field(
        default="auto", description="auto: online where the user is logged in, else files to sync later"
    )
    upload_best: bool = Field(default=False, description="send the best checkpoint as an artifact")


class MlflowConfig(Section, frozen=True):
    """MLflow (the extra `mlflow`)."""

    enabled: bool = False
    tracking_uri: str = Field(default="", description="default: sqlite in <storage.path>/mlflow.db")
    experiment: str = Field(default="", description="default: the task's name")
    tags: dict[str, str] = Field(default={})
    upload_best: bool = Field(default=False, description="send the best checkpoint as an artifact")


class LoggingConfig(Section, frozen=True):
    """What a run writes while it trains; RUN/log.jsonl always."""

    log_every_n_steps: int = Field(default=10, ge=1)
    tensorboard: bool = Field(default=False, description="event files in RUN/tensorboard")
    wandb: WandbConfig = WandbConfig()
    mlflow: MlflowConfig = MlflowConfig()


class StorageConfig(Section, frozen=True):
    """Where runs and studies are kept."""

    path: str = Field(
        default="runs", description="a folder or a URL; RUN is <path>/<task>/<run.name or experiment>"
    )


class RunNameConfig(Section, frozen=True):
    """The run's own name."""

    name: str = Field(default="", pattern=NAME_PATTERN, description="default: the experiment's name")
