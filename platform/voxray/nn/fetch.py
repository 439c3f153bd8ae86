"""Published weights, fetched from the hub once: bounded in bytes, verified by sha256, never opened.

Nobody states the sha256 of these files but the hub itself. So what is compared is, in this order: what the
user gives, what the hub states, and, from the second use on, what the first fetch recorded beside the file,
as `sha256sum -c` reads it.
"""

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock

from voxray.nn.hub import loading_problem

Name = Literal["prior", "voxel2clip"]
SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Published:
    """A file of weights in a repository of the hub."""

    repo: str
    file: str


# Both as fMRI-reconstruction-NSD's own src/download.sh names them.
PUBLISHED: dict[Name, Published] = {
    "prior": Published("nousr/conditioned-prior", "vit-l-14/aesthetic/best.pth"),
    "voxel2clip": Published(
        "jimgoo/fmri-diffusion-prior", "clip_image_vitL_2stage_mixco_lotemp_125ep_subj01_best.pth"
    ),
}


@dataclass(frozen=True)
class Fetched:
    """A file that is here: its sha256, its size, and, where it came now, its commit and who stated the hash
    (`given`, `hub`, or nobody).
    """

    path: Path
    sha256: str
    num_bytes: int
    commit: str = ""
    stated_by: Literal["given", "hub", ""] = ""


def fetch(
    published: Published, folder: Path, limit_bytes: int, revision: str = "main", sha256: str = ""
) -> Fetched:
    """Return the file, fetched below `folder` where it is not there; then the hub is not asked.

    Raises ValueError, a sentence with the mend, for a file that cannot be had, is larger than `limit_bytes`,
    or has another sha256 than it should have; such a file is not kept when it comes.
    """
    sha256 = sha256.lower()
    if sha256 and not SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 '{sha256}' is no sha256: 64 digits 0-9a-f, as `sha256sum` prints them")
    if PurePosixPath(published.file).is_absolute() or ".." in PurePosixPath(published.file).parts:
        raise ValueError(f"'{published.file}' leads out of the repository; name a file in it")
    place = folder / _as_name(published.repo) / _as_name(revision)
    path = place / published.file
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        if path.exists() and _record(path).exists():
            return _kept(path, sha256)
        return _fetched(published, place, revision, sha256, limit_bytes)


def _as_name(text: str) -> str:
    """Return a repository's id or a revision as a folder's name."""
    return text.replace("/", "--")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _kept(path: Path, sha256: str) -> Fetched:
    recorded = _record(path).read_text(encoding="utf-8").partition(" ")[0]
    if sha256 not in ("", recorded):
        raise ValueError(
            f"'{path}' was fetched with the sha256 {recorded}, not {sha256}; remove it to fetch it anew, or "
            "name the revision that has it"
        )
    found, num_bytes = _hashed(path)
    if found != recorded:
        raise ValueError(
            f"'{path}' has changed since it was fetched: its sha256 is {found}, {_record(path).name} says "
            f"{recorded}; remove it and fetch it anew"
        )
    return Fetched(path, found, num_bytes)


def _fetched(published: Published, place: Path, revision: str, sha256: str, limit_bytes: int) -> Fetched:
    """Ask the hub what the file is, then download and verify it; the record is written last."""
    copy = f"download {published.file} elsewhere and name that file in the place of the command"
    try:
        facts = _facts(published, revision)
        stated = facts.etag if SHA256.fullmatch(facts.etag or "") else ""
        _check_before(published, facts.size, stated, sha256, limit_bytes)
        path = _downloaded(published, place, facts.commit_hash or revision)
    except _RefusedError:
        raise
    except Exception as error:  # the hub's client lets its HTTP library's errors through
        raise ValueError(loading_problem(published.repo, error, copy)) from error
    found, num_bytes = _hashed(path)
    wanted, who = (sha256, "given") if sha256 else (stated, "hub") if stated else (found, "")
    if found != wanted:
        path.unlink()
        raise ValueError(
            f"'{published.file}' of '{published.repo}' came with the sha256 {found}, it should be {wanted}; "
            "it is removed: fetch it again, and do not use it if that goes on"
        )
    partial = _record(path).with_suffix(f".partial-{os.getpid()}")
    partial.write_text(f"{found}  {path.name}\n", encoding="utf-8")
    partial.rename(_record(path))
    return Fetched(path, found, num_bytes, facts.commit_hash or revision, who)


class _RefusedError(ValueError):
    """The hub's answer is not wanted; the message is for the user."""


def _check_before(
    published: Published, num_bytes: int | None, stated: str, sha256: str, limit_bytes: int
) -> None:
    """Raise before anything is downloaded that could not be kept."""
    if num_bytes is None:
        raise _RefusedError(f"the hub does not say how large '{published.file}' is, so no limit would hold")
    if num_bytes > limit_bytes:
        raise _RefusedError(
            f"'{published.file}' of '{published.repo}' has {num_bytes / 1e9:.2f} GB, and at most "
            f"{limit_bytes / 1e9:.2f} GB are fetched; raise the limit (--max-gb)"
        )
    if sha256 and stated not in ("", sha256):
        raise _RefusedError(
            f"'{published.file}' of '{published.repo}' has the sha256 {stated} in the hub, not {sha256}; "
            "name the revision that has it, or mend the sha256"
        )


def _facts(published: Published, revision: str) -> Any:
    """Return the hub's size, etag (the sha256 of a large file) and commit of the file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    return get_hf_file_metadata(hf_hub_url(published.repo, published.file, revision=revision))


def _downloaded(published: Published, place: Path, commit: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return Path(hf_hub_download(published.repo, published.file, revision=commit, local_dir=place))


def _hashed(path: Path) -> tuple[str, int]:
    """Return a file's sha256 and its size in bytes."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
    return digest.hexdigest(), num_bytes
