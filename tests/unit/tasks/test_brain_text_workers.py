"""One worker equals two, with all three losses and adapters in the language model."""

from pathlib import Path

import numpy as np

from brain_text_workers import train_share
from voxray.testing.spawn import spawn
from voxray.train.run_folder import RunFolder


def numbers(folder: Path) -> np.ndarray:
    steps = [record for record in RunFolder(folder).records() if record["kind"] == "step"]
    assert len(steps) == 3
    return np.array([[step[f"train/{name}"] for name in ("loss", "align", "llm", "ctc")] for step in steps])


def test_one_worker_equals_two(tmp_path: Path) -> None:
    train_share(str(tmp_path / "one"))
    spawn(2, train_share, str(tmp_path / "two"))
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert abs(one[0, 0] - one[-1, 0]) > 1e-3  # something was learnt
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert {record["val/wer"] for record in RunFolder(tmp_path / "two").records() if "val/wer" in record} == {
        record["val/wer"] for record in RunFolder(tmp_path / "one").records() if "val/wer" in record
    }
