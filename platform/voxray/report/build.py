"""`report(folders, out)`: what `voxray report RUN|STUDY …` does. Reads files only, without Ray.

torch is imported only where a task's figure asks for the trained model (a chest X-ray run with a bank).
"""

from collections.abc import Sequence
from pathlib import Path

from voxray.config.errors import InputError
from voxray.report.ablation import ablation_part, is_ablation
from voxray.report.html import write_report
from voxray.report.page import Part
from voxray.report.run import run_part
from voxray.report.study.part import study_part
from voxray.train.at_hand import at_hand


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML page, by default `report.html` in the first folder; return its path.

    Raises InputError for folders that are neither, all at once, and for a broken file.
    """
    folders = [at_hand(folder) for folder in folders]
    problems = [problem for folder in folders if (problem := _problem(folder))]
    if problems:
        raise InputError(*problems)
    out = out or folders[0] / "report.html"
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file, such as {out / 'report.html'}")
    write_report(out, [_part(folder) for folder in folders])
    return out


def _part(folder: Path) -> Part:
    if is_ablation(folder):
        return ablation_part(folder)
    return study_part(folder) if _is_study(folder) else run_part(folder)


def _is_study(folder: Path) -> bool:
    return (folder / "study.json").is_file() or (folder / "journal.log").is_file()


def _problem(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"there is no folder '{folder}'; `voxray ls runs` and `voxray ls studies` list what there is"
    if _is_study(folder) or (folder / "config.json").is_file() or (folder / "log.jsonl").is_file():
        return None
    return (
        f"'{folder}' is neither a run (it has no config.json) nor a study (it has no study.json); "
        "`voxray ls runs` and `voxray ls studies` list what there is"
    )
