"""How the memory bank takes in a batch: running statistics, what is worth keeping, where it is written
(DOMAINS.md S4.b-2). Vectorised; no size depends on the data, so that a GPU is not waited for.

Shapes: B rows of a batch, M slots of the bank, D features, K labels.
"""

import torch
from torch.nn import functional as F

from voxray.core.randomness import uniform_rows
from voxray.tasks.cxr_memory.bank_state import BankRows, BankState
from voxray.tasks.cxr_memory.config import MemoryConfig

EPSILON = 1e-8
MOST_ROWS = 1 << 20  # of an update; apart from each other are the random numbers of two updates


@torch.no_grad()
def take_in(bank: BankState, rows: BankRows, config: MemoryConfig, seed: int = 0) -> None:
    """Change the bank by a batch, in place: its running statistics, then the rows that are worth keeping.

    The order of the rows is that of the writes; rows that are not valid leave nothing.
    """
    norm_B = rows.features_BD.norm(dim=1)
    _move_statistics(bank, rows, norm_B, config)
    kept_B = _selected(bank, rows.features_BD, norm_B, rows.valid_B, config, seed)
    if config.update_strategy == "reservoir" and config.compat == "ours":
        _write_reservoir(bank, rows, kept_B, seed)
    else:
        _write_in_order(bank, rows, kept_B, config)


def updated(bank: BankState, rows: BankRows, config: MemoryConfig, seed: int = 0) -> BankState:
    """Return the bank as it is after a batch."""
    after = bank.clone()
    take_in(after, rows, config, seed)
    return after


def _move_statistics(bank: BankState, rows: BankRows, norm_B: torch.Tensor, config: MemoryConfig) -> None:
    """The first batch's own, then averages that move by 1 − momentum; variance over the batch, biased."""
    weight_B = rows.valid_B.to(norm_B.dtype) / rows.valid_B.sum().clamp(min=1)
    mean_D = weight_B @ rows.features_BD
    var_D = weight_B @ (rows.features_BD - mean_D).square()
    rate = torch.where(bank.num_updates == 0, 1.0, 1.0 - config.momentum)
    rate = torch.where(rows.valid_B.any(), rate, 0.0)
    bank.mean_norm.lerp_(weight_B @ norm_B, rate)
    bank.feat_mean_D.lerp_(mean_D, rate)
    bank.feat_var_D.lerp_(var_D, rate)
    bank.num_updates.add_(rows.valid_B.any())


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
            return likeness_B < _quantile(likeness_B, valid_B, config.select_fraction)
        case "hybrid":
            share = config.diversity_weight
            score_B = -(1 - share) * rarity_B - share * (1 - likeness_B)
            return score_B < _quantile(score_B, valid_B, config.select_fraction)
        case "fifo":
            return torch.ones_like(valid_B)
        case "reservoir":
            chance = len(bank.memory_MD) / (bank.num_updates * valid_B.sum()).clamp(min=1)
            place_B = bank.num_updates * MOST_ROWS + valid_B.cumsum(0)
            return uniform_rows(seed, place_B, 1)[:, 0] < chance.clamp(max=1)


def _quantile(score_B: torch.Tensor, valid_B: torch.Tensor, share: float) -> torch.Tensor:
    """Return the quantile of the valid rows' scores, NaN where there is none."""
    return score_B.masked_fill(~valid_B, torch.nan).nanquantile(share)


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


def _write_in_order(bank: BankState, rows: BankRows, kept_B: torch.Tensor, config: MemoryConfig) -> None:
    """Write the kept rows one after the other: a free slot takes a row as it is, a full bank blends it in.

    The j-th kept row goes to slot (ptr + j) mod M, so M rows at a time hit different slots: ceil(n / M)
    passes equal the row by row rule.
    """
    size = len(bank.memory_MD)
    rank_B = kept_B.cumsum(0) - 1
    slot_B = (bank.ptr + rank_B) % size
    momentum = config.momentum if config.momentum_mode == "write" else 0.0
    momentum_B = torch.where(bank.count + rank_B < size, 0.0, momentum)
    for number in range(-(-len(kept_B) // size)):
        _write(bank, rows, momentum_B, slot_B, kept_B & (rank_B // size == number))
    num = kept_B.sum()
    bank.ptr.copy_((bank.ptr + num) % size)
    bank.count.copy_((bank.count + num).clamp(max=size))
    bank.num_seen.add_(num)
    bank.num_selected.copy_(num)


def _write_reservoir(bank: BankState, rows: BankRows, kept_B: torch.Tensor, seed: int) -> None:
    """Algorithm R (Vitter 1985): the t-th vector, from 0, takes slot t while there is room, else a slot drawn
    from 0 … t, if the bank has that one. Of several for one slot the last stays.
    """
    size = len(bank.memory_MD)
    rank_B = kept_B.cumsum(0) - 1
    place_B = bank.num_seen + rank_B
    drawn_B = (uniform_rows(seed, place_B, 1)[:, 0].double() * (place_B + 1)).long()
    slot_B = torch.where(place_B < size, place_B, drawn_B)
    is_placed_B = kept_B & (slot_B < size)
    slot_B = torch.where(is_placed_B, slot_B, 0)
    # The last row for each slot: the largest rank that names it.
    last_M = torch.full((size,), -1, device=rank_B.device).scatter_reduce(
        0, slot_B, torch.where(is_placed_B, rank_B, -1), "amax"
    )
    stays_B = is_placed_B & (last_M[slot_B] == rank_B)
    _write(bank, rows, torch.zeros_like(rows.features_BD[:, 0]), slot_B, stays_B)
    bank.num_seen.add_(kept_B.sum())
    bank.count.copy_(bank.num_seen.clamp(max=size))
    bank.ptr.copy_(bank.num_seen % size)
    bank.num_selected.copy_(stays_B.sum())


def _write(
    bank: BankState, rows: BankRows, momentum_B: torch.Tensor, slot_B: torch.Tensor, inside_B: torch.Tensor
) -> None:
    """Blend the rows inside into their slots, which differ: slot ← momentum · slot + (1 − momentum) · row.

    A row outside repeats the first one inside; where none is inside, slots get what they hold.
    """
    is_any = inside_B.any()
    of_B = torch.where(inside_B, torch.arange(len(inside_B), device=inside_B.device), inside_B.int().argmax())
    slot_B = slot_B[of_B]
    kept_B1 = torch.where(is_any, momentum_B[of_B], 1.0)[:, None]

    def blend(held: torch.Tensor, new: torch.Tensor) -> None:
        row = kept_B1 * held[slot_B] + (1 - kept_B1) * new[of_B]
        held.index_copy_(0, slot_B, row.to(held.dtype))

    blend(bank.memory_MD, rows.features_BD)
    blend(bank.label_MK, rows.labels_BK.nan_to_num(0.0))
    blend(bank.known_MK, (~rows.labels_BK.isnan()).to(rows.features_BD.dtype))
    left_B, new_B = kept_B1[:, 0] * bank.share_M[slot_B], 1 - kept_B1[:, 0]
    bank.share_M.index_copy_(0, slot_B, torch.maximum(left_B, new_B).to(bank.share_M.dtype))
    origin_B = torch.where(new_B > left_B, rows.row_B[of_B], bank.origin_M[slot_B])
    bank.origin_M.index_copy_(0, slot_B, origin_B)
    written_B = torch.where(is_any, bank.num_updates, bank.written_M[slot_B])
    bank.written_M.index_copy_(0, slot_B, written_B)
