"""Keyed randomness: uniform, independent of how rows are split, different for every key."""

import torch
from scipy import stats

from voxray.core.randomness import key, normal_rows, uniform_rows


def test_uniform_rows_are_uniform_and_uncorrelated():
    u = uniform_rows(key(1, "augment"), torch.arange(20000), 3)
    for column in u.unbind(1):
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(u.T) - torch.eye(3)
    assert correlation.abs().max() < 0.03
    lag = torch.corrcoef(torch.stack([u[1:, 0], u[:-1, 0]]))[0, 1]
    assert abs(lag) < 0.03


def test_a_row_depends_on_its_position_alone():
    whole = uniform_rows(77, torch.arange(100), 4)
    assert torch.equal(
        torch.cat([uniform_rows(77, part, 4) for part in torch.arange(100).split([30, 70])]), whole
    )
    assert not torch.equal(uniform_rows(78, torch.arange(100), 4), whole)


def test_keys_differ_in_every_part():
    assert len({key(s, e, n) for s in range(5) for e in range(5) for n in "abc"}) == 75


def test_normal_rows_are_normal_and_each_row_is_its_own():
    rows = normal_rows(11, torch.arange(300), 200)
    assert stats.kstest(rows.flatten().numpy(), "norm").pvalue > 0.01
    assert rows.isfinite().all()
    part = torch.tensor([250, 3])
    torch.testing.assert_close(normal_rows(11, part, 200), rows[part], rtol=0, atol=0)
    assert not torch.equal(normal_rows(12, part, 200), rows[part])
