"""Measuring one epoch of one way: wall and CPU time, the first batch, and a check that all rows came.

Files are read into the page cache before each timed epoch: every way is measured hot, whatever ran before.
CPU time is that of this process and all below it that live at an epoch's end, Ray's own (about 3 % of a
core when idle) among them, from /proc (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
"""

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ingest_parts.modalities import Modality, decode_batch, pad

Delivered = Mapping[
    str, Any
]  # arrays or tensors: number [B], x [B, …], where there is one y [B, …], length [B]
_MASK = (1 << 64) - 1
_SAMPLES_PER_ROW = 4
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Way:
    """One way to read a modality: `epoch(n)` yields the batches of epoch n; `files` is what it reads.

    `close` ends what it still reads ahead.
    """

    name: str
    files: Path
    epoch: Callable[[int], Iterator[Delivered]]
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class EpochCost:
    """What one epoch took: seconds of wall time, until the first batch, and of CPU time."""

    seconds: float
    first_batch_s: float
    cpu_s: float


@dataclass
class RowSum:
    """What must be equal on all sides in any order: rows, their numbers, and values tied to numbers."""

    rows: int = 0
    numbers: int = 0
    values: int = 0

    def add(self, batch: Delivered) -> None:
        """Add a batch: a few values of each row, times its number, modulo 2⁶⁴."""
        number = np.asarray(batch["number"]).astype(np.uint64)
        values = _sampled(np.asarray(batch["x"]), batch.get("length"))
        if "y" in batch:
            values = values * np.uint64(3) + _sampled(np.asarray(batch["y"]), None)
        self.rows += len(number)
        self.numbers += int(number.sum())
        self.values = (self.values + int(((number + np.uint64(1)) * values).sum())) & _MASK

    def join(self, other: "RowSum") -> None:
        """Add what another worker counted."""
        self.rows += other.rows
        self.numbers += other.numbers
        self.values = (self.values + other.values) & _MASK


def expected_sum(modality: Modality) -> RowSum:
    """Return what an epoch of each row once adds up to, from the rows themselves."""
    total = RowSum()
    for row in modality.rows():
        batch: dict[str, Any] = {name: np.asarray(row[name])[None] for name in row if name != "x"}
        if modality.jpeg_folder is not None:
            batch = decode_batch({**batch, "x": np.array([row["x"]], dtype=object)})
        elif modality.ragged:
            batch["x"], batch["length"] = pad([row["x"]])
        else:
            batch["x"] = row["x"][None]
        total.add(batch)
    return total


def measure(way: Way, epoch: int, expected: RowSum) -> EpochCost:
    """Run one epoch of `way`. Raises AssertionError when it is not each row once, with its values."""
    warm(way.files)
    total, first = RowSum(), 0.0
    ticks, before = tree_ticks(), time.perf_counter()
    for batch in way.epoch(epoch):
        first = first or time.perf_counter() - before
        total.add(batch)
    seconds = time.perf_counter() - before
    cost = EpochCost(seconds, first, cpu_s(ticks, tree_ticks()))
    assert total == expected, f"{way.name}: an epoch is not each row once: {total}, not {expected}"
    return cost


def first_batches_s(way: Way, epochs: int, limit_s: float, step_s: float = 0.0) -> list[float]:
    """Return the seconds to the first batch of each epoch but the first, of epochs straight after another.

    Each batch is used for `step_s` seconds. After `limit_s` seconds no further epoch begins, but one after
    the first does.
    """
    warm(way.files)
    waits, start = list[float](), time.perf_counter()
    for epoch in range(epochs):
        before, first = time.perf_counter(), 0.0
        if epoch > 1 and before - start > limit_s:
            break
        for _ in way.epoch(epoch):
            first = first or time.perf_counter() - before
            time.sleep(step_s)
        waits.append(first)
    way.close()
    return waits[1:]


def tree_ticks(root: int | None = None) -> dict[int, int]:
    """Return the CPU ticks so far of a process (this one) and of each below it that lives."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat.rpartition(")")[2].split()
        children.setdefault(int(fields[1]), []).append(int(entry))
        ticks[int(entry)] = int(fields[11]) + int(fields[12])  # utime, stime
    tree: dict[int, int] = {}
    found = [root or os.getpid()]
    while found:
        process = found.pop()
        if process in ticks:
            tree[process] = ticks[process]
            found += children.get(process, [])
    return tree


def cpu_s(before: dict[int, int], after: dict[int, int]) -> float:
    """Return the CPU seconds between two calls of `tree_ticks`, of the processes that live at the end."""
    used = sum(ticks - before.get(process, 0) for process, ticks in after.items())
    return used / os.sysconf("SC_CLK_TCK")


def warm(path: Path) -> None:
    """Read all files below `path` once that the page cache does not hold whole."""
    buffer = bytearray(8 << 20)
    for file in all_files(path):
        if cached_share(file) == 1.0:
            continue
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def all_files(path: Path) -> list[Path]:
    """Return the files below a folder, or the file itself."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def size_of(path: Path) -> int:
    """Return the bytes of all files below `path`."""
    return sum(file.stat().st_size for file in all_files(path))


def cached_share(path: Path) -> float:
    """Return the share of the files' pages that the page cache holds (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = total = 0
    for file in all_files(path):
        size = file.stat().st_size
        if not size:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
            pages = (ctypes.c_ubyte * -(-size // _PAGE))()
            start = ctypes.c_char.from_buffer(mapped)
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages):
                raise OSError(ctypes.get_errno(), "mincore failed", str(file))
            del start
            held += int((np.frombuffer(pages, np.uint8) & 1).sum())
            total += len(pages)
    return held / total if total else 1.0


def _sampled(array: np.ndarray, lengths: Any) -> np.ndarray:
    """Return uint64 [B]: the sum of a few values' bits of each row; with lengths of its own ones only."""
    bits = array.view(np.uint32) if array.dtype == np.float32 else array
    if lengths is not None:
        length, rows = np.asarray(lengths), np.arange(len(array))
        ends = [bits[rows, place, channel] for place, channel in ((0, 0), (length // 2, 5), (length - 1, -1))]
        padding = np.where(length < array.shape[1], bits[:, -1, 0], 0)  # zero, unless padding was missed
        return np.stack([*ends, padding, length]).astype(np.uint64).sum(axis=0)
    flat = bits.reshape(len(bits), -1)
    step = max(1, flat.shape[1] // _SAMPLES_PER_ROW)
    return flat[:, ::step].astype(np.uint64).sum(axis=1)
