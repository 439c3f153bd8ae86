"""Trackers of a search: what reaches them, read with their own readers; one thread each; none holds it up."""

import json
import threading
import time
from pathlib import Path

import pytest

from voxray.testing.tiny import TinyConfig
from voxray.train.run_folder import RunFolder
from voxray.train.trackers import fan_out
from voxray.train.trackers.tracker import TrackerState
from voxray.tune.job import Job, Run
from voxray.tune.ledger import TrialRow
from voxray.tune.trackers import trial_trackers
from voxray.tune.trackers.shown import Outcome, Place
from voxray.tune.trackers.trial_trackers import TrialTrackers
from wandb_files import wandb_records


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(fan_out, "POLL_S", 0.01)
    monkeypatch.setattr(trial_trackers, "POLL_S", 0.01)


@pytest.fixture
def study(tmp_path) -> Path:
    folder = tmp_path / "runs" / "Tiny" / "studies" / "night"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"started": "2026-11-21"}))
    return folder


def config(study, **values):
    return TinyConfig.model_validate({"storage": {"path": str(study.parents[2])}, **values})


def job(study, index, *seeds, **values) -> Job:
    runs = []
    for seed in seeds or (None,):
        path = study / "trials" / (f"{index:04d}" if seed is None else f"{index:04d}-seed{seed}")
        training = values.get("training", {}) if seed is None else {"seed": seed}
        own = config(study, experiment_name=f"night-{index:04d}", training=training)
        RunFolder(path).write_config(own, {})
        runs.append(Run(path, own))
    return Job(index, tuple(runs), "inline")


def log_steps(run: Run, *numbers: int):
    for number in numbers:
        RunFolder(run.path).log(
            {"kind": "step", "stage": "main", "epoch": 0, "step": number, "train/loss": 1.0}
        )


def row(index, state="complete", score=0.5, **values) -> TrialRow:
    scores = None if state == "fail" else (score,)
    return TrialRow(index, state, scores, 4, 1.0, values or {"training.learning_rate": 0.1}, "")


class Recorder:
    """A tracker that keeps what it gets, by run; `at` says when it fails or waits."""

    name = "Recorder"
    patience_s = 0.3

    def __init__(self, got, outcome, at, key):
        self.got, self.outcome, self.at, self.key = got, outcome, at, key

    def start(self, info, state) -> str:
        self.at()
        self.run = self.got.setdefault(info.run.path.name, {"steps": [], "status": "", "info": info})
        state.go_to("here")
        return "look here"

    def record(self, record):
        self.at()
        self.run["steps"].append(record["step"])

    def flush(self):
        pass

    def finish(self, status):
        self.run["status"], self.run["row"] = status, self.outcome.row


class InRecorder:
    """How a study is shown in a Recorder."""

    def __init__(self, got, at=lambda: None, key="recorder"):
        self.got, self.at, self.key = got, at, key
        self.study = Place(self.key, "Recorder", "look here")

    def trial(self, outcome: Outcome) -> Recorder:
        return Recorder(self.got, outcome, self.at, self.key)


@pytest.fixture
def recorded(study, monkeypatch):
    """Trackers of the study in a Recorder: (what was got, what was told, a new TrialTrackers)."""
    got, told = {}, []

    def begin(at=lambda: None, num=1, patience_s=5.0):
        shown = [InRecorder({} if n else got, at, f"recorder{n}") for n in range(num)]
        monkeypatch.setattr(trial_trackers, "chosen", lambda *_: shown)
        return TrialTrackers(config(study), study, "night", ("val/loss",), told.append, patience_s)

    return got, told, begin


