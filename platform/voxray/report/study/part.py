"""A study's part of the page: how the search went, which values mattered, the best trials."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.secrets import masked
from voxray.config.yaml import dump_yaml, read_yaml
from voxray.report.page import Block, Card, Code, Part, Section, Table, Text, Tone, about_of, duration, number
from voxray.report.study.budget import gpu_hours, seconds_searched, seconds_trained
from voxray.report.study.front import front_blocks
from voxray.report.study.history import history_figures, rung_figures
from voxray.report.study.keys import key_blocks
from voxray.report.study.lineage import lineage_blocks
from voxray.report.study.read import StudyFiles, read_study
from voxray.report.study.timeline import timeline_figure
from voxray.report.study.trial_table import imported_blocks, trial_table
from voxray.report.study.trials import Trial

NOTHING_YET = "No trial is complete yet, so there is nothing to draw."


def study_part(folder: Path) -> Part:
    """Read a study's folder and return its part of the page. Raises InputError for a broken file."""
    study = read_study(folder)
    status, tone = _status(study)
    several = study.has_several
    timeline = timeline_figure(study)
    return Part(
        kind="study",
        name=folder.name,
        task=str(study.config.get("task", "")),
        folder=str(folder),
        status=status,
        tone=tone,
        about=about_of(study.space if about_of(study.space) else study.config)
        | {"experiment": study.experiment or "–"},
        tags=tuple(str(tag) for tag in study.space.get("tags") or study.config.get("tags") or ()),
        cards=_key_numbers(study),
        sections=[
            Section("Search", _search(study)),
            *([Section("Pareto front", front_blocks(study))] if several else []),
            Section("Keys", key_blocks(study)),
            Section(
                "Trials", [*([timeline] if timeline else []), trial_table(study), *imported_blocks(study)]
            ),
            *([] if several else [Section("Best trial", _best(study))]),
            Section("Space", _space(study)),
        ],
    )


def _status(study: StudyFiles) -> tuple[str, Tone]:
    done, declared = len({trial.index for trial in study.done}), study.num_declared
    if declared is not None and done >= declared:
        return f"finished, {done} of {declared} trials done", "good"
    seconds, hours = study.search.get("seconds"), study.search.get("gpu_hours")
    if seconds is not None and seconds_searched(study) >= seconds:
        return f"finished, {done} trials done in {duration(seconds_searched(study))}", "good"
    used = gpu_hours(study)
    if hours is not None and used is not None and used >= hours:
        return f"finished, {done} trials done in {used:.3g} GPU-hours", "good"
    if (study.search.get("sampler") or {}).get("name") == "brute_force" and _is_ended(study):
        return f"finished, all {done} combinations tried", "good"
    of = f"{done} of {declared}" if declared is not None else str(done)
    return f"{of} trials done (still running, or interrupted)", "plain"


def _is_ended(study: StudyFiles) -> bool:
    """Tell whether the search has come to its end, which it marks by the best trials' experiments."""
    return (study.folder / "best.yaml").is_file() or (study.folder / "front").is_dir()


def _key_numbers(study: StudyFiles) -> tuple[Card, ...]:
    states = [trial.state for trial in study.trials]
    infeasible = sum(not trial.is_feasible for trial in study.done)
    cards = [
        *_best_cards(study),
        Card(
            "complete", number(len(study.complete)), f"of {study.num_declared}" if study.num_declared else ""
        ),
        Card("pruned", number(states.count("pruned"))),
        Card("failed", number(sum(trial.state == "fail" for trial in study.done))),
    ]
    if infeasible or study.num_rejected:
        refused = f"draws refused before they ran: {study.num_rejected}" if study.num_rejected else ""
        cards.append(Card("infeasible", number(infeasible), refused))
    if study.imported:
        cards.append(Card("learned from", number(len(study.imported)), "trials of an earlier study"))
    return (*cards, *_budget_cards(study))


def _best_cards(study: StudyFiles) -> list[Card]:
    if study.has_several:
        return [
            Card("on the front", number(len(study.front)), f"of {len(study.feasible)} complete and feasible")
        ]
    objective, best = study.objectives[0], study.best
    note = f"trial {best.index}, {objective.better} is better" if best else f"{objective.better} is better"
    value = number(best.value if best else None)
    spread = best.spread(0) if best else None
    if best and spread is not None:
        value, note = f"{value} ± {spread:.2g}", f"{note}; mean ± sd of {len(best.seeds)} seeds"
    return [Card(f"best {objective.metric}", value, note)]


