"""The JSON Schema of an experiment file, so that an editor completes and checks it."""

from typing import Any

from voxray.config.files import BASE
from voxray.config.section import Section

_BASE_SCHEMA = {
    "description": "a file, or a list of files, that this one starts from; inside the project or next to it",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def experiment_schema(config_class: type[Section]) -> dict[str, Any]:
    """Return pydantic's schema, plus `_base_` and dotted keys, and no key required: a base may have it."""
    schema = config_class.model_json_schema()
    schema.pop("required", None)
    properties = {BASE: _BASE_SCHEMA, **schema.pop("properties")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": properties,
        "patternProperties": {
            r"^[a-z_]+(\.[A-Za-z0-9_*-]+)+$": {"description": "a dotted path, e.g. stages.1.learning_rate"}
        },
    }
