"""What a trial reserves, and how many trials the cluster holds at a time: decided once, before the first one.

A trial that is begun gets its workers at once, or as soon as the autoscaler has brought them: no more are
begun than fit on the nodes that there are and that may come, worker by worker, with a CPU left where
something else must run beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from voxray.config.errors import InputError
from voxray.train.config import ScaleConfig
from voxray.train.growth import Growth, Resources
from voxray.tune.config import Executor

ExecutorName = Literal["inline", "gang", "train"]

# Ray's own precision, so that 0.1 fits ten times into 1.
PRECISION = 1e-4
PLENTY = 1e9
# Tune reserves a bundle for each trial. One byte of memory is one that no worker ever misses.
NEXT_TO_NOTHING = {"memory": 1.0}
NO_GROWTH = Growth()
READING = 1.0  # CPUs for Ray Data's tasks: without one they and the trials would starve each other for ever


@dataclass(frozen=True)
class Fitting:
    """How the trials of a study run on this cluster."""

    executor: ExecutorName
    worker: Resources  # what each worker reserves
    workers: int  # of a trial: the most that one needs
    at_a_time: int
    text: str  # the same for a reader, with what limits it

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What Tune reserves for a trial; the first is its own actor's, which in a gang needs nothing."""
        if self.executor == "train":  # Ray Train reserves its workers' places itself
            return [dict(NEXT_TO_NOTHING)]
        workers = [dict(self.worker)] * self.workers
        return workers if self.executor == "inline" else [{}, *workers]

    @property
    def num_gpus(self) -> float:
        """GPUs that a trial holds."""
        return self.worker.get("GPU", 0.0) * self.workers


