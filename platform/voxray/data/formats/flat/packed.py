"""Unpacking bytes in memory, bounded by the size that is promised."""

from typing import Any

import pyarrow as pa

MAX_UNPACKED_BYTES = 2 << 30
_SNAPPY = "snappy"  # alone of them has no frames that end: its length stands in front
_STREAMS = {"br": "brotli", "bz2": "bz2", "gz": "gzip", "zstd": "zstd"}
PACKINGS = (*_STREAMS, _SNAPPY)


def unpack(packing: str, content: Any, num_bytes: int) -> bytes:
    """Return the `num_bytes` that `content` (bytes or an array of uint8) holds, packed as in PACKINGS.

    Raises ValueError for damaged content and for more or fewer bytes than promised.
    """
    if num_bytes > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"it unpacks to {num_bytes:,} bytes, more than {MAX_UNPACKED_BYTES:,}; unpack it first"
        )
    try:
        unpacked = _unpack(packing, pa.py_buffer(content), num_bytes)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"it cannot be unpacked ({packing}); fetch it again") from error
    if len(unpacked) != num_bytes:
        raise ValueError(f"it does not unpack to the {num_bytes:,} bytes promised; fetch it again")
    return unpacked


def _unpack(packing: str, content: pa.Buffer, num_bytes: int) -> bytes:
    if packing == _SNAPPY:
        if _snappy_length(content[:10].to_pybytes()) != num_bytes:
            return b""
        return pa.Codec(_SNAPPY).decompress(content, num_bytes, asbytes=True)
    with pa.CompressedInputStream(pa.BufferReader(content), _STREAMS[packing]) as stream:
        return stream.read(num_bytes + 1)  # one more tells that there is more than promised


def _snappy_length(head: bytes) -> int:
    """Return the number in front of a Snappy block: 7 bits a byte, lowest first."""
    length = 0
    for place, byte in enumerate(head):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return length
