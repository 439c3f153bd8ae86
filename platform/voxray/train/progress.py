"""The driver's view of a run: it follows the run's log, a live bar on a terminal, plain lines otherwise.

`follow` also feeds the trackers, from the same log: the processes that train write nothing else.
"""

import json
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from voxray.core.run_config import RunConfig, Stage
from voxray.train.log_tail import LogTail, Record
from voxray.train.run_folder import RunFolder
from voxray.train.trackers.choose import chosen_trackers
from voxray.train.trackers.fan_out import FanOut
from voxray.train.trackers.tracker import Tracker, run_info

POLL_S = 0.3
PLAIN_LINE_EVERY_S = 30.0  # at most, between the lines of epochs, where there is no terminal
CATCH_UP_S = 600.0  # nothing but the trackers is waited for
BAR_WIDTH = 24


@contextmanager
def follow(
    run: RunFolder, config: RunConfig, console: Console, also: Sequence[Tracker] = ()
) -> Generator[None]:
    """Show what the run logs and feed its trackers while the body runs; how the body ends is the status.

    `also` are trackers beside those that `logging` turns on.
    """
    view = View(run, config, console)
    stop = threading.Event()
    position = run.log_file.stat().st_size if run.log_file.exists() else 0
    thread = threading.Thread(target=_watch, args=(LogTail(run.log_file, position), view, stop), daemon=True)
    trackers = [*chosen_trackers(config), *also]
    fan_out = FanOut(trackers, run_info(run, config), view.say) if trackers else None
    status = "failed"
    with view:
        thread.start()
        try:
            yield
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            stop.set()
            thread.join()
            if fan_out is not None:
                view.wait_for("the trackers")
                fan_out.finish(status)


def catch_up(run: RunFolder, config: RunConfig, console: Console) -> None:
    """Send a run that has ended to the trackers that have not all of it."""
    if trackers := chosen_trackers(config):
        view = View(run, config, console)
        FanOut(trackers, run_info(run, config), view.say, only_behind=True).finish("finished", CATCH_UP_S)


def _watch(tail: LogTail, view: "View", stop: threading.Event) -> None:
    """Show what is appended to the log until `stop` is set and the log is read to its end."""
    last = False
    while not last:
        last = stop.is_set()
        for end, record in tail.new():
            tail.position = end
            view.show(record)
        view.refresh()
        if not last:
            stop.wait(POLL_S)


