"""Targets of augmented views: training takes one of each row, the loss is of that one, evaluation of none."""

from dataclasses import replace

import numpy as np
import torch

from mindeye_rows import DIM, SMALL, mindeye_rows, mindeye_task
from voxray.core.batch import EpochRequest
from voxray.testing.sources import ArraySource

VALUES = {"model": SMALL, "objective": {"gallery": "all", "mixco_fraction": 0.0}}


def test_the_loss_is_that_of_the_drawn_view() -> None:
    rows = mindeye_rows(12, 1)
    rows["views_final"] = np.random.default_rng(0).standard_normal((12, 3, DIM)).astype(np.float32)
    task = mindeye_task(VALUES)
    torch.manual_seed(0)
    model, stage = task.build_model().eval(), task.config.resolved_stages()[-1]
    columns = next(iter(ArraySource({"train": rows}).batches(EpochRequest("train", 12, seed=0))))
    clean = task.collate(columns)
    seen = task.augment(clean, 7)
    is_view_BK = (seen.targets["final"][:, None] == clean.views["final"]).all(-1)
    assert (is_view_BK.sum(1) == 1).all()
    assert is_view_BK.any(0).all()
    by_hand = replace(task.augment(replace(clean, views={}), 7), targets=dict(seen.targets))
    of_clean = task.augment(replace(clean, views={}), 7)
    with torch.no_grad():
        terms, expected, other = (task.loss(model, batch, stage) for batch in (seen, by_hand, of_clean))
        kept = task.evaluate(model, clean, stage).rows
    for name in ("mse", "nce"):
        torch.testing.assert_close(terms[name].sum, expected[name].sum)
        assert abs(float(terms[name].sum - other[name].sum)) > 1e-3
    assert kept is not None
    np.testing.assert_allclose(kept.columns["target"], clean.targets["final"].numpy(), rtol=1e-6)
