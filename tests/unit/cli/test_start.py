"""What must answer fast imports neither torch nor ray; errors have their exit codes and no traceback."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SLOW = ("torch", "ray", "numpy", "pandas", "optuna", "pyarrow")
# Runs the command line, then names the slow modules that it imported on its last line of stderr.
WATCHED = f"""
import sys
from voxray.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *[name for name in {SLOW} if name in sys.modules], file=sys.stderr)
"""


def voxray(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"},
    )


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        (["--help"], 0, "show"),
        (["--version"], 0, "0."),
        (["train", "--help"], 0, "EXPERIMENT"),
        (["ls", "experiments"], 0, "dev_fast"),
        (["ls", "tasks", "--json"], 0, '"cxr_memory"'),
        (["ls", "spaces"], 0, ""),
        (["ls", "datasets"], 0, ""),
        (["ls", "runs"], 0, ""),
        (["show", "cxr_memory/dev_fast"], 0, "training"),
        (["show", "cxr_memory", "--schema"], 0, '"$schema"'),
    ],
)
def test_what_needs_no_model_imports_no_torch_and_no_ray(arguments: list[str], code: int, out: str) -> None:
    done = voxray(*arguments)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, "imported:"), done.stderr
    assert out in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "experiments/cxr_memory/dev_fast.yaml", "training.bath_size=4"],
            "did you mean training.batch_size (int",
        ),
        (["train", "dev_fats"], "did you mean dev_fast"),
        (["train", "cxr_memory/dev_fast", "task=cxr_memroy"], "did you mean 'cxr_memory'?"),
        (["train", "cxr_memory/dev_fast", "task=no_module:Task"], "'no_module:Task' cannot be imported"),
        (["train"], "which experiment?"),
        (
            ["show", "cxr_memory/dev_fast", "stages.0.epochs=1"],
            "entry 0 of 'stages' does not exist: the list is empty",
        ),
        (["show", "cxr_memory/dev_fast", "words"], "'words' is not an override; write key=value"),
        (["show", "cxr_memory/dev_fast", "baseline_effv2s"], "'baseline_effv2s' is not an override"),
        (["ls", "nonsense"], "'nonsense' is not one of"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_input_exits_with_2_fast_and_without_a_traceback(arguments: list[str], message: str) -> None:
    before = cpu_seconds_of_children()
    done = voxray(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "imported:"
    assert (
        cpu_seconds_of_children() - before < 2
    )  # CPU time, as the machine may be busy; alone it is the wall time


def test_python_dash_m_is_the_same_program() -> None:
    command = ["-m", "voxray", "show", "cxr_memory/dev_fast", "training.bath_size=4"]
    done = subprocess.run([sys.executable, *command],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 2
    assert "batch_size" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        ("InputError('the mend', 'another')", 2, "error: the mend\nerror: another\n"),
        ("RunError('it failed')", 1, "error: it failed\n"),
        ("KeyboardInterrupt()", 130, ""),
    ],
)
def test_exit_codes(error: str, code: int, err: str) -> None:
    program = f"""
import voxray.cli.ls as ls
from voxray.config.errors import InputError, RunError
def broken(_):
    raise {error}
ls.LISTS["tasks"] = broken
from voxray.cli.main import main
main(["ls", "tasks"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert done.stderr.endswith(err)


def test_what_nobody_expected_keeps_its_traceback_and_exits_with_1() -> None:
    program = "import voxray.cli.ls as ls\nls.LISTS['tasks'] = lambda _: 1 / 0\n"
    program += "from voxray.cli.main import main\nmain(['ls', 'tasks'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
