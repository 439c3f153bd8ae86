"""`voxray tune`: search a space on Ray Tune."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, experiment_and_overrides
from voxray.cli.output import cell_text, print_notes, print_table
from voxray.config.errors import InputError, RunError

if TYPE_CHECKING:
    from voxray.tune.plan import Plan
    from voxray.tune.study import StudyLedger, TrialRow


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", context_settings=EXTRA_ARGUMENTS)(tune)


def tune(
    context: typer.Context,
    space: Annotated[str | None, typer.Argument(help="a file under search_spaces/, or its name")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table of trials as JSON")] = False,
) -> None:
    """Search SPACE with [key=value …]; the same command on an unfinished study continues it.

    `search.*` and `objective.metric|mode` are the space's own keys, all others the experiment's.
    """
    from voxray.tune.folder import open_study
    from voxray.tune.plan import check_metric, load_plan

    if space is None:
        raise InputError("which search space? name a file or `quick`; `voxray ls spaces` lists them")
    plan = load_plan(*experiment_and_overrides(space, context.args))
    print_notes([*plan.space.notes, *plan.base.notes, *plan.base.config.told()])
    check_metric(plan)
    with open_study(plan) as ledger:
        if ledger.remaining():
            finished = _search(plan, ledger)
        else:
            finished = True
            _say(f"{plan.folder} is finished already: all {ledger.num_trials} trials are done")
        _print_end(plan, ledger, as_json)
        if not finished:
            done = f"{len(ledger.rows())} of {ledger.num_trials} trials are done"
            _say(f"interrupted: {done}; run the same command to continue")
            raise typer.Exit(130)


def _search(plan: "Plan", ledger: "StudyLedger") -> bool:
    from voxray.cluster.connect import connect
    from voxray.tune.search import search

    with connect():
        from voxray.train.worker import train_here

        return search(plan, ledger, train_here, _say, lambda row: _say(trial_line(row, ledger)))


def trial_line(row: "TrialRow", ledger: "StudyLedger") -> str:
    """Return what is said when a trial ends: its value, the best so far, its time, the values that vary."""
    best = ledger.best()
    metric = ledger.objective.metric
    ended = f"failed: {row.reason}" if row.value is None else f"{metric} {cell_text(row.value)}"
    so_far = f" (best {cell_text(best.value)}, trial {best.index})" if best else ""
    varies = " ".join(f"{path}={cell_text(row.values[path])}" for path in ledger.distributions)
    return f"trial {row.index:>3}  {' '.join(ended.split())}{so_far}  {row.seconds:.1f} s  {varies}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_end(plan: "Plan", ledger: "StudyLedger", as_json: bool) -> None:
    """Print the best trial and what to type next, or with --json all trials; write the best one's experiment.

    Raises RunError when all trials are done and none succeeded.
    """
    from voxray.tune.folder import write_best

    rows, best = ledger.rows(), ledger.best()
    if as_json:
        print_table([_table_row(row, ledger) for row in rows], as_json=True)
    if best is None:
        if not ledger.remaining():
            where = plan.trial_folder(rows[0].index)
            raise RunError(f"all {len(rows)} trials failed; the first ({where}): {rows[0].reason}")
        return
    file = write_best(plan, best, sum(row.state == "complete" for row in rows))
    if not as_json:
        where = plan.trial_folder(best.index)
        print(f"best: trial {best.index}, {ledger.objective.metric} {cell_text(best.value)}, in {where}")
        print(f"experiment: {file}")
        print(f"next: voxray train {file}")
        print(f"next: voxray report {plan.folder}")


def _table_row(row: "TrialRow", ledger: "StudyLedger") -> dict[str, Any]:
    return {
        "trial": row.index,
        "state": row.state,
        ledger.objective.metric: row.value,
        "step": row.step,
        "seconds": row.seconds,
        **row.values,
        "reason": row.reason,
    }
