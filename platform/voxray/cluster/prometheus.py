"""Training's numbers as Prometheus metrics of the Ray cluster that the driver joined: one more tracker.

Ray exports them on its nodes' metrics port with `ray_` before their names;
docs/cluster/grafana_dashboard.json shows them.
"""

import math
from collections.abc import Callable
from typing import Any

from voxray.train.log_tail import Record
from voxray.train.trackers.tracker import RunInfo, TrackerState

TAGS = ("task", "run")
# Prometheus name → the log's name, what it is.
METRICS: dict[str, tuple[str, str]] = {
    "voxray_train_loss": ("train/loss", "training loss of the last logged update"),
    "voxray_samples_per_s": ("samples_per_s", "rows per second over all workers"),
    "voxray_data_wait_share": ("data_wait_share", "share of the time spent waiting for data, 0 to 1"),
    "voxray_learning_rate": ("learning_rate", "learning rate of the last logged update"),
    "voxray_step": ("step", "updates done"),
    "voxray_epoch": ("epoch", "epoch of the last logged update"),
}


class Prometheus:
    """Gauges with the tags `task` and `run`, set from the records of single updates."""

    key = "prometheus"
    name = "Prometheus"
    patience_s = 1.0

    def __init__(self, gauge: Callable[..., Any] | None = None) -> None:
        """`gauge` makes a gauge as `ray.util.metrics.Gauge` does, which is the default."""
        self._make = gauge
        self._gauges: dict[str, Any] = {}

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Make the gauges; the connection to Ray is there already."""
        if self._make is None:
            from ray.util.metrics import Gauge

            self._make = Gauge
        state.go_to("ray")
        tags = {"task": info.task, "run": info.name}
        for name, (_, what) in METRICS.items():
            self._gauges[name] = self._make(name, description=what, tag_keys=TAGS)
            self._gauges[name].set_default_tags(tags)
        return ""

    def record(self, record: Record) -> None:
        """Set the gauges to an update's numbers; one that is not finite leaves a gauge as it is."""
        if record["kind"] != "step":
            return
        for name, (key, _) in METRICS.items():
            value = record.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                self._gauges[name].set(float(value))

    def flush(self) -> None:
        """Ray sends the gauges by itself."""

    def finish(self, status: str) -> None:
        """Nothing to end: Ray drops the gauges with the driver."""
