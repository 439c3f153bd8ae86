"""ASHA beside random search without early stopping, on real X-rays, with the same budget in epochs.

    python benchmarks/asha.py [--quick] [--json FILE] [--out FOLDER] [--data ../shared/data/cxr/nih64]

Both draw at random from one space and train two trials at a time; a trial is 9 epochs long, under 10 s. ASHA
goes on with one in three at 1 and at 3 epochs. `best` is the lowest validation loss that any evaluation has
shown so far; a curve has a value per epoch of any trial, medians over seeds. FOLDER gets the curves as
`asha.csv`, `asha.json` and `asha.png`. About 25 minutes on two cores.
"""

import argparse
import csv
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxray.cluster.connect import connect
from voxray.core.experiment import default_config
from voxray.core.registry import task_data
from voxray.data.prepare import prepare
from voxray.train.worker import train_here
from voxray.tune.plan import load_plan
from voxray.tune.search import search
from voxray.tune.study.folder import open_study

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 9  # epochs of a whole trial
METRIC = "val/loss"
WAYS = {
    "ASHA": "{name: asha, grace_epochs: 1, reduction_factor: 3}",
    "random": "{name: none}",
}
SPACE = """
description: The benchmark's search
experiment: {experiment}
experiment_name: {name}
objective: {{metric: {metric}, mode: min}}
search:
  sampler: {{name: random, seed: {seed}}}
  scheduler: {scheduler}
  trials: 1000
  max_concurrent: 2
  space:
    training.learning_rate: {{loguniform: [1.0e-5, 1.0e-1]}}
    training.weight_decay: {{loguniform: [1.0e-3, 1.0]}}
    training.batch_size: {{choice: [16, 32, 64]}}
    training.optimizer: {{choice: [adamw, sgd]}}
    model.backbone: {{choice: [test_efficientnet, test_resnet, test_convnext]}}
    model.hidden_dim: {{logint: [16, 512]}}
    model.dropout: {{uniform: [0.0, 0.6]}}
"""


class Spent:
    """Counts a study's epochs as they are reported, and lets no trial begin beyond the budget."""

    def __init__(self, ledger: Any, budget: int) -> None:
        """Listen to `ledger`."""
        self.best: list[float] = []  # after each epoch
        self._seen: set[tuple[int, int]] = set()
        self._report, self._remaining, self._budget = ledger.report, ledger.remaining, budget
        ledger.report, ledger.remaining = self.report, self.remaining

    def report(self, index: int, record: Mapping[str, Any]) -> None:
        """Take an epoch's value, once: at a trial's end the ledger reads the run's log too."""
        place = index, int(record.get("step", -1))
        if METRIC in record and place not in self._seen:
            self._seen.add(place)
            value = float(record[METRIC])
            lowest = self.best[-1] if self.best else math.inf
            self.best.append(min(lowest, math.inf if math.isnan(value) else value))
        self._report(index, record)

    def remaining(self) -> list[int]:
        """Return what is left to begin."""
        return self._remaining() if len(self.best) < self._budget else []


def curve(way: str, seed: int, budget: int, dataset: Path, folder: Path) -> tuple[list[float], int]:
    """Search once; return the best value after each epoch of the budget, and the trials that began."""
    name = f"{way.lower()}-{seed}"
    file = folder / f"{name}.yaml"
    file.write_text(
        SPACE.format(
            experiment=ROOT / "experiments/cxr_memory/nih64.yaml",
            name=name,
            metric=METRIC,
            seed=seed,
            scheduler=WAYS[way],
        )
    )
    overrides = [f"data.path={dataset}", f"training.epochs={LENGTH}", f"storage.path={folder / 'runs'}"]
    quiet = ["checkpoints.save_best=false", f"checkpoints.save_every_n_epochs={LENGTH}"]
    plan = load_plan(str(file), [*overrides, *quiet])
    with open_study(plan) as ledger:
        spent = Spent(ledger, budget)
        search(plan, ledger, train_here, lambda text: None, lambda row: None)
        return spent.best[:budget], len(ledger.rows())


