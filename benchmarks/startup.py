"""How fast the command line answers: `--help`, `ls`, `show` and a wrong key, beside a bare interpreter's
imports.

Run: python benchmarks/startup.py [--quick] [--json FILE]. The peer is a Python process that imports typer and
pydantic and does nothing, the least that such a program costs; the ratio is ours over it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEER = ["-c", "import typer, pydantic"]
CASES = {
    "help": ["-m", "voxray", "--help"],
    "ls experiments": ["-m", "voxray", "ls", "experiments"],
    "show": ["-m", "voxray", "show", "experiments/cxr_memory/dev_fast.yaml"],
    "wrong key": ["-m", "voxray", "train", "experiments/cxr_memory/dev_fast.yaml", "training.bath_size=4"],
}


def seconds(arguments: list[str]) -> float:
    """Return the wall time of one Python process."""
    before = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - before


def main() -> None:
    """Interleave ours and the peer's, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 15")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in ("peer", *CASES)}
    for _ in range(5 if options.quick else 15):
        times["peer"].append(seconds(PEER))
        for name, arguments in CASES.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    records = [
        {
            "benchmark": "startup",
            "case": name,
            "ours": medians[name],
            "peer": medians["peer"],
            "unit": "s",
            "ratio": medians[name] / medians["peer"],
            "better": "lower",
        }
        for name in CASES
    ]
    for record in records:
        print(f"{record['case']:16} {record['ours']:6.2f} s   {record['ratio']:5.2f} × imports alone")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
