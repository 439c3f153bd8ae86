"""What a dataset holds, as tables of plain values: for `voxray data inspect|stats` and for reports.

Labels, scalars, texts and lengths come from the shards' indexes. Missing values of larger float columns are
counted by reading those columns once, in pieces.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.data.index import LENGTH, ShardIndex, index_columns
from voxray.data.manifest import Manifest, load_manifest
from voxray.data.reader import ShardReader
from voxray.data.statistics import label_counts
from voxray.data.store import Store
from voxray.data.verify import row_pieces

Table = list[dict[str, Any]]
SAMPLES_PER_SPLIT = 2
_VALUES_SHOWN, _LETTERS_SHOWN = 4, 40
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


def inspect(dataset: Path) -> dict[str, Table]:
    """Return tables: `dataset`, `splits`, `columns`, `missing`, `lengths`, `statistics`, `quantiles`,
    `samples`, `shards`.

    `quantiles` are of statistics with a number per entry of a column, e.g. each voxel's reliability;
    `missing` has NaN values, and empty texts, of each column that may have them; `lengths` are of ragged
    columns. Raises InputError when there is no dataset, or a file that is needed is damaged.
    """
    manifest = load_manifest(dataset)
    splits = [_Split(Path(dataset), manifest, split) for split in manifest.splits]
    about = {
        "task": manifest.recipe.task,
        "source": manifest.source.path,
        "fingerprint": manifest.source.fingerprint,
        "made by": f"voxray {manifest.recipe.voxray}",
        **_leaves("data.prepare", manifest.recipe.prepare),
        **{f"frozen network {i + 1}": _network(net) for i, net in enumerate(manifest.recipe.networks)},
        "rows set aside": manifest.num_quarantined,
    }
    return {
        "dataset": [{"what": name, "value": value} for name, value in about.items()],
        "splits": [_about_split(split) for split in splits],
        "columns": _columns(manifest.schema),
        "missing": _missing(splits, manifest.schema),
        "lengths": _lengths(splits, manifest.schema),
        "statistics": _numbers(manifest),
        "quantiles": _quantiles(manifest),
        "samples": _samples(splits, manifest.schema),
        "shards": [
            {name: value for name, value in asdict(shard).items() if name not in ("windows", "index_xxh3")}
            | {"windows": len(shard.windows)}
            for shard in manifest.shards
        ],
    }


def stats(dataset: Path) -> dict[str, Table]:
    """Return `numbers` (mean, std, count of the training rows), `quantiles` of statistics with a number per
    entry, `lengths` of ragged columns, and per column with names its label counts: positives / negatives /
    unknown of every split.
    """
    manifest = load_manifest(dataset)
    splits = [_Split(Path(dataset), manifest, split) for split in manifest.splits]
    named = [name for name, column in manifest.schema.columns.items() if column.names]
    return {
        "numbers": _numbers(manifest),
        "quantiles": _quantiles(manifest),
        "lengths": _lengths(splits, manifest.schema),
        **{name: _labels(splits, name, manifest.schema.columns[name]) for name in named},
    }


class _Split:
    """One split's rows, read when asked for."""

    def __init__(self, dataset: Path, manifest: Manifest, name: str) -> None:
        self.name, self.shards, self.schema = name, manifest.shards_of(name), manifest.schema
        self.counts = manifest.counts[name]
        self._dataset = dataset
        self._index = ShardIndex(Store.of(dataset), manifest, self.shards)

    def indexed(self, name: str) -> np.ndarray:
        """Return an index column of all rows, rows first."""
        return np.concatenate([self._index.column(i, name) for i in range(len(self.shards))])

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """Yield a column's rows in pieces that fit in memory."""
        for shard in self.shards:
            reader = ShardReader(self._dataset / shard.file, shard)
            for start, stop in row_pieces(shard):
                yield reader.take(np.arange(start, stop), [name])[name]

    def first_rows(self, num: int) -> dict[str, np.ndarray]:
        """Return the first rows of the first shard, all columns."""
        shard = self.shards[0]
        return ShardReader(self._dataset / shard.file, shard).take(np.arange(min(num, shard.rows)))


# --- tables
# -----------------------------------------------------------------------------------------------------------


