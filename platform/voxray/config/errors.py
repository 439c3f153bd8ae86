"""The errors a user sees: each is one clear sentence (or several, collected) that says what to mend."""


class VoxrayError(Exception):
    """Base of our errors. The command line prints the message without a traceback."""

    exit_code = 1


class RunError(VoxrayError):
    """A run, a trial or a study failed although its input was right. Exit code 1."""


class InputError(VoxrayError):
    """The input is wrong: a key, a file, a row. The message names the place and the mend. Exit code 2."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        """Collect one or more problems, so that the user sees all of them at once."""
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, ...]]:
        """Pickle by the problems, so that the error crosses a Ray process boundary whole."""
        return type(self), self.problems
