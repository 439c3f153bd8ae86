"""`dataset.json` beside a run: what its task knows of the dataset, so that the model outlives the data."""

import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from voxray.config.errors import InputError
from voxray.core.schema import Column, Schema
from voxray.data.manifest import Manifest
from voxray.data.store import Store

FILE_NAME = "dataset.json"


@dataclass(frozen=True)
class DatasetFacts:
    """Where a dataset lies, its schema with the sizes that were found, and its training statistics."""

    location: str
    schema: Schema
    statistics: dict[str, Any]

    @classmethod
    def of(cls, dataset: str, manifest: Manifest) -> "DatasetFacts":
        """Return what `manifest` says; a folder is named by its absolute path."""
        store = Store.of(dataset)
        location = str(Path(store.location).resolve()) if store.is_local else store.location
        return cls(location, manifest.schema, manifest.statistics)

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write `dataset.json` into `folder`, whole or not at all."""
        partial = folder / f".{FILE_NAME}.partial-{os.getpid()}"
        partial.write_text(self.to_json())
        partial.replace(folder / FILE_NAME)

    def refuse_others(self, dataset: str, found: Schema) -> None:
        """Raise InputError where a dataset's columns are not those that the task was built for."""
        problems = [
            text
            for name, column in self.schema.columns.items()
            if (text := _difference(name, column, found.columns.get(name)))
        ]
        if found.group != self.schema.group:
            problems.append(f"its group is '{found.group}', not '{self.schema.group}'")
        if problems:
            raise InputError(
                *(
                    f"{dataset} does not fit the model: {text}; prepare it as the run's dataset was"
                    for text in problems
                )
            )


def read_facts(folder: Path) -> DatasetFacts | None:
    """Return what `folder` says of its dataset, or None where it has no `dataset.json`.

    Raises InputError for a file that cannot be read.
    """
    file = folder / FILE_NAME
    try:
        return _adapter().validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise InputError(f"{file} is broken; restore it, or delete it while the dataset is there") from error


@cache
def _adapter() -> TypeAdapter[DatasetFacts]:
    return TypeAdapter(DatasetFacts)


def _difference(name: str, wanted: Column, found: Column | None) -> str:
    if found is None:
        return f"it has no column '{name}'"
    if found.dtype != wanted.dtype or found.ragged != wanted.ragged:
        return f"its column '{name}' holds {_kind(found)}, not {_kind(wanted)}"
    is_other_size = len(found.shape) != len(wanted.shape) or any(
        None not in (size, other) and size != other
        for size, other in zip(wanted.shape, found.shape, strict=True)
    )
    if is_other_size:
        return f"its column '{name}' has the shape {_shape(found)}, not {_shape(wanted)}"
    if found.names != wanted.names:
        return f"the entries of its column '{name}' are called otherwise or stand in another order"
    return ""


def _kind(column: Column) -> str:
    return f"{'ragged ' if column.ragged else ''}{column.dtype}"


def _shape(column: Column) -> str:
    return "×".join("?" if size is None else str(size) for size in column.shape) or "of a scalar"
