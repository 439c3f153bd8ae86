"""Ridge regression from streamed sums, beside scikit-learn and himalaya on the same rows in memory.

Run: python benchmarks/ridge.py [--quick] [--json FILE] [--cases NAME,…] [--peers NAME,…]. Each fit is a
process of its own with all cores for both sides, ways in turn; medians. Rows are made by a seeded generator,
block by block, and making them is not timed: ours is the time in `Statistics` and `solve` (condition number
included), the peer's that of `fit`. Cases:

* `one` and `alphas`: 200,000 × 2,048 → 768. scikit-learn with its fastest documented settings for this shape:
  `Ridge(solver="cholesky", copy_X=False)` under `assume_finite`, in float32 and in float64. With several
  alphas: `GridSearchCV` over it with the same folds, and `RidgeCV`, which leaves out a row, not a fold.
* `fmri`: 27,000 × 4,096 → 768, 6 alphas, 5 folds: `GridSearchCV` in float32 and float64, and himalaya's
  `RidgeCV` in float32, one alpha for all targets, on torch's CPU backend and on numpy's. himalaya is no
  dependency of ours; where it is not installed it is left out, and told. All get the same folds. Then ours
  alone with 4 × the rows, whose peak memory must be the same.
* `voxels`: 15,724 features, one alpha, ours alone.

Score is the R² of 2,000 rows that no side has fitted. Memory is the peak above what the process held before
the first row. CPU seconds are those of all threads, a waiting thread's spinning among them: on a busy machine
compare them with --threads 1.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_ROWS = 4096
FOLDS = 5
PROBE_ROWS = 2000


@dataclass(frozen=True)
class Size:
    """Rows × features → targets."""

    rows: int
    features: int
    targets: int

    def __str__(self) -> str:
        return f"{self.rows:,} × {self.features:,} → {self.targets}"


@dataclass(frozen=True)
class Case:
    """What is fitted, at full size and at a quick one, and by whom beside us."""

    full: Size
    quick: Size
    alphas: tuple[float, ...]
    peers: tuple[str, ...] = ()
    growth: int = 1  # ours is fitted again with so many times the rows


FOUR = (1.0, 100.0, 1e4, 1e6)
CASES = {
    "one": Case(
        Size(200_000, 2048, 768),
        Size(20_000, 512, 64),
        FOUR[1:2],
        ("scikit-learn float32", "scikit-learn float64"),
    ),
    "alphas": Case(
        Size(200_000, 2048, 768),
        Size(20_000, 512, 64),
        FOUR,
        ("scikit-learn float32 GridSearchCV", "scikit-learn float32 RidgeCV"),
    ),
    "fmri": Case(
        Size(27_000, 4096, 768),
        Size(6750, 1024, 192),
        (10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
        (
            "scikit-learn float32 GridSearchCV",
            "scikit-learn float64 GridSearchCV",
            "himalaya torch",
            "himalaya numpy",
        ),
        growth=4,
    ),
    "voxels": Case(Size(27_000, 15_724, 768), Size(6750, 3931, 192), (1e4,)),
}


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


def blocks(size: Size, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield features and targets, float32, and the fold of each row (a group is 50 rows that follow each
    other), from row `start`.
    """
    world = np.random.default_rng(0)
    weight = world.standard_normal((size.features, size.targets), dtype=np.float32) / size.features**0.5
    scale = np.geomspace(1, 0.1, size.features, dtype=np.float32)
    for first in range(start, size.rows, BLOCK_ROWS):
        generator = np.random.default_rng([1, first])
        num = min(BLOCK_ROWS, size.rows - first)
        x = generator.standard_normal((num, size.features), dtype=np.float32) * scale + 2
        y = x @ weight + generator.standard_normal((num, size.targets), dtype=np.float32)
        yield x, y, (first + np.arange(num)) // 50 % FOLDS


