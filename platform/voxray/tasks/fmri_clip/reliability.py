"""How well each voxel repeats itself, from training stimuli that were shown more than once.

`reliability` is split-half: the trials of each stimulus are dealt into two halves at random, and the halves'
means are correlated over stimuli, per voxel (DOMAINS S0.d). `ncsnr` is the noise ceiling's signal-to-noise
ratio of Allen et al. 2022 ("A massive 7T fMRI dataset …", Methods, Noise ceiling): the noise variance is that
over a stimulus' trials, unbiased, averaged over stimuli; the signal variance is what is left of all trials'
variance, at least 0; ncsnr = signal standard deviation / noise standard deviation. The mean of n trials then
has the noise ceiling ncsnr² / (ncsnr² + 1/n), the share of its variance that a model can explain.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from voxray.core.prepared_rows import PreparedRows

# Shape letters: N trials, S stimuli, V voxels.
SEED = 42  # of the halves (DOMAINS S0.d)
MIN_STIMULI = 3  # of two, halves correlate by 1 or -1
ROWS_AT_ONCE = 192  # 24 MB of NSD's voxels in float64
_DIGITS = 5
_EPSILON = 1e-10  # of a variance beside the squared mean: a constant voxel's is rounding alone


def voxel_statistics(rows: PreparedRows, column: str = "x") -> dict[str, list[float] | int]:
    """Return {reliability: [V], ncsnr: [V], num_repeated: stimuli}; empty with fewer than MIN_STIMULI.

    Trials are of one stimulus where subject and stimulus_id agree; a voxel that never changes has 0 of both.
    """
    stimuli = _repeated(rows)
    if len(stimuli) < MIN_STIMULI:
        return {}
    sums: _Sums | None = None
    for numbers, first_sizes, sizes in _pieces(stimuli):
        x_NV = rows.take(numbers, [column])[column]
        if sums is None:
            sums = _Sums.begun(x_NV)
        sums.add(x_NV, first_sizes, sizes)
    assert sums is not None, "there are stimuli"
    return {
        "reliability": sums.reliability().round(_DIGITS).tolist(),
        "ncsnr": sums.ncsnr().round(_DIGITS).tolist(),
        "num_repeated": len(stimuli),
    }


def _repeated(rows: PreparedRows) -> list[list[int]]:
    """Return the numbers of each repeated stimulus' trials, by the names of subject and stimulus."""
    if not len(rows):
        return []
    trials: dict[tuple[str, str], list[int]] = {}
    pairs = zip(rows.column("subject").tolist(), rows.column("stimulus_id").tolist(), strict=True)
    for number, pair in enumerate(pairs):
        trials.setdefault(pair, []).append(number)
    return [numbers for _, numbers in sorted(trials.items()) if len(numbers) > 1]


def _pieces(stimuli: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield trials of some stimuli, their first halves' sizes [S] and all their trials' [S].

    Of an odd number of trials, chance says which half gets the one more.
    """
    rng = np.random.default_rng(SEED)
    numbers: list[int] = []
    halves: list[int] = []
    sizes: list[int] = []
    for stimulus in stimuli:
        numbers += rng.permutation(stimulus).tolist()
        halves.append((len(stimulus) + int(rng.integers(2))) // 2)
        sizes.append(len(stimulus))
        if len(numbers) >= ROWS_AT_ONCE:
            yield np.array(numbers), np.array(halves), np.array(sizes)
            numbers, halves, sizes = [], [], []
    if numbers:
        yield np.array(numbers), np.array(halves), np.array(sizes)


@dataclass
class _Sums:
    """Sums in float64 over stimuli: of both halves' means a and b [2, V], their squares [2, V], products [V],
    and the unbiased variance over trials [V]; over trials: values and squares [V]. All minus `shift_V`.
    """

    shift_V: np.ndarray
    halves: np.ndarray
    squared_halves: np.ndarray
    products_V: np.ndarray
    noise_V: np.ndarray
    values_V: np.ndarray
    squares_V: np.ndarray
    num_stimuli: int = 0
    num_trials: int = 0

    @classmethod
    def begun(cls, x_NV: np.ndarray) -> "_Sums":
        """Begin with nothing; values are taken relative to these trials' mean, which keeps the sums exact."""
        num_voxels = x_NV.shape[1]
        halves, squared_halves = np.zeros((2, 2, num_voxels))
        products_V, noise_V, values_V, squares_V = np.zeros((4, num_voxels))
        shift_V = x_NV.mean(axis=0, dtype=np.float64)
        return cls(shift_V, halves, squared_halves, products_V, noise_V, values_V, squares_V)

    def add(self, x_NV: np.ndarray, first_sizes_S: np.ndarray, sizes_S: np.ndarray) -> None:
        """Add stimuli whose trials stand together, those of the first half before those of the second."""
        x_NV = x_NV - self.shift_V
        starts_S = np.cumsum(sizes_S) - sizes_S
        bounds = np.stack([starts_S, starts_S + first_sizes_S], axis=1).reshape(-1)
        sums_SPV = np.add.reduceat(x_NV, bounds, axis=0).reshape(len(sizes_S), 2, -1)
        half_sizes_SP = np.stack([first_sizes_S, sizes_S - first_sizes_S], axis=1)
        means_SPV = sums_SPV / half_sizes_SP[..., None]
        self.halves += means_SPV.sum(axis=0)
        self.squared_halves += np.einsum("spv,spv->pv", means_SPV, means_SPV)
        self.products_V += np.einsum("sv,sv->v", means_SPV[:, 0], means_SPV[:, 1])
        mean_SV = sums_SPV.sum(axis=1) / sizes_S[:, None]
        squares_NV = np.square(x_NV, out=x_NV)
        weight_S = 1.0 / (sizes_S - 1)
        self.noise_V += np.repeat(weight_S, sizes_S) @ squares_NV - (weight_S * sizes_S) @ np.square(mean_SV)
        self.values_V += sizes_S @ mean_SV
        self.squares_V += squares_NV.sum(axis=0)
        self.num_stimuli += len(sizes_S)
        self.num_trials += len(x_NV)

    def reliability(self) -> np.ndarray:
        """Return Pearson's correlation of the halves over stimuli, [V]; 0 where a half never changes."""
        num = self.num_stimuli
        variance = np.maximum(0.0, self.squared_halves / num - (self.halves / num) ** 2)
        covariance_V = self.products_V / num - self.halves.prod(axis=0) / num**2
        is_constant_V = (variance <= _EPSILON * self.shift_V**2).any(axis=0) | (variance == 0).any(axis=0)
        scale_V = np.sqrt(np.where(is_constant_V, 1.0, variance.prod(axis=0)))
        return np.where(is_constant_V, 0.0, np.clip(covariance_V / scale_V, -1.0, 1.0))

    def ncsnr(self) -> np.ndarray:
        """Return signal over noise standard deviation, [V]; 0 for a voxel that never changes."""
        noise_V = self.noise_V / self.num_stimuli
        num = self.num_trials
        total_V = (self.squares_V - self.values_V**2 / num) / (num - 1)
        is_constant_V = (total_V <= _EPSILON * self.shift_V**2) | (noise_V <= 0)
        signal_V = np.maximum(0.0, total_V - noise_V)
        return np.where(is_constant_V, 0.0, np.sqrt(signal_V / np.where(is_constant_V, 1.0, noise_V)))
