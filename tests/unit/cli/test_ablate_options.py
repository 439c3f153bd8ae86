"""`voxray ablate`: what is refused before anything starts."""

from pathlib import Path

import pytest

from voxray.cli.main import app
from voxray.config.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


def test_arms_that_lack_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    given = ["data.path=somewhere", f"storage.path={tmp_path}"]
    with pytest.raises(InputError, match=r"name its run or file with training\.parts\.voxel2clip=RUN"):
        app(args=["ablate", "mindeye/joint_or_frozen", *given], standalone_mode=False)
    assert not list(tmp_path.iterdir())
