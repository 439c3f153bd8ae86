"""What the memory bank holds, and the rows that are offered to it (DOMAINS.md S4.b-2).

Shapes: B rows, M slots of the bank, D features, K labels.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch

from voxray.core import collectives


@dataclass(frozen=True)
class BankState:
    """The bank at one moment. Valid slots are those below `count`, always: the bank never shrinks.

    `ptr` is the slot that is written next, `num_updates` counts updates, `num_seen` the vectors that were
    offered to the reservoir (of other strategies: that were kept), `num_selected` the rows that the last
    update kept. `mean_norm`, `feat_mean_D` and `feat_var_D` are running statistics of all rows.

    Of each slot it is kept what it is made of, blended as its vector is: `label_MK` is the share in which a
    finding is present and `known_MK` the share in which it is known, so that present / known is the share
    among what is known. `written_M` is the number of the last update that wrote it. `origin_M` is the
    `row_id` of the row with the largest share in it, and `share_M` that share: a write with momentum m leaves
    m · share of it.
    """

    memory_MD: torch.Tensor
    label_MK: torch.Tensor
    known_MK: torch.Tensor
    share_M: torch.Tensor
    origin_M: torch.Tensor
    written_M: torch.Tensor
    count: torch.Tensor
    ptr: torch.Tensor
    num_updates: torch.Tensor
    num_seen: torch.Tensor
    num_selected: torch.Tensor
    mean_norm: torch.Tensor
    feat_mean_D: torch.Tensor
    feat_var_D: torch.Tensor

    @classmethod
    def empty(cls, bank_size: int, dim: int, num_labels: int) -> Self:
        """Return a bank that holds nothing."""
        per_label = bank_size, num_labels
        return cls(
            memory_MD=torch.zeros(bank_size, dim),
            label_MK=torch.zeros(per_label),
            known_MK=torch.zeros(per_label),
            share_M=torch.zeros(bank_size),
            origin_M=torch.zeros(bank_size, dtype=torch.int64),
            written_M=torch.zeros(bank_size, dtype=torch.int64),
            count=torch.zeros((), dtype=torch.int64),
            ptr=torch.zeros((), dtype=torch.int64),
            num_updates=torch.zeros((), dtype=torch.int64),
            num_seen=torch.zeros((), dtype=torch.int64),
            num_selected=torch.zeros((), dtype=torch.int64),
            mean_norm=torch.zeros(()),
            feat_mean_D=torch.zeros(dim),
            feat_var_D=torch.zeros(dim),
        )

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the tensors."""
        return [field.name for field in fields(cls)]

    def clone(self) -> Self:
        """Return a copy in memory of its own."""
        return type(self)(**{name: getattr(self, name).clone() for name in self.names()})

    @property
    def is_filled(self) -> torch.Tensor:
        """Which slots hold a vector [M]."""
        return torch.arange(len(self.memory_MD), device=self.memory_MD.device) < self.count

    @torch.no_grad()
    def numbers(self) -> dict[str, float | list[float]]:
        """Return what the log shows of the bank: `count`, `selected`, the median and the largest `age` of the
        filled slots in updates, and per finding the share of what is known in them that is present
        (`labels`); NaN where there is nothing. The host waits for the device once.
        """
        filled_M = self.is_filled
        age_M = (self.num_updates - self.written_M).double()
        sorted_M = age_M.masked_fill(~filled_M, torch.inf).sort().values
        last = (self.count - 1).clamp(min=0)
        middle = (sorted_M[last // 2] + sorted_M[(last + 1) // 2]) / 2
        ages = torch.where(self.count > 0, torch.stack([middle, sorted_M[last]]), torch.nan)
        known_K = (self.known_MK * filled_M[:, None]).double().sum(0)
        labels_K = (self.label_MK * filled_M[:, None]).double().sum(0) / known_K
        counts = torch.stack([self.count, self.num_selected]).double()
        count, selected, median, largest, *labels = torch.cat([counts, ages, labels_K]).tolist()
        return {
            "count": count,
            "selected": selected,
            "age_median": median,
            "age_max": largest,
            "labels": labels,
        }


@dataclass(frozen=True)
class BankRows:
    """Rows that are offered to the bank: features, whether they are real, labels (NaN: unknown) and ids."""

    features_BD: torch.Tensor
    valid_B: torch.Tensor
    labels_BK: torch.Tensor
    row_B: torch.Tensor

    def gathered(self) -> "BankRows":
        """Return the rows of all workers in rank order, exchanged bit for bit in one message."""
        if not collectives.is_distributed():
            return self
        floats = torch.cat([self.features_BD, self.labels_BK.float(), self.valid_B.float()[:, None]], 1)
        ids = self.row_B[:, None].view(torch.int32)
        all_N = collectives.all_gather_rows(torch.cat([floats.view(torch.int32), ids], 1))
        dim = self.features_BD.shape[1]
        floats = all_N[:, :-2].contiguous().view(torch.float32)
        row_N = all_N[:, -2:].contiguous().view(torch.int64)[:, 0]
        return BankRows(floats[:, :dim], floats[:, -1] > 0, floats[:, dim:-1], row_N)

    @staticmethod
    def together(parts: "list[BankRows]") -> "BankRows":
        """Return the rows of several batches, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return BankRows(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in (field.name for field in fields(BankRows))
            )
        )
