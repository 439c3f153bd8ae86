"""Ridge regression from streamed sums, beside scikit-learn on the same rows in memory.

Run: python benchmarks/ridge.py [--quick] [--json FILE] [--peers NAME,…]. Each fit is a process of its own
with all cores for both sides, ways in turn; medians. Rows are made by a seeded generator, block by block, and
making them is not timed: ours is the time in `Statistics` and `solve` (float64, condition number included),
the peer's that of `fit`. The peers are scikit-learn with its fastest documented settings for this shape:
`Ridge(solver="cholesky", copy_X=False)` under `assume_finite`, in float32 and in float64. With several
alphas: `GridSearchCV` over it with the same folds, and `RidgeCV`, which leaves out a row in place of a fold.
Memory is the peak above what the process held before the first row. CPU seconds are those of all threads, a
waiting thread's spinning among them: on a busy machine compare them with --threads 1.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_ROWS = 4096
ALPHAS = (1.0, 100.0, 1e4, 1e6)
FOLDS = 5
PROBE_ROWS = 2000
PEERS = {
    "one alpha": ("scikit-learn float32", "scikit-learn float64"),
    f"{len(ALPHAS)} alphas": ("scikit-learn GridSearchCV", "scikit-learn RidgeCV"),
}


@dataclass(frozen=True)
class Size:
    """Rows × features → targets."""

    rows: int
    features: int
    targets: int


class Timer:
    """Adds up the wall and CPU time of the blocks that it is around."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._wall_s = self._cpu_s = 0.0

    def __enter__(self) -> "Timer":
        """Start."""
        self._wall_s -= time.perf_counter()
        self._cpu_s -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._wall_s += time.perf_counter()
        self._cpu_s += time.process_time()

    def read(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self._wall_s, "cpu_s": self._cpu_s}


FULL, QUICK = Size(200_000, 2048, 768), Size(20_000, 512, 64)


