"""An ablation's part of the page: what was asked, how large the differences are, every score, to publish."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.secrets import masked
from voxray.config.tree import show
from voxray.report.ablation_figures import forest_figure, scores_figure
from voxray.report.page import Block, Card, Code, Part, Section, Table, Text, Tone, about_of, number
from voxray.report.read import read_json

RESULTS = "ablation.json"
TABLE = "ablation.tex"


@dataclass(frozen=True)
class AblationFiles:
    """What an ablation's folder tells: `saved` is study.json, `results` what `voxray ablate` found."""

    folder: Path
    saved: dict[str, Any]
    results: dict[str, Any]

    @property
    def cells(self) -> list[dict[str, Any]]:
        """One map per arm and seed: its state, scores and key."""
        return self.results["cells"]

    @property
    def tables(self) -> list[dict[str, Any]]:
        """One map per metric: the arms' statistics, exact (`rows`) and as text (`shown`)."""
        return self.results["tables"]

    @property
    def num_done(self) -> int:
        """Cells that have scores."""
        return sum(cell.get("scores") is not None for cell in self.cells)


def is_ablation(folder: Path) -> bool:
    """Tell whether a study's folder is an ablation's."""
    return (folder / RESULTS).is_file()


def ablation_part(folder: Path) -> Part:
    """Read an ablation's folder and return its part of the page. Raises InputError for a broken file."""
    files = AblationFiles(
        folder, read_json(folder / "study.json", optional=True), read_json(folder / RESULTS)
    )
    try:
        return _part(files)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / RESULTS} is not what `voxray ablate` writes ({error!r}); run the command again: it "
            "writes it anew"
        ) from error


def _part(files: AblationFiles) -> Part:
    space, config = files.saved.get("space") or {}, files.saved.get("config") or {}
    status, tone = _status(files)
    return Part(
        kind="ablation",
        name=files.folder.name,
        task=str(config.get("task", "")),
        folder=str(files.folder),
        status=status,
        tone=tone,
        about=about_of(space if about_of(space) else config)
        | {"experiment": str(files.saved.get("experiment") or "–")},
        tags=tuple(str(tag) for tag in space.get("tags") or ()),
        cards=_key_numbers(files),
        sections=[
            *(Section(str(table["metric"]), _metric(files, table)) for table in files.tables),
            Section("Cells", [_cell_table(files)]),
            Section("To publish", _publish(files.folder)),
        ],
    )


def _status(files: AblationFiles) -> tuple[str, Tone]:
    done, total = files.num_done, len(files.cells)
    failed = sum(cell.get("scores") is None and bool(cell.get("reason")) for cell in files.cells)
    if failed:
        return f"{done} of {total} cells done, {failed} failed", "bad"
    return (
        (f"finished, all {total} cells done", "good")
        if done == total
        else (f"{done} of {total} cells done", "plain")
    )


def _key_numbers(files: AblationFiles) -> tuple[Card, ...]:
    rows = files.tables[0]["rows"]
    verdicts = [row["verdict"] for row in rows]
    metric = str(files.tables[0]["metric"])
    seeds = {cell["seed"] for cell in files.cells}
    return (
        Card(f"baseline {metric}", number(rows[0]["mean"]), f"{len(rows[0]['scores'])} seeds"),
        Card("arms", number(len(rows) - 1), f"{len(seeds)} seeds each"),
        Card("better", number(verdicts.count("better")), "than the baseline, Holm-corrected"),
        Card("worse", number(verdicts.count("worse")), "than the baseline, Holm-corrected"),
    )


def _metric(files: AblationFiles, table: dict[str, Any]) -> list[Block]:
    shown = table["shown"]
    columns = tuple(shown[0])
    rows = [tuple(row.get(column) or None for column in columns) for row in shown]
    better = "higher" if table["mode"] == "max" else "lower"
    blocks: list[Block] = [
        Table(columns, rows, f"{table['metric']}: {better} is better. {files.results.get('legend', '')}")
    ]
    if any(row["difference"] is not None for row in table["rows"]):
        blocks.append(forest_figure(table))
    if any(row["scores"] for row in table["rows"]):
        blocks.append(scores_figure(table))
    notes = files.results["notes"] if table is files.tables[0] else []
    return [*(Text(str(note)) for note in notes), *blocks]


def _cell_table(files: AblationFiles) -> Table:
    metrics = [str(table["metric"]) for table in files.tables]
    columns = ("arm", "seed", "state", *metrics, "step", "differs in", "key", "reason")
    rows = [
        (
            cell["arm"],
            str(cell["seed"]),
            cell["state"],
            *(cell.get("scores") or [None] * len(metrics)),
            cell.get("step"),
            ", ".join(f"{path}={show(masked(path, value))}" for path, value in cell["values"].items())
            or None,
            cell["key"],
            cell.get("reason") or None,
        )
        for cell in files.cells
    ]
    where = files.folder.parent.parent / "cells"
    return Table(columns, rows, f"A cell is a run: `voxray report {where}/<key>` draws it.")


def _publish(folder: Path) -> list[Block]:
    file = folder / TABLE
    if not file.is_file():
        return [Text("The LaTeX table is written when `voxray ablate` ends.")]
    return [
        Code(file.read_text(encoding="utf-8"), str(file)),
        Text(f"Also there: {folder}/ablation.md and ablation.csv."),
    ]
