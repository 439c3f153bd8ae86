"""A run on an object store: made in a local copy, sent after each save; whole there or not at all.

The store is fsspec's in memory; machines are cache folders of their own.
"""

import hashlib
from pathlib import Path

import fsspec
import pytest
import torch

from voxray.config.errors import InputError, RunError
from voxray.data.location import working_folder
from voxray.data.store import Store
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train import mirror as mirrors
from voxray.train.at_hand import at_hand
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.checkpoint import Best, Saver
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.control import Control
from voxray.train.mirror import STUDY_LOG, Mirror
from voxray.train.run_folder import RunFolder, run_folder
from voxray.train.trained.load import find
from voxray.train.worker import train_here

STORAGE = "memory://bucket/runs"
FILES = 5  # of a checkpoint, the manifest included


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Go to a machine: its cache is its own; the store is empty and answers at once."""
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(mirrors, "FIRST_WAIT_S", 0.0)

    def go_to(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    yield go_to
    fsspec.filesystem("memory").store.clear()


def of_run() -> Mirror:
    found = Mirror.of(STORAGE, working_folder(STORAGE) / "Tiny/run")
    assert found
    return found


def save(mirror: Mirror, step: int, keep: int = 2, best: bool = False) -> None:
    """Log an update and save a checkpoint, as a run does; the saver sends it."""
    run = RunFolder(mirror.folder)
    run.path.mkdir(parents=True, exist_ok=True)
    run.log({"kind": "step", "step": step})
    taken = snapshot(step, {"model": {"w": torch.full((50,), float(step))}}, {"step": step}, {})
    told: list[str] = []
    saver = Saver(run.checkpoints, keep, False, told.append, lambda: mirror.push_or_tell(told.append))
    saver.save(taken, Best("val/loss", 0.5, "main", 0) if best else None)
    for text in told:
        run.log({"kind": "note", "text": text})


def stored() -> dict[str, bytes]:
    """Every file of the store's run, by its name in RUN."""
    store = Store.of(STORAGE)
    return {name: store.fetch(f"Tiny/run/{name}") for name in store.files("Tiny/run")}


def here(mirror: Mirror) -> dict[str, bytes]:
    found = (path for path in mirror.folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(mirror.folder).as_posix(): path.read_bytes() for path in found}


def test_what_is_sent_is_the_run_and_another_machine_gets_it_all(machine):
    machine("one")
    one = of_run()
    for step in (1, 2, 3, 4):
        save(one, step, best=step == 2)
    (one.folder / "stop").touch()
    (one.folder / ".ray").mkdir()
    (one.folder / ".ray/state").touch()
    one.push()
    own = {name: data for name, data in here(one).items() if name not in ("stop", ".ray/state")}
    assert stored() == own
    steps = {name.split("/")[1] for name in own if name.startswith("checkpoints/step-")}
    assert steps == {"step-00000002", "step-00000003", "step-00000004"}  # the best, and the two newest
    machine("two")
    two = of_run()
    assert two.folder != one.folder
    two.pull()
    assert here(two) == own
    found = checkpoint.newest(two.folder / "checkpoints", pytest.fail)
    assert torch.equal(checkpoint.load(found)[0]["model"]["w"], torch.full((50,), 4.0))
    two.pull()
    assert here(two) == own


