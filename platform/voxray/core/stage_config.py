"""What a stage may override: a class made from a task's config class, every key of its sections optional.

A stage's own keys are those of `training`, flat (`stages.1.learning_rate`); other sections keep their names
(`stages.1.data.train_filter`, `stages.1.objective.loss`). The class is made, not written, so that a stage has
the keys, types and limits of the task's sections and no list of its own that could differ from them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, cast, get_args, get_origin

from pydantic import Field, create_model, field_validator, model_serializer
from pydantic.fields import FieldInfo

from voxray.config.section import NAME_PATTERN, Section

Values = Mapping[str, Any]

# They say where a run lives and what it runs on, and that is one for all stages.
OF_THE_RUN = ("run", "scale", "checkpoints", "logging", "storage", "stages")
# Keys of a section that hold for the whole run.
OF_THE_WHOLE_SECTION = {
    "training": ("seed", "parts"),
    "data": (
        "path",
        "prepare",
        "embed",
        "transport",
        "window_mb",
        "read_threads",
        "cache_dir",
        "cache_gb",
        "keep_decoded",
        "on_error",
    ),
}
NOT_NAMES = ("best", "last")  # `start_from` says something else with them
# Two spellings of one value: a stage that sets one drops the other of `training`.
_SPELLINGS = (("batch_size", "batch_size_per_worker"), ("batch_size_per_worker", "batch_size"))


class Overrides(Section, frozen=True):
    """Keys that were set, and no others: a key that was not set is not written either."""

    @model_serializer(mode="plain")
    def _only_what_was_set(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set
        }


class StageConfig(Overrides, frozen=True):
    """One stage: a name and the values that differ in it."""

    name: str = Field(default="", pattern=NAME_PATTERN, description="default: `stage` and its number, from 0")
    enabled: bool = Field(default=True, description="false: the run goes by without this stage")

    @field_validator("name")
    @classmethod
    def _is_no_checkpoint(cls, name: str) -> str:
        if name in NOT_NAMES:
            raise ValueError(f"a stage cannot be called '{name}': start_from says something else with it")
        return name


def stage_config(run_config: type[Section]) -> type[StageConfig]:
    """Return the class of the entries of `stages` in a task's config class."""
    keys: dict[str, Any] = {}
    for name, field in run_config.model_fields.items():
        section: Any = field.annotation
        if name in OF_THE_RUN or not _is_section(section):
            continue
        left_out = OF_THE_WHOLE_SECTION.get(name, ())
        if name == "training":
            keys |= _optional_keys(section, left_out)
        else:
            keys[name] = _optional(_overrides_of(section, left_out), f"values of `{name}` that differ")
    return create_model(f"{run_config.__name__}Stage", __base__=StageConfig, **keys)


def merged(values: Values, stage: StageConfig, is_first: bool) -> dict[str, Any]:
    """Return plain values of a run's config with those that `stage` sets put over them.

    `training.start_from` is where the run begins, so a later stage has it of its own alone.
    """
    own = stage.model_dump(exclude_unset=True)
    for key in ("name", "enabled"):
        own.pop(key, None)
    if not is_first:
        own.setdefault("start_from", "")
    sections = {name: own.pop(name) for name in list(own) if name in values}
    training = dict(values["training"])
    for given, other in _SPELLINGS:
        if own.get(given) is not None and other not in own:
            training.pop(other)
    return _deep_merge({**values, "training": training}, {**sections, "training": own})


def _deep_merge(values: Values, over: Values) -> dict[str, Any]:
    result = dict(values)
    for name, value in over.items():
        below: Any = result.get(name)
        both_are_maps = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[name] = _deep_merge(cast(Values, below), cast(Values, value)) if both_are_maps else value
    return result


def _optional_keys(section: type[Section], left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        name: _optional(*_kind(field), field.discriminator)
        for name, field in section.model_fields.items()
        if name not in left_out
    }


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _kind(field: FieldInfo) -> tuple[Any, str | None]:
    kind: Any = field.annotation
    if _is_section(kind):
        return _overrides_of(kind), field.description
    if get_origin(kind) is dict and _is_section(get_args(kind)[1]):  # a map of sections, by name
        return dict[get_args(kind)[0], _overrides_of(get_args(kind)[1])], field.description
    return (Annotated[(kind, *field.metadata)] if field.metadata else kind), field.description


def _overrides_of(section: type[Section], left_out: tuple[str, ...] = ()) -> type[Overrides]:
    keys = _optional_keys(section, left_out)
    return create_model(f"{section.__name__}Overrides", __base__=Overrides, **keys)


def _optional(kind: Any, description: str | None, discriminator: Any = None) -> tuple[Any, Any]:
    """Return a field that may be left out; its default stands for "not set" and is no value of the key."""
    field = Field(
        default=None,
        validate_default=False,
        description=description,
        discriminator=discriminator,
        json_schema_extra=_drop_default,
    )
    return kind, field


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)
