"""The literal table of tasks, and how a class or function outside voxray is named: `module:attribute`."""

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from voxray.config.errors import InputError
from voxray.config.spellings import Aliases, Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import COMMON

if TYPE_CHECKING:
    from voxray.core.task import Task, TaskData

# A Ray worker starts as a bare process, so tasks are looked up here and not registered by importing them.
TASKS: dict[str, tuple[str, str]] = {
    "cxr_memory": ("voxray.tasks.cxr_memory.config:Config", "voxray.tasks.cxr_memory.task:CxrMemory"),
    "brain_text": ("voxray.tasks.brain_text.config:Config", "voxray.tasks.brain_text.task:BrainText"),
    "fmri_clip": ("voxray.tasks.fmri_clip.config:Config", "voxray.tasks.fmri_clip.task:FmriClip"),
    "hyperspectral": (
        "voxray.tasks.hyperspectral.config:Config",
        "voxray.tasks.hyperspectral.task:Hyperspectral",
    ),
    "mindeye": ("voxray.tasks.mindeye.config:Config", "voxray.tasks.mindeye.task:MindEyeTask"),
}


def import_object(reference: str) -> Any:
    """Return the object that `module:attribute` names; modules of the working directory are found too.

    Raises InputError when the module or the attribute does not exist.
    """
    module_name, _, attribute = reference.partition(":")
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.append(working_directory)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"'{reference}' cannot be imported: {error}; write `module:name`, importable from here"
        ) from error


def config_class(task: str) -> type[RunConfig]:
    """Return the config class of a task: from the table, or `Class.Config` of a task outside voxray."""
    if task in TASKS:
        return import_object(TASKS[task][0])
    found = import_object(_outside(task))
    if not hasattr(found, "Config"):
        raise InputError(f"'{task}' is no task: it has no `Config`; name a subclass of voxray.core.task.Task")
    return found.Config


def aliases(task: str) -> dict[str, str | Spelling]:
    """Return the guides' spellings that a task understands: the common ones, and its own over them."""
    return {**COMMON, **own_aliases(task)}


def own_aliases(task: str) -> Aliases:
    """Return `ALIASES` of the task's config module; empty for a task outside voxray."""
    if task not in TASKS:
        return {}
    return getattr(importlib.import_module(TASKS[task][0].partition(":")[0]), "ALIASES", {})


def task_data(task: str) -> "type[TaskData]":
    """Return the class that makes and reads the data of the task that a config names."""
    return import_object(TASKS[task][1] if task in TASKS else _outside(task))


def task_class(task: str) -> "type[Task]":
    """Return the Task class that a config's `task` names. Raises InputError where there is no model yet."""
    from voxray.core.task import Task

    found = task_data(task)
    if not issubclass(found, Task):
        raise InputError(f"task '{task}' has no model yet: only `voxray data` and its readers know it")
    return found


def figures_module(task: str) -> ModuleType | None:
    """Return the torch-free `figures` beside the task's config; None without one and for a task outside
    voxray.
    """
    if task not in TASKS:
        return None
    name = TASKS[task][0].partition(":")[0].rpartition(".")[0] + ".figures"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _outside(task: str) -> str:
    if ":" in task:
        return task
    near = difflib.get_close_matches(task, TASKS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"voxray has: {', '.join(TASKS)};"
    raise InputError(f"no task is called '{task}'; {hint} a task of your own is written `module:Class`")
