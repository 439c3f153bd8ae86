"""The cells' ledger and the tables, with a closed form in place of training: four arms, five seeds."""

import csv
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from voxray.config.errors import InputError
from voxray.report.ablation import ablation_part
from voxray.train.run_folder import RunFolder
from voxray.tune.ablation.cells import load_ablation
from voxray.tune.ablation.evaluation import chosen_evaluation
from voxray.tune.ablation.ledger import CellLedger
from voxray.tune.ablation.results import results_of
from voxray.tune.ablation.run import open_ablation
from voxray.tune.ablation.table import latex_text, shown_rows, to_csv, to_latex, to_markdown, write_tables
from voxray.tune.config import ObjectiveConfig
from voxray.tune.job import Run
from voxray.tune.plan import load_plan

EXPERIMENT = "task: cxr_memory\ndata: {path: somewhere}\nmodel: {dropout: 0.1}\n"
SPACE = """
description: four arms
hypothesis: dropout helps
expected: only dropout is better
experiment: base.yaml
objective: {metric: val/auroc, mode: max}
ablate:
  seeds: [0, 1, 2, 3, 4]
  arms:
    more_dropout: {model.dropout: 0.3}
    wide: {model.hidden_dim: 64}
  off: {training.weight_decay: 0, training.clip_grad_norm: null}
"""
NUM_CELLS = 25


@pytest.fixture(autouse=True)
def commit(monkeypatch):
    """What stands in for git, which takes 0.1 s per cell."""
    current = {"commit": "a" * 40}
    monkeypatch.setattr(
        "voxray.tune.ablation.ledger.write_provenance",
        lambda folder, **_: (folder / "provenance.json").write_text(json.dumps(current)),
    )
    return current


@pytest.fixture
def ablation(tmp_path):
    (tmp_path / "base.yaml").write_text(EXPERIMENT)

    def load(*overrides: str, space: str = SPACE, name: str = "arms"):
        (tmp_path / f"{name}.yaml").write_text(space)
        return load_ablation(
            load_plan(str(tmp_path / f"{name}.yaml"), [f"storage.path={tmp_path / 'runs'}", *overrides])
        )

    return load


def score(config) -> float:
    """AUROC in closed form: what the seed does to all arms, noise, and 0.06 that dropout 0.3 adds."""
    rng = np.random.default_rng(config.training.seed)
    noise = np.random.default_rng(zlib.crc32(f"{config.model!r}{config.training!r}".encode()))
    planted = 0.06 if config.model.dropout == 0.3 else 0.0
    return float(0.8 + rng.normal(0, 0.02) + noise.normal(0, 0.01) + planted)


def train(run, until: str = "end") -> None:
    """Write the log of a run of three epochs, the second of which is the best."""
    folder, best = RunFolder(run.path), score(run.config)
    done = len(folder.records())
    for epoch, lost in list(enumerate((0.1, 0.0, 0.05)))[done:]:
        folder.log(
            {"kind": "epoch", "step": 10 * (epoch + 1), "epochs": epoch + 1.0}
            | {"val/auroc": best - lost, "val/loss": 1 - best + lost / 2}
        )
        if until == "kill":
            raise KeyboardInterrupt
    folder.log({"kind": "end", "status": "finished", "step": 30, "time_s": 1.0})


def drive(ledger, train=train, most: int = NUM_CELLS) -> list[str]:
    """Run what is left, as Tune's searcher does; return the folders that were trained."""
    trained = []
    while (remaining := ledger.remaining()) and len(trained) < most:
        suggestion = ledger.ask(remaining[0])
        job = ledger.job(suggestion, "inline")
        trained.append(job.runs[0].path.name)
        try:
            train(job.runs[0])
        except ValueError as error:
            ledger.crash(job.index, f"ValueError: {error}")
        else:
            ledger.finish(job.index, job)
    return trained


def test_four_arms_and_five_seeds_on_a_planted_effect(ablation, tmp_path):
    with open_ablation(ablation()) as ledger:
        assert len(drive(ledger)) == NUM_CELLS
        results = results_of(ledger)
        write_tables(results, tmp_path)
    with (tmp_path / "ablation.csv").open() as file:
        written = {row["arm"]: row for row in csv.DictReader(file)}
    seeds = [f"seed_{seed}" for seed in range(5)]
    base = [float(written["baseline"][seed]) for seed in seeds]
    names = ["more_dropout", "wide", "without weight_decay", "without clip_grad_norm"]
    assert list(written) == ["baseline", *names]
    found = {name: scipy.stats.ttest_rel([float(written[name][s]) for s in seeds], base) for name in names}
    for name in names:
        assert float(written[name]["t"]) == pytest.approx(found[name].statistic, rel=1e-9)
        assert float(written[name]["p"]) == pytest.approx(found[name].pvalue, rel=1e-9)
    ordered = sorted(
        names, key=lambda name: found[name].pvalue
    )  # Holm by hand: 4 p, 3 p, 2 p, p, never falling
    expected = np.maximum.accumulate([(4 - i) * found[name].pvalue for i, name in enumerate(ordered)])
    assert [float(written[name]["p_holm"]) for name in ordered] == pytest.approx(np.minimum(expected, 1))
    assert [written[name]["verdict"] for name in names] == ["better", "", "", ""]
    assert float(written["more_dropout"]["low"]) > 0.03
    # From the closed form, not from the tables.
    cells = ledger.ablation.cells
    assert base == [score(ledger.ablation.run_config(cells[5 * seed]).config) for seed in range(5)]


