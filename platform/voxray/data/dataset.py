"""From `data.path` to a dataset's folder: one that the user prepared, or one that is made in the cache, of
synthetic raw files (`synth:tiny`) or of the user's (`raw:URL`).
"""

import hashlib
import inspect
import json
import logging
import shutil
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from voxray.config.errors import InputError
from voxray.config.resolve import Resolved
from voxray.core.registry import task_data
from voxray.core.run_config import RunConfig
from voxray.data.location import without_options
from voxray.data.manifest import FILE_NAME, VERSION, load_manifest
from voxray.data.raw_copy import local_raw
from voxray.data.store import Store

SYNTH, RAW = "synth:", "raw:"
SIZES = ("tiny", "small", "full")

log = logging.getLogger(__name__)


def is_made(path: str) -> bool:
    """Whether `data.path` names a dataset that is made in the cache."""
    return path.startswith((SYNTH, RAW))


def dataset_path(config: RunConfig) -> str:
    """Return the folder or URL of the dataset that `data.path` names, without making anything.

    Raises InputError when no path is given or the folder holds no dataset.
    """
    if not config.data.path:
        raise InputError(
            "data.path is empty; give a prepared dataset with data.path=FOLDER, or data.path=synth:tiny"
        )
    if is_made(config.data.path):
        path = str(_made_path(config))
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
    if is_made(path) or (path and not Store.of(path).is_local):
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
    """Return the dataset's folder or URL; a `synth:` or `raw:` one is made in the cache first, which needs
    Ray.
    """
    if not is_made(config.data.path):
        return dataset_path(config)
    out = _made_path(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_suffix(".lock")):
        if not (out / FILE_NAME).exists():
            _make(config, out)
    return str(out)


def _make(config: RunConfig, out: Path) -> None:
    from voxray.data.prepare import prepare

    task = task_data(config.task)(config)
    if config.data.path.startswith(RAW):
        location = config.data.path.removeprefix(RAW)
        prepare(task, local_raw(task, location, log.warning), out, origin=without_options(location))
        return
    raw = out.with_name(f"{out.name}.raw")
    shutil.rmtree(raw, ignore_errors=True)
    task.synth(raw, _size(config), seed=0)
    prepare(task, raw, out)
    shutil.rmtree(raw)


def _size(config: RunConfig) -> str:
    size = config.data.path.removeprefix(SYNTH)
    if size not in SIZES:
        raise InputError(
            f"data.path: '{config.data.path}' names no size; write synth:{', synth:'.join(SIZES)}"
        )
    return size


def _made_path(config: RunConfig) -> Path:
    """Name the cached dataset by what makes it: where its raw files come from and the options of
    `data.prepare`.
    """
    is_raw = config.data.path.startswith(RAW)
    source, kind = (config.data.path, "raw") if is_raw else (_generator(config), _size(config))
    recipe = json.dumps([VERSION, source, config.data.prepare.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return user_cache_path("voxray") / "datasets" / f"{config.task.replace(':', '.')}-{kind}-{digest}"


def _generator(config: RunConfig) -> str:
    """Return the source text of what makes a task's synthetic raw files."""
    task_file = Path(inspect.getfile(task_data(config.task)))
    beside = [task_file.with_name(name) for name in ("data.py", "synth.py")]
    worlds = sorted((Path(__file__).parent / "formats").glob("*_world.py"))
    files = [file for file in beside if file.exists()] or [task_file]
    return "".join(file.read_text() for file in (*files, *worlds))
