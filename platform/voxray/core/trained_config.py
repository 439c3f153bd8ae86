"""The config of a trained run, checkpoint or export, as its `config.json` tells it; no weights are read."""

import json
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError


def read_trained_config(reference: str, runs_root: str) -> dict[str, Any]:
    """Return the plain values of the config that a trained model's folder was made with.

    `reference` is a run, RUN/best, RUN/last, a checkpoint's folder or an export, as given or below
    `runs_root`. Raises InputError when there is none, or it cannot be read.
    """
    for path in (Path(reference).expanduser(), Path(runs_root) / reference):
        folder = path.parent if path.name in ("best", "last") and not path.exists() else path
        file = folder / "config.json"
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"'{file}' cannot be read: {error}; name another run") from error
        # A run's file also says where each value came from.
        return values["config"] if "config" in values and "task" not in values else values
    raise InputError(
        f"'{reference}' is no run, checkpoint or export: there is no config.json; `voxray ls runs` lists runs"
    )