def eventually(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def tracker_threads() -> int:
    return sum(thread.name.startswith("tracker ") for thread in threading.enumerate())


def test_without_a_tracker_nothing_is_done(study):
    before = threading.active_count()
    trackers = TrialTrackers(config(study), study, "night", ("val/loss",), pytest.fail)
    trackers.begin(job(study, 0))
    trackers.ended(row(0))
    trackers.catch_up([row(1)], lambda _: pytest.fail("no folder is looked at"))
    trackers.finish("finished")
    assert threading.active_count() == before
    assert not (study / "trackers").exists()


def test_each_trial_is_followed_and_ended_by_one_thread_per_tracker(study, recorded):
    got, told, begin = recorded
    before = tracker_threads()
    trackers = begin(num=2)
    for index in range(30):
        trial = job(study, index)
        trackers.begin(trial)
        log_steps(trial.runs[0], 1, 2, 3)
        assert tracker_threads() - before <= 2
        if index == 7:  # PBT and a trial that is resumed begin again
            trackers.begin(trial)
        state = {3: "pruned", 4: "fail"}.get(index, "complete")
        trackers.ended(row(index, state))
    trackers.finish("finished")
    eventually(lambda: tracker_threads() == before)
    assert sorted(got) == [f"{index:04d}" for index in range(30)]
    assert all(run["steps"] == [1, 2, 3] for run in got.values())
    assert {name: run["status"] for name, run in got.items() if run["status"] != "finished"} == {
        "0004": "failed"
    }
    assert got["0003"]["row"].state == "pruned"
    assert told == ["look here"]
    info = got["0007"]["info"]
    assert (info.name, info.group, info.job_type) == ("night-0007", "night", "trial")
    assert info.config["experiment_name"] == "night-0007"


def test_a_trials_key_is_its_own_and_stays(study, recorded):
    got, _, begin = recorded

    def keys() -> dict[str, str]:
        got.clear()
        trackers = begin()
        for trial in (job(study, 0), job(study, 1, 5, 6)):
            trackers.begin(trial)
            for run in trial.runs:
                log_steps(run, 1)
        trackers.finish("finished")
        return {name: run["info"].key for name, run in got.items()}

    first = keys()
    assert len(set(first.values())) == len(first) == 3
    assert keys() == first
    (study / "study.json").write_text(json.dumps({"started": "later"}))
    assert not set(keys().values()) & set(first.values())


def test_a_seed_is_followed_from_its_first_record_on(study, recorded):
    got, _, begin = recorded
    trackers = begin()
    trial = job(study, 0, 11, 12, 13)
    trackers.begin(trial)
    log_steps(trial.runs[0], 1, 2)
    eventually(lambda: got.get("0000-seed11", {}).get("steps") == [1, 2])
    assert set(got) == {"0000-seed11"}
    log_steps(trial.runs[1], 1)
    eventually(lambda: "0000-seed12" in got)
    trackers.ended(row(0, "fail"))  # in its second seed
    trackers.finish("finished")
    assert [run["info"].name for run in got.values()] == ["night-0000-seed11", "night-0000-seed12"]


def test_a_tracker_that_hangs_holds_nothing_up(study, recorded):
    _, told, begin = recorded
    release = threading.Event()
    trackers = begin(at=release.wait, patience_s=0.3)
    started = time.monotonic()
    for index in range(3):
        trial = job(study, index)
        trackers.begin(trial)
        log_steps(trial.runs[0], 1)
        trackers.ended(row(index))
    assert time.monotonic() - started < 0.5
    trackers.finish("finished")
    assert time.monotonic() - started < 2.5
    assert "Recorder: 3 trials are not whole there; the same command sends the rest" in told
    release.set()


def test_what_fails_is_told_once_and_sent_at_the_end(study, recorded):
    got, told, begin = recorded
    away = True

    def fail():
        if away:
            raise OSError("the server is away")

    trackers = begin(at=fail)
    for index in range(4):
        trial = job(study, index)
        trackers.begin(trial)
        log_steps(trial.runs[0], 1, 2)
        time.sleep(0.02)
        trackers.ended(row(index))
    eventually(lambda: len(told) == 2)
    away = False
    trackers.finish("finished")
    assert told[:2] == [
        "look here",
        "Recorder is off for now (the server is away); training goes on, it is tried again",
    ]
    assert not any("not whole" in text for text in told)
    assert {name: run["steps"] for name, run in got.items()} == {f"{index:04d}": [1, 2] for index in range(4)}
    assert all(run["status"] == "finished" for run in got.values())


def test_the_next_command_sends_what_could_not_be_sent(study, recorded):
    got, told, begin = recorded

    def fail():
        raise OSError("the server is away")

    trackers = begin(at=fail, patience_s=0.5)
    trials = [job(study, index) for index in range(3)]
    for trial in trials:
        trackers.begin(trial)
        log_steps(trial.runs[0], 1, 2)
        trackers.ended(row(trial.index, "pruned"))
    trackers.finish("finished")
    assert "Recorder: 3 trials are not whole there; the same command sends the rest" in told
    assert got == {}

    broken = job(study, 3)
    log_steps(broken.runs[0], 1)
    RunFolder(broken.runs[0].path).config_file.write_text("{}")
    trials.append(broken)
    trackers = begin()
    rows = [row(trial.index, "pruned") for trial in trials]
    trackers.catch_up(rows, lambda index: [trials[index].runs[0].path])
    trackers.finish("finished")
    assert {name: run["steps"] for name, run in got.items()} == {f"{index:04d}": [1, 2] for index in range(3)}
    assert got["0001"]["row"].state == "pruned"
    assert got["0001"]["info"].config["experiment_name"] == "night-0001"

    got.clear()
    told.clear()
    trackers = begin()
    trackers.catch_up(rows, lambda index: [trials[index].runs[0].path])
    trackers.finish("finished")
    assert (got, told) == ({}, [])  # nothing twice


def test_a_trial_that_was_interrupted_goes_on_where_it_was(study, recorded):
    got, _, begin = recorded
    trial = job(study, 0)
    with begin() as trackers:
        trackers.begin(trial)
        log_steps(trial.runs[0], 1, 2)
    assert (got["0000"]["steps"], got["0000"]["status"], got["0000"]["row"]) == ([1, 2], "interrupted", None)
    with begin() as trackers:
        trackers.begin(trial)
        log_steps(trial.runs[0], 3)
        trackers.ended(row(0))
    assert (got["0000"]["steps"], got["0000"]["status"]) == ([1, 2, 3], "finished")


# --- the real ones
def test_tensorboards_own_reader_finds_what_was_drawn_and_reached(study):
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    told = []
    trackers = TrialTrackers(
        config(study, logging={"tensorboard": True}), study, "night", ("val/loss",), told.append
    )
    drawn = [
        {
            "training.learning_rate": 0.1,
            "training.optimizer": "adamw",
            "model.batch_norm": True,
            "model.x": [1, 2],
        },
        {
            "training.learning_rate": 0.01,
            "training.optimizer": "sgd",
            "model.batch_norm": False,
            "model.x": None,
        },
    ]
    for index, values in enumerate(drawn):
        trial = job(study, index)
        trackers.begin(trial)
        log_steps(trial.runs[0], 1, 2)
        trackers.ended(row(index, "pruned" if index else "complete", 0.5 + index, **values))
    failed = job(study, 2)
    trackers.begin(failed)
    log_steps(failed.runs[0], 1)
    trackers.ended(row(2, "fail"))
    trackers.finish("finished")
    assert told == [f"TensorBoard: tensorboard --logdir {study}"]

    scalars = EventAccumulator(str(study / "trials" / "0001" / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in scalars] == [1, 2]
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(study)).Reload()
    assert {"tensorboard/0000", "tensorboard/0001", "trials/0000/tensorboard"} <= set(multiplexer.Runs())
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(study))
    backend = backend_context.Context(TBContext(data_provider=provider))
    names = [*drawn[0], "none"]
    request = api_pb2.ListSessionGroupsRequest(  # pyright: ignore[reportAttributeAccessIssue]
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],  # pyright: ignore[reportAttributeAccessIssue]
        col_params=[api_pb2.ColParams(hparam=name, include_in_result=True) for name in names],  # pyright: ignore[reportAttributeAccessIssue]
    )
    answer = list_session_groups.Handler(RequestContext(), backend, "", request).run()
    groups = {group.name: group for group in answer.session_groups}
    assert set(groups) == {"0000", "0001", "0002"}
    found = groups["0000"].hparams
    assert found["training.learning_rate"].number_value == 0.1
    assert found["training.optimizer"].string_value == "adamw"
    assert found["model.batch_norm"].bool_value is True
    assert found["model.x"].string_value == "[1, 2]"
    assert groups["0001"].hparams["model.x"].string_value == "null"
    (value,) = groups["0001"].metric_values
    assert (value.name.tag, value.value, value.training_step) == ("val/loss", 1.5, 4)
    (session,) = groups["0002"].sessions
    assert session.status == api_pb2.STATUS_FAILURE  # pyright: ignore[reportAttributeAccessIssue]
    assert list(groups["0002"].metric_values) == []