def _budget_cards(study: StudyFiles) -> list[Card]:
    searched, trained, hours = seconds_searched(study), seconds_trained(study), gpu_hours(study)
    allowed_s, allowed_hours = study.search.get("seconds"), study.search.get("gpu_hours")
    cards = []
    if searched:
        of = f"of {duration(float(allowed_s))}; " if allowed_s else ""
        cards.append(Card("searched for", duration(searched), f"{of}trials took {duration(trained)} in sum"))
    if hours is not None and (hours > 0 or allowed_hours):
        cards.append(Card("GPU-hours", f"{hours:.3g}", f"of {allowed_hours:.3g}" if allowed_hours else ""))
    return cards


def _search(study: StudyFiles) -> list[Block]:
    if not any(trial.scores for trial in study.trials) and not any(trial.curve for trial in study.trials):
        return [*_failures(study), Text(NOTHING_YET)]
    return [*_failures(study), *history_figures(study), *rung_figures(study), *lineage_blocks(study)]


def _failures(study: StudyFiles) -> list[Block]:
    """Return the most frequent reason why trials failed, where they did."""
    reasons = Counter(trial.reason for trial in study.done if trial.state == "fail")
    if not reasons:
        return []
    reason, num = reasons.most_common(1)[0]
    total = reasons.total()
    often = "" if total == 1 else f", {num} of them" if num < total else ", all of them"
    return [Text(f"{total} {'trial' if total == 1 else 'trials'} failed{often}: {reason}", tone="bad")]


def _best(study: StudyFiles) -> list[Block]:
    best = study.best
    if best is None:
        within = " within the constraints" if study.complete else ""
        return [Text(f"No trial is complete{within} yet.")]
    rows = [(path, masked(path, value)) for path, value in best.values_at_the_end.items()]
    caption = f"Trial {best.index}: {study.objectives[0].metric} = {number(best.value)}"
    caption += f" at update {best.step}." if best.step is not None else "."
    if best.exploits:
        caption += " A population's member changes its values on its way; these are its last."
    table = Table(("key", "value"), rows, caption)
    return [table, *_best_file(study.folder / "best.yaml"), *_trial_folders(study, best)]


def _best_file(path: Path) -> list[Block]:
    if not path.is_file():
        return [Text("best.yaml is not written yet: it comes with the end of the search.")]
    tree, problems = read_yaml(path, str(path))
    if problems:
        raise InputError(*problems)
    text = dump_yaml(masked("", tree.plain()))
    return [Code(text, str(path)), Text("Train it:", f"voxray train {shlex.quote(str(path))}")]


def _trial_folders(study: StudyFiles, best: Trial) -> list[Block]:
    runs = study.run_folders(best)
    if not runs:
        return []
    return [Text("Its curves:", f"voxray report {' '.join(shlex.quote(str(run)) for run in runs)}")]


def _space(study: StudyFiles) -> list[Block]:
    rows = [
        (path, *_distribution(study.distributions.get(path))) for path in study.distributions or study.paths
    ]
    has_conditions = any(row[2] for row in rows)
    columns = ("key", "drawn from", "when") if has_conditions else ("key", "drawn from")
    blocks: list[Block] = [Table(columns, [row[: len(columns)] for row in rows])]
    constraints = study.search.get("constraints") or ()
    if constraints:
        counts = [(text, sum(text in trial.violated for trial in study.done)) for text in constraints]
        caption = (
            "A constraint of keys alone is looked at before a trial starts: what it refuses is drawn again."
        )
        blocks.append(Table(("constraint", "trials that violate it"), counts, caption))
    return blocks


def _distribution(drawn: Any) -> tuple[str, str]:
    """Return a distribution and its condition as the space file writes them; keys not set are left out."""
    if not isinstance(drawn, dict):
        return "–" if drawn is None else str(drawn), ""
    kinds = {kind: value for kind, value in drawn.items() if kind != "when" and value is not None}
    text = ", ".join(f"{kind}: {masked('', value)}" for kind, value in kinds.items()) or "fixed: null"
    when = drawn.get("when") or ""
    if isinstance(when, dict):
        when = ", ".join(f"{key}: {masked(key, value)}" for key, value in when.items())
    return text, str(when)
