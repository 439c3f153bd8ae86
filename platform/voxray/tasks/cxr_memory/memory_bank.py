"""The memory bank: what is kept of the features seen, and what a query gets back (DOMAINS.md S4.b-2).

Shapes: B rows of a batch, M slots of the bank, D features, K labels (of `nearest`: retrieved vectors).
"""

import torch
from torch import nn
from torch.nn import functional as F

from voxray.tasks.cxr_memory.bank_state import BankRows, BankState
from voxray.tasks.cxr_memory.bank_update import take_in, updated
from voxray.tasks.cxr_memory.config import MemoryConfig


class MemoryBank(nn.Module):
    """Features kept across batches. `forward` adds what it retrieves; `write` is called once per successful
    update, so that retrieval is the same for all of an update's micro-batches.

    Its state lies in buffers, float32 and int64, so that it is saved, restored and hashed with the model. It
    takes part in no gradient: one flows through the weights of what is retrieved to the query alone.
    """

    memory_MD: torch.Tensor
    count: torch.Tensor

    def __init__(self, config: MemoryConfig, dim: int, num_labels: int, seed: int = 0) -> None:
        """Make an empty bank for features of `dim` numbers; `seed` is the reservoir's."""
        super().__init__()
        self.config, self.seed = config, seed
        self._expected: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._offered: list[BankRows] = []  # the rows of the update's micro-batches, on this worker
        for name, value in vars(BankState.empty(config.bank_size, dim, num_labels)).items():
            self.register_buffer(name, value)

    @property
    def state(self) -> BankState:
        """The bank as it stands, in its own memory."""
        return BankState(**{name: getattr(self, name) for name in BankState.names()})

    def expect(self, valid_B: torch.Tensor, labels_BK: torch.Tensor, row_B: torch.Tensor) -> None:
        """Say what the rows of the next forward pass are: which are real, their labels (NaN: unknown) and
        their ids. Rows that were not announced are not offered to the bank.
        """
        self._expected = valid_B, labels_BK, row_B

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return features plus what is retrieved for them [B, D]; the features alone while the bank is empty.

        In training the announced rows are kept until `write` or `forget`; not in a pass without gradients,
        which is no part of an update.
        """
        bank, expected = self.state, self._expected
        self._expected = None
        if self.training and expected is not None:
            rows = BankRows(features_BD.detach().to(self.memory_MD.dtype), *expected)
            if torch.is_grad_enabled():
                self._offered.append(rows)
            if self.config.update_order == "before_retrieve":
                bank = updated(bank, rows.gathered(), self.config, self.seed)
        # Similarities decide what is taken, so they are in full precision.
        with torch.autocast(features_BD.device.type, enabled=False):
            found_BD = retrieve(bank, features_BD, self.config)
        return features_BD + found_BD

    def forget(self) -> None:
        """Drop the rows of an update that was not made."""
        self._offered = []

    def write(self) -> None:
        """Take in the update's rows, batch by batch in rank order: the same on all workers."""
        offered = [rows.gathered() for rows in self._offered]
        self.forget()
        if offered:
            take_in(self.state, BankRows.together(offered), self.config, self.seed)


def retrieve(bank: BankState, query_BD: torch.Tensor, config: MemoryConfig) -> torch.Tensor:
    """Return the weighted sum of each query's nearest vectors [B, D], in the query's dtype.

    With `normalize_retrieved: true` the sum gets the query's length. A row for which nothing counts gets
    zeros.
    """
    slot_BK, weight_BK = nearest(bank, query_BD, config)
    found_BD = torch.einsum("bk,bkd->bd", weight_BK, bank.memory_MD.detach().to(weight_BK.dtype)[slot_BK])
    if config.normalize_retrieved is True:
        length_B1 = query_BD.to(weight_BK.dtype).norm(dim=1, keepdim=True)
        found_BD = found_BD / (found_BD.norm(dim=1, keepdim=True) + 1e-12) * length_B1
    return found_BD.to(query_BD.dtype)


def nearest(
    bank: BankState, query_BD: torch.Tensor, config: MemoryConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the slots [B, k] of each query's nearest vectors, the nearest first, and their weights [B, k],
    k = min(top_k, M).

    `normalize_retrieved` says which similarity. Slots whose cosine to the query reaches
    `self_match_threshold` (1: none) do not count: their weight is 0, as that of empty slots. Of equal
    similarities the lower slot comes first. Weights add up to 1, or to 0 where nothing counts.
    """
    precise = torch.promote_types(query_BD.dtype, torch.float32)
    memory_MD, precise_BD = bank.memory_MD.detach().to(precise), query_BD.to(precise)
    unit_query_BD, unit_memory_MD = F.normalize(precise_BD, dim=1), F.normalize(memory_MD, dim=1)
    cosine_BM = unit_query_BD @ unit_memory_MD.T
    match config.normalize_retrieved:
        case False | "none":
            similarity_BM = precise_BD @ memory_MD.T / query_BD.shape[1] ** 0.5
        case "query_only":
            similarity_BM = unit_query_BD @ memory_MD.T
        case "memory_only":
            similarity_BM = precise_BD @ unit_memory_MD.T
        case _:
            similarity_BM = cosine_BM
    usable_BM = bank.is_filled.expand_as(cosine_BM)
    if config.self_match_threshold < 1:
        usable_BM = usable_BM & (cosine_BM.detach() < config.self_match_threshold)
    ranked_BM = similarity_BM.detach().masked_fill(~usable_BM, -torch.inf)
    slot_BK = ranked_BM.sort(dim=1, descending=True, stable=True).indices[:, : config.top_k]
    usable_BK = usable_BM.gather(1, slot_BK)
    # Softmax over what is usable alone; the largest is a constant that cancels, so it needs no gradient.
    chosen_BK = similarity_BM.gather(1, slot_BK)
    largest_B1 = (
        chosen_BK.detach().masked_fill(~usable_BK, -torch.inf).amax(1, keepdim=True).nan_to_num(neginf=0)
    )
    weight_BK = torch.where(usable_BK, (chosen_BK - largest_B1).exp(), 0.0)
    return slot_BK, weight_BK / weight_BK.sum(1, keepdim=True).clamp(min=torch.finfo(precise).tiny)
