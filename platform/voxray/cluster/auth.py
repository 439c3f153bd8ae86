"""Where Ray's token and dashboard are found, by the rules of Ray 2.60. Nothing here prints a token."""

import os
from pathlib import Path

DEFAULT_DASHBOARD = "http://127.0.0.1:8265"


def token_file() -> Path:
    """Return the file that Ray reads its token from."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether there is a token to show to a cluster."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    try:
        return bool(token_file().read_text().strip())
    except OSError:
        return False


def dashboard_address(given: str | None = None) -> str:
    """Return the dashboard's URL: `given`, RAY_API_SERVER_ADDRESS, RAY_ADDRESS where it is one, else this
    machine's. `given` may be HOST, HOST:PORT or a URL.
    """
    from_ray = os.environ.get("RAY_ADDRESS", "")
    address = (
        given or os.environ.get("RAY_API_SERVER_ADDRESS") or (from_ray if "http" in from_ray[:5] else "")
    )
    if not address:
        return DEFAULT_DASHBOARD
    if "://" not in address:
        address = f"http://{address}"
    scheme, _, rest = address.rstrip("/").partition("://")
    has_port = ":" in rest.rpartition("]")[2]
    return f"{scheme}://{rest}" if has_port or scheme == "https" else f"{scheme}://{rest}:8265"
