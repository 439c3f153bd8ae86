"""The driver's view of a run: it follows the run's log, a live line on a terminal, plain lines otherwise."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

POLL_S = 0.3


@contextmanager
def follow(log_file: Path, console: Console, monitor: str) -> Generator[None]:
    """Print a line per epoch, and a live line per step on a terminal, while the body runs."""
    stop = threading.Event()
    start = log_file.stat().st_size if log_file.exists() else 0
    status = console.status("starting the workers …") if console.is_terminal else None
    thread = threading.Thread(
        target=_follow, args=(log_file, start, console, status, monitor, stop), daemon=True
    )
    if status:
        status.start()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if status:
            status.stop()


def _follow(
    log_file: Path, start: int, console: Console, status: Status | None, monitor: str, stop: threading.Event
) -> None:
    """Show what is appended to the log until `stop` is set and the log is read to its end."""
    position = start
    last_round = False
    while True:
        last_round = last_round or stop.is_set()
        if log_file.exists():
            position = _show_from(log_file, position, console, status, monitor)
        if last_round:
            return
        last_round = stop.wait(POLL_S)


def _show_from(log_file: Path, position: int, console: Console, status: Status | None, monitor: str) -> int:
    """Show the whole lines after `position`; return where the next line begins."""
    with log_file.open("rb") as file:
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            _show(json.loads(line), console, status, monitor)
    return position


def _show(record: dict[str, Any], console: Console, status: Status | None, monitor: str) -> None:
    match record["kind"]:
        case "step" if status:
            status.update(step_line(record))
        case "epoch":
            console.print(epoch_line(record, monitor), highlight=False, markup=False, soft_wrap=True)
        case "note":
            console.print(record["text"], highlight=False, markup=False, soft_wrap=True)
        case "resume":
            console.print(
                f"resumed from {record['checkpoint']}", highlight=False, markup=False, soft_wrap=True
            )


def step_line(record: dict[str, Any]) -> str:
    """Return the live line of a step record."""
    return (
        f"{record['stage']} · epoch {record['epoch'] + 1} · step {record['step']} · "
        f"loss {record['train/loss']:.4f} · "
        f"{record['samples_per_s']:.0f} samples/s · {100 * record['data_wait_share']:.0f} % waiting for data"
    )


def epoch_line(record: dict[str, Any], monitor: str) -> str:
    """Return the line of an epoch record; a metric that is undefined is shown as n/a."""
    names = dict.fromkeys(["train/loss", "val/loss", monitor])
    shown = (f"{name} {_number(record[name])}" for name in names if name in record)
    return f"{record['stage']} epoch {record['epoch'] + 1:>3} · step {record['step']:>6} · " + " · ".join(
        shown
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
