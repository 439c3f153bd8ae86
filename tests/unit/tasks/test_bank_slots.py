"""What each slot of the bank is made of, what the log says of it, and one bank on two workers."""

import math
from collections import Counter

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core import collectives
from voxray.tasks.cxr_memory.bank_state import BankRows, BankState
from voxray.tasks.cxr_memory.bank_update import take_in, updated
from voxray.tasks.cxr_memory.config import MemoryConfig
from voxray.tasks.cxr_memory.memory_bank import MemoryBank, retrieve
from voxray.testing.spawn import spawn

NAN = math.nan


def rows_of(features, valid=None, labels=None, ids=None) -> BankRows:
    """Rows as they are offered; real, with two unknown labels and ids from 0 unless told otherwise."""
    features = torch.as_tensor(features, dtype=torch.float32)
    num = len(features)
    return BankRows(
        features,
        torch.ones(num, dtype=torch.bool) if valid is None else torch.as_tensor(valid),
        torch.full((num, 2), NAN) if labels is None else torch.as_tensor(labels, dtype=torch.float32),
        torch.arange(num) if ids is None else torch.as_tensor(ids),
    )


def test_a_row_id_is_the_signed_hash_of_its_name():
    from voxray.tasks.cxr_memory.data import row_id  # imports scikit-learn's neighbours: not for workers

    for name in ("00000001_000.png", "ä", ""):
        expected = int.from_bytes(xxhash.xxh3_64(name.encode()).digest(), "big", signed=True)
        assert row_id(name) == expected


@settings(max_examples=60, deadline=None)
@given(
    momenta=st.lists(st.sampled_from([0.3, 0.5, 0.75, 0.9, 0.9999]), min_size=1, max_size=6),
    size=st.integers(1, 4),
    batch=st.integers(1, 7),
)
def test_a_slot_is_the_sum_of_its_rows_by_their_shares(momenta, size, batch):
    """Kept row by row as a map of shares: vector, labels and the largest share's row follow from it."""
    generator = torch.Generator().manual_seed(batch)
    bank = BankState.empty(size, 3, 2)
    shares = [Counter() for _ in range(size)]
    features, labels, written = {}, {}, [0] * size
    count = pointer = 0
    for update, momentum in enumerate(momenta):
        ids = list(range(100 * update, 100 * update + batch))
        rows = torch.randn(batch, 3, generator=generator)
        known = torch.tensor([0.0, 1.0, NAN])[torch.randint(3, (batch, 2), generator=generator)]
        config = MemoryConfig(bank_size=size, update_strategy="fifo", momentum=momentum)
        bank = updated(bank, rows_of(rows, None, known, ids), config)
        for number, name in enumerate(ids):
            features[name], labels[name] = rows[number], known[number]
            keep = momentum if count == size else 0.0
            shares[pointer] = Counter({key: keep * value for key, value in shares[pointer].items()})
            shares[pointer][name] += 1 - keep
            written[pointer] = update + 1
            count, pointer = min(size, count + 1), (pointer + 1) % size
    for slot in range(count):
        held = shares[slot].items()
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(bank.memory_MD[slot], sum(s * features[n] for n, s in held), **close)
        present = sum(s * labels[n].nan_to_num() for n, s in held)
        torch.testing.assert_close(bank.label_MK[slot], present, **close)
        known = sum(s * (~labels[n].isnan()).float() for n, s in held)
        torch.testing.assert_close(bank.known_MK[slot], known, **close)
        assert float(bank.share_M[slot]) == pytest.approx(max(shares[slot].values()), abs=1e-5)
        largest = shares[slot][int(bank.origin_M[slot])]
        assert largest == pytest.approx(max(shares[slot].values()), abs=1e-5)
        assert int(bank.written_M[slot]) == written[slot]


