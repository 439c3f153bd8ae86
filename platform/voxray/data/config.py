"""The `data` section: which dataset, how its raw files are prepared, how it is streamed."""

from typing import Literal

from pydantic import Field

from voxray.config.section import Section


class SplitsConfig(Section, frozen=True):
    """Shares of the groups (patients, subjects, sessions) that go to each split."""

    train: float = Field(default=0.7, ge=0, le=1)
    val: float = Field(default=0.15, ge=0, le=1)
    test: float = Field(default=0.15, ge=0, le=1)


class PrepareConfig(Section, frozen=True):
    """How raw files become shards (`voxray data prepare TASK RAW OUT key=value …`)."""

    seed: int = Field(default=0, description="seed of the assignment of groups to splits")
    splits: SplitsConfig = SplitsConfig()
    shard_mb: float = Field(default=128.0, gt=0, description="target size of one shard in MB")
    on_error: Literal["fail", "quarantine"] = Field(
        default="fail",
        description="fail: a bad row ends the command; quarantine: set it aside, list it, go on",
    )


class DataConfig(Section, frozen=True):
    """Which dataset a run reads."""

    path: str = Field(
        default="", description="a prepared dataset's folder, or `synth:tiny|small|full` to make one"
    )
    prepare: PrepareConfig = PrepareConfig()
    transport: Literal["stream", "local"] = Field(
        default="stream",
        description="stream: Ray Data read tasks gather the rows; local: the worker does, from mapped shards",
    )
    window_mb: float = Field(default=32.0, gt=0, description="rows gathered at a time by one worker, in MB")
    shuffle_mb: float = Field(default=1024.0, gt=0, description="shards that are shuffled together, in MB")
