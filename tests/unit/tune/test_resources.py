"""What trials reserve, and how many fit, on made-up nodes; the packing against all that there are."""

import itertools
import random

import pytest

from voxray.config.errors import InputError
from voxray.train.config import ScaleConfig
from voxray.train.growth import UNKNOWN, Growth
from voxray.tune.executors.resources import fit_trials, num_slots

NONE = Growth()


def node(cpu: float, gpu: float = 0, alive: bool = True) -> dict:
    """A node as `ray.nodes()` tells it."""
    resources = {"CPU": cpu, "GPU": gpu, "memory": 1e10, "node:10.0.0.1": 1.0}
    return {"Alive": alive, "Resources": {name: amount for name, amount in resources.items() if amount}}


def fit(nodes, *, asked="auto", most=None, reads=False, growth=NONE, **scale):
    scales = [ScaleConfig.model_validate(scale)]
    return fit_trials(
        scales, asked, nodes, most_at_a_time=most, reads=reads, place="space.yaml:3", growth=growth
    )


# nodes, scale, reads → executor, at a time, what limits
TABLE = [
    ([node(4)], {}, False, "inline", 4, "CPU"),
    ([node(4)], {}, True, "inline", 3, "CPU"),
    ([node(4), node(2, alive=False)], {}, False, "inline", 4, "CPU"),
    ([node(4)], {"num_workers": 2}, False, "gang", 2, "CPU"),
    ([node(4)], {"num_workers": 2}, True, "gang", 1, "CPU"),
    ([node(4)], {"cpus_per_worker": 1.5}, False, "inline", 2, "CPU"),
    ([node(1.5), node(1.5)], {}, False, "inline", 2, "CPU"),  # 3 in sum
    ([node(3), node(3)], {"cpus_per_worker": 2}, False, "inline", 2, "CPU"),  # 3 in sum
    (
        [node(3), node(3)],
        {"cpus_per_worker": 2},
        True,
        "inline",
        2,
        "CPU",
    ),  # what is left over is enough to read
    ([node(4), node(4)], {"num_workers": 3}, False, "gang", 2, "CPU"),  # the second lies on both nodes
    ([node(2), node(2)], {"num_workers": 4}, False, "train", 1, "CPU"),
    ([node(4)], {"num_workers": [1, 2]}, False, "train", 2, "CPU"),
    ([node(4)], {"num_workers": [2, 8]}, False, "train", 1, "CPU"),  # takes what there is
    ([node(16, 1)], {}, False, "inline", 1, "GPU"),  # auto: a GPU each
    ([node(16, 1)], {"gpus_per_worker": 0.25}, False, "inline", 4, "GPU"),
    ([node(16, 1)], {"gpus_per_worker": 0.1}, False, "inline", 10, "GPU"),
    ([node(2, 1)], {"gpus_per_worker": 0.25}, False, "inline", 2, "CPU"),
    (
        [node(16, 2)],
        {"gpus_per_worker": 0.6},
        False,
        "inline",
        2,
        "GPU",
    ),  # 3 in sum, but a part is of one GPU
    ([node(16, 1)], {"gpus_per_worker": 0}, False, "inline", 16, "CPU"),
    ([node(8, 4)], {"num_workers": 2}, False, "gang", 2, "GPU"),
    ([node(8, 1)], {"num_workers": 2}, False, "gang", 4, "CPU"),  # auto: not a GPU for each worker
    ([node(8, 4), node(64)], {}, False, "inline", 4, "GPU"),  # nodes without GPUs hold none
    ([node(1000)], {"cpus_per_worker": 0.1}, False, "inline", 10000, "CPU"),
]


@pytest.mark.parametrize(("nodes", "scale", "reads", "executor", "at_a_time", "limit"), TABLE)
def test_table(nodes, scale, reads, executor, at_a_time, limit):
    found = fit(nodes, reads=reads, **scale)
    assert (found.executor, found.at_a_time) == (executor, at_a_time)
    assert f"{at_a_time} at a time ({executor}, " in found.text
    assert f"{at_a_time} fit, {limit} limits them" in found.text


HEAD = node(0)
TWO_SMALL = Growth(({"CPU": 2},) * 2, 2)
MIXED = Growth(({"CPU": 2},) * 3 + ({"CPU": 8, "GPU": 2},) * 2, 3)  # three together


@pytest.mark.parametrize(
    ("nodes", "growth", "more", "executor", "at_a_time"),
    [
        ([HEAD], TWO_SMALL, {}, "inline", 4),
        ([node(1)], TWO_SMALL, {}, "inline", 5),
        ([HEAD], TWO_SMALL, {"reads": True}, "inline", 3),
        ([HEAD], TWO_SMALL, {"num_workers": 2}, "gang", 2),
        ([HEAD], TWO_SMALL, {"num_workers": 4}, "train", 1),
        ([HEAD], TWO_SMALL, {"num_workers": [1, 4]}, "train", 1),
        ([HEAD], TWO_SMALL, {"most": 3}, "inline", 3),
        ([HEAD], MIXED, {"gpus_per_worker": 0}, "inline", 18),  # two of 8 CPUs, one of 2
        ([HEAD], MIXED, {}, "inline", 4),  # auto: a GPU each
        ([HEAD], UNKNOWN, {}, "inline", 1),
        ([HEAD], UNKNOWN, {"most": 5}, "inline", 5),
        ([node(4)], UNKNOWN, {}, "inline", 4),
        ([HEAD], UNKNOWN, {"num_workers": 2}, "train", 1),  # perhaps no node holds both
    ],
)
def test_nodes_that_an_autoscaler_may_add_count(nodes, growth, more, executor, at_a_time):
    found = fit(nodes, growth=growth, **more)
    assert (found.executor, found.at_a_time) == (executor, at_a_time), found.text


