"""BLEU against torchmetrics' own."""

import math

import pytest
from torchmetrics.functional.text import bleu_score

from voxray.metrics.bleu import corpus_bleu

TRUE = ["the cat sat on the mat today", "i will go around the house now", "please bring me some water"]
OURS = ["the cat sat on the mat", "i will go around a house now now", "please bring me some more water"]


@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 1, 2], [2]])
def test_it_is_the_librarys(rows: list[int]) -> None:
    pairs = [(OURS[i].split(), TRUE[i].split()) for i in rows]
    theirs = bleu_score([OURS[i] for i in rows], [[TRUE[i]] for i in rows])
    assert corpus_bleu(pairs) == pytest.approx(float(theirs), abs=1e-6)


def test_bounds() -> None:
    assert corpus_bleu([(text.split(), text.split()) for text in TRUE]) == pytest.approx(1.0)
    assert corpus_bleu([(["no"], TRUE[0].split())]) == 0.0
    assert corpus_bleu([([], TRUE[0].split())]) == 0.0
    assert math.isnan(corpus_bleu([(["no"], [])]))