def _leaves(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    parts = (_leaves(f"{path}.{name}", part) for name, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def _network(network: dict[str, Any]) -> str:
    model = network.get("model_id") or f"local weights {network['weights_xxh3']}"
    revision = f" at {network['revision']}" * bool(network["revision"])
    return f"{network['factory']}: {model}{revision}, {network['dtype']} → {', '.join(network['outputs'])}"


def _about_split(split: _Split) -> dict[str, Any]:
    _, rows_per_group = np.unique(split.indexed(split.schema.group).astype(str), return_counts=True)
    return {
        "split": split.name,
        "rows": split.counts.rows,
        f"groups ({split.schema.group})": split.counts.groups,
        **{f"rows per group, {name}": value for name, value in _spread(rows_per_group).items()},
        "shards": len(split.shards),
        "MB": sum(shard.bytes for shard in split.shards) / 1e6,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _columns(schema: Schema) -> Table:
    roles = {schema.sample_id: "sample id", schema.group: "group"}
    return [
        {
            "column": name,
            "dtype": column.dtype,
            "shape": "×".join("T" if size is None else str(size) for size in column.shape),
            "unit": column.unit,
            "role": roles.get(name, ""),
            "names": column.names,
        }
        for name, column in schema.columns.items()
    ]


def _missing(splits: list[_Split], schema: Schema) -> Table:
    """Return, per column that may lack values and per split, how many it lacks and their share in percent."""
    table: Table = []
    for name, column in schema.columns.items():
        if name == schema.sample_id or not (column.dtype == TEXT or _is_float(column)):
            continue
        row: dict[str, Any] = {"column": name}
        for split in splits:
            pieces = [split.indexed(name)] if name in index_columns(schema) else split.pieces(name)
            missing, total = 0, 0
            for piece in pieces:
                for values in piece if column.ragged else [piece]:
                    lacks = values == "" if column.dtype == TEXT else np.isnan(values)
                    missing, total = missing + int(np.count_nonzero(lacks)), total + lacks.size
            row[split.name] = missing
            row[f"{split.name} %"] = 100 * missing / total if total else 0.0
        table.append(row)
    return table


def _is_float(column: Column) -> bool:
    return column.is_tensor and np.dtype(column.dtype).kind == "f"


def _lengths(splits: list[_Split], schema: Schema) -> Table:
    return [
        {"column": name, "split": split.name, **_spread(lengths), "sum": int(lengths.sum())}
        for name, column in schema.columns.items()
        if column.ragged
        for split in splits
        for lengths in [split.indexed(name + LENGTH)]
    ]


def _numbers(manifest: Manifest) -> Table:
    columns = manifest.schema.columns
    return [
        {
            "column": name,
            "unit": "0 … 1" if columns[name].dtype == "uint8" else columns[name].unit,
            **{key: value for key, value in values.items() if not isinstance(value, list | dict)},
        }
        for name, values in manifest.statistics.items()
        if not columns[name].names
    ]


def _quantiles(manifest: Manifest) -> Table:
    return [
        {
            "column": name,
            "statistic": statistic,
            "entries": len(values),
            **{f"{100 * share:g} %": float(np.quantile(values, share)) for share in _SHARES},
        }
        for name, statistics in manifest.statistics.items()
        if not manifest.schema.columns[name].names
        for statistic, values in statistics.items()
        if isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    ]


def _labels(splits: list[_Split], name: str, column: Column) -> Table:
    table: Table = [{"label": label} for label in column.names]
    for split in splits:
        labels = split.indexed(name).reshape(-1, len(column.names))
        for kind, counts in label_counts(labels).items():
            for row, count in zip(table, counts, strict=True):
                row[f"{split.name} {kind}"] = count
    return table


# --- samples
# -----------------------------------------------------------------------------------------------------------


def _samples(splits: list[_Split], schema: Schema) -> Table:
    """Return a row per column, and the first rows of each split beside each other."""
    table: Table = [{"column": name} for name in schema.columns]
    for split in splits:
        columns = split.first_rows(SAMPLES_PER_SPLIT)
        for row, (name, column) in zip(table, schema.columns.items(), strict=True):
            for number, value in enumerate(columns[name]):
                row[f"{split.name} {number}"] = short(value, column)
    return table


def short(value: Any, column: Column) -> Any:
    """Return a value as a table has room for it: a number, the beginning of a text, what an array is like."""
    if column.dtype == TEXT:
        return value if len(value) <= _LETTERS_SHOWN else f"{value[: _LETTERS_SHOWN - 1]}…"
    if column.dtype == BYTES:
        kind = next((name for magic, name in _MAGIC.items() if value.startswith(magic)), "bytes")
        return f"{kind} of {len(value):,} bytes"
    array = np.asarray(value)
    if array.ndim == 0:
        return array.item()
    return f"{'×'.join(map(str, array.shape))}: {_first_values(array, column)}"


def _first_values(array: np.ndarray, column: Column) -> str:
    if column.names:
        known = dict(zip(column.names, array.reshape(-1, len(column.names))[0].tolist(), strict=True))
        return ", ".join(name for name, value in known.items() if value == 1) or "none is 1"
    first = " ".join(f"{value:.4g}" for value in array.reshape(-1)[:_VALUES_SHOWN].tolist())
    more = " …" if array.size > _VALUES_SHOWN else ""
    known = array[~np.isnan(array)] if array.dtype.kind == "f" else array
    spread = f" (from {float(known.min()):.4g} to {float(known.max()):.4g})" if known.size else ""
    return f"{first}{more}{spread}"
