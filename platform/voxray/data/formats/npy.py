"""NumPy's own files, read safely: `.npy` bytes, and arrays inside an `.npz` row by row.

A header is checked against the bytes that are there before anything is allocated, so that a truncated file
and one that claims more than it holds are both refused; so are pickled objects and structured types. A row
of an uncompressed `.npz` (`numpy.savez`) is read where it lies; a compressed one must be unpacked whole, once
per process. A row read where it lies is not checked against the file's checksum, which covers whole arrays.
"""

import io
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from voxray.data.formats.rows import first_line

# An array that must be in memory whole (compressed, or in Fortran order). NSD's largest subject, 30,000
# trials of 17,907 voxels, takes 2.1 GB.
MAX_WHOLE_BYTES = 4 << 30
_PLAIN_KINDS = "biufcUS"
_HEADER_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature …, length of the name, length of the extra field


class ArrayError(ValueError):
    """An array cannot be read: the reason with the mend, without the file's name, which the caller knows."""


@dataclass(frozen=True)
class Header:
    """What an `.npy` header says: `num_bytes` of data follow it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def num_bytes(self) -> int:
        """Return the size of the data after the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Return the header at the file's position and leave the position after it. Raises ArrayError."""
    try:
        version = npy_format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ArrayError(f"it is an .npy of version {version}; save it again with numpy.save")
        shape, fortran_order, dtype = _HEADER_READERS[version](file)
    except ArrayError:
        raise
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ArrayError(
            f"it is no .npy array, or cut off ({first_line(error)}); replace the file"
        ) from error
    if dtype.kind not in _PLAIN_KINDS:
        what = "pickled objects, which are not read" if dtype.hasobject else f"values of the type {dtype}"
        raise ArrayError(f"it holds {what}; save it as a plain array of numbers or text")
    if any(size < 0 for size in shape):
        raise ArrayError(f"its shape is {shape}; the file is damaged, replace it")
    return Header(dtype, shape, fortran_order)


def decode_npy(content: bytes) -> np.ndarray:
    """Return the array that the whole bytes of an `.npy` file hold. Raises ArrayError."""
    file = io.BytesIO(content)
    header = read_header(file)
    _check_size(header, len(content) - file.tell())
    if not header.num_bytes:
        return np.empty(header.shape, header.dtype)
    flat = np.frombuffer(content, header.dtype, offset=file.tell())
    return flat.reshape(header.shape, order="F" if header.fortran_order else "C").copy()


@dataclass(frozen=True)
class NpzArray:
    """Where an array lies in an `.npz`. `offset` is None when its rows do not lie one after the other."""

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None

    def read(self) -> np.ndarray:
        """Return the whole array. Raises ArrayError."""
        return _read_member(Path(self.path), self.name)

    def read_row(self, index: int, num_axes: int = 1) -> np.ndarray:
        """Return entry `index` over all but the last `num_axes` axes. Raises ArrayError."""
        row_shape = self.shape[len(self.shape) - num_axes :]
        assert 0 <= index < math.prod(self.shape[: len(self.shape) - num_axes])
        if self.offset is None:
            return _whole(self.path, self.name, os.stat(self.path).st_mtime_ns).reshape(-1, *row_shape)[index]
        num_bytes = math.prod(row_shape) * np.dtype(self.dtype).itemsize
        with open(self.path, "rb") as file:
            file.seek(self.offset + index * num_bytes)
            content = file.read(num_bytes)
        if len(content) != num_bytes:
            raise ArrayError(f"array '{self.name}' ends before row {index}; the file changed, prepare again")
        return np.frombuffer(content, self.dtype).reshape(row_shape).copy()


def index_npz(path: Path) -> dict[str, NpzArray]:
    """Return where each array lies, from the headers alone. Raises ArrayError for what is no whole `.npz`."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            arrays = [_index_member(path, archive, file, member) for member in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as error:
        raise ArrayError(
            f"it is no .npz, cut off or damaged ({first_line(error)}); replace the file"
        ) from error
    by_name = {array.name: array for array in arrays}
    if len(by_name) < len(arrays):
        raise ArrayError("an array's name comes twice; save the file again with numpy.savez")
    return by_name


def _index_member(path: Path, archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo) -> NpzArray:
    name = member.filename.removesuffix(".npy")
    if member.flag_bits & _ENCRYPTED:
        raise ArrayError(f"array '{name}' is encrypted; save it again with numpy.savez")
    with archive.open(member) as content, _named(name):
        header = read_header(content)
        _check_size(header, member.file_size - content.tell())
        length = content.tell()
    rows_in_order = not header.fortran_order or len(header.shape) < 2
    offset = None
    if member.compress_type == zipfile.ZIP_STORED and rows_in_order:
        offset = _data_offset(file, member) + length
    return NpzArray(str(path), name, header.dtype.str, header.shape, offset)


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return where a member's bytes start: the local header's lengths may differ from the directory's."""
    file.seek(member.header_offset)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return member.header_offset + _LOCAL_HEADER.size + name_length + extra_length


@lru_cache(maxsize=8)
def _whole(path: str, name: str, modified_ns: int) -> np.ndarray:
    return _read_member(Path(path), name)


def _read_member(path: Path, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > MAX_WHOLE_BYTES:
                raise ArrayError(
                    f"array '{name}' unpacks to {member.file_size:,} bytes, more than {MAX_WHOLE_BYTES:,}; "
                    "save it uncompressed with numpy.savez, in C order"
                )
            with _named(name):
                return decode_npy(archive.read(member))
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, KeyError) as error:
        raise ArrayError(f"array '{name}' is damaged ({first_line(error)}); replace the file") from error


class _named:  # noqa: N801 - a context manager
    """Adds the array's name to an ArrayError."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ArrayError):
            raise ArrayError(f"array '{self.name}': {error}") from error


def _check_size(header: Header, num_bytes: int) -> None:
    if header.num_bytes != num_bytes:
        raise ArrayError(
            f"its header promises {header.num_bytes:,} bytes ({header.dtype} {list(header.shape)}), "
            f"{num_bytes:,} follow; the file is cut off or damaged, replace it"
        )
