"""Typed config of the MindEye task: what its data needs."""

from typing import Literal

from pydantic import Field

from voxray.core.run_config import RunConfig
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
