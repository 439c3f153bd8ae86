"""The one function that connects to Ray. Called by the command line and by tests; lower layers assume a
connection.
"""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

# Read tasks need CPUs beside the workers, or both starve each other for ever (FACTS.md section 1). Logical
# CPUs are only scheduling tokens, so a private cluster has twice as many as the machine has cores, and at
# least 4.
MIN_LOGICAL_CPUS = 4

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # `report` returns when Train's controller polls: 2 s by default, 0.2 s so (FACTS.md section 2).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def private_cpus() -> int:
    """Return the logical CPUs of the private cluster that `connect` starts."""
    return max(MIN_LOGICAL_CPUS, 2 * (os.cpu_count() or 1))


def joins_a_cluster() -> bool:
    """Whether `connect` uses a cluster that is there already."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


@contextmanager
def connect(
    *, dashboard: bool = False, num_cpus: int | None = None, temp_dir: str | None = None
) -> Generator[None]:
    """Connect to the cluster that RAY_ADDRESS names, else start a private one; disconnect, or stop it, at the
    end.

    A connection that the process already has is used and left open. `dashboard` starts Ray's API server too,
    which the State API needs.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus or private_cpus(),
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=temp_dir,
        )
    try:
        yield
    finally:
        ray.shutdown()
