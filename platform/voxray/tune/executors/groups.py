"""Placement groups that nobody gives back: Ray ends an actor's actors with it, but not its placement groups.

Ray Train's controller makes one for its workers. When Tune ends the trial from which the run was started, the
controller goes at once, and Ray Train leaves the group to a helper that asks the State API whether the
controller still lives. Without a dashboard, or with a stale cluster file on the host, the helper never hears
an answer, the group keeps its CPUs until the job ends, and the next trial waits for ever (ray#54305, #58515,
#65447).
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import time
from typing import Any

import ray

# Between an actor's end and Ray's knowing that what it made has no owner.
NOTICED_WITHIN_S = 2.0
POLL_S = 0.1


def orphans() -> list[Any]:
    """Return the placement groups of this job whose maker, an actor, is dead."""
    return [found for found, is_an_actors, is_dead in _groups() if is_an_actors and is_dead]


def of_this_process() -> dict[Any, Any]:
    """Return the placement groups that this job's driver made itself, by their id."""
    return {found.id: found for found, is_an_actors, _ in _groups() if not is_an_actors}


def _groups() -> list[tuple[Any, bool, bool]]:
    """Return this job's placement groups, each with whether an actor made it, and whether that is dead. No
    public API of Ray tells.
    """
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportMissingTypeStubs]
    from ray.util.placement_group import PlacementGroup

    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    nobody = b"\xff"
    groups: list[tuple[Any, bool, bool]] = []
    for text in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(text)
        is_there = group.state != PlacementGroupTableData.REMOVED and not group.is_detached
        if is_there and group.creator_job_id == job:
            found = PlacementGroup(PlacementGroupID(group.placement_group_id))
            groups.append((found, bool(group.creator_actor_id.strip(nobody)), group.creator_actor_dead))
    return groups


def give_back(within_s: float = NOTICED_WITHIN_S) -> int:
    """Remove the orphans that there are or that come within `within_s` seconds; return how many."""
    from ray.util import remove_placement_group

    removed = set[Any]()
    until = time.monotonic() + within_s
    while True:
        for group in orphans():
            if group.id not in removed:
                remove_placement_group(group)
                removed.add(group.id)
        if time.monotonic() >= until:
            return len(removed)
        time.sleep(POLL_S)
