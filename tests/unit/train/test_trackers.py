"""Trackers: what reaches them, read back with their own readers, and what one that fails may do (nothing)."""

import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from voxray.testing.tiny import TinyConfig
from voxray.train import progress
from voxray.train.progress import catch_up
from voxray.train.run_folder import RunFolder
from voxray.train.trackers import fan_out
from voxray.train.trackers.choose import chosen_trackers, missing_libraries
from voxray.train.trackers.fan_out import FanOut
from voxray.train.trackers.mlflow import Mlflow
from voxray.train.trackers.tensorboard import TensorBoard
from voxray.train.trackers.tracker import TrackerState, metrics, run_info
from voxray.train.trackers.wandb import Wandb
from wandb_files import wandb_records


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(fan_out, "POLL_S", 0.01)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = tmp_path / "runs" / "Tiny" / "first"
    folder.mkdir(parents=True)
    return RunFolder(folder)


def config(tmp_path, **logging):
    values = {
        "experiment_name": "tiny_experiment",
        "run": {"name": "first"},
        "tags": ["quick", "cpu"],
        "storage": {"path": str(tmp_path / "runs")},
        "logging": logging,
    }
    return TinyConfig.model_validate(values)


def step(number, loss=1.0):
    return {"kind": "step", "stage": "main", "epoch": 0, "step": number, "train/loss": loss}


def epoch(number, at, **values):
    return {"kind": "epoch", "stage": "main", "epoch": number, "step": at, **values}


class Recorder:
    """A tracker that keeps what it gets."""

    key = "recorder"
    name = "Recorder"
    patience_s = 1.0

    def __init__(self):
        self.got = []
        self.status = ""

    def start(self, info, state) -> str:
        state.go_to("here")
        return "look here"

    def record(self, record):
        self.got.append(record)

    def flush(self):
        pass

    def finish(self, status):
        self.status = status

    @property
    def steps(self):
        return [r["step"] for r in self.got if r["kind"] == "step"]


def feed(tracker, run, tmp_path, told, body=lambda: None, status="finished"):
    fan = FanOut([tracker], run_info(run, config(tmp_path)), told.append)
    body()
    fan.finish(status)
    return tracker


def test_metrics_are_numbers_under_the_logs_own_names():
    record = epoch(
        0, 5, **{"train/loss": 0.5, "val/auroc": 0.7, "val/per_class": [0.1], "val/x": None, "f": True}
    )
    assert metrics(record) == {"train_epoch/loss": 0.5, "val/auroc": 0.7}
    assert metrics({**step(3), "samples_per_s": 10.0, "time_s": 1.0, "planned": 9}) == {
        "train/loss": 1.0,
        "samples_per_s": 10.0,
    }


def test_no_secret_reaches_a_tracker(run, tmp_path):
    uri = "https://me:swordfish@mlflow.example/"
    info = run_info(run, config(tmp_path, mlflow={"enabled": True, "tracking_uri": uri}))
    assert "swordfish" not in json.dumps(info.config)
    assert info.config["logging.mlflow.tracking_uri"] == "https://••••••@mlflow.example/"
    assert info.config["training.batch_size"] == 32
    assert (info.name, info.task, info.experiment, info.tags) == (
        "first",
        "Tiny",
        "tiny_experiment",
        ("quick", "cpu"),
    )

    class Broken(Recorder):
        def start(self, info, state) -> str:
            raise OSError(f"cannot reach {uri}")

    told = []
    feed(Broken(), run, tmp_path, told, lambda: time.sleep(0.1))
    assert told
    assert "swordfish" not in "".join(told)


def test_a_tracker_gets_everything_in_order_and_the_next_driver_goes_on(run, tmp_path):
    told = []
    run.log(step(1))

    def body():
        for number in range(2, 50):
            run.log(step(number))

    first = feed(Recorder(), run, tmp_path, told, body)
    assert first.steps == list(range(1, 50))
    assert (first.status, told) == ("finished", ["look here"])
    run.log(step(50))  # logged while no driver lived
    second = feed(Recorder(), run, tmp_path, told, lambda: run.log(step(51)), "interrupted")
    assert second.steps == [50, 51]
    assert second.status == "interrupted"


def test_a_place_that_has_not_the_run_gets_all_of_it(run, tmp_path):
    run.log(step(1))
    feed(Recorder(), run, tmp_path, [])

    class Elsewhere(Recorder):
        def start(self, info, state) -> str:
            state.go_to("there")
            return "look there"

    assert feed(Elsewhere(), run, tmp_path, []).steps == [1]


def test_a_tracker_that_fails_is_named_once_and_tried_again(run, tmp_path):
    class Failing(Recorder):
        def record(self, record):
            if time.monotonic() < works_from:
                raise OSError("the server is away")
            super().record(record)

    works_from = time.monotonic() + 0.15
    told = []

    def body():
        for number in range(1, 6):
            run.log(step(number))
        time.sleep(0.6)

    tracker = feed(Failing(), run, tmp_path, told, body)
    assert tracker.steps == [1, 2, 3, 4, 5]  # none lost, none twice
    assert told == [
        "look here",
        "Recorder is off for now (the server is away); training goes on, it is tried again",
        "Recorder is back",
    ]


