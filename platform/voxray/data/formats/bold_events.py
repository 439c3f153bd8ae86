"""BOLD series with tables of events, as BIDS names them → raw rows, one per event.

`<run>_events.tsv` (onset and duration in seconds, trial_type, and stim_file where there is one) describes the
series `<run>_….nii.gz` or `<run>.nii.gz` in the same folder. A row is the mean of the volumes of its event,
taken a little later since blood flow follows after seconds; voxels are z-scored within the run before.
"""

import csv
import fnmatch
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.folder import find_files, the_file
from voxray.data.formats.nifti import SeriesHeader, read_header, read_mask
from voxray.data.formats.volumes import MaskedVolumes

EVENTS = "_events.tsv"
_NUMBER = re.compile(r"run-?(\d+)")
_SUBJECT = re.compile(r"sub-([A-Za-z0-9]+)")
_TOLERANCE = 1e-3  # of a repetition time: onsets are rounded in tables


@dataclass(frozen=True)
class EventOptions:
    """Which series are read (`bold`, a glob of names), inside which mask (a glob), and how.

    Volumes of an event: those that begin `delay_s` or more after its onset and less than that after its end.
    """

    bold: str = "*.nii*"
    mask: str = "*mask*.nii*"
    zscore: bool = True
    delay_s: float = 5.0


def read_bold_events(source: Path, options: EventOptions) -> Iterator[RawRow | BadRow]:
    """Yield a row per event of every run.

    A row has sample_id (`<run>/<event>`), subject (after `sub-`, else the folder's name), session (the run's
    number), session_id, label (trial_type), stimulus_id (stim_file, else trial_type), volumes and span for
    `load_volumes`, num_voxels, origin.

    Raises InputError for no or several masks, no or several series of a run, and a table without its columns.
    """
    tables = find_files(source, f"*{EVENTS}")
    if not tables:
        raise InputError(f"'{source}' holds no *{EVENTS}; name the folder that holds the runs")
    mask = the_file(source, options.mask, "mask", "name one with `mask`, e.g. mask=masks_vt.nii.gz")
    try:
        num_voxels = int(read_mask(mask).sum())
    except ValueError as error:
        raise InputError(f"'{mask}': {error}") from error
    for number, table in enumerate(tables, 1):
        bold = _find_bold(table, mask, options)
        run = _Run(source, table, number, MaskedVolumes(str(bold), str(mask), options.zscore), _header(bold))
        for row in run.rows(options.delay_s):
            yield row if isinstance(row, BadRow) else row | {"num_voxels": num_voxels}


@dataclass(frozen=True)
class _Run:
    """A series and its table; `place` counts the tables from 1."""

    source: Path
    table: Path
    place: int
    volumes: MaskedVolumes
    header: SeriesHeader

    def rows(self, delay_s: float) -> Iterator[RawRow | BadRow]:
        relative = self.table.relative_to(self.source).as_posix()
        name = relative.removesuffix(EVENTS)
        number, subject = _NUMBER.search(self.table.name), _SUBJECT.search(relative)
        with self.table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns = reader.fieldnames or []
            if missing := [c for c in ("onset", "duration", "trial_type") if c not in columns]:
                raise InputError(f"'{self.table}' has no column '{missing[0]}'; add it, as BIDS has it")
            for index, cells in enumerate(reader):
                origin = f"{relative} line {reader.line_num}"
                try:
                    span = self._span(cells, delay_s)
                except ValueError as error:
                    yield BadRow(origin, str(error))
                    continue
                subject_name = f"sub-{subject[1]}" if subject else self.source.name
                label = (cells["trial_type"] or "").strip()
                yield {
                    "sample_id": f"{name}/{index:04d}",
                    "subject": subject_name,
                    "session": int(number[1]) if number else self.place,
                    "session_id": f"{subject_name}/{name}",
                    "label": label,
                    "stimulus_id": (cells.get("stim_file") or "").strip() or label,
                    "volumes": self.volumes,
                    "span": span,
                    "origin": origin,
                }

    def _span(self, cells: dict[str, str], delay_s: float) -> tuple[int, int]:
        """Return first and last + 1 of an event's volumes. Raises ValueError."""
        onset_s, duration_s = (_seconds(cells, name) for name in ("onset", "duration"))
        step = self.header.repetition_s
        first = math.ceil((onset_s + delay_s) / step - _TOLERANCE)
        end = max(first + 1, math.ceil((onset_s + delay_s + duration_s) / step - _TOLERANCE))
        if first < 0 or first >= self.header.num_volumes:
            raise ValueError(
                f"no volume was taken {delay_s:g} s after its onset at {onset_s:g} s: the series has "
                f"{self.header.num_volumes} volumes of {step:g} s; remove the event"
            )
        return first, min(end, self.header.num_volumes)


def _seconds(cells: dict[str, str], name: str) -> float:
    try:
        value = float(cells[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or (name == "duration" and value < 0):
        raise ValueError(f"{name} is '{cells[name]}', no number of seconds; mend it, or remove the event")
    return value


def _find_bold(table: Path, mask: Path, options: EventOptions) -> Path:
    run = table.name.removesuffix(EVENTS)
    found = [
        path
        for path in find_files(table.parent, f"{run}*.nii*")
        if path.parent == table.parent
        and path != mask
        and path.name.removeprefix(run)[:1] in ("_", ".")
        and fnmatch.fnmatch(path.name, options.bold)
    ]
    if len(found) != 1:
        shown = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"'{table}' describes one series {run}_*.nii*, there are: {shown}; choose with `files`, "
            "e.g. files=*_bold.nii.gz"
        )
    return found[0]


def _header(path: Path) -> SeriesHeader:
    try:
        header = read_header(path)
        if not header.repetition_s > 0:
            raise ValueError("its header says no repetition time; set it (pixdim[4])")
    except ValueError as error:
        raise InputError(f"'{path}': {error}") from error
    return header
