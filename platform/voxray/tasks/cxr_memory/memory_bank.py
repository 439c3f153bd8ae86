"""The memory bank: what is kept of the features seen, and what a query gets back (DOMAINS.md S4.b-2).

Shapes: B rows of a batch, M slots of the bank, D features.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from voxray.core import collectives
from voxray.core.randomness import uniform_rows
from voxray.tasks.cxr_memory.config import MemoryConfig

EPSILON = 1e-8
# Selections by a share of the batch; the others compare a score with a threshold, or take all.
BY_SHARE = ("diversity", "hybrid")


@dataclass(frozen=True)
class BankState:
    """The bank at one moment; none of its tensors is ever written in place.

    Valid rows are memory[:count], always: the bank never shrinks. `ptr` is the slot that is written next,
    `num_updates` counts batches, `num_seen` the vectors that were offered to the reservoir.
    """

    memory_MD: torch.Tensor
    count: torch.Tensor
    ptr: torch.Tensor
    num_updates: torch.Tensor
    num_seen: torch.Tensor
    mean_norm: torch.Tensor
    feat_mean_D: torch.Tensor
    feat_var_D: torch.Tensor

    @classmethod
    def empty(cls, bank_size: int, dim: int) -> Self:
        """Return a bank that holds nothing."""
        zero = torch.zeros((), dtype=torch.int64)
        return cls(
            torch.zeros(bank_size, dim),
            zero,
            zero,
            zero,
            zero,
            torch.zeros(()),
            torch.zeros(dim),
            torch.zeros(dim),
        )

    @property
    def is_filled(self) -> torch.Tensor:
        """Which slots hold a vector [M]."""
        return torch.arange(len(self.memory_MD), device=self.memory_MD.device) < self.count


class MemoryBank(nn.Module):
    """Features kept across batches. `forward` adds what it retrieves; `write` is called once per successful
    update, so that retrieval is the same for all of an update's micro-batches.

    Its state lies in buffers, float32 and int64, so that it is saved, restored and hashed with the model. It
    takes part in no gradient: one flows through the weights of what is retrieved to the query alone.
    """

    def __init__(self, config: MemoryConfig, dim: int, seed: int = 0) -> None:
        """Make an empty bank for features of `dim` numbers; `seed` is the reservoir's."""
        super().__init__()
        self.config, self.seed = config, seed
        self._offered: list[torch.Tensor] = []  # the features of the update's micro-batches, [B, D] each
        self._valid: list[torch.Tensor] = []
        for field in fields(BankState):
            value = getattr(BankState.empty(config.bank_size, dim), field.name)
            self.register_buffer(field.name, value.clone())

    @property
    def state(self) -> BankState:
        """The bank as it stands."""
        return BankState(**{field.name: getattr(self, field.name) for field in fields(BankState)})

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return features plus what is retrieved for them [B, D]; the features alone while the bank is empty.

        In training the features are kept until `write` or `forget`.
        """
        bank = self.state
        if self.training:
            self._offered.append(features_BD.detach())
            if self.config.update_order == "before_retrieve":
                all_ND = collectives.all_gather_rows(self._offered[-1])
                bank = updated(
                    bank, all_ND, torch.ones_like(all_ND[:, 0], dtype=torch.bool), self.config, self.seed
                )
        with torch.autocast(
            features_BD.device.type, enabled=False
        ):  # similarities decide, so in full precision
            found_BD = retrieve(bank, features_BD, self.config)
        return features_BD + found_BD

    def forget(self) -> None:
        """Drop the features of an update that was not made."""
        self._offered, self._valid = [], []

    def mark_valid(self, valid_B: torch.Tensor) -> None:
        """Say which rows of the last batch are real; the others only pad it."""
        self._valid.append(valid_B)

    @torch.no_grad()
    def write(self) -> None:
        """Take in the update's features, batch by batch in rank order: the same on all workers."""
        features = [collectives.all_gather_rows(offered) for offered in self._offered]
        valid = [collectives.all_gather_rows(valid) for valid in self._valid]
        assert len(features) == len(valid)
        self.forget()
        if features:
            self.update(torch.cat(features), torch.cat(valid))

    @torch.no_grad()
    def update(self, features_BD: torch.Tensor, valid_B: torch.Tensor) -> None:
        """Take in a batch, in the order of its rows over all workers; rows that are not valid pad it."""
        for name, value in vars(updated(self.state, features_BD, valid_B, self.config, self.seed)).items():
            getattr(self, name).copy_(value)


