"""What an autoscaler may add to a cluster, read off the file that it was started with.

Ray 2.60 tells nobody how many nodes its autoscaler may start: the cluster config that its state has room for
is filled by none of its own autoscalers. On Kubernetes there is no such file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Resources = Mapping[str, float]
PROGRAMS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")
MAX_WORKERS = 2  # Ray's default (autoscaler/aws/defaults.yaml)


@dataclass(frozen=True)
class Growth:
    """Nodes that may come: what each would have, and the most of them that there may be together.

    `is_known` is False where there is an autoscaler and nobody can say how far it goes.
    """

    nodes: tuple[Resources, ...] = ()
    most: int = 0
    is_known: bool = True

    def best(self, worth: Callable[[Resources], float]) -> list[Resources]:
        """Return the nodes that may come together, those that are worth most."""
        return sorted(self.nodes, key=worth, reverse=True)[: self.most]

    def total(self, name: str) -> float:
        """Return how much of a resource may come."""
        return sum(node.get(name, 0.0) for node in self.best(lambda node: node.get(name, 0.0)))


UNKNOWN = Growth(is_known=False)


def growth_of(config: Mapping[str, Any], there: Mapping[str, int]) -> Growth:
    """Return what a cluster's file allows beside the nodes that are there, counted by type."""
    head, most = config.get("head_node_type"), int(config.get("max_workers", MAX_WORKERS))
    types: Mapping[str, Mapping[str, Any]] = config.get("available_node_types") or {}
    nodes: list[Resources] = []
    for name, node_type in types.items():
        of_type = node_type.get("max_workers")
        if of_type is None:
            of_type = 0 if name == head else most
        num_left = of_type - there.get(name, 0)
        if num_left > 0:
            if not node_type.get("resources"):  # read off the machine once it runs
                return UNKNOWN
            nodes += [node_type["resources"]] * num_left
    return Growth(tuple(nodes), most - sum(there.get(name, 0) for name in types if name != head))


def autoscaler_file(gcs_address: str, processes: Path = Path("/proc")) -> dict[str, Any] | None:
    """Return the file of the autoscaler that serves a cluster, where it runs on this machine, else None.

    The port tells which cluster; a machine has several names.
    """
    port = gcs_address.rpartition(":")[2]
    for arguments in processes.glob("[0-9]*/cmdline"):
        try:
            words = arguments.read_bytes().decode(errors="replace").split("\0")
            given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
            serves = given.get("--gcs-address", "").rpartition(":")[2] == port
            if serves and any(word.endswith(PROGRAMS) for word in words) and "--autoscaling-config" in given:
                file = Path(given["--autoscaling-config"]).expanduser()
                return yaml.safe_load((arguments.parent / "cwd" / file).read_text())
        except (OSError, yaml.YAMLError):  # it has ended meanwhile, or belongs to somebody else
            continue
    return None
