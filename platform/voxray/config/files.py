"""Files of settings: `_base_` inheritance inside the project or next to the file, deepest base first."""

from pathlib import Path

from voxray.config.errors import InputError
from voxray.config.tree import Node
from voxray.config.yaml import read_yaml

BASE = "_base_"


def project_root(start: Path) -> Path | None:
    """Return the nearest folder at or above `start` that has an `experiments/` folder."""
    start = start.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "experiments").is_dir()), None)


def display(path: Path) -> str:
    """Return a path as a person standing in the working directory would type it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def read_layers(path: Path) -> tuple[list[Node], list[str]]:
    """Return the maps of a file's bases, deepest first, then its own, all without `_base_`; and the problems.

    Raises InputError for a file that is no map, a cycle, and a base that is missing or outside the project.
    """
    return _read(path.resolve(), ())


def _read(path: Path, above: tuple[Path, ...]) -> tuple[list[Node], list[str]]:
    name = display(path)
    if path in above:
        raise InputError(
            f"`{BASE}` goes round in a circle: {' → '.join(map(display, (*above, path)))}; remove one of them"
        )
    root, problems = read_yaml(path, name)
    if root.value is None:
        raise InputError(f"{name}: is empty; write `task: …` or `{BASE}: …` and the values that differ")
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "one value"
        raise InputError(f"{name}: must be a map of `key: value` lines, not {kind}")
    layers: list[Node] = []
    for base, source in _bases(root):
        more, found = _read(_inside(path, base, source), (*above, path))
        layers += more
        problems += found
    own = {key: child for key, child in root.value.items() if key != BASE}
    return [*layers, Node(own, name)], problems


def _bases(root: Node) -> list[tuple[str, str]]:
    node = root.get((BASE,))
    if node is None:
        return []
    found: list[tuple[str, str]] = []
    for entry in node.value if isinstance(node.value, list) else [node]:
        if not isinstance(entry.value, str):
            raise InputError(
                f"{entry.source}: `{BASE}` is the path of a file, or a list of them, relative to this file"
            )
        found.append((entry.value, entry.source))
    return found


def _inside(path: Path, base: str, source: str) -> Path:
    target = (path.parent / base).resolve()
    if not any(
        target.is_relative_to(folder) for folder in (path.parent, project_root(path.parent)) if folder
    ):
        raise InputError(
            f"{source}: `{BASE}: {base}` lies outside the project and not next to this file; copy it inside"
        )
    if not target.is_file():
        raise InputError(f"{source}: `{BASE}: {base}`: there is no file {display(target)}")
    return target
