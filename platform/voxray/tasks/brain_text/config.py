"""Typed config of the brain-to-text task: what its data needs, and the guide's spellings."""

from pydantic import Field

from voxray.config.spellings import Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import at_top, loader_workers
from voxray.data.config import DataConfig, PrepareConfig


class BrainTextPrepareConfig(PrepareConfig, frozen=True):
    """How raw trials become rows."""

    text: str = Field(
        default="text",
        min_length=1,
        description=(
            "what is the text to decode: an array of `.npz` files, a column of an NWB file's trials; T15 has "
            "its own"
        ),
    )
    split_by: str = Field(
        default="trial",
        min_length=1,
        description=(
            "what is never in two splits: trial, block_num, text or session, or any other array of `.npz` "
            "files or column of trials; splits that the raw data declares are kept in any case"
        ),
    )
    signals: tuple[str, ...] = Field(
        default=(), description="NWB: the time series that are the features; without any, spike counts"
    )
    bin_s: float = Field(default=0.02, gt=0, description="NWB: the length of a bin in seconds")


class BrainTextDataConfig(DataConfig, frozen=True):
    """Which recordings a run reads."""

    prepare: BrainTextPrepareConfig = BrainTextPrepareConfig()


class Config(RunConfig, frozen=True):
    """A brain-to-text experiment."""

    task: str = "brain_text"
    data: BrainTextDataConfig = BrainTextDataConfig()


_LR_FLOOR = Spelling(instead="write training.min_lr_fraction, lr_min / lr_max")

# guide's path → our path: the flat keys of its training_args.yaml. The cosine ends with the run here, so its
# own length (`lr_decay_steps`) has no key.
ALIASES = {
    **at_top("num_training_batches", "weight_decay", "grad_norm_clip_value", "use_amp"),
    **at_top("lr_scheduler_type", "lr_warmup_steps"),
    "lr_max": "training.learning_rate",
    "lr_min": _LR_FLOOR,
    "lr_max_day": "training.parameters.day_*.learning_rate",
    "lr_min_day": _LR_FLOOR,
    "lr_warmup_steps_day": "training.parameters.day_*.warmup_steps",
    "weight_decay_day": "training.parameters.day_*.weight_decay",
    "use_multi_gpu": "training.distributed",
    "early_stopping_val_steps": "training.early_stopping_patience",
    "batches_per_val_step": "training.validate_every.steps",
    "batches_per_train_log": "logging.log_every_n_steps",
    "save_best_checkpoint": "checkpoints.save_best",
    "save_final_model": "checkpoints.save_last",
    "cache_dir": "data.embed.cache_dir",
    "dataset.batch_size": "training.batch_size",
    "dataset.days_per_batch": Spelling("data.groups_per_batch", also={"data.group_by": "session"}),
    "dataset.dataset_dir": "data.path",
    "dataset.num_dataloader_workers": Spelling("data.read_threads", loader_workers),
}
