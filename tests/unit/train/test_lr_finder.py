"""Suggestions against fastai's definitions worked out by hand, and the search against its own."""

import itertools
import math

import pytest

from voxray.train.optimisation.lr_finder import Curve, draw, find, suggest

KINDS = ("valley", "minimum", "steep", "slide")
GOLD_LOSSES = [
    2.3, 2.31, 2.29, 2.3, 2.28, 2.27, 2.25, 2.2, 2.1, 1.9,
    1.6, 1.3, 1.1, 1.0, 0.95, 1.0, 1.3, 2.0, 3.5, 6.0,
]  # fmt: skip
GOLD_RATES = [1e-7 * 1e8 ** (i / 19) for i in range(20)]


def tenths(number: int) -> list[float]:
    return [10.0**i for i in range(number)]


def test_valley_has_the_gold_value():
    assert suggest("valley", GOLD_RATES, GOLD_LOSSES) == pytest.approx(8.8587e-5, rel=1e-5)


def test_valley_of_a_curve_that_only_falls():
    """Seven losses end at index 6, so fastai has them start at 6 − 7: −1 + ⌊7/3⌋ + ⌊7/6⌋ = 2."""
    assert suggest("valley", tenths(7), [7, 6, 5, 4, 3, 2, 1]) == 100.0
    assert suggest("valley", tenths(2), [2, 1]) == 1.0


def test_minimum_is_a_tenth_of_the_rate_with_the_lowest_loss():
    assert suggest("minimum", GOLD_RATES, GOLD_LOSSES) == pytest.approx(1e-8 * 1e8 ** (14 / 19))


def test_steep_is_where_the_loss_falls_fastest_per_log_rate():
    """The rates are not evenly spaced: 3 over ln 100 is less steep than 2 over ln 10."""
    assert suggest("steep", [1.0, 100.0, 1000.0, 10000.0], [9.0, 6.0, 4.0, 3.5]) == 100.0


def test_slide_stops_where_slopes_fifteen_points_apart_are_alike():
    """Slopes are −1 up to index 20 and +1 from 22 on (0 at 21). Seen from the right the window of 15 first
    ends on slopes that are alike when both lie in the falling part: left end 5, so 6 is the last unlike one.
    """
    losses = [abs(i - 21.0) for i in range(30)]
    rates = [1.1**i for i in range(30)]
    assert suggest("slide", rates, losses) == pytest.approx(1.1**6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "losses",
    [
        [],
        [1.0],
        [1.0, 2.0, 3.0],
        [1.0] * 40,
        [math.nan] * 20,
        [2.0, math.nan, 1.0, 0.5],
        [1.0, math.inf, 0.0],
    ],
)
def test_a_curve_that_never_falls_gives_no_rate(kind, losses):
    assert suggest(kind, tenths(len(losses)), losses) is None


def test_no_rate_where_the_rule_finds_no_place():
    assert suggest("slide", tenths(15), list(range(15, 0, -1))) is None
    assert suggest("minimum", tenths(3), [1.0, 3.0, 2.0]) is None


def test_what_follows_a_nan_is_not_looked_at():
    cut = [*GOLD_LOSSES, math.nan, 0.0, 0.0]
    assert suggest("minimum", [*GOLD_RATES, 20.0, 30.0, 40.0], cut) == suggest(
        "minimum", GOLD_RATES, GOLD_LOSSES
    )


def test_rates_grow_by_a_constant_factor_and_losses_are_smoothed_without_bias():
    seen: list[float] = []

    def update(rate: float) -> float:
        seen.append(rate)
        return 3.0 - 0.01 * len(seen)

    curve = find("steep", update, start=1e-4, end=1.0, num_updates=50)
    assert list(curve.rates) == seen == pytest.approx([1e-4 * 1e4 ** (i / 50) for i in range(50)])
    losses = [3.0 - 0.01 * (i + 1) for i in range(50)]
    for index, smoothed in enumerate(curve.losses):
        weights = [0.98 ** (index - i) for i in range(index + 1)]
        mean = sum(w * loss for w, loss in zip(weights, losses, strict=False)) / sum(weights)
        assert smoothed == pytest.approx(mean)


def test_it_ends_when_the_smoothed_loss_is_four_times_its_lowest():
    """After 19 losses of 1 come tens; the point that passes 4 is the last, and it is kept."""
    losses = iter([1.0] * 19 + [10.0] * 81)
    curve = find("valley", lambda rate: next(losses))
    assert len(curve.losses) < 100
    assert curve.losses[-1] > 4.0 >= curve.losses[-2]
    assert curve.rate is None


def test_it_ends_at_the_first_loss_that_is_not_finite():
    losses = iter([1.0, 0.9, math.nan])
    curve = find("steep", lambda rate: next(losses))
    assert (len(curve.rates), len(curve.losses)) == (2, 2)
    at_once = find("valley", lambda rate: math.inf)
    assert at_once == Curve("valley", (), (), None)


def test_losses_below_zero_do_not_end_it():
    losses = iter([-0.1 * i for i in range(100)])
    assert len(find("valley", lambda rate: next(losses)).losses) == 100


def test_the_first_tenth_and_the_last_five_points_are_left_out():
    """Both ends hold the steepest falls; the suggestion is the steepest one between them."""
    smoothed = [
        100.0,
        50.0,
        *[40.0 - 0.1 * i for i in range(45)],
        *[30.0 - 0.2 * i for i in range(48)],
        9,
        8,
        7,
        6,
        5,
    ]
    raw = [smoothed[0]] + [
        (now * (1 - 0.98 ** (i + 2)) - 0.98 * before * (1 - 0.98 ** (i + 1))) / 0.02
        for i, (before, now) in enumerate(itertools.pairwise(smoothed))
    ]
    values = iter(raw)
    curve = find("steep", lambda rate: next(values))
    assert curve.losses == pytest.approx(smoothed)
    assert curve.rate == pytest.approx(curve.rates[46])  # from 35.6 to 30


@pytest.mark.parametrize("kind", KINDS)
def test_on_gradient_descent_of_a_parabola_the_rate_is_one_that_converges(kind):
    """x ← x − rate · 2x converges for rates below 1."""
    x = 1.0

    def update(rate: float) -> float:
        nonlocal x
        loss = x * x + 0.1
        x -= rate * 2 * x
        return loss

    curve = find(kind, update)
    assert curve.rate is not None
    assert 1e-6 < curve.rate < 1.0


def test_the_record_holds_plain_values():
    record = Curve("valley", (0.1, 0.2), (1.0, 0.123456789), 0.1).to_json()
    assert record == {"rule": "valley", "rate": 0.1, "rates": [0.1, 0.2], "losses": [1.0, 0.123457]}


@pytest.mark.parametrize("rate", [8.8587e-5, None])
def test_the_curve_is_drawn(tmp_path, rate):
    pytest.importorskip("matplotlib")
    path = tmp_path / "lr_finder.png"
    draw(Curve("valley", tuple(GOLD_RATES), tuple(GOLD_LOSSES), rate), path)
    assert path.read_bytes().startswith(b"\x89PNG")
