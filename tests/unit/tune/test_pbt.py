"""A population without Ray: who goes on from whom, with which values, and who is waited for."""

import math
import random
from collections import Counter

import pytest

from voxray.tune.config import ObjectiveConfig, SearchConfig
from voxray.tune.schedulers.checks import may_change, scheduler_problems
from voxray.tune.schedulers.explore import drawn, explore, moved
from voxray.tune.schedulers.pbt import Exploit, Population
from voxray.tune.schedulers.policy import Result
from voxray.tune.space.config import Distribution

NAN = math.nan


def at(population: Population, time: float, scores: dict[int, float]) -> None:
    for index, score in scores.items():
        population.take(Result(index, time, (score,)))


def test_the_worst_quarter_goes_on_from_the_best_quarter():
    population = Population(range(8), every=2, quantile=0.25, seed=0)
    scores = {0: 5.0, 1: 8.0, 2: 1.0, 3: 4.0, 4: 9.0, 5: 2.0, 6: 7.0, 7: 3.0}
    at(population, 1.0, scores)
    assert not population.is_due()
    assert not any(population.waits(index) for index in range(8))
    for count, (index, score) in enumerate(scores.items(), 1):
        assert not population.is_due()
        at(population, 2.0, {index: score})
        assert population.waits(index)
        assert population.is_due() == (count == 8)
    exploits = population.select()
    assert [exploit.index for exploit in exploits] == [1, 4]
    assert {exploit.donor for exploit in exploits} <= {2, 5}
    assert {exploit.generation for exploit in exploits} == {1}
    assert not any(population.waits(index) for index in range(8))
    assert not population.is_due()


def test_donors_are_drawn_alike_whatever_came_first_and_differ_by_seed_and_generation():
    scores = {index: float(index) for index in range(40)}

    def select(seed: int, order: list[int], generation: int = 1) -> list[Exploit]:
        population = Population(range(40), 1, 0.25, seed)
        population.released = generation - 1
        at(population, float(generation), {index: scores[index] for index in order})
        return population.select()

    shuffled = random.Random(1).sample(range(40), 40)
    first = select(0, list(range(40)))
    assert first == select(0, shuffled)
    assert [exploit.index for exploit in first] == list(range(30, 40))
    donors = [e.donor for seed in range(40) for e in select(seed, shuffled)]
    assert set(donors) == set(range(10))  # uniform over the best ten: 400 draws, 40 each expected
    assert max(Counter(donors).values()) < 65
    assert [e.donor for e in first] != [e.donor for e in select(1, shuffled)]
    assert [e.donor for e in first] != [e.donor for e in select(0, shuffled, generation=2)]


@pytest.mark.parametrize(
    ("scores", "quantile", "expected"),
    [
        ({0: 1.0}, 0.25, []),  # alone
        ({0: 1.0, 1: 2.0}, 0.25, [(1, 0)]),
        ({0: 1.0, 1: 1.0}, 0.5, []),  # as good as each other
        ({0: NAN, 1: 3.0, 2: 2.0}, 0.25, [(0, 2)]),  # a NaN is worst
        ({0: NAN, 1: NAN, 2: NAN}, 0.5, []),  # and nobody's model
        ({0: NAN, 1: NAN, 2: NAN, 3: 1.0}, 0.5, [(1, 3), (2, 3)]),
        ({0: 1.0, 1: 2.0, 2: 3.0}, 0.5, [(2, 0)]),  # ⌈1.5⌉, but at most half of three
    ],
)
def test_small_and_odd_populations(scores, quantile, expected):
    population = Population(scores, 1, quantile, seed=0)
    at(population, 1.0, scores)
    found = [(exploit.index, exploit.donor) for exploit in population.select()]
    # Of equals the order is by index: among three NaN the last two are the worst.
    assert found == expected


def test_several_objectives_are_compared_by_rank_and_crowding():
    population = Population(range(4), 1, 0.25, seed=0)
    for index, scores in enumerate([(0.0, 1.0), (1.0, 0.0), (2.0, 2.0), (1.5, 1.5)]):
        population.take(Result(index, 1.0, scores))
    assert population.select() == [Exploit(2, 0, 1)]


