"""The house's shape, by reading every source file: who may import whom, where Ray may be, how long it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PLATFORM = Path(__file__).resolve().parents[2] / "platform"
SOURCE = PLATFORM / "voxray"
FILES = sorted(SOURCE.rglob("*.py"))

LEAVES = {"nn", "losses", "metrics"}
BELOW_TRAIN = {"data", "core", "config"} | LEAVES
# layer → the layers it may import besides itself (DESIGN.md section 2)
MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "core": {"config"},
    "data": {"core", "config"},
    "train": BELOW_TRAIN,
    "tune": {"train"} | BELOW_TRAIN,
    "report": {"train"} | BELOW_TRAIN,
    "cluster": {"train"} | BELOW_TRAIN,
    "cli": {"tune", "report", "cluster", "train"} | BELOW_TRAIN,
    "tasks": {"core", "config", "data.formats"} | LEAVES,
    "testing": {"cluster", "tune", "train"} | BELOW_TRAIN,
    **{leaf: set() for leaf in LEAVES},
}
RAY_FOLDERS = ("data/", "tune/", "cluster/", "testing/")
RAY_FILES = ("train/worker.py", "train/launch.py")
SLOW = {"torch", "ray", "numpy", "pandas", "torchvision", "timm", "optuna", "sklearn", "plotly", "pyarrow"}


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Yield the dotted name of every module that a file imports, `from a import b` as `a.b`."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def is_config_module(dotted: list[str]) -> bool:
    """Files named `config.py` are pure data that anyone may import: voxray.train.config.TrainingConfig."""
    return "config" in dotted[2:4]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0]
    if path.parent == SOURCE:
        return  # __init__ and __main__
    for dotted in imports(path):
        parts = dotted.split(".")
        if (
            parts[0] != "voxray"
            or parts[1] == layer
            or is_config_module(parts)
            or dotted == "voxray.__version__"
        ):
            continue
        allowed = MAY_IMPORT[layer]
        assert parts[1] in allowed or ".".join(parts[1:3]) in allowed, (
            f"{name_of(path)} imports {dotted}; {layer} may import any config.py and {sorted(allowed)}"
        )


@pytest.mark.parametrize("path", [f for f in FILES if name_of(f).startswith("tasks/")], ids=name_of)
def test_tasks_do_not_import_each_other(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[1]
    others = {
        dotted
        for dotted in imports(path)
        if dotted.startswith("voxray.tasks.") and dotted.split(".")[2] != own
    }
    assert not others, (
        f"{name_of(path)} imports another task ({others}); move what both need to nn, losses or metrics"
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ray_is_imported_only_where_it_may_be(path: Path) -> None:
    name = name_of(path)
    if name.startswith(RAY_FOLDERS) or name in RAY_FILES:
        return
    assert not [dotted for dotted in imports(path) if dotted.split(".")[0] == "ray"], f"{name} imports ray"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_but_connect_calls_ray_init(path: Path) -> None:
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init"
    ]
    assert not calls or name_of(path) == "cluster/connect.py", (
        f"{name_of(path)}:{calls}: use cluster/connect.py"
    )


@pytest.mark.parametrize(
    "path",
    [f for f in FILES if name_of(f).startswith(("cli/", "config/")) or f.name == "config.py"],
    ids=name_of,
)
def test_the_command_line_and_configs_import_nothing_slow(path: Path) -> None:
    slow = {dotted.split(".")[0] for dotted in imports(path, top_level_only=True)} & SLOW
    assert not slow, (
        f"{name_of(path)} imports {slow} at module level; import inside the function that needs it"
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{name_of(path)} is asking to be two files"
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no module docstring"


def test_platform_itself_is_no_package() -> None:
    assert not (PLATFORM / "__init__.py").exists(), "it would shadow Python's own `platform`"


def test_the_rules_cover_every_folder() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MAY_IMPORT)
