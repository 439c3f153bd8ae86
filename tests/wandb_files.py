"""Reads the files that W&B keeps a run in, for tests: what was sent, record by record."""

import struct
from pathlib import Path
from typing import Any


def wandb_records(folder: Path) -> list[Any]:
    """The records of a run's .wandb file: LevelDB's log format, 7 bytes of header, blocks of 32 KiB."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its process writes the file's end after the run was finished
    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    place, parts, records = 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records
