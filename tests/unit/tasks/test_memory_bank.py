"""The memory bank beside the rule of DOMAINS.md S4.b-2 written out row by row, and its gold values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.tasks.cxr_memory.bank_state import BankRows, BankState
from voxray.tasks.cxr_memory.bank_update import updated
from voxray.tasks.cxr_memory.config import MemoryConfig
from voxray.tasks.cxr_memory.memory_bank import MemoryBank, retrieve

STRATEGIES = ("rarity", "statistical", "diversity", "hybrid", "fifo")


def rows_of(features, valid=None, labels=None, ids=None) -> BankRows:
    """Rows as they are offered; real and with one unknown label unless told otherwise."""
    num = len(features)
    valid = torch.ones(num, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    labels = torch.full((num, 1), torch.nan) if labels is None else torch.as_tensor(labels)
    return BankRows(features, valid, labels, torch.arange(num) if ids is None else torch.as_tensor(ids))


def empty(size: int, dim: int) -> BankState:
    return BankState.empty(size, dim, 1)


def bank_of(rows, size=None, count=None) -> BankState:
    """A bank that holds these rows."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    size = size or len(rows)
    bank = MemoryBank(MemoryConfig(bank_size=size), rows.shape[1], 1)
    bank.memory_MD[: len(rows)] = rows
    bank.count.fill_(len(rows) if count is None else count)
    bank.ptr.copy_(bank.count % size)
    return bank.state


class RowByRow:
    """The definition, one row after the other, on lists of tensors."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config, self.slots, self.ptr, self.mean_norm, self.num = config, [], 0, None, 0

    def update(self, rows: list[torch.Tensor]) -> None:
        config = self.config
        norms = [row.norm().item() for row in rows]
        batch = sum(norms) / len(norms)
        m = config.momentum
        self.mean_norm = batch if self.mean_norm is None else m * self.mean_norm + (1 - m) * batch
        fill_all = len(self.slots) < (config.top_k if config.min_fill is None else config.min_fill)
        for index in range(len(rows)) if fill_all else self.chosen(rows, norms, batch):
            if len(self.slots) < config.bank_size:
                self.slots.append(rows[index].clone())
            else:
                keep = m if config.momentum_mode == "write" else 0.0
                self.slots[self.ptr] = keep * self.slots[self.ptr] + (1 - keep) * rows[index]
            self.ptr = (self.ptr + 1) % config.bank_size

    def chosen(self, rows, norms, batch) -> list[int]:
        config = self.config
        reference = self.mean_norm if config.update_strategy == "statistical" else batch
        rarity = [abs(norm - reference) / (reference + 1e-8) for norm in norms]
        if config.update_strategy in ("rarity", "statistical"):
            return [i for i, score in enumerate(rarity) if score >= config.rarity_threshold]
        if config.update_strategy == "fifo":
            return list(range(len(rows)))
        unlike = [
            1 - max((torch.cosine_similarity(row, s, 0).item() for s in self.slots), default=0)
            for row in rows
        ]
        w = config.diversity_weight if config.update_strategy == "hybrid" else 1.0
        score = [(1 - w) * min(r, 1) + w * u for r, u in zip(rarity, unlike, strict=True)]
        num = math.ceil(config.select_fraction * len(rows) - 1e-9)
        return sorted(sorted(range(len(rows)), key=lambda i: (-score[i], i))[:num])


def test_rarity_scores_of_the_gold_values():
    """DOMAINS.md section 7: ours keeps rows 1 and 2, upstream's rule rows 0 and 3."""
    z = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 1.0], [5.0, 0.0]])
    norms = z.norm(dim=1)
    scores = (norms - norms.mean()).abs() / (norms.mean() + 1e-8)
    torch.testing.assert_close(
        scores, torch.tensor([0.047619, 0.904762, 0.809524, 0.047619]), atol=1e-5, rtol=0
    )
    ours = updated(empty(8, 2), rows_of(z), MemoryConfig(bank_size=8, min_fill=0))
    assert ours.memory_MD[: int(ours.count)].tolist() == z[[1, 2]].tolist()
    upstream = updated(empty(8, 2), rows_of(z), MemoryConfig(bank_size=8, compat="upstream"))
    assert upstream.memory_MD[: int(upstream.count)].tolist() == z[[0, 3]].tolist()


