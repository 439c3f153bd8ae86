"""Spellings that every task understands: those of the users' guides and of the trainers that they came from.

A task's own are `ALIASES` in its config module; where both know a key, the task's wins.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from voxray.config.spellings import Aliases, Spelling

Translation = Callable[[Any], Any]

# A number is Lightning's: 16 is fp16 with a scaler.
_PRECISIONS = {
    "16": "fp16",
    "16-mixed": "fp16",
    "fp16-mixed": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "bf16-mixed": "bf16",
    "bfloat16": "bf16",
    "32": "fp32",
    "32-true": "fp32",
    "float32": "fp32",
    "full": "fp32",
    # `use_amp: true` names no format; the guide that does (brain-to-text) says bfloat16, without a scaler.
    "true": "bf16",
    "false": "fp32",
}
_SCHEDULES = {
    "none": "constant",
    "fixed": "constant",
    "cosine": "cosine_epochs",  # the guides' CosineAnnealingLR, stepped once per epoch
    "cosine_annealing": "cosine_epochs",
    "cosineannealinglr": "cosine_epochs",
    "cycle": "one_cycle",
    "onecycle": "one_cycle",
    "onecyclelr": "one_cycle",
    "fit_one_cycle": "one_cycle",
}
_SMALLER_IS_BETTER = re.compile(
    r"loss|error|mse|mae|_?(wer|cer|per)$|(^|[/_])sam(_|$)|rank(_of_\w+)?$|perplexity"
)
_OF_A_SPLIT = re.compile(r"(train|valid|validation|val|test)_(.+)")
# Workers that `distributed: true` takes at most: the GPUs of a usual node.
_MOST_WORKERS = 8


def in_words(table: Mapping[str, Any]) -> Translation:
    """Return a function that looks a value's text up in `table`; a value that is not there stays as it is."""

    def look_up(value: Any) -> Any:
        is_scalar = isinstance(value, str | int | float | bool)
        return table.get(str(value).strip().lower(), value) if is_scalar else value

    return look_up


def true_is(yes: Any, no: Any) -> Translation:
    """Return a function of a yes-or-no value; other values stay as they are."""

    def choose(value: Any) -> Any:
        return (yes if value else no) if isinstance(value, bool) else value

    return choose


def schedule_by_step(value: Any) -> Any:
    """Return our schedule's name where `cosine` is one per update."""
    return value if value == "cosine" else schedule(value)


def optimizer(value: Any) -> Any:
    """Return `adamw` for `AdamW` and `torch.optim.AdamW`."""
    return value.rpartition(".")[2].lower() if isinstance(value, str) else value


def monitor(value: Any) -> Any:
    """Return `val/cosine_similarity` for `val_cosine_similarity` and `val/loss` for `valid_loss`."""
    found = _OF_A_SPLIT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    split = "val" if found[1].startswith("val") else found[1]
    return f"{split}/{found[2]}"


def monitor_mode(value: Any) -> str:
    """Return whether a smaller or a larger value of a guide's metric is better, as its name says."""
    return "min" if _SMALLER_IS_BETTER.search(str(value)) else "max"


def count(value: Any) -> Any:
    """Return how many devices a list names."""
    return len(cast(list[Any], value)) if isinstance(value, list) else value


def loader_workers(value: Any) -> Any:
    """Return the threads that read where a DataLoader had so many processes; without any, one thread read."""
    return max(value, 1) if isinstance(value, int) and not isinstance(value, bool) else value


def clip_norm(value: Any) -> Any:
    """Return null for 0, which is no clipping in the guides."""
    return None if type(value) in (int, float) and value == 0 else value


precision, schedule = in_words(_PRECISIONS), in_words(_SCHEDULES)
_WANTS_FRACTION = "write training.min_lr_fraction, the floor as a share of learning_rate"
_WANTS_STEPS = "write training.warmup_fraction (its epochs / epochs) or training.warmup_steps"

# Keys of `training`, and, flat, of a stage.
_OF_TRAINING: dict[str, str | Spelling] = {
    "lr": "learning_rate",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "nb_epochs": "epochs",
    "max_steps": "steps",
    "num_training_batches": "steps",
    "wd": "weight_decay",
    "accumulation_steps": "accumulate_grad_batches",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    **dict.fromkeys(
        ("gradient_clip", "gradient_clip_val", "grad_clip", "max_grad_norm", "grad_norm_clip_value"),
        Spelling("clip_grad_norm", clip_norm),
    ),
    "precision": Spelling("precision", precision),
    **dict.fromkeys(("use_amp", "amp", "mixed_precision"), Spelling("precision", precision)),
    "optimizer": Spelling("optimizer", optimizer),
    "optimizer.name": "optimizer",
    "optimizer._target_": "optimizer",
    "optimizer.lr": "learning_rate",
    **{f"optimizer.{key}": key for key in ("learning_rate", "weight_decay", "betas", "eps", "momentum")},
    **dict.fromkeys(("scheduler", "lr_scheduler"), Spelling("schedule", schedule)),
    "schedule": Spelling("schedule", in_words({k: v for k, v in _SCHEDULES.items() if k != "cosine"})),
    "lr_scheduler_type": Spelling("schedule", schedule_by_step),
    "lr_warmup_steps": "warmup_steps",
    "valid_interval": "validate_every.epochs",
    "eval_interval": "validate_every.epochs",
    "monitor": Spelling("monitor", monitor, also={"monitor_mode": monitor_mode}),
    "mode": "monitor_mode",
    "use_lr_finder": Spelling("lr_finder", true_is("valley", "off")),
    **dict.fromkeys(
        ("early_stopping_patience", "early_stop_patience", "early_stopping.patience"),
        Spelling("patience", also={"early_stopping": True}),
    ),
    "early_stopping.monitor": Spelling("monitor", also={"early_stopping": True}),
    "early_stopping.mode": Spelling("monitor_mode", also={"early_stopping": True}),
    "early_stopping.min_delta": Spelling("min_delta", also={"early_stopping": True}),
    "early_stopping.enabled": "early_stopping",
    "min_lr": Spelling(instead=_WANTS_FRACTION),
    "lr_min": Spelling(instead=_WANTS_FRACTION),
    "warmup_epochs": Spelling(instead=_WANTS_STEPS),
    "freeze_epochs": Spelling(
        instead="write a stage of its own before this one, with `epochs` and "
        "`parameters: {GLOB: {freeze: true}}` for what is frozen, e.g. 'backbone.*'"
    ),
    "fast_dev_run": Spelling(instead="write `voxray train EXPERIMENT --fast-dev-run`"),
}
_OTHER_NAMES = (  # of `checkpoints`
    "checkpoint",
    "checkpointing",
)


