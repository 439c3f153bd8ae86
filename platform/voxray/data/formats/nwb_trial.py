"""The arrays of one trial of an NWB file: binned spike counts, or samples of time series.

`nwb.py` lists the trials; the functions here read the file by h5py alone, so that a trial costs no parse of
the whole file. An NWB file may point into other files: it is walked first, and refused if it does.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np

from voxray.core.task import BadRowError, RawRow
from voxray.data.formats.safe_hdf5 import open_hdf5

ROUNDING = 1e-6  # of a bin or a sample: times are written with rounding errors
RATE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Series:
    """Where a time series lies in its file, and when its samples were taken."""

    path: str  # of the values, inside the file
    num_features: int
    samples_per_bin: int
    rate_hz: float
    start_s: float
    timestamps: str  # path of the samples' times; '' where rate_hz and start_s tell them
    conversion: float
    offset: float


def read_trial(row: RawRow) -> RawRow:
    """Return the row with features [T, F] float32 and phonemes [0] int32.

    A spike counts in bin k where start + k·bin ≤ time < start + (k + 1)·bin. A series with several samples
    per bin is averaged, after its conversion to units. Raises BadRowError, naming the file and the trial,
    where a series does not cover the trial or has values that are not finite.
    """
    try:
        status = os.stat(row["path"])
        key = row["path"], status.st_mtime_ns, status.st_size
        if row["signals"]:
            _check_inside(*key)
            features = _read_series(row)
        else:
            features = _count_spikes(_load_spikes(*key), row)
    except (ValueError, OSError) as error:
        raise BadRowError(f"'{row['path']}' trial {row['trial']}: {error}") from error
    return row | {"features": features, "phonemes": np.zeros(0, np.int32)}


def refuse_outside(file: h5py.File) -> None:
    """Walk all links of a file. Raises ValueError where one, or a dataset's storage, is in another file."""
    groups: list[Any] = [file["/"]]
    seen = set(groups)
    while groups:
        group = groups.pop()
        for name in group:
            link: Any = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                continue  # what it names in this file is walked under its own name
            place = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(link, h5py.HardLink):
                raise ValueError(
                    f"'{place}' is a link to '{link.path}' in '{link.filename}'; links are refused, copy the "
                    "data in"
                )
            child = group[name]
            if isinstance(child, h5py.Dataset) and (child.is_virtual or child.external):
                raise ValueError(f"'{place}' keeps its values in other files; store them inside")
            if isinstance(child, h5py.Group) and child not in seen:
                seen.add(child)
                groups.append(child)


@lru_cache(maxsize=64)
def _check_inside(path: str, mtime_ns: int, size: int) -> None:
    """Walk a file once, as long as it does not change."""
    with open_hdf5(path) as file:
        refuse_outside(file)


@lru_cache(maxsize=2)
def _load_spikes(path: str, mtime_ns: int, size: int) -> tuple[np.ndarray, ...]:
    """Return each unit's spike times in seconds, sorted; one session serves many trials in a row."""
    with open_hdf5(path) as file:
        refuse_outside(file)
        units: Any = file["units"]
        times = np.asarray(units["spike_times"][:], dtype=np.float64)
        ends = np.asarray(units["spike_times_index"][:], dtype=np.int64)
    if not np.isfinite(times).all():
        raise ValueError("'units/spike_times' holds values that are not finite; mend it")
    if len(ends) and (ends[-1] != len(times) or (np.diff(ends, prepend=0) < 0).any()):
        raise ValueError("'units/spike_times_index' does not divide 'units/spike_times'; mend it")
    return tuple(np.sort(spikes) for spikes in np.split(times, ends[:-1]))


def _count_spikes(spikes: Sequence[np.ndarray], row: RawRow) -> np.ndarray:
    """Return counts [T, F] float32."""
    edges = row["start_s"] + row["bin_s"] * np.arange(row["num_time_steps"] + 1)
    return np.stack([np.diff(np.searchsorted(unit, edges)) for unit in spikes], axis=1).astype(np.float32)


def _read_series(row: RawRow) -> np.ndarray:
    """Return the joined series, [T, F] float32."""
    with open_hdf5(row["path"]) as file:
        parts = [_read_one_series(file, series, row) for series in row["signals"]]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _read_one_series(file: h5py.File, series: Series, row: RawRow) -> np.ndarray:
    data: Any = file[series.path]
    num_samples = row["num_time_steps"] * series.samples_per_bin
    first = _first_sample(file, series, row["start_s"], num_samples)
    if first < 0 or first + num_samples > len(data):
        raise ValueError(f"'{series.path}' does not cover the trial: {num_samples} samples from {first} on")
    values = np.asarray(data[first : first + num_samples], dtype=np.float64)
    values = values.reshape(row["num_time_steps"], series.samples_per_bin, series.num_features)
    if num_bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(f"'{series.path}' holds {num_bad} values that are not finite; remove the trial")
    return values.mean(axis=1) * series.conversion + series.offset


def _first_sample(file: h5py.File, series: Series, start_s: float, num_samples: int) -> int:
    """Return the first sample at or after a time. Raises ValueError for a gap within the samples wanted."""
    if not series.timestamps:
        return int(np.ceil((start_s - series.start_s) * series.rate_hz - ROUNDING))
    times: Any = file[series.timestamps]
    first = int(np.searchsorted(times[:], start_s - ROUNDING / series.rate_hz))
    wanted = times[first : first + num_samples]
    if len(wanted) < num_samples:
        return first
    late = (wanted[0] - start_s) * series.rate_hz  # in samples, as the next
    lost = (wanted[-1] - wanted[0]) * series.rate_hz - (num_samples - 1)
    if late > 1.5 or abs(lost) > max(0.5, num_samples * RATE_TOLERANCE):
        raise ValueError(f"'{series.timestamps}' has a gap in the trial, of {late + abs(lost):.1f} samples")
    return first
