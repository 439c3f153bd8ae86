"""A run's part of the page: how it learned, how good it is, how fast it went, where it came from."""

import shlex
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from voxray.config.secrets import HIDDEN, flattened, masked, masked_command
from voxray.core.figures import Figure, TrainingView
from voxray.core.registry import figures_module
from voxray.report.alphas import alpha_figures
from voxray.report.curves import curve_figures, speed_figures
from voxray.report.evaluation import evaluation_sections
from voxray.report.page import (
    Block,
    Card,
    Code,
    Part,
    Section,
    Table,
    Text,
    Tone,
    about_of,
    duration,
    number,
)
from voxray.report.read import RunFiles, read_run

Numbers = dict[str, Any]


def run_part(folder: Path) -> Part:
    """Read a run's folder and return its part of the page. Raises InputError for a broken file."""
    run = read_run(folder)
    status, tone = _status(run)
    return Part(
        kind="run",
        name=str(folder.name),
        task=str(run.config.get("task", "")),
        folder=str(folder),
        status=status,
        tone=tone,
        about=about_of(run.config),
        tags=tuple(str(tag) for tag in run.config.get("tags") or ()),
        cards=_key_numbers(run),
        sections=[
            Section("Curves", _curves(run)),
            *evaluation_sections(run),
            Section("Speed and timings", _speed(run)),
            Section("Checkpoints", _checkpoints(run)),
            Section("Config", _config(run)),
            Section("Origin", _origin(run.provenance)),
        ],
    )


def _status(run: RunFiles) -> tuple[str, Tone]:
    if run.end:
        status = str(run.end.get("status", "ended"))
        return status, "good" if status == "finished" else "bad"
    if run.of_kind("step") or run.of_kind("epoch"):
        return "not finished (still running, or killed)", "plain"
    return "not started", "plain"


def _key_numbers(run: RunFiles) -> tuple[Card, ...]:
    epochs, steps = run.of_kind("epoch"), run.of_kind("step")
    best = (run.end.get("best") if run.end else None) or run.best
    cards = []
    if best:
        where = f"at update {best['step']}" if "step" in best else str(best.get("checkpoint", ""))
        cards.append(Card(f"best {best.get('metric', 'metric')}", number(best.get("value")), where))
    if epochs:
        cards.append(Card("last val/loss", number(epochs[-1].get("val/loss")), f"after {len(epochs)} epochs"))
    updates = max((record.get("step", 0) for record in [*steps, *epochs]), default=0)
    cards.append(Card("updates", number(updates)))
    cards.append(Card("time", duration(_total_s(run))))
    rates = _values(steps, "samples_per_s")
    if rates:
        cards.append(Card("rows per second", number(float(median(rates))), "median, all workers"))
    workers = (run.config.get("scale") or {}).get("num_workers")
    cards.append(Card("workers", number(workers)))
    return tuple(cards)


def _curves(run: RunFiles) -> list[Block]:
    epochs = run.of_kind("epoch")
    figures = [*curve_figures(run), *alpha_figures(run.of_kind("closed_form")), *_task_figures(run)]
    if not figures:
        return [Text("The log holds no updates yet.")]
    keys = dict.fromkeys(
        key for record in epochs for key, value in record.items() if not isinstance(value, list)
    )
    columns = tuple(key for key in keys if key != "kind")
    rows = [tuple(record.get(key) for key in columns) for record in epochs]
    return [*figures, *([Table(columns, rows, fold=f"All {len(rows)} epochs as numbers")] if rows else [])]


def _task_figures(run: RunFiles) -> list[Figure]:
    """Return what the task itself draws of a training; most tasks draw nothing."""
    module = figures_module(str(run.config.get("task", "")))
    draw = getattr(module, "training_figures", None)
    if draw is None:
        return []
    statistics = run.dataset.statistics if run.dataset is not None else {}
    return draw(TrainingView(run.config, run.records, statistics))


