"""Find an experiment by path, bare name or a guide's own path, and load it as its task's typed config."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.files import display, project_root, read_layers
from voxray.config.overrides import parse_override
from voxray.config.resolve import Resolved, resolve
from voxray.config.tree import Node
from voxray.core.registry import TASKS, aliases, config_class
from voxray.core.run_config import RunConfig

SUFFIXES = (".yaml", ".yml")
_PROGRAMS = {"1D_combo": "mindeye/combo_1d"}  # a guide's config that is a Python file → our experiment
_GUIDES = {"experiments": "cxr_memory", "training": "fmri_clip"}  # configs/FOLDER of a guide → its task


def load_experiment(reference: str, overrides: Sequence[str] = ()) -> Resolved[RunConfig]:
    """Load the experiment that `reference` names, with canonical `key=value` overrides.

    Raises InputError with everything that is wrong: an unknown or ambiguous name, keys, values, files.
    """
    file, notes = find_experiment(reference)
    layers, problems = read_layers(file)
    task = _task_of(layers, overrides, file)
    resolved = resolve(
        config_class(task),
        layers,
        overrides,
        aliases=aliases(task),
        problems=problems,
        notes=notes,
        file=file,
    )
    resolved = with_absolute_data(named_after_file(resolved, file))
    completed = resolved.config.completed()
    return resolved.with_values(completed, "what the files that it names say") if completed else resolved


def with_absolute_data(resolved: Resolved[RunConfig]) -> Resolved[RunConfig]:
    """Return the experiment with a folder in `data.path` made absolute: workers run elsewhere."""
    path = resolved.config.data.path
    if not path or ":" in path or Path(path).is_absolute():  # `synth:…` and URLs stay as they are
        return resolved
    absolute = resolved.with_values({"data.path": str(Path(path).absolute())}, resolved.sources["data.path"])
    return replace(absolute, spelled=resolved.spelled)


def named_after_file(resolved: Resolved[RunConfig], file: Path) -> Resolved[RunConfig]:
    """Return the experiment with its file's name where it says none itself."""
    if resolved.config.experiment_name:
        return resolved
    return resolved.with_values(
        {"experiment_name": re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip(".")}, "the file's name"
    )


def default_config(task: str, values: Mapping[str, Any], source: str) -> Resolved[RunConfig]:
    """Return the task's defaults with `values` (dotted path → value); no file is read.

    Raises InputError naming `source` and every wrong key and value.
    """
    return resolve(config_class(task), [Node.of({"task": task}, source)], aliases=aliases(task)).with_values(
        values, source
    )


def find_experiment(reference: str) -> tuple[Path, list[str]]:
    """Return an experiment's file and, where that is not the path that was given, a note with the real one.

    Raises InputError for a name that no file has (with the nearest) or several have (with all of them), and
    for a Python file that is not one of the guides'.
    """
    path = Path(reference)
    if path.suffix == ".py":
        return find_experiment(_of_program(path))[0], [
            f"{reference} is {_of_program(path)} here; the Python file itself is not read"
        ]
    if path.is_file():
        return path.resolve(), []
    files = experiment_files()
    wanted = path.with_suffix("").parts if path.suffix in SUFFIXES else path.parts
    if wanted[:1] == ("configs",):  # a guide's own path: its folder tells whose
        task = _GUIDES.get(wanted[-2])
        files = [file for file in files if file.parent.name == task] or files
        wanted = wanted[-1:]
    if wanted[:1] == ("experiments",):
        wanted = wanted[1:]
    found = [file for file in files if file.with_suffix("").parts[-len(wanted) :] == wanted] if wanted else []
    if len(found) > 1:
        raise InputError(
            f"'{reference}' names several experiments: {', '.join(map(display, found))}; write one of these"
        )
    if not found:
        raise InputError(_no_such_experiment(reference, files))
    return found[0], [f"{reference} is {display(found[0])}"]


def _of_program(path: Path) -> str:
    """Return the experiment that stands for a guide's Python file. Raises InputError for any other."""
    if path.stem not in _PROGRAMS:
        raise InputError(
            f"'{path}' is a Python file, and reading a config must not run code; write its values as YAML "
            "over a base, e.g. `_base_: experiments/mindeye/combo_1d.yaml`, or on the command line"
        )
    return _PROGRAMS[path.stem]


def experiment_files() -> list[Path]:
    """Return the experiment files of the project around the working directory, sorted by path."""
    root = project_root(Path.cwd())
    return (
        sorted(path for path in (root / "experiments").rglob("*") if path.suffix in SUFFIXES) if root else []
    )


def _task_of(layers: Sequence[Node], overrides: Sequence[str], file: Path) -> str:
    nodes = [node for layer in layers if (node := layer.get(("task",))) is not None]
    nodes += [parse_override(text)[1] for text in overrides if text.startswith("task=")]
    if not nodes:
        raise InputError(
            f"{display(file)}: `task` is missing; add e.g. `task: {next(iter(TASKS))}` (`voxray ls tasks`). "
            f"If it is a guide's file, `voxray show {display(file)}` prints it in our words"
        )
    if not isinstance(nodes[-1].value, str):
        raise InputError(f"{nodes[-1].source}: task: must be a task's name or `module:Class`")
    return nodes[-1].value


def _no_such_experiment(reference: str, files: list[Path]) -> str:
    if not files:
        return f"there is no file '{reference}', and no experiments/ folder at or above {Path.cwd()}"
    names = {file.stem: file for file in files} | {display(file): file for file in files}
    near = difflib.get_close_matches(Path(reference).stem, names, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`voxray ls experiments` lists them"
    return f"there is no experiment '{reference}'; {hint}"
