"""Tables of binned spike counts: a folder of `.npz` files, one session each → raw rows, one per trial.

A file holds `spike_counts` [N, T, U] (trial, time bin, unit), or [N, U] for one bin per trial, and, where
trials differ in length, `length` [N], the bins of each that count; what follows them is padding. Any further
array [N] can be a column of the rows, any [N, T, …] a signal beside the counts.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.npy import ArrayError, NpzArray, index_npz

_COUNTS, _LENGTH = "spike_counts", "length"
_OWN = {"sample_id", "session", "origin", "num_time_steps", "num_units", "index", "arrays"}


def read_trials(
    source: Path, columns: Sequence[str] = (), signals: Sequence[str] = (), optional: Sequence[str] = ()
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per trial; files by name, trials in the file's order.

    A row has sample_id (`<file>/trial_00000`), session (the file's name without .npz), origin,
    num_time_steps, num_units, each of `columns`, and of `optional` where the file has it, as a number or text
    (one called `split` declares the split), and index and arrays for `load_trial`, which adds the counts and
    the arrays named by `signals`.

    Raises InputError when there is no file, an array is missing, damaged or of another shape, or its name is
    one of the row's own.
    """
    if taken := sorted(_OWN & {*columns, *optional}):
        raise InputError(f"'{taken[0]}' is what the reader of .npz trials itself gives; name another array")
    for path in _find_files(source):
        try:
            arrays = index_npz(path)
            held = [*columns, *(name for name in optional if name in arrays)]
            num_bins = _check_arrays(arrays, held, signals)
            table = {name: arrays[name].read() for name in held}
            lengths = arrays[_LENGTH].read() if _LENGTH in arrays else None
        except ArrayError as error:
            raise InputError(f"{path}: {error}") from error
        heavy = {name: arrays[name] for name in (_COUNTS, *signals)}
        num_trials, *_, num_units = arrays[_COUNTS].shape
        for index in range(num_trials):
            origin = f"{path.name} trial {index}"
            num_steps = num_bins if lengths is None else int(lengths[index])
            if not 1 <= num_steps <= num_bins:
                yield BadRow(origin, f"'{_LENGTH}' is {num_steps}; a trial has 1 … {num_bins} bins, mend it")
                continue
            yield {name: values[index].item() for name, values in table.items()} | {
                "sample_id": f"{path.stem}/trial_{index:05d}",
                "session": path.stem,
                "origin": origin,
                "num_time_steps": num_steps,
                "num_units": num_units,
                "index": index,
                "arrays": heavy,
            }


def load_trial(row: RawRow) -> RawRow:
    """Return the row with spike_counts [T, U] (as stored; T = num_time_steps) and each signal [T, …] float32.

    Raises BadRowError, naming the file and the trial, for negative counts, counts in the padding, and values
    that are not finite.
    """
    counts: NpzArray = row["arrays"][_COUNTS]
    try:
        loaded = {name: _load(array, row) for name, array in row["arrays"].items()}
        _check_counts(counts.read_row(row["index"], len(counts.shape) - 1), row)
    except (ArrayError, OSError) as error:
        raise BadRowError(f"'{counts.path}' trial {row['index']}: {error}") from error
    return row | loaded


def _load(array: NpzArray, row: RawRow) -> np.ndarray:
    values = array.read_row(row["index"], len(array.shape) - 1)
    if array.name == _COUNTS:
        return np.atleast_2d(values)[: row["num_time_steps"]]
    values = values[: row["num_time_steps"]].astype(np.float32)
    if num_bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ArrayError(f"'{array.name}' holds {num_bad} values that are not finite; mend it or '{_LENGTH}'")
    return values


def _check_counts(values: np.ndarray, row: RawRow) -> None:
    """Refuse what cannot be a count, the padding included."""
    values = np.atleast_2d(values)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ArrayError(f"'{_COUNTS}' holds values that are negative or not finite; counts start at 0")
    if values[row["num_time_steps"] :].any():
        raise ArrayError(
            f"'{_COUNTS}' goes on after the {row['num_time_steps']} bins of '{_LENGTH}'; mend one"
        )


def _find_files(source: Path) -> list[Path]:
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the sessions' .npz files")
    paths = sorted(source.glob("*.npz"))
    if not paths:
        raise InputError(f"'{source}' holds no .npz file; name the folder that holds the sessions' files")
    root = source.resolve()
    if outside := [path for path in paths if not path.resolve().is_relative_to(root)]:
        raise InputError(
            *(f"'{path}' is a link out of '{source}'; links out of it are not followed" for path in outside)
        )
    return paths


def _check_arrays(arrays: Mapping[str, NpzArray], columns: Sequence[str], signals: Sequence[str]) -> int:
    """Return the bins per trial. Raises ArrayError for an array that is missing or of another shape."""
    for name in (_COUNTS, *columns, *signals):
        if name not in arrays:
            near = difflib.get_close_matches(name, arrays, 1, cutoff=0.8)
            hint = f"is '{near[0]}' meant?" if near else f"it holds: {', '.join(arrays)}"
            hint += "; name another one in the config" if name != _COUNTS and not near else ""
            raise ArrayError(f"no array '{name}'; {hint}")
    counts = arrays[_COUNTS].shape
    if len(counts) not in (2, 3) or 0 in counts:
        raise ArrayError(f"'{_COUNTS}' has the shape {list(counts)}; trials × bins × units are needed")
    num_trials, num_bins = counts[0], counts[1] if len(counts) == 3 else 1
    _check_kind(arrays[_COUNTS], "iuf")
    for name in (*columns, *((_LENGTH,) if _LENGTH in arrays else ())):
        _check_shape(arrays[name], (num_trials,), 1)
        _check_kind(arrays[name], "iu" if name == _LENGTH else "biufU")
    for name in signals:
        _check_shape(arrays[name], (num_trials, num_bins), len(arrays[name].shape))
        _check_kind(arrays[name], "iuf")
    return num_bins


def _check_shape(array: NpzArray, start: tuple[int, ...], num_axes: int) -> None:
    if array.shape[: len(start)] != start or len(array.shape) != num_axes:
        raise ArrayError(
            f"'{array.name}' has the shape {list(array.shape)}; that of '{_COUNTS}' asks for {list(start)}"
        )


def _check_kind(array: NpzArray, kinds: str) -> None:
    if np.dtype(array.dtype).kind not in kinds:
        raise ArrayError(f"'{array.name}' has the type {np.dtype(array.dtype)}, which cannot be used here")
