"""WebDataset tars → raw rows: members that share the name before the first dot make one sample.

A tar is passed over once, header by header, without unpacking; a row keeps where its members lie, so that
loading it later reads nothing else. Links, devices, sparse members, absolute names and names with `..` are
refused, and so is a tar that ends early, which `tarfile` alone takes for its regular end. Only plain types
(TYPES) are decoded: no pickles, no torch files.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.npy import ArrayError, decode_npy

MAX_MEMBER_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_IMAGE_STARTS = {"jpg": b"\xff\xd8\xff", "jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}

Members = dict[str, tuple[int, int]]  # field → offset and size in the tar


def read_webdataset(
    source: Path, fields: Sequence[str] | None = None, pattern: str = "*.tar"
) -> Iterator[RawRow | BadRow]:
    """Yield a row per sample of every tar below `source`, in the order of the tars' names.

    A row has sample_id (`<tar without .tar>/<key>`), key, tar (path), members {field: (offset, size in
    bytes)} and origin. A field is what follows the first dot, in lower case (`nsdgeneral.npy`). `fields` are
    those to read, `jpg;png` being whichever there is; others are passed over; None takes all, which must be
    of TYPES.

    Raises InputError when there is no tar, or one is damaged, packed, cut off or unsafe.
    """
    for tar in find_tars(source, pattern):
        yield from read_tar(source, tar, fields)


def load_sample(row: RawRow) -> RawRow:
    """Return the row with its members decoded, a column each, named by its field.

    npy: the array; npz: a column `<field>/<name>` per array; jpg, jpeg, png: the encoded bytes; txt: text;
    json: what it holds; cls: int. Raises BadRowError, naming tar and member.
    """
    columns: dict[str, Any] = {}
    for field in row["members"]:
        columns |= decode_field(field, read_member(row, field), f"{row['origin']} member '{field}'")
    return row | columns


def find_tars(source: Path, pattern: str = "*.tar") -> list[Path]:
    """Return the tars below a folder, by name. Raises InputError when there is none, or a link leads out."""
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the tars")
    tars = sorted(path for path in source.rglob(pattern) if path.is_file() or path.is_symlink())
    if not tars:
        raise InputError(f"'{source}' holds no {pattern} file; name the folder that holds the tars")
    root = source.resolve()
    if outside := [path for path in tars if not path.resolve().is_relative_to(root)]:
        raise InputError(
            *(
                f"'{path}' is a link that leads out of the folder and is not followed; copy the file into it"
                for path in outside
            )
        )
    return tars


def read_member(row: RawRow, field: str) -> bytes:
    """Return the bytes of one member. Raises BadRowError when the tar is gone or shorter than it was."""
    offset, size = row["members"][field]
    try:
        with open(row["tar"], "rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise BadRowError(f"tar '{row['tar']}' cannot be read: {error.strerror}; put it back") from error
    if len(content) != size:
        raise BadRowError(f"tar '{row['tar']}' ends inside '{row['key']}.{field}'; fetch the file again")
    return content


# --- one tar, header by header
# -------------------------------------------------------------------------------------------------------


def read_tar(source: Path, path: Path, fields: Sequence[str] | None) -> Iterator[RawRow | BadRow]:
    """Yield the rows of one tar below `source`; see `read_webdataset`."""
    name = path.relative_to(source).as_posix()
    key: str | None = None
    members: Members = {}
    problem: str | None = None
    seen: set[str] = set()
    for member in _members(path):
        new_key, field = _split_name(member.name)
        if field is None:
            if new_key is not None:
                yield BadRow(f"{name} member '{member.name}'", "it has no extension; name it <sample>.<type>")
            continue
        if new_key != key:
            if key is not None:
                yield _sample(path, name, key, members, problem, fields)
            problem = (
                "its members do not stand together in the tar; pack it again" if new_key in seen else None
            )
            key, members = new_key, {}
            seen.add(new_key)
        if field in members:
            problem = f"'{field}' comes twice; remove one"
        members[field] = (member.offset_data, member.size)
    if key is not None:
        yield _sample(path, name, key, members, problem, fields)


def first_members(path: Path) -> Members:
    """Return the members of a tar's first sample, of any type. Raises as `read_webdataset` does."""
    key: str | None = None
    members: Members = {}
    for member in _members(path):
        new_key, field = _split_name(member.name)
        if field is None:
            continue
        if key not in (None, new_key):
            break
        key = new_key
        members[field] = (member.offset_data, member.size)
    return members


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the regular members; refuse everything that could lead elsewhere. Raises InputError."""
    with path.open("rb") as file:
        start = file.read(8)
        for magic, command in _PACKED.items():
            if start.startswith(magic):
                raise InputError(f"'{path}' is packed, so no row can be read alone; unpack it: {command}")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    # tarfile would keep every header; typeshed does not know the list
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                    if member.isdir():
                        continue
                    if reason := _unsafe(member):
                        raise InputError(
                            f"'{path}': member '{member.name}' {reason}; pack the tar without it"
                        )
                    yield member
                end = tar.offset
        except (tarfile.TarError, RecursionError, ValueError, OverflowError, EOFError) as error:
            raise InputError(f"'{path}' is no tar, or is cut off ({error}); fetch it again") from error
        _check_end(path, file, end)


def _unsafe(member: tarfile.TarInfo) -> str | None:
    parts = PurePosixPath(member.name.replace("\\", "/"))
    if not member.isreg():
        return "is no file but a link or a device"
    if member.issparse():
        return "is stored with holes"
    if member.size < 0:  # would send tarfile backwards for ever
        return "has a negative size"
    if parts.is_absolute() or ".." in parts.parts:
        return "has a name that leads out of the folder"
    return None


def _check_end(path: Path, file: io.BufferedReader, end: int) -> None:
    """Raise InputError unless the end mark stands where the last header was looked for, and nothing after."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        what = "is damaged" if len(block) == tarfile.BLOCKSIZE else "is cut off"
        raise InputError(f"'{path}' {what} at byte {end:,}: the end mark is missing; fetch it again")
    while chunk := file.read(_CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise InputError(f"'{path}' goes on after its end mark; tars put together must be packed again")


def _split_name(name: str) -> tuple[str | None, str | None]:
    """Return key and field; no field for a name without extension, neither for a hidden file (`._a.npy`)."""
    folder, slash, file = name.rpartition("/")
    if file.startswith("."):
        return None, None
    stem, dot, field = file.partition(".")
    return folder + slash + stem, field.lower() if dot and field else None


def _sample(
    path: Path, name: str, key: str, members: Members, problem: str | None, fields: Sequence[str] | None
) -> RawRow | BadRow:
    origin = f"{name} sample '{key}'"
    try:
        if problem:
            raise ValueError(problem)
        chosen = members if fields is None else _choose(members, fields)
        for field, (_, size) in chosen.items():
            _type_of(field)
            if size > MAX_MEMBER_BYTES:
                raise ValueError(f"'{field}' has {size:,} bytes, more than {MAX_MEMBER_BYTES:,}; split it")
    except ValueError as error:
        return BadRow(origin, str(error))
    return {
        "sample_id": f"{name.removesuffix('.tar')}/{key}",
        "key": key,
        "tar": str(path),
        "members": chosen,
        "origin": origin,
    }


def _choose(members: Members, fields: Sequence[str]) -> Members:
    chosen: Members = {}
    for alternatives in fields:
        found = [field for field in alternatives.split(";") if field in members]
        if not found:
            missing = alternatives.replace(";", "' or '")
            raise ValueError(
                f"it has no '{missing}', it has {', '.join(sorted(members))}; add it, or remove the sample"
            )
        chosen[found[0]] = members[found[0]]
    return chosen


# --- one member's bytes
# -------------------------------------------------------------------------------------------------------


def decode_field(field: str, content: bytes, place: str) -> dict[str, Any]:
    """Return the columns that one member holds. Raises BadRowError, which begins with `place`."""
    try:
        value = TYPES[_type_of(field)](field, content)
    except ValueError as error:
        raise BadRowError(f"{place}: {error}") from error
    return value


def _type_of(field: str) -> str:
    kind = field.rpartition(".")[2]
    if kind not in TYPES:
        raise ValueError(
            f"'{field}' is of no type that is read ({', '.join(TYPES)}); leave it out of the fields"
        )
    return kind


def _npy(field: str, content: bytes) -> dict[str, Any]:
    return {field: decode_npy(content)}


def _npz(field: str, content: bytes) -> dict[str, Any]:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (total := sum(member.file_size for member in archive.infolist())) > MAX_MEMBER_BYTES:
                raise ValueError(f"it unpacks to {total:,} bytes, more than {MAX_MEMBER_BYTES:,}; split it")
            return {
                f"{field}/{member.filename.removesuffix('.npy')}": decode_npy(archive.read(member))
                for member in archive.infolist()
            }
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise ArrayError(f"it is no .npz, or damaged ({error}); replace it") from error


def _image(field: str, content: bytes) -> dict[str, Any]:
    """Keep the bytes; whether they are that image at all shows at their start."""
    if not content.startswith(_IMAGE_STARTS[_type_of(field)]):
        raise ValueError(f"the bytes do not start like a {_type_of(field)} image; replace it")
    return {field: content}


def _txt(field: str, content: bytes) -> dict[str, Any]:
    try:
        return {field: content.decode("utf-8")}
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text; save it as UTF-8") from None


def _json(field: str, content: bytes) -> dict[str, Any]:
    try:
        return {field: json.loads(content)}
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}; mend it") from None
    except RecursionError:
        raise ValueError("it is nested too deeply; make it flatter") from None


def _cls(field: str, content: bytes) -> dict[str, Any]:
    text = content.strip()
    if not text.removeprefix(b"-").isdigit() or len(text) > 18:
        raise ValueError(f"{text[:20]!r} is no whole number; write the class as one")
    return {field: int(text)}


TYPES: dict[str, Callable[[str, bytes], dict[str, Any]]] = {
    "npy": _npy,
    "npz": _npz,
    "jpg": _image,
    "jpeg": _image,
    "png": _image,
    "txt": _txt,
    "json": _json,
    "cls": _cls,
}


def as_ids(array: np.ndarray) -> list[int]:
    """Return an integer array's entries. Raises ValueError when it holds anything but whole numbers."""
    with np.errstate(invalid="ignore"):
        if array.dtype.kind not in "iuf" or not (array == array.astype(np.int64)).all():
            raise ValueError(f"it holds {array.dtype} values that are no whole numbers")
    return array.astype(np.int64).ravel().tolist()
