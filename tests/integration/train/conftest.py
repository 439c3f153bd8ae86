"""Fixtures of what a training run leaves behind."""

import pytest

from voxray.cli.main import app


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    """Run one command and return what it printed."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        app(args=[str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return run