def test_what_is_said_of_nodes_that_may_come():
    assert "4 fit with 2 nodes of the autoscaler, CPU limits them" in fit([HEAD], growth=TWO_SMALL).text
    assert "0 fit before nodes are added" in fit([HEAD], growth=UNKNOWN).text
    with pytest.raises(InputError) as error:
        fit([node(1)], growth=TWO_SMALL, num_workers=6)
    said = "Ray has 5 CPU on 3 nodes with the 2 that the autoscaler may add, enough for 5 workers; lower"
    assert said in str(error.value)


def test_what_tune_reserves():
    assert fit([node(4)]).bundles == [{"CPU": 1.0}]
    assert fit([node(4)], num_workers=2).bundles == [{}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert (
        fit([node(4, 1)], num_workers=2, gpus_per_worker=0.25).bundles[1:] == [{"CPU": 1.0, "GPU": 0.25}] * 2
    )
    assert fit([node(4)], num_workers=2, asked="train").bundles == [{"memory": 1.0}]
    assert fit([node(8, 4)], num_workers=2).num_gpus == 2
    assert fit([node(4)]).num_gpus == 0


def test_the_most_that_a_searched_scale_asks_for():
    scales = [ScaleConfig(num_workers=1, cpus_per_worker=2), ScaleConfig(num_workers=2)]
    found = fit_trials(scales, "auto", [node(8)], most_at_a_time=None, reads=False, place="here")
    assert (found.executor, found.workers, dict(found.worker), found.at_a_time) == ("gang", 2, {"CPU": 2}, 2)


def test_the_user_may_ask_for_fewer_at_a_time_and_another_executor():
    assert fit([node(8)], most=3).at_a_time == 3
    assert fit([node(2)], most=3).at_a_time == 2
    assert fit([node(8)], asked="gang").executor == "gang"
    assert fit([node(8)], asked="train", num_workers=2).executor == "train"


@pytest.mark.parametrize(
    ("nodes", "more", "said"),
    [
        (
            [node(4)],
            {"num_workers": 8},
            "space.yaml:3: a trial with scale.num_workers=8 needs 8 workers of 1 CPU; Ray has 4 CPU on 1 "
            "node, enough for 4 workers; lower scale.num_workers or scale.cpus_per_worker",
        ),
        (
            [node(1)],
            {"reads": True},
            "space.yaml:3: a trial needs 1 CPU, and reading its data 1 CPU; Ray has 1 CPU on 1 node, enough "
            "for 0 workers; lower scale.cpus_per_worker",
        ),
        (
            [node(1), node(1)],
            {"cpus_per_worker": 2},
            "Ray has 2 CPU on 2 nodes, enough for 0 workers",
        ),
        (
            [node(8, 1)],
            {"num_workers": 2, "gpus_per_worker": 1},
            "needs 2 workers of 1 CPU, 1 GPU; Ray has 8 CPU, 1 GPU on 1 node, enough for 1 worker; lower "
            "scale.num_workers, scale.cpus_per_worker or scale.gpus_per_worker",
        ),
        (
            [node(4)],
            {"num_workers": [5, 8]},
            "a trial with scale.num_workers=[5, 8] needs 5 to 8 workers of 1 CPU",
        ),
        (
            [node(4)],
            {"num_workers": 2, "asked": "inline"},
            "executor=inline trains with one worker, and a trial has 2",
        ),
        ([node(4)], {"num_workers": [1, 2], "asked": "gang"}, "scale.num_workers is [1, 2]"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(nodes, more, said):
    with pytest.raises(InputError) as error:
        fit(nodes, **more)
    assert said in str(error.value)


def test_as_many_workers_as_any_packing_holds():
    """Against trying every number of workers per node and every node for the CPU that is kept."""
    rng = random.Random(0)
    for _ in range(300):
        nodes = [
            {"CPU": rng.randrange(1, 12) / 2, "GPU": rng.randrange(4)} for _ in range(rng.randrange(1, 4))
        ]
        worker = {"CPU": rng.choice([0.5, 1.0, 1.5, 2.0]), "GPU": rng.choice([0.0, 1.0, 2.0])}
        reserved = rng.choice([0.0, 1.0])
        best = 0
        for keeper in range(len(nodes)):
            free = [n["CPU"] - (reserved if index == keeper else 0) for index, n in enumerate(nodes)]
            for counts in itertools.product(range(12), repeat=len(nodes)):
                holds = (
                    counts[i] * worker["CPU"] <= free[i] and counts[i] * worker["GPU"] <= n["GPU"]
                    for i, n in enumerate(nodes)
                )
                if free[keeper] >= 0 and all(holds):
                    best = max(best, sum(counts))
        needs = {name: amount for name, amount in worker.items() if amount}
        assert num_slots(nodes, needs, reserved) == best, (nodes, worker, reserved)
