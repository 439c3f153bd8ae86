"""Whether a cluster has an autoscaler, by the names that Ray 2.60 gives to nodes with one and without."""

import json
from types import SimpleNamespace

import pytest

from voxray.train.launch import can_grow

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
# Recorded: a head with `--autoscaling-config` and the fake multi-node provider; a private cluster.
WITH = {"active_nodes": {"ray.head.default": 1}, "idle_nodes": None, "pending_nodes": []}
WITHOUT = {"active_nodes": {f"node_{HEAD}": 1}, "idle_nodes": None, "pending_nodes": []}


@pytest.mark.parametrize(
    ("report", "types", "grows"),
    [
        (WITH, [f"node_{HEAD}"], True),
        (WITHOUT, [f"node_{HEAD}"], False),
        (None, [f"node_{HEAD}"], False),
        (None, [""], False),
        (None, ["headgroup"], True),
    ],
)
def test_an_autoscaler_is_known_by_its_types_of_nodes(report, types, grows, monkeypatch: pytest.MonkeyPatch):
    import ray

    stored = None if report is None else json.dumps({"autoscaler_report": report}).encode()
    nodes = [SimpleNamespace(ray_node_type_name=name) for name in types]
    status = SimpleNamespace(active_nodes=nodes[:0], idle_nodes=nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda address: status)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: stored)
    assert can_grow() == grows
