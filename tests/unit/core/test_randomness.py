"""Keyed randomness: uniform, independent of how rows are split, different for every key."""

import torch
from scipy import stats

from voxray.core.randomness import key, uniform_rows


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