def test_a_cell_is_never_run_twice_not_even_by_another_ablation(ablation):
    with open_ablation(ablation()) as ledger:
        trained = drive(ledger)
    assert len(set(trained)) == NUM_CELLS
    with open_ablation(ablation()) as ledger:
        assert ledger.left() == ledger.remaining() == []
        assert len(ledger.rows()) == NUM_CELLS
    # Another study with another arm and one more seed: baseline and `more_dropout` are there.
    space = SPACE.replace("64", "32").replace("[0, 1, 2, 3, 4]", "[3, 4, 5]")
    other = ablation(space=space.partition("  off")[0], name="other")
    with open_ablation(other) as ledger:
        assert [(other.cells[i].arm.name, other.cells[i].seed) for i in ledger.left()] == [
            ("wide", 3),
            ("wide", 4),
            ("baseline", 5),
            ("more_dropout", 5),
            ("wide", 5),
        ]
        assert not set(drive(ledger)) & set(trained)
    # The first one with more seeds is the same study, and trains what is new.
    with open_ablation(ablation("ablate.seeds=[0, 1, 2, 3, 4, 5]")) as ledger:
        assert [ledger.cell(i).arm.name for i in ledger.left()] == [
            "wide",
            "without weight_decay",
            "without clip_grad_norm",
        ]


def test_a_killed_grid_goes_on_where_it_was(ablation):
    with open_ablation(ablation()) as ledger:
        before = drive(ledger, most=7)
        suggestion = ledger.ask(ledger.remaining()[0])
        with pytest.raises(KeyboardInterrupt):
            train(ledger.job(suggestion, "inline").runs[0], until="kill")
        assert ledger.cut_short() == [7]
    ledger = CellLedger(ablation())
    assert [ledger.state(cell).state for cell in ledger.ablation.cells[6:9]] == ["done", "unfinished", "new"]
    assert ledger.state(ledger.cell(7)).epochs == 1.0
    notes = results_of(ledger).notes
    assert "18 of 25 cells are not done yet" in notes
    with open_ablation(ablation()) as ledger:
        after = drive(ledger)
        log = RunFolder(ledger.folder(7)).records()
    assert after[0] == ledger.cell(7).key
    assert len(after) == NUM_CELLS - 7
    assert not set(before) & set(after)
    assert [record["step"] for record in log if record["kind"] == "epoch"] == [10, 20, 30]


def test_a_cell_that_another_process_has_finished_meanwhile_is_taken_over(ablation):
    mine = ablation()
    with open_ablation(mine) as ledger:
        cell = mine.cells[4]
        folder = mine.cell_folder(cell)
        folder.mkdir(parents=True)
        train(Run(folder, mine.run_config(cell).config))
        assert cell.index in ledger.left()
        assert cell.key not in drive(ledger)
        assert len(ledger.rows()) == results_of(ledger).num_done == NUM_CELLS


def test_a_failed_cell_keeps_its_reason_and_is_tried_again_by_the_next_command(ablation, tmp_path):
    def fails(run):
        if run.config.model.hidden_dim == 64 and run.config.training.seed == 2:
            raise ValueError("no\nmemory")
        train(run)

    with open_ablation(ablation()) as ledger:
        assert len(drive(ledger, fails)) == NUM_CELLS  # not twice in one command
        (row,) = (row for row in ledger.rows() if row.scores is None)
        assert (row.state, row.reason) == ("fail", "ValueError: no\nmemory")
        results = results_of(ledger)
    assert "wide, seed 2, failed: ValueError: no memory" in results.notes
    wide = results.tables[0].rows[2]
    assert (wide.n, wide.pairs, sorted(wide.scores)) == (4, 4, [0, 1, 3, 4])
    assert "an arm is compared over the seeds that both it and the baseline have" in results.notes
    assert "seed_2" in to_csv(results)
    # What is left of it is seen by the next command, which tries it again.
    with open_ablation(ablation()) as ledger:
        cell = ledger.cell(row.index)
        assert ledger.state(cell).state == "failed"
        assert ledger.state(cell).reason == "ValueError: no\nmemory"
        assert drive(ledger) == [cell.key]
        assert results_of(ledger).num_done == NUM_CELLS
    assert not (ledger.folder(row.index) / "failed.json").exists()


