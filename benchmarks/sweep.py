"""What a short trial costs: 200 updates of a perceptron with 4 evaluations, searched with TPE, two at a time,
by Optuna, by Ray Tune, by Ray Tune around Ray Train, and by `voxray tune`, all in one run.

    python benchmarks/sweep.py [--quick] [--json FILE]

Each way is a command of its own. `s/trial` and `CPU-s/trial` are of the steady state, from the end of the
fourth trial (second, where there are few) to that of the last one; `start` is what the command took to there
beyond its trials at that pace: imports, Ray's start, the first use of everything; `end` is the rest: Ray's
processes are ended. CPU seconds are those of all processes that it starts.
voxray alone keeps a journal, the runs' logs and each trial's last checkpoint on disk. Medians over rounds in
turn; the two slow ways take part in the first round alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from sweep_parts import problem
from sweep_parts.cost import Cost, measure

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import TinyConfig

OURS, OPTUNA, TUNE, NESTED = "voxray tune", "Optuna n_jobs=2", "Tune, function", "Tune + TorchTrainer"
PEERS = {OPTUNA: "optuna", TUNE: "tune", NESTED: "nested"}
TARGETS = {OPTUNA: ("s/trial", 1.0), NESTED: ("CPU-s/trial", 0.1)}
STARTUP_TARGET_S = 8.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
EXPERIMENT = """
task: sweep_parts.problem:Regression
description: The benchmark's perceptron
data: {{path: {dataset}}}
training: {{batch_size: {batch_size}, steps: {steps}, warmup_steps: 0, min_lr_fraction: 0.0}}
checkpoints: {{save_best: false, save_every_n_epochs: 1000}}
storage: {{path: {runs}}}
"""
SPACE = """
description: The benchmark's search
experiment: experiment.yaml
objective: {{metric: val/loss, mode: min}}
search:
  trials: {trials}
  max_concurrent: 2
  space:
    training.learning_rate: {{loguniform: {rates}}}
    model.dropout: {{uniform: {dropouts}}}
"""


def write_files(folder: Path, trials: int) -> Path:
    """Write the dataset, the experiment and the space; return the space."""
    splits = {}
    for split in ("train", "val"):
        x, y = problem.rows(split)
        names = np.array([f"{split}{i:05d}" for i in range(len(x))], dtype=object)
        splits[split] = {"sample_id": names, "group": names, "x": x, "y": y}
    schema = problem.Regression(TinyConfig()).schema()
    dataset = write_dataset(folder / "dataset", schema, splits, problem.NUM_TRAIN)
    (folder / "experiment.yaml").write_text(
        EXPERIMENT.format(
            dataset=dataset,
            batch_size=problem.BATCH_SIZE,
            steps=problem.NUM_UPDATES,
            runs=folder / "runs",
        )
    )
    space = folder / "space.yaml"
    space.write_text(SPACE.format(trials=trials, rates=list(problem.RATES), dropouts=list(problem.DROPOUTS)))
    return space


def run(way: str, trials: int) -> Cost:
    """Search by one way."""
    with tempfile.TemporaryDirectory(prefix="sweep", ignore_cleanup_errors=True) as folder:
        if way == OURS:
            command = [sys.executable, "-m", "voxray", "tune", str(write_files(Path(folder), trials))]
        else:
            command = [sys.executable, "-m", "sweep_parts.peers", PEERS[way], str(trials)]
        path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], *filter(None, [os.environ.get("PYTHONPATH")])])
        cost = measure(command, {**ENVIRONMENT, "PYTHONPATH": path}, "trial ")
    assert len(cost.ends) == trials, f"{way}: {len(cost.ends)} of {trials} trials ended"
    return cost


def skipped(trials: int) -> int:
    """Return the trials that are not yet the steady state."""
    return 4 if trials >= 8 else 2


def main() -> None:
    """Measure, print, write records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="12 trials, 4 of the slow ways, one round")
    parser.add_argument("--json", type=Path, help="write records there")
    options = parser.parse_args()
    rounds = 1 if options.quick else 5
    trials = (
        {OURS: 12, OPTUNA: 12, TUNE: 6, NESTED: 4}
        if options.quick
        else dict.fromkeys((OURS, OPTUNA, TUNE), 32)
    )
    trials.setdefault(NESTED, 8)
    costs: dict[str, list[Cost]] = {way: [] for way in (OPTUNA, OURS, TUNE, NESTED)}
    for number in range(rounds):
        for way, measured in costs.items():
            if number == 0 or way in (OPTUNA, OURS):
                measured.append(run(way, trials[way]))
    table = {way: medians(measured, skipped(trials[way])) for way, measured in costs.items()}
    print(f"{'':22} trials   s/trial   CPU-s/trial   start s   end s")
    for way, (wall_s, cpu_s, start_s, end_s) in table.items():
        print(f"{way:22} {trials[way]:6} {wall_s:9.3f} {cpu_s:13.3f} {start_s:9.1f} {end_s:7.1f}")
    records = compare(table)
    for record in records:
        print(f"{record['case']:48} {record['ratio']:6.3f} × {record['said']}")
    beyond_s = table[OURS][2] - table[OPTUNA][2]
    verdict = "holds" if beyond_s <= STARTUP_TARGET_S else "MISSED"
    more_s = beyond_s + table[OURS][3] - table[OPTUNA][3]
    print(f"start beyond Optuna's: {beyond_s:.1f} s (target ≤ {STARTUP_TARGET_S:g} s) {verdict}", end="; ")
    print(f"with the end {more_s:.1f} s")
    if options.json:
        kept = [{key: value for key, value in record.items() if key != "said"} for record in records]
        options.json.write_text(json.dumps(kept, indent=1))


def medians(costs: list[Cost], skip: int) -> tuple[float, ...]:
    """Return the medians over rounds: wall and CPU seconds per trial, seconds of the start and of the end."""
    rows = [(*cost.steady(skip), cost.startup_s(skip), cost.shutdown_s) for cost in costs]
    return tuple(statistics.median(column) for column in zip(*rows, strict=True))


def compare(table: dict[str, tuple[float, ...]]) -> list[dict[str, object]]:
    """Return a record for each peer and quantity."""
    records: list[dict[str, object]] = []
    for peer in (OPTUNA, TUNE, NESTED):
        for index, unit in enumerate(("s/trial", "CPU-s/trial", "s of start")):
            ratio = table[OURS][index] / table[peer][index]
            target = TARGETS.get(peer)
            said = ""
            if target is not None and target[0] == unit:
                said = f"(target ≤ {target[1]:g}) {'holds' if ratio <= target[1] else 'MISSED'}"
            records.append(
                {
                    "benchmark": "sweep",
                    "case": f"{unit}, beside {peer}",
                    "ours": table[OURS][index],
                    "peer": table[peer][index],
                    "unit": unit,
                    "ratio": ratio,
                    "better": "lower",
                    "said": said,
                }
            )
    return records


if __name__ == "__main__":
    main()
