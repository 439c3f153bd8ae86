"""Intracortical recordings in Neurodata Without Borders: a folder of `.nwb` files, a session each → raw rows.

A row is one line of a file's trials table: `start_time`, `stop_time` (seconds), a column with the text to
decode, and any further ones. Its features are spike counts of the units table, or time series such as
spike-band power, in equal bins. Layout: NWB 2 (Rübel et al. 2022, doi:10.7554/eLife.78362), listed by pynwb.

NWB files may point into other files. Each file is walked before pynwb sees it and refused if it does.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.nwb_trial import RATE_TOLERANCE, ROUNDING, Series, refuse_outside
from voxray.data.formats.rows import first_line
from voxray.data.formats.safe_hdf5 import open_hdf5

BIN_S = 0.02
UNKNOWN_BLOCK = -1

_OPTIONAL = ("split", "block_num")
_OWN = {
    *("sample_id", "session", "subject", "session_date", "day", "trial_num", "num_time_steps", "trial"),
    *("num_features", "num_phonemes", "has_transcript", "transcript", "path", "start_s", "bin_s", "signals"),
    *("origin", *_OPTIONAL),
}
# An hour of 20 ms bins, as for T15.
_MAX_TIME_STEPS = 180_000
_RATE_SAMPLES = 10_000


@dataclass(frozen=True)
class _Session:
    """What one file says without its arrays: the trials table's columns [N], and the signals."""

    path: Path
    name: str
    subject: str
    start: datetime
    table: Mapping[str, np.ndarray]
    signals: tuple[Series, ...]  # empty: spike counts
    num_features: int
    day: int = 0


