"""`voxray fetch`: published weights from the hub into the user's cache."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from voxray.cli.output import print_notes
from voxray.config.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("fetch")(fetch)


def fetch(
    name: Annotated[Literal["prior", "voxel2clip"], typer.Argument(help="which part's weights")],
    revision: Annotated[str, typer.Option(help="branch, tag or commit in the hub")] = "main",
    sha256: Annotated[str, typer.Option(help="what the file must have; default: what the hub states")] = "",
    max_gb: Annotated[float, typer.Option(min=0, help="larger files are not fetched")] = 8.0,
    cache_dir: Annotated[
        Path | None, typer.Option(help="folder to keep it in; default: in the user's cache")
    ] = None,
    repo: Annotated[str, typer.Option(help="another repository of the hub; --file names its file")] = "",
    file: Annotated[str, typer.Option(help="another file of the repository")] = "",
) -> None:
    """Fetch published weights once and print their path: training.parts.prior=$(voxray fetch prior).

    The file is verified by its sha256 at each call; the hub is asked in the first alone.
    """
    from platformdirs import user_cache_path

    from voxray.nn import fetch as weights

    known = weights.PUBLISHED[name]
    if repo and not file:
        raise InputError(f"--repo {repo}: name the file in it with --file")
    wanted = weights.Published(repo or known.repo, file or known.file)
    folder = (cache_dir or user_cache_path("voxray") / "fetched").absolute()
    try:
        found = weights.fetch(wanted, folder, int(max_gb * 1e9), revision, sha256)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    except OSError as error:
        raise InputError(
            f"{name}: '{folder}' cannot be written: {error.strerror or error}; name another with --cache-dir"
        ) from error
    if found.commit:
        by = {"given": "as --sha256 says", "hub": "as the hub states", "": "trusted as it came"}
        print_notes(
            [
                f"{name}: {wanted.repo} at commit {found.commit}, {found.num_bytes / 1e9:.2f} GB, sha256 "
                f"{found.sha256} ({by[found.stated_by]}); recorded beside the file and compared at each use"
            ]
        )
    print(found.path)
