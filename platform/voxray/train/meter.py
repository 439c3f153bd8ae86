"""Loss terms added up over updates, and how fast they came."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from voxray.core import collectives


@dataclass
class Totals:
    """Each loss term's [sum, count] over all workers' entries, added up in float64; equal on all workers."""

    terms: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Take one update's [sum, count] per term."""
        for name, value in terms.items():
            self.terms[name] = value if name not in self.terms else self.terms[name] + value

    def means(self) -> dict[str, float]:
        """Return `train/loss`, the sum of the terms' means, and each mean where there are several."""
        means = {f"train/{name}": float(value[0] / value[1]) for name, value in self.terms.items()}
        if not means:
            return {}
        return {"train/loss": sum(means.values()), **(means if len(means) > 1 else {})}

    def state_dict(self) -> dict[str, list[float]]:
        """Return plain numbers; float64 survives as they are."""
        return {name: [float(number) for number in value] for name, value in self.terms.items()}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Totals":
        """Return the totals that `state_dict` wrote."""
        return Totals({name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()})


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
