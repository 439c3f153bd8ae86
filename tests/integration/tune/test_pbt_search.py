"""Population based training on a real Ray cluster: four members of the tiny task, two at a time."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from voxray.config.errors import InputError
from voxray.train.checkpoints import checkpoint
from voxray.train.run_folder import RunFolder
from voxray.train.worker import train_here
from voxray.tune.plan import load_plan
from voxray.tune.search import search
from voxray.tune.study.folder import open_study

pytestmark = pytest.mark.usefixtures("ray_cluster")
MEMBERS, EPOCHS = 4, 6
EXPERIMENT = """
task: voxray.testing.tiny:Tiny
data: {{path: {dataset}}}
training: {{epochs: 6, batch_size: 25, schedule: constant}}
checkpoints: {{keep: 1}}
"""
SPACE = """
experiment: pbt_base.yaml
objective: {metric: val/loss, mode: min}
search:
  sampler: {name: random, seed: 3}
  scheduler: {name: pbt, every: 1, quantile: 0.25}
  trials: 4
  max_concurrent: 2
  space:
    training.learning_rate: {loguniform: [1e-4, 1e-1]}
    training.weight_decay: {loguniform: [1e-4, 1e-1]}
    model.dropout: {uniform: [0.0, 0.5]}
"""


@pytest.fixture(scope="module")
def space(tiny_dataset, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pbt")
    (folder / "pbt_base.yaml").write_text(EXPERIMENT.format(dataset=tiny_dataset))
    (folder / "pbt.yaml").write_text(SPACE)
    return str(folder / "pbt.yaml")


def run(space: str, storage: Path, *overrides: str, train=train_here):
    """Search; return whether it finished, the plan, the rows, and the exploitations by member."""
    plan = load_plan(space, [f"storage.path={storage}", *overrides])
    with open_study(plan) as ledger:
        finished = search(plan, ledger, train, lambda text: None, lambda row: None)
        return finished, plan, ledger.rows(), ledger.exploits()


@pytest.fixture(scope="module")
def uninterrupted(space, ray_cluster, tmp_path_factory):
    return run(space, tmp_path_factory.mktemp("whole"))


def epochs_of(plan, index: int) -> dict[int, float]:
    """Return a member's own losses by epoch, from its log."""
    records = RunFolder(plan.trial_folder(index)).records()
    return {int(r["epochs"]): r["val/loss"] for r in records if r["kind"] == "epoch"}


def starts_of(plan, index: int) -> list[dict]:
    """Return what each process that has trained a member has logged of itself."""
    lines = (plan.trial_folder(index) / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "workers"]


def test_the_worst_goes_on_from_the_best_after_every_epoch(uninterrupted):
    finished, plan, rows, exploits = uninterrupted
    assert finished
    assert [row.state for row in rows] == ["complete"] * MEMBERS
    curves = {index: epochs_of(plan, index) for index in range(MEMBERS)}
    assert {tuple(curve) for curve in curves.values()} == {tuple(range(1, EPOCHS + 1))}
    notes = sorted(
        ((note["generation"], index, note) for index, of in exploits.items() for note in of),
        key=lambda entry: entry[:2],
    )
    assert [generation for generation, *_ in notes] == list(range(1, EPOCHS))
    for generation, index, note in notes:
        order = sorted(range(MEMBERS), key=lambda member: curves[member][generation])
        assert (note["from"], index) == (order[0], order[-1])
        assert (note["epochs"], note["step"]) == (generation, 4 * generation)
    for row in rows:
        assert row.value == min(curves[row.index].values())
    logs = [record for index in range(MEMBERS) for record in starts_of(plan, index)]
    assert len(logs) > 2 * MEMBERS
    assert len({record["workers"][0]["pid"] for record in logs}) == 2  # no pause has cost an actor


def test_a_member_has_the_state_of_the_other_and_values_near_its_values(uninterrupted):
    _, plan, rows, exploits = uninterrupted
    for index, notes in exploits.items():
        folder = RunFolder(plan.trial_folder(index))
        told = [r["text"] for r in folder.records() if "goes on from another run's" in r.get("text", "")]
        assert len(told) == len(notes)
        config = folder.config()
        values = notes[-1]["values"]
        assert config["training"]["learning_rate"] == values["training.learning_rate"]
        assert config["model"]["dropout"] == values["model.dropout"]
        assert next(row.values for row in rows if row.index == index) == values
    # The last that was taken over was trained on for the epochs that were left, with the values that it got.
    generation, index = max((notes[-1]["generation"], index) for index, notes in exploits.items())
    _, state = checkpoint.load(checkpoint.last(RunFolder(plan.trial_folder(index)).checkpoints))
    groups = state["optimizer"]["groups"]
    assert {group["lr"] for group in groups} == {exploits[index][-1]["values"]["training.learning_rate"]}
    assert state["step"] == 4 * EPOCHS
    assert generation == EPOCHS - 1


def test_the_same_happens_one_at_a_time(uninterrupted, space, tmp_path):
    _, _, rows, exploits = uninterrupted
    finished, _, same_rows, same_exploits = run(space, tmp_path, "search.max_concurrent=1")
    assert finished
    assert same_exploits == exploits
    assert [row.scores for row in same_rows] == [row.scores for row in rows]


def test_a_search_that_was_cut_short_ends_as_if_it_had_not_been(uninterrupted, space, tmp_path):
    _, _, rows, exploits = uninterrupted

    def slowly(config, folder, report, control):
        def wait(numbers):
            time.sleep(0.2)
            report(numbers)

        train_here(config, folder, wait, control)

    logs = [tmp_path / f"Tiny/studies/pbt/trials/{index:04d}/log.jsonl" for index in range(MEMBERS)]

    def interrupt() -> None:
        for _ in range(600):
            if all(log.exists() and '"epochs": 3' in log.read_text() for log in logs[:2]):
                signal.raise_signal(signal.SIGINT)
                return
            time.sleep(0.1)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    finished, plan, done, _ = run(space, tmp_path, train=slowly)
    watcher.join()
    assert plan.trial_folder(0) == logs[0].parent
    assert not finished
    assert done == []
    finished, _, same_rows, same_exploits = run(space, tmp_path)
    assert finished
    assert same_exploits == exploits
    assert [row.scores for row in same_rows] == [row.scores for row in rows]


def test_a_member_that_fails_holds_nobody_up(space, tmp_path):
    def train(config, folder, report, control):
        def fail(numbers):
            if folder.name == "0001" and numbers["epochs"] == 2:
                raise ValueError("no more")
            report(numbers)

        train_here(config, folder, fail, control)

    finished, _, rows, _ = run(space, tmp_path, train=train)
    assert finished
    assert [row.state for row in rows] == ["complete", "fail", "complete", "complete"]
    assert rows[1].reason == "ValueError: no more"


def test_a_shape_that_depends_on_a_key_is_refused_before_anything_runs(space, tmp_path):
    other = Path(space).with_name("shapes.yaml")
    other.write_text(SPACE + "    model.hidden_dim: {choice: [8, 16]}\n")
    with pytest.raises(InputError) as error:
        run(str(other), tmp_path)
    assert "shapes.yaml:13: model.hidden_dim: with scheduler pbt" in str(error.value)
    assert len(error.value.problems) == 1


def test_no_search_leaves_a_place_reserved():
    """Above, one was cut short by Ctrl-C: what its trials had is free again."""
    from voxray.tune.executors.groups import of_this_process

    assert of_this_process() == {}