@dataclass(frozen=True)
class Need:
    """What one trial needs, the most of all that may be drawn: `fewest` workers at least."""

    fewest: int
    most: int
    worker: Resources

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while it trains."""
        return self.fewest < self.most

    @property
    def text(self) -> str:
        """E.g. `2 workers of 1 CPU, 0.25 GPU`."""
        one = ", ".join(f"{amount:g} {name}" for name, amount in self.worker.items())
        if self.most == 1:
            return one
        return f"{f'{self.fewest} to ' if self.is_elastic else ''}{self.most} workers of {one}"


def fit_trials(
    scales: Sequence[ScaleConfig],
    asked: Executor,
    nodes: Sequence[Mapping[str, Any]],
    *,
    most_at_a_time: int | None,
    reads: bool,
    place: str,
    growth: Growth = NO_GROWTH,
) -> Fitting:
    """Choose the executor and how many trials run at a time.

    `scales`: of all trials that there may be. `nodes`: as `ray.nodes()` returns them. `reads`: whether Ray
    Data's tasks run beside the trials. `place`: where the user can change what a trial needs. `growth`: what
    an autoscaler may add. Raises InputError when not even one fits, or when the executor that was asked for
    cannot train them.
    """
    there = resources_of(nodes)
    need = most_needed(scales, [*there, *growth.best(lambda node: node.get("GPU", 0.0))])
    to_come = growth.best(lambda node: slots_of(node, need.worker))
    all_nodes = [*there, *to_come]
    executor = choose_executor(need, asked, all_nodes, place)
    reserved = READING if reads else 0.0
    slots = num_slots(all_nodes, need.worker, reserved)
    fit = slots // need.most
    if fit < 1 and need.is_elastic and slots >= need.fewest:
        fit = 1
    if not growth.is_known:
        at_a_time = most_at_a_time or max(fit, 1)
        text = f"{at_a_time} at a time ({executor}, {need.text} each; {fit} fit before nodes are added)"
        return Fitting(executor, need.worker, need.most, at_a_time, text)
    if fit < 1:
        raise InputError(_too_much(need, all_nodes, len(to_come), reserved, place))
    at_a_time = min(fit, most_at_a_time or fit)
    limit = limiting(all_nodes, need, reserved)
    added = f" with {_nodes_text(len(to_come))} of the autoscaler" if to_come else ""
    text = f"{at_a_time} at a time ({executor}, {need.text} each; {fit} fit{added}, {limit} limits them)"
    return Fitting(executor, need.worker, need.most, at_a_time, text)


def resources_of(nodes: Iterable[Mapping[str, Any]]) -> list[Resources]:
    """Return what each living node has."""
    return [node["Resources"] for node in nodes if node["Alive"]]


def most_needed(scales: Sequence[ScaleConfig], nodes: Sequence[Resources]) -> Need:
    """Return the most that a trial of any of `scales` needs; `gpus_per_worker: auto` is one GPU where every
    worker of a trial can have one.
    """
    fewest = max(scale.fewest_workers for scale in scales)
    most = max(scale.most_workers for scale in scales)
    whole_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    auto = 1.0 if whole_gpus >= fewest else 0.0
    gpus = max(auto if scale.gpus_per_worker == "auto" else scale.gpus_per_worker for scale in scales)
    cpus = max(scale.cpus_per_worker for scale in scales)
    # Trials of 1 and of 2 workers are a gang of 2; only a range within one trial is elastic.
    is_elastic = any(scale.fewest_workers < scale.most_workers for scale in scales)
    return Need(fewest if is_elastic else most, most, {"CPU": cpus, **({"GPU": gpus} if gpus else {})})


def choose_executor(need: Need, asked: Executor, nodes: Sequence[Resources], place: str) -> ExecutorName:
    """Return what trains the trials. Raises InputError when `asked` cannot."""
    if asked == "auto":
        if need.is_elastic:
            return "train"
        if need.most == 1:
            return "inline"
        return "gang" if any(slots_of(node, need.worker) >= need.most for node in nodes) else "train"
    if asked == "inline" and need.most > 1:
        raise InputError(
            f"{place}: executor=inline trains with one worker, and a trial has {need.most}; leave executor "
            "out, or pass scale.num_workers=1: the same batch_size gives the same losses"
        )
    if asked == "gang" and need.is_elastic:
        raise InputError(
            f"{place}: executor=gang trains with a fixed number of workers, and scale.num_workers is "
            f"[{need.fewest}, {need.most}]; leave executor out, or name one number"
        )
    return asked


def slots_of(node: Resources, worker: Resources) -> int:
    """Return how many workers a node holds at a time. Part of a GPU is part of one GPU."""
    slots: list[int] = []
    for name, amount in worker.items():
        there = node.get(name, 0.0)
        if name == "GPU" and amount < 1:
            slots.append(int(there) * int(1 / amount + PRECISION))
        else:
            slots.append(int(there / amount + PRECISION))
    return min(slots)


def num_slots(nodes: Sequence[Resources], worker: Resources, reserved: float = 0.0) -> int:
    """Return how many workers the nodes hold, with `reserved` CPUs left on one where that costs least.

    Each node by itself: 1.5 CPUs here and 0.5 there hold one worker of 1 CPU.
    """
    slots = [slots_of(node, worker) for node in nodes]
    if not reserved:
        return sum(slots)
    costs = [
        here - slots_of({**node, "CPU": node["CPU"] - reserved}, worker)
        for node, here in zip(nodes, slots, strict=True)
        if node.get("CPU", 0.0) >= reserved
    ]
    return sum(slots) - min(costs) if costs else 0


def limiting(nodes: Sequence[Resources], need: Need, reserved: float = 0.0) -> str:
    """Return the resource of which more would let more trials run."""

    def slots_with_plenty_of(name: str) -> int:
        return num_slots([{**node, name: PLENTY} for node in nodes], need.worker, reserved)

    return max(need.worker, key=slots_with_plenty_of)


def _nodes_text(num: int) -> str:
    return f"{num} node{'s' if num > 1 else ''}"


def _too_much(need: Need, nodes: Sequence[Resources], num_to_come: int, reserved: float, place: str) -> str:
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in need.worker}
    there = ", ".join(f"{amount:g} {name}" for name, amount in total.items())
    slots = num_slots(nodes, need.worker, reserved)
    reading = f", and reading its data {reserved:g} CPU" if reserved else ""
    number = f"[{need.fewest}, {need.most}]" if need.is_elastic else need.most
    with_workers = f"with scale.num_workers={number} " if need.most > 1 else ""
    keys = ["scale.num_workers"] if need.most > 1 else []
    keys += [f"scale.{name.lower()}s_per_worker" for name in need.worker]
    added = f" with the {num_to_come} that the autoscaler may add" if num_to_come else ""
    return (
        f"{place}: a trial {with_workers}needs {need.text}{reading}; Ray has {there} on "
        f"{_nodes_text(len(nodes))}{added}, enough for {slots} worker{'' if slots == 1 else 's'}; lower "
        f"{', '.join(keys[:-1])}{' or ' if keys[:-1] else ''}{keys[-1]}"
    )
