"""RUN and STUDY where `storage.path` is a URL: made in a local copy, which is sent after each save.

An object store has no rename, no append and no fsync; a file appears there whole or not at all. So a
checkpoint is sent file by file with its manifest last, and removed with its manifest first: there as here,
what has no manifest is no checkpoint. The log goes before the checkpoints, so that it covers what they hold.

Of two copies the local one is right where its log goes on from the store's, else the store's: another machine
has gone on.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from voxray.config.errors import InputError, RunError
from voxray.data.location import is_url, without_options, working_folder
from voxray.data.store import READ_ERRORS, Store, reason_of
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.files import MANIFEST

TRIES, FIRST_WAIT_S = 5, 0.5  # waits double from try to try: 7.5 s in all
FOLLOW_EVERY_S = 10.0
CHECKPOINTS = "checkpoints"
RUN_LOG, STUDY_LOG = "log.jsonl", "journal.log"
# Of one command or one machine: wishes and verdicts, Ray's files, what another mirror sends.
NOT_SENT = ("stop", "verdict.json", "failures.jsonl", "study.lock", "journal.log.lock", "ray", "trials")
Result = TypeVar("Result")


@dataclass
class Mirror:
    """The folder `name` of a store, and this machine's copy of it.

    `pull` and `push` raise OSError, or what else the file system raises, after several tries.
    """

    store: Store
    name: str
    folder: Path
    log: str
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    @classmethod
    def of(cls, storage: str, folder: Path, log: str = RUN_LOG) -> "Mirror | None":
        """Return the mirror of a run's or study's folder; None where `storage.path` is no URL, or the folder
        lies elsewhere.
        """
        root = working_folder(storage).absolute()
        if not is_url(storage) or not folder.absolute().is_relative_to(root):
            return None
        return cls(Store.of(storage), folder.absolute().relative_to(root).as_posix(), folder, log)

    def __str__(self) -> str:
        """Its URL, without options."""
        return f"{without_options(self.store.location).rstrip('/')}/{self.name}"

    # --- for a command
    def listed(self) -> dict[str, int]:
        """Return the bytes of each file of the store. Raises InputError where it cannot be reached."""
        with self._reading():
            return self._files()

    def open(self, checkpoints: bool = True) -> None:
        """Pull. Raises InputError where the store cannot be reached."""
        with self._reading():
            self.pull(checkpoints)

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        try:
            yield
        except READ_ERRORS as error:
            raise InputError(
                f"storage.path: {self} cannot be read: {reason_of(error)}; mend the address, its rights or "
                "its credentials"
            ) from error

    def close(self) -> None:
        """Push. Raises RunError where that fails; nothing is lost then."""
        try:
            self.push()
        except READ_ERRORS as error:
            raise RunError(
                f"storage.path: {self} cannot be written: {reason_of(error)}; all of it is in {self.folder} "
                f"on {socket.gethostname()}, and the same command there sends it"
            ) from error

    def push_or_tell(self, tell: Callable[[str], None]) -> None:
        """Push; where that fails, say so and go on: the next push sends what is missing."""
        try:
            self.push()
        except READ_ERRORS as error:
            newest = checkpoint.last(self.folder / CHECKPOINTS)
            what = f"checkpoint {newest.name}" if newest else self.log
            tell(f"{what} was not sent to {self}: {reason_of(error)}; the next save tries again")

    # --- from the store
    def pull(self, checkpoints: bool = True) -> None:
        """Make the local copy whole; where the store's log is another one, make it the store's copy.

        Without `checkpoints` none is fetched, for who only reads of the run.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
            there = self._files()
            if not there:
                return
            is_ahead = self._is_ahead(there)
            has_new = checkpoints and self._pull_checkpoints(there, is_ahead)
            for file in sorted((name for name in there if _is_small(name)), key=lambda n: n == self.log):
                is_pointer = file.startswith(f"{CHECKPOINTS}/")
                if not is_ahead or (has_new and is_pointer) or not (self.folder / file).exists():
                    self._fetch(file)

    def pull_log(self) -> None:
        """Fetch the log where the store's is longer."""
        log = self.folder / self.log
        if self._files().get(self.log, 0) > (log.stat().st_size if log.exists() else 0):
            self._fetch(self.log)

    def _is_ahead(self, there: dict[str, int]) -> bool:
        """Whether the local log is the store's, or goes on from it."""
        log = self.folder / self.log
        if self.log not in there:
            return True
        if not log.exists() or log.stat().st_size < there[self.log]:
            return False
        sent = _tried(lambda: self.store.fetch(f"{self.name}/{self.log}"))
        with log.open("rb") as file:
            return file.read(len(sent)) == sent

    def _pull_checkpoints(self, there: dict[str, int], is_ahead: bool) -> bool:
        """Fetch the checkpoints that are not here; return whether there were any."""
        names = [name for name in _checkpoints_in(there) if f"{CHECKPOINTS}/{name}/{MANIFEST}" in there]
        local = checkpoint.newest_first(self.folder / CHECKPOINTS)
        if is_ahead and local and (not names or _number(local[0].name) >= max(map(_number, names))):
            return False
        if not is_ahead:
            for path in local:
                if path.name not in names or not self._is_same(path):
                    checkpoint.remove(path)
        missing = [name for name in names if not (self.folder / CHECKPOINTS / name).exists()]
        for name in missing:
            self._fetch_checkpoint(name, there)
        return bool(missing)

    def _is_same(self, path: Path) -> bool:
        """Whether the store's checkpoint of that name has the same manifest."""
        manifest = f"{self.name}/{CHECKPOINTS}/{path.name}/{MANIFEST}"
        local = path / MANIFEST
        return local.exists() and _tried(lambda: self.store.fetch(manifest)) == local.read_bytes()

    def fetch_checkpoint(self, name: str) -> None:
        """Fetch one checkpoint that another machine has sent."""
        self._fetch_checkpoint(name, self._files())

    def _fetch_checkpoint(self, name: str, there: dict[str, int]) -> None:
        """Fetch a checkpoint under a name that no reader looks at; the loader checks every file's sha256."""
        start = f"{CHECKPOINTS}/{name}/"
        partial = f"{CHECKPOINTS}/.{name}.partial-fetched"
        for file in there:
            if file.startswith(start):
                self._fetch(file, f"{partial}/{file.removeprefix(start)}")
        with contextlib.suppress(FileExistsError):
            (self.folder / partial).rename(self.folder / CHECKPOINTS / name)

    def _fetch(self, file: str, to: str = "") -> None:
        local = self.folder / (to or file)
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f".{local.name}.partial-fetched")
        _tried(lambda: self.store.download(f"{self.name}/{file}", partial))
        partial.replace(local)

    # --- to the store
    def push(self) -> None:
        """Send what is new or has changed, and remove the checkpoints that are gone here."""
        there = self._files()
        pointers = [file for file in self._local_files() if file.startswith(f"{CHECKPOINTS}/")]
        for file in self._local_files():
            if file not in pointers:
                self._send(file, there)
        local = list(reversed(checkpoint.newest_first(self.folder / CHECKPOINTS)))
        for path in local:
            self._send_checkpoint(path, there)
        for file in pointers:
            self._send(file, there)
        for name in _checkpoints_in(there) - {path.name for path in local}:
            self._remove_checkpoint(name, there)

    def _files(self) -> dict[str, int]:
        return _tried(lambda: self.store.files(self.name))

    def _local_files(self) -> list[str]:
        """Return the files to send beside the checkpoints: the log, configs, results, pointers."""
        found = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path.as_posix() for path in found if _is_small(path.as_posix()))

    def _send(self, file: str, there: dict[str, int]) -> None:
        """Send a file that the store has not, or that has changed since it was sent."""
        path = self.folder / file
        try:
            now = path.stat()
            state = now.st_size, now.st_mtime_ns
            if self._sent.get(file) != state or file not in there:
                _tried(lambda: self.store.upload(path, f"{self.name}/{file}"))
                self._sent[file] = state
        except FileNotFoundError:
            if path.exists():  # else it was deleted meanwhile
                raise

    def _send_checkpoint(self, path: Path, there: dict[str, int]) -> None:
        manifest = f"{CHECKPOINTS}/{path.name}/{MANIFEST}"
        if manifest in there and (manifest in self._sent or self._is_same(path)):
            self._sent[manifest] = (0, 0)
            return
        if manifest in there:  # of another attempt's checkpoint of the same update
            self._remove_checkpoint(path.name, there)
        files = sorted(file.name for file in path.iterdir() if file.name != MANIFEST)
        for name in [*files, MANIFEST]:
            to = f"{self.name}/{CHECKPOINTS}/{path.name}/{name}"
            _tried(lambda name=name, to=to: self.store.upload(path / name, to))
        self._sent[manifest] = (0, 0)

    def _remove_checkpoint(self, name: str, there: dict[str, int]) -> None:
        """Remove a checkpoint, its manifest first."""
        start = f"{CHECKPOINTS}/{name}/"
        for file in sorted((f for f in there if f.startswith(start)), key=lambda f: not f.endswith(MANIFEST)):
            _tried(lambda file=file: self.store.remove(f"{self.name}/{file}"))


