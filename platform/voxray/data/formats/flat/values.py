"""One value as a flat dataset stores it → a value of a schema's column, or a ValueError that says why not.

Values must survive: a number that the column's dtype cannot hold is refused. Only the rounding of one float
type to another is allowed. What is missing is NaN in a float column, empty in a text one, refused elsewhere.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from voxray.core.schema import BYTES, TEXT, Column
from voxray.data.formats.npy import decode_npy

_NPY_START = b"\x93NUMPY"
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_NUMBERS = "biuf"


def fit(value: Any, column: Column) -> Any:
    """Return str, bytes, or an array of the column's dtype and shape. Raises ValueError, without names.

    A tensor comes as an array, nested lists, the bytes of an `.npy` file, or flat (in C order) where the
    schema tells all sizes but one.
    """
    if column.dtype == TEXT:
        return _text(value)
    if column.dtype == BYTES:
        return _image_bytes(value)
    return _shaped(_cast(_array(value), column.dtype), column)


def fit_constant(text: str, column: Column) -> Any:
    """Return the value that `=text` gives to every row of a column: a tensor is filled with it."""
    if column.dtype == TEXT:
        return text
    sizes = [size for size in column.shape if size is not None]
    if not column.is_tensor or len(sizes) < len(column.shape):
        raise ValueError(f"'={text}' cannot fill it: its shape is not fixed; name a column")
    return np.full(sizes, fit(text, Column(column.dtype)))


def join(values: Sequence[Any], column: Column) -> Any:
    """Return one vector of scalars that were stored in a column each."""
    scalar = Column(column.dtype)
    return np.array([fit(value, scalar) for value in values])


def cut(value: Any, length: Any) -> np.ndarray:
    """Return the entries of a padded array that count, by its length as stored."""
    array = _array(value)
    num = int(fit(length, Column("int64")))
    if array.ndim == 0 or not 0 <= num <= len(array):
        raise ValueError(f"has {len(array) if array.ndim else 'no'} entries, but its length is {num}")
    return array[:num]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes | np.bytes_):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("is no UTF-8 text; save it as UTF-8") from None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise ValueError(f"is {_kind(value)}; text or a whole number is needed")


def _image_bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
        value = value.tobytes()
    if not isinstance(value, bytes):
        raise ValueError(f"is {_kind(value)}; the bytes of a JPEG or PNG file are needed")
    if not value.startswith(IMAGE_STARTS):
        raise ValueError(f"does not start like a JPEG or PNG file ({len(value)} bytes); replace it")
    return value


def _array(value: Any) -> np.ndarray:
    """Return a numeric array, float64 with NaN where entries of a list are missing."""
    if isinstance(value, bytes):
        if not value.startswith(_NPY_START):
            what = "an encoded image" if value.startswith(IMAGE_STARTS) else "bytes that are no .npy array"
            raise ValueError(f"is {what}; store the numbers as an array or a list")
        value = decode_npy(value)
    if isinstance(value, str):
        value = _number(value)
    if value is None:
        value = np.nan
    try:
        array = np.asarray(value)
        if array.dtype == object and not isinstance(value, np.ndarray):
            array = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("is no array of numbers, or its rows differ in length") from None
    if array.dtype.kind not in _NUMBERS:
        raise ValueError(f"is {_kind(value)}; numbers are needed")
    return array


def _number(text: str) -> int | float:
    if not text.strip():
        return np.nan
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"is '{text[:40]}', which is no number") from None


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
    target = np.dtype(dtype)
    if values.dtype == target or not values.size:
        return values.astype(target, copy=False)
    with np.errstate(all="ignore"):
        made = values.astype(target)
        if values.dtype.kind in "iu" and target.kind in "iu":
            limits = np.iinfo(target)
            lost = (values < limits.min) | (values > limits.max)
        elif values.dtype.kind == "f" and target.kind == "f":
            lost = np.isfinite(values) & ~np.isfinite(made)
        else:
            lost = made.astype(values.dtype) != values
    if lost.any():
        first = values[lost].flat[0]
        if np.isnan(first):
            raise ValueError(f"is missing or NaN in {lost.sum()} of {values.size} places; {dtype} has no NaN")
        raise ValueError(f"holds values that {dtype} cannot hold ({lost.sum()} of {values.size}: {first} …)")
    return made


def _shaped(array: np.ndarray, column: Column) -> np.ndarray:
    """Return the array in the column's shape; a flat one is reshaped where at most one size is open."""
    shape = column.shape
    if array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True)):
        return array
    known = prod(size for size in shape if size is not None)
    num_open = shape.count(None)
    if array.ndim == 1 and len(shape) != 1 and num_open < 2:
        if num_open and known and array.size % known == 0:
            return array.reshape([array.size // known if size is None else size for size in shape])
        if not num_open and array.size == known:
            return array.reshape([size for size in shape if size is not None])
    wanted = "×".join("?" if size is None else str(size) for size in shape) or "a scalar"
    found = "×".join(map(str, array.shape)) or "a scalar"
    hint = "; store it nested, or set the open sizes" if array.ndim == 1 and num_open > 1 else ""
    raise ValueError(f"has the shape {found}, {wanted} is needed{hint}")


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return {"str": "text", "bytes": "bytes", "float": "a float"}.get(
        type(value).__name__, type(value).__name__
    )
