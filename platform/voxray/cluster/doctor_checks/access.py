"""Who may use Ray here: the token, its file's rights, and a dashboard that asks for none."""

import os
import stat
import urllib.error
import urllib.request

from voxray.cluster.auth import dashboard_address, token_file
from voxray.cluster.doctor_checks.finding import Finding

_ASK_S = 2.0


def token() -> list[Finding]:
    """Check that Ray asks for a token, that there is one, and that nobody else can read its file."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    file = token_file()
    if mode.lower() == "disabled":
        return [
            Finding("token", False, "RAY_AUTH_MODE=disabled: Ray lets everybody in", "unset RAY_AUTH_MODE")
        ]
    if os.environ.get("RAY_AUTH_TOKEN"):
        return [Finding("token", True, "from RAY_AUTH_TOKEN")]
    mend = "ray get-auth-token --generate; chmod 600 ~/.ray/auth_token"
    if not file.is_file() or not file.stat().st_size:
        well = mode.lower() != "token" and not os.environ.get("RAY_AUTH_TOKEN_PATH")
        return [Finding("token", well, f"{file} is not there (`ray start` would let everybody in)", mend)]
    rights = stat.S_IMODE(file.stat().st_mode)
    if rights & 0o077:
        return [Finding("token", False, f"{file} can be read by others ({rights:04o})", f"chmod 600 {file}")]
    if file.stat().st_uid != os.geteuid():
        return [Finding("token", False, f"{file} belongs to another user", f"chown {os.geteuid()} {file}")]
    return [Finding("token", True, f"{file} ({rights:04o})")]


def open_dashboard() -> list[Finding]:
    """Check that the cluster's dashboard refuses who has no token: its Jobs API runs any command."""
    address = dashboard_address()
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=_ASK_S) as answer:  # noqa: S310
            is_open = answer.status == 200
    except urllib.error.HTTPError as error:
        seen = (
            f"{address} asks for a token ({error.code})"
            if error.code in (401, 403)
            else f"{address} answers {error.code}"
        )
        return [Finding("dashboard", True, seen)]
    except (OSError, ValueError):
        return [Finding("dashboard", True, f"none at {address}")]
    mend = "start the cluster with RAY_AUTH_MODE=token, as all files of this repository do"
    return [Finding("dashboard", not is_open, f"{address} runs commands of anybody who reaches it", mend)]
