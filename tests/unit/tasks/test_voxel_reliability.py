"""Split-half reliability and ncsnr: numpy's correlation on the same halves, and a planted truth."""

from collections.abc import Sequence

import numpy as np
import pytest

from voxray.core.batch import Columns
from voxray.tasks.fmri_clip import reliability
from voxray.tasks.fmri_clip.reliability import voxel_statistics


class Rows:
    """Rows in memory, as `PreparedRows`."""

    def __init__(self, x_NV: np.ndarray, stimulus: Sequence[int], subject: Sequence[str] | None = None):
        self.x_NV = x_NV.astype(np.float32)
        self.texts = {
            "stimulus_id": np.array([f"nsd{i:05d}" for i in stimulus] + [None], object)[:-1],
            "subject": np.array([*(subject or ["subj01"] * len(x_NV)), None], object)[:-1],
        }

    def __len__(self) -> int:
        return len(self.x_NV)

    def column(self, name: str) -> np.ndarray:
        return self.texts[name]

    def take(self, rows: Sequence[int] | np.ndarray, names: Sequence[str]) -> Columns:
        assert list(names) == ["x"]
        return {"x": self.x_NV[np.asarray(rows)]}


def planted(num_stimuli: int, repeats: int, ratio_V: np.ndarray, seed: int = 0, offset: float = 0.0) -> Rows:
    """Return shuffled trials: signal with standard deviation ratio, noise with 1."""
    rng = np.random.default_rng(seed)
    stimulus = rng.permutation(np.repeat(np.arange(num_stimuli), repeats))
    signal = rng.standard_normal((num_stimuli, len(ratio_V))) * ratio_V
    return Rows(signal[stimulus] + rng.standard_normal((len(stimulus), len(ratio_V))) + offset, stimulus)


def test_two_trials_are_two_halves() -> None:
    """With two trials each, a half is a trial: numpy's corrcoef of the halves that were drawn."""
    rows = planted(60, 2, np.array([0.0, 0.5, 2.0, 1.0]), offset=1000.0)
    rows.x_NV[:, 3] = 7.0  # never changes
    found = voxel_statistics(rows)
    pairs = reliability._repeated(rows)
    numbers = np.concatenate([n for n, _, _ in reliability._pieces(pairs)])
    first, second = rows.x_NV[numbers[0::2]].astype(np.float64), rows.x_NV[numbers[1::2]].astype(np.float64)
    for voxel in range(3):
        expected = np.corrcoef(first[:, voxel], second[:, voxel])[0, 1]
        assert found["reliability"][voxel] == pytest.approx(expected, abs=2e-5)
    assert found["reliability"][3] == found["ncsnr"][3] == 0.0
    assert found["num_repeated"] == 60


def test_the_noise_ceilings_ratio_is_nsds() -> None:
    rows = planted(40, 3, np.array([0.3, 1.0, 3.0]))
    found = voxel_statistics(rows)
    stimulus = rows.texts["stimulus_id"]
    x = rows.x_NV.astype(np.float64)
    noise = np.mean([x[stimulus == name].var(axis=0, ddof=1) for name in np.unique(stimulus)], axis=0)
    expected = np.sqrt(np.maximum(0, x.var(axis=0, ddof=1) - noise) / noise)
    np.testing.assert_allclose(found["ncsnr"], expected, atol=2e-5)


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_a_planted_truth_is_found(repeats: int) -> None:
    """Halves of m and n trials correlate by s² / sqrt((s² + 1/m)(s² + 1/n)); ncsnr is s."""
    ratio_V = np.array([0.0, 0.4, 1.0, 2.5])
    found = voxel_statistics(planted(6000, repeats, ratio_V))
    m, n = repeats // 2, repeats - repeats // 2
    expected = ratio_V**2 / np.sqrt((ratio_V**2 + 1 / m) * (ratio_V**2 + 1 / n))
    np.testing.assert_allclose(found["reliability"], expected, atol=0.04)
    np.testing.assert_allclose(found["ncsnr"][1:], ratio_V[1:], rtol=0.1)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted(50, 3, np.array([0.5, 1.5]))
    whole = voxel_statistics(rows)
    monkeypatch.setattr(reliability, "ROWS_AT_ONCE", 7)
    pieces = voxel_statistics(rows)
    for name in ("reliability", "ncsnr"):
        np.testing.assert_allclose(whole[name], pieces[name], atol=2e-5)


def test_the_larger_half_is_either() -> None:
    sizes = [
        (first, all_)
        for _, firsts, alls in reliability._pieces([[0, 1, 2]] * 200)
        for first, all_ in zip(firsts.tolist(), alls.tolist(), strict=True)
    ]
    assert {all_ for _, all_ in sizes} == {3}
    assert 60 < sum(first == 1 for first, _ in sizes) < 140


def test_what_is_not_repeated_says_nothing() -> None:
    rows = planted(30, 1, np.array([1.0]))
    assert voxel_statistics(rows) == {}
    assert voxel_statistics(Rows(np.empty((0, 2)), [])) == {}
    # the same picture seen by two subjects is no repeat
    x_NV = np.random.default_rng(0).standard_normal((40, 2))
    assert voxel_statistics(Rows(x_NV, list(range(20)) * 2, ["a"] * 20 + ["b"] * 20)) == {}
