"""A training in a thread takes turns with who asks for its reports, and ends where it is told to."""

import threading
import time

import pytest

from voxray.train.control import Stopped
from voxray.tune.executors import lockstep
from voxray.tune.executors.lockstep import Lockstep
from voxray.tune.job import REPORTS


def test_body_and_asker_take_turns():
    happened = []

    def body(report, control) -> None:
        for number in range(3):
            happened.append(f"train {number}")
            report({"number": number})
        happened.append("end")

    training = Lockstep(body)
    assert happened == []
    for number in range(3):
        assert training.next() == {"number": number}
        time.sleep(0.02)  # it would have gone on by now
        happened.append(f"decide {number}")
    assert training.next() is None
    assert happened == [
        *(f"{what} {number}" for number in range(3) for what in ("train", "decide")),
        "end",
    ]


def three_reports(report, control) -> None:
    for number in range(3):
        report({"number": number})


def test_a_body_that_nobody_decides_on_need_not_wait(monkeypatch):
    monkeypatch.setattr(lockstep, "EVERY_S", 0.0)
    training = Lockstep(three_reports, waits=False)
    first = training.next()
    time.sleep(0.1)
    told = [first, training.next(), training.next()]
    assert told == [{"number": n, REPORTS: [{"number": n}]} for n in range(3)]
    assert training.next() is None
    assert training.untold() == []
    training.stop()


def test_what_comes_within_a_second_is_told_together(monkeypatch):
    training = Lockstep(three_reports, waits=False)
    assert training.next() is None
    assert training.untold() == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_stop_ends_the_body_in_its_report():
    ended = []

    def body(report, control) -> None:
        try:
            for number in range(10):
                report({"number": number})
        except Stopped:
            ended.append(number)
            raise

    training = Lockstep(body)
    training.next()
    training.next()
    training.stop()
    assert ended == [1]
    training.stop()  # again does nothing


@pytest.mark.parametrize("reports", [False, True])
def test_a_body_between_reports_sees_the_wish_and_reports_no_more(reports):
    seen = []

    def body(report, control) -> None:
        report({})
        while not control.should_stop():
            time.sleep(0.001)
        seen.append(True)
        if reports:
            report({"late": 1})
        raise Stopped

    training = Lockstep(body)
    assert training.next() == {}
    threading.Timer(0.05, training.ask_to_stop).start()
    with pytest.raises(Stopped):
        training.next()
    assert seen == [True]


def test_an_error_of_the_body_is_the_askers():
    def body(report, control) -> None:
        report({"number": 1})
        raise ValueError("no good")

    training = Lockstep(body)
    assert training.next() == {"number": 1}
    with pytest.raises(ValueError, match="no good"):
        training.next()


def test_one_that_was_never_begun_is_stopped_at_once():
    Lockstep(lambda report, control: report({})).stop()