def test_whoever_leaves_is_waited_for_no_more():
    population = Population(range(3), 1, 0.5, seed=0)
    at(population, 1.0, {0: 1.0, 1: 2.0})
    assert population.waits(0)
    population.leave(2)  # it crashed
    assert population.is_due()
    assert [exploit.index for exploit in population.select()] == [1]
    at(population, 2.0, {1: 0.5})
    assert population.waits(1)
    population.leave(0)  # and 0 is done: 1 is alone
    assert not population.waits(1)
    population.join(2)  # begun again
    assert population.waits(1)


def test_whoever_takes_over_stands_where_the_other_stood():
    """Their reports may come at other times: 1 had got farther, and trains the rest again."""
    population = Population(range(2), 1, 0.5, seed=0)
    at(population, 1.0, {0: 1.0})
    at(population, 1.5, {1: 2.0})
    assert population.select() == [Exploit(1, 0, 1)]
    assert population.times[1] == 1.0
    at(population, 1.2, {1: 0.9})
    assert not population.waits(1)
    at(population, 3.0, {0: 1.0})  # over a whole generation
    assert population.waits(0)
    at(population, 2.0, {1: 0.9})
    assert population.select() == [Exploit(0, 1, 2)]
    assert not population.waits(0)


@pytest.mark.parametrize(
    ("times", "noted", "released", "is_due"),
    [
        ({0: 2.0, 1: 1.0, 2: 1.0}, 1, 1, False),  # killed in generation 2
        ({0: 2.0, 1: 1.0, 2: 1.0}, 0, 1, False),  # 0 went on, so generation 1 had ended
        ({0: 2.0, 1: 2.0, 2: 2.0}, 1, 1, True),  # killed before it was decided who goes on from whom
        ({0: 2.0, 1: 2.0, 2: 2.0}, 2, 2, False),  # and after that
        ({0: 0.5}, 0, 0, False),
        ({}, 0, 0, False),
    ],
)
def test_a_killed_search_goes_on_in_the_same_generation(times, noted, released, is_due):
    population = Population(range(3), 1, 0.34, seed=0, released=noted)
    for index, time in times.items():
        population.take(Result(index, time, (1.0,)))
        population.was_let_go(index)
    assert population.released == released
    assert population.is_due() == is_due


# --- values

SPACE = {
    "rate": Distribution(loguniform=(1e-4, 1e-1)),
    "share": Distribution(uniform=(0.0, 1.0)),
    "layers": Distribution(int=(1, 10)),
    "width": Distribution(logint=(8, 512)),
    "grid": Distribution(quniform=(0.0, 1.0, 0.25)),
    "bell": Distribution(normal=(0.0, 1.0)),
    "kind": Distribution(choice=["a", "b", "c"]),
    "depth": Distribution(int=(1, 3), when={"kind": "b"}),
    "always": Distribution(fixed=7),
}
VALUES = {
    "rate": 1e-2,
    "share": 0.5,
    "layers": 1,
    "width": 100,
    "grid": 0.25,
    "bell": 0.4,
    "kind": "a",
    "always": 7,
}


def test_numbers_are_multiplied_and_choices_move_to_a_neighbour():
    seen: dict[str, set] = {path: set() for path in SPACE}
    for seed in range(200):
        for path, value in explore(SPACE, VALUES, random.Random(seed), 0.0, (0.8, 1.2)).items():
            seen[path].add(value)
    assert seen["rate"] == {1e-2 * 0.8, 1e-2 * 1.2}
    assert seen["share"] == {0.4, 0.6}
    assert seen["layers"] == {1, 2}  # 0.8 and 1.2 round to 1: one step, inside the range
    assert seen["width"] == {80, 120}
    assert seen["grid"] == {0.0, 0.5}
    assert seen["bell"] == {0.4 * 0.8, 0.4 * 1.2}
    assert seen["kind"] == {"a", "b"}
    assert seen["depth"] == {1, 2, 3}  # drawn, where kind has become b
    assert seen["always"] == {7}


def test_a_key_whose_condition_fails_is_left_out():
    for seed in range(50):
        found = explore(SPACE, {**VALUES, "kind": "b", "depth": 2}, random.Random(seed), 0.0, (0.8, 1.2))
        assert ("depth" in found) == (found["kind"] == "b")
        assert found["kind"] in ("a", "c")  # it always moves