@pytest.mark.parametrize("strategy", ["rarity", "diversity", "hybrid", "statistical", "fifo", "reservoir"])
@pytest.mark.parametrize("compat", ["ours", "upstream"])
def test_padding_leaves_nothing(strategy, compat):
    """With padding anywhere in the batches, of any size, the bank is as without; also where all rows pad."""
    config = MemoryConfig(
        bank_size=5, update_strategy=strategy, compat=compat, momentum=0.5, rarity_threshold=0.1
    )
    generator = torch.Generator().manual_seed(1)
    with_padding, without = BankState.empty(5, 3, 2), BankState.empty(5, 3, 2)
    for valid in ([1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1, 0]):
        mask = torch.tensor(valid, dtype=torch.bool)
        features = torch.randn(len(valid), 3, generator=generator)
        features[~mask] *= 1000
        ids = torch.arange(len(valid))
        take_in(with_padding, rows_of(features, mask, None, ids), config)
        if mask.any():
            take_in(without, rows_of(features[mask], None, None, ids[mask]), config)
        assert int(with_padding.num_selected) == 0 or mask.any()
    for name, value in vars(without).items():
        torch.testing.assert_close(getattr(with_padding, name), value, msg=name)
    assert int(without.num_updates) == 3


def test_before_retrieve_a_batch_finds_its_own_real_rows_alone():
    config = MemoryConfig(bank_size=4, update_strategy="fifo", update_order="before_retrieve", top_k=1)
    bank = MemoryBank(config, 2, 2)
    rows = rows_of([[1.0, 0.0], [0.0, 2.0]], [True, False])
    bank.expect(rows.valid_B, rows.labels_BK, rows.row_B)
    assert bank(rows.features_BD).tolist() == [[2.0, 0.0], [1.0, 2.0]]
    assert int(bank.count) == 0  # it is written once, after the update
    bank.write()
    assert bank.memory_MD[: bank.count].tolist() == [[1.0, 0.0]]


def test_rows_that_are_not_announced_or_have_no_gradient_are_not_offered():
    bank = MemoryBank(MemoryConfig(bank_size=4, update_strategy="fifo"), 2, 2)
    rows = rows_of([[1.0, 0.0]])
    bank(rows.features_BD)
    with torch.no_grad():
        bank.expect(rows.valid_B, rows.labels_BK, rows.row_B)
        bank(rows.features_BD)
    bank(rows.features_BD)
    bank.eval()
    bank.expect(rows.valid_B, rows.labels_BK, rows.row_B)
    bank(rows.features_BD)
    bank.write()
    assert int(bank.num_updates) == 0


def test_the_numbers_of_the_log():
    config = MemoryConfig(bank_size=4, update_strategy="fifo", momentum=0.5)
    bank = BankState.empty(4, 2, 2)
    nothing = bank.numbers()
    assert nothing["count"] == 0
    assert math.isnan(nothing["age_median"])
    assert all(map(math.isnan, nothing["labels"]))
    bank = updated(bank, rows_of(torch.ones(2, 2), None, [[1.0, NAN], [0.0, NAN]]), config)
    bank = updated(bank, rows_of(torch.ones(1, 2), None, [[NAN, 1.0]]), config)
    numbers = bank.numbers()
    assert (numbers["count"], numbers["selected"]) == (3, 1)
    assert (numbers["age_median"], numbers["age_max"]) == (1, 1)
    assert numbers["labels"] == [0.5, 1.0]  # of two known one is present; of one known, one
    bank = updated(bank, rows_of(torch.ones(2, 2), None, [[1.0, 0.0], [1.0, 0.0]]), config)
    numbers = bank.numbers()  # slot 0 was written twice, with one half each: ages 0, 2, 1, 0
    assert (numbers["count"], numbers["age_median"], numbers["age_max"]) == (4, 0.5, 2)
    assert numbers["labels"] == pytest.approx([2 / 3, 1 / 2.5])


# --- upstream's rules (DOMAINS.md S4.b-1), replayed
def filled(sizes: list[int], config: MemoryConfig, dim: int = 4) -> list[int]:
    """How many vectors there are after batches of such sizes."""
    generator = torch.Generator().manual_seed(0)
    bank, counts = BankState.empty(config.bank_size, dim, 2), []
    for size in sizes:
        take_in(bank, rows_of(torch.randn(size, dim, generator=generator)), config)
        counts.append(int(bank.count))
    return counts


def test_upstreams_diversity_stores_nothing_in_an_empty_bank():
    """All scores are 0, and 0 < 0 is false: the strategy is no memory."""
    upstream = MemoryConfig(bank_size=8, update_strategy="diversity", compat="upstream")
    assert filled([16] * 5, upstream) == [0] * 5
    assert filled([16] * 5, upstream.model_copy(update={"compat": "ours"})) != [0] * 5


