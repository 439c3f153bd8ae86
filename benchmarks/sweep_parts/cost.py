"""What a command costs: its wall time, and the CPU time of every process that it starts, whoever adopts them.

A process of the command has a mark in its environment, which all that it starts inherit; Linux only. CPU time
is sampled, so of a process that ends the last moments, at most EVERY_S of them, are missed.
"""

import os
import secrets
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.1
MARK = "SWEEP_BENCHMARK"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """When trials ended: seconds since the command began, and of CPU time by then; the whole of both."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def steady(self, skipped: int) -> tuple[float, float]:
        """Return wall and CPU seconds per trial, from the end of trial `skipped` to that of the last one."""
        (first_s, first_cpu_s), (last_s, last_cpu_s) = self.ends[skipped - 1], self.ends[-1]
        num = len(self.ends) - skipped
        return (last_s - first_s) / num, (last_cpu_s - first_cpu_s) / num

    def startup_s(self, skipped: int) -> float:
        """Return what the command took to the last trial's end, beyond its trials at the steady pace."""
        return self.ends[-1][0] - len(self.ends) * self.steady(skipped)[0]

    @property
    def shutdown_s(self) -> float:
        """Seconds from the last trial's end to the command's."""
        return self.wall_s - self.ends[-1][0]


class _CpuTime(threading.Thread):
    """Adds up the CPU seconds of the processes that carry a mark."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark, self._ended = f"{MARK}={mark}".encode(), threading.Event()
        self._ours: dict[tuple[str, str], float] = {}  # by process id and start time
        self._others: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.read()

    def stop(self) -> float:
        self._ended.set()
        self.join()
        return self.read()

    def read(self) -> float:
        """Look at all processes; return the seconds so far."""
        with self._lock:
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    self._look(folder)
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
            return sum(self._ours.values())

    def _look(self, folder: Path) -> None:
        fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        key = folder.name, fields[19]
        if key in self._others:
            return
        if key not in self._ours and self._mark not in (folder / "environ").read_bytes().split(b"\0"):
            # Between fork and exec a process still shows its parent's environment or none: looked at again.
            if time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS > 1:
                self._others.add(key)
            return
        self._ours[key] = (int(fields[11]) + int(fields[12])) / _TICKS


def measure(command: list[str], environment: dict[str, str], line_of_a_trial: str) -> Cost:
    """Run a command; a trial has ended when a line begins with `line_of_a_trial`.

    Raises RuntimeError with the output when it fails.
    """
    mark, cost, lines = secrets.token_hex(8), Cost(), []
    began = time.perf_counter()
    cpu = _CpuTime(mark)
    cpu.start()
    with subprocess.Popen(
        command,
        env={**os.environ, **environment, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(line_of_a_trial):
                cost.ends.append((time.perf_counter() - began, cpu.read()))
    cost.wall_s, cost.cpu_s = time.perf_counter() - began, cpu.stop()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}\n{''.join(lines[-40:])}")
    return cost
