"""One command of the program in this process, for tests."""

import pytest

from voxray.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run one command that exits with 2 and return its message."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err