class View:
    """What a person sees of a run: lines that stay, and on a terminal a bar above a line of numbers."""

    def __init__(self, run: RunFolder, config: RunConfig, console: Console) -> None:
        """Take the best value so far from the log of a run that is resumed."""
        self._run, self._console = run, console
        self._stages = {stage.name: stage for stage in config.resolved_stages()}
        self._started = self._last_line = time.monotonic()
        self._best: dict[str, float] = {}  # stage → its monitor's best value
        self._last: Record | None = None
        for record in run.records():
            self._note_best(record)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[count]}", markup=False),
            console=console,
        )
        self._task = self._bar.add_task("starting the workers …", total=None, count="")
        self._live = (
            Live(get_renderable=self._live_lines, console=console, transient=True, auto_refresh=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "View":
        """Show the bar."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def wait_for(self, what: str) -> None:
        """Let the bar say what is still waited for."""
        self._last = None
        self._bar.update(self._task, description=f"waiting for {what} …", total=None, count="")

    def show(self, record: Record) -> None:
        """Show one record of the log."""
        match record["kind"]:
            case "step":
                self._show_step(record)
            case "epoch" | "validation":
                better = self._note_best(record)
                self.say(epoch_line(record, self._monitor(record), better))
                self._last_line = time.monotonic()
            case "note":
                self.say(str(record["text"]))
            case "resume":
                self.say(f"resumed from {record['checkpoint']}")
            case "end":
                self.say(self._end_line(record))

    def refresh(self) -> None:
        """Draw the bar with what is known now."""
        if self._live and self._last is not None:
            step, steps = self._last.get("stage_step"), self._last.get("planned")
            self._bar.update(
                self._task,
                description=place(self._last, self._stage(self._last)),
                completed=step,
                total=steps,
                count=f"{step:,}/{steps:,}" if step and steps else f"step {self._last['step']:,}",
            )

    def _show_step(self, record: Record) -> None:
        self._last = record
        now = time.monotonic()
        if self._live is None and now - self._last_line >= PLAIN_LINE_EVERY_S:
            numbers = " · ".join(step_numbers(record, self._best_of(record)))
            self.say(f"{place(record, self._stage(record))} · step {record['step']:>6} · {numbers}")
            self._last_line = now

    def _live_lines(self) -> Group:
        if self._last is None:
            return Group(self._bar)
        shown = fitting(step_numbers(self._last, self._best_of(self._last)), self._console.width)
        return Group(self._bar, Text(shown, no_wrap=True, overflow="ellipsis"))

    def _note_best(self, record: Record) -> bool:
        """Take an evaluation's monitored value; return whether it is the best so far."""
        monitor = self._monitor(record)
        value = record.get(monitor)
        if record["kind"] not in ("epoch", "validation") or not isinstance(value, int | float):
            return False
        stage = self._stage(record)
        sign = 1 if stage is not None and stage.training.monitor_mode == "max" else -1
        name = str(record.get("stage"))
        better = name not in self._best or sign * value > sign * self._best[name]
        if better:
            self._best[name] = value
        return better

    def _stage(self, record: Record) -> Stage | None:
        return self._stages.get(str(record.get("stage")))

    def _monitor(self, record: Record) -> str:
        stage = self._stage(record)
        return stage.training.monitor if stage is not None else "val/loss"

    def _best_of(self, record: Record) -> tuple[str, float] | None:
        best = self._best.get(str(record.get("stage")))
        return None if best is None else (self._monitor(record), best)

    def _end_line(self, record: Record) -> str:
        parts = [f"{record.get('status', 'finished')} in {duration(time.monotonic() - self._started)}"]
        best: dict[str, Any] = record.get("best") or {}
        if isinstance(best.get("value"), int | float):
            parts.append(f"best {best['metric']} {best['value']:.4f} at step {best['step']}")
        kept = _best_checkpoint_name(self._run)
        return " · ".join([*parts, str(self._run.checkpoints / kept)] if kept else parts)


def place(record: Record, stage: Stage | None) -> str:
    """Return where a record stands: `main · epoch 3/10`; without the 10 where the stage counts steps."""
    training = stage.training if stage is not None else None
    epochs = f"/{training.epochs}" if training is not None and training.steps is None else ""
    return f"{record['stage']} · epoch {record['epoch'] + 1}{epochs}"


def step_numbers(record: Record, best: tuple[str, float] | None) -> list[str]:
    """Return a step's numbers in words, the most wanted first; what the record has not is left out."""
    words = [f"loss {_number(record.get('train/loss'))}"]
    if best is not None:
        words.append(f"best {best[0]} {best[1]:.4f}")
    if record.get("eta_s") is not None:
        words.append(f"{duration(record['eta_s'])} left")
    memory = "gpu_memory_gb" if "gpu_memory_gb" in record else "memory_gb"
    forms = {
        "samples_per_s": "{:,.0f} samples/s",
        "data_wait_share": "{:.0%} waiting for data",
        memory: "{:.1f} GB",
        "gpu_util": "GPU {:.0f} %",
        "learning_rate": "lr {:.2e}",
        "grad_norm": "gradient {:.2g}",
    }
    return words + [form.format(record[name]) for name, form in forms.items() if record.get(name) is not None]


def fitting(words: list[str], width: int) -> str:
    """Return the words joined by ` · `, without the last ones that a line of `width` cannot hold."""
    while len(words) > 1 and len(" · ".join(words)) > width:
        words = words[:-1]
    return " · ".join(words)


def epoch_line(record: Record, monitor: str, better: bool) -> str:
    """Return the line of an evaluation; a metric that is undefined is shown as n/a."""
    names = dict.fromkeys(["train/loss", "val/loss", monitor])
    shown = [f"{name} {_number(record[name])}" for name in names if name in record]
    if better and len(shown) > 1:
        shown[-1] += " (best)"
    return f"{record['stage']} epoch {record['epoch'] + 1:>3} · step {record['step']:>6} · " + " · ".join(
        shown
    )


def duration(seconds: float) -> str:
    """Return seconds as `0:01:23`, with days in front where there are any."""
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _best_checkpoint_name(run: RunFolder) -> str:
    try:
        return str(json.loads((run.checkpoints / "best.json").read_text())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
