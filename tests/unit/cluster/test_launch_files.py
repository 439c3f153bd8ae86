"""What `voxray launch` writes: a script that bash reads, saves and requeues; a manifest that YAML reads."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.cluster.commands import checked_command, name_of
from voxray.cluster.launch_files import Launch, kuberay_job, slurm_script
from voxray.config.errors import InputError

WORDS = ("train", "cxr_memory/dev_fast", "run.name=a b'c\"d$(touch x)`id`", "x={y: 1}")


def parsed_by_bash(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize("nodes", [1, 8])
def test_bash_reads_the_script(nodes: int, gpus: int):
    text = slurm_script(Launch(WORDS, "name", nodes, gpus), "2-00:00:00")
    assert parsed_by_bash(text).stderr == ""
    assert (f"#SBATCH --gpus-per-node={gpus}\n" in text) == bool(gpus)
    assert f"#SBATCH --nodes={nodes}\n#SBATCH" in text
    directives = [n for n, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")]
    assert directives[-1] < text.splitlines().index("set -euo pipefail")  # sbatch stops at the first command


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1, max_size=4))
def test_no_word_of_a_command_becomes_shell_or_yaml(words: list[str]):
    launch = Launch(("train", *words), "name", 2, 1)
    script = slurm_script(launch, "1:00:00")
    (line,) = [line for line in script.splitlines() if line.startswith("  python -m voxray")]
    assert shlex.split(line)[3:-1] == ["train", *words]
    job = yaml.safe_load(kuberay_job(launch, "image:1"))
    assert shlex.split(job["spec"]["entrypoint"])[3:] == ["train", *words]
    assert set(job["spec"]["rayClusterSpec"]["authOptions"]) == {"mode"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: slurm_script(Launch(WORDS, "a\n#SBATCH --x", 1, 0), "1:00:00"), "is no name"),
        (lambda: slurm_script(Launch(("train", "a\nrm -rf ."), "a", 1, 0), "1:00:00"), "no line of a script"),
        (lambda: slurm_script(Launch(WORDS, "a", 1, 0), "1 day"), "is no time of SLURM's"),
        (lambda: kuberay_job(Launch(WORDS, "a", 1, 0), "image\nx: 1"), "is no image's name"),
        (lambda: kuberay_job(Launch(WORDS, "_", 1, 0), "image"), "has no letter or digit"),
        (lambda: checked_command([]), "which command?"),
        (lambda: checked_command(["train", "x", "logging.wandb.api_key=abc"]), "looks like a secret"),
        (lambda: checked_command(["rm", "-rf"]), "neither a command that can be sent"),
        (lambda: name_of(["train", "run.name=../up"]), "is no name"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_sentence(make, message: str):
    with pytest.raises(InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_number_is_no_secret():
    assert checked_command(["train", "x", "model.blank_token=0"])[2] == "model.blank_token=0"


def test_a_file_alone_says_which_command_it_is_for():
    assert checked_command(["cxr_memory/dev_fast"])[0] == "train"
    assert checked_command(["search_spaces/cxr_memory/quick.yaml"])[0] == "tune"
    assert checked_command(["search_spaces/cxr_memory/ablate_quick.yaml"])[0] == "ablate"
    assert name_of(["train", "cxr_memory/dev_fast", "training.epochs=2"]) == "dev_fast"
    assert name_of(["train", "cxr_memory/dev_fast", "run.name=mine"]) == "mine"


# The driver notes that it runs, and on SIGTERM that it saved; it ends with the exit code of `voxray train`.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
def end(number, frame):
    Path("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
said = [os.environ["RAY_ADDRESS"], os.environ["RAY_AUTH_MODE"], str(sys.argv[3:])]
Path("started").write_text(" ".join(said))
code = Path("code")
while not code.exists():
    time.sleep(0.02)
sys.exit(int(code.read_text()))
"""
SCONTROL = (
    '#!/usr/bin/env bash\nif [[ $1 == show ]]; then echo localhost; else echo "$@" >> scontrol.txt; fi\n'
)
# srun and `ray symmetric-run` run what follows their options, as on one machine.
SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
RAY = '#!/usr/bin/env bash\nwhile [[ $1 != -- ]]; do shift; done\nshift\n"$@"\n'


@pytest.fixture
def job(tmp_path: Path):
    """The script, started where srun, scontrol and ray only do what one machine without SLURM can."""
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    python = f'#!/usr/bin/env bash\nif [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi\n'
    python += f'exec {sys.executable} {tmp_path}/driver.py "$@"\n'
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "ray": RAY, "python": python}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (tmp_path / "driver.py").write_text(DRIVER)
    script = tmp_path / "job.sh"
    script.write_text(slurm_script(Launch(("train", "a b"), "name", 1, 0), "1:00:00"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SLURM_JOB_ID": "77",
                   "SLURM_JOB_NODELIST": "localhost", "TMPDIR": str(tmp_path)}  # fmt: skip
    process = subprocess.Popen(["bash", str(script)], cwd=tmp_path, env=environment)
    try:
        wait_for(tmp_path / "started")
        yield process, tmp_path
    finally:
        process.kill()
        (tmp_path / "code").write_text("0")


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path} was not written"
        time.sleep(0.02)


def test_a_signal_before_the_end_saves_the_run_and_puts_the_job_back(job):
    process, folder = job
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 130
    assert (folder / "saved").exists()
    assert (folder / "scontrol.txt").read_text() == "requeue 77\n"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_that_ends_by_itself_keeps_its_exit_code_and_is_not_put_back(job, code: int):
    process, folder = job
    (folder / "code").write_text(str(code))
    assert process.wait(30) == code
    assert not (folder / "scontrol.txt").exists()


def test_the_script_makes_a_token_that_only_its_user_reads(job):
    _, folder = job
    token = folder / ".ray/auth_token"
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    address, mode, words = (folder / "started").read_text().split(" ", 2)
    assert address.endswith(":6379")
    assert (mode, words) == ("token", "['train', 'a b']")