def items(update):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update}


def wandb_run(folder: Path):
    """What the files of a run say: (the run, its history, its summary)."""
    begun, history, summary = None, [], {}
    for record in wandb_records(folder):
        match record.WhichOneof("record_type"):
            case "run":
                begun = record.run
            case "history":
                history.append(items(record.history.item))
            case "summary":
                summary |= items(record.summary.update)
    return begun, history, summary


@pytest.mark.usefixtures("wandb_alone")
def test_trials_are_wandb_runs_of_one_group_at_the_same_time(study):
    told = []
    logging = {"wandb": {"enabled": True, "project": "lab"}}
    trackers = TrialTrackers(config(study, logging=logging), study, "night", ("val/loss",), told.append)
    trials = [job(study, index, training={"learning_rate": 0.1 * (index + 1)}) for index in range(3)]
    for trial in trials:
        trackers.begin(trial)
        log_steps(trial.runs[0], 1)
    offline = lambda trial: list((trial.runs[0].path / "wandb").glob("offline-run-*"))  # noqa: E731
    eventually(lambda: all(map(offline, trials)))  # all are open
    for trial in trials:
        log_steps(trial.runs[0], 2, 3)
        trackers.ended(row(trial.index, "pruned" if trial.index else "complete", 0.25 * trial.index))
    trackers.finish("finished")
    assert told[0] == "W&B: project lab, group night"
    assert told[1].startswith("W&B, not logged in to https://")
    assert told[1].endswith(f"send the trials later by `wandb sync {study}/trials/*/wandb/offline-run-*`")
    assert len(told) == 2
    ids = set()
    for trial in trials:
        (folder,) = offline(trial)
        begun, history, summary = wandb_run(folder)
        assert (begun.project, begun.run_group, begun.job_type) == ("lab", "night", "trial")
        assert (begun.display_name, begun.run_id) == (
            f"night-{trial.index:04d}",
            TrackerState(RunFolder(trial.runs[0].path), "wandb").id,
        )
        values = items(begun.config.update)
        assert values["training.learning_rate"] == pytest.approx(0.1 * (trial.index + 1))
        assert [entry["step"] for entry in history] == [1, 2, 3]
        assert summary["trial/state"] == ("pruned" if trial.index else "complete")
        assert summary["score/val/loss"] == 0.25 * trial.index
        ids.add(begun.run_id)
    assert len(ids) == 3


