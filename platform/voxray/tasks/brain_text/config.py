"""Typed config of the brain-to-text task: what its data needs."""

from pydantic import Field

from voxray.core.run_config import RunConfig
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
