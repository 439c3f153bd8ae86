"""Cells are found by their config, which names data by its path: other data under that path are refused."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from voxray.config.errors import InputError
from voxray.core.run_config import RunConfig
from voxray.data.dataset import dataset_path
from voxray.data.manifest import load_manifest

DATA_FILE = "data.json"  # in a cell's folder: what it was trained on


def note_data(folder: Path, config: RunConfig) -> None:
    """Write down on which data a cell begins to train."""
    (folder / DATA_FILE).write_text(json.dumps({"path": config.data.path, "sha256": data_sha256(config)}))


def refuse_other_data(cells: Iterable[tuple[Path, RunConfig]]) -> None:
    """Raise InputError for cell folders whose runs began on a dataset that has been replaced since.

    A dataset that is not there is not looked at: cells that are done need none.
    """
    now: dict[str, str | None] = {}
    stale: list[Path] = []
    path = ""
    for folder, config in cells:
        before = _noted(folder)
        if before is None:
            continue
        key = config.data.model_dump_json()
        if key not in now:
            now[key] = data_sha256(config)
        if now[key] not in (None, before):
            stale.append(folder)
            path = config.data.path
    if stale:
        raise InputError(
            f"{path} holds other data than when cells of {stale[0].parent} were trained; name the new data "
            "by another data.path, or delete these folders to train them anew: "
            f"{' '.join(sorted(dict.fromkeys(folder.name for folder in stale)))}"
        )


def data_sha256(config: RunConfig) -> str | None:
    """Return the hash of the hashes of all shards, None where there is no dataset."""
    try:
        manifest = load_manifest(dataset_path(config))
    except InputError:
        return None
    text = json.dumps([[shard.split, shard.sha256] for shard in manifest.shards])
    return hashlib.sha256(text.encode()).hexdigest()


def _noted(folder: Path) -> str | None:
    try:
        return json.loads((folder / DATA_FILE).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
