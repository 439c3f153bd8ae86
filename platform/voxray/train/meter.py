"""Loss terms added up over updates, and how fast they came."""

import time
from dataclasses import dataclass, field

import torch

from voxray.core import collectives

# One update's terms: name → (sum, count) over all workers' entries, [] each.
Terms = dict[str, tuple[torch.Tensor, torch.Tensor]]
MOST_UNREAD = 64


class Totals:
    """Each loss term's sum and count over updates, added up in float64, one update after the other.

    What an update gives is only read when it is asked for, so that the host need not wait for a GPU.
    """

    def __init__(self, sums: dict[str, list[float]] | None = None) -> None:
        """Begin with `sums`: name → [sum, count]."""
        self._sums = sums or {}
        self._unread: list[Terms] = []

    def add(self, terms: Terms) -> None:
        """Take one update's terms."""
        self._unread.append(terms)
        if len(self._unread) >= MOST_UNREAD:
            self._read()

    def means(self) -> dict[str, float]:
        """Return `train/loss`, the sum of the terms' means, and each mean where there are several."""
        self._read()
        means = {f"train/{name}": value[0] / value[1] for name, value in self._sums.items()}
        if not means:
            return {}
        return {"train/loss": sum(means.values()), **(means if len(means) > 1 else {})}

    def state_dict(self) -> dict[str, list[float]]:
        """Return plain numbers; float64 survives as they are."""
        self._read()
        return {name: list(value) for name, value in self._sums.items()}

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        tensors = [number for terms in unread for pair in terms.values() for number in pair]
        numbers = iter(_float64(tensors))
        for terms in unread:
            for name in terms:
                total = self._sums.setdefault(name, [0.0, 0.0])
                total[0] += next(numbers)
                total[1] += next(numbers)


def _float64(tensors: list[torch.Tensor]) -> list[float]:
    """Return numbers [] of one device; those of a GPU together, since the host waits for each message."""
    if tensors[0].device.type == "cpu":
        return [float(tensor) for tensor in tensors]
    return torch.stack([tensor.double() for tensor in tensors]).tolist()


@dataclass
class Speed:
    """Rows and waiting time of this worker since it was made."""

    rows: int = 0
    waited_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, rows: int, waited_s: float) -> None:
        """Take an update's rows on this worker and the seconds it waited for them."""
        self.rows += rows
        self.waited_s += waited_s

    def read(self) -> dict[str, float]:
        """Return samples/s over all workers and this worker's share of time spent waiting for data."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rows = collectives.all_reduce_sum(torch.tensor(float(self.rows)))
        return {
            "samples_per_s": round(float(rows) / elapsed, 2),
            "data_wait_share": round(self.waited_s / elapsed, 4),
        }
