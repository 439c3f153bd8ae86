"""What grows with the data: rows/s and memory at three sizes, a plan over 10⁶ shards, the cost of checking,
and how often a remote dataset's bytes are sent to one node.

Each figure comes from a process of its own, so that peaks of memory and marks of checked windows do not
mix.
"""

import contextlib
import functools
import http.server
import multiprocessing
import os
import re
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import IO, Any

from ingest_parts import ours
from ingest_parts.measure import RowSum, Way, cached_share, expected_sum, measure
from ingest_parts.modalities import Modality, modalities
from voxray.core.batch import EpochRequest
from voxray.data.checked import CheckedWindows
from voxray.data.config import DataConfig
from voxray.data.order import EpochOrder
from voxray.data.reader import ShardReader
from voxray.data.selection import BatchRules, Selection

SIZES_GB = (1.0, 4.0, 10.0)
QUICK_SIZES_GB = (0.1, 0.4, 1.0)
NUM_SHARDS, ROWS_PER_SHARD, SPAN_ROWS = 1_000_000, 1_000, 16_000
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PIECE_BYTES = 1 << 16
Record = dict[str, Any]


def measure_scale(folder: Path, quick: bool) -> list[Record]:
    """Measure and print all of it; return the records. The caller has connected to Ray."""
    fmri = modalities(folder, quick=False)["fmri"]
    row_bytes = fmri.delivered_bytes / fmri.num_rows
    sizes = QUICK_SIZES_GB if quick else SIZES_GB
    rows = [int(size * 1e9 / row_bytes) for size in sizes]
    found = [*_plan_records()]
    found += _remote_records(folder, replace(fmri, num_rows=rows[0] // 2))
    found += _size_records(folder, [replace(fmri, num_rows=num) for num in rows], rounds=2 if quick else 5)
    return found


# --- sizes and checking


def _size_records(folder: Path, sizes: list[Modality], rounds: int) -> list[Record]:
    """Write all sizes, then measure them in turn, each time in a new process."""
    paths: dict[int, Path] = {}
    for modality in sizes:
        own = folder / f"{modality.num_rows}"
        own.mkdir()
        paths[modality.num_rows] = ours.write(modality, own)
    checks = [_checking(sizes[0], paths[sizes[0].num_rows]) for _ in range(rounds)]
    seen: dict[int, list[Record]] = {modality.num_rows: [] for modality in sizes}
    for _ in range(rounds):
        for modality in sizes:
            num = round(sizes[-1].num_rows / modality.num_rows)  # about as many rows whatever the size
            seen[modality.num_rows].append(_in_process(_run, modality, paths[modality.num_rows], num))
    print(
        f"\nvoxray local, fMRI, as the data grows (medians of {rounds} processes; about as many rows of each "
        "size, in epochs that follow one another)"
    )
    print(
        f"{'GB':>6}{'rows/s':>10}{'own memory, peak MB':>22}{'with mapped shards MB':>24}"
        f"{'in page cache':>16}"
    )
    rates: list[float] = []
    for modality in sizes:
        own = seen[modality.num_rows]
        rates.append(median(run["rate"] for run in own))
        size_gb, own_mb = modality.delivered_bytes / 1e9, median(run["own_mb"] for run in own)
        all_mb, cached = median(run["all_mb"] for run in own), min(run["cached"] for run in own)
        print(f"{size_gb:6.1f}{rates[-1]:10,.0f}{own_mb:22,.0f}{all_mb:24,.0f}{cached:16.1%}")
    for path in paths.values():
        shutil.rmtree(path)
    records = [
        _record(
            "ingest scale",
            f"rows/s at {size.delivered_bytes / 1e9:.0f} GB / the smallest",
            rate,
            rates[0],
            "rows/s",
            "higher",
        )
        for size, rate in zip(sizes[1:], rates[1:], strict=True)
    ]
    return records + _checking_records(checks)


def _checking_records(checks: list[tuple[float, float, float, float]]) -> list[Record]:
    """Print and return what checking costs, from what `_checking` measured."""
    first, later, spent, without = (median(values) for values in zip(*checks, strict=True))
    print("\nchecking windows, files in the page cache, a process each")
    print(
        f"  first epoch on a node {first:6.2f} s, without checks {without:6.2f} s: "
        f"{1 - without / first:.0%} of it (≤ 35 %)"
    )
    print(
        f"  in a later process {later:6.2f} s, {spent * 1e3:.1f} ms of it for checks: "
        f"{spent / later:.2%} (≤ 1 %)"
    )
    return [
        _record("ingest checking", "first epoch on a node / without checks", first, without, "s", "lower"),
        _record("ingest checking", "checks in a later process / its epoch", spent, later, "s", "lower"),
    ]


def _checking(modality: Modality, path: Path) -> tuple[float, float, float, float]:
    """Return the seconds of a first epoch on a node, of one in a later process, of that one's checks, and
    of an epoch without checks. What a later process spends is less than epochs differ by: it is timed alone.
    """
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]) / "voxray", ignore_errors=True)
    first = _in_process(_first_epoch_s, modality, path)
    later, spent = _in_process(_checked_epoch_s, modality, path)
    without = _in_process(_unchecked_epoch_s, modality, path)
    return first, later, spent, without


