"""The files of one checkpoint: hashed while they are written, several at once; read when every bit is right.

Tensors are written in the safetensors format (https://github.com/huggingface/safetensors, "Format"), byte for
byte as that library would, but streamed through sha256 on their way to the disk. The manifest carries a
digest of itself, so that a flipped bit in it is noticed too.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from safetensors.torch import load_file

MANIFEST = "MANIFEST.json"
VERSION = 2
CHUNK = 8 << 20  # bytes hashed and written in turn, so that the disk starts early

# Name and order of each dtype in a safetensors file: the widest first, then as the library's enum has them.
DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}

Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")


class HashedFile:
    """A file being written, with the sha256 and the number of its bytes so far."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append and hash; both let other threads run meanwhile."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._digest.update(chunk)
            self._file.write(chunk)
        self._num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self, synced: bool = True) -> dict[str, Any]:
        """Close the file, on the disk where `synced`, and return what the manifest says of it."""
        with self._file:
            if synced:
                self._file.flush()
                os.fsync(self._file.fileno())
        return {"sha256": self._digest.hexdigest(), "bytes": self._num_bytes}


def write_file(path: Path, fill: Callable[[HashedFile], Any]) -> dict[str, Any]:
    """Create `path`, let `fill` write it, and return its entry of the manifest once it is on the disk."""
    file = HashedFile(path)
    try:
        fill(file)
    except BaseException:
        file.close(synced=False)
        raise
    return file.close()


def write_tensors(file: HashedFile, tensors: Tensors) -> None:
    """Write contiguous CPU tensors in the safetensors format."""
    ordered = sorted(tensors.items(), key=lambda item: (RANK[item[1].dtype], item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, value in ordered:
        start, end = end, end + value.nbytes
        header[name] = {
            "dtype": DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, value in ordered:
        if value.numel():
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def write_state(file: HashedFile, state: Any) -> None:
    """Write plain values, and tensors where there are any, as `torch.save` does."""
    torch.save(state, cast("IO[bytes]", file))  # it only ever writes and flushes


def without_aliases(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Return each tensor once, and {name: the name under which the same tensor is kept} (tied weights)."""
    kept: Tensors = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, value in tensors.items():
        first = names.setdefault(id(value), name)
        if first == name:
            kept[name] = value
        else:
            aliases[name] = first
    return kept, aliases


def read_tensors(folder: Path, stem: str, aliases: dict[str, str]) -> Tensors:
    """Return the tensors of `<stem>.safetensors`, tied ones as one tensor under several names."""
    tensors = load_file(folder / f"{stem}.safetensors")
    return {**tensors, **{name: tensors[kept] for name, kept in aliases.items()}}


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    """Write the manifest, the file that makes a folder a checkpoint."""
    write_file(folder / MANIFEST, lambda file: file.write(_sealed(body).encode()))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest. Raises OSError where there is none, ValueError where a bit of it has changed."""
    text = (folder / MANIFEST).read_bytes().decode()
    body = json.loads(text)
    if not isinstance(body, dict) or body.get("version") != VERSION:
        raise ValueError(f"{MANIFEST} is not of version {VERSION}")
    body.pop("sha256", None)
    if _sealed(body) != text:
        raise ValueError(f"{MANIFEST} does not match its own sha256")
    return body


def verify(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """Return which file is not what the manifest says, or None; the files are hashed at the same time."""
    outcomes = at_once(lambda name=name: _differs(folder, name, files[name]) for name in files)
    return next((outcome for outcome in outcomes if outcome), None)


def at_once(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """Return the calls' results, each made in a thread of its own; raise the first exception among them.

    Plain threads, since an executor takes no work once the interpreter has begun to end, and a save goes on
    until it is done.
    """
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def run(index: int, call: Callable[[], Result]) -> None:
        try:
            results[index] = call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=entry) for entry in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(threads))]


def _sealed(body: dict[str, Any]) -> str:
    """Return `body` as text with the sha256 of that text in it."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=1)


def _differs(folder: Path, name: str, expected: dict[str, Any]) -> str | None:
    if Path(name).name != name:
        return f"the manifest names a file outside the checkpoint: {name}"
    try:
        if (folder / name).stat().st_size != expected["bytes"]:
            return f"{name} has not the size that the manifest says"
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{name} is missing or cannot be read ({error})"
    return None if digest == expected["sha256"] else f"{name} does not match its sha256"
