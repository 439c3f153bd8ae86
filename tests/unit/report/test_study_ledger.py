"""The report reads what the ledger of a search wrote: the same trials, scores, best and front."""

from pathlib import Path

import pytest
from report_folders import page_of
from study_journals import AUROC, LIMIT, PARAMS, search_by_ledger

from voxray.report.study.read import read_study


@pytest.mark.parametrize("objectives", [(AUROC,), (AUROC, PARAMS)], ids=["one", "two"])
def test_the_report_tells_what_the_ledger_tells(
    tmp_path: Path, objectives: tuple[dict[str, str], ...]
) -> None:
    ledger = search_by_ledger(tmp_path / "study", *objectives)
    files, rows = read_study(tmp_path / "study"), ledger.rows()
    told = [(row.index, row.state, row.scores, row.values, row.reason, row.is_feasible) for row in rows]
    read = [
        (trial.index, trial.state, trial.scores, trial.values, trial.reason, trial.is_feasible)
        for trial in files.done
    ]
    assert read == told
    assert {row.index for row in ledger.front()} == {trial.index for trial in files.front}
    if len(objectives) == 1:
        assert files.best is not None
        assert files.best.index == ledger.best().index
    assert {trial.index for trial in files.trials if not trial.is_feasible} == {7, 8}
    assert [[point.epochs for point in trial.curve] for trial in files.trials] == [
        [1, 2, 3],
        [1, 2],
        [1, 2, 3],
    ] * 3


def test_every_figure_is_made_of_a_ledgers_study(tmp_path: Path) -> None:
    search_by_ledger(tmp_path / "study", AUROC, PARAMS)
    page = page_of(tmp_path / "study")
    assert not page.unbalanced
    assert "Pareto front" in page.plot_titles
    assert [row[0] for row in page.table("constraint", "trials that violate it")] == [LIMIT]
    assert [shape["x0"] for shape in page.plots("Curves of val/auroc")["layout"]["shapes"]] == [1, 3]
