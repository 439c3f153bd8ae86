"""`voxray train`: which of its three ways a command line asks for."""

from pathlib import Path

import pytest

from voxray.cli import train
from voxray.cli.main import app, main
from voxray.config.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way was taken, instead of taking it."""
    ways: list[str] = []
    monkeypatch.chdir(ROOT)
    for name in ("_train", "_print_plan", "_fast_dev_run"):
        monkeypatch.setattr(train, name, lambda *_, name=name: ways.append(name))
    return ways


@pytest.mark.parametrize(
    ("arguments", "way"),
    [
        ([], "_train"),
        (["--dry-run"], "_print_plan"),
        (["--dry-run", "--json"], "_print_plan"),
        (["--fast-dev-run"], "_fast_dev_run"),
        (["--fast_dev_run"], "_fast_dev_run"),
        (["training.fast_dev_run=true"], "_fast_dev_run"),
        (["--trainer.fast_dev_run", "1"], "_fast_dev_run"),
        (["training.fast_dev_run=false"], "_train"),
    ],
)
def test_the_way_is_the_one_that_was_asked_for(arguments: list[str], way: str, taken: list[str]) -> None:
    app(args=["train", "cxr_memory/dev_fast", *arguments], standalone_mode=False)
    assert taken == [way]


def test_a_guides_key_for_a_fast_run_is_told(taken: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    app(args=["train", "cxr_memory/dev_fast", "training.fast_dev_run=true"], standalone_mode=False)
    assert "note: training.fast_dev_run=true is --fast-dev-run here" in capsys.readouterr().err


def test_without_data_nothing_starts(taken: list[str]) -> None:
    with pytest.raises(InputError, match=r"data\.path is empty"):
        app(args=["train", "baseline_effv2s", "--dry-run"], standalone_mode=False)
    assert taken == []


def test_an_interrupt_says_how_to_go_on(
    taken: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_train", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["train", "cxr_memory/dev_fast"])
    assert caught.value.code == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err
