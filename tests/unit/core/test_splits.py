"""Splits: by group only, whatever the order of rows, near the shares, rare labels everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.core.splits import assign_splits
from voxray.data.config import SplitsConfig

DEFAULT = SplitsConfig()


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[str], np.ndarray]:
    """Rows of 3 … 30 patients with one to nine images each and three labels, some unknown."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=3, max_size=30))
    groups = [f"p{group}" for group, size in enumerate(sizes) for _ in range(size)]
    labels = np.random.default_rng(draw(st.integers(0, 99))).choice(
        [0, 1, np.nan], (len(groups), 3), p=[0.7, 0.2, 0.1]
    )
    return groups, labels


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(0, 5), st.randoms())
def test_every_group_once_whatever_the_order_of_rows(data: tuple, seed: int, random: object) -> None:
    groups, labels = data
    splits = assign_splits(groups, DEFAULT, seed, labels)
    assert set(splits) == set(groups)
    assert set(splits.values()) == {"train", "val", "test"}
    order = list(range(len(groups)))
    random.shuffle(order)
    assert assign_splits([groups[i] for i in order], DEFAULT, seed, labels[order]) == splits


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(0, 5))
def test_declared_test_stays_and_val_comes_from_train(data: tuple, seed: int) -> None:
    groups, labels = data
    names = sorted(set(groups))
    test = {name for i, name in enumerate(names) if i % 3 == 0}
    if len(names) - len(test) < 2:
        return
    declared = ["test" if group in test else "train" for group in groups]
    splits = assign_splits(groups, DEFAULT, seed, labels, declared)
    assert {name for name, split in splits.items() if split == "test"} == test
    assert set(splits.values()) == {"train", "val", "test"}


def test_declared_val_is_not_drawn_again() -> None:
    declared = ["train"] * 8 + ["val", "test"]
    groups = [str(i) for i in range(10)]
    assert assign_splits(groups, DEFAULT, 0, None, declared) == dict(zip(groups, declared, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_counted_in_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.2, 300)
    groups = np.repeat([f"p{i}" for i in range(300)], sizes).tolist()
    labels = (rng.random((len(groups), 5)) < 0.1).astype(float)
    splits = assign_splits(groups, DEFAULT, seed, labels)
    rows = np.array([splits[group] for group in groups])
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert abs((rows == split).mean() - share) < 0.02
        for positives in labels.T:
            assert abs(positives[rows == split].sum() / positives.sum() - share) < 0.06


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_label_reaches_every_split(seed: int) -> None:
    groups = [str(i) for i in range(200)]
    labels = np.zeros((200, 2))
    labels[:3, 0] = 1  # three patients: by chance all of them would be in train in 36 of 100 draws
    labels[50:150, 1] = 1
    splits = assign_splits(groups, DEFAULT, seed, labels)
    assert {splits[str(i)] for i in range(3)} == {"train", "val", "test"}


def test_nihs_lists_leave_a_tenth_of_the_other_patients_for_validation() -> None:
    """A tenth of NIH (30,805 patients, 227 images of Hernia), a fifth of its patients in the test list."""
    rng = np.random.default_rng(0)
    num_patients, num_images, num_hernia = 3080, 11_212, 23
    patient = np.sort(rng.integers(0, num_patients, num_images))
    labels = np.zeros((num_images, 2))
    labels[rng.choice(num_images, num_hernia, replace=False), 0] = 1
    labels[:, 1] = rng.random(num_images) < 19_894 / 112_120  # Infiltration
    is_test = rng.random(num_patients)[patient] < 0.2
    declared = ["test" if flag else "train" for flag in is_test]
    shares = SplitsConfig(train=0.9, val=0.1)
    splits = assign_splits([str(name) for name in patient], shares, 85, labels, declared)
    rows = np.array([splits[str(name)] for name in patient])
    np.testing.assert_array_equal(rows == "test", is_test)
    assert (rows == "val").sum() == pytest.approx(0.1 * (~is_test).sum(), abs=5)
    hernia = labels[~is_test, 0].sum()
    assert labels[rows == "val", 0].sum() == pytest.approx(0.1 * hernia, abs=1)
    assert labels[rows == "val", 1].sum() == pytest.approx(0.1 * labels[~is_test, 1].sum(), abs=3)


@pytest.mark.parametrize("seed", range(5))
def test_where_most_are_positive_the_negatives_reach_every_split(seed: int) -> None:
    """In the covid set 191 of 201 images show pneumonia: by chance a split lacks the others."""
    groups = [str(i) for i in range(200)]
    labels = np.full((200, 2), np.nan)
    labels[:, 0] = 1
    labels[:3, 0] = 0
    labels[:, 1] = 1  # known, but the same in all rows: nothing to balance
    splits = assign_splits(groups, DEFAULT, seed, labels)
    assert {splits[str(i)] for i in range(3)} == {"train", "val", "test"}


def test_one_giant_patient_stays_whole_and_goes_to_train() -> None:
    groups = ["giant"] * 60 + [str(i) for i in range(40)]
    splits = assign_splits(groups, DEFAULT, 0)
    assert splits["giant"] == "train"
    rows = [splits[group] for group in groups]
    assert [rows.count(split) for split in ("train", "val", "test")] == [70, 15, 15]


def test_the_seed_matters_and_only_the_seed() -> None:
    groups = [str(i) for i in range(50)]
    assert assign_splits(groups, DEFAULT, 0) == assign_splits(groups, DEFAULT, 0)
    assert assign_splits(groups, DEFAULT, 0) != assign_splits(groups, DEFAULT, 1)


def test_shares_of_zero() -> None:
    groups = [str(i) for i in range(10)]
    splits = assign_splits(groups, SplitsConfig(train=0.5, val=0.5, test=0), 0)
    assert sorted(splits.values()) == ["train"] * 5 + ["val"] * 5
    with pytest.raises(InputError, match="all shares are 0"):
        assign_splits(groups, SplitsConfig(train=0, val=0, test=0), 0)


def test_an_empty_split_is_named() -> None:
    with pytest.raises(InputError) as error:
        assign_splits(["a", "a", "a"], DEFAULT, 0)
    assert [problem.split("'")[1] for problem in error.value.problems] == ["val", "test"]
    assert "`splits.val=0`" in error.value.problems[0]


def test_a_group_declared_twice_and_an_unknown_split() -> None:
    with pytest.raises(InputError, match="group 'a' is declared in two splits, train and test"):
        assign_splits(["a", "a"], DEFAULT, 0, None, ["train", "test"])
    with pytest.raises(InputError, match="'dev' is no split"):
        assign_splits(["a"], DEFAULT, 0, None, ["dev"])
