"""`Finding`: what a check of the doctor looked at, what it saw and the mend."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, what was seen, and the mend where it is not."""

    check: str
    ok: bool
    seen: str
    mend: str = ""