def test_a_run_without_a_finite_score_is_not_trained_again(ablation):
    def diverges(run):
        folder = RunFolder(run.path)
        folder.log({"kind": "epoch", "step": 1, "epochs": 1.0, "val/auroc": float("nan")})
        folder.log({"kind": "end", "status": "finished", "step": 1})

    with open_ablation(ablation("ablate.seeds=[0]")) as ledger:
        drive(ledger, diverges)
        assert all("val/auroc: no finite number" in row.reason for row in ledger.rows())
        tables = results_of(ledger).tables
    assert tables[0].rows[0].mean is None
    assert "no pair with the baseline" in to_markdown(results_of(ledger))
    with open_ablation(ablation("ablate.seeds=[0]")) as ledger:
        assert ledger.left() == []


def test_a_cell_that_another_process_trains_is_left_to_it_and_waited_for(ablation, tmp_path):
    mine = ablation()
    held = mine.cell_folder(mine.cells[3])
    code = (
        "import sys, filelock\n"
        "lock = filelock.FileLock(sys.argv[1])\n"
        "with lock:\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    held.parent.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(held.with_suffix(".lock"))]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
        open_ablation(mine) as ledger,
    ):
        assert other.stdout.readline() == "held\n"
        assert ledger.is_elsewhere(3)
        assert not ledger.is_elsewhere(4)
        trained = drive(ledger)
        assert held.name not in trained
        assert len(trained) == NUM_CELLS - 1
        assert ledger.elsewhere == {3}
        assert results_of(ledger).cells[3]["state"] == "trained by another process"
        # The other process finishes it and lets go.
        resolved = mine.run_config(mine.cells[3])
        held.mkdir()
        train(Run(held, resolved.config))
        other.stdin.write("go\n")
        other.stdin.flush()
        (row,) = ledger.wait_for_others()
        assert row.index == 3
        assert row.scores == (score(resolved.config),)
        assert ledger.remaining() == ledger.left() == []


def test_cells_of_several_commits_are_told(ablation, commit):
    with open_ablation(ablation()) as ledger:
        drive(ledger, most=5)
        assert not any("versions" in note for note in results_of(ledger).notes)
        commit["commit"] = "b" * 40
        drive(ledger)
        (note,) = (note for note in results_of(ledger).notes if "versions" in note)
    assert note.endswith(f"20 at {'b' * 10}, 5 at {'a' * 10}")


def test_a_second_driver_of_the_same_ablation_is_refused(ablation):
    with open_ablation(ablation()), pytest.raises(InputError, match="another voxray works on this study"):
        open_ablation(ablation()).__enter__()
    other_base = ablation("training.epochs=2")
    with pytest.raises(InputError, match=r"training\.epochs: 10 before, 2 now"), open_ablation(other_base):
        pass
    (other_base.plan.folder / "journal.log").touch()
    with pytest.raises(InputError, match="holds a search; give the ablation another name"):
        open_ablation(ablation()).__enter__()


def test_the_evaluation_that_counts():
    records = [
        {"kind": "step", "step": 1, "val/auroc": 0.99},
        {"kind": "epoch", "step": 2, "val/auroc": 0.7, "val/loss": 0.5},
        {"kind": "validation", "step": 3, "val/auroc": 0.9, "val/loss": 0.6},
        {"kind": "epoch", "step": 4, "val/loss": 0.1},
        {"kind": "epoch", "step": 5, "val/auroc": 0.8, "val/loss": 0.4},
        {"kind": "epoch", "step": 6, "val/auroc": None, "val/loss": 0.4},
    ]
    auroc, loss = (
        ObjectiveConfig(metric="val/auroc", mode="max"),
        ObjectiveConfig(metric="val/loss", mode="min"),
    )
    assert chosen_evaluation(records, [auroc], "best")["step"] == 3
    # Several metrics are read from one evaluation, the best by the first.
    assert chosen_evaluation(records, [auroc, loss], "best")["val/loss"] == 0.6
    assert chosen_evaluation(records, [loss], "best")["step"] == 4
    assert chosen_evaluation(records[:5], [auroc, loss], "last")["step"] == 5
    assert chosen_evaluation(records, [auroc], "last") is None
    assert chosen_evaluation(records, [loss, auroc], "best") is None
    # Of the last stage alone: `best` names that one's, and an earlier stage may have had fewer rows.
    stages = [
        {"kind": "epoch", "stage": name, "step": step, "val/auroc": value}
        for step, (name, value) in enumerate(
            [("phase1", 0.9), ("phase2", 0.6), ("phase2", 0.7), ("phase2", 0.5)]
        )
    ]
    assert chosen_evaluation(stages, [auroc], "best")["step"] == 2


