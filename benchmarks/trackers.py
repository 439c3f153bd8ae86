"""What trackers cost training: a training process beside a driver with no tracker, and with one that is well,
slow, hung, failing or without its server.

Run: python benchmarks/trackers.py [--quick] [--json FILE]. The training process makes updates of a few
milliseconds on one thread and logs every tenth; its own seconds are compared, interleaved, by their median
over rounds. The peer is the same training process with nobody following but the terminal's view.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

TRAINING = """
import sys, time
from pathlib import Path
import torch
from voxray.train.run_folder import RunFolder

torch.set_num_threads(1)
torch.manual_seed(0)
run, num_updates = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
optimizer = torch.optim.AdamW(model.parameters())
x_BI, y_BO = torch.randn(256, 512), torch.randn(256, 10)

def update(step):
    optimizer.zero_grad()
    loss = (model(x_BI) - y_BO).square().mean()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        place = {"stage": "main", "epoch": step // 500, "step": step}
        run.log({"kind": "step", **place, "train/loss": loss.item(), "samples_per_s": 1.0})
    if step % 500 == 0:
        run.log({"kind": "epoch", **place, "train/loss": loss.item(), "val/loss": loss.item()})

for step in range(1, 51):
    update(step)
before = time.perf_counter()
for step in range(51, 51 + num_updates):
    update(step)
print(time.perf_counter() - before)
"""


class Broken:
    """A tracker that behaves badly on each record."""

    key = name = "broken"
    patience_s = 1.0

    def __init__(self, behave: Callable[[], None]) -> None:
        """`behave` is called for each record."""
        self._behave = behave

    def start(self, info: object, state: object) -> str:
        """Begin well."""
        return ""

    def record(self, record: object) -> None:
        """Behave badly."""
        self._behave()

    def flush(self) -> None:
        """Keep nothing."""

    def finish(self, status: str) -> None:
        """End well."""


def fail() -> None:
    """Fail as a server's client does."""
    raise OSError("the server is away")


def seconds_per_update(case: str, num_updates: int, hung: str, closed: str) -> float:
    """Train beside a driver that follows with the case's trackers; return the training's own seconds."""
    from rich.console import Console

    from voxray.testing.tiny import TinyConfig
    from voxray.train import progress
    from voxray.train.run_folder import RunFolder

    logging = {
        "tensorboard": {"tensorboard": True},
        "wandb, in files": {"wandb": {"enabled": True, "mode": "offline"}},
        "wandb, server refuses": {"wandb": {"enabled": True, "host": closed}},
        "wandb, server hangs": {"wandb": {"enabled": True, "host": hung}},
    }.get(case, {})
    broken = {
        "a tracker that fails": fail,
        "a tracker of 0.5 s a record": lambda: time.sleep(0.5),
        "a tracker that hangs": lambda: time.sleep(3600),
    }.get(case)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if broken is not None:
            stack.enter_context(mock.patch.object(progress, "chosen_trackers", return_value=[Broken(broken)]))
        run = RunFolder(Path(folder))
        config = TinyConfig.model_validate({"logging": logging, "storage": {"path": folder}})
        with progress.follow(run, config, Console(quiet=True)):
            done = subprocess.run(
                [sys.executable, "-c", TRAINING, folder, str(num_updates)],
                capture_output=True,
                text=True,
                check=True,
            )
    return float(done.stdout) / num_updates


CASES = (
    "tensorboard",
    "wandb, in files",
    "wandb, server refuses",
    "wandb, server hangs",
    "a tracker that fails",
    "a tracker of 0.5 s a record",
    "a tracker that hangs",
)


def main() -> None:
    """Interleave the cases, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 500 updates instead of 7 of 2,000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds, num_updates = (3, 500) if options.quick else (7, 2000)
    os.environ.update(WANDB_API_KEY="0" * 40, WANDB_ERROR_REPORTING="false")  # of nobody
    times: dict[str, list[float]] = {name: [] for name in ("none", *CASES)}
    with socket.socket() as hung, socket.socket() as closed:
        hung.bind(("127.0.0.1", 0))
        hung.listen(64)
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        hosts = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (hung, closed)]
        for _ in range(rounds):
            for name, taken in times.items():
                taken.append(seconds_per_update(name, num_updates, *hosts))
    medians = {name: statistics.median(values) for name, values in times.items()}
    records = [
        {
            "benchmark": "trackers",
            "case": name,
            "ours": medians[name],
            "peer": medians["none"],
            "unit": "s/update",
            "ratio": medians[name] / medians["none"],
            "better": "lower",
        }
        for name in CASES
    ]
    spread = max(times["none"]) / min(times["none"])
    print(f"without trackers {1e3 * medians['none']:.2f} ms/update, slowest/fastest round {spread:.3f}")
    for record in records:
        print(f"{record['case']:28} {1e3 * record['ours']:6.2f} ms/update   {record['ratio']:6.3f} ×")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
