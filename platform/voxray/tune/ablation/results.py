"""What an ablation has found so far: a table of comparisons per metric, the cells, and what limits them."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from voxray.config.provenance import FILE as PROVENANCE
from voxray.tune.ablation.cells import BASELINE, Cell
from voxray.tune.ablation.ledger import CellLedger
from voxray.tune.ablation.statistics import ALPHA, CONFIDENCE, NUM_RESAMPLES, Comparison, compare
from voxray.tune.config import ObjectiveConfig
from voxray.tune.ledger import TrialRow

FEW_PAIRS = 5  # below, the bootstrap interval holds clearly less than it says (see `bootstrap_interval`)


@dataclass(frozen=True)
class Table:
    """One metric of all arms, the baseline first."""

    objective: ObjectiveConfig
    rows: list[Comparison]

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.objective.metric

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return "higher is better" if self.objective.mode == "max" else "lower is better"

    @property
    def num_tests(self) -> int:
        """Over how many arms Holm's correction goes."""
        return sum(row.p is not None for row in self.rows)


@dataclass(frozen=True)
class Results:
    """All that is written about an ablation. `notes` say what limits it; `legend` what the columns are."""

    name: str
    words: dict[str, str]  # description, hypothesis, expected: those that the user wrote
    tables: list[Table]
    cells: list[dict[str, Any]]
    notes: list[str]
    legend: str

    @property
    def num_done(self) -> int:
        """Cells that have scores."""
        return sum(cell["scores"] is not None for cell in self.cells)


def results_of(ledger: CellLedger) -> Results:
    """Return what the ledger's cells say now."""
    ablation = ledger.ablation
    space = ablation.plan.space.config
    by_index = {row.index: row for row in ledger.rows()}
    tables = [_table(ledger, by_index, place) for place in range(len(ablation.objectives))]
    words = {"description": space.description, "hypothesis": space.hypothesis, "expected": space.expected}
    return Results(
        name=ablation.plan.name,
        words={key: text for key, text in words.items() if text},
        tables=tables,
        cells=[_cell(ledger, cell, by_index.get(cell.index)) for cell in ablation.cells],
        notes=list(_notes(ledger, by_index, tables[0])),
        legend=_legend(ledger, tables),
    )


def _table(ledger: CellLedger, rows: dict[int, TrialRow], place: int) -> Table:
    objective = ledger.objectives[place]
    scores: dict[str, dict[int, float]] = {arm.name: {} for arm in ledger.ablation.arms}
    for cell in ledger.ablation.cells:
        row = rows.get(cell.index)
        if row is not None and row.scores:
            scores[cell.arm.name][cell.seed] = row.scores[place]
    return Table(objective, compare(BASELINE, scores, objective.sign))


def _cell(ledger: CellLedger, cell: Cell, row: TrialRow | None) -> dict[str, Any]:
    state = ledger.state(cell)
    is_elsewhere = cell.index in ledger.elsewhere
    return {
        "arm": cell.arm.name,
        "seed": cell.seed,
        "values": cell.arm.values,
        "key": cell.key,
        "state": "trained by another process" if is_elsewhere else state.state,
        "scores": list(row.scores) if row and row.scores else None,
        "step": row.step if row else None,
        "epochs": state.epochs,
        "reason": row.reason if row else state.reason,
    }


def _notes(ledger: CellLedger, rows: dict[int, TrialRow], table: Table) -> Iterator[str]:
    """Yield what limits the tables: missing cells, few seeds, cells of several commits."""
    cells = ledger.ablation.cells
    for cell in cells:
        row = rows.get(cell.index)
        if row is not None and not row.scores:
            yield f"{cell.arm.name}, seed {cell.seed}, failed: {' '.join(row.reason.split())}"
    num_missing = sum(cell.index not in rows for cell in cells)
    if num_missing:
        yield f"{num_missing} of {len(cells)} cells are not done yet"
    if any(0 < row.pairs < len(ledger.ablation.config.seeds) for row in table.rows[1:]):
        yield "an arm is compared over the seeds that both it and the baseline have"
    pairs = [row.pairs for row in table.rows[1:] if row.pairs]
    if pairs and min(pairs) < FEW_PAIRS:
        yield (
            f"{min(pairs)} {'pair is' if min(pairs) == 1 else 'pairs are'} few: intervals of fewer than "
            f"{FEW_PAIRS} hold less than they say; more seeds: ablate.seeds=[0,1,2,3,4]"
        )
    commits = Counter(commit for cell in cells if cell.index in rows and (commit := _commit(ledger, cell)))
    if len(commits) > 1:
        told = ", ".join(f"{num} at {commit[:10]}" for commit, num in commits.most_common())
        yield f"the cells were trained by several versions of the code: {told}"


def _commit(ledger: CellLedger, cell: Cell) -> str:
    try:
        text = (ledger.ablation.cell_folder(cell) / PROVENANCE).read_text(encoding="utf-8")
        return str(json.loads(text).get("commit") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _legend(ledger: CellLedger, tables: list[Table]) -> str:
    num = max(table.num_tests for table in tables)
    over = f"the {num} arms" if num else "all arms"
    several = " Each metric is a family of tests of its own." if len(tables) > 1 else ""
    what = {"best": "its best evaluation", "last": "its last evaluation"}[ledger.ablation.config.value]
    by = f" by {tables[0].metric}" if ledger.ablation.config.value == "best" and len(tables) > 1 else ""
    return (
        f"A run counts with {what}{by}. mean ± sd: over the seeds (n − 1). difference: arm − baseline, "
        f"paired by seed. {CONFIDENCE:.0%} interval: of the difference, by bootstrap (expanded percentile, "
        f"{NUM_RESAMPLES:,} resamples of the pairs). t, p: paired t-test, two sides. p (Holm): corrected "
        f"over {over}.{several} g_z: Cohen's d_z with Hedges' correction. wins: pairs in which the "
        f"arm is better. verdict: where p (Holm) < {ALPHA:g}."
    )
