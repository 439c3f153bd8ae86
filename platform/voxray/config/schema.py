"""What keys a config class has, by dotted path; the nearest key to a mistyped one; types for people."""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import difflib
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from voxray.config.errors import InputError
from voxray.config.section import Section
from voxray.config.tree import KeyPath, show

EACH = "*"  # stands for any index of a list and any key of a map
_MAX_DEPTH = 8
_SIGNS = {
    "ge": "≥",
    "gt": ">",
    "le": "≤",
    "lt": "<",
    "pattern": "matching",
    "min_length": "length ≥",
    "max_length": "length ≤",
}


@dataclass(frozen=True)
class FieldAt:
    """One key of a schema. `default` is plain values; PydanticUndefined where the key is required."""

    path: str
    annotation: Any
    type_text: str
    default: Any
    description: str
    is_section: bool

    def hint(self) -> str:
        """Return `training.batch_size (int ≥ 1, default 32)`."""
        if self.is_section:
            return f"{self.path} (a section)"
        default = "" if self.default is PydanticUndefined else f", default {plain_text(self.default)}"
        return f"{self.path} ({self.type_text}{default})"


def field_at(config_class: type[Section], path: str) -> FieldAt:
    """Return what is known of the key at a dotted path; digits are indices of lists.

    Raises InputError that names the nearest key with its type and default.
    """
    field = find(config_class, tuple(path.split(".")))
    if field is None:
        raise InputError(f"{path}: {unknown_key(config_class, path)}")
    return field


def find(config_class: type[Section], path: KeyPath) -> FieldAt | None:
    """Return the key at `path`, or None where the schema has none."""
    table = fields(config_class)
    found = table.get(".".join(path)) or next(
        (field for pattern, field in table.items() if EACH in pattern and _matches(pattern.split("."), path)),
        None,
    )
    return found and replace(found, path=".".join(path))


def unknown_key(config_class: type[Section], path: str) -> str:
    """Return the sentence about a key that does not exist, with the nearest one over the whole schema."""
    near = nearest(config_class, path)
    if near is not None:
        return f"there is no such key; did you mean {near.hint()}?"
    deeper = [pattern.split(".") for pattern in fields(config_class)]
    sections = dict.fromkeys(parts[0] for parts in deeper if len(parts) > 1 and parts[-1] != EACH)
    return f"there is no such key; the sections are {', '.join(sections)}"


def nearest(config_class: type[Section], path: str) -> FieldAt | None:
    """Return the key that a mistyped path most likely meant: by the whole path, or its last word anywhere."""
    parts = path.split(".")
    indices = [part for part in parts if part.isdecimal()]
    wanted = ".".join(EACH if part.isdecimal() else part for part in parts)
    table = {
        pattern: field
        for pattern, field in fields(config_class).items()
        if pattern.count(EACH) <= len(indices)
    }
    scored = sorted(((_likeness(wanted, pattern), pattern) for pattern in table), reverse=True)
    if not scored or scored[0][0] < 0.7:
        return None
    remaining = iter(indices)
    concrete = ".".join(next(remaining) if part == EACH else part for part in scored[0][1].split("."))
    return find(config_class, tuple(concrete.split(".")))


def _likeness(wanted: str, pattern: str) -> float:
    whole = difflib.SequenceMatcher(None, wanted, pattern).ratio()
    last = difflib.SequenceMatcher(None, wanted.rpartition(".")[2], pattern.rpartition(".")[2]).ratio()
    if wanted.endswith(EACH):  # an index is like any other
        return whole
    same_section = wanted.rpartition(".")[0] == pattern.rpartition(".")[0]
    return max(whole, last if same_section else last * 0.95)


def _matches(pattern: list[str], path: KeyPath) -> bool:
    return len(pattern) == len(path) and all(p in (EACH, part) for p, part in zip(pattern, path, strict=True))


@functools.cache
def fields(config_class: type[Section]) -> dict[str, FieldAt]:
    """Return every key of a config class, sections included, by dotted path with `*` for an index."""
    return dict(_walk(config_class, "", 0))


