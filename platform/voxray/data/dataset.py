"""From `data.path` to a dataset's folder: one that the user prepared, or a synthetic one in the cache."""

import hashlib
import inspect
import json
import shutil
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from voxray.config.errors import InputError
from voxray.config.resolve import Resolved
from voxray.core.registry import task_data
from voxray.core.run_config import RunConfig
from voxray.data.manifest import FILE_NAME, VERSION, load_manifest
from voxray.data.store import Store

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
    if config.data.path.startswith(SYNTH):
        path = str(_synthetic_path(config))
    else:
        path = config.data.path
        _refuse_what_is_not_prepared(path, config.task)
    load_manifest(path)
    return path


def check_given(resolved: Resolved[RunConfig]) -> None:
    """Raise InputError where the config lacks something, or `data.path` leads to no dataset, with the key
    that it was given by and where.
    """
    if missing := resolved.config.missing():
        raise InputError(*missing)
    path = resolved.config.data.path
    if path.startswith(SYNTH) or (path and not Store.of(path).is_local):
        return
    try:
        dataset_path(resolved.config)
    except InputError as error:
        if not path:
            raise
        raise InputError(*(f"{resolved.place('data.path')}: {text}" for text in error.problems)) from None


def _refuse_what_is_not_prepared(path: str, task: str) -> None:
    store = Store.of(path)
    if not store.is_local or store.path(FILE_NAME).is_file():
        return
    if not Path(path).exists():
        raise InputError(
            f"there is no folder '{path}'; `voxray data prepare {task} RAW OUT` makes a dataset of raw "
            "files, then write data.path=OUT"
        )
    raise InputError(
        f"'{path}' is no prepared dataset (it has no {FILE_NAME}); if it holds raw files, run "
        f"`voxray data prepare {task} {path} OUT` once, then write data.path=OUT"
    )


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
    beside = [task_file.with_name(name) for name in ("data.py", "synth.py")]
    worlds = sorted((Path(__file__).parent / "formats").glob("*_world.py"))
    files = [file for file in beside if file.exists()] or [task_file]
    source = "".join(file.read_text() for file in (*files, *worlds))
    recipe = json.dumps([VERSION, source, config.data.prepare.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    name = f"{config.task.replace(':', '.')}-{_size(config)}-{digest}"
    return user_cache_path("voxray") / "datasets" / name
