"""`voxray ls`: tasks, experiments, search spaces, datasets, runs and studies, read from their files."""

import fnmatch
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from voxray.cli.output import print_table
from voxray.config.errors import InputError

Row = dict[str, Any]
Kind = Literal["tasks", "experiments", "spaces", "datasets", "runs", "studies"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("ls")(ls)


def ls(
    kind: Annotated[Kind, typer.Argument(help="tasks|experiments|spaces|datasets|runs|studies")],
    pattern: Annotated[
        str, typer.Argument(metavar="[GLOB]", help="Show only names that match, e.g. 'memory_*'.")
    ] = "*",
    storage: Annotated[
        Path | None,
        typer.Option(help="Folder to look in; default: runs/, for datasets also data/ and the cache."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List what is there. GLOB matches the name, alone or as TASK/NAME."""
    rows = [row for row in LISTS[kind](storage) if _matches(row, pattern)]
    print_table(rows, as_json, title=kind)


def tasks(_: Path | None) -> Iterator[Row]:
    """Yield the tasks of the registry, with the first line of their package's docstring."""
    import importlib

    from voxray.core.registry import TASKS

    for task, (config, _class) in TASKS.items():
        package = importlib.import_module(config.rpartition(".")[0])
        yield {"name": task, "description": (package.__doc__ or "").partition("\n")[0]}


def experiments(_: Path | None) -> Iterator[Row]:
    """Yield the project's experiments; one that does not load is listed with its first problem."""
    from voxray.config.files import display
    from voxray.core.experiment import experiment_files, load_experiment

    for file in experiment_files():
        row = {"name": file.stem, "task": file.parent.name, "file": display(file)}
        try:
            config = load_experiment(str(file)).config
        except InputError as error:
            yield row | {"description": f"does not load: {error.problems[0]}"}
            continue
        yield row | {
            "task": config.task,
            "description": config.description,
            "tags": list(config.tags),
            "hypothesis": config.hypothesis,
        }


def spaces(_: Path | None) -> Iterator[Row]:
    """Yield the project's search spaces."""
    from voxray.config.files import display, project_root, read_layers

    root = project_root(Path.cwd())
    for file in sorted((root / "search_spaces").rglob("*.yaml")) if root else []:
        row = {"name": file.stem, "task": file.parent.name, "file": display(file)}
        space: Row = {}
        try:
            for layer in read_layers(file)[0]:
                space |= layer.plain()
        except InputError as error:
            yield row | {"description": f"does not load: {error.problems[0]}"}
            continue
        yield row | {
            "experiment": Path(str(space.get("experiment", ""))).stem,
            "kind": "ablation" if "ablate" in space else "search",
            "trials": _map(space, "search").get("trials"),
            "objective": " ".join(map(str, _map(space, "objective").values())),
            "description": space.get("description", ""),
        }


def datasets(storage: Path | None) -> Iterator[Row]:
    """Yield the prepared datasets below `storage`, or below data/, runs/ and the cache of synthetic data."""
    from platformdirs import user_cache_path

    folders = [storage] if storage else [Path("data"), Path("runs"), user_cache_path("voxray") / "datasets"]
    for file in (file for folder in folders for file in _below(folder, "manifest.json", depth=4)):
        manifest = _read(file) or {}
        if not isinstance(manifest.get("shards"), list):
            continue
        counts = _map(manifest, "counts")
        yield {
            "name": file.parent.name,
            "task": _map(manifest, "recipe").get("task"),
            **{split: _map(counts, split).get("rows") for split in counts},
            "mb": round(sum(shard["bytes"] for shard in manifest["shards"]) / 1e6, 1),
            "source": _map(manifest, "source").get("path"),
            "path": str(file.parent),
        }


def runs(storage: Path | None) -> Iterator[Row]:
    """Yield the runs below `storage` (default runs/), trials of studies left out."""
    for file in _below(storage or Path("runs"), "config.json", depth=2):
        row = {"name": file.parent.name, "task": file.parents[1].name, "path": str(file.parent)}
        config = (_read(file) or {}).get("config")
        if not isinstance(config, dict):
            yield row | {"status": "config.json is broken"}
            continue
        end = _last_end(file.with_name("log.jsonl"))
        best = _map(end, "best")
        yield row | {
            "task": config.get("task"),
            "status": end.get("status", "unfinished"),
            "metric": best.get("metric"),
            "best": best.get("value"),
            "step": best.get("step"),
            "time_s": end.get("time_s"),
            "started": (_read(file.with_name("provenance.json")) or {}).get("started"),
            "tags": config.get("tags", []),
        }


def studies(storage: Path | None) -> Iterator[Row]:
    """Yield the studies below `storage` (default runs/)."""
    for file in _below(storage or Path("runs"), "study.json", depth=3):
        study, folder = _read(file) or {}, file.parent
        ablation = _read(folder / "ablation.json")
        yield {
            "name": folder.name,
            "task": folder.parents[1].name,
            "kind": "search" if ablation is None else "ablation",
            "experiment": study.get("experiment"),
            **(_search_progress(study, folder) if ablation is None else _ablation_progress(ablation)),
            "started": study.get("started"),
            "path": str(folder),
        }


def _search_progress(study: Row, folder: Path) -> Row:
    return {
        "trials": sum(path.is_dir() for path in (folder / "trials").glob("*")),
        "declared": _map(_map(study, "space"), "search").get("trials"),
        "status": "finished" if (folder / "best.yaml").is_file() else "unfinished",
    }


def _ablation_progress(ablation: Row) -> Row:
    """Return how many cells have scores, of how many."""
    cells = ablation.get("cells") or []
    done = sum(isinstance(cell, dict) and cell.get("scores") is not None for cell in cells)
    status = "finished" if done == len(cells) else "unfinished"
    return {"trials": done, "declared": len(cells), "status": status}


LISTS: dict[str, Callable[[Path | None], Iterator[Row]]] = {
    function.__name__: function for function in (tasks, experiments, spaces, datasets, runs, studies)
}


def _matches(row: Row, pattern: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for name in (row["name"], f"{row.get('task')}/{row['name']}"))


def _below(folder: Path, name: str, depth: int) -> list[Path]:
    """Return files called `name` up to `depth` folders below `folder`, sorted."""
    return sorted({path for level in range(depth + 1) for path in folder.glob("*/" * level + name)})


def _read(file: Path) -> Row | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _last_end(log: Path) -> Row:
    """Return the record that ends a run's log; empty while it is on, or after it was killed."""
    try:
        last = log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
        record = json.loads(last)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("kind") == "end" else {}


def _map(value: Row, key: str) -> Row:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
