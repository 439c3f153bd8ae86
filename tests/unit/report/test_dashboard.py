"""`optuna-dashboard STUDY/journal.log` opens the journal of our ledger as it is, and only reads it."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from study_journals import AUROC, PARAMS, search_by_ledger

from voxray.report.study.trials import Objective, non_dominated

pytest.importorskip("optuna_dashboard")
PROGRAM = Path(sys.executable).with_name("optuna-dashboard")


@contextmanager
def dashboard(journal: Path) -> Iterator[str]:
    """Start the dashboard on a free port; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), str(journal), "--port", str(port), "--server", "wsgiref", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        process.wait(20)


def fetch(address: str) -> dict[str, Any]:
    """Fetch JSON, once the server listens."""
    ends = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)
        except URLError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("objectives", [(AUROC,), (AUROC, PARAMS)], ids=["one", "two"])
def test_the_dashboard_shows_what_the_ledger_knows(
    tmp_path: Path, objectives: tuple[dict[str, str], ...]
) -> None:
    ledger = search_by_ledger(tmp_path / "study", *objectives)
    journal = tmp_path / "study" / "journal.log"
    before = journal.read_bytes()
    with dashboard(journal) as api:
        (summary,) = fetch(f"{api}/studies")["study_summaries"]
        study = fetch(f"{api}/studies/{summary['study_id']}")
    assert journal.read_bytes() == before
    assert summary["study_name"] == "study"
    assert summary["directions"] == ["maximize", "minimize"][: len(objectives)]
    shown, rows = study["trials"], ledger.rows()
    assert [trial["state"].lower() for trial in shown] == [row.state for row in rows]
    assert {row.state for row in rows} == {"complete", "pruned", "fail"}
    drawn = [{param["name"] for param in trial["params"]} for trial in shown]
    assert drawn == [set(row.values) for row in rows]
    assert 0 < sum("training.momentum" in names for names in drawn) < len(rows)
    for trial, row in zip(shown, rows, strict=True):
        if row.state == "complete":
            assert trial["values"] == list(row.scores or ())
    if len(objectives) == 1:
        assert study["has_intermediate_values"]
        assert [len(trial["intermediate_values"]) for trial in shown] == [3, 2, 3] * 3
    complete: Any = [row for row in rows if row.state == "complete"]
    kinds = tuple(Objective(each["metric"], each["mode"] == "max") for each in objectives)
    front = {row.index for row in non_dominated(complete, kinds)}
    best = {trial["number"] for trial in study["best_trials"]}
    assert best == front