def blocks(size: Size) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield features and targets, float32, and the fold of each row (a group is 50 rows that follow each
    other).
    """
    world = np.random.default_rng(0)
    weight = world.standard_normal((size.features, size.targets), dtype=np.float32) / size.features**0.5
    scale = np.geomspace(1, 0.1, size.features, dtype=np.float32)
    for first in range(0, size.rows, BLOCK_ROWS):
        generator = np.random.default_rng([1, first])
        num = min(BLOCK_ROWS, size.rows - first)
        x = generator.standard_normal((num, size.features), dtype=np.float32) * scale + 2
        y = x @ weight + generator.standard_normal((num, size.targets), dtype=np.float32)
        yield x, y, (first + np.arange(num)) // 50 % FOLDS


def probe(size: Size) -> np.ndarray:
    """Return the rows that both sides predict."""
    return next(blocks(size))[0][:PROBE_ROWS]


def fit_ours(size: Size, alphas: tuple[float, ...]) -> dict[str, Any]:
    """Stream the rows into `Statistics`, solve."""
    import torch

    from voxray.train.ridge.statistics import Statistics, solve

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    before, timer = resident_mb(), Timer()
    sums = Statistics(size.features, size.targets, FOLDS if len(alphas) > 1 else 1)
    for x, y, fold in blocks(size):
        rows, folds = (torch.from_numpy(x), torch.from_numpy(y)), torch.from_numpy(fold)
        with timer:
            sums.add(*rows, folds if len(alphas) > 1 else None)
    with timer:
        found = solve(sums, alphas)
    predicted = probe(size) @ found.coef_OD.numpy().T + found.intercept_O.numpy()
    detail = (
        f"alpha {found.alpha_T.tolist()[0]:g}, {found.method}, condition number {found.condition_number:.3g}"
    )
    return {**timer.read(), "peak_mb": peak_mb() - before, "predicted": predicted, "detail": detail}


def fit_peer(size: Size, alphas: tuple[float, ...], name: str) -> dict[str, Any]:
    """Fill memory with the rows, fit."""
    import sklearn
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    before = resident_mb()
    dtype = np.float64 if name.endswith("float64") else np.float32
    x, y = np.empty((size.rows, size.features), dtype), np.empty((size.rows, size.targets), dtype)
    fold = np.empty(size.rows, np.int64)
    first = 0
    for part in blocks(size):
        rows = slice(first, first + len(part[0]))
        x[rows], y[rows], fold[rows] = part
        first = rows.stop
    if name.endswith("RidgeCV"):
        model: Any = RidgeCV(alphas)
    else:
        model = Ridge(alpha=alphas[0], solver="cholesky", copy_X=False)
    if name.endswith("GridSearchCV"):
        score = "neg_mean_squared_error"
        model = GridSearchCV(model, {"alpha": alphas}, scoring=score, cv=PredefinedSplit(fold))
    sklearn.set_config(assume_finite=True)
    with (timer := Timer()):
        model.fit(x, y)
    best = getattr(model, "best_estimator_", model)
    predicted = probe(size).astype(np.float64) @ best.coef_.T + best.intercept_
    detail = f"alpha {getattr(model, 'alpha_', best.get_params().get('alpha'))}"
    return {**timer.read(), "peak_mb": peak_mb() - before, "predicted": predicted, "detail": detail}


def resident_mb() -> float:
    """Return this process's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    """Return the most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_a_process(size: Size, case: str, way: str, num_threads: int) -> dict[str, Any]:
    """Return what a fit gives in a fresh process."""
    threads = {f"{name}_NUM_THREADS": str(num_threads) for name in ("OMP", "MKL", "OPENBLAS")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.npz")
        one = json.dumps({"size": asdict(size), "case": case, "way": way, "file": str(file)})
        subprocess.run([sys.executable, __file__, "--one", one], check=True, env={**os.environ, **threads})
        with np.load(file) as result:
            return {name: result[name][()] for name in result.files}


def one_fit(values: dict[str, Any]) -> None:
    """Do one fit and write what it gave."""
    size, way = Size(**values["size"]), values["way"]
    alphas = ALPHAS[1:2] if values["case"] == "one alpha" else ALPHAS
    fit: Callable[[], dict[str, Any]] = (
        (lambda: fit_ours(size, alphas)) if way == "voxray" else (lambda: fit_peer(size, alphas, way))
    )
    np.savez(values["file"], **fit())


def measure(
    size: Size, case: str, peers: list[str], rounds: int, num_threads: int
) -> list[dict[str, object]]:
    """Interleave the ways, print their medians and the difference of their predictions; return records."""
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ("voxray", *peers)}
    for _ in range(rounds):
        for way, found in results.items():
            found.append(in_a_process(size, case, way, num_threads))
    ours = results["voxray"]
    measured = ("seconds", "cpu_s", "peak_mb")
    medians = {
        way: {what: statistics.median(float(one[what]) for one in found) for what in measured}
        for way, found in results.items()
    }
    spread = float(ours[0]["predicted"].std())
    records: list[dict[str, object]] = []
    print(f"{case}, {size.rows:,} × {size.features:,} → {size.targets}, {num_threads} threads", flush=True)
    for way, found in results.items():
        difference = float(np.abs(found[0]["predicted"] - ours[0]["predicted"]).max()) / spread
        ratio = {what: medians["voxray"][what] / medians[way][what] for what in measured}
        print(
            f"  {way:26} {medians[way]['seconds']:8.2f} s (voxray {ratio['seconds']:5.2f} ×)   "
            f"{medians[way]['cpu_s']:8.2f} CPU-s ({ratio['cpu_s']:5.2f} ×)   peak "
            f"{medians[way]['peak_mb']:6.0f} MB   largest difference {difference:.1e} of the spread   "
            f"{found[0]['detail']}",
            flush=True,
        )
        for unit, what in zip(("s", "CPU-s", "MB"), measured, strict=True):
            if way != "voxray":
                values = {"ours": medians["voxray"][what], "peer": medians[way][what], "ratio": ratio[what]}
                name = f"{case}, {unit} beside {way}"
                records.append(
                    {"benchmark": "ridge", "case": name, **values, "unit": unit, "better": "lower"}
                )
    return records


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 × 512 → 64")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, help="fits of each way (3, or 1 at full size)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both sides")
    parser.add_argument("--peers", default="", help="only these, by the ends of their names: float32,RidgeCV")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_fit(json.loads(options.one))
        return
    size = QUICK if options.quick else FULL
    rounds = options.rounds or (3 if options.quick else 1)
    only = tuple(options.peers.split(","))
    records: list[dict[str, object]] = []
    for case, names in PEERS.items():
        peers = [name for name in names if name.endswith(only)]
        if peers:
            records += measure(size, case, peers, rounds, options.threads)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
