"""What an autoscaler may add: known by the names of the nodes that there are, and by its own file."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from voxray.config.errors import InputError
from voxray.testing.tiny import TinyConfig
from voxray.train import launch
from voxray.train.growth import UNKNOWN, Growth, autoscaler_file, growth_of

ROOT = Path(__file__).resolve().parents[3]
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
# Recorded: a head with `--autoscaling-config` and the fake multi-node provider; a private cluster.
WITH = {"active_nodes": {"ray.head.default": 1}, "idle_nodes": None, "pending_nodes": []}
WITHOUT = {"active_nodes": {f"node_{HEAD}": 1}, "idle_nodes": None, "pending_nodes": []}


@pytest.mark.parametrize(
    ("report", "types", "there"),
    [
        (WITH, [f"node_{HEAD}"], {"ray.head.default": 1}),
        (WITHOUT, [f"node_{HEAD}"], {}),
        (None, [f"node_{HEAD}"], {}),
        (None, [""], {}),
        (None, ["headgroup", "gpu", "gpu"], {"headgroup": 1, "gpu": 2}),
    ],
)
def test_an_autoscaler_is_known_by_its_types_of_nodes(report, types, there, monkeypatch: pytest.MonkeyPatch):
    import ray

    stored = None if report is None else json.dumps({"autoscaler_report": report}).encode()
    nodes = [SimpleNamespace(ray_node_type_name=name) for name in types]
    status = SimpleNamespace(active_nodes=nodes[:0], idle_nodes=nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda address: status)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: stored)
    assert launch.node_types() == there


def file(most: int = 3, **workers) -> dict:
    """A cluster's file with a head and types of workers: name → (resources, its own max_workers)."""
    types = {
        name: {"resources": resources, **({} if own is None else {"max_workers": own})}
        for name, (resources, own) in workers.items()
    }
    head = {"resources": {"CPU": 4}}
    return {"max_workers": most, "head_node_type": "head", "available_node_types": {"head": head, **types}}


SMALL, BIG = {"CPU": 2}, {"CPU": 16, "GPU": 1}


@pytest.mark.parametrize(
    ("config", "there", "cpus", "gpus"),
    [
        (file(small=(SMALL, None)), {"head": 1}, 6, 0),
        (file(small=(SMALL, 2)), {"head": 1}, 4, 0),
        (file(small=(SMALL, None)), {"head": 1, "small": 2}, 2, 0),
        (file(small=(SMALL, None)), {"head": 1, "small": 3}, 0, 0),
        (file(small=(SMALL, 9)), {"head": 1}, 6, 0),  # the cluster's limit is the lower one
        (file(small=(SMALL, None), big=(BIG, 2)), {"head": 1}, 34, 2),  # two big ones and a small one
        (file(small=(SMALL, None), big=(BIG, 2)), {"head": 1, "small": 2}, 16, 1),
    ],
)
def test_what_a_file_allows_beside_what_is_there(config, there, cpus, gpus):
    may_come = growth_of(config, there)
    assert may_come.is_known
    assert (may_come.total("CPU"), may_come.total("GPU")) == (cpus, gpus)


def test_machines_whose_resources_are_read_off_once_they_run_are_not_known():
    shipped = yaml.safe_load((ROOT / "cluster.yaml").read_text())  # before `ray up` has filled it in
    assert growth_of(shipped, {"head": 1}) == UNKNOWN
    shipped["available_node_types"]["gpu_worker"]["resources"] = {"CPU": 8, "GPU": 1}
    assert growth_of(shipped, {"head": 1}).total("GPU") == 8


def test_the_file_is_found_by_the_process_that_serves_the_cluster(tmp_path):
    """Made-up processes as the kernel shows them, named as Ray 2.60 starts them."""
    (tmp_path / "config.yaml").write_text("max_workers: 7")
    others = {
        "11": ["python", "/ray/autoscaler/_private/monitor.py", "--gcs-address=10.0.0.1:6380"],
        "12": ["vim", "--autoscaling-config=config.yaml", "--gcs-address=10.0.0.1:6379"],
    }
    ours = ["python", "-u", "/ray/autoscaler/_private/monitor.py", "--logs-dir=/x",
            "--gcs-address=10.0.0.1:6379", "--autoscaling-config=config.yaml"]  # fmt: skip
    processes = tmp_path / "proc"
    for name, words in {**others, "13": ours}.items():
        (processes / name).mkdir(parents=True)
        (processes / name / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
        (processes / name / "cwd").symlink_to(tmp_path)
    assert autoscaler_file("head:6379", processes) == {"max_workers": 7}
    assert autoscaler_file("head:6380", processes) is None
    (processes / "13/cmdline").unlink()
    assert autoscaler_file("head:6379", processes) is None


@pytest.mark.parametrize(
    ("num_workers", "growth", "said"),
    [
        (8, growth_of(file(small=(SMALL, None)), {"head": 1}), ""),
        (8, UNKNOWN, ""),
        (4, Growth(), "needs 4 CPU; Ray has 2; lower scale.num_workers"),
        (
            9,
            growth_of(file(small=(SMALL, None)), {"head": 1}),
            "scale.num_workers=9 needs 9 CPU; Ray has 2, and its autoscaler may add 6; lower",
        ),
    ],
)
def test_a_run_that_even_the_autoscaler_has_no_room_for_is_refused(num_workers, growth, said, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(launch, "growth", lambda: growth)
    monkeypatch.setattr(launch, "dataset_path", lambda config: "/x")
    monkeypatch.setattr(launch, "choose_transport", lambda *_: ("local", ""))
    values = {
        "task": "voxray.testing.tiny:Tiny",
        "data": {"path": "/x"},
        "scale": {"num_workers": num_workers},
    }
    config = TinyConfig.model_validate(values)
    if said:
        with pytest.raises(InputError, match=said):
            launch.scaling(config)
    else:
        assert launch.scaling(config).num_workers == num_workers


def test_gpus_that_may_come_count(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(launch, "growth", lambda: growth_of(file(big=(BIG, 2)), {"head": 1}))
    monkeypatch.setattr(launch, "dataset_path", lambda config: "/x")
    monkeypatch.setattr(launch, "choose_transport", lambda *_: ("local", ""))
    values = {"task": "voxray.testing.tiny:Tiny", "data": {"path": "/x"}}
    for num_workers, gpus in ((1, 1), (2, 1), (3, 0)):
        config = TinyConfig.model_validate({**values, "scale": {"num_workers": num_workers}})
        assert launch.scaling(config).resources_per_worker.get("GPU", 0) == gpus