def _walk(model: type[BaseModel], prefix: str, depth: int) -> Iterator[tuple[str, FieldAt]]:
    for name, info in model.model_fields.items():
        path, annotation = prefix + name, info.annotation
        sections = list(_sections(annotation, ""))
        about = info.description or ""
        is_section = any(suffix == "" for suffix, _ in sections)
        yield path, FieldAt(path, annotation, _field_type(info), _default(info), about, is_section)
        for suffix, section in sections:
            if depth < _MAX_DEPTH:
                yield from _walk(section, f"{path}{suffix}.", depth + 1)
        for suffix, entry in _entries(annotation):
            of_sections = any(suffix == "" for suffix, _ in _sections(entry, ""))
            yield (
                path + suffix,
                FieldAt(path + suffix, entry, describe(entry), PydanticUndefined, about, of_sections),
            )


def _sections(annotation: Any, suffix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every section class inside an annotation with the path that leads to it (`` or `.*`)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield suffix, annotation
    elif get_origin(annotation) is Annotated:
        yield from _sections(get_args(annotation)[0], suffix)
    elif _is_union(annotation):
        for member in get_args(annotation):
            yield from _sections(member, suffix)
    for more, entry in _entries(annotation) if not _is_union(annotation) else ():
        yield from _sections(entry, suffix + more)


def _entries(annotation: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a list or a map holds, with the path step that reaches it."""
    if get_origin(annotation) is Annotated:
        yield from _entries(get_args(annotation)[0])
    elif _is_union(annotation):
        for member in get_args(annotation):
            yield from _entries(member)
    elif get_origin(annotation) in (tuple, list, set, frozenset):
        yield f".{EACH}", get_args(annotation)[0]
    elif get_origin(annotation) is dict:
        yield f".{EACH}", get_args(annotation)[1]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _default(info: FieldInfo) -> Any:
    if info.validate_default is False:  # it stands for "not set", and is no value of the key
        return PydanticUndefined
    default = info.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json")
    return [_plain(item) for item in default] if isinstance(default, tuple | list) else default


def _plain(item: Any) -> Any:
    return item.model_dump(mode="json") if isinstance(item, BaseModel) else item


def _field_type(info: FieldInfo) -> str:
    return describe(Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation)


def describe(annotation: Any) -> str:
    """Return a type for people: `int ≥ 1`, `adamw | adam | sgd`, `float > 0 or null`, `list of str`."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return " ".join([describe(inner), *_constraints(metadata)])
    if get_origin(annotation) is Literal:
        return " | ".join(plain_text(choice) for choice in get_args(annotation))
    if _is_union(annotation):
        return " or ".join(describe(member) for member in get_args(annotation))
    if get_origin(annotation) in (tuple, list, set, frozenset):
        entry = describe(get_args(annotation)[0])
        return f"list of {'sections' if entry == 'section' else entry}"
    if get_origin(annotation) is dict:
        return f"map of {describe(get_args(annotation)[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return "null" if annotation in (None, type(None)) else getattr(annotation, "__name__", str(annotation))


def _constraints(metadata: list[Any]) -> list[str]:
    found = [
        f"{sign} {getattr(m, name)}"
        for m in metadata
        for name, sign in _SIGNS.items()
        if getattr(m, name, None) is not None
    ]
    inner = [m for item in metadata if isinstance(item, FieldInfo) for m in item.metadata]
    return found + (_constraints(inner) if inner else [])


def plain_text(value: Any, length: int = 60) -> str:
    """Return a value as it is typed in a file, cut to a readable length."""
    return show(value, length).strip("'") or "''" if isinstance(value, str) else show(value, length)


def accepts(annotation: Any, kind: type) -> bool:
    """Return whether a value of `kind` (str, int, float, bool) fits an annotation, constraints aside."""
    if get_origin(annotation) is Annotated:
        return accepts(get_args(annotation)[0], kind)
    if _is_union(annotation):
        return any(accepts(member, kind) for member in get_args(annotation))
    if get_origin(annotation) is Literal:
        return any(type(choice) is kind for choice in get_args(annotation))
    return annotation in (kind, Any)