def test_values_stay_inside_their_ranges():
    ends = {"rate": 1e-1, "share": 1.0, "layers": 10, "width": 512, "grid": 1.0, "bell": 3.7, "kind": "c"}
    assert {path: moved(SPACE[path], value, 1.2) for path, value in ends.items() if path != "bell"} == {
        path: value for path, value in ends.items() if path != "bell"
    }
    assert moved(SPACE["bell"], 3.7, 1.2) == pytest.approx(3.719016485455709)  # its quantile 1 − 1e-4


def test_drawn_anew_they_are_distributed_as_declared():
    chance = random.Random(0)
    many = {
        path: [drawn(entry, chance) for _ in range(4000)] for path, entry in SPACE.items() if path != "always"
    }
    assert 1e-4 <= min(many["rate"]) < 1.1e-4 < 0.9e-1 < max(many["rate"]) <= 1e-1
    below = sum(value < 10**-2.5 for value in many["rate"]) / 4000  # half, in the logarithm
    assert below == pytest.approx(0.5, abs=0.03)
    assert sum(many["share"]) / 4000 == pytest.approx(0.5, abs=0.03)
    assert Counter(many["layers"]).keys() == set(range(1, 11))
    assert Counter(many["layers"]).most_common()[-1][1] > 300
    assert Counter(many["grid"]).keys() == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert sum(value < 64 for value in many["width"]) / 4000 == pytest.approx(0.5, abs=0.03)
    assert 8 <= min(many["width"]) <= max(many["width"]) <= 512
    assert sum(value**2 for value in many["bell"]) / 4000 == pytest.approx(1.0, abs=0.07)
    assert min(Counter(many["kind"]).values()) > 1200
    resampled = explore(SPACE, VALUES, random.Random(0), 1.0, (0.8, 1.2))
    assert resampled["rate"] not in (1e-2, 0.8e-2, 1.2e-2)
    assert resampled["always"] == 7


# --- what a population cannot do

BASE = {"training.validate_every.epochs": 1, "checkpoints.save_every_n_epochs": 1}


def problems(
    scheduler: dict, paths: list[str], base: dict = BASE, metrics: tuple[str, ...] = ("m",)
) -> list[str]:
    space = {path: {"uniform": [0.1, 0.2]} for path in paths}
    search = SearchConfig.model_validate({"scheduler": scheduler, "trials": 4, "space": space})
    objectives = [ObjectiveConfig(metric=name, mode="min") for name in metrics]
    return scheduler_problems(search, objectives, base, lambda *path: ".".join(path))


def test_keys_that_the_state_depends_on_are_refused_for_a_population():
    fine = ["training.learning_rate", "objective.weights.mse", "model.dropout", "stages.1.weight_decay"]
    fine += ["stages.0.memory.momentum", "training.ema_decay"]
    wrong = [
        "training.batch_size",
        "data.filter",
        "stages.0.epochs",
        "training.optimizer",
        "scale.num_workers",
    ]
    assert problems({"name": "pbt"}, fine) == []
    found = problems({"name": "pbt"}, [*fine, *wrong])
    assert [text.split(": ")[1] for text in found] == wrong
    assert "search.space.training.batch_size: training.batch_size: " in found[0]
    assert problems({"name": "asha"}, wrong) == []
    assert [path for path in [*fine, *wrong] if may_change(path)] == fine


def test_a_population_needs_a_checkpoint_of_each_evaluation():
    pbt, rate = {"name": "pbt"}, ["training.learning_rate"]
    assert "save_every_n_epochs=1" in problems(pbt, rate, {**BASE, "checkpoints.save_every_n_epochs": 2})[0]
    assert problems(pbt, rate, {**BASE, "training.validate_every.epochs": 2}) == []
    steps = {**BASE, "training.validate_every.steps": 50}
    assert "save_every_n_steps=50" in problems(pbt, rate, steps)[0]
    assert problems(pbt, rate, {**steps, "checkpoints.save_every_n_steps": 25}) == []


def test_what_else_a_scheduler_cannot_do():
    assert "one objective" in problems({"name": "median"}, ["a"], metrics=("m", "n"))[0]
    assert problems({"name": "median"}, ["a"]) == []
    assert problems({"name": "asha"}, ["a"], metrics=("m", "n")) == []
    assert "max_steps" in problems({"name": "hyperband", "unit": "steps"}, ["a"])[0]
