"""Raw files behind a URL: what a task reads of them is copied to this machine once, bounded in bytes."""

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from filelock import FileLock
from platformdirs import user_cache_path
from pyarrow import fs

from voxray.config.errors import InputError
from voxray.core.task import TaskData
from voxray.data.config import DataConfig
from voxray.data.location import is_url, without_options
from voxray.data.shard_cache import FIRST_WAIT_S, TRIES
from voxray.data.store import Store, open_filesystem

_CHECK = "check the URL, that you are online and that you are logged in"


def local_raw(task: TaskData, location: str, tell: Callable[[str], None]) -> Path:
    """Return the folder of raw files: `location` itself, or the copy of what a URL holds.

    Of a URL the files that the task reads are kept, in a folder of its own below `data.cache_dir`; one that
    is there in its size is not fetched again. What comes has the size that was listed and, from a hub that
    states it, the sha256. Raises InputError for a URL that cannot be read or holds nothing that the task
    reads, and before anything is fetched where that is more than `data.cache_gb`.
    """
    if not is_url(location):
        return Path(location)
    store, config = Store.of(location), task.config.data
    folder = copy_folder(config, store.location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"'{folder}' cannot be made: {error.strerror}; set data.cache_dir to a folder that can be written"
        ) from error
    with FileLock(folder.with_suffix(".lock")):
        wanted = _wanted(task, store)
        missing = {name: size for name, size in wanted.items() if not _is_there(folder / name, size)}
        _check_limit(store, sum(wanted.values()), config)
        if missing:
            size = sum(missing.values()) / 1e9
            tell(f"copying {len(missing)} files, {size:.2f} GB, of {_shown(store)} to {folder}")
        for name, num_bytes in missing.items():
            _fetch(store, name, num_bytes, folder / name)
    return folder


def copy_folder(config: DataConfig, url: str) -> Path:
    """Return where the copy of a URL's files is kept."""
    root = Path(config.cache_dir) if config.cache_dir else user_cache_path("voxray")
    return (root / "raw" / hashlib.sha256(url.encode()).hexdigest()[:16]).absolute()


def _wanted(task: TaskData, store: Store) -> dict[str, int]:
    """Return the bytes of each file that the task reads, by its name below the URL."""
    try:
        files = store.files()
        wanted = {name: _size(store, name, files[name]) for name in sorted(files) if task.reads_file(name)}
    except InputError:
        raise
    except Exception as error:  # file systems let the errors of their HTTP libraries through
        raise InputError(f"'{_shown(store)}' cannot be read: {_first_line(error)}; {_CHECK}") from error
    if not files:  # file systems say so too where they were not answered
        raise InputError(f"'{_shown(store)}' holds nothing, or cannot be reached; {_CHECK}")
    if outside := [name for name in wanted if ".." in PurePosixPath(name).parts]:
        raise InputError(f"'{_shown(store)}' holds '{outside[0]}', a name that leads out of the folder")
    if not wanted:
        raise InputError(
            f"'{_shown(store)}' holds no file that {task.config.task} reads, it holds "
            f"{', '.join(sorted(files)[:3])}; name the URL of the raw files' folder"
        )
    return wanted


def _size(store: Store, name: str, listed: int | None) -> int:
    """Return a file's bytes; a web server's list of files does not tell them."""
    if listed is not None:
        return listed
    system, root = open_filesystem(store.location)
    asked = system.get_file_info(f"{root}/{name}").size
    if asked is None:
        raise InputError(f"'{store.describe(name)}': nobody tells its size; copy the files by hand")
    return asked


def _is_there(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes


def _check_limit(store: Store, num_bytes: int, config: DataConfig) -> None:
    if num_bytes > config.cache_gb * 1e9:
        raise InputError(
            f"what is read of '{_shown(store)}' has {num_bytes / 1e9:.2f} GB, and data.cache_gb keeps "
            f"{config.cache_gb:g}; raise it, or take less, e.g. fewer subjects"
        )


def _fetch(store: Store, name: str, num_bytes: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
        try:
            store.download(name, partial)
            reason = _difference(store, name, num_bytes, partial)
            if not reason:
                partial.rename(path)
                return
        except Exception as error:
            reason = _first_line(error)
        finally:
            partial.unlink(missing_ok=True)
    raise InputError(
        f"'{store.describe(name)}' could not be fetched in {TRIES} tries: {reason}; run the command again, "
        "what came is kept"
    )


def _difference(store: Store, name: str, num_bytes: int, partial: Path) -> str:
    """Return how what came differs from what should have; "" where it does not."""
    if (found := partial.stat().st_size) != num_bytes:
        return f"{found} of {num_bytes} bytes came"
    system, root = open_filesystem(store.location)
    if not isinstance(system, fs.PyFileSystem):
        return ""
    stated = getattr(system.handler.fs.info(f"{root}/{name}").get("lfs"), "sha256", None)
    if stated is None:
        return ""
    with partial.open("rb") as file:
        came = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if came == stated else f"its sha256 is {came}, the hub states {stated}"


def _shown(store: Store) -> str:
    return without_options(store.location)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