def test_mlflow_nests_the_trials_in_the_studys_run(study, tmp_path):
    client_class = pytest.importorskip("mlflow").MlflowClient
    told = []
    logging = {"mlflow": {"enabled": True, "experiment": "lab"}}

    def search(*indices: int):
        trackers = TrialTrackers(config(study, logging=logging), study, "night", ("val/loss",), told.append)
        for index in indices:
            trial = job(study, index, training={"learning_rate": 0.1 * (index + 1)})
            trackers.begin(trial)
            log_steps(trial.runs[0], 1, 2)
            trackers.ended(row(index, "fail" if index == 1 else "complete", 0.5))
        trackers.finish("finished")

    search(0, 1)
    search(2)  # another command goes on with the study's run
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert told == [f"MLflow: mlflow ui --backend-store-uri {uri}"] * 2
    client = client_class(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lab")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"night", "night-0000", "night-0001", "night-0002"}
    parent = runs["night"].info.run_id
    assert runs["night"].info.status == "FINISHED"
    assert "mlflow.parentRunId" not in runs["night"].data.tags
    assert all(runs[name].data.tags["mlflow.parentRunId"] == parent for name in set(runs) - {"night"})
    assert runs["night-0000"].data.metrics["score/val/loss"] == 0.5
    assert runs["night-0000"].data.tags["voxray.trial.state"] == "complete"
    assert (runs["night-0001"].info.status, "score/val/loss" in runs["night-0001"].data.metrics) == (
        "FAILED",
        False,
    )
    assert runs["night-0002"].data.params["training.learning_rate"].startswith("0.3")
    assert [m.step for m in client.get_metric_history(runs["night-0002"].info.run_id, "train/loss")] == [1, 2]


def test_a_missing_library_is_an_input_error_before_anything_starts(tmp_path, monkeypatch):
    from voxray.config.errors import InputError
    from voxray.tune.plan import load_plan

    (tmp_path / "base.yaml").write_text("task: voxray.testing.tiny:Tiny\ndata: {path: somewhere}\n")
    (tmp_path / "space.yaml").write_text(
        "experiment: base.yaml\nobjective: {metric: val/loss, mode: min}\n"
        "search: {trials: 2, space: {training.learning_rate: {uniform: [0.1, 0.2]}}}\n"
    )
    monkeypatch.setattr("voxray.train.trackers.choose.find_spec", lambda _: None)
    load_plan(str(tmp_path / "space.yaml"))
    with pytest.raises(InputError, match="mlflow is not installed; pip install"):
        load_plan(str(tmp_path / "space.yaml"), ["logging.mlflow.enabled=true"])
