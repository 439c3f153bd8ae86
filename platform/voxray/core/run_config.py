"""`RunConfig`: everything one run depends on, as an experiment file declares it. A task subclasses it.

Section classes live beside the code that owns them, in files named `config.py`; those files hold data only
and are the one thing that an upper layer lends to a lower one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails

from voxray.config.section import NAME_PATTERN, Section, errors_at
from voxray.core.stage_config import NOT_NAMES, StageConfig, merged, stage_config
from voxray.data.config import DataConfig
from voxray.train.config import (
    CheckpointsConfig,
    LoggingConfig,
    RunNameConfig,
    ScaleConfig,
    StorageConfig,
    TrainingConfig,
)

# The context in which a stage's own config is checked: it is no run, so its `stages` are not looked at.
OF_A_STAGE = {"of": "a stage"}


@dataclass(frozen=True)
class Stage:
    """One stage of a run, resolved: its number among those that are gone through, its place in the file's
    list, and the whole config that holds in it.
    """

    index: int
    name: str
    config: "RunConfig"
    entry: int = 0

    @property
    def training(self) -> TrainingConfig:
        """The stage's `training` section; `batch_size` counts the rows over all workers."""
        return self.config.training


class RunConfig(Section, frozen=True, defer_build=True):
    """An experiment. `task` names a row of the registry or a class outside voxray as `module:Class`.

    `defer_build`: a subclass is built once, when its stages have their keys. AFTER_TRAINING names sections
    that training does not read, which may change after it.
    """

    AFTER_TRAINING: ClassVar[tuple[str, ...]] = ()

    experiment_name: str = Field(default="", pattern=NAME_PATTERN, description="default: the file's name")
    description: str = ""
    hypothesis: str = ""
    expected: str = ""
    tags: tuple[str, ...] = ()
    deprecated: str = Field(default="", description="what to use instead; whoever runs it is told")
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
        if not self.deprecated:
            return []
        return [f"warning: {self.experiment_name or 'this experiment'} is deprecated: {self.deprecated}"]

    def missing(self) -> list[str]:
        """Return what a run still has to be given before it can start, a sentence each; a file may leave it
        to the command line.
        """
        return []

    def completed(self) -> dict[str, Any]:
        """Return values (by dotted path) that follow from files which these values name, such as the shape of
        a trained encoder; they are set before anything starts and saved with the run.
        """
        return {}

    def global_terms(self) -> tuple[str, ...]:
        """Return the loss terms that compare the rows of an update (InfoNCE, a batch's variance): under
        accumulation each micro-batch runs twice for them.
        """
        return ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Give `stages` the keys of the task's own sections."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.model_fields["stages"].annotation = tuple[stage_config(cls), ...]
        cls.model_rebuild(force=True)

    @model_validator(mode="after")
    def _batch_size_has_one_meaning(self) -> Self:
        training, workers = self.training, self.scale.most_workers
        if training.batch_size_per_worker is None:
            return self
        rows = training.batch_size_per_worker * workers
        if "batch_size" in training.model_fields_set and training.batch_size != rows:
            text = (
                f"{training.batch_size} contradicts batch_size_per_worker={training.batch_size_per_worker}, "
                f"which is {rows} with scale.num_workers={workers}; keep one of the two"
            )
            raise errors_at([(("training", "batch_size"), text)])
        # pydantic lets an after-validator change its own instance, and a frozen one has no other door.
        object.__setattr__(self, "training", training.model_copy(update={"batch_size": rows}))
        return self

    @model_validator(mode="after")
    def _stages_hold(self, info: ValidationInfo) -> Self:
        if info.context is OF_A_STAGE:
            return self
        names: list[str] = []
        for stage in self.resolved_stages():
            if stage.name in names:
                text = f"'{stage.name}' is the name of two stages; give one another name"
                raise errors_at([(("stages", stage.entry, "name"), text)])
            problems = list(_problems_of(stage, names))
            if problems:
                above = ("stages", stage.entry) if self.stages else ("training",)
                raise errors_at(((*above, *path), text) for path, text in problems)
            names.append(stage.name)
        self._check_exported()
        self._check_components()
        return self

    def _check_components(self) -> None:
        """Refuse principal components where no stage would look at them."""
        stages = self.resolved_stages()
        asked = any(stage.training.closed_form.components is not None for stage in stages)
        if asked and all(stage.training.stepper != "closed_form" for stage in stages):
            text = "principal components are part of the closed form; set training.stepper=closed_form too"
            raise errors_at([(("training", "closed_form", "components"), text)])

    def _check_exported(self) -> None:
        """Refuse to export a stage that is not declared; one with `enabled: false` is left out in silence."""
        declared = [entry.name or f"stage{index}" for index, entry in enumerate(self.stages)] or ["main"]
        problems = [
            (
                ("checkpoints", "export_stages", index),
                f"'{name}' is no stage; there are {', '.join(declared)}",
            )
            for index, name in enumerate(self.checkpoints.export_stages)
            if name not in declared
        ]
        if problems:
            raise errors_at(problems)

    def resolved_stages(self) -> list[Stage]:
        """Return the stages that a run goes through; one made of `training` alone where none is declared.

        Raises ValidationError, at the stage's place, when its values do not fit together.
        """
        if not self.stages:
            return [Stage(0, "main", self)]
        values = self.model_dump(exclude={"stages"})
        stages: list[Stage] = []
        for index, entry in enumerate(self.stages):
            if not entry.enabled:
                continue
            name = entry.name or f"stage{index}"
            try:
                config = type(self).model_validate(
                    merged(values, entry, is_first=not stages), context=OF_A_STAGE
                )
            except ValidationError as error:
                raise errors_at(
                    (_in_stage(index, detail["loc"]), f"stage '{name}': {_text(detail)}")
                    for detail in error.errors()
                ) from error
            stages.append(Stage(len(stages), name, config, index))
        if not stages:
            raise errors_at([(("stages",), "all stages have enabled: false; enable one")])
        return stages


def _problems_of(stage: Stage, earlier: list[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what does not fit together in a stage: (key of a stage, sentence)."""
    training, config = stage.training, stage.config
    if config.data.sampling == "with_replacement" and training.steps is None:
        yield (), f"stage '{stage.name}' needs training.steps: sampling=with_replacement has no epoch"
    first = training.start_from.removesuffix("/best").removesuffix("/last")
    if first in NOT_NAMES and not earlier:
        yield ("start_from",), f"'{training.start_from}': no stage comes before '{stage.name}'"
    elif first == stage.name and first != training.start_from:
        yield ("start_from",), f"'{training.start_from}': a stage cannot start from itself"


def _text(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _in_stage(index: int, path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return where a key of a run's config stands in a stage: those of `training` are flat there."""
    return "stages", index, *(path[1:] if path[:1] == ("training",) else path)
