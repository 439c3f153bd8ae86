"""The files that start clusters: Ray's schema, KubeRay's documented fields, the token on every start path."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from voxray.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
LAUNCHERS = {
    path: ROOT / path for path in ("cluster.yaml", "docs/cluster/gcp.yaml", "docs/cluster/on_premises.yaml")
}
KUBERAY = {path: ROOT / "docs/cluster" / path for path in ("kuberay_raycluster.yaml", "kuberay_rayjob.yaml")}

# The fields that KubeRay's API reference (docs/reference/api.md of v1.5.1, and v1.5.1's release notes for
# authOptions) documents: the operator's CRD is in no package and has a megabyte.
CLUSTER_FIELDS = {
    "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs", "authOptions",
}  # fmt: skip
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata",
    "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML",
    "jobId", "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus",
    "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
HEAD_FIELDS = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKER_FIELDS = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams",
    "template", "scaleStrategy", "numOfHosts",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode",
    "version", "env", "envFrom", "volumeMounts",
}  # fmt: skip


@pytest.fixture(scope="module", params=LAUNCHERS)
def launched(request: pytest.FixtureRequest) -> dict:
    """A cluster file with Ray's own defaults, after Ray's own schema has taken it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(LAUNCHERS[request.param].read_text()))
    validate_config(config)
    return config


def test_rays_schema_refuses_a_key_that_it_does_not_know():
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(LAUNCHERS["cluster.yaml"].read_text()) | {"idle_timeout": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(config))


def test_every_start_asks_for_the_token_and_the_token_goes_to_every_machine(launched: dict):
    starts = [*launched["head_start_ray_commands"], *launched["worker_start_ray_commands"]]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)
    assert launched["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for kind in ("head", "worker"):
        commands = launched[f"{kind}_start_ray_commands"]
        tightened = commands.index("chmod 600 ~/.ray/auth_token")
        assert "ray start" in commands[tightened + 1]


def test_the_dashboard_listens_on_loopback_only(launched: dict):
    (head,) = [line for line in launched["head_start_ray_commands"] if "ray start" in line]
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert not any("0.0.0.0" in line for line in launched["worker_start_ray_commands"])


def test_workers_come_when_asked_for_and_go_when_idle(launched: dict):
    workers = {k: v for k, v in launched["available_node_types"].items() if k != launched["head_node_type"]}
    types = workers or launched["available_node_types"]
    assert all(kind.get("min_workers", 0) == 0 for kind in types.values())
    assert 0 < launched["idle_timeout_minutes"] <= 15


def test_on_aws_the_head_is_on_demand_workers_are_spot_and_no_group_is_made():
    config = yaml.safe_load(LAUNCHERS["cluster.yaml"].read_text())
    head, worker = (config["available_node_types"][kind]["node_config"] for kind in ("head", "gpu_worker"))
    assert "InstanceMarketOptions" not in head
    assert worker["InstanceMarketOptions"] == {"MarketType": "spot"}
    # Ray opens port 22 to 0.0.0.0/0 in a group that it makes; with ids of one's own it makes none.
    assert all(node["SecurityGroupIds"] and node["MetadataOptions"] == {"HttpTokens": "required"}
               for node in (head, worker))  # fmt: skip


@pytest.fixture(scope="module", params=KUBERAY)
def manifest(request: pytest.FixtureRequest) -> dict:
    return yaml.safe_load(KUBERAY[request.param].read_text())


def cluster_of(manifest: dict) -> dict:
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


def test_kuberay_knows_every_field(manifest: dict):
    assert manifest["apiVersion"] == "ray.io/v1"
    cluster = cluster_of(manifest)
    if manifest["kind"] == "RayJob":
        assert set(manifest["spec"]) <= JOB_FIELDS
        assert isinstance(yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"], dict)
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_FIELDS
        assert 0 == group["replicas"] == group["minReplicas"] < group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):  # a map of text to text
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_kuberay_asks_for_the_token_and_lets_nobody_in(manifest: dict):
    import ray

    cluster = cluster_of(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "env" not in container  # keys come from a secret, never from this file
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= {volume["name"] for volume in pod["volumes"]}
    if manifest["kind"] == "RayJob":
        assert manifest["spec"]["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("file", ["slurm.sh", "kuberay_rayjob.yaml"])
def test_the_example_is_what_the_command_that_it_names_prints(file: str, capsys: pytest.CaptureFixture[str]):
    import shlex

    text = (ROOT / "docs/cluster" / file).read_text()
    (command,) = re.findall(r"Made by `voxray (launch [^`]+)`", text)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == 0
    assert capsys.readouterr().out == text


def test_the_image_runs_as_a_user_without_rights_in_both_targets():
    text = (ROOT / "Dockerfile").read_text()
    stages = {m[1]: m[0] for m in re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)}
    bodies = dict(zip(stages, re.split(r"^FROM .*$", text, flags=re.MULTILINE)[1:], strict=True))
    for target in ("cpu", "cuda"):
        assert re.findall(r"^USER (\S+)$", bodies[target], re.MULTILINE) == ["1000"]
        assert bodies[target].index("USER") > bodies[target].rindex("RUN")  # nothing runs as root after it
    assert "--uid 1000" in bodies["base"]
    assert "RAY_AUTH_MODE=token" in bodies["base"]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored  # only what is named goes in


def linted(tool: str, text: str) -> str:
    """Return what a linter of the environment finds in a text."""
    command = [Path(sys.executable).parent / tool, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert "DL3007" in linted("hadolint", "FROM debian:latest\n")  # a tag that moves
    assert linted("hadolint", (ROOT / "Dockerfile").read_text()) == ""


def test_shellcheck_finds_nothing_in_the_scripts():
    assert "SC2086" in linted("shellcheck", "#!/bin/bash\nls $1\n")  # not quoted
    for script in ("docs/cluster/slurm.sh", ".ci/run"):
        assert linted("shellcheck", (ROOT / script).read_text()) == ""


def test_condas_environment_is_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    (pinned,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    lock = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert pinned == lock, "run `make environment.yaml`"
    assert "python=3.11" in environment["dependencies"]


def test_the_make_targets_build_and_push_the_image_that_is_named():
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run",
         "push", "IMAGE=registry.example/lab/voxray:1", "TARGET=cpu"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-2:] == [
        "docker build --target cpu --tag registry.example/lab/voxray:1 .",
        "docker push registry.example/lab/voxray:1",
    ]


def test_the_dashboard_file_shows_only_metrics_that_are_written():
    from voxray.cluster.prometheus import METRICS

    board = json.loads((ROOT / "docs/cluster/grafana_dashboard.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = {name for text in expressions for name in re.findall(r"\bray_voxray_\w+", text)}
    assert shown == {f"ray_{name}" for name in METRICS}