def retrieve(bank: BankState, query_BD: torch.Tensor, config: MemoryConfig) -> torch.Tensor:
    """Return the weighted sum of each query's nearest vectors [B, D], in the query's dtype.

    `normalize_retrieved` says which similarity, and for `true` that the sum gets the query's length. Slots
    whose cosine to the query reaches `self_match_threshold` (1: none) do not count; of equal similarities the
    lower slot comes first. A row with nothing left gets zeros.
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
    weight_BK = weight_BK / weight_BK.sum(1, keepdim=True).clamp(min=torch.finfo(precise).tiny)
    found_BD = torch.einsum("bk,bkd->bd", weight_BK, memory_MD[slot_BK])
    if config.normalize_retrieved is True:
        length_B1 = precise_BD.norm(dim=1, keepdim=True)
        found_BD = found_BD / (found_BD.norm(dim=1, keepdim=True) + 1e-12) * length_B1
    return found_BD.to(query_BD.dtype)


def updated(
    bank: BankState, features_BD: torch.Tensor, valid_B: torch.Tensor, config: MemoryConfig, seed: int = 0
) -> BankState:
    """Return the bank after a batch: its running statistics, then the vectors that are worth keeping."""
    features_BD = features_BD.detach().to(bank.memory_MD.dtype)
    norm_B = features_BD.norm(dim=1)
    bank = _with_statistics(bank, features_BD, norm_B, valid_B, config)
    kept_B = _selected(bank, features_BD, norm_B, valid_B, config, seed)
    if config.update_strategy == "reservoir" and config.compat == "ours":
        return _in_reservoir(bank, features_BD, kept_B, config, seed)
    return _written(bank, features_BD, kept_B, config)


def _with_statistics(
    bank: BankState,
    features_BD: torch.Tensor,
    norm_B: torch.Tensor,
    valid_B: torch.Tensor,
    config: MemoryConfig,
) -> BankState:
    """The first batch's own, then averages that move by 1 − momentum; variance over the batch, biased."""
    weight_B = valid_B.to(features_BD.dtype) / valid_B.sum().clamp(min=1)
    mean_D = weight_B @ features_BD
    var_D = weight_B @ (features_BD - mean_D).square()
    rate = torch.where(bank.num_updates == 0, 1.0, 1.0 - config.momentum)
    rate = torch.where(valid_B.any(), rate, 0.0)
    values = _values(bank)
    values["mean_norm"] = bank.mean_norm.lerp(weight_B @ norm_B, rate)
    values["feat_mean_D"] = bank.feat_mean_D.lerp(mean_D, rate)
    values["feat_var_D"] = bank.feat_var_D.lerp(var_D, rate)
    values["num_updates"] = bank.num_updates + valid_B.any()
    return BankState(**values)


def _selected(
    bank: BankState,
    features_BD: torch.Tensor,
    norm_B: torch.Tensor,
    valid_B: torch.Tensor,
    config: MemoryConfig,
    seed: int,
) -> torch.Tensor:
    """Return which rows are worth keeping [B]; all of them while the bank holds fewer than min_fill."""
    num = valid_B.sum()
    batch_norm = (norm_B * valid_B).sum() / num.clamp(min=1)
    reference = bank.mean_norm if config.update_strategy == "statistical" else batch_norm
    rarity_B = (norm_B - reference).abs() / (reference + EPSILON)
    if config.compat == "upstream":
        return valid_B & _selected_upstream(bank, features_BD, rarity_B, valid_B, config, seed)
    match config.update_strategy:
        case "rarity" | "statistical":
            chosen_B = rarity_B >= config.rarity_threshold
        case "diversity":
            chosen_B = _largest(_diversity(bank, features_BD), valid_B, config.select_fraction)
        case "hybrid":
            share = config.diversity_weight
            score_B = (1 - share) * rarity_B.clamp(max=1) + share * _diversity(bank, features_BD)
            chosen_B = _largest(score_B, valid_B, config.select_fraction)
        case "fifo" | "reservoir":
            chosen_B = torch.ones_like(valid_B)
    return valid_B & (chosen_B | (bank.count < config.fewest))


def _selected_upstream(
    bank: BankState,
    features_BD: torch.Tensor,
    rarity_B: torch.Tensor,
    valid_B: torch.Tensor,
    config: MemoryConfig,
    seed: int,
) -> torch.Tensor:
    """Upstream's rules (DOMAINS.md S4.b-1), for the ablation: what is typical is kept, and by `diversity`
    nothing ever.
    """
    likeness_B = torch.where(bank.count > 0, 1 - _diversity(bank, features_BD), 0.0)
    match config.update_strategy:
        case "rarity" | "statistical":
            return rarity_B < config.rarity_threshold
        case "diversity":
            return likeness_B < likeness_B[valid_B].quantile(config.select_fraction)
        case "hybrid":
            share = config.diversity_weight
            score_B = -(1 - share) * rarity_B - share * (1 - likeness_B)
            return score_B < score_B[valid_B].quantile(config.select_fraction)
        case "fifo":
            return torch.ones_like(valid_B)
        case "reservoir":
            chance = len(bank.memory_MD) / (bank.num_updates * valid_B.sum()).clamp(min=1)
            return _uniform(bank, len(valid_B), seed, valid_B.device) < chance.clamp(max=1)


