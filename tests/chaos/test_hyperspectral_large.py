"""The large masked autoencoder split over two workers: its real layout, all 313 M parameters. Slow."""

import json
from pathlib import Path

import pytest

from hyperspectral_workers import update_large
from voxray.testing.spawn import spawn

pytestmark = pytest.mark.chaos  # 6 GB, and two minutes on two quiet cores


def test_large_over_two_workers_equals_one(tmp_path: Path) -> None:
    """Three updates with AdamW: losses and each weight's norm after them, to 1e-5.

    A norm of 313 M gradients adds them up in float32, in another order on two workers: 2e-5 apart.
    """
    found = {}
    for name, strategy, world_size in (("one", "ddp", 1), ("two", "fsdp", 2)):
        (tmp_path / name).mkdir()
        spawn(world_size, update_large, str(tmp_path / name), strategy)
        found[name] = json.loads((tmp_path / name / "found.json").read_text())
    one, two = found["one"], found["two"]
    assert one[0] == two[0] > 312e6  # 313.4 M with the 400 places of 500 × 500 pixels
    assert (one[1], two[1]) == (False, True)
    assert [sorted(update) for update in one[2]] == [["grad_norm", "mse", "range", "sam", "variance"]] * 3
    for ours, theirs in zip(one[2], two[2], strict=True):
        assert ours.pop("grad_norm") == pytest.approx(theirs.pop("grad_norm"), rel=1e-4)
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    assert one[3] == pytest.approx(two[3], rel=1e-5, abs=1e-7)
