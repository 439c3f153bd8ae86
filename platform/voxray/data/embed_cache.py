"""The cache of frozen networks' outputs: one entry per distinct input, kept in immutable, checked part files.

A network has a folder of its own, named by all that its outputs depend on: factory, weights or hub name and
revision, dtype, options, input and output columns. In it lie parts, which are shards like a dataset's
(`data/shards.py`) with the inputs' keys in column `key`. A part is there when its description
`parts/<name>.json` is: that is written last, under another name, and renamed. So a process that is killed at
any time leaves whole parts and, at worst, a file without a description, which the next writer removes.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import xxhash
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from voxray.config.errors import InputError
from voxray.core.embedder import Embedder
from voxray.core.schema import TEXT, Column, Schema
from voxray.data.manifest import INDEX_FOLDER, SHARD_FOLDER, ShardInfo, fsync_folder
from voxray.data.reader import ShardError, ShardReader
from voxray.data.shards import write_shard

KEY = "key"
PARTS_FOLDER = "parts"
DESCRIPTION = "network.json"
_KEY_DTYPE = "S32"  # 128 bits in hex
_READ_BYTES = 8 << 20

log = logging.getLogger(__name__)


def input_key(embedder: Embedder, row: Mapping[str, Any]) -> str:
    """Return BLAKE2b-128, in hex, of a row's inputs: their kinds, dtypes, shapes and bytes.

    Raises InputError when the row has no such column.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in embedder.inputs:
        if name not in row:
            raise InputError(
                f"{embedder.factory} needs the column '{name}', which no map stage makes; "
                f"a row has: {', '.join(sorted(row))}"
            )
        kind, data = _bytes_of(row[name])
        digest.update(f"{kind} {len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def _bytes_of(value: Any) -> tuple[str, Any]:
    """Return what kind of value it is, and its bytes, the same on every machine."""
    if isinstance(value, str):
        return "text", value.encode()
    if isinstance(value, bytes):
        return "bytes", value
    array = np.asarray(value)
    assert array.dtype != object, "an input is text, bytes or an array of numbers"
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return f"{little.dtype.str} {array.shape}", little.reshape(-1).view(np.uint8).data


def network_of(embedder: Embedder) -> dict[str, Any]:
    """Return all that a network's outputs depend on, as plain values. Reads local weights once.

    Raises InputError for a name in a hub without a revision: what it names may change.
    """
    path = Path(embedder.model_id)
    if path.exists():
        model = {"weights_xxh3": _hash_files(path)}
    elif embedder.revision:
        model = {"model_id": embedder.model_id}
    else:
        raise InputError(
            f"the frozen network '{embedder.model_id}' is no local folder, and in a hub its weights may "
            "change; give the revision (a commit or a tag), or the folder it was downloaded to"
        )
    return {
        "factory": embedder.factory,
        **model,
        "revision": embedder.revision,
        "dtype": embedder.dtype,
        "options": dict(embedder.options),
        "inputs": list(embedder.inputs),
        "outputs": {name: _plain(column) for name, column in embedder.outputs.items()},
    }


def _plain(column: Column) -> dict[str, Any]:
    """Return what of a column decides about stored bytes: not its unit, not its names."""
    return {"dtype": column.dtype, "shape": list(column.shape), "ragged": column.ragged}


def _hash_files(path: Path) -> str:
    """Return xxh3-128 of the names and bytes of a file, or of all files in a folder that are not hidden."""
    digest = xxhash.xxh3_128()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if not file.is_file() or any(part.startswith(".") for part in Path(name).parts):
            continue
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    """One readable part: its reader, and the keys of its rows, S32 [rows]."""

    reader: ShardReader
    keys_N: np.ndarray


@dataclass(frozen=True)
class _Entries:
    """Where each stored input's outputs lie: the keys sorted, S32 [N], their parts and rows, int64 [N]."""

    parts: tuple[_Part, ...]
    keys_N: np.ndarray
    part_N: np.ndarray
    row_N: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[_Part]) -> Self:
        """Sort the keys of all parts; of equal ones the first part's comes first."""
        keys = np.concatenate([np.empty(0, _KEY_DTYPE), *(part.keys_N for part in parts)])
        sizes = [len(part.keys_N) for part in parts]
        order = np.argsort(keys, kind="stable")
        part_N = np.repeat(np.arange(len(sizes)), sizes)[order]
        row_N = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])[order]
        return cls(tuple(parts), keys[order], part_N, row_N)

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """Return where each key stands, [len(keys)]; -1 where it does not."""
        wanted = np.array(keys, dtype=_KEY_DTYPE)
        if not len(self.keys_N):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(self.keys_N, wanted), len(self.keys_N) - 1)
        return np.where(self.keys_N[places] == wanted, places, -1)


