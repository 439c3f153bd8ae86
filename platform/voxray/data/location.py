"""Whether a location is a URL, and where the local copy of what is stored at one lies."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from voxray.config.errors import InputError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
FILE = "file://"


def is_url(location: str) -> bool:
    """Whether a dataset's or a storage's location is a URL and not a local path."""
    return bool(_URL.match(location)) and not location.startswith(FILE)


def without_options(url: str) -> str:
    """Return a URL as it may be shown: its options (`?endpoint_override=…`) are left out."""
    return url.partition("?")[0]


def working_folder(storage: str) -> Path:
    """Return the folder in which the runs of `storage.path` are made: itself, or the local copy of a URL.

    Raises InputError for a URL that holds a password, which would be written to logs and configs.
    """
    if not is_url(storage):
        return Path(storage.removeprefix(FILE))
    url = urlsplit(storage)
    if "@" in url.netloc:
        raise InputError(
            f"storage.path: '{url.scheme}://…@{url.netloc.rpartition('@')[2]}{url.path}' holds credentials, "
            "which every log would show; set them in the environment (AWS_ACCESS_KEY_ID …)"
        )
    parts = [part for part in url.path.split("/") if part]
    if ".." in parts:
        raise InputError(f"storage.path: '{without_options(storage)}' must not contain '..'")
    from platformdirs import user_cache_path

    # Another server may have a bucket of the same name.
    server = f"{url.netloc}-{hashlib.sha256(url.query.encode()).hexdigest()[:8]}" if url.query else url.netloc
    return user_cache_path("voxray").joinpath("storage", url.scheme, server, *parts)
