"""`voxray …`: the typer app, and how errors become messages and exit codes.

0 done, 1 the run failed, 2 the input is wrong (the message says what and how to mend it), 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from voxray import __version__
from voxray.cli import (
    ablate,
    compare,
    data,
    doctor,
    evaluate,
    export,
    fetch,
    launch,
    ls,
    predict,
    report,
    show,
    submit,
    train,
    tune,
)
from voxray.config.errors import VoxrayError

app = typer.Typer(
    name="voxray",
    help="Train, tune and ablate models that read brains and medical images, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain usage errors: rich costs a quarter of the start
    pretty_exceptions_enable=False,  # its tracebacks print local values, tokens among them
)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for noun in (
    data,
    fetch,
    train,
    evaluate,
    predict,
    export,
    tune,
    ablate,
    report,
    compare,
    show,
    ls,
    doctor,
    launch,
    submit,
):
    noun.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (`arguments` default to the process's) and exit with its code.

    Our errors print their message; anything unexpected keeps its traceback, and Python exits with 1.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="voxray")
    except VoxrayError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
