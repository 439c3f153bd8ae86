"""Which rows of a split an epoch is made of, and with what weights: filters and limits, compiled once.

What is kept grows with the shards (and, under a grouping rule, with the groups in each), never with the rows:
a shard's chosen rows are worked out again, from its index, when its span is read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.config.expression import Expression, check_names, parse_expression
from voxray.core.batch import BatchRules
from voxray.data.index import RowIndex

IntArray = np.ndarray[Any, np.dtype[np.int64]]

# Over a labels column, per row: whether any is 1, all known, how many are 1.
_FUNCTIONS = {
    "any": lambda values: (values == 1).any(axis=-1),
    "all": lambda values: (values == 1).all(axis=-1),
    "count": lambda values: (values == 1).sum(axis=-1),
    "isnan": np.isnan,
}


@dataclass(frozen=True)
class Cells:
    """A shard's rows of one group (all its rows, without a grouping rule), one entry each."""

    shard: IntArray
    group: IntArray  # codes into `Selection.group_names`
    rows: IntArray
    weight: np.ndarray[Any, np.dtype[np.float64]]  # sum over the rows; their number without weights


class Selection:
    """The rows of some shards that `rules` choose. `names` of labels make `labels.Hernia` a value."""

    def __init__(
        self,
        shard_rows: Sequence[int],
        rules: BatchRules,
        index: RowIndex | None = None,
        label_names: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        """Parse the rules and check their names. Without an index, no rule may need one.

        Raises InputError for an expression that cannot be read or names what is not there.
        """
        self.shard_rows = np.asarray(shard_rows, dtype=np.int64)
        self.rules = rules
        self._index = index
        self._labels = label_names or {}
        self._filters = [self._parse(text, "filter") for text in rules.filters]
        self._weights = self._parse(rules.weights, "weights") if rules.weights else None
        for key, name in (("group_by", rules.group_by), ("bucket_by", rules.length_column)):
            if name and (index is None or name not in index.names):
                known = ", ".join(index.names) if index is not None else "none"
                raise InputError(f"data.{key}: the dataset has no index column '{name}'; it has: {known}")

    @cached_property
    def counts(self) -> IntArray:
        """Chosen rows per shard."""
        found = self.shard_rows
        if self._filters:
            found = np.array([self._filtered(i).sum() for i in range(len(self.shard_rows))], dtype=np.int64)
        if self.rules.limit is None or self.rules.limit >= found.sum():
            return found
        # Shares of the limit, rounded so that they add up to it.
        ends = np.cumsum(found) * self.rules.limit // max(1, int(found.sum()))
        return np.diff(ends, prepend=0)

    @property
    def num_rows(self) -> int:
        """Chosen rows of all shards."""
        return int(self.counts.sum())

    def rows(self, shard: int) -> IntArray:
        """Return the chosen rows of a shard, ascending."""
        kept = (
            np.flatnonzero(self._filtered(shard)) if self._filters else np.arange(int(self.shard_rows[shard]))
        )
        num = int(self.counts[shard])
        if num < len(kept):
            # A run's seed does not matter here: every run with this limit sees the same rows.
            digest = hashlib.blake2b(f"limit/{shard}".encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))
            kept = np.sort(generator.permutation(kept)[:num])
        return kept.astype(np.int64)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return a column of the index for all chosen rows."""
        assert self._index is not None, "the dataset's shards have an index"
        return np.concatenate(
            [self._index.column(i, name)[self.rows(i)] for i in range(len(self.shard_rows))]
        )

    def weights(self, shard: int) -> np.ndarray[Any, Any]:
        """Return the weights of a shard's chosen rows, float64, all 1 without the rule.

        Raises InputError for one that is negative or no number.
        """
        rows = self.rows(shard)
        if self._weights is None:
            return np.ones(len(rows))
        values = np.broadcast_to(
            np.asarray(self._evaluate(self._weights, shard, "weights"), np.float64),
            int(self.shard_rows[shard]),
        )[rows]
        if not (np.isfinite(values).all() and (values >= 0).all()):
            bad = values[~(np.isfinite(values) & (values >= 0))][0]
            raise InputError(
                f"data.weights: '{self.rules.weights}' is {bad} for a row; weights are finite, 0 or more"
            )
        return values

    def groups(self, shard: int) -> IntArray:
        """Return the group of each chosen row of a shard, as codes into `group_names`."""
        return self._group_codes(shard)[self.rows(shard)]

    def lengths(self, shard: int) -> IntArray:
        """Return the length that buckets go by of each chosen row of a shard."""
        assert self._index is not None
        return self._index.column(shard, self.rules.length_column)[self.rows(shard)].astype(np.int64)

    @cached_property
    def group_names(self) -> dict[Any, int]:
        """The groups' codes by name, in order of appearance; filled by `cells`."""
        return {}

    @cached_property
    def cells(self) -> Cells:
        """The cells of all shards, in the shards' order."""
        shards = np.arange(len(self.shard_rows))
        if not self.rules.group_by:
            weight = self.counts.astype(np.float64)
            if self._weights is not None:
                weight = np.array([self.weights(i).sum() for i in shards.tolist()])
            return Cells(shards, np.zeros_like(shards), self.counts, weight)
        parts: list[tuple[int, int, int, float]] = []
        for shard in shards.tolist():
            codes, weights = self.groups(shard), self.weights(shard)
            for code in np.unique(codes).tolist():
                inside = codes == code
                parts.append((shard, code, int(inside.sum()), float(weights[inside].sum())))
        columns = list(zip(*parts, strict=True)) or [(), (), (), ()]
        whole = [np.array(column, dtype=np.int64) for column in columns[:3]]
        return Cells(whole[0], whole[1], whole[2], np.array(columns[3], dtype=np.float64))

    # --- expressions
    def _parse(self, text: str, key: str) -> Expression:
        where = f"data.{key}"
        expression = parse_expression(text, where, tuple(_FUNCTIONS))
        known = list(self._index.names) if self._index is not None else []
        known += [f"{column}.{name}" for column, names in self._labels.items() for name in names]
        check_names(expression, known, where)
        return expression

    def _evaluate(self, expression: Expression, shard: int, key: str) -> Any:
        assert self._index is not None
        index = self._index

        def value(name: str) -> Any:
            if name in index.names:
                return index.column(shard, name)
            column, _, label = name.rpartition(".")
            return index.column(shard, column)[:, self._labels[column].index(label)]

        try:
            with np.errstate(all="ignore"):
                return expression.evaluate(value, _FUNCTIONS)
        except (TypeError, ValueError) as error:
            raise InputError(f"data.{key}: '{expression.text}' cannot be worked out: {error}") from None

    def _filtered(self, shard: int) -> np.ndarray[Any, Any]:
        num_rows = int(self.shard_rows[shard])
        kept = np.ones(num_rows, dtype=bool)
        for expression in self._filters:
            result = np.asarray(self._evaluate(expression, shard, "filter"))
            if result.dtype != bool or result.shape not in ((), (num_rows,)):
                raise InputError(
                    f"data.filter: '{expression.text}' is no yes or no per row; compare a column of one value"
                )
            kept &= result
        return kept

    def _group_codes(self, shard: int) -> IntArray:
        assert self._index is not None
        names, codes = np.unique(self._index.column(shard, self.rules.group_by), return_inverse=True)
        known = [self.group_names.setdefault(name, len(self.group_names)) for name in names.tolist()]
        return np.asarray(known, dtype=np.int64)[codes]
