"""What a command's leftover arguments mean: the experiment and its overrides, in any of their spellings."""

from collections.abc import Sequence

from voxray.config.errors import InputError
from voxray.config.overrides import read_arguments

# For typer commands that take overrides: unknown options and extra words reach the command in `context.args`.
EXTRA_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def overrides_from(args: Sequence[str]) -> list[str]:
    """Return canonical `key=value` overrides, in order, from any of the spellings.

    Raises InputError for anything that is none of these.
    """
    arguments = read_arguments(args)
    if arguments.experiments:
        raise InputError(f"--config {arguments.experiments[0]}: this command takes no experiment")
    _refuse_words(arguments.words)
    return list(arguments.overrides)


def experiment_and_overrides(experiment: str | None, args: Sequence[str]) -> tuple[str, list[str]]:
    """Return the experiment, named first or by `--config FILE`, and the canonical overrides.

    `experiment` is typer's first positional argument, which may itself be an option (`train --config FILE`).
    Raises InputError when no experiment is named, or more than one.
    """
    arguments = read_arguments([*([experiment] if experiment is not None else []), *args])
    words = list(arguments.words)
    named = list(arguments.experiments) or words[:1]
    _refuse_words(words if arguments.experiments else words[1:])
    if not named:
        raise InputError(
            "which experiment? name one, e.g. `cxr_memory/dev_fast`, or a file; `voxray ls experiments` "
            "lists them"
        )
    if len(named) > 1:
        raise InputError(f"several experiments were named: {', '.join(named)}; name one")
    return named[0], list(arguments.overrides)


def _refuse_words(words: Sequence[str]) -> None:
    if words:
        raise InputError(
            *(f"'{word}' is not an override; write key=value, e.g. training.epochs=2" for word in words)
        )
