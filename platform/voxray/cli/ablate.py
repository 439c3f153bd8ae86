"""`voxray ablate`: train a baseline and its arms with paired seeds, and compare them."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, experiment_and_overrides
from voxray.cli.output import cell_text, print_notes, print_table
from voxray.config.errors import InputError, RunError

if TYPE_CHECKING:
    from voxray.tune.ablation.ledger import CellLedger
    from voxray.tune.ablation.results import Results
    from voxray.tune.ledger import TrialRow
    from voxray.tune.plan import Plan


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ablate", context_settings=EXTRA_ARGUMENTS)(ablate)


def ablate(
    context: typer.Context,
    space: Annotated[str | None, typer.Argument(help="a file under search_spaces/, or its name")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the cells and what is done already; train nothing")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Compare the arms of SPACE with its baseline; the same command goes on where it was cut short.

    [key=value …]: `ablate.seeds` and `objective.metric|mode` are the space's own keys, all others the
    experiment's. A cell (one arm, one seed) that any ablation has trained before is not trained again.
    """
    from voxray.cluster.connect import joins_a_cluster, private_cpus
    from voxray.tune.ablation.cells import load_ablation
    from voxray.tune.checks import check_metrics, check_room
    from voxray.tune.plan import load_plan

    if space is None:
        raise InputError("which ablation? name a file under search_spaces/; `voxray ls spaces` lists them")
    plan = load_plan(*experiment_and_overrides(space, context.args))
    ablation = load_ablation(plan)
    print_notes([*plan.space.notes, *plan.base.notes, *plan.base.config.told(), *ablation.notes])
    check_metrics(plan)
    if not joins_a_cluster():
        check_room(plan, private_cpus())
    if dry_run:
        from voxray.tune.ablation.ledger import CellLedger, fetch_cells

        fetch_cells(ablation)
        _print_cells(CellLedger(ablation), as_json)
        return
    if lacking := [text for arm in ablation.arms for text in arm.config.config.missing()]:
        raise InputError(*dict.fromkeys(lacking))
    from voxray.tune.ablation.run import open_ablation

    with open_ablation(ablation) as ledger:
        finished = _train(ledger)
        _print_end(plan, ledger, as_json)
    if not finished:
        _say(f"interrupted: {_done(ledger)}; run the same command to continue")
        raise typer.Exit(130)
    _raise_failures(ledger)


def _train(ledger: "CellLedger") -> bool:
    """Train what is left; return False after Ctrl-C."""
    from voxray.cluster.connect import connect
    from voxray.tune.ablation.run import train_cells

    if not ledger.left():
        from voxray.tune.ablation.run import send_rest

        _say(f"nothing to train: {_done(ledger)}")
        send_rest(ledger, _say)
        return True
    with connect():
        from voxray.train.worker import train_here

        return train_cells(ledger, train_here, _say, lambda row: _say(cell_line(row, ledger)))


def cell_line(row: "TrialRow", ledger: "CellLedger") -> str:
    """Return what is said when a cell ends: how many are done, its arm and seed, its scores, its time."""
    cell, scores = ledger.cell(row.index), row.scores or ()
    named = zip(ledger.objectives, scores, strict=False)
    told = ", ".join(f"{objective.metric} {cell_text(score)}" for objective, score in named)
    ended = told if scores else f"failed: {' '.join(row.reason.split())}"
    count = f"{len(ledger.rows())}/{len(ledger.ablation.cells)}"
    return f"cell {count}  {cell.arm.name}  seed {cell.seed}  {ended}  {row.seconds:.1f} s"


def _done(ledger: "CellLedger") -> str:
    num, total = sum(row.scores is not None for row in ledger.rows()), len(ledger.ablation.cells)
    return f"all {total} cells are done" if num == total else f"{num} of {total} cells are done"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_cells(ledger: "CellLedger", as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for cell in ledger.ablation.cells:
        state = ledger.state(cell)
        what = "trained by another process" if ledger.is_elsewhere(cell.index) else state.state
        scores = state.scores or (None,) * len(ledger.objectives)
        rows.append(
            {
                "arm": cell.arm.name,
                "seed": cell.seed,
                "state": what,
                "epochs": state.epochs,
                **{o.metric: score for o, score in zip(ledger.objectives, scores, strict=True)},
                "folder": str(ledger.ablation.cells_folder / cell.key),
                "reason": state.reason,
            }
        )
    print_table(rows, as_json)
    if not as_json:
        print(f"{_done(ledger)}; --dry-run: nothing was trained")


def _print_end(plan: "Plan", ledger: "CellLedger", as_json: bool) -> None:
    """Write the tables and the page; print the tables, what limits them, and what to type next."""
    from voxray.report.build import report
    from voxray.tune.ablation.run import write_results
    from voxray.tune.ablation.table import NAME, exact_rows

    results = write_results(ledger)
    page = report([plan.folder], plan.folder / f"{NAME}.html")
    if as_json:
        print_table([row for table in results.tables for row in exact_rows(table)], as_json=True)
        return
    _print_tables(results)
    print(f"tables: {plan.folder / NAME}.md .csv .tex .html")
    print(f"next: open {page}")
    print(f"next: voxray report {plan.folder}")


def _print_tables(results: "Results") -> None:
    from voxray.tune.ablation.table import shown_rows

    for table in results.tables:
        rows = shown_rows(table)
        print_table(rows, as_json=False, title=f"{table.metric} ({table.direction})")
        print()
    for note in results.notes:
        print(f"note: {note}")
    print(results.legend)


def _raise_failures(ledger: "CellLedger") -> None:
    failed = [row for row in ledger.rows() if row.scores is None]
    if failed:
        first = ledger.cell(failed[0].index)
        where = f"{first.arm.name} with seed {first.seed} ({ledger.folder(first.index)})"
        raise RunError(
            f"{len(failed)} of {len(ledger.ablation.cells)} cells failed; the first, {where}: "
            f"{' '.join(failed[0].reason.split())}; the same command tries again those that did not end"
        )
