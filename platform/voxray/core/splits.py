"""Groups (patients, subjects, sessions) → splits. No group is in two; the order of rows does not matter.

Used where raw files are prepared, and by tasks whose synthetic data says what held-out groups allow.

Greedy stratification after Sechidis et al. 2011 ("On the stratification of multi-label data"), on groups
instead of rows: the rarest label first, its groups from large to small, each to the split that wants it most.
Where most of a label's known rows are positive, its negatives are the rare ones that are balanced.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS
from voxray.data.config import SplitsConfig


@dataclass(frozen=True)
class _Groups:
    """Groups sorted by name: names [G], rows [G], rows per label that has its rarer value [G, K]."""

    names: np.ndarray
    rows: np.ndarray
    rare: np.ndarray


def assign_splits(
    groups: Sequence[str],
    config: SplitsConfig,
    seed: int,
    labels: np.ndarray | None = None,
    declared: Sequence[str | None] | None = None,
) -> dict[str, str]:
    """Return each group's split; `groups`, `labels` [N, K] (1 = positive), `declared` have an entry per row.

    Shares are relative weights, counted in rows. Declared splits are kept, except that a split which the
    config asks for and nobody declared (val, as a rule) is drawn from the groups declared train. Raises
    InputError when a group is declared in two splits, or a split that the config asks for stays empty.
    """
    shares = {split: share for split in SPLITS if (share := getattr(config, split)) > 0}
    if not shares:
        raise InputError("data.prepare.splits: all shares are 0; give at least `splits.train` a share")
    table = _count(groups, labels)
    fixed = _declared_splits(groups, declared)
    taken = set(fixed.values()) - {"train"}
    assigned = {name: split for name, split in fixed.items() if split in taken}
    wanted = {split: share for split, share in shares.items() if split not in taken} or {"train": 1.0}
    is_open = np.array([name not in assigned for name in table.names], dtype=bool)
    assigned |= _stratify(
        _Groups(table.names[is_open], table.rows[is_open], table.rare[is_open]), wanted, seed
    )
    _check_none_empty(assigned, shares, len(table.names))
    return assigned


def _count(groups: Sequence[str], labels: np.ndarray | None) -> _Groups:
    names, group_of_row = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    rare = np.zeros((len(names), 0 if labels is None else labels.shape[1]), dtype=np.int64)
    if labels is not None:
        is_common_K = (labels == 1).sum(axis=0) > (labels == 0).sum(axis=0)
        np.add.at(rare, group_of_row, labels == np.where(is_common_K, 0, 1))
    return _Groups(names, np.bincount(group_of_row, minlength=len(names)), rare)


def _declared_splits(groups: Sequence[str], declared: Sequence[str | None] | None) -> dict[str, str]:
    splits: dict[str, str] = {}
    for group, split in zip(groups, declared or [], strict=bool(declared)):
        if split is None:
            continue
        if split not in SPLITS:
            raise InputError(f"'{split}' is no split; the raw data may declare: {', '.join(SPLITS)}")
        if splits.setdefault(group, split) != split:
            raise InputError(f"group '{group}' is declared in two splits, {splits[group]} and {split}")
    return splits


def _stratify(groups: _Groups, shares: dict[str, float], seed: int) -> dict[str, str]:
    """Return a split for every group."""
    weights = np.array(list(shares.values())) / sum(shares.values())
    deal = _Deal(
        groups,
        rows_wanted=weights * groups.rows.sum(),
        rare_wanted=weights[:, None] * groups.rare.sum(axis=0),
        split_of_group=np.full(len(groups.names), -1),
    )
    # Ties between groups of equal size are broken by the seed.
    order = np.random.default_rng(seed).permutation(len(groups.names))
    order = order[np.argsort(-groups.rows[order], kind="stable")]
    while (label := deal.rarest_label()) is not None:
        deal.out(order[(deal.split_of_group[order] < 0) & (groups.rare[order, label] > 0)], label)
    deal.out(order[deal.split_of_group[order] < 0], None)
    splits = list(shares)
    return {str(name): splits[split] for name, split in zip(groups.names, deal.split_of_group, strict=True)}


@dataclass
class _Deal:
    """What each of S splits still wants, rows [S] and rare values [S, K]; each group's split, -1 = open."""

    groups: _Groups
    rows_wanted: np.ndarray
    rare_wanted: np.ndarray
    split_of_group: np.ndarray

    def __post_init__(self) -> None:
        self.rows_held = np.zeros(self.rows_wanted.shape, dtype=np.int64)
        self.rare_held = np.zeros(self.rare_wanted.shape, dtype=np.int64)
        self.num_open = len(self.split_of_group)

    def rarest_label(self) -> int | None:
        """Return the label with the fewest open groups, None when no open group has a positive row."""
        num_groups = (self.groups.rare[self.split_of_group < 0] > 0).sum(axis=0)
        if not num_groups.any():
            return None
        return int(np.where(num_groups > 0, num_groups, self.num_open + 1).argmin())

    def out(self, order: np.ndarray, label: int | None) -> None:
        """Give each group to the split that wants `label` most, or rows where it is None.

        Splits that hold no row, or no such label, come first once the groups left are no more than they are.
        """
        wanted = self.rows_wanted if label is None else self.rare_wanted[:, label]
        held = self.rows_held if label is None else self.rare_held[:, label]
        for dealt, group in enumerate(order):
            candidates = _lacking_first(np.arange(len(wanted)), self.rows_held, self.num_open)
            candidates = _lacking_first(candidates, held, len(order) - dealt)
            best = max(candidates, key=lambda split: (wanted[split], self.rows_wanted[split], -split))
            self.split_of_group[group] = best
            self.rows_held[best] += self.groups.rows[group]
            self.rows_wanted[best] -= self.groups.rows[group]
            self.rare_held[best] += self.groups.rare[group]
            self.rare_wanted[best] -= self.groups.rare[group]
            self.num_open -= 1


def _lacking_first(candidates: np.ndarray, held: np.ndarray, num_left: int) -> np.ndarray:
    lacking = candidates[held[candidates] == 0]
    return lacking if len(lacking) > 0 and num_left <= len(lacking) else candidates


def _check_none_empty(assigned: dict[str, str], shares: dict[str, float], num_groups: int) -> None:
    empty = [split for split in shares if split not in assigned.values()]
    if empty:
        raise InputError(
            *(
                f"split '{split}' would be empty: its share is {shares[split]:g}, but the raw data has only "
                f"{num_groups} groups (patients) to draw from; bring more, or set `splits.{split}=0`"
                for split in empty
            )
        )