@pytest.mark.parametrize("num_sent", range(FILES + 1))
def test_a_save_that_is_cut_anywhere_leaves_the_one_before(num_sent, machine, monkeypatch):
    """The store is gone after so many files of the second one; the user is told; the next save heals."""
    machine("one")
    one = of_run()
    save(one, 1)
    upload, sent = Store.upload, []

    def upload_some(self, source: Path, file: str) -> None:
        if "step-00000002" in file:
            if len(sent) == num_sent:
                raise OSError("the server is gone")
            sent.append(file)
        upload(self, source, file)

    monkeypatch.setattr(Store, "upload", upload_some)
    save(one, 2)
    is_whole = num_sent == FILES
    notes = [r["text"] for r in RunFolder(one.folder).records() if r["kind"] == "note"]
    said = f"checkpoint step-00000002 was not sent to {STORAGE}/Tiny/run: the server is gone; the next save"
    assert [text.startswith(said) for text in notes] == ([] if is_whole else [True])
    machine("two")
    two = of_run()
    two.pull()
    found = checkpoint.newest(two.folder / "checkpoints", pytest.fail)
    assert found.name == ("step-00000002" if is_whole else "step-00000001")
    checkpoint.load(found)

    machine("one")
    monkeypatch.setattr(Store, "upload", upload)
    save(one, 3)
    assert {name: data for name, data in here(one).items() if "checkpoints" in name} == {
        name: data for name, data in stored().items() if "checkpoints" in name
    }


def test_a_store_that_fails_now_and_then_is_asked_again(machine, monkeypatch):
    machine("one")
    upload, calls = Store.upload, []

    def upload_at_second(self, source: Path, file: str) -> None:
        calls.append(file)
        if calls.count(file) < mirrors.TRIES:
            raise OSError("busy")
        upload(self, source, file)

    monkeypatch.setattr(Store, "upload", upload_at_second)
    one = of_run()
    save(one, 1)
    assert stored() == here(one)


def test_a_checkpoint_is_removed_manifest_first(machine, monkeypatch):
    machine("one")
    one = of_run()
    save(one, 1, keep=1)
    remove, removed = Store.remove, []

    def remove_one(self, file: str) -> None:
        if removed:
            raise OSError("the server is gone")
        removed.append(file)
        remove(self, file)

    monkeypatch.setattr(Store, "remove", remove_one)
    save(one, 2, keep=1)
    assert removed == ["Tiny/run/checkpoints/step-00000001/MANIFEST.json"]
    machine("two")
    two = of_run()
    two.pull()
    assert [path.name for path in checkpoint.newest_first(two.folder / "checkpoints")] == ["step-00000002"]


def test_of_two_copies_the_one_that_went_on_is_right(machine):
    machine("one")
    one = of_run()
    save(one, 1)
    machine("two")
    two = of_run()
    two.pull()
    save(two, 2)
    machine("one")
    run = RunFolder(one.folder)
    run.log({"kind": "step", "step": 2, "train/loss": 1.0})  # made here and never sent
    checkpoint.write(run.checkpoints, snapshot(2, {"model": {"w": torch.zeros(3)}}, {"step": 2}, {}))
    one.pull()
    assert here(one) == here(two) == stored()
    # A copy that is ahead stays: what was not sent yet is sent.
    machine("two")
    taken = snapshot(3, {"model": {"w": torch.ones(3)}}, {"step": 3}, {})
    RunFolder(two.folder).log({"kind": "step", "step": 3})
    checkpoint.write(RunFolder(two.folder).checkpoints, taken)
    before = here(two)
    two.pull()
    assert here(two) == before
    two.push()
    assert stored() == before


def test_a_log_without_its_checkpoints_is_no_whole_copy(machine):
    """A driver follows the log of workers elsewhere; when it trains itself, it fetches the rest."""
    machine("one")
    save(of_run(), 1)
    machine("two")
    two = of_run()
    two.pull_log()
    assert list(here(two)) == ["log.jsonl"]
    two.pull()
    assert checkpoint.newest(two.folder / "checkpoints", pytest.fail).name == "step-00000001"


