"""Typed config of the MindEye task: what its data needs, and the guide's spellings."""

from typing import Literal

from pydantic import Field

from voxray.config.spellings import Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import at_top, true_is
from voxray.data.config import DataConfig, PrepareConfig


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


class MindEyeDataConfig(DataConfig, frozen=True):
    """Which fMRI rows a run reads."""

    prepare: MindEyePrepareConfig = MindEyePrepareConfig()
    image_size: int = Field(default=256, ge=8, description="side of the pictures in a batch, in pixels")


class Config(RunConfig, frozen=True):
    """A MindEye experiment."""

    task: str = "mindeye"
    data: MindEyeDataConfig = MindEyeDataConfig()


# guide's path → our path: the flat keys of train_combined.py and its config files
ALIASES = {
    **at_top("batch_size", "num_epochs", "lr_scheduler", "lr_scheduler_type", "mixed_precision"),
    "max_lr": "training.learning_rate",
    "first_batch": Spelling("training.overfit_batches", true_is(1, None)),
    "ckpt_interval": "checkpoints.save_every_n_epochs",
    "wandb_log": "logging.wandb.enabled",
    "wandb_project": "logging.wandb.project",
    "wandb_run_name": "run.name",
    "wandb_notes": "description",
}
