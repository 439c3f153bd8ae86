"""A run on Ray: data comes through Ray Data, every rank trains, the run resumes, errors are ours."""

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from voxray.config.errors import InputError, RunError
from voxray.core.experiment import default_config
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.dry_run.plan import plan
from voxray.train.launch import launch, prepare_folder
from voxray.train.run_folder import run_folder

pytestmark = pytest.mark.usefixtures("ray_cluster")
TASK = "voxray.testing.tiny:Tiny"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rows = {"train": tiny_rows(200, 1), "val": tiny_rows(60, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 70)


@pytest.fixture
def experiment(dataset, tmp_path):
    def make(**values):
        base = {
            "data.path": str(dataset),
            "data.window_mb": 0.002,  # several windows per epoch
            "storage.path": str(tmp_path / "runs"),
            "training.epochs": 2,
            "logging.log_every_n_steps": 1,
        }
        return default_config(
            TASK, {**base, **{k.replace("__", "."): v for k, v in values.items()}}, "the test"
        )

    return make


def here() -> str:
    """The address of this session's Ray, as another one may run on the machine."""
    import ray

    return ray.get_runtime_context().gcs_address


def task_counts() -> Counter:
    from ray.util.state import list_tasks

    return Counter(task.name for task in list_tasks(address=here(), limit=10_000))


def test_two_workers_train_on_what_ray_data_read(experiment):
    from ray.util.state import list_actors

    before, actors_before = task_counts(), {a.actor_id for a in list_actors(address=here(), limit=10_000)}
    resolved = experiment(scale__num_workers=2, data__transport="stream")
    run = launch(resolved, "auto", QUIET)
    # From Ray's own state: read tasks of our windows ran, and two Ray Train workers lived.
    assert task_counts()["ReadVoxrayWindows"] > before["ReadVoxrayWindows"]
    new = [a for a in list_actors(address=here(), limit=10_000) if a.actor_id not in actors_before]
    assert sum("TrainWorker" in a.class_name for a in new) == 2
    ranks = [r for r in run.records() if r["kind"] == "rank"]
    assert [r["rank"] for r in ranks] == [0, 1]
    assert sum(r["rows"] for r in ranks) == 2 * 200
    assert len({r["pid"] for r in ranks}) == 2
    assert run.is_finished()

    one = launch(experiment(run__name="alone"), "auto", QUIET)

    def losses(folder):
        return [r["train/loss"] for r in folder.records() if r["kind"] == "step"]

    assert losses(run) == pytest.approx(losses(one), rel=2e-6, abs=1e-6)

    told = []
    assert not prepare_folder(run, resolved, "auto", told.append)
    assert "finished already" in told[0]
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.001 before, 0\.5 now"):
        prepare_folder(run, experiment(training__learning_rate=0.5), "auto", told.append)
    with pytest.raises(InputError, match="holds a run already"):
        prepare_folder(run, resolved, "never", told.append)

    longer = launch(experiment(run__name="alone", training__epochs=3), "auto", QUIET)
    epochs = [r["epoch"] for r in longer.records() if r["kind"] == "epoch"]
    assert epochs == [0, 1, 2]


def test_a_failing_worker_is_one_error_of_ours(experiment):
    with pytest.raises(RunError, match=r"lower training\.learning_rate"):
        launch(experiment(training__learning_rate=1e20, training__optimizer="sgd"), "auto", QUIET)


def test_an_attempt_that_failed_at_once_may_be_corrected(experiment, tmp_path):
    wrong = experiment(training__learning_rate=0.5)
    run = run_folder(wrong.config)
    assert prepare_folder(run, wrong, "auto", print)
    assert prepare_folder(run, experiment(), "auto", print)
    assert run.config()["training"]["learning_rate"] == 0.001
    run.config_file.unlink()
    (run.path / "mine.txt").write_text("not a run")
    with pytest.raises(InputError, match="exists and is no run"):
        prepare_folder(run, experiment(), "auto", print)


def test_more_workers_than_the_cluster_holds_is_an_input_error(experiment):
    with pytest.raises(InputError, match="needs 9 CPU; Ray has 4; lower"):
        launch(experiment(scale__num_workers=9), "auto", QUIET)
    with pytest.raises(InputError, match=r"needs 5 CPU, one of them for data\.transport=stream; Ray has 4"):
        launch(experiment(scale__num_workers=4, data__transport="stream"), "auto", QUIET)


def test_a_damaged_shard_is_named(experiment, dataset, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shard = sorted((copy / "shards").glob("train-*"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises((InputError, RunError), match=rf"{shard.name}' is damaged"):
        launch(experiment(data__path=str(copy)), "auto", QUIET)


def test_must_resume_and_wrong_monitor(experiment):
    with pytest.raises(InputError, match="no run in"):
        prepare_folder(run_folder(experiment().config), experiment(), "must", print)
    with pytest.raises(InputError, match="nobody reports 'val/auroc'"):
        launch(experiment(training__monitor="val/auroc"), "auto", QUIET)


def test_plan_counts_without_training(experiment):
    size = plan(experiment(training__batch_size=30, training__accumulate_grad_batches=2).config)
    assert (size.num_train_rows, size.num_val_rows, size.num_updates) == (200, 60, 2 * 4)
    assert size.num_parameters == 6 * 16 + 16 + 16 * 2 + 2