def copy_of(url: str) -> Path:
    """Return this machine's copy of the run or study at a URL, made anew; of RUN/best and RUN/last too.

    Of a study's trials only what a report reads is fetched. Raises InputError where there is nothing, or it
    cannot be reached.
    """
    place, mark, options = url.partition("?")
    parent, _, name = place.rpartition("/")
    pointer = name if name in ("best", "last") else ""
    if pointer:
        parent, _, name = parent.rpartition("/")
    store, folder = Store.of(f"{parent}{mark}{options}"), working_folder(f"{parent}/{name}{mark}{options}")
    there = Mirror(store, name, folder, RUN_LOG).listed()
    if not there:
        raise InputError(f"there is no run and no study at {parent}/{name}")
    Mirror(store, name, folder, STUDY_LOG if STUDY_LOG in there else RUN_LOG).open()
    for trial in sorted({file.split("/")[1] for file in there if file.startswith("trials/")}):
        Mirror(store, f"{name}/trials/{trial}", folder / "trials" / trial, RUN_LOG).open(checkpoints=False)
    return folder / pointer


def refresh(storage: str, folder: Path) -> None:
    """Where `storage.path` is a URL, fetch what another machine has made of a run, and send what was written
    here. Raises InputError or RunError where the store cannot be reached.
    """
    if mirror := Mirror.of(storage, folder):
        mirror.open()
        mirror.close()