class EmbedCache:
    """The stored outputs of one network. Several processes may read and write one folder at a time, and
    several threads may use one object.
    """

    def __init__(self, folder: Path, outputs: Mapping[str, Column]) -> None:
        """Take the network's folder, as `of` names it, and its output columns; nothing is read yet."""
        self.folder, self.outputs = folder, dict(outputs)
        self._parts: dict[str, _Part | None] = {}  # None: damaged, told once
        self._entries = _Entries.of([])  # replaced as a whole, never changed
        self._refreshing = Lock()

    @classmethod
    def of(cls, root: Path, embedder: Embedder, network: Mapping[str, Any]) -> Self:
        """Return the cache below `root` of the network that `network_of` describes; its folder is made."""
        text = json.dumps(network, indent=1, sort_keys=True)
        folder = root / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        for name in (SHARD_FOLDER, INDEX_FOLDER, PARTS_FOLDER):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / DESCRIPTION).exists():
            _write_whole(folder / DESCRIPTION, text)
        return cls(folder, embedder.outputs)

    def computing(self) -> FileLock:
        """Return the lock that a process holds while it computes what is missing."""
        return FileLock(self.folder / "computing.lock")

    def __len__(self) -> int:
        """Return the number of inputs whose outputs are stored."""
        return len(np.unique(self._refreshed().keys_N))

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the distinct keys that have no entry, in the order in which they first come."""
        distinct = list(dict.fromkeys(keys))
        known = self._refreshed().find(distinct) >= 0
        return [key for key, there in zip(distinct, known, strict=True) if not there]

    def put(self, keys: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
        """Store the outputs of distinct inputs as one part, rows first; those that are there are left out.

        It is durable when this returns. Raises OSError when the folder cannot be written.
        """
        with FileLock(self.folder / "write.lock"):
            new = set(self.missing(keys))
            rows = [
                {KEY: key, **{name: columns[name][i] for name in self.outputs}}
                for i, key in enumerate(keys)
                if key in new
            ]
            if not rows:
                return
            self._remove_abandoned()
            name = secrets.token_hex(8)
            try:
                info = write_shard(self._shard(name), rows, self._schema(rows[0]), "cache")
            except OSError:
                self._remove_abandoned()
                raise
            assert info is not None, "a part has rows"
            fsync_folder(self.folder / SHARD_FOLDER)
            _write_whole(self._description(name), json.dumps(asdict(info)))

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the stored outputs of inputs: [N, *shape] per column; ragged, text and bytes as objects [N].

        Raises InputError when an entry is not there.
        """
        entries = self._entries
        places = entries.find(keys)
        if (places < 0).any():
            entries = self._refreshed()
            places = entries.find(keys)
        if (places < 0).any():
            raise InputError(
                f"the cache '{self.folder}' has no entry for {int((places < 0).sum())} of {len(keys)} "
                "inputs: it was changed meanwhile; run the command again, what is missing will be computed"
            )
        out: dict[str, list[Any]] = {name: [None] * len(keys) for name in self.outputs}
        parts, rows = entries.part_N[places], entries.row_N[places]
        for part in np.unique(parts).tolist():
            (inside,) = np.nonzero(parts == part)
            taken = entries.parts[part].reader.take(rows[inside], list(self.outputs))
            for name, values in taken.items():
                for place, value in zip(inside.tolist(), values, strict=True):
                    out[name][place] = value
        return {name: _as_column(values, self.outputs[name]) for name, values in out.items()}

    # --- the parts
    def _refreshed(self) -> _Entries:
        """Open the parts that were written since, by whichever process; return all entries."""
        with self._refreshing:
            found = {path.stem for path in (self.folder / PARTS_FOLDER).glob("*.json")}
            if found != self._parts.keys():
                for name in sorted(found - self._parts.keys()):
                    self._parts[name] = self._open(name)
                for name in self._parts.keys() - found:
                    del self._parts[name]
                parts = (part for _, part in sorted(self._parts.items()) if part is not None)
                self._entries = _Entries.of(list(parts))
            return self._entries

    def _open(self, name: str) -> _Part | None:
        """Open a part; reading its keys checks all its windows. A damaged one is told, and has no entries."""
        try:
            info = _adapter().validate_json(self._description(name).read_bytes())
            reader = ShardReader(self._shard(name), info)
            keys = reader.take(np.arange(reader.num_rows), [KEY])[KEY]
            return _Part(reader, keys.astype(_KEY_DTYPE))
        except (ValidationError, OSError, ShardError) as error:
            reason = str(error).splitlines()[0].removesuffix("; prepare the dataset again")
            log.warning(
                "a part of the cache of frozen networks is not used: %s; its entries are computed again; "
                "remove '%s' to be told no more",
                reason,
                self._description(name),
            )
            return None

    def _schema(self, row: Mapping[str, Any]) -> Schema:
        columns = {name: _resolved(column, row[name]) for name, column in self.outputs.items()}
        return Schema({KEY: Column(TEXT), **columns}, group=KEY, sample_id=KEY)

    def _remove_abandoned(self) -> None:
        """Remove what killed writers left; the caller holds the lock, so nobody is writing."""
        for folder in (SHARD_FOLDER, INDEX_FOLDER):
            for path in (self.folder / folder).glob("*.arrow"):
                if not self._description(path.stem).exists():
                    path.unlink(missing_ok=True)
        for path in (self.folder / PARTS_FOLDER).glob("*.partial"):
            path.unlink(missing_ok=True)

    def _shard(self, name: str) -> Path:
        return self.folder / SHARD_FOLDER / f"{name}.arrow"

    def _description(self, name: str) -> Path:
        return self.folder / PARTS_FOLDER / f"{name}.json"


@cache
def _adapter() -> TypeAdapter[ShardInfo]:
    return TypeAdapter(ShardInfo)


def _resolved(column: Column, value: Any) -> Column:
    """Return the column with the sizes that the network gave."""
    if not column.is_tensor:
        return column
    shape = np.shape(value)
    return replace(column, shape=(None, *shape[1:]) if column.ragged else shape)


def _as_column(values: list[Any], column: Column) -> np.ndarray:
    if column.is_tensor and not column.ragged and values:
        return np.stack(values)
    out = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        out[place] = value
    return out


def _write_whole(path: Path, text: str) -> None:
    """Write a small file under another name, fsync, rename, fsync: it is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    fsync_folder(path.parent)
