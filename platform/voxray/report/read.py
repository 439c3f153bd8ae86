"""Reads a run's folder: plain JSON and parquet, no pickle. A broken file is an InputError that names it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.figures import Predictions
from voxray.train.run_folder import RunFolder
from voxray.train.trained.dataset_facts import DatasetFacts, read_facts


@dataclass(frozen=True)
class CheckpointEntry:
    """One checkpoint folder; without a manifest it is unfinished and voxray does not use it."""

    name: str
    num_bytes: int
    complete: bool


@dataclass(frozen=True)
class RunFiles:
    """Everything that a run's folder tells."""

    folder: Path
    config: dict[str, Any]
    sources: dict[str, str]
    provenance: dict[str, Any]
    records: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]  # by split
    checkpoints: list[CheckpointEntry]
    best: dict[str, Any]
    dataset: DatasetFacts | None  # what is known of it beside the run

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the log's records of one kind, in order."""
        return [record for record in self.records if record.get("kind") == kind]

    @property
    def end(self) -> dict[str, Any]:
        """The last `end` record; empty while the run is on, and after a kill."""
        last = self.records[-1] if self.records else {}
        return last if last.get("kind") == "end" else {}


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder. What a run may lack (evaluations, provenance, checkpoints) is empty then."""
    saved = read_json(folder / "config.json")
    if not isinstance(saved.get("config"), dict):
        raise InputError(
            f"{folder / 'config.json'} has no map 'config'; it is not a config that voxray saved"
        )
    return RunFiles(
        folder=folder,
        config=saved["config"],
        sources=saved.get("sources") or {},
        provenance=read_json(folder / "provenance.json", optional=True),
        records=RunFolder(folder).records(),
        evaluations={
            path.stem.partition("_")[2]: _read_evaluation(path)
            for path in sorted(folder.glob("evaluation_*.json"))
        },
        checkpoints=_checkpoints(folder / "checkpoints"),
        best=read_json(folder / "checkpoints" / "best.json", optional=True),
        dataset=read_facts(folder),
    )


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON map; NaN becomes None. An optional file that is not there is an empty map."""
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the folder is not a whole run or study of voxray") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON: {error}; restore it or delete the folder"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON map; restore it or delete the folder")
    return value


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Read an evaluation, whose parts are maps and whose table is a list of maps."""
    evaluation = read_json(path)
    kinds = {"metrics": dict, "intervals": dict, "floor": dict, "table": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(evaluation.get(key), kind | None)]
    if wrong or not all(isinstance(row, dict) for row in evaluation.get("table") or []):
        raise InputError(
            f"{path} is no evaluation: '{(wrong or ['table'])[0]}' has another form; "
            f"write it anew by `voxray evaluate {path.parent}`"
        )
    return evaluation


def read_predictions(folder: Path, split: str) -> Predictions | None:
    """Read a split's predictions: ids, scores and labels [N, K] as float64; None where there are none, or
    they are no scores.
    """
    path = predictions_file(folder, split)
    if path is None or "scores" not in _names(path, f"voxray evaluate {folder}"):
        return None
    return read_predictions_file(path, f"voxray evaluate {folder}")


def predictions_file(folder: Path, split: str) -> Path | None:
    """Return a split's predictions, where they were written."""
    path = folder / f"predictions_{split}.parquet"
    return path if path.is_file() else None


def read_columns(path: Path, command: str) -> dict[str, np.ndarray]:
    """Return the columns of a predictions file that are text [N], numbers [N] or lists of floats [N, K], the
    latter as float64; `command` is what an error says writes the file anew.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, np.ndarray] = {}
    try:
        table = pq.read_table(path)
        for name in table.column_names:
            kind = table[name].type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                found[name] = np.array(table[name].to_pylist(), dtype=object)
            elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
                found[name] = table[name].to_numpy()
            elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_floating(
                kind.value_type
            ):  # others are for `predict`'s users: maps of classes
                found[name] = _matrix(table[name])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}; write it anew by `{command}`") from error
    return found


def _names(path: Path, command: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}; write it anew by `{command}`") from error


def read_predictions_file(path: Path, command: str) -> Predictions:
    """Read predictions from a Parquet file; `command` is what an error says writes it anew.

    A task without scores and labels in its predictions has K = 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = [name for name in ("scores", "labels") if name in pq.read_schema(path).names]
        table = pq.read_table(path, columns=["sample_id", "group_id", *names])
        scores, labels = (
            _matrix(table[name]) if len(names) == 2 else np.zeros((len(table), 0))
            for name in ("scores", "labels")
        )
        if scores.shape != labels.shape:
            raise ValueError(f"scores have the shape {scores.shape}, labels {labels.shape}")
        ids = [
            [str(cell) for cell in table[name].cast(pa.string()).to_pylist()]
            for name in ("sample_id", "group_id")
        ]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}; write it anew by `{command}`") from error
    return Predictions(ids[0], ids[1], scores, labels)


def _matrix(column: Any) -> np.ndarray:
    """Return a column of equally long lists of numbers as [N, K] float64; null is NaN."""
    import pyarrow as pa

    # Only lists of numbers are opened: a foreign file may carry pickled objects (FACTS.md section 7).
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise ValueError(f"a column is {kind}, not lists of floats")
    lists = column.combine_chunks()
    lengths = set(lists.value_lengths().to_pylist())
    if len(lengths) > 1 or None in lengths:
        raise ValueError(f"rows have lists of different lengths: {sorted(map(str, lengths))}")
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float64).reshape(len(lists), -1)


def _checkpoints(folder: Path) -> list[CheckpointEntry]:
    entries = sorted(path for path in folder.glob("step-*") if path.is_dir())
    return [
        CheckpointEntry(
            name=path.name,
            num_bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
            complete=(path / "MANIFEST.json").is_file(),
        )
        for path in entries
    ]