def _speed(run: RunFiles) -> list[Block]:
    steps, epochs, ranks = run.of_kind("step"), run.of_kind("epoch"), run.of_kind("rank")
    ends = _values(epochs, "time_s")
    spans = [after - before for before, after in pairwise(ends) if after > before]
    waits = _values(steps, "data_wait_share")
    cards = (
        Card("whole run", duration(_total_s(run))),
        Card("first logged update after", duration(min(_values(steps, "time_s"), default=None))),
        Card("one epoch", duration(median(spans) if spans else None), "median, validation included"),
        Card("waiting for data", f"{median(waits):.1%}" if waits else "–", "median share of the time"),
    )
    columns = ("rank", "rows", "host", "pid")
    rows = [
        tuple(str(record.get(key, "")) if key == "pid" else record.get(key) for key in columns)
        for record in ranks
    ]
    table = [Table(columns, rows, caption="Rows that each worker trained on in this run.")] if rows else []
    notes = [
        Text(f"Noted in the log: {record.get('text', '')}")
        for record in run.records
        if record.get("kind") == "note"
    ]
    return [cards, *speed_figures(run), *table, *notes]


def _checkpoints(run: RunFiles) -> list[Block]:
    if not run.checkpoints:
        return [Text("There are no checkpoints in this folder.")]
    best = run.best.get("checkpoint")
    state = {True: "complete", False: "unfinished, not used"}
    rows = [
        (entry.name, entry.num_bytes / 1e6, state[entry.complete], "best" if entry.name == best else "")
        for entry in run.checkpoints
    ]
    return [Table(("checkpoint", "size in MB", "state", ""), rows)]


def _config(run: RunFiles) -> list[Block]:
    rows = [
        (path, _shown(path, value), source_of(path, run.sources))
        for path, value in flattened(run.config).items()
    ]
    chosen = [row for row in rows if row[2] not in ("default", "")]
    columns = ("key", "value", "where it comes from")
    blocks: list[Block] = [
        Table(
            columns,
            chosen,
            caption="Values that differ from the task's defaults by a file or the command line.",
        )
    ]
    return [*(blocks if chosen else []), Table(columns, rows, fold=f"All {len(rows)} values")]


def _shown(path: str, value: Any) -> str:
    """Return a config value as YAML would show it, exactly; secrets are hidden."""
    hidden = masked(path, value)
    if hidden is None or isinstance(hidden, bool):
        return {None: "null", True: "true", False: "false"}[hidden]
    return '""' if hidden == "" else str(hidden)


def source_of(path: str, sources: dict[str, str]) -> str:
    """Return the source of a value, or of the nearest part of the path that has one."""
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return str(sources.get(path, ""))


def _origin(provenance: Numbers) -> list[Block]:
    if not provenance:
        return [Text("This run has no provenance.json: commit, versions and command are not known.")]
    diff = provenance.get("uncommitted_diff")
    rows = [
        ("commit", provenance.get("commit") or "not in a git repository"),
        ("uncommitted changes", f"yes, saved as {diff}" if diff else "none"),
        ("sha256 of requirements.lock", provenance.get("lock_sha256")),
        ("started", provenance.get("started")),
    ]
    versions = [(name, str(version)) for name, version in (provenance.get("versions") or {}).items()]
    words = masked_command([str(word) for word in provenance.get("command") or []])
    command = " ".join(word if HIDDEN in word else shlex.quote(word) for word in words)
    return [
        Table(("", "value"), rows),
        *([Code(command, "Command")] if command else []),
        *(
            [Table(("package", "version"), versions, fold=f"Versions of {len(versions)} packages")]
            if versions
            else []
        ),
    ]


def _total_s(run: RunFiles) -> float | None:
    """Return the seconds spent, over all attempts: the clock in the log starts again with each."""
    times = _values(run.records, "time_s")
    ended = [before for before, after in pairwise(times) if after < before]
    return sum(ended) + times[-1] if times else None


def _values(records: list[Numbers], key: str) -> list[float]:
    return [record[key] for record in records if isinstance(record.get(key), int | float)]
