"""What a dataset holds, as tables of plain values: for `voxray data inspect|stats` and for reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.schema import Schema
from voxray.data.manifest import Manifest, load_manifest
from voxray.data.shards import open_shard
from voxray.data.statistics import label_counts

Table = list[dict[str, Any]]


def inspect(dataset: Path) -> dict[str, Table]:
    """Return the tables `dataset`, `splits`, `columns` and `shards` of a dataset, from its manifest."""
    manifest = load_manifest(dataset)
    about = {
        "task": manifest.recipe.task,
        "source": manifest.source.path,
        "fingerprint": manifest.source.fingerprint,
        "made by": f"voxray {manifest.recipe.voxray}",
        **_leaves("data.prepare", manifest.recipe.prepare),
        "rows set aside": manifest.num_quarantined,
    }
    return {
        "dataset": [{"what": name, "value": value} for name, value in about.items()],
        "splits": _splits(manifest),
        "columns": _columns(manifest.schema),
        "shards": [asdict(shard) for shard in manifest.shards],
    }


def stats(dataset: Path) -> dict[str, Table]:
    """Return `numbers` (mean, std, count of the training rows) and, per column with names, its label counts.

    Labels are counted in every split, from the shards: positives / negatives / unknown.
    """
    manifest = load_manifest(dataset)
    named = [name for name, column in manifest.schema.columns.items() if column.names]
    numbers = [
        {"column": name, "unit": "0 … 1" if manifest.schema.columns[name].dtype == "uint8" else "", **values}
        for name, values in manifest.statistics.items()
        if name not in named
    ]
    return {"numbers": numbers, **{name: _labels(Path(dataset), manifest, name) for name in named}}


def _leaves(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    parts = (_leaves(f"{path}.{name}", part) for name, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def _splits(manifest: Manifest) -> Table:
    return [
        {
            "split": split,
            "rows": manifest.counts[split].rows,
            f"groups ({manifest.schema.group})": manifest.counts[split].groups,
            "shards": len(manifest.shards_of(split)),
            "MB": sum(shard.bytes for shard in manifest.shards_of(split)) / 1e6,
        }
        for split in manifest.splits
    ]


def _columns(schema: Schema) -> Table:
    roles = {schema.sample_id: "sample id", schema.group: "group"}
    return [
        {
            "column": name,
            "dtype": column.dtype,
            "shape": "×".join(map(str, column.shape)),
            "unit": column.unit,
            "role": roles.get(name, ""),
            "names": column.names,
        }
        for name, column in schema.columns.items()
    ]


def _labels(dataset: Path, manifest: Manifest, column: str) -> Table:
    table: Table = [{"label": name} for name in manifest.schema.columns[column].names]
    for split in manifest.splits:
        readers = [open_shard(dataset / shard.file) for shard in manifest.shards_of(split)]
        labels = np.concatenate([r.take(np.arange(r.num_rows), [column])[column] for r in readers])
        for kind, counts in label_counts(labels).items():
            for row, count in zip(table, counts, strict=True):
                row[f"{split} {kind}"] = count
    return table