def _in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _first_epoch_s(modality: Modality, path: Path) -> float:
    """Return the seconds of this process's first epoch of `local`."""
    source = ours.batches(modality, path, DataConfig(transport="local"))
    return measure(Way(ours.LOCAL, path, source), 0, expected_sum(modality)).seconds


def _unchecked_epoch_s(modality: Modality, path: Path) -> float:
    """Return the seconds of a first epoch without checks: the peer of the measurement."""
    ShardReader._check = lambda self, index: None
    return _first_epoch_s(modality, path)


def _checked_epoch_s(modality: Modality, path: Path) -> tuple[float, float]:
    """Return the seconds of a first epoch, and those that its threads spend on checks, together."""
    spent: list[float] = []

    def timed(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            before = time.perf_counter()
            function(*arguments)
            spent.append(time.perf_counter() - before)

        return call

    ShardReader._check = timed(ShardReader._check)
    CheckedWindows.__init__ = timed(CheckedWindows.__init__)
    return _first_epoch_s(modality, path), sum(spent)


def _run(modality: Modality, path: Path, num: int) -> Record:
    """Run `num` epochs of `local` after a first one here, straight after one another, as in training.

    Return rows per second of all but the first, peaks of memory, and the page cache's share.
    """
    source = ours.batches(modality, path, DataConfig(transport="local"), followed=True)
    expected, own, everything = expected_sum(modality), [0.0], [0.0]
    way = Way(ours.LOCAL, path, functools.partial(_watched, source, own, everything))
    measure(way, 0, expected)
    before = time.perf_counter()
    for epoch in range(1, num + 1):
        total = RowSum()
        for batch in way.epoch(epoch):
            total.add(batch)
        assert total == expected, f"an epoch is not each row once: {total}, not {expected}"
    return {
        "rate": num * modality.num_rows / (time.perf_counter() - before),
        "own_mb": max(own),
        "all_mb": max(everything),
        "cached": cached_share(path / "shards"),
    }


def _watched(
    source: Callable[[int], Iterator[Any]], own: list[float], everything: list[float], epoch: int
) -> Iterator[Any]:
    for index, batch in enumerate(source(epoch)):
        if index % 50 == 0:
            anonymous, resident = _memory_mb()
            own.append(anonymous)
            everything.append(resident)
        yield batch


def _memory_mb() -> tuple[float, float]:
    """Return this process's own memory and all that is resident, mapped files included, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = {name: int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmRSS")}
    return (kilobytes["RssAnon"] + kilobytes["RssShmem"]) / 1e3, kilobytes["VmRSS"] / 1e3


# --- a plan over very many shards


def _plan_records() -> list[Record]:
    """Time and weigh the order of an epoch over 10⁶ shards and 10⁹ rows."""
    request = EpochRequest("train", 64, seed=1)
    tracemalloc.start()
    before = time.perf_counter()
    order = EpochOrder(Selection([ROWS_PER_SHARD] * NUM_SHARDS, BatchRules()), request, SPAN_ROWS)
    num_batches = order.num_batches
    started = time.perf_counter() - before
    for batch in (0, num_batches // 2, num_batches - 1):
        order.rows(*order.bounds(batch))
    seconds, peak_mb = time.perf_counter() - before, tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print(
        f"a plan over {NUM_SHARDS:,} shards, {NUM_SHARDS * ROWS_PER_SHARD:,} rows: its length after "
        f"{started:.2f} s, with its first, middle and last batch {seconds:.2f} s, {peak_mb:.0f} MB at most"
    )
    return [_record("ingest plan", f"{NUM_SHARDS:,} shards / 10 s", seconds, 10.0, "s", "lower")]


# --- a remote dataset


def _remote_records(folder: Path, modality: Modality) -> list[Record]:
    """Read a dataset over HTTP with `cache` and `stream`, two epochs each, and count the bytes sent."""
    own = folder / "remote"
    own.mkdir()
    path = ours.write(modality, own)
    size = sum(file.stat().st_size for file in (path / "shards").iterdir())
    expected, records = expected_sum(modality), []
    print("\na dataset behind HTTP on this node: shard bytes sent, in parts of the dataset's")
    for transport in ("cache", "stream"):
        with _served(path) as (url, sent):
            config = DataConfig(transport=transport, cache_dir=str(own / transport))
            source = ours.batches(modality, url, config)
            parts = []
            for epoch in range(2):
                before = sent["bytes"]
                total = RowSum()
                for batch in source(epoch):
                    total.add(batch)
                assert total == expected, f"{transport}: not each row once: {total}, not {expected}"
                parts.append((sent["bytes"] - before) / size)
        print(f"  {transport:8} epoch 1: {parts[0]:.2f}, epoch 2: {parts[1]:.2f}")
        records.append(
            _record(
                "ingest remote", f"{transport}: bytes sent / bytes", sum(parts) * size, size, "B", "lower"
            )
        )
    shutil.rmtree(own)
    return records


@contextlib.contextmanager
def _served(path: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """Serve a folder on localhost, in ranges; yields its URL and the bytes of shards sent so far."""
    sent = {"bytes": 0}
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(with_body=False)

        def do_GET(self) -> None:
            self._send(with_body=True)

        def _send(self, with_body: bool) -> None:
            file = path / self.path.lstrip("/")
            size = file.stat().st_size
            first, last = 0, size - 1
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            if asked:
                first, last = int(asked[1]), min(last, int(asked[2] or last))
            self.send_response(206 if asked else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if with_body:
                with file.open("rb") as opened, contextlib.suppress(ConnectionError):
                    opened.seek(first)
                    self._write(opened, last - first + 1)

        def _write(self, opened: IO[bytes], size: int) -> None:
            while size:
                piece = opened.read(min(size, _PIECE_BYTES))
                self.wfile.write(piece)
                size -= len(piece)
                with lock:
                    sent["bytes"] += len(piece) if "/shards/" in self.path else 0

        def log_message(self, *_: Any) -> None:
            """Write no log."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", sent
        finally:
            server.shutdown()
            thread.join()


def _record(benchmark: str, case: str, own: float, peer: float, unit: str, better: str) -> Record:
    return {
        "benchmark": benchmark,
        "case": case,
        "ours": own,
        "peer": peer,
        "unit": unit,
        "ratio": own / peer,
        "better": better,
    }
