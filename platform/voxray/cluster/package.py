"""The package that a submitted job runs from: which files of the folder are sent, which are left out."""

from dataclasses import dataclass
from pathlib import Path

from voxray.config.errors import InputError

MAX_MB = 50.0  # Ray refuses more than 500 MB; this program with its experiments has about 3
NUM_SHOWN = 5
# Left out whatever the ignore files say: they hold secrets, and everybody on the cluster can read a package.
NEVER_SENT = (".env", ".env.*", "*.pem", "*.key", ".netrc", "auth_token", "id_rsa", "id_ed25519", ".git/")


@dataclass(frozen=True)
class Package:
    """The files that are sent (path below the folder → bytes), and what is left out of its first level."""

    folder: Path
    files: dict[str, int]
    left_out: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        """Their size together, before it is compressed."""
        return sum(self.files.values()) / 1e6

    def lines(self) -> list[str]:
        """Return what the user is told."""
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return [f"package: {len(self.files)} files, {self.megabytes:.1f} MB{left_out}"]


def package_of(folder: Path) -> Package:
    """Return what Ray would send of a folder, by Ray's own rules (.gitignore, .rayignore, NEVER_SENT).

    Raises InputError where that is more than MAX_MB, naming the largest files.
    """
    import logging

    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    folder = folder.absolute()
    files: dict[str, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = [_get_excludes(folder, list(NEVER_SENT))]
    _dir_travel(folder, excludes, take, include_gitignore=True, logger=logging.getLogger(__name__))
    sent = {name.split("/")[0] for name in files}
    left_out = (path for path in folder.iterdir() if path.name not in sent)
    package = Package(folder, files, tuple(sorted(path.name + "/" * path.is_dir() for path in left_out)))
    if package.megabytes > MAX_MB:
        largest = sorted(files, key=lambda name: -files[name])[:NUM_SHOWN]
        shown = ", ".join(f"{name} ({files[name] / 1e6:.0f} MB)" for name in largest)
        raise InputError(
            f"{folder} has {package.megabytes:.0f} MB to send, more than {MAX_MB:.0f}: {shown}; list what a "
            "job does not need in .rayignore, and name data by a path that the cluster's machines have"
        )
    return package
