"""One value of a MosaicML MDS shard: an encoding and its bytes → a number, text, bytes, or an array.

Layouts as in `streaming/base/format/mds/encodings.py` of mosaicml-streaming 0.13; all integers are
little-endian. Images (`jpeg`, `png`) stay encoded. Pickles (`pkl`) are refused.
"""

import json
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

_NUMBERS = {
    "int": "<i8",
    **{f"{kind}{bits}": f"<{kind[0]}{bits // 8}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
# The byte that stands for an array's dtype, where the encoding leaves it open.
_DTYPE_CODES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32",
    34: "float32", 64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
_SIZE_DTYPES = ("<u1", "<u2", "<u4", "<u8")


def decode(encoding: str, content: bytes) -> Any:
    """Return the value. Raises ValueError for bytes that do not fit the encoding and for one not read."""
    if problem := refused(encoding):
        raise ValueError(problem)
    kind, _, options = encoding.partition(":")
    try:
        if kind == "ndarray":
            return _array(options, content)
        if kind in _NUMBERS:
            return np.frombuffer(content, _NUMBERS[kind], count=1 if content else 0).reshape(()).item()
        return _OTHERS[kind](content)
    except (ValueError, IndexError, RecursionError, TypeError) as error:
        raise ValueError(f"is no value of the encoding '{encoding}'; fetch the shard again") from error


def refused(encoding: str) -> str | None:
    """Return why values of an encoding are not read, or None where they are."""
    kind, _, options = encoding.partition(":")
    if kind == "pkl":
        return "is stored as pickles, which can run code; write it with another encoding, e.g. ndarray"
    try:
        known = kind in _OTHERS or kind in _NUMBERS or (kind == "ndarray" and _parse_options(options))
    except ValueError:
        known = False
    return None if known else f"has the encoding '{encoding}', which is not read; write it as ndarray or jpeg"


def fixed_size(encoding: str) -> int | None:
    """Return the bytes of every value, or None where each value's size is stored."""
    kind, _, options = encoding.partition(":")
    if kind in _NUMBERS:
        return np.dtype(_NUMBERS[kind]).itemsize
    if kind != "ndarray" or not options:
        return None
    dtype, shape = _parse_options(options)
    return prod(shape) * np.dtype(dtype).itemsize if dtype and shape else None


def _parse_options(options: str) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of `float32:2,3`, each empty where it is open. Raises ValueError."""
    dtype, _, sizes = options.partition(":")
    shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
    if (dtype and dtype not in _DTYPE_CODES.values()) or any(size < 1 for size in shape):
        raise ValueError(f"'{options}' is no dtype and shape")
    return dtype, shape


def _array(options: str, content: bytes) -> np.ndarray:
    dtype, shape = _parse_options(options)
    start = 0
    if not dtype:
        dtype, start = _DTYPE_CODES.get(content[0], ""), 1
    if not dtype:
        raise ValueError("an unknown dtype")
    if not shape:
        num_axes, kind = divmod(content[start], 4)
        sizes = np.frombuffer(content, _SIZE_DTYPES[kind], count=num_axes, offset=start + 1)
        shape, start = tuple(sizes.tolist()), start + 1 + sizes.nbytes
    kind = np.dtype(dtype).newbyteorder("<")
    if prod(shape) * kind.itemsize != len(content) - start:
        raise ValueError("its sizes do not fit its bytes")
    return np.frombuffer(content, kind, offset=start).astype(dtype).reshape(shape)


def _text(content: bytes) -> str:
    return content.decode("utf-8")


_OTHERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "jpeg": bytes,
    "png": bytes,
    "str": _text,
    "str_int": lambda content: int(_text(content)),
    "str_float": lambda content: float(_text(content)),
    "str_decimal": lambda content: float(_text(content)),
    "json": lambda content: json.loads(_text(content)),
}