def test_a_run_that_is_cut_goes_on_on_another_machine_bit_for_bit(machine, tmp_path):
    rows = {"train": tiny_rows(80, 1), "val": tiny_rows(20, 2)}
    dataset = write_dataset(tmp_path / "tiny", Tiny(TinyConfig()).schema(), rows, 40)
    values = {
        "task": "voxray.testing.tiny:Tiny",
        "experiment_name": "cut",
        "data": {"path": str(dataset)},
        "model": {"dropout": 0.3, "batch_norm": True},
        "training": {"batch_size": 8, "epochs": 3},
        "checkpoints": {"save_every_n_steps": 1},
        "logging": {"log_every_n_steps": 1},
    }

    class Cut(Exception):
        pass

    def train(storage: str, cut_at: int = 0) -> RunFolder:
        config = TinyConfig.model_validate({**values, "storage": {"path": storage}})
        beats: list[int] = []

        def beat() -> None:
            beats.append(1)
            if len(beats) == cut_at:
                raise Cut

        run = run_folder(config)
        train_here(config, run.path, lambda metrics: None, Control(beat=beat))
        return run

    whole = train(str(tmp_path / "runs"))
    machine("one")
    with pytest.raises(Cut):
        train(STORAGE, cut_at=17)
    machine("two")
    run = train(STORAGE)
    assert run.is_finished()
    assert [r.get("step") for r in run.records() if r["kind"] == "step"] == list(range(1, 31))
    assert _weights(run) == _weights(whole)
    machine("three")  # nothing is left to do, and all is there
    assert _weights(train(STORAGE)) == _weights(whole)


def _weights(run: RunFolder) -> str:
    return hashlib.sha256((checkpoint.last(run.checkpoints) / "model.safetensors").read_bytes()).hexdigest()


def test_a_store_that_cannot_be_reached_is_said(machine, monkeypatch):
    machine("one")
    one = of_run()
    save(one, 1)

    def refuse(self, *_: object) -> None:
        raise OSError("access denied\nand more")

    monkeypatch.setattr(Store, "files", refuse)
    with pytest.raises(
        InputError, match=f"{STORAGE}/Tiny/run cannot be read: access denied; mend the address"
    ):
        one.open()
    with pytest.raises(RunError, match=r"cannot be written: access denied; all of it is in .*one.* on "):
        one.close()


def test_a_command_reads_a_run_or_a_study_at_a_url(machine):
    """A Path makes one slash of two, as the command line's arguments are Paths."""
    machine("one")
    one = of_run()
    one.folder.mkdir(parents=True)
    (one.folder / "config.json").write_text('{"config": {}}')
    save(one, 1, best=True)
    study = Mirror.of(STORAGE, working_folder(STORAGE) / "Tiny/studies/six", STUDY_LOG)
    trial = Mirror.of(STORAGE, study.folder / "trials/0000")
    save(trial, 1)
    for name in ("study.json", "journal.log"):
        (study.folder / name).write_text(name)
    study.push()
    machine("two")
    url = Path(f"{STORAGE}/Tiny/run")
    assert here(of_run()) == {}
    assert at_hand(url) == of_run().folder
    assert here(of_run()) == stored()
    assert find(url / "best")[0].name == "step-00000001"
    found = at_hand(Path(f"{STORAGE}/Tiny/studies/six"))
    names = {path.relative_to(found).as_posix() for path in found.rglob("[!.]*") if path.is_file()}
    assert names == {"study.json", "journal.log", "trials/0000/log.jsonl"}
    assert at_hand(Path("runs/Tiny/run")) == Path("runs/Tiny/run")
    with pytest.raises(InputError, match=f"there is no run and no study at {STORAGE}/Tiny/other"):
        at_hand(Path(f"{STORAGE}/Tiny/other"))


def test_where_the_copy_of_a_url_lies(machine, tmp_path):
    machine("one")
    root = tmp_path / "one/voxray/storage"
    assert working_folder("s3://bucket/lab/runs") == root / "s3/bucket/lab/runs"
    assert working_folder("runs") == Path("runs")
    assert working_folder("file:///data/runs") == Path("/data/runs")
    other = working_folder("s3://bucket/runs?endpoint_override=http://minio:9000")
    assert other.parent != working_folder("s3://bucket/runs").parent
    assert Mirror.of("runs", Path("runs/a/b")) is None
    assert Mirror.of(STORAGE, tmp_path) is None
    for wrong, said in (("s3://key:secret@bucket/runs", "holds credentials"), ("s3://bucket/../x", "'..'")):
        with pytest.raises(InputError, match=said) as error:
            working_folder(wrong)
        assert "secret" not in str(error.value)
