"""Retrieval against scikit-learn, scipy and torchmetrics; chance and ties in closed form; galleries."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import top_k_accuracy_score
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank

from voxray.metrics import retrieval
from voxray.metrics.retrieval import Places, galleries, gallery_places, places


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def of_similarities(similarity_NG: list[list[float]], truth: list[int]) -> Places:
    """Queries whose similarities to a gallery of the axes are these numbers."""
    query_NG = torch.tensor(similarity_NG, dtype=torch.float64)
    return places(query_NG, torch.eye(query_NG.shape[1], dtype=torch.float64), torch.tensor(truth))


def test_gold_values() -> None:
    """DOMAINS section 7."""
    found = of_similarities([[0.9, 0.2, 0.1], [0.3, 0.4, 0.8], [0.5, 0.1, 0.6]], [0, 1, 2])
    assert float(found.recall(1).mean()) == pytest.approx(2 / 3)
    assert float(found.recall(2).mean()) == 1
    assert float(found.two_way().mean()) == pytest.approx(0.833333, abs=1e-6)
    assert found.rank().tolist() == [1, 2, 1]


@pytest.mark.parametrize("block_bytes", [4 * 40, 3 * 4 * 40, 1 << 20])
def test_equal_to_the_libraries_in_blocks_of_any_size(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", block_bytes)
    gallery_GD, truth_N = unit(40, 8), torch.randint(40, (70,), generator=torch.Generator().manual_seed(1))
    query_ND = torch.nn.functional.normalize(gallery_GD[truth_N] + unit(70, 8, seed=2), dim=-1)
    found = places(query_ND, gallery_GD, truth_N)
    scores_NG = (query_ND @ gallery_GD.T).numpy()
    ranks = [rankdata(-row)[truth] for row, truth in zip(scores_NG, truth_N, strict=True)]
    np.testing.assert_array_equal(found.rank(), ranks)
    for k in (1, 5, 10):
        reference = top_k_accuracy_score(truth_N, scores_NG, k=k, labels=np.arange(40))
        assert float(found.recall(k).mean()) == pytest.approx(reference)
    for row, truth, value in zip(scores_NG, truth_N, found.reciprocal_rank(), strict=True):
        reference = retrieval_reciprocal_rank(torch.tensor(row), torch.arange(40) == truth)
        assert float(value) == pytest.approx(float(reference))
    pairs = [
        np.mean([row[truth] > row[other] for other in range(40) if other != truth])
        for row, truth in zip(scores_NG, truth_N.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found.two_way(), pairs, rtol=1e-12)


def test_ties_are_the_mean_over_their_orders() -> None:
    """A truth level with two others, one above them: rank 2, 3 or 4, each with the same chance."""
    found = of_similarities([[0.5, 0.9, 0.5, 0.5, 0.1]], [0])
    assert found.rank().tolist() == [3]
    assert [float(found.recall(k)) for k in range(1, 6)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert float(found.reciprocal_rank()) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert float(found.two_way()) == pytest.approx((1 + 2 * 0.5) / 4)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_guess_that_tells_nothing_apart_is_at_chance(value: float) -> None:
    """Closed form in a gallery of G: recall K/G, rank (G + 1)/2, two-way 1/2, 1/rank H(G)/G."""
    found = of_similarities([[value] * 12] * 3, [0, 5, 11])
    assert found.recall(3).tolist() == pytest.approx([3 / 12] * 3)
    assert found.rank().tolist() == [6.5] * 3
    assert found.two_way().tolist() == pytest.approx([0.5] * 3)
    harmonic = sum(1 / rank for rank in range(1, 13))
    assert found.reciprocal_rank().tolist() == pytest.approx([harmonic / 12] * 3)


def test_random_guesses_are_at_chance() -> None:
    gallery_GD, truth_N = unit(300, 16), torch.arange(300).repeat(20)
    found = places(unit(6000, 16, seed=3), gallery_GD, truth_N)
    for k in (1, 10, 50):
        chance = k / 300
        assert float(found.recall(k).mean()) == pytest.approx(chance, abs=4 * (chance / 6000) ** 0.5)
    assert float(found.two_way().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_rotation_of_all_embeddings_changes_nothing() -> None:
    gallery_GD, query_ND, truth_N = unit(30, 6), unit(50, 6, seed=1), torch.arange(50) % 30
    rotation_DD = torch.linalg.qr(unit(6, 6, seed=2))[0]
    found = places(query_ND, gallery_GD, truth_N)
    turned = places(query_ND @ rotation_DD, gallery_GD @ rotation_DD, truth_N)
    torch.testing.assert_close(turned.rank(), found.rank())


def test_galleries_are_disjoint_and_do_not_depend_on_the_order_of_stimuli() -> None:
    names = [f"nsd{i:05d}" for i in range(47)]
    found_S = galleries(names, 10)
    assert torch.bincount(found_S + 1).tolist() == [7, 10, 10, 10, 10]
    order = np.random.default_rng(0).permutation(47)
    shuffled_S = galleries([names[i] for i in order], 10)
    assert torch.equal(shuffled_S, found_S[order])
    assert galleries(names, None).tolist() == [0] * 47
    with pytest.raises(ValueError, match=r"gallery of 48 .* there are 47"):
        galleries(names, 48)


def test_queries_ask_the_gallery_of_their_stimulus() -> None:
    """Each gallery by itself gives the same; left-over stimuli have no place."""
    target_SD, gallery_S = unit(25, 8), galleries([str(i) for i in range(25)], 8)
    stimulus_N = torch.randint(25, (90,), generator=torch.Generator().manual_seed(4))
    query_ND = unit(90, 8, seed=5)
    found = gallery_places(query_ND, target_SD, stimulus_N, gallery_S)
    assert found.size == 8
    for row, stimulus in enumerate(stimulus_N.tolist()):
        if gallery_S[stimulus] < 0:
            for value_N in (found.rank(), found.recall(5), found.reciprocal_rank(), found.two_way()):
                assert value_N[row].isnan()
            continue
        others = (gallery_S == gallery_S[stimulus]).nonzero()[:, 0]
        similarity_G = target_SD[others] @ query_ND[row]
        own = target_SD[stimulus] @ query_ND[row]
        assert float(found.rank()[row]) == 1 + int((similarity_G > own + 1e-12).sum())
    order = torch.randperm(90, generator=torch.Generator().manual_seed(6))
    moved = gallery_places(query_ND[order], target_SD, stimulus_N[order], gallery_S)
    torch.testing.assert_close(moved.rank(), found.rank()[order], equal_nan=True)


def test_a_gallery_of_one_and_no_queries() -> None:
    alone = places(unit(2, 4), unit(1, 4), torch.zeros(2, dtype=torch.int64))
    assert alone.rank().tolist() == [1, 1]
    assert alone.two_way().isnan().all()
    assert len(places(unit(0, 4), unit(3, 4), torch.zeros(0, dtype=torch.int64)).rank()) == 0
