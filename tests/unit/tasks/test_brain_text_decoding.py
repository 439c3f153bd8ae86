"""Decoding and error rates, with jiwer and written-out sums over paths as authorities."""

import itertools
import math

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trial_rows import SMALL, brain_task, trial_rows
from voxray.core.evaluation import Evaluation, Rows
from voxray.tasks.brain_text import scores
from voxray.tasks.brain_text.edits import aligned, edit_distance, marked
from voxray.tasks.brain_text.floor import linear_floor
from voxray.tasks.brain_text.units import greedy, plain_text, prefix_search, units_of

WORDS = st.lists(st.sampled_from(["a", "go", "around", "will"]), max_size=6)


def test_the_gold_values() -> None:
    errors = scores.text_errors(["i go round"], ["I will go around."])
    assert errors["wer"].rate() == 0.5
    assert errors["cer"].rate() == 6 / 16
    assert errors["exact"].rate() == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=5))
def test_rates_are_jiwers(pairs: list[tuple[list[str], list[str]]]) -> None:
    ours, true = [" ".join(a) for a, _ in pairs], [" ".join(b) for _, b in pairs]
    errors = scores.text_errors(ours, true)
    assert errors["wer"].rate() == pytest.approx(jiwer.wer(true, ours))
    assert errors["cer"].rate() == pytest.approx(jiwer.cer(true, ours))


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_an_alignment_has_the_fewest_edits_and_spells_both(ours: list[str], true: list[str]) -> None:
    edits = aligned(ours, true)
    assert sum(edit.kind != "equal" for edit in edits) == edit_distance(ours, true)
    assert [edit.decoded for edit in edits if edit.kind != "delete"] == ours
    assert [edit.truth for edit in edits if edit.kind != "insert"] == true


def test_an_alignment_in_one_line() -> None:
    ours, true = ["i", "go", "round", "now"], ["i", "will", "go", "around"]
    assert marked(ours, true) == "i [-will] go [round|around] [+now]"


def test_rows_without_transcript_count_in_nothing() -> None:
    errors = scores.text_errors(["no", "what"], ["no", ""])
    assert [errors[name].rate() for name in ("wer", "cer", "exact")] == [0.0, 0.0, 1.0]
    assert math.isnan(scores.text_errors(["what"], [""])["wer"].rate())


def test_plain_text_keeps_what_upstream_keeps() -> None:
    assert plain_text("  I'm well- known, it  is--so 'em.") == "i'm well known it isso'em"


def test_greedy_merges_then_drops_blanks() -> None:
    units = np.array([[0, 3, 3, 0, 3, 4, 4], [5, 5, 1, 1, 1, 1, 1]])
    assert greedy(units, np.array([7, 2])) == [[3, 3, 4], [5]]
    assert greedy(units, np.array([0, 0])) == [[], []]


@pytest.mark.parametrize("seed", range(4))
def test_prefix_search_finds_the_likeliest_labelling(seed: int) -> None:
    """Every path of 5 steps over 3 units, added up by what it spells."""
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet([0.7] * 3, 5))
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(3), repeat=5):
        spelt = tuple(greedy(np.array([path]), np.array([5]))[0])
        totals[spelt] = totals.get(spelt, 0.0) + math.exp(sum(log_probs[t, u] for t, u in enumerate(path)))
    best = max(totals, key=totals.__getitem__)
    assert tuple(prefix_search(log_probs, 50)) == best
    assert prefix_search(log_probs[:0], 3) == []


def test_units_of_texts() -> None:
    characters = units_of("characters", {})
    assert characters.show(characters.encode("It's me!")) == "it's me"
    words = units_of("words", {"text": {"words": ["go", "will"]}})
    assert words.show(words.encode("Will nobody go?")) == "will go"
    phonemes = units_of("phonemes", {})
    assert phonemes.show([7, 40]) == "B |"


def test_an_unlabelled_split_has_predictions_and_no_rates() -> None:
    task = brain_task({"model": SMALL, "objective": {"alpha": 0.0, "beta": 0.0, "gamma": 1.0}})
    columns = trial_rows(5, 0, is_labelled=False)
    batch = task.collate({**columns, "valid": np.ones(5, bool), "position": np.arange(5)})
    merged = task.evaluate(task.build_model().eval(), batch, task.config.resolved_stages()[-1])
    summary = task.summarize(merged)
    assert math.isnan(float(str(summary["per"])))
    assert math.isnan(float(str(summary["loss"])))
    predictions = task.predictions(merged)
    assert set(predictions) == {"text", "phonemes", "decoded_phonemes", "phoneme_alignment"}
    assert predictions["phoneme_alignment"].tolist() == [""] * 5


def test_intervals_are_of_resampled_groups() -> None:
    """Of equal groups an interval has no width; of two unlike ones it goes from one to the other."""
    task = brain_task(
        {"model": SMALL, "objective": {"alpha": 0.0, "beta": 0.0, "gamma": 1.0, "units": "words"}}
    )
    text = np.array(["a b"] * 4, dtype=object)

    def interval(decoded: list[str]) -> tuple[float, float]:
        rows = Rows(list("wxyz"), list("ggkk"), {"text": text, "decoded": np.array(decoded, dtype=object)})
        return task.intervals(Evaluation(rows=rows), 0)["wer"][0]

    assert interval(["a c"] * 4) == (0.5, 0.5)
    assert interval(["a b", "a b", "c c", "c c"]) == (0.0, 1.0)


def test_the_floor_tells_known_texts_apart() -> None:
    rng = np.random.default_rng(0)
    texts = np.array(["left", "right"] * 20, dtype=object)
    neural = rng.standard_normal((40, 9, 4)) + 3 * (texts == "left")[:, None, None]
    columns = {"text": texts, "neural": neural, "neural.length": np.full(40, 9)}
    assert (linear_floor(columns, columns) == texts).all()