def test_where_upstreams_bank_shrank_or_crashed_ours_is_full():
    """Upstream: 3, 6, 1, 4 rows of 8 after a wrap; empty at exactly 8; 128 rows crash a bank of 64."""
    for compat in ("ours", "upstream"):
        fifo = MemoryConfig(bank_size=8, update_strategy="fifo", compat=compat)
        assert filled([3] * 4, fifo) == [3, 6, 8, 8]
        assert filled([4, 4], fifo) == [4, 8]
        assert filled([128, 128], fifo.model_copy(update={"bank_size": 64})) == [64, 64]


def test_upstreams_statistical_keeps_what_is_near_the_running_length():
    """The mean moves to 0.9 · 5 + 0.1 · 10 = 5.5 before the scores: of lengths 5, 6.5 and 18.5 the two nearer
    than 20 % stay; ours keeps the third.
    """
    first, second = torch.eye(3) * 5, torch.diag(torch.tensor([5.0, 6.5, 18.5]))
    for compat, kept in (("upstream", [5.0, 6.5]), ("ours", [18.5])):
        config = MemoryConfig(
            bank_size=8, update_strategy="statistical", compat=compat, min_fill=0, momentum_mode="stats"
        )
        bank = updated(BankState.empty(8, 3, 2), rows_of(first), config)
        before = int(bank.count)
        bank = updated(bank, rows_of(second), config)
        assert float(bank.mean_norm) == pytest.approx(5.5)
        assert bank.memory_MD[before : bank.count].amax(1).tolist() == pytest.approx(kept)


def test_upstreams_hybrid_keeps_the_lowest_fifth_of_its_score():
    config = MemoryConfig(bank_size=8, update_strategy="hybrid", compat="upstream", min_fill=0)
    lengths = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    bank = updated(BankState.empty(8, 5, 2), rows_of(torch.diag(lengths)), config)
    scores = -0.5 * (lengths - 3).abs() / 3 - 0.5
    kept = lengths[scores < scores.quantile(0.2)].tolist()
    assert kept == [1.0] or kept == [5.0] or kept == [1.0, 5.0] or kept == []
    assert bank.memory_MD[: bank.count].amax(1).tolist() == kept


# --- workers
BANK = MemoryConfig(bank_size=6, update_strategy="hybrid", top_k=2, momentum=0.7, select_fraction=0.6)
PARTS = (slice(0, 5), slice(5, 8))
SKIPPED = 2  # of the updates below


def offered_updates() -> list[list[BankRows]]:
    """Five updates of two batches; of eight rows some pad."""
    generator = torch.Generator().manual_seed(0)

    def batch(number: int) -> BankRows:
        valid = torch.rand(8, generator=generator) < 0.8
        labels = torch.where(torch.rand(8, 2, generator=generator) < 0.2, NAN, 1.0)
        return rows_of(
            torch.randn(8, 4, generator=generator), valid, labels, torch.arange(8) * -(1 << 59) + number
        )

    return [[batch(2 * update), batch(2 * update + 1)] for update in range(5)]


def on_one_rank(folder: str) -> None:
    mine = PARTS[collectives.rank()]
    bank = MemoryBank(BANK, 4, 2)
    for index, update in enumerate(offered_updates()):
        for batch in update:
            features, *others = (tensor[mine] for tensor in vars(batch).values())
            bank.expect(*others)
            bank(features)
        bank.forget() if index == SKIPPED else bank.write()
    torch.save(dict(bank.named_buffers()), f"{folder}/bank{collectives.rank()}.pt")


def test_two_workers_hold_one_bank(tmp_path):
    """Batches of unequal parts, padding, accumulation, an update that is left out: bit for bit one bank, that
    of one process, whose rows come batch by batch in rank order.
    """
    spawn(2, on_one_rank, str(tmp_path))
    banks = [torch.load(tmp_path / f"bank{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = BankState.empty(6, 4, 2)
    for index, update in enumerate(offered_updates()):
        if index != SKIPPED:
            take_in(alone, BankRows.together(update), BANK)
    for name, value in vars(alone).items():
        assert torch.equal(banks[0][name], value), name
        assert torch.equal(banks[1][name], value), name
    found = retrieve(alone, torch.ones(1, 4), BANK)
    assert found.abs().sum() > 0
