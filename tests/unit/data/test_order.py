"""The order of an epoch, as properties over random sizes, seeds, rules and worker counts."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.core.batch import BatchRules, EpochRequest
from voxray.data.order import EpochOrder, worker_slots
from voxray.data.selection import Selection

shard_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(tuple)


class ArrayIndex:
    """Index columns of random shards: a session, a length, a flag and two labels per row."""

    def __init__(self, shards, seed=0, num_sessions=5):
        rng = np.random.default_rng(seed)
        self.shards = shards
        self.columns = [
            {
                "session": np.array([f"s{i}" for i in np.sort(rng.integers(0, num_sessions, n))], object),
                "neural.length": rng.integers(1, 500, n),
                "flag": rng.integers(0, 3, n),
                "labels": rng.choice([0.0, 1.0, np.nan], (n, 2)).astype(np.float32),
            }
            for n in shards
        ]

    names = ("session", "neural.length", "flag", "labels")

    def column(self, shard, name):
        return self.columns[shard][name]

    def whole(self, name):
        return np.concatenate([columns[name] for columns in self.columns])


def make(shards, request, span_rows=100, index=None):
    index = index or ArrayIndex(shards)
    return EpochOrder(Selection(shards, request.rules, index, {"labels": ("a", "b")}), request, span_rows)


def batches_of(order):
    return [order.batch_rows(batch).tolist() for batch in range(order.num_batches)]


rules_of_epochs = st.builds(
    BatchRules,
    filters=st.sampled_from([(), ("flag == 1",), ("flag != 1", "labels.a == 1 or session == 's1'")]),
    limit=st.sampled_from([None, 1, 17, 1000]),
    group_by=st.sampled_from(["", "session"]),
    groups_per_batch=st.integers(1, 6),
    bucket_by=st.sampled_from(["", "neural"]),
    last_batch=st.sampled_from(["keep", "pad", "drop"]),
)


def chosen(index, rules):
    """What the filters leave, worked out row by row."""
    flag, session = index.whole("flag"), index.whole("session")
    label = index.whole("labels")[:, 0]
    keep = np.ones(len(flag), bool)
    if len(rules.filters) == 1:
        keep = flag == 1
    if len(rules.filters) == 2:
        keep = np.array(
            [f != 1 and (a == 1 or s == "s1") for f, a, s in zip(flag, label, session, strict=True)]
        )
    return np.flatnonzero(keep)


@settings(max_examples=300, deadline=None)
@given(
    shards=shard_sizes,
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
    shuffle=st.booleans(),
    span_rows=st.integers(1, 300),
    batch_size=st.integers(1, 70),
    rules=rules_of_epochs,
)
def test_an_epoch_has_each_chosen_row_once(shards, seed, epoch, shuffle, span_rows, batch_size, rules):
    request = EpochRequest("train", batch_size, seed, 0, epoch, shuffle, rules=rules)
    index = ArrayIndex(shards, seed % 7)
    order = make(shards, request, span_rows, index)
    batches = batches_of(order)
    rows = [row for batch in batches for row in batch]
    wanted = chosen(index, rules)
    assert len(rows) == order.num_rows
    assert Counter(rows).most_common(1)[:1] == [] or Counter(rows).most_common(1)[0][1] == 1
    assert set(rows) <= set(wanted.tolist())
    assert len(rows) + order.num_left_out == min(len(wanted), rules.limit or len(wanted))
    if rules.last_batch != "drop":
        assert order.num_left_out == 0
    elif not rules.group_by:
        assert all(len(batch) == batch_size for batch in batches)
    else:
        assert len({len(batch) for batch in batches}) <= 1
    assert all(0 < len(batch) <= batch_size for batch in batches)
    ends = np.cumsum([0, *map(len, batches)])
    assert [order.bounds(k) for k in range(len(batches))] == list(pairwise(ends))


@settings(max_examples=100, deadline=None)
@given(
    shards=shard_sizes,
    seed=st.integers(0, 99),
    span_rows=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    rules=rules_of_epochs,
    replacement=st.booleans(),
    data=st.data(),
)
def test_any_batch_is_found_alone(shards, seed, span_rows, batch_size, rules, replacement, data):
    rules = replace(rules, with_replacement=replacement, weights="flag + 1" if replacement else "")
    request = EpochRequest("train", batch_size, seed, rules=rules)
    whole = batches_of(make(shards, request, span_rows))
    if whole:
        batch = data.draw(st.integers(0, len(whole) - 1))
        assert make(shards, request, span_rows).batch_rows(batch).tolist() == whole[batch]


@settings(max_examples=100, deadline=None)
@given(
    shards=shard_sizes,
    batch_size=st.integers(1, 40),
    groups=st.integers(1, 6),
    bucket=st.sampled_from(["", "neural"]),
    seed=st.integers(0, 99),
)
def test_a_batch_has_rows_of_few_groups(shards, batch_size, groups, bucket, seed):
    rules = BatchRules(group_by="session", groups_per_batch=groups, bucket_by=bucket)
    index = ArrayIndex(shards, seed)
    sessions = index.whole("session")
    for batch in batches_of(make(shards, EpochRequest("train", batch_size, seed, rules=rules), 100, index)):
        assert len({sessions[row] for row in batch}) <= groups


def test_groups_of_equal_size_fill_every_batch_with_different_ones():
    """Eight sessions of 48 rows, four to a batch of 16: 24 batches of four rows of each of four."""
    index = ArrayIndex((384,))
    index.columns[0]["session"] = np.repeat([f"s{i}" for i in range(8)], 48).astype(object)
    rules = BatchRules(group_by="session", groups_per_batch=4)
    batches = batches_of(make((384,), EpochRequest("train", 16, 3, rules=rules), 1000, index))
    assert len(batches) == 24
    for batch in batches:
        assert sorted(Counter(index.whole("session")[batch]).values()) == [4, 4, 4, 4]


def test_length_buckets_leave_little_padding():
    index = ArrayIndex((4000,), seed=1)
    lengths = index.whole("neural.length")

    def padded(rules):
        batches = batches_of(make((4000,), EpochRequest("train", 32, 3, rules=rules), 4000, index))
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()

    assert padded(BatchRules()) > 1.8
    assert padded(BatchRules(bucket_by="neural")) < 1.08
    grouped = BatchRules(bucket_by="neural", group_by="session", groups_per_batch=4)
    assert padded(grouped) < 1.25


def test_seed_stage_and_epoch_change_the_order():
    for rules in (BatchRules(), BatchRules(bucket_by="neural"), BatchRules(group_by="session")):
        keys = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
        orders = [make((20, 30), EpochRequest("train", 7, *key, rules=rules), 10) for key in keys]
        assert len({tuple(order.rows(0, 50)) for order in orders}) == 4


@given(shards=shard_sizes, seed=st.integers(0, 99), span_rows=st.integers(1, 200))
def test_shards_stay_together_in_spans(shards, seed, span_rows):
    """A span is whole shards of about `span_rows` rows, so that few shards are open at a time."""
    order = make(shards, EpochRequest("train", 8, seed), span_rows)
    shard_of_row = np.repeat(np.arange(len(shards)), shards)[order.rows(0, order.num_rows)]
    spans = [np.flatnonzero(shard_of_row == shard) for shard in range(len(shards))]
    assert all(span[-1] - span[0] < span_rows + 2 * max(shards) for span in spans)
    first = order.span_shards(order.span_of(0)).tolist()
    assert shard_of_row[0] in first
    assert len(order.span_shards(10_000)) == 0


def test_one_span_is_a_uniform_shuffle():
    """Where the split fits in a span, each row is equally likely at each place (chi-squared)."""
    from scipy import stats

    counts = np.zeros((6, 6))
    for epoch in range(2000):
        rows = make((2, 4), EpochRequest("train", 8, 7, 0, epoch), 6).rows(0, 6)
        counts[np.arange(6), rows] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


@pytest.mark.parametrize("group_by", ["", "session"])
def test_draws_are_independent_and_go_by_weight(group_by):
    """Drawn with weights 0, 1 and 2: counts per row over many epochs fit the shares (chi-squared); the counts
    of one row are binomial, so their variance is n p (1 - p)."""
    from scipy import stats

    shards = (30, 50, 20)
    index = ArrayIndex(shards, 4)
    flag = index.whole("flag").astype(float)
    rules = BatchRules(with_replacement=True, weights="flag", group_by=group_by)
    counts = np.zeros((400, 100))
    for epoch in range(400):
        order = make(shards, EpochRequest("train", 8, 7, 0, epoch, rules=rules), 60, index)
        assert order.num_rows == 100
        counts[epoch] = np.bincount(order.rows(0, 100), minlength=100)
    shares = flag / flag.sum()
    assert not counts[:, flag == 0].any()
    drawn = flag > 0
    assert stats.chisquare(counts.sum(0)[drawn], 40_000 * shares[drawn]).pvalue > 1e-4
    variance = 100 * shares[drawn] * (1 - shares[drawn])
    assert np.mean(counts.var(axis=0)[drawn] / variance) == pytest.approx(1, abs=0.05)


def test_draws_from_no_row_are_an_empty_epoch():
    rules = BatchRules(filters=("flag == 9",), with_replacement=True, weights="flag + 1")
    assert make((20, 30), EpochRequest("train", 8, 1, rules=rules)).num_batches == 0


def test_a_limit_is_the_same_rows_for_every_seed_and_epoch():
    rules = BatchRules(limit=23)
    orders = [make((40, 60, 7), EpochRequest("train", 8, seed, 0, seed, rules=rules)) for seed in range(4)]
    sets = [frozenset(order.rows(0, 23).tolist()) for order in orders]
    assert len(set(sets)) == 1
    assert len(sets[0]) == 23
    assert len({tuple(order.rows(0, 23)) for order in orders}) == 4


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (BatchRules(filters=("falg == 1",)), "did you mean 'flag'"),
        (BatchRules(filters=("flag",)), "no yes or no"),
        (BatchRules(filters=("labels == 1",)), "no yes or no"),
        (BatchRules(filters=("__import__('os')",)), "may call any, all, count, isnan alone"),
        (BatchRules(weights="flag - 1", with_replacement=True), "weights are finite, 0 or more"),
        (BatchRules(weights="flag * 0", with_replacement=True), "is 0 for every row"),
        (BatchRules(group_by="day"), r"no index column 'day'; it has: session"),
        (BatchRules(bucket_by="neurall"), r"no index column 'neurall\.length'"),
    ],
)
def test_a_rule_that_cannot_hold_is_named(rules, message):
    with pytest.raises(InputError, match=message):
        make((20, 30), EpochRequest("train", 8, 1, rules=rules)).batch_rows(0)


@pytest.mark.parametrize("rules", [BatchRules(), BatchRules(limit=10**8)])
def test_a_plan_of_a_thousand_million_rows_takes_memory_for_its_shards_and_one_span(rules):
    import tracemalloc

    shards = (100_000,) * 10_000
    request = EpochRequest("train", 64, 1, rules=rules)
    tracemalloc.start()
    order = EpochOrder(Selection(shards, rules), request, span_rows=400_000)
    batch = order.num_batches // 2
    middle = order.batch_rows(batch)
    again = EpochOrder(Selection(shards, rules), request, 400_000).batch_rows(batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.num_rows == (rules.limit or 10**9)
    assert np.array_equal(middle, again)
    assert peak < 100e6, "8 bytes for each row would be 8 GB"


@given(num=st.integers(0, 100), world_size=st.sampled_from([1, 2, 3, 4, 8]))
def test_slices_join_to_the_batch_and_differ_by_one_row_at_most(num, world_size):
    slices = [worker_slots(num, rank, world_size) for rank in range(world_size)]
    assert [place for part in slices for place in range(*part)] == list(range(num))
    lengths = [stop - start for start, stop in slices]
    assert max(lengths) - min(lengths) <= 1
