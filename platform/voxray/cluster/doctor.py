"""What is wrong with this machine or cluster, and the mend: the checks of `voxray doctor`.

Each check looks at one thing and returns what it found; none changes anything.
"""

from collections.abc import Callable

from voxray.cluster.doctor_checks import access, machine, packages, services
from voxray.cluster.doctor_checks.finding import Finding

Checks = dict[str, Callable[[], list[Finding]]]


def all_checks(storage: str) -> Checks:
    """Return the checks by name; `storage` is a folder or URL as `storage.path` takes it."""
    return {
        "python": packages.python,
        "torch + torchvision": packages.torch_pair,
        "packages": packages.extras,
        "GPU": machine.gpu,
        "disk": machine.disk,
        "/dev/shm": machine.shared_memory,
        "temporary folder": machine.temp_folder,
        "clock": machine.clock,
        "stale Ray cluster file": machine.stale_cluster_file,
        "Ray clusters": machine.ray_clusters,
        "ports": machine.ports,
        "token": access.token,
        "dashboard": access.open_dashboard,
        "model hub": services.hub_token,
        "W&B": services.wandb,
        "MLflow": services.mlflow,
        "storage": lambda: services.storage(storage),
    }


def findings(checks: Checks) -> list[Finding]:
    """Run every check; one that breaks is a finding itself."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check()
        except Exception as error:  # a doctor who cannot look at one organ looks at the others
            found.append(Finding(name, False, f"{type(error).__name__}: {error}", "report this as a bug"))
    return found
