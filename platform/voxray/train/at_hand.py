"""Runs and studies that a command reads, by folder or URL."""

import re
from pathlib import Path

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)")  # a Path makes one / of two


def at_hand(reference: Path) -> Path:
    """Return where a run or a study can be read: the folder, or this machine's copy of what lies at a URL.

    Raises InputError where there is nothing at the URL, or it cannot be reached.
    """
    url = _URL.fullmatch(str(reference))
    if url is None or reference.exists():
        return reference
    from voxray.train.mirror import copy_of

    return copy_of(f"{url[1]}://{url[2]}")
