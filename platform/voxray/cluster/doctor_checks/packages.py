"""Python, the pair of torch and torchvision, and the packages of the extras."""

import importlib
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from voxray.cluster.doctor_checks.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# torch and torchvision come in pairs built for each other: torch 2.N goes with torchvision 0.(N+15).
TORCHVISION_MINOR_AHEAD = 15
NOT_FOR_USERS = ("dev", "docs", "bench")


def python() -> list[Finding]:
    """Check for Python 3.11 or newer."""
    seen = ".".join(map(str, sys.version_info[:3]))
    return [Finding("python", sys.version_info >= (3, 11), seen, "install Python 3.11 or newer")]


def torch_pair() -> list[Finding]:
    """Check that torch and torchvision import together; a CPU wheel beside a CUDA wheel does not."""
    check, mend = "torch + torchvision", "install the pair of requirements.lock: `make setup`"
    try:
        torch, torchvision = version("torch"), version("torchvision")
        pair = int(torchvision.split(".")[1]) - int(torch.split(".")[1]) == TORCHVISION_MINOR_AHEAD
        importlib.import_module("torchvision")
    except PackageNotFoundError as error:
        return [Finding(check, False, f"{error.name} is not installed", mend)]
    except (ImportError, RuntimeError) as error:
        return [Finding(check, False, str(error), mend)]
    return [Finding(check, pair, f"{torch} + {torchvision}", mend)]


def extras() -> list[Finding]:
    """List the extras that are whole and those that are not; a required package that is missing is wrong."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in requires("voxray") or ()]
    lacking = {
        extra: [one for one in wanted if extra in _extras_of(one) and not _is_there(one)]
        for extra in sorted({extra for one in wanted for extra in _extras_of(one)})
    }
    required = [f"{one.name}{one.specifier}" for one in lacking.pop("", [])]
    if required:
        seen = f"missing, or of another version: {', '.join(required)}"
        return [Finding("packages", False, seen, "install what requirements.lock says: `make setup`")]
    offered = {extra: missing for extra, missing in lacking.items() if extra not in NOT_FOR_USERS}
    absent = [extra for extra, missing in offered.items() if missing]
    seen = f"extras: {', '.join(extra for extra in offered if extra not in absent) or 'none'}"
    if absent:
        seen += f"; not installed: {', '.join(absent)} (pip install 'voxray[NAME]')"
    return [Finding("packages", True, seen)]


def _extras_of(wanted: "Requirement") -> list[str]:
    """Return the extras that a requirement belongs to; `""` for what voxray always needs."""
    parts = str(wanted.marker or "").replace("'", '"').split('extra == "')[1:]
    return [part.partition('"')[0] for part in parts] or [""]


def _is_there(wanted: "Requirement") -> bool:
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False