def mirrored_log(mirror: Mirror | None) -> contextlib.AbstractContextManager[None]:
    """Let the local log grow with the store's while the body runs: its writer may be on another machine."""
    return _following(mirror) if mirror else contextlib.nullcontext()


@contextlib.contextmanager
def _following(mirror: Mirror) -> Generator[None]:
    done = threading.Event()

    def follow() -> None:
        while not done.wait(FOLLOW_EVERY_S):
            with contextlib.suppress(*READ_ERRORS):
                mirror.pull_log()

    thread = threading.Thread(target=follow, daemon=True, name="mirror")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_small(file: str) -> bool:
    """Whether a file is none of a checkpoint's, and is sent."""
    parts = file.split("/")
    if parts[0] in NOT_SENT or any(part.startswith(".") for part in parts):
        return False
    return parts[0] != CHECKPOINTS or (len(parts) == 2 and parts[1].endswith(".json"))


def _checkpoints_in(there: Iterable[str]) -> set[str]:
    """Return the names of the checkpoints of which there is any file."""
    parts = [file.split("/") for file in there]
    return {p[1] for p in parts if p[0] == CHECKPOINTS and len(p) > 2 and checkpoint.NAME.fullmatch(p[1])}


def _number(name: str) -> tuple[int, int]:
    match = checkpoint.NAME.fullmatch(name)
    assert match
    return int(match[1]), int(match[2] or 1)


def _tried(call: Callable[[], Result]) -> Result:
    """Return what a call returns, made again after a while where it fails."""
    for number in range(TRIES):
        try:
            return call()
        except FileNotFoundError:
            raise
        except READ_ERRORS:
            if number == TRIES - 1:
                raise
            time.sleep(FIRST_WAIT_S * 2**number)
    raise AssertionError
