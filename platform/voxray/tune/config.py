"""What a file under search_spaces/ holds: an experiment, an objective, a `search` or an `ablate` block."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from voxray.config.section import NAME_PATTERN, Section
from voxray.tune.space.config import Distribution

Executor = Literal["auto", "inline", "gang", "train"]
EXECUTOR = (
    "what trains a trial: inline (one worker, in the trial's own process), gang (several workers, started "
    "once for all trials), train (a Ray Train run per trial); auto: by scale.num_workers"
)
CONCURRENT = "trials at a time; default: as many as fit"


class ObjectiveConfig(Section, frozen=True):
    """What a search looks at."""

    metric: str = Field(description="a name that the task reports, e.g. val/auroc")
    mode: Literal["min", "max"] = Field(description="min: lower is better; max: higher is better")

    @property
    def sign(self) -> int:
        """1 where lower is better, −1 where higher is: sign · value is to be made small."""
        return 1 if self.mode == "min" else -1


class SamplerConfig(Section, frozen=True):
    """What suggests the next trial's values. Trial i draws from hash(seed, i), whatever ran before."""

    name: Literal["tpe", "random", "gp", "cmaes", "nsga2", "nsga3", "qmc", "brute_force"] = "tpe"
    seed: int = Field(default=0, ge=0)
    startup_trials: int = Field(
        default=10, ge=1, description="tpe, gp, cmaes: trials drawn at random before it learns from results"
    )
    population: int = Field(default=20, ge=2, description="nsga2, nsga3: trials of one generation")
    multivariate: bool = Field(default=True, description="tpe: keys are modelled together, in groups")


class SchedulerConfig(Section, frozen=True):
    """What stops a trial early. Time is counted in epochs of a trial's run, or in its updates."""

    name: Literal["none", "asha", "hyperband", "median", "pbt"] = "none"
    unit: Literal["epochs", "steps"] = "epochs"
    grace_epochs: float | None = Field(
        default=None, gt=0, description="no trial is stopped before; default 1 (unit: epochs)"
    )
    grace_steps: int | None = Field(default=None, ge=1, description="the same in updates (unit: steps)")
    reduction_factor: float = Field(
        default=3.0, gt=1, description="asha, hyperband: one in so many goes on at a rung"
    )
    max_epochs: float | None = Field(
        default=None, gt=0, description="hyperband: a whole trial's length; default: the experiment's"
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="hyperband: the same in updates (unit: steps)"
    )
    median_trials: int = Field(default=3, ge=1, description="median: trials that must have got that far")
    every: float = Field(default=1.0, gt=0, description="pbt: epochs (updates) between two exploitations")
    quantile: float = Field(
        default=0.25,
        gt=0,
        le=0.5,
        description="pbt: the share of worst trials that go on from one of the best",
    )
    resample: float = Field(default=0.25, ge=0, le=1, description="pbt: chance to draw a value anew")
    factors: tuple[float, float] = Field(
        default=(0.8, 1.2), description="pbt: a number is multiplied by one of these"
    )

    @model_validator(mode="after")
    def _keys_have_the_unit(self) -> Self:
        other = "steps" if self.unit == "epochs" else "epochs"
        for key in ("grace", "max"):
            if getattr(self, f"{key}_{other}") is not None:
                raise ValueError(f"{key}_{other} does not go with unit: {self.unit}; write {key}_{self.unit}")
        return self

    @property
    def grace(self) -> float:
        """Epochs or updates before which no trial is stopped."""
        return (self.grace_epochs if self.unit == "epochs" else self.grace_steps) or 1

    @property
    def longest(self) -> float | None:
        """Epochs or updates of a whole trial, where they are given."""
        return self.max_epochs if self.unit == "epochs" else self.max_steps


class SearchConfig(Section, frozen=True):
    """How many trials, what suggests them, what stops them, and from where they are drawn."""

    sampler: SamplerConfig = SamplerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    trials: int | None = Field(default=None, ge=1, description="trials of the whole study")
    seconds: float | None = Field(
        default=None, gt=0, description="no trial begins when the study was searched for so long"
    )
    gpu_hours: float | None = Field(
        default=None, gt=0, description="no trial begins when the trials have held GPUs for so long"
    )
    seeds: tuple[int, ...] = Field(
        default=(),
        description="train each trial once per training.seed of these; the mean is told, and schedulers look "
        "at the first",
    )
    max_concurrent: int | None = Field(default=None, ge=1, description=CONCURRENT)
    executor: Executor = Field(default="auto", description=EXECUTOR)
    points: tuple[dict[str, Any], ...] = Field(
        default=(), description="values of the first trials; keys left out are drawn"
    )
    from_study: str = Field(
        default="", description="folder of an earlier study whose trials are learned from"
    )
    constraints: tuple[str, ...] = Field(
        default=(),
        description="expressions that must hold: of keys (looked at before a trial starts) or of metric('…')",
    )
    space: dict[str, Distribution] = Field(
        min_length=1, description="dotted path of the experiment → distribution"
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.trials is None and self.seconds is None and self.gpu_hours is None:
            raise ValueError("say when it ends: trials, seconds or gpu_hours")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names one twice")
        if self.scheduler.name == "pbt" and (self.seeds or self.trials is None):
            raise ValueError("scheduler pbt needs trials (its population), and cannot repeat them with seeds")
        return self


class AblateConfig(Section, frozen=True):
    """A baseline and arms that differ from it, each trained with the same seeds."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="values of training.seed")
    baseline: dict[str, Any] = Field(
        default={}, description="dotted path → value, of the baseline and all arms"
    )
    arms: dict[str, dict[str, Any]] = Field(
        default={}, description="name of an arm → dotted path → value, over the baseline's"
    )
    off: dict[str, Any] = Field(
        default={}, description="dotted path → the value that switches it off; each alone is an arm"
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        default={}, description="dotted path → values; every combination is an arm"
    )
    value: Literal["best", "last"] = Field(
        default="best",
        description="which evaluation of a run's last stage counts: the best by the metric, or the last",
    )
    max_concurrent: int | None = Field(default=None, ge=1, description=CONCURRENT)
    executor: Executor = Field(default="auto", description=EXECUTOR)

    @model_validator(mode="after")
    def _has_arms(self) -> Self:
        if not (self.arms or self.off or self.grid):
            raise ValueError("has nothing to compare the baseline with; add arms, off or grid")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names one twice")
        return self


class SpaceConfig(Section, frozen=True):
    """A search or an ablation over one experiment (a file under search_spaces/)."""

    experiment_name: str = Field(
        default="", pattern=NAME_PATTERN, description="the study's; default: the file's name"
    )
    description: str = ""
    hypothesis: str = ""
    expected: str = ""
    tags: tuple[str, ...] = ()
    experiment: str = Field(description="a path relative to this file, or an experiment's name")
    objective: ObjectiveConfig | tuple[ObjectiveConfig, ...] = Field(
        description="metric and mode; a list searches for the best compromises"
    )
    search: SearchConfig | None = None
    ablate: AblateConfig | None = None

    @property
    def objectives(self) -> tuple[ObjectiveConfig, ...]:
        """The objectives, one or more."""
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    @model_validator(mode="after")
    def _is_one_of_the_two(self) -> Self:
        if (self.search is None) == (self.ablate is None):
            raise ValueError("needs a `search` block or an `ablate` block, one of the two")
        metrics = [objective.metric for objective in self.objectives]
        if not metrics or len(set(metrics)) < len(metrics):
            raise ValueError(f"objective: {metrics} must name at least one metric, and each once")
        return self
