"""An ablation's tables as text: for the terminal, Markdown, CSV with all digits, LaTeX (booktabs)."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxray.tune.ablation.results import Results, Table
from voxray.tune.ablation.statistics import CONFIDENCE, Comparison

NAME = "ablation"
JSON = f"{NAME}.json"
MAX_DECIMALS = 8
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def shown_rows(table: Table) -> list[dict[str, str]]:
    """Return a table's rows as text, rounded by their spread; "" where there is nothing to say."""
    return [_shown(row) for row in table.rows]


def _shown(row: Comparison) -> dict[str, str]:
    half = (row.high - row.low) / 2 if row.low is not None and row.high is not None else row.sd
    return {
        "arm": " ".join(row.arm.split()),
        "n": str(row.n),
        "mean ± sd": f"{_number(row.mean, row.sd)} ± {_number(row.sd, row.sd)}"
        if row.sd is not None
        else _number(row.mean, None),
        "difference": _number(row.difference, half, "+"),
        f"{CONFIDENCE:.0%} interval": f"[{_number(row.low, half)}, {_number(row.high, half)}]"
        if row.low is not None
        else "",
        "t": "" if row.t is None else f"{row.t:.2f}",
        "p": _probability(row.p),
        "p (Holm)": _probability(row.p_holm),
        "g_z": "" if row.effect is None else f"{row.effect:+.2f}",
        "wins": "" if row.wins is None else f"{row.wins}/{row.pairs}",
        "verdict": row.verdict or row.note,
    }


def _number(value: float | None, spread: float | None, sign: str = "") -> str:
    """Return a value to the second digit of its spread, or to four digits where it has none."""
    if value is None:
        return ""
    if not spread or not math.isfinite(spread):
        return f"{value:{sign}.4g}"
    decimals = min(max(1 - math.floor(math.log10(spread)), 0), MAX_DECIMALS)
    return f"{value:{sign}.{decimals}f}"


def _probability(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def exact_rows(table: Table) -> list[dict[str, Any]]:
    """Return a table's rows with all digits and a column per seed; None where there is nothing to say."""
    seeds = sorted({seed for row in table.rows for seed in row.scores})
    return [
        {
            "metric": table.metric,
            "mode": table.objective.mode,
            "arm": row.arm,
            "n": row.n,
            "mean": row.mean,
            "sd": row.sd,
            "pairs": row.pairs,
            "difference": row.difference,
            "low": row.low,
            "high": row.high,
            "t": row.t,
            "df": row.df,
            "p": row.p,
            "p_holm": row.p_holm,
            "hedges_g_z": row.effect,
            "wins": row.wins,
            "verdict": row.verdict,
            "note": row.note,
            **{f"seed_{seed}": row.scores.get(seed) for seed in seeds},
        }
        for row in table.rows
    ]


def to_csv(results: Results) -> str:
    """Return all tables as one CSV; numbers as Python writes them, so that none loses a digit."""
    rows = [row for table in results.tables for row in exact_rows(table)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(results: Results) -> str:
    """Return everything as JSON, each table exact and as it is shown; what is not known is null."""
    tables = [
        {
            **table.objective.model_dump(),
            "rows": [asdict(row) for row in table.rows],
            "shown": shown_rows(table),
        }
        for table in results.tables
    ]
    kept = {"name": results.name, "tables": tables, "cells": results.cells, "notes": results.notes}
    return json.dumps({**kept, "legend": results.legend}, indent=1, allow_nan=False) + "\n"


def to_markdown(results: Results) -> str:
    """Return all tables as Markdown, with what the user wrote and what limits them."""
    lines = [f"# {results.name}", ""]
    lines += [line for key, words in results.words.items() for line in (f"*{key}:* {_plain(words)}", "")]
    for table in results.tables:
        rows = shown_rows(table)
        columns = list(rows[0])
        lines += [f"## {table.metric} ({table.direction})", ""]
        lines += [_markdown_row(columns), _markdown_row(["---", *["---:"] * (len(columns) - 2), "---"])]
        lines += [_markdown_row(row.values()) for row in rows]
        lines.append("")
    lines += [*(f"* {_plain(note)}" for note in results.notes), *[""] * bool(results.notes), results.legend]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Any) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Return user's text as one line whose signs Markdown does not read."""
    return re.sub(r"([\\`*_<\[\]])", r"\\\1", " ".join(text.split()))


def to_latex(results: Results) -> str:
    """Return all tables as LaTeX for the package booktabs, one `table` each."""
    parts = [f"% {NAME} '{' '.join(results.name.split())}'; needs \\usepackage{{booktabs}}"]
    for table in results.tables:
        rows = shown_rows(table)
        columns = list(rows[0])
        arrow = r"$\uparrow$" if table.objective.mode == "max" else r"$\downarrow$"
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.metric)} {arrow}. {latex_text(results.legend)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 2)}l}}",
            r"\toprule",
            " & ".join(map(_latex_head, columns)) + r" \\",
            r"\midrule",
            *(_latex_row(row) for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def latex_text(text: str) -> str:
    """Return text in which LaTeX reads nothing but letters."""
    escaped = "".join(_LATEX.get(char, char) for char in " ".join(text.split()))
    for sign, command in (("±", r"$\pm$"), ("−", "$-$"), ("<", "$<$"), (">", "$>$")):
        escaped = escaped.replace(sign, command)
    return escaped


def _latex_head(column: str) -> str:
    known = {"g_z": "$g_z$", "t": "$t$", "n": "$n$", "p": "$p$", "p (Holm)": r"$p_\mathrm{Holm}$"}
    return known.get(column, latex_text(column))


def _latex_row(row: dict[str, str]) -> str:
    return " & ".join(_latex_cell(column, cell) for column, cell in row.items()) + r" \\"


def _latex_cell(column: str, cell: str) -> str:
    if column in ("arm", "verdict") or not cell:
        return latex_text(cell)
    return "$" + cell.replace("±", r"\pm") + "$"


def write_tables(results: Results, folder: Path) -> Sequence[Path]:
    """Write ablation.json, .md, .csv and .tex into a study's folder, each whole or not at all."""
    texts = {
        "json": to_json(results),
        "md": to_markdown(results),
        "csv": to_csv(results),
        "tex": to_latex(results),
    }
    return [_write(folder / f"{NAME}.{suffix}", text) for suffix, text in texts.items()]


def _write(file: Path, text: str) -> Path:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
    return file
