"""Where datasets and runs lie: a local folder, or a URL that pyarrow.fs or fsspec knows (s3, gs, http …)."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from voxray.config.errors import InputError
from voxray.data.location import FILE, is_url, without_options

_CHUNK_BYTES = 8 << 20
_WITHOUT_FOLDERS = ("s3", "gcs", "abfs")  # object stores: a file's name is all that there is
# What a file system raises for a file that is not there or cannot be read now: some of fsspec's wrap others.
READ_ERRORS = (OSError, pa.ArrowInvalid, KeyError, ValueError)


@dataclass(frozen=True)
class Store:
    """A dataset's files by their names relative to its folder."""

    location: str

    @classmethod
    def of(cls, dataset: "str | Path | Store") -> "Store":
        """Return the store of a dataset's folder or URL."""
        if isinstance(dataset, Store):
            return dataset
        return cls(str(dataset).removeprefix(FILE).rstrip("/") or "/")

    @property
    def is_local(self) -> bool:
        """Whether the files can be memory-mapped where they are."""
        return not is_url(self.location)

    def describe(self, file: str) -> str:
        """Return a file's full name, for messages."""
        return f"{without_options(self.location)}/{file}"

    def path(self, file: str) -> Path:
        """Return a file's local path; only where `is_local`."""
        assert self.is_local, f"{self.location} is not local"
        return Path(self.location, file)

    def read(self, file: str) -> bytes:
        """Return a small file's bytes. Raises InputError when it is missing or cannot be read."""
        try:
            return self.fetch(file)
        except READ_ERRORS as error:
            raise InputError(
                f"'{self.describe(file)}' cannot be read: {reason_of(error)}; prepare the dataset again, "
                "or mend its path"
            ) from error

    def fetch(self, file: str) -> bytes:
        """Return a small file's bytes. Raises OSError and what else the file system raises."""
        if self.is_local:
            return self.path(file).read_bytes()
        system, root = open_filesystem(self.location)
        if isinstance(system, fs.PyFileSystem):  # one request, as in `download`
            return system.handler.fs.cat_file(f"{root}/{file}")
        with system.open_input_stream(f"{root}/{file}") as stream:
            return stream.read()

    def download(self, file: str, to: Path) -> None:
        """Copy a file to a local path in pieces. Raises OSError and what else the file system raises."""
        system, root = open_filesystem(self.location)
        if isinstance(system, fs.PyFileSystem):  # one request: fsspec's file objects read ahead, and again
            system.handler.fs.get_file(f"{root}/{file}", str(to))
            return
        with system.open_input_stream(f"{root}/{file}") as stream, to.open("wb") as out:
            while piece := stream.read(_CHUNK_BYTES):
                out.write(piece)

    def upload(self, source: Path, file: str) -> None:
        """Copy a local file here. Raises OSError and what else the file system raises."""
        system, root = open_filesystem(self.location)
        if system.type_name not in _WITHOUT_FOLDERS:
            system.create_dir(f"{root}/{file}".rpartition("/")[0], recursive=True)
        with source.open("rb") as stream, system.open_output_stream(f"{root}/{file}") as out:
            while piece := stream.read(_CHUNK_BYTES):
                out.write(piece)

    def files(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of every file in a folder, and in those below, by its name in that folder; empty
        where there is nothing. Raises OSError and what else the file system raises.
        """
        system, root = open_filesystem(self.location)
        if isinstance(system, fs.PyFileSystem):  # fsspec remembers what it has listed
            system.handler.fs.invalidate_cache()
        place = f"{root}/{folder}".rstrip("/")
        found = system.get_file_info(fs.FileSelector(place, allow_not_found=True, recursive=True))
        start = f"{place.strip('/')}/"
        return {
            info.path.lstrip("/").removeprefix(start): info.size
            for info in found
            if info.type == fs.FileType.File
        }

    def remove(self, file: str) -> None:
        """Delete a file. Raises OSError and what else the file system raises."""
        system, root = open_filesystem(self.location)
        system.delete_file(f"{root}/{file}")


@lru_cache(maxsize=16)
def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URL and the dataset's path in it; fsspec where pyarrow knows no scheme.

    Raises InputError for a scheme that neither knows, or whose library is not installed.
    """
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        import fsspec

        system, path = fsspec.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"'{without_options(location)}' cannot be opened: {reason_of(error)}; give a folder or another "
            "URL"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def reason_of(error: BaseException) -> str:
    """Return what a file system's error says, in a line."""
    strerror = getattr(error, "strerror", None)
    return strerror or (str(error).splitlines() or [type(error).__name__])[0]