def probe(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the same world that no side fits."""
    beyond = Size(-(-size.rows // BLOCK_ROWS) * BLOCK_ROWS + PROBE_ROWS, size.features, size.targets)
    x, y, _ = next(blocks(beyond, beyond.rows - PROBE_ROWS))
    return x.astype(np.float64), y.astype(np.float64)


def held_out(size: Size, coef_OD: np.ndarray, intercept_O: np.ndarray) -> dict[str, Any]:
    """Return what a regression predicts for the probe, and its R² over all targets."""
    x, y = probe(size)
    predicted = x @ coef_OD.T + intercept_O
    return {
        "predicted": predicted,
        "score": 1 - np.square(y - predicted).sum() / np.square(y - y.mean(0)).sum(),
    }


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
    summed_s = timer.read()["seconds"]
    with timer:
        found = solve(sums, alphas)
    peak = peak_mb() - before
    detail = (
        f"alpha {found.alpha_T.tolist()[0]:g}, {found.method}, condition number "
        f"{found.condition_number:.3g}, {summed_s:.1f} s of it summing"
    )
    score = held_out(size, found.coef_OD.numpy(), found.intercept_O.numpy())
    return {**timer.read(), "peak_mb": peak, **score, "detail": detail}


def fit_peer(size: Size, alphas: tuple[float, ...], name: str) -> dict[str, Any]:
    """Fill memory with the rows, fit."""
    before = resident_mb()
    dtype = np.float64 if "float64" in name else np.float32
    x, y = np.empty((size.rows, size.features), dtype), np.empty((size.rows, size.targets), dtype)
    fold = np.empty(size.rows, np.int64)
    first = 0
    for part in blocks(size):
        rows = slice(first, first + len(part[0]))
        x[rows], y[rows], fold[rows] = part
        first = rows.stop
    timer = Timer()
    fit = fit_himalaya if name.startswith("himalaya") else fit_scikit_learn
    coef_OD, intercept_O, alpha = fit(x, y, fold, alphas, name, timer)
    peak = peak_mb() - before
    score = held_out(size, np.asarray(coef_OD, np.float64), np.asarray(intercept_O, np.float64))
    return {**timer.read(), "peak_mb": peak, **score, "detail": f"alpha {alpha:g}"}


def fit_scikit_learn(
    x: np.ndarray, y: np.ndarray, fold: np.ndarray, alphas: tuple[float, ...], name: str, timer: Timer
) -> tuple[Any, Any, float]:
    """Return coefficients, intercepts and the alpha."""
    import sklearn
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    sklearn.set_config(assume_finite=True)
    if name.endswith("RidgeCV"):
        model: Any = RidgeCV(alphas)
    else:
        model = Ridge(alpha=alphas[0], solver="cholesky", copy_X=False)
    if name.endswith("GridSearchCV"):
        score = "neg_mean_squared_error"
        model = GridSearchCV(model, {"alpha": alphas}, scoring=score, cv=PredefinedSplit(fold))
    with timer:
        model.fit(x, y)
    best = getattr(model, "best_estimator_", model)
    return best.coef_, best.intercept_, float(getattr(model, "alpha_", best.get_params().get("alpha")))


def fit_himalaya(
    x: np.ndarray, y: np.ndarray, fold: np.ndarray, alphas: tuple[float, ...], name: str, timer: Timer
) -> tuple[Any, Any, float]:
    """Return coefficients, intercepts and the alpha that all targets share."""
    from sklearn.model_selection import PredefinedSplit

    backend = importlib.import_module("himalaya.backend").set_backend(name.removeprefix("himalaya "))
    model = importlib.import_module("himalaya.ridge").RidgeCV(
        alphas,
        fit_intercept=True,
        cv=PredefinedSplit(fold),
        solver_params={"local_alpha": False, "warn": False},
    )
    x, y = backend.asarray(x), backend.asarray(y)
    with timer:
        model.fit(x, y)
    coef_DO, intercept_O = backend.to_numpy(model.coef_), backend.to_numpy(model.intercept_)
    return coef_DO.T, intercept_O, float(backend.to_numpy(model.best_alphas_)[0])


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
    size, way, alphas = Size(**values["size"]), values["way"], CASES[values["case"]].alphas
    found = fit_ours(size, alphas) if way == "voxray" else fit_peer(size, alphas, way)
    np.savez(values["file"], **found)


def measure(
    name: str, size: Size, peers: list[str], rounds: int, num_threads: int
) -> list[dict[str, object]]:
    """Interleave the ways, print their medians and the difference of their predictions; return records."""
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ("voxray", *peers)}
    for _ in range(rounds):
        for way, found in results.items():
            found.append(in_a_process(size, name, way, num_threads))
    ours = results["voxray"]
    measured = ("seconds", "cpu_s", "peak_mb")
    medians = {
        way: {what: statistics.median(float(one[what]) for one in found) for what in measured}
        for way, found in results.items()
    }
    spread = float(ours[0]["predicted"].std())
    records: list[dict[str, object]] = []
    print(f"{name}: {size}, {len(CASES[name].alphas)} alphas, {num_threads} threads", flush=True)
    for way, found in results.items():
        difference = float(np.abs(found[0]["predicted"] - ours[0]["predicted"]).max()) / spread
        ratio = {what: medians["voxray"][what] / medians[way][what] for what in measured}
        score = float(found[0]["score"])
        print(
            f"  {way:34} {medians[way]['seconds']:8.2f} s (voxray {ratio['seconds']:5.2f} ×)   "
            f"{medians[way]['cpu_s']:8.2f} CPU-s ({ratio['cpu_s']:5.2f} ×)   peak "
            f"{medians[way]['peak_mb']:6.0f} MB   R² {score:.6f}   largest difference {difference:.1e} of "
            f"the spread   {found[0]['detail']}",
            flush=True,
        )
        if way == "voxray":
            records += [
                {
                    "benchmark": "ridge",
                    "case": f"{name}, {what}",
                    "ours": value,
                    "unit": unit,
                    "better": better,
                }
                for what, value, unit, better in (
                    ("seconds", medians[way]["seconds"], "s", "lower"),
                    ("peak memory", medians[way]["peak_mb"], "MB", "lower"),
                    ("held-out score", score, "R²", "higher"),
                )
            ]
            continue
        for unit, what in zip(("s", "CPU-s", "MB"), measured, strict=True):
            values = {"ours": medians["voxray"][what], "peer": medians[way][what], "ratio": ratio[what]}
            case = f"{name}, {unit} beside {way}"
            records.append({"benchmark": "ridge", "case": case, **values, "unit": unit, "better": "lower"})
        both = {"ours": float(ours[0]["score"]), "peer": score, "ratio": float(ours[0]["score"]) / score}
        case = f"{name}, R² beside {way}"
        records.append({"benchmark": "ridge", "case": case, **both, "unit": "R²", "better": "higher"})
    return records


def grown(name: str, size: Size, growth: int, num_threads: int) -> list[dict[str, object]]:
    """Fit ours with more rows in turn with the first number; print and return what its memory does."""
    larger = Size(growth * size.rows, size.features, size.targets)
    before, after = (in_a_process(one, name, "voxray", num_threads) for one in (size, larger))
    peak, ratio = float(after["peak_mb"]), float(after["peak_mb"]) / float(before["peak_mb"])
    print(
        f"  voxray with {growth} × the rows   {float(after['seconds']):8.2f} s   peak {peak:6.0f} MB"
        f" ({ratio:.3f} × that before)   R² {float(after['score']):.6f}",
        flush=True,
    )
    values = {"ours": peak, "peer": float(before["peak_mb"]), "ratio": ratio}
    case = f"{name}, peak memory with {growth} × the rows beside that with one"
    return [{"benchmark": "ridge", "case": case, **values, "unit": "MB", "better": "lower"}]


def main() -> None:
    """Measure the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the features, and fewer rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, help="fits of each way (3, or 1 at full size)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both sides")
    parser.add_argument("--cases", default=",".join(CASES), help="only these")
    parser.add_argument("--peers", default="", help="only these, by parts of their names: float32,himalaya")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_fit(json.loads(options.one))
        return
    rounds = options.rounds or (3 if options.quick else 1)
    has_himalaya = importlib.util.find_spec("himalaya") is not None
    records: list[dict[str, object]] = []
    for name in options.cases.split(","):
        case = CASES[name]
        size = case.quick if options.quick else case.full
        peers = [peer for peer in case.peers if any(part in peer for part in options.peers.split(","))]
        if not has_himalaya and any(peer.startswith("himalaya") for peer in peers):
            print("himalaya is not installed (pip install himalaya); it is left out", flush=True)
            peers = [peer for peer in peers if not peer.startswith("himalaya")]
        records += measure(name, size, peers, rounds, options.threads)
        if case.growth > 1:
            records += grown(name, size, case.growth, options.threads)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