def read_trials(
    source: Path,
    bin_s: float = BIN_S,
    text: str = "",
    columns: Sequence[str] = (),
    signals: Sequence[str] = (),
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per trial; sessions by their start, trials in the table's order.

    The rows are those of `t15.read_t15`: sample_id (`<file>/trial_00000`), session (the file's path below
    `source` without .nwb), subject, session_date, day, block_num (-1 without such a column), trial_num (the
    table's id), num_time_steps (whole bins of `bin_s` seconds between start and stop), num_features,
    num_phonemes (0), has_transcript; also transcript (the column `text`), each of `columns`, split where the
    table has such a column, and what `nwb_trial.read_trial` needs.

    `signals` names time series (`sbp`, or `ecephys/sbp` where the name alone is not enough), whose features
    are joined in that order; without any, the features are the units' spike counts.

    Raises InputError when pynwb is not installed, there is no file, a file is damaged, points into other
    files, or lacks a column or series that is asked for.
    """
    if taken := sorted(_OWN & set(columns)):
        raise InputError(f"'{taken[0]}' is what the reader of NWB trials itself gives; name another column")
    found = [_read_session(source, path, bin_s, text, columns, signals) for path in _find_files(source)]
    for day, session in enumerate(sorted(found, key=lambda session: (session.start, session.name))):
        yield from _rows(replace(session, day=day), bin_s, text, columns)


# --- files
# ------------------------------------------------------------------------------------------------------------


def _find_files(source: Path) -> list[Path]:
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the sessions' .nwb files")
    paths = sorted(path for path in source.rglob("*.nwb") if path.is_file())
    if not paths:
        raise InputError(f"'{source}' holds no .nwb file; name the folder that holds the sessions' files")
    root = source.resolve()
    if outside := [path for path in paths if not path.resolve().is_relative_to(root)]:
        raise InputError(
            *(f"'{path}' is a link out of '{source}'; links out of it are not followed" for path in outside)
        )
    return paths


# --- one session, without its arrays
# ------------------------------------------------------------------------------------------------------------


def _read_session(
    source: Path, path: Path, bin_s: float, text: str, columns: Sequence[str], signals: Sequence[str]
) -> _Session:
    try:
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise InputError(
            f"reading '{path}' needs pynwb, which is not installed; run `pip install voxray[nwb]`"
        ) from error
    try:
        with open_hdf5(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pynwb tells of every namespace that is not its newest
            refuse_outside(file)
            nwb = _parsed(NWBHDF5IO, file)
            found = [_find_series(nwb, name, bin_s) for name in signals]
            return _Session(
                path=path,
                name=path.relative_to(source).with_suffix("").as_posix(),
                subject=(nwb.subject.subject_id or "") if nwb.subject else "",
                start=nwb.session_start_time,
                table=_read_table(nwb, ([text] if text else []) + list(columns)),
                signals=tuple(found),
                num_features=sum(series.num_features for series in found) or _num_units(nwb),
            )
    except ValueError as error:
        raise InputError(f"'{path}': {error}") from error


def _parsed(reader: Any, file: h5py.File) -> Any:
    """Return pynwb's view of the file; the schema that the file carries is used for extensions."""
    try:
        return reader(file=file, mode="r", load_namespaces=True).read()
    except Exception as error:  # pynwb and hdmf raise almost anything on what is no NWB
        raise ValueError(f"is no NWB 2 file: {first_line(error)}; write it with pynwb or MatNWB") from error


def _read_table(nwb: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the wanted columns of the trials table, [N] each."""
    if nwb.trials is None:
        raise ValueError("has no trials table (`intervals/trials`); add one")
    held = nwb.trials.colnames
    if missing := [name for name in names if name not in held]:
        raise ValueError(f"the trials table has no column '{missing[0]}'; it has {', '.join(held)}")
    table = {"id": np.asarray(nwb.trials.id.data[:])}
    for name in dict.fromkeys(("start_time", "stop_time", *names, *_OPTIONAL)):
        if name not in held:
            continue
        values = np.asarray(nwb.trials[name].data[:])
        if values.shape != table["id"].shape or values.dtype.kind not in "biufUSO":
            raise ValueError(f"the trials' column '{name}' has no single number or text per trial")
        table[name] = values
    return table


def _num_units(nwb: Any) -> int:
    if nwb.units is None or "spike_times" not in nwb.units.colnames or not len(nwb.units):
        held = ", ".join(sorted(_all_series(nwb))) or "none"
        raise ValueError(f"has no units with spike_times; name time series as signals, it has: {held}")
    return len(nwb.units)


def _all_series(nwb: Any) -> dict[str, Any]:
    """Return all time series with values in this file, by their path inside it."""
    from pynwb import TimeSeries

    series = [part for part in nwb.objects.values() if isinstance(part, TimeSeries)]
    held = [part for part in series if isinstance(part.data, h5py.Dataset)]
    return {str(part.data.parent.name): part for part in held}


def _find_series(nwb: Any, name: str, bin_s: float) -> Series:
    held = _all_series(nwb)
    matches = [path for path in held if path.endswith("/" + name.strip("/"))]
    if len(matches) != 1:
        what = "several" if matches else "no"
        raise ValueError(
            f"has {what} time series '{name}'; name one of {', '.join(matches or sorted(held)) or 'none'}"
        )
    series = held[matches[0]]
    if series.data.ndim not in (1, 2) or series.data.dtype.kind not in "iuf":
        shape = "×".join(map(str, series.data.shape))
        raise ValueError(
            f"'{matches[0]}' is {series.data.dtype} {shape}; numbers [samples, features] are needed"
        )
    if getattr(series, "channel_conversion", None) is not None:
        raise ValueError(f"'{matches[0]}' has a conversion per channel; store its values converted")
    rate_hz, start_s = _sampling(series, matches[0])
    per_bin = rate_hz * bin_s
    if round(per_bin) < 1 or abs(per_bin / round(per_bin) - 1) > RATE_TOLERANCE:
        raise ValueError(
            f"'{matches[0]}' has {rate_hz:g} samples per second, {per_bin:g} per bin of {bin_s:g} s; choose "
            "bins of whole samples"
        )
    return Series(
        path=series.data.name,
        num_features=series.data.shape[1] if series.data.ndim == 2 else 1,
        samples_per_bin=round(per_bin),
        rate_hz=rate_hz,
        start_s=start_s,
        timestamps=series.timestamps.name if series.rate is None else "",
        conversion=float(series.conversion),
        offset=float(series.offset),
    )


def _sampling(series: Any, name: str) -> tuple[float, float]:
    """Return the rate in Hz and the first sample's time in seconds."""
    if series.rate is not None:
        return float(series.rate), float(series.starting_time or 0.0)
    times = np.asarray(series.timestamps[:_RATE_SAMPLES], dtype=np.float64)
    steps = np.diff(times)
    if not len(steps) or not (steps > 0).all():
        raise ValueError(f"'{name}' has timestamps that do not rise; mend them")
    return 1 / float(np.median(steps)), float(times[0])


def _rows(session: _Session, bin_s: float, text: str, columns: Sequence[str]) -> Iterator[RawRow | BadRow]:
    for index, trial_id in enumerate(session.table["id"].tolist()):
        origin = f"{session.name}.nwb trial {trial_id}"
        try:
            cells = {name: _cell(values[index]) for name, values in session.table.items()}
            yield _row(session, index, cells, bin_s, text, columns) | {"origin": origin}
        except ValueError as error:
            yield BadRow(origin, str(error))


def _row(
    session: _Session, index: int, cells: Mapping[str, Any], bin_s: float, text: str, columns: Sequence[str]
) -> RawRow:
    transcript = str(cells[text]) if text else ""
    declared = {"split": str(cells["split"])} if "split" in cells else {}
    return (
        {name: cells[name] for name in columns}
        | declared
        | {
            "sample_id": f"{session.name}/trial_{index:05d}",
            "session": session.name,
            "subject": session.subject,
            "session_date": session.start.date().isoformat(),
            "day": session.day,
            "block_num": int(cells.get("block_num", UNKNOWN_BLOCK)),
            "trial_num": int(cells["id"]),
            "num_time_steps": _num_time_steps(cells["start_time"], cells["stop_time"], bin_s),
            "num_features": session.num_features,
            "num_phonemes": 0,
            "has_transcript": bool(transcript),
            "transcript": transcript,
            "path": str(session.path),
            "trial": index,
            "start_s": cells["start_time"],
            "bin_s": bin_s,
            "signals": session.signals,
        }
    )


def _cell(value: Any) -> Any:
    """Return a cell as a plain number or text."""
    if isinstance(value, bytes):
        return value.decode()  # UnicodeDecodeError is a ValueError
    return value.item() if isinstance(value, np.generic) else value


def _num_time_steps(start_s: float, stop_s: float, bin_s: float) -> int:
    """Return the whole bins between two times; what is left at the end is no bin."""
    if not np.isfinite([start_s, stop_s]).all():
        raise ValueError(f"the trial lasts from {start_s} to {stop_s}; give both times in seconds")
    num_steps = int(np.floor((stop_s - start_s) / bin_s + ROUNDING))
    if not 1 <= num_steps <= _MAX_TIME_STEPS:
        raise ValueError(
            f"the trial lasts from {start_s:g} to {stop_s:g} s; it needs 1 … {_MAX_TIME_STEPS} "
            f"bins of {bin_s:g} s"
        )
    return num_steps