def test_a_tracker_that_always_fails_leaves_the_rest_for_the_next_time(run, tmp_path):
    class Failing(Recorder):
        def record(self, record):
            raise SystemExit("wrong project")

    told = []
    for number in (1, 2):
        run.log(step(number))
    feed(Failing(), run, tmp_path, told, lambda: time.sleep(0.1))
    assert len(told) == 3
    assert (
        told[-1]
        == "Recorder failed at the end (wrong project); 2 records were not sent; the same command sends them"
    )
    assert feed(Recorder(), run, tmp_path, []).steps == [1, 2]


def test_a_tracker_that_hangs_is_left_behind(run, tmp_path):
    release = threading.Event()

    class Hanging(Recorder):
        patience_s = 0.2

        def record(self, record):
            release.wait()
            super().record(record)

    told = []
    tracker = Hanging()
    for number in range(1, 4):
        run.log(step(number))
    before = time.monotonic()
    feed(tracker, run, tmp_path, told, lambda: time.sleep(0.05))
    assert time.monotonic() - before < 1.0
    assert told[-1] == "Recorder: not done within 0.2 s; 3 records were not sent; the same command sends them"
    release.set()
    time.sleep(0.1)
    assert tracker.steps == [1]  # the call it was in; nothing after its time was over


def test_a_slow_tracker_loses_the_oldest_steps_and_never_an_epoch(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fan_out, "MOST_STEP_RECORDS", 10)
    told = []
    for number in range(1, 41):
        run.log(step(number))
        if number % 10 == 0:
            run.log(epoch(number // 10 - 1, number))
    tracker = feed(Recorder(), run, tmp_path, told)
    assert tracker.steps == list(range(31, 41))
    assert [r["epoch"] for r in tracker.got if r["kind"] == "epoch"] == [0, 1, 2, 3]
    assert told[-1].startswith("Recorder was slow: 30 records of single steps were left out")


def test_a_missing_library_turns_a_tracker_off(run, tmp_path, monkeypatch):
    class Missing(Recorder):
        def start(self, info, state) -> str:
            raise ImportError("MLflow is not installed; pip install 'voxray[mlflow]'")

    told = []
    feed(Missing(), run, tmp_path, told, lambda: time.sleep(0.05))
    assert told == ["Recorder is off: MLflow is not installed; pip install 'voxray[mlflow]'"]
    monkeypatch.setattr("voxray.train.trackers.choose.find_spec", lambda name: None)
    wanted = config(tmp_path, tensorboard=True, mlflow={"enabled": True})
    assert [line.split(":")[0] for line in missing_libraries(wanted)] == [
        "logging.tensorboard",
        "logging.mlflow",
    ]
    assert [tracker.key for tracker in chosen_trackers(wanted)] == ["tensorboard", "mlflow"]
    assert chosen_trackers(config(tmp_path)) == []


def test_a_finished_run_is_sent_to_those_alone_who_have_not_all_of_it(run, tmp_path, monkeypatch):
    run.log(step(1))
    feed(Recorder(), run, tmp_path, [])
    shown = io.StringIO()
    recorder = Recorder()
    monkeypatch.setattr(progress, "chosen_trackers", lambda _: [recorder])
    catch_up(run, config(tmp_path), Console(file=shown))
    assert (recorder.got, shown.getvalue()) == ([], "")
    run.log(step(2))
    catch_up(run, config(tmp_path), Console(file=shown))
    assert (recorder.steps, recorder.status) == ([2], "finished")


def picture(run):
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    (run.path / "figures").mkdir()
    Image.fromarray(pixels_HWC).save(run.path / "figures" / "one.png")
    return pixels_HWC, {"kind": "figure", "path": "figures/one.png", "title": "LR finder", "step": 4}


def test_tensorboard_reads_back_what_was_logged(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pixels_HWC, figure = picture(run)
    told = []

    def body():
        for number in range(1, 7):
            run.log(step(number, loss=float(number)))
        run.log(figure)
        run.log(epoch(0, 6, **{"train/loss": 3.5, "val/loss": 0.25, "val/auroc": None}))
        run.log({"kind": "resume", "step": 4, "checkpoint": "step-00000004"})
        run.log(step(5, loss=50.0))

    feed(TensorBoard(), run, tmp_path, told, body)
    assert told == [f"TensorBoard: tensorboard --logdir {run.path}/tensorboard"]
    read = EventAccumulator(str(run.path / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    assert set(read.Tags()["scalars"]) == {"train/loss", "train_epoch/loss", "val/loss"}
    assert read.Scalars("val/loss") == []  # of step 6, which the resumed run makes again
    (image,) = read.Images("LR finder")
    (tmp_path / "read.png").write_bytes(image.encoded_image_string)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "read.png")), pixels_HWC)
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| training.batch_size | `32` |" in text


def wandb_history(folder: Path):
    rows = []
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
    return rows


@pytest.mark.usefixtures("wandb_alone")
def test_wandb_keeps_the_run_in_files_without_a_login(run, tmp_path, monkeypatch):
    monkeypatch.setattr("requests.get", lambda *_, **__: pytest.fail("nobody is to be contacted"))
    _, figure = picture(run)
    told = []
    settings = config(tmp_path, wandb={"enabled": True, "project": "lab", "group": "night"}).logging.wandb

    def body():
        for number in range(1, 4):
            run.log(step(number, loss=float(number)))
        run.log(figure)
        run.log(epoch(0, 3, **{"val/loss": 0.25}))

    feed(Wandb(settings), run, tmp_path, told, body)
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (where,) = told
    assert where.startswith("W&B, not logged in to https://")
    assert where.endswith(f"(`wandb login`): send the run later by `wandb sync {folder}`")
    rows = wandb_history(folder)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [row["val/loss"] for row in rows if "val/loss" in row] == [0.25]
    images = [row for row in rows if "figures/LR finder/path" in row]
    assert [(row["step"], row["figures/LR finder/width"]) for row in images] == [(4, 6)]
    (begun,) = [r.run for r in wandb_records(folder) if r.WhichOneof("record_type") == "run"]
    state = TrackerState(run, "wandb")
    assert (begun.run_id, begun.project, begun.run_group) == (state.id, "lab", "night")
    assert (begun.display_name, list(begun.tags)) == ("first", ["quick", "cpu"])
    values = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert values["training.batch_size"] == 32
    (ended,) = [r.exit for r in wandb_records(folder) if r.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0
    axes = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in wandb_records(folder)}
    assert axes["*"] == "step"

    # The next driver: the same id, and a folder that holds all of the run again.
    feed(Wandb(settings), run, tmp_path, told, lambda: run.log(step(4)), "failed")
    assert TrackerState(run, "wandb").id == state.id
    newest = max((run.path / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    assert [row["step"] for row in wandb_history(newest) if "train/loss" in row] == [1, 2, 3, 4]


@pytest.mark.usefixtures("wandb_alone")
def test_wandb_sends_the_best_checkpoint_where_asked(run, tmp_path):
    best = run.checkpoints / "step-00000004"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"weights")
    (run.checkpoints / "best.json").write_text(
        json.dumps({"checkpoint": best.name, "metric": "val/loss", "value": 0.5})
    )
    settings = config(tmp_path, wandb={"enabled": True, "upload_best": True, "mode": "offline"}).logging.wandb
    feed(Wandb(settings), run, tmp_path, told := [], lambda: run.log(step(4)))
    assert len(told) == 1
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    sent = [r.request.log_artifact.artifact for r in wandb_records(folder) if r.HasField("request")]
    sent += [r.artifact for r in wandb_records(folder) if r.WhichOneof("record_type") == "artifact"]
    (artifact,) = sent
    assert (artifact.name, artifact.type) == ("Tiny-first", "model")
    assert "best" in artifact.aliases
    assert [entry.path for entry in artifact.manifest.contents] == ["model.safetensors"]


def test_mlflow_reads_back_what_was_logged(run, tmp_path):
    client_class = pytest.importorskip("mlflow").MlflowClient
    _, figure = picture(run)
    long_tag = {"version": "0.2"}
    settings = config(
        tmp_path, mlflow={"enabled": True, "experiment": "lab", "tags": long_tag}
    ).logging.mlflow
    told = []

    def body():
        for number in range(1, 4):
            run.log(step(number, loss=float(number)))
        run.log(figure)
        run.log(epoch(0, 3, **{"val/loss": 0.25}))

    feed(Mlflow(settings, tmp_path / "runs"), run, tmp_path, told, body)
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert told == [f"MLflow: mlflow ui --backend-store-uri {uri}"]
    client = client_class(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lab")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == "first"
    assert logged.data.params["training.batch_size"] == "32"
    assert (logged.data.tags["version"], logged.data.tags["quick"]) == ("0.2", "true")
    history = client.get_metric_history(logged.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert logged.data.metrics["val/loss"] == 0.25
    assert [file.path for file in client.list_artifacts(logged.info.run_id, "figures")] == ["figures/one.png"]
    assert (tmp_path / "runs" / "mlflow_artifacts").is_dir()

    feed(Mlflow(settings, tmp_path / "runs"), run, tmp_path, told, lambda: run.log(step(4)), "interrupted")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "KILLED"
    history = client.get_metric_history(logged.info.run_id, "train/loss")
    assert [m.step for m in history] == [1, 2, 3, 4]
