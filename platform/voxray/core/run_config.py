"""`RunConfig`: everything one run depends on, as an experiment file declares it. A task subclasses it.

Section classes live beside the code that owns them, in files named `config.py`; those files hold data only
and are the one thing that an upper layer lends to a lower one.
"""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from voxray.config.section import Section
from voxray.data.config import DataConfig
from voxray.train.config import (
    CheckpointsConfig,
    LoggingConfig,
    RunNameConfig,
    ScaleConfig,
    StageBase,
    StageConfig,
    StorageConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class Stage:
    """One stage of a run, resolved: its place in the list and the training values that hold in it."""

    index: int
    name: str
    training: TrainingConfig


class RunConfig(Section, frozen=True):
    """An experiment. `task` names a row of the registry or a class outside voxray as `module:Class`."""

    experiment_name: str = Field(
        default="", pattern=r"^[A-Za-z0-9._-]*$", description="default: the file's name"
    )
    description: str = ""
    hypothesis: str = ""
    expected: str = ""
    tags: tuple[str, ...] = ()
    task: str
    run: RunNameConfig = RunNameConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    stages: tuple[StageConfig, ...] = ()
    scale: ScaleConfig = ScaleConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    logging: LoggingConfig = LoggingConfig()
    storage: StorageConfig = StorageConfig()

    @property
    def run_name(self) -> str:
        """The run's folder name: `run.name`, else the experiment's name."""
        return self.run.name or self.experiment_name or "run"

    def told(self) -> list[str]:
        """Return what the user should be told about these values, e.g. a name that stands for another."""
        return []

    @model_validator(mode="after")
    def _draws_need_steps(self) -> Self:
        if self.data.sampling == "with_replacement":
            for stage in self.resolved_stages():
                if stage.training.steps is None:
                    raise ValueError(
                        f"stage '{stage.name}' needs training.steps: sampling=with_replacement has no epoch"
                    )
        return self

    def resolved_stages(self) -> list[Stage]:
        """Return the stages that a run goes through; one made of `training` alone where none is declared."""
        entries: tuple[StageBase, ...] = self.stages or (StageConfig(name="main"),)
        return [
            Stage(index, entry.name or f"stage{index}", entry.over(self.training))
            for index, entry in enumerate(entries)
        ]
