"""Training's metrics: the gauges' names are Prometheus's, their values the log's, a resume goes on."""

import json
import math
import re
from pathlib import Path

from ray.util.metrics import Gauge as RayGauge

from voxray.cluster.prometheus import METRICS, Prometheus
from voxray.train.run_folder import RunFolder
from voxray.train.trackers.fan_out import FanOut
from voxray.train.trackers.tracker import RunInfo


class Gauge:
    """Keeps what a gauge of Ray's would send."""

    made: dict[str, "Gauge"] = {}  # noqa: RUF012

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        RayGauge(name, description=description, tag_keys=tag_keys).set_default_tags(
            dict.fromkeys(tag_keys, "")
        )
        self.values: list[float] = []
        Gauge.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def set(self, value: float) -> None:
        self.values.append(value)


def test_the_log_becomes_gauges(tmp_path: Path):
    run = RunFolder(tmp_path)
    step = {
        "train/loss": 0.5,
        "samples_per_s": 100.0,
        "data_wait_share": 0.1,
        "learning_rate": 1e-3,
        "epoch": 1,
    }
    records = [
        {"kind": "step", "step": 1, **step},
        {"kind": "validation", "step": 1, "val/auroc": 0.9, "train/loss": 9.0},
        {"kind": "step", "step": 2, **step, "train/loss": math.nan},
    ]
    run.log_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    told: list[str] = []
    FanOut([Prometheus(Gauge)], RunInfo(run, "mine", "cxr_memory", "", "", (), {}), told.append).finish(
        "finished"
    )
    values = {name: gauge.values for name, gauge in Gauge.made.items()}
    assert values["voxray_train_loss"] == [0.5]  # neither an epoch's mean nor NaN
    assert values["voxray_step"] == [1, 2]
    assert values["voxray_samples_per_s"] == [100.0, 100.0]
    assert {tuple(gauge.tags.items()) for gauge in Gauge.made.values()} == {
        (("task", "cxr_memory"), ("run", "mine"))
    }
    assert told == []


def test_names_are_prometheus_names_and_say_their_unit():
    # https://prometheus.io/docs/concepts/data_model: [a-zA-Z_:][a-zA-Z0-9_:]*; Ray refuses the colon.
    assert all(re.fullmatch(r"voxray_[a-z_]+", name) for name in METRICS)
    assert len({key for key, _ in METRICS.values()}) == len(METRICS)
