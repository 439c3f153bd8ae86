"""`voxray tune`: search a space on Ray Tune."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxray.cli.arguments import EXTRA_ARGUMENTS, experiment_and_overrides
from voxray.cli.output import cell_text, print_notes, print_table
from voxray.config.errors import InputError, RunError

if TYPE_CHECKING:
    from voxray.tune.ledger import TrialRow
    from voxray.tune.plan import Plan
    from voxray.tune.study.ledger import StudyLedger


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", context_settings=EXTRA_ARGUMENTS)(tune)


def tune(
    context: typer.Context,
    space: Annotated[
        str | None, typer.Argument(help="a file under search_spaces/, its name, or a W&B sweep file")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table of trials as JSON")] = False,
) -> None:
    """Search SPACE with [key=value …]; the same command on an unfinished study continues it.

    `search.*` and `objective.metric|mode` are the space's own keys, all others the experiment's.
    """
    from voxray.cluster.connect import joins_a_cluster, private_cpus
    from voxray.tune.checks import check_metrics, check_room
    from voxray.tune.plan import load_plan
    from voxray.tune.study.folder import open_study

    if space is None:
        raise InputError("which search space? name a file or `quick`; `voxray ls spaces` lists them")
    plan = load_plan(*experiment_and_overrides(space, context.args))
    assert plan.search
    print_notes([*plan.space.notes, *plan.base.notes, *plan.base.config.told()])
    check_metrics(plan)
    if not joins_a_cluster():
        check_room(plan, private_cpus())
    with open_study(plan) as ledger:
        _learn(plan, ledger)
        if ledger.remaining():
            finished = _search(plan, ledger)
        else:
            finished = True
            _say(f"{plan.folder} is finished already: {_done(ledger)}")
            _send_rest(plan, ledger)
        _print_end(plan, ledger, as_json)
        if not finished:
            _say(f"interrupted: {_done(ledger)}; run the same command to continue")
            raise typer.Exit(130)


def _done(ledger: "StudyLedger") -> str:
    num_done, declared = len(ledger.rows()), ledger.num_trials
    if declared is None or (ledger.is_spent() and num_done < declared):
        hours = f", {ledger.gpu_hours():.2f} GPU-hours" if ledger.num_gpus else ""
        return f"{num_done} trials are done in {ledger.seconds():.0f} s{hours}"
    return (
        f"all {declared} trials are done"
        if num_done >= declared
        else f"{num_done} of {declared} trials are done"
    )


def _send_rest(plan: "Plan", ledger: "StudyLedger") -> None:
    """Send the trackers what they have not of a study that is finished."""
    from voxray.tune.trackers.trial_trackers import CATCH_UP_S, TrialTrackers

    with TrialTrackers.of(plan, _say, CATCH_UP_S) as trackers:
        trackers.catch_up(ledger.rows(), plan.run_folders)


def _learn(plan: "Plan", ledger: "StudyLedger") -> None:
    from voxray.tune.study.earlier import learn_from

    earlier = plan.earlier()
    if earlier is None:
        return
    added, left_out = learn_from(ledger, earlier)
    if added or left_out:
        outside = f"; {left_out} lie outside this space" if left_out else ""
        _say(f"learning from {added} trials of {earlier.folder}{outside}")


def _search(plan: "Plan", ledger: "StudyLedger") -> bool:
    from voxray.cluster.connect import connect
    from voxray.tune.search import search

    with connect():
        from voxray.train.worker import train_here

        return search(plan, ledger, train_here, _say, lambda row: _say(trial_line(row, ledger)))


def trial_line(row: "TrialRow", ledger: "StudyLedger") -> str:
    """Return what is said when a trial ends: its scores, the best so far, its time, the values that vary."""
    ended = f"failed: {row.reason}" if row.state == "fail" else _scores_text(row, ledger)
    if row.state == "pruned":
        ended = f"stopped at {ended}" if row.scores else "stopped"
    varies = " ".join(
        f"{path}={cell_text(row.values[path])}" for path in ledger.space.varying if path in row.values
    )
    return f"trial {row.index:>3}  {' '.join(ended.split())}{_so_far(ledger)}  {row.seconds:.1f} s  {varies}"


def _scores_text(row: "TrialRow", ledger: "StudyLedger") -> str:
    named = zip(ledger.objectives, row.scores or (), strict=False)
    told = ", ".join(f"{objective.metric} {cell_text(score)}" for objective, score in named)
    return told if row.is_feasible else f"{told}, against the constraints"


def _so_far(ledger: "StudyLedger") -> str:
    if len(ledger.objectives) > 1:
        return f" ({len(ledger.front())} on the front)"
    best = ledger.best()
    return f" (best {cell_text(best.value)}, trial {best.index})" if best else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_end(plan: "Plan", ledger: "StudyLedger", as_json: bool) -> None:
    """Print the best trial, or the front, and what to type next, or with --json all trials; write their
    experiments.

    Raises RunError when all trials are done and none succeeded.
    """
    from voxray.tune.study.folder import write_best

    rows = ledger.rows()
    if as_json:
        print_table([_table_row(row, ledger) for row in rows], as_json=True)
    files = write_best(plan, ledger)
    if not files:
        _say_why_none(plan, ledger, rows)
        return
    if as_json:
        return
    if len(ledger.objectives) > 1:
        front = [_table_row(row, ledger) for row in ledger.front()]
        print_table(
            [{key: value for key, value in row.items() if key != "reason"} for row in front], as_json=False
        )
        print(f"experiments of the front: {plan.folder / 'front'}")
    else:
        best = ledger.best()
        assert best is not None
        seed = plan.search.seeds[0] if plan.search.seeds else None
        where = plan.trial_folder(best.index, seed)
        print(f"best: trial {best.index}, {_scores_text(best, ledger)}, in {where}")
        print(f"experiment: {files[0]}")
    print(f"next: voxray train {files[0]}")
    print(f"next: voxray report {plan.folder}")


def _say_why_none(plan: "Plan", ledger: "StudyLedger", rows: "list[TrialRow]") -> None:
    failed = [row for row in rows if row.state == "fail"]
    if ledger.remaining():
        return
    if rows and len(failed) == len(rows):
        seed = plan.search.seeds[0] if plan.search.seeds else None
        where = plan.trial_folder(rows[0].index, seed)
        raise RunError(f"all {len(rows)} trials failed; the first ({where}): {rows[0].reason}")
    if rows:
        raise RunError(
            f"none of {len(rows)} trials ran to its end within the constraints; widen search.space"
        )


def _table_row(row: "TrialRow", ledger: "StudyLedger") -> dict[str, Any]:
    scores = row.scores or (None,) * len(ledger.objectives)
    return {
        "trial": row.index,
        "state": row.state if row.is_feasible else f"{row.state}, against the constraints",
        **{objective.metric: score for objective, score in zip(ledger.objectives, scores, strict=True)},
        "step": row.step,
        "seconds": row.seconds,
        **row.values,
        "reason": row.reason,
    }