def test_several_metrics_have_a_table_each_over_the_same_evaluations(ablation, tmp_path):
    space = SPACE.replace(
        "{metric: val/auroc, mode: max}", "[{metric: val/auroc, mode: max}, {metric: val/loss, mode: min}]"
    )
    with open_ablation(ablation(space=space)) as ledger:
        drive(ledger)
        results = results_of(ledger)
        files = write_tables(results, tmp_path)
    assert [file.name for file in files] == ["ablation.json", "ablation.md", "ablation.csv", "ablation.tex"]
    auroc, loss = results.tables
    # In the closed form the loss is 1 − AUROC at the best epoch.
    for ours, theirs in zip(auroc.rows, loss.rows, strict=True):
        assert theirs.mean == pytest.approx(1 - ours.mean)
        assert theirs.verdict == ours.verdict
        assert (theirs.t, theirs.wins) == (ours.t and pytest.approx(-ours.t), ours.wins)
    assert "val/loss (lower is better)" in to_markdown(results)
    assert to_latex(results).count(r"\begin{tabular}") == 2
    saved = json.loads((tmp_path / "ablation.json").read_text())
    assert [table["metric"] for table in saved["tables"]] == ["val/auroc", "val/loss"]
    assert len(saved["cells"]) == NUM_CELLS


def test_the_tables_can_be_read_by_people_and_programs(ablation, tmp_path):
    space = SPACE.replace("more_dropout:", "'50% & |a_b|$':")
    with open_ablation(ablation("ablate.seeds=[0,1,2]", space=space)) as ledger:
        drive(ledger)
        results = results_of(ledger)
    rows = shown_rows(results.tables[0])
    exact = results.tables[0].rows[1]
    digits = 3 if exact.sd >= 0.01 else 4  # to the second digit of the sd
    assert rows[1]["mean ± sd"] == f"{exact.mean:.{digits}f} ± {exact.sd:.{digits}f}"
    assert rows[1]["difference"].startswith("+0.0")
    assert rows[1]["wins"] == "3/3"
    assert rows[0]["p"] == ""
    markdown = to_markdown(results)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert {line.replace("\\|", "").count("|") for line in lines} == {12}
    assert r"50% & \|a\_b\|$" in markdown
    assert "*hypothesis:* dropout helps" in markdown
    assert "3 pairs are few" in markdown
    latex = to_latex(results)
    assert r"50\% \& |a\_b|\$ & $3$ & $" in latex
    assert latex.count(r"\\") == 1 + 5
    assert r"\toprule" in latex
    assert not {"±", "−"} & set(latex)
    assert latex_text(r"a\b~^{x}#") == r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\{x\}\#"


def test_the_page_shows_the_tables_the_forest_and_every_cell(ablation, tmp_path):
    with open_ablation(ablation()) as ledger:
        drive(ledger)
        results = results_of(ledger)
        folder = Path(ledger.ablation.plan.folder)
        write_tables(results, folder)
    part = ablation_part(folder)
    assert part.kind == "ablation"
    assert part.status == "finished, all 25 cells done"
    assert part.about["hypothesis"] == "dropout helps"
    assert part.about["expected"] == "only dropout is better"
    sections = {section.title: section.blocks for section in part.sections}
    assert list(sections) == ["val/auroc", "Cells", "To publish"]
    table, forest, scores = sections["val/auroc"]
    assert [row[0] for row in table.rows] == [row.arm for row in results.tables[0].rows]
    points = {name: trace for trace in forest.plot["data"] for name in trace["y"]}
    for row in results.tables[0].rows[1:]:
        trace = points[row.arm]
        place = trace["y"].index(row.arm)
        assert trace["x"][place] == row.difference
        low, high = (trace["error_x"][side][place] for side in ("arrayminus", "array"))
        assert (row.difference - low, row.difference + high) == pytest.approx((row.low, row.high))
    assert points["more_dropout"]["name"] == "better"
    lines = [trace for trace in scores.plot["data"] if trace["mode"] == "lines+markers"]
    assert [trace["y"] for trace in lines] == [
        [row.scores[seed] for row in results.tables[0].rows] for seed in range(5)
    ]
    assert len(sections["Cells"][0].rows) == NUM_CELLS
    (folder / "ablation.json").write_text('{"tables": [], "cells": [], "notes": []}')
    with pytest.raises(InputError, match=r"ablation\.json is not what `voxray ablate` writes"):
        ablation_part(folder)