def main() -> None:
    """Search, print, write the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 27 epochs")
    parser.add_argument("--json", type=Path, help="write records there")
    parser.add_argument("--out", type=Path, help="folder for the curves")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/cxr/nih64")
    options = parser.parse_args()
    seeds, budget = (range(1), 27) if options.quick else (range(5), 243)
    curves: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="asha", ignore_cleanup_errors=True) as temporary, connect():
        folder = Path(temporary)
        config = default_config("cxr_memory", {}, "the benchmark").config
        prepare(task_data("cxr_memory")(config), options.data, folder / "data")
        for seed in seeds:
            for way, found in curves.items():
                before = time.monotonic()
                best, num_trials = curve(way, seed, budget, folder / "data", folder)
                found.append(best)
                seconds = time.monotonic() - before
                print(
                    f"seed {seed}  {way:7} {num_trials:4} trials  {seconds:5.0f} s  {METRIC} {best[-1]:.4f}",
                    flush=True,
                )
    medians = {
        way: [statistics.median(values) for values in zip(*found, strict=True)]
        for way, found in curves.items()
    }
    print(f"{'epochs':>8} " + " ".join(f"{way:>9}" for way in medians))
    for epoch in sorted({1, 3, *range(LENGTH, budget + 1, max(LENGTH, budget // 9)), budget}):
        print(f"{epoch:8} " + " ".join(f"{values[epoch - 1]:9.4f}" for values in medians.values()))
    records = compare(curves, medians)
    for record in records:
        print(f"{record['case']:60} {record['ours']:9.4f} {record['peer']:9.4f}   {record['ratio']:.3f} ×")
    print(f"{time.monotonic() - began:.0f} s")
    if options.out:
        write_curves(options.out, curves, medians)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


def compare(curves: dict[str, list[list[float]]], medians: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the records: the best at the end, and the epochs to random search's best, medians over seeds."""
    ours, peer, num_seeds = medians["ASHA"], medians["random"], len(curves["ASHA"])
    pairs = zip(curves["ASHA"], curves["random"], strict=True)
    wins = sum(one[-1] < other[-1] for one, other in pairs)
    reached = next((epoch for epoch, value in enumerate(ours, 1) if value <= peer[-1]), len(ours) + 1)
    first = next(epoch for epoch, value in enumerate(peer, 1) if value <= peer[-1])
    common = {"benchmark": "asha", "better": "lower"}
    return [
        {
            **common,
            "case": f"best {METRIC} after {len(ours)} epochs, ASHA's better at {wins} of {num_seeds} seeds",
            "ours": ours[-1],
            "peer": peer[-1],
            "unit": METRIC,
            "ratio": ours[-1] / peer[-1],
        },
        {
            **common,
            "case": "epochs until random search's best is reached",
            "ours": reached,
            "peer": first,
            "unit": "epochs",
            "ratio": reached / first,
        },
    ]


def write_curves(out: Path, curves: dict[str, list[list[float]]], medians: dict[str, list[float]]) -> None:
    """Write `asha.csv` (medians and each seed) and `asha.png`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    (out / "asha.json").write_text(json.dumps({"medians": medians, "seeds": curves}))
    with (out / "asha.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        seeds = range(len(next(iter(curves.values()))))
        writer.writerow(["epochs", *medians, *(f"{way} seed {seed}" for way in curves for seed in seeds)])
        columns = [*medians.values(), *(one for found in curves.values() for one in found)]
        writer.writerows([epoch, *values] for epoch, values in enumerate(zip(*columns, strict=True), 1))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for colour, (way, found) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
        epochs = range(1, len(medians[way]) + 1)
        for one in found:
            axes.step(epochs, one, where="post", color=colour, alpha=0.25, linewidth=0.8)
        axes.step(
            epochs, medians[way], where="post", color=colour, label=f"{way}, median of {len(found)} seeds"
        )
    axes.set(xlabel="epochs trained, all trials together", ylabel=f"lowest {METRIC} so far", yscale="log")
    axes.legend()
    figure.savefig(out / "asha.png", dpi=150)


if __name__ == "__main__":
    main()