def _diversity(bank: BankState, features_BD: torch.Tensor) -> torch.Tensor:
    """Return 1 − the largest cosine to a kept vector [B]; 1 while the bank is empty."""
    cosine_BM = F.normalize(features_BD, dim=1) @ F.normalize(bank.memory_MD, dim=1).T
    largest_B = cosine_BM.masked_fill(~bank.is_filled, -torch.inf).amax(1)
    return torch.where(bank.count > 0, 1 - largest_B, 1.0)


def _largest(score_B: torch.Tensor, valid_B: torch.Tensor, share: float) -> torch.Tensor:
    """Return which rows are among the ceil(share · n) largest of the n valid ones, ties by lower row [B]."""
    order_B = score_B.masked_fill(~valid_B, -torch.inf).sort(descending=True, stable=True).indices
    rank_B = torch.empty_like(order_B)
    rank_B[order_B] = torch.arange(len(order_B), device=order_B.device)
    # 0.2 · 5 in floating point is a little more than 1: the share is not to round up by that.
    return rank_B < (share * valid_B.sum().double() - 1e-9).ceil()


def _written(
    bank: BankState, features_BD: torch.Tensor, kept_B: torch.Tensor, config: MemoryConfig
) -> BankState:
    """Write the kept rows one after the other: a free slot takes a row as it is, a full bank blends it in.

    The j-th kept row goes to slot (ptr + j) mod M, so M rows at a time hit different slots: ceil(n / M)
    passes equal the row by row rule. Rows that are not kept are written to a slot of no meaning.
    """
    size = len(bank.memory_MD)
    rank_B = kept_B.cumsum(0) - 1
    slot_B = (bank.ptr + rank_B) % size
    is_free_B = bank.count + rank_B < size
    momentum = config.momentum if config.momentum_mode == "write" else 0.0
    memory_MD = bank.memory_MD
    for number in range(-(-len(kept_B) // size)):
        inside_B = kept_B & (rank_B // size == number)
        before_BD = memory_MD[slot_B]
        row_BD = torch.where(
            is_free_B[:, None], features_BD, momentum * before_BD + (1 - momentum) * features_BD
        )
        memory_MD = _placed(memory_MD, row_BD, slot_B, inside_B)
    num = kept_B.sum()
    values = _values(bank)
    values["memory_MD"], values["ptr"] = memory_MD, (bank.ptr + num) % size
    values["count"] = (bank.count + num).clamp(max=size)
    values["num_seen"] = bank.num_seen + num
    return BankState(**values)


def _in_reservoir(
    bank: BankState, features_BD: torch.Tensor, kept_B: torch.Tensor, config: MemoryConfig, seed: int
) -> BankState:
    """Algorithm R (Vitter 1985): the t-th vector, from 0, takes slot t while there is room, else a slot drawn
    from 0 … t, if the bank has that one. Of several for one slot the last stays.
    """
    size = len(bank.memory_MD)
    rank_B = kept_B.cumsum(0) - 1
    place_B = bank.num_seen + rank_B
    drawn_B = (_uniform(bank, len(kept_B), seed, kept_B.device).double() * (place_B + 1)).long()
    slot_B = torch.where(place_B < size, place_B, drawn_B)
    is_placed_B = kept_B & (slot_B < size)
    slot_B = torch.where(is_placed_B, slot_B, 0)
    # The last row for each slot: the largest rank that names it.
    last_M = torch.full((size,), -1, device=rank_B.device).scatter_reduce(
        0, slot_B, torch.where(is_placed_B, rank_B, -1), "amax"
    )
    values = _values(bank)
    values["memory_MD"] = _placed(
        bank.memory_MD, features_BD, slot_B, is_placed_B & (last_M[slot_B] == rank_B)
    )
    values["num_seen"] = bank.num_seen + kept_B.sum()
    values["count"] = values["num_seen"].clamp(max=size)
    values["ptr"] = values["num_seen"] % size
    return BankState(**values)


def _placed(
    memory_MD: torch.Tensor, row_BD: torch.Tensor, slot_B: torch.Tensor, inside_B: torch.Tensor
) -> torch.Tensor:
    """Return the memory with the rows inside at their slots, which differ; no size depends on the data."""
    size = len(memory_MD)
    beyond = torch.cat([memory_MD, memory_MD.new_zeros(1, memory_MD.shape[1])])
    return beyond.index_copy(0, torch.where(inside_B, slot_B, size), row_BD)[:size]


def _uniform(bank: BankState, num: int, seed: int, device: torch.device) -> torch.Tensor:
    """Return a number in [0, 1) per row, keyed by the seed, the batch's number and the row."""
    position_B = torch.arange(num, device=device) + bank.num_updates * (1 << 20)
    return uniform_rows(seed, position_B, 1)[:, 0]


def _values(bank: BankState) -> dict[str, torch.Tensor]:
    return {field.name: getattr(bank, field.name) for field in fields(BankState)}
