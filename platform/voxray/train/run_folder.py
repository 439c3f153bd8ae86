"""RUN: the folder of one run, with its config, where it came from, its log and its checkpoints."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError, RunError, VoxrayError
from voxray.config.resolve import leaves
from voxray.core.run_config import RunConfig
from voxray.data.location import working_folder

# What may differ when a run is resumed (DESIGN.md section 5); more epochs are checked apart.
FREE_SECTIONS = (
    "scale",
    "logging",
    "checkpoints",
    "storage",
    "description",
    "hypothesis",
    "expected",
    "tags",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        """The run's log, one JSON object per line."""
        return self.path / "log.jsonl"

    @property
    def config_file(self) -> Path:
        """The resolved config and every value's source."""
        return self.path / "config.json"

    @property
    def stop_file(self) -> Path:
        """Where it lies, the workers save and end."""
        return self.path / "stop"

    @property
    def verdict_file(self) -> Path:
        """Why no further attempt is to be made: an error's kind and message."""
        return self.path / "verdict.json"

    @property
    def failures_file(self) -> Path:
        """What ended an attempt: one JSON object per line; see `faults.py`."""
        return self.path / "failures.jsonl"

    @property
    def micro_batch_parts(self) -> int:
        """Into how many parts each micro-batch is cut, since the memory did not hold it whole; 1: it did."""
        file = self.path / "memory.json"
        return int(json.loads(file.read_text())["micro_batch_parts"]) if file.exists() else 1

    def write_verdict(self, error: VoxrayError) -> None:
        """Write down that `error` ends the run, so that no further attempt is made."""
        kind = "input" if isinstance(error, InputError) else "run"
        partial = self.path / f".verdict-{os.getpid()}"
        partial.write_text(json.dumps({"kind": kind, "message": str(error)}))
        partial.rename(self.verdict_file)

    def verdict(self) -> VoxrayError | None:
        """Return the error that ended the run in a worker, if one did."""
        if not self.verdict_file.exists():
            return None
        written = json.loads(self.verdict_file.read_text())
        return (
            InputError(*written["message"].splitlines())
            if written["kind"] == "input"
            else RunError(written["message"])
        )

    def begin_attempts(self) -> None:
        """Forget what an earlier command left: a wish to stop, its verdict, what ended its attempts."""
        for file in (self.stop_file, self.verdict_file, self.failures_file):
            file.unlink(missing_ok=True)

    def cut_micro_batches(self, parts: int) -> None:
        """Let every later attempt cut each micro-batch into `parts`."""
        (self.path / "memory.json").write_text(json.dumps({"micro_batch_parts": parts}))

    def config(self) -> dict[str, Any]:
        """Return the resolved config that the run was started with. Raises InputError when this is no run."""
        file = self.config_file
        try:
            return json.loads(file.read_text())["config"]
        except FileNotFoundError as error:
            raise InputError(
                f"{self.path} is not a run: it holds no config.json; see `voxray ls runs`"
            ) from error
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{file} is broken ({error}); train under another name with run.name="
            ) from error

    def write_config(self, config: RunConfig, sources: dict[str, str]) -> None:
        """Save the resolved config and every value's source."""
        self.path.mkdir(parents=True, exist_ok=True)
        parts = {"config": config.model_dump(mode="json"), "sources": sources}
        text = ",\n".join(f'"{name}": {_keys_on_lines(part)}' for name, part in parts.items())
        self.config_file.write_text(f"{{{text}}}\n")

    def log(self, record: dict[str, Any]) -> None:
        """Append one record; NaN and infinities become null."""
        line = json.dumps(plain(record)).encode() + b"\n"
        file = os.open(self.log_file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            was_cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by a kill
            os.write(file, b"\n" + line if was_cut else line)
        finally:
            os.close(file)

    def records(self) -> list[dict[str, Any]]:
        """Return the log's records as of one uninterrupted run; empty where nothing was logged. See
        `read_log`.
        """
        return read_log(self.log_file) if self.log_file.exists() else []

    def is_finished(self) -> bool:
        """Whether the run's last record says that it ended by itself."""
        records = self.records()
        return bool(records) and records[-1]["kind"] == "end" and records[-1]["status"] == "finished"


def _keys_on_lines(part: dict[str, Any]) -> str:
    """Return a map as JSON, a key per line; `indent` takes a slow writer, which a search would feel."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
    return f"{{\n{lines}\n}}"


def run_folder(config: RunConfig) -> RunFolder:
    """Return the run's folder: <storage.path>/<task>/<run name>; a task outside voxray goes by its class
    name. Where `storage.path` is a URL, it is this machine's copy.
    """
    return RunFolder(working_folder(config.storage.path) / config.task.rpartition(":")[2] / config.run_name)


def of_last_stage(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations of the stage that a run has come to: the run's best is the best of that stage,
    and an earlier stage may have been evaluated on other rows (`data.filter`).
    """
    return [record for record in evaluations if record.get("stage") == evaluations[-1].get("stage")]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return a log's records as of one uninterrupted run.

    The file is only ever appended to. A `resume` record takes back what was logged after the checkpoint that
    it names, since the resumed run made those updates again. A line that a kill cut short stands last or
    before a `resume`; any other line that is no JSON map is an InputError.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; restore it or delete it") from error
    records: list[dict[str, Any]] = []
    broken = ""
    for number, line in enumerate(lines[:-1], 1):
        record = _json_map(line)
        if record is None:
            broken = broken or f"{path}:{number} is no JSON map; delete that line"
            continue
        if record.get("kind") == "resume":
            broken = ""
            step = record["step"]
            records = [
                r for r in records if r.get("step", 0) <= step and r.get("kind") not in ("end", "rank")
            ]
        if broken:
            raise InputError(broken)
        records.append(record)
    if broken:
        raise InputError(broken)
    return records


def _json_map(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN and infinities become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def differences(before: dict[str, Any], now: dict[str, Any], after_training: Sequence[str] = ()) -> list[str]:
    """Return, a line each, the values that keep a run from being resumed: all but FREE_SECTIONS, sections
    that training does not read (`RunConfig.AFTER_TRAINING`), and more epochs.
    """
    lines = []
    free = (*FREE_SECTIONS, *after_training)
    old, new = ({".".join(path): value for path, value in leaves(config)} for config in (before, now))
    for path in sorted(old.keys() | new.keys()):
        was, now_is = old.get(path), new.get(path)
        if was == now_is or path.split(".")[0] in free:
            continue
        if path.endswith("epochs") and isinstance(was, int) and isinstance(now_is, int) and now_is > was:
            continue
        lines.append(f"{path}: {was!r} before, {now_is!r} now")
    return lines
