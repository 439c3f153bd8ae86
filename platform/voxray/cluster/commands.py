"""What may be run elsewhere: voxray's own commands, and the name that such a run goes by."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from voxray.config.errors import InputError
from voxray.config.secrets import is_secret

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
COMMANDS = ("train", "tune", "ablate", "evaluate", "predict", "data")


def checked_command(words: Sequence[str]) -> tuple[str, ...]:
    """Return a command's words, with `train`, `tune` or `ablate` in front where only a file is named.

    Raises InputError for no command, one that cannot be sent, and a value that looks like a secret: a job's
    command stands in Ray's Jobs API, in logs and in the process list.
    """
    if not words:
        raise InputError("which command? write it after `--`, e.g. `-- train cxr_memory/dev_fast`")
    for word in words:
        key, found, value = word.lstrip("-").partition("=")
        if found and is_secret(key) and not _is_plain(value):
            raise InputError(
                f"'{key}' looks like a secret, and a job's command can be read by everybody on the cluster; "
                "set it in the environment of the cluster's machines"
            )
    first = words[0]
    if first in COMMANDS:
        return tuple(words)
    return (_command_of(first), *words)


def name_of(words: Sequence[str]) -> str:
    """Return the name of what a command makes, a run's or a study's. Raises InputError for a wrong one."""
    given = [word.partition("=")[2] for word in words if re.match(r"(--)?run\.name=", word)]
    name = given[-1] if given else _stem(words)
    if not NAME.fullmatch(name):
        raise InputError(f"run.name={name!r} is no name: use A-Z, a-z, 0-9, '.' (not first), '_' and '-'")
    return name


def _is_plain(value: str) -> bool:
    """Whether a value is empty, a number or a truth value: `blank_token=0` is no secret."""
    return re.fullmatch(r"[-+.0-9eE]*|true|false|null|none", value, re.IGNORECASE) is not None


def _stem(words: Sequence[str]) -> str:
    reference = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), words[0])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(reference).stem).strip("-") or words[0]


def _command_of(reference: str) -> str:
    """Return `train` for an experiment, `tune` or `ablate` for a space. Raises InputError for neither."""
    from voxray.config.yaml import read_yaml
    from voxray.core.experiment import find_experiment

    spaces = [Path(reference)] if Path(reference).is_file() else _spaces(reference)
    for file in spaces[:1]:
        keys = read_yaml(file, str(file))[0].value
        if isinstance(keys, dict) and (command := {"search": "tune", "ablate": "ablate"}.get(_kind(keys))):
            return command
    try:
        find_experiment(reference)
    except InputError as error:
        raise InputError(
            f"'{reference}' is neither a command that can be sent ({', '.join(COMMANDS)}) nor an experiment "
            "or search space"
        ) from error
    return "train"


def _kind(keys: Mapping[str, object]) -> str:
    return next((kind for kind in ("search", "ablate") if kind in keys), "")


def _spaces(reference: str) -> list[Path]:
    if not NAME.fullmatch(Path(reference).name):
        return []
    name = Path(reference).stem
    return sorted(Path("search_spaces").glob(f"*/{name}.yaml"))
