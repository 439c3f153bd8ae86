"""From `data.path` to a dataset's folder: one that the user prepared, or a synthetic one in the cache."""

import hashlib
import inspect
import json
import shutil
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from voxray.config.errors import InputError
from voxray.core.registry import task_data
from voxray.core.run_config import RunConfig
from voxray.data.manifest import FILE_NAME, VERSION, load_manifest

SYNTH = "synth:"
SIZES = ("tiny", "small", "full")


def dataset_path(config: RunConfig) -> str:
    """Return the folder or URL of the dataset that `data.path` names, without making anything.

    Raises InputError when no path is given or the folder holds no dataset.
    """
    if not config.data.path:
        raise InputError(
            "data.path is empty; give a prepared dataset with data.path=FOLDER, or data.path=synth:tiny"
        )
    path = str(_synthetic_path(config)) if config.data.path.startswith(SYNTH) else config.data.path
    load_manifest(path)
    return path


def ensure_dataset(config: RunConfig) -> str:
    """Return the dataset's folder or URL; a `synth:` one is made in the cache first, which needs Ray."""
    if not config.data.path.startswith(SYNTH):
        return dataset_path(config)
    from voxray.data.prepare import prepare

    out = _synthetic_path(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_suffix(".lock")):
        if not (out / FILE_NAME).exists():
            raw = out.with_name(f"{out.name}.raw")
            shutil.rmtree(raw, ignore_errors=True)
            task = task_data(config.task)(config)
            task.synth(raw, _size(config), seed=0)
            prepare(task, raw, out)
            shutil.rmtree(raw)
    return str(out)


def _size(config: RunConfig) -> str:
    size = config.data.path.removeprefix(SYNTH)
    if size not in SIZES:
        raise InputError(
            f"data.path: '{config.data.path}' names no size; write synth:{', synth:'.join(SIZES)}"
        )
    return size


def _synthetic_path(config: RunConfig) -> Path:
    """Name the cached dataset by what makes it: the generator's source and the options of `data.prepare`."""
    task_file = Path(inspect.getfile(task_data(config.task)))
    generator = task_file.with_name("data.py")
    source = (generator if generator.exists() else task_file).read_text()
    recipe = json.dumps([VERSION, source, config.data.prepare.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    name = f"{config.task.replace(':', '.')}-{_size(config)}-{digest}"
    return user_cache_path("voxray") / "datasets" / name
