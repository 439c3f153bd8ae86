"""MLflow (the extra `mlflow`): one MLflow run per RUN, in a sqlite file beside the runs or on any server."""

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from voxray.train.config import MlflowConfig
from voxray.train.log_tail import Record
from voxray.train.trackers.tracker import RunInfo, TrackerState, best_checkpoint, metrics

FINISH_S = 15.0
UPLOAD_S = 600.0  # with upload_best: a checkpoint may be large
MOST_METRICS, MOST_PARAMS = 1000, 100  # of one call (MLflow's REST interface)
LONGEST_PARAM = 500
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# One try of 10 s instead of MLflow's eight of 120 s: `FanOut` tries again, and knows when the run has ended.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Mlflow:
    """Numbers as metrics by step, the config as parameters, figures and the best checkpoint as artifacts."""

    key = "mlflow"
    name = "MLflow"

    def __init__(self, config: MlflowConfig, storage: Path) -> None:
        """`storage` is where the runs lie; nothing is contacted before `start`."""
        self._config = config
        self._storage = storage.resolve()
        self.patience_s = UPLOAD_S if config.upload_best else FINISH_S
        self._client: Any = None
        self._entities: Any = None
        self._waiting: list[Any] = []

    @property
    def tracking_uri(self) -> str:
        """Address of the store: the config's, else a sqlite file beside the runs."""
        return self._config.tracking_uri or f"sqlite:///{self._storage / 'mlflow.db'}"

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Begin the run or go on with it. Raises ImportError when MLflow is not installed."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            client_class = import_module("mlflow").MlflowClient
            self._entities = import_module("mlflow.entities")
        except ModuleNotFoundError as error:
            raise ImportError("MLflow is not installed; pip install 'voxray[mlflow]'") from error
        self._info = info
        self._waiting = []
        self._client = client_class(tracking_uri=self.tracking_uri)
        if state.go_to(self.tracking_uri) and state.id:
            self._client.update_run(state.id, status="RUNNING")
        else:
            state.id = self._create(info)
        self._run_id = state.id
        if self.tracking_uri.startswith("http"):
            return f"MLflow: {self.tracking_uri}, run {info.name}"
        return f"MLflow: mlflow ui --backend-store-uri {self.tracking_uri}"

    def record(self, record: Record) -> None:
        """Take a record's numbers, sent in one call by `flush`; log a figure."""
        match record["kind"]:
            case "step" | "epoch" | "validation":
                now_ms = int(time.time() * 1000)
                self._waiting += [
                    self._entities.Metric(name, float(value), now_ms, int(record["step"]))
                    for name, value in metrics(record).items()
                ]
                if len(self._waiting) >= MOST_METRICS:
                    self.flush()
            case "figure":
                path = self._info.run.path / record["path"]
                self._client.log_artifact(self._run_id, str(path), "figures")

    def flush(self) -> None:
        """Send what was taken."""
        while self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting[:MOST_METRICS])
            self._waiting = self._waiting[MOST_METRICS:]

    def finish(self, status: str) -> None:
        """Send the best checkpoint where that is asked for, and end the run."""
        if self._config.upload_best and (best := best_checkpoint(self._info.run)) is not None:
            self._client.log_artifacts(self._run_id, str(best), f"checkpoints/{best.name}")
        self._client.set_terminated(self._run_id, STATUS.get(status, "FAILED"))

    def tags(self, info: RunInfo) -> dict[str, str]:
        """Return the tags that the run begins with."""
        return {
            **dict.fromkeys(info.tags, "true"),
            **self._config.tags,
            "mlflow.note.content": info.description,
            "voxray.run": str(info.run.path),
        }

    def _create(self, info: RunInfo) -> str:
        client = self._client
        experiment = self._config.experiment or info.task
        found = client.get_experiment_by_name(experiment)
        experiment_id = (
            found.experiment_id
            if found is not None
            else client.create_experiment(experiment, artifact_location=self._artifacts())
        )
        run_id = client.create_run(experiment_id, run_name=info.name, tags=self.tags(info)).info.run_id
        params = [
            self._entities.Param(name, str(value)[:LONGEST_PARAM])
            for name, value in info.config.items()
            if value not in (None, "")
        ]
        for start in range(0, len(params), MOST_PARAMS):
            client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        return run_id

    def _artifacts(self) -> str | None:
        """Where artifacts go: beside a store of files, not into the folder that training was started from."""
        if self.tracking_uri.startswith("http"):
            return None
        return (self._storage / "mlflow_artifacts").as_uri()