def below(section: str, keys: Mapping[str, str | Spelling]) -> dict[str, str | Spelling]:
    """Return the spellings with `section.` before both paths, e.g. of `training` or of `stages.*`."""
    found: dict[str, str | Spelling] = {}
    for theirs, said in keys.items():
        spelling = said if isinstance(said, Spelling) else Spelling(said)
        found[f"{section}.{theirs}"] = Spelling(
            f"{section}.{spelling.path}" if spelling.path else "",
            spelling.value,
            {f"{section}.{path}": value for path, value in spelling.also.items()},
            spelling.instead,
        )
    return found


def at_top(*names: str) -> dict[str, str | Spelling]:
    """Return spellings that take these keys of `training` at a file's top level, as some guides have them."""
    return {name: f"training.{name}" for name in names}


# The sections of the hyperspectral guide's Hydra files.
HYDRA: Aliases = {
    "hparams": "training",
    "dataloader.num_workers": Spelling("data.read_threads", loader_workers),
    "general.num_workers": Spelling("data.read_threads", loader_workers),
    "general.device_ids": Spelling("scale.num_workers", count),
    "general.parallel.device_ids": Spelling("scale.num_workers", count),
    "general.use_ddp": Spelling("scale.num_workers", true_is([1, _MOST_WORKERS], 1)),
    "general.use_amp": Spelling("training.precision", precision),
    "general.debug": "training.debug",
    "general.seed": "training.seed",
    "general.experiment_name": "experiment_name",
    "mlflow": "logging.mlflow",
    "mlflow.tags": Spelling("logging.mlflow.tags", also={"logging.mlflow.enabled": True}),
    "mlflow.experiment_name": Spelling("logging.mlflow.experiment", also={"logging.mlflow.enabled": True}),
    "mlflow.run_name": "run.name",
}

COMMON: Aliases = {
    **below("training", _OF_TRAINING),
    **below("stages.*", _OF_TRAINING),
    "stages.*.training": "stages.*",
    "trainer": "training",
    **HYDRA,
    **at_top("early_stopping", "seed", "fast_dev_run"),
    # how much runs at a time
    "training.distributed": Spelling("scale.num_workers", true_is([1, _MOST_WORKERS], 1)),
    "training.devices": Spelling("scale.num_workers", count),
    "training.device": Spelling("scale.gpus_per_worker", in_words({"cuda": "auto", "gpu": "auto", "cpu": 0})),
    "training.num_workers": Spelling("data.read_threads", loader_workers),
    "training.limit_samples": "data.limit_samples",
    # what is kept
    **{
        f"{name}.{key}": f"checkpoints.{key}"
        for name in _OTHER_NAMES
        for key in ("save_best", "save_last", "keep")
    },
    **{
        f"{name}.save_every_n_epochs": "checkpoints.save_every_n_epochs" for name in (*_OTHER_NAMES, "output")
    },
    **{
        f"{name}.every_n_epochs": "checkpoints.save_every_n_epochs" for name in ("checkpoints", *_OTHER_NAMES)
    },
    **{f"{name}.save_top_k": "checkpoints.keep" for name in ("checkpoints", *_OTHER_NAMES)},
    **{f"{name}.monitor": "training.monitor" for name in ("checkpoints", *_OTHER_NAMES)},
    **{f"{name}.mode": "training.monitor_mode" for name in ("checkpoints", *_OTHER_NAMES)},
    "training.save_every_n_epochs": "checkpoints.save_every_n_epochs",
    "training.save_frequency": "checkpoints.save_every_n_epochs",
    "training.log_every_n_steps": "logging.log_every_n_steps",
    "evaluation.eval_interval": "training.validate_every.epochs",
    # what is logged
    "logging.log_interval": "logging.log_every_n_steps",
    "evaluation.log_interval": "logging.log_every_n_steps",
    "logging.use_tensorboard": "logging.tensorboard",
    "logging.use_wandb": "logging.wandb.enabled",
    "logging.wandb": "logging.wandb.enabled",
    "logging.use_mlflow": "logging.mlflow.enabled",
    "logging.mlflow": "logging.mlflow.enabled",
    "logging.wandb_project": Spelling("logging.wandb.project", also={"logging.wandb.enabled": True}),
    "logging.wandb_entity": "logging.wandb.entity",
    "logging.wandb_group": "logging.wandb.group",
    "wandb": "logging.wandb",
    "wandb.project": Spelling("logging.wandb.project", also={"logging.wandb.enabled": True}),
}