def test_a_full_slot_moves_by_one_minus_the_momentum():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -1.0]])
    written = updated(bank_of(a), rows_of(b), MemoryConfig(bank_size=1, update_strategy="fifo"))
    torch.testing.assert_close(written.memory_MD, 0.9 * a + 0.1 * b)
    bank = bank_of(a)
    slow = MemoryConfig(bank_size=1, update_strategy="fifo", momentum=0.9999)
    for _ in range(1000):
        bank = updated(bank, rows_of(b), slow)
    torch.testing.assert_close(bank.memory_MD, a + (1 - 0.9999**1000) * (b - a), atol=1e-3, rtol=0)  # 9.5 %
    plain = MemoryConfig(bank_size=1, update_strategy="fifo", momentum_mode="stats")
    assert torch.equal(updated(bank_of(a), rows_of(b), plain).memory_MD, b)


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    size=st.integers(1, 9),
    batches=st.lists(st.integers(1, 23), min_size=1, max_size=5),
    mode=st.sampled_from(["write", "stats"]),
    seed=st.integers(0, 1000),
)
def test_the_bank_is_the_rule_row_by_row(strategy, size, batches, mode, seed):
    config = MemoryConfig(
        update_strategy=strategy, bank_size=size, momentum_mode=mode, top_k=3, momentum=0.75
    )
    generator = torch.Generator().manual_seed(seed)
    bank, reference = empty(size, 4), RowByRow(config)
    counts = [0]
    for num in batches:
        rows = torch.randn(num, 4, generator=generator)
        padding = torch.randn(2, 4, generator=generator)
        valid = torch.tensor([True] * num + [False] * 2)
        bank = updated(bank, rows_of(torch.cat([rows, padding]), valid), config)
        reference.update(list(rows))
        counts.append(int(bank.count))
        assert int(bank.count) == len(reference.slots)
        assert int(bank.ptr) == reference.ptr
        torch.testing.assert_close(
            bank.memory_MD[: bank.count], torch.stack(reference.slots), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(bank.mean_norm, torch.tensor(reference.mean_norm), atol=1e-5, rtol=1e-5)
    assert counts == sorted(counts)
    assert counts[-1] <= size


def test_the_running_statistics_are_torchs_over_the_batch():
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    first = updated(empty(2, 3), rows_of(z), MemoryConfig(bank_size=2))
    torch.testing.assert_close(first.feat_mean_D, z.mean(0))
    torch.testing.assert_close(first.feat_var_D, z.var(0, unbiased=False))
    second = updated(first, rows_of(2 * z), MemoryConfig(bank_size=2))
    torch.testing.assert_close(
        second.feat_var_D, 0.9 * first.feat_var_D + 0.1 * (2 * z).var(0, unbiased=False)
    )
    assert int(second.num_updates) == 2


def test_an_empty_bank_gives_exactly_nothing():
    query = torch.randn(3, 4)
    found = retrieve(empty(5, 4), query, MemoryConfig(bank_size=5))
    assert torch.equal(found, torch.zeros(3, 4))
    bank = MemoryBank(MemoryConfig(bank_size=5), 4, 1).eval()
    assert torch.equal(bank(query), query)


@pytest.mark.parametrize("normalize", ["both", True, False, "none", "query_only", "memory_only"])
@pytest.mark.parametrize("threshold", [1.0, 0.9])
def test_retrieval_is_the_softmax_over_the_nearest(normalize, threshold):
    generator = torch.Generator().manual_seed(3)
    memory, query = torch.randn(6, 4, generator=generator), torch.randn(5, 4, generator=generator)
    memory[2] = 3 * query[0]  # its own image: cosine 1
    config = MemoryConfig(bank_size=8, top_k=3, normalize_retrieved=normalize, self_match_threshold=threshold)
    found = retrieve(bank_of(memory, size=8), query, config)
    for row, q in enumerate(query):
        qn, vn = q / q.norm(), memory / memory.norm(dim=1, keepdim=True)
        sims = {
            "both": vn @ qn,
            True: vn @ qn,
            False: memory @ q / 2.0,
            "none": memory @ q / 2.0,
            "query_only": memory @ qn,
            "memory_only": vn @ q,
        }[normalize]
        left = [j for j in range(6) if threshold >= 1 or (vn @ qn)[j] < threshold]
        best = sorted(left, key=lambda j: (-sims[j].item(), j))[:3]
        expected = torch.softmax(sims[best], 0) @ memory[best]
        if normalize is True:
            expected = expected / expected.norm() * q.norm()
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_equal_similarities_take_the_lower_slot_and_a_row_without_any_gets_zeros():
    memory = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    config = MemoryConfig(bank_size=3, top_k=1)
    found = retrieve(bank_of(memory), torch.tensor([[-1.0, 0.0]]), config)
    assert found.tolist() == [[0.0, 1.0]]  # slots 0 and 2 are equally near
    alone = MemoryConfig(bank_size=1, top_k=1, self_match_threshold=0.9999)
    assert retrieve(bank_of([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), alone).tolist() == [[0.0, 0.0]]


def test_the_gradient_reaches_the_query_and_never_the_bank():
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(4, 3, generator=generator, dtype=torch.float32)
    query = torch.randn(2, 3, generator=generator, requires_grad=True)
    bank = MemoryBank(MemoryConfig(bank_size=4, top_k=2), 3, 1)
    bank.memory_MD.copy_(memory)
    bank.count.fill_(4)
    bank(query).square().sum().backward()
    assert query.grad is not None
    assert not any(buffer.requires_grad for buffer in bank.buffers())
    exact = torch.autograd.gradcheck(
        lambda q: retrieve(bank.state, q, bank.config).double(),
        query.detach().double().requires_grad_(),
        eps=1e-3,
        atol=1e-2,
    )
    assert exact


def offer(bank: MemoryBank, features, ids) -> torch.Tensor:
    """A forward pass of announced rows, without labels."""
    rows = rows_of(features, ids=ids)
    bank.expect(rows.valid_B, rows.labels_BK, rows.row_B)
    return bank(features)


def test_written_once_per_update_and_forgotten_when_it_is_skipped():
    config = MemoryConfig(bank_size=8, update_strategy="fifo")
    bank, whole = MemoryBank(config, 2, 1), MemoryBank(config, 2, 1)
    rows = torch.arange(12.0).reshape(6, 2)
    for part, ids in zip(rows.split(3), ([0, 1, 2], [3, 4, 5]), strict=True):
        before = bank.memory_MD.clone()
        offer(bank, part, ids)
        assert torch.equal(bank.memory_MD, before)
    bank.write()
    offer(whole, rows, range(6))
    whole.write()
    assert all(torch.equal(a, b) for a, b in zip(bank.buffers(), whole.buffers(), strict=True))
    offer(bank, rows + 100, range(6))
    bank.forget()
    bank.write()
    assert torch.equal(bank.memory_MD, whole.memory_MD)


def test_a_reservoir_keeps_every_vector_with_the_same_chance():
    """Algorithm R: after n vectors each is there with probability M / n; a χ² test over 600 banks."""
    config = MemoryConfig(bank_size=4, update_strategy="reservoir")
    rows = torch.eye(20)
    kept = torch.zeros(20)
    for seed in range(600):
        bank = empty(4, 20)
        for part in rows.split(6):
            bank = updated(bank, rows_of(part), config, seed)
        kept += bank.memory_MD.sum(0)
    expected = 600 * 4 / 20
    assert kept.sum() == 600 * 4
    chi2 = ((kept - expected) ** 2 / (expected * (1 - 4 / 20))).sum()
    assert chi2 < 43.8  # 99.9 % quantile with 19 degrees of freedom
