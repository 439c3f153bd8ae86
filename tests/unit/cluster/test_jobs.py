"""`voxray submit` without a cluster: what is sent, what is refused, logs once, the driver's own exit code."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from voxray.cluster import jobs
from voxray.cluster.auth import dashboard_address
from voxray.cluster.package import package_of
from voxray.config.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[3]


class Cluster:
    """Answers as Ray's Jobs API: statuses one after the other, the log from its beginning at each call."""

    def __init__(self, log: list[list[str]] = (), statuses: list[str] = (), code: int | None = None) -> None:
        self.log, self.statuses, self.code = list(log), list(statuses), code
        self.known: dict[str, str] = {}
        self.stopped: list[str] = []

    def submit_job(self, **request) -> str:
        self.request = request
        return request["submission_id"]

    def list_jobs(self) -> list:
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.known.items()]

    def get_job_info(self, job: str):
        if job == "unknown":
            raise RuntimeError("Request failed with status code 404")
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return SimpleNamespace(
            status=SimpleNamespace(value=status), driver_exit_code=self.code, message="why"
        )

    def stop_job(self, job: str) -> bool:
        self.stopped.append(job)
        return True

    async def tail_job_logs(self, job: str):
        for text in self.log.pop(0):
            if text == "BREAK":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0)
    monkeypatch.setattr(jobs, "RECONNECT_S", 0)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 137, 137), ("FAILED", None, 1), ("STOPPED", -15, 130)],
)
def test_the_exit_code_is_the_drivers(status: str, driver: int | None, code: int):
    assert jobs.follow(Cluster([["a"]], [status], driver), "mine", lambda text: None) == code


def test_a_broken_connection_is_made_again_and_no_line_is_written_twice():
    log = [["one\ntw", "o\n", "BREAK"], ["one\n", "two\nthr", "BREAK"], ["one\ntwo\nthree\n", "four\n"]]
    cluster, written = Cluster(log, ["RUNNING", "RUNNING", "SUCCEEDED"], 0), []
    assert jobs.follow(cluster, "mine", written.append) == 0
    assert "".join(written) == "one\ntwo\nthree\nfour\n"


def test_a_job_is_stopped_once_and_waited_for():
    cluster = Cluster(statuses=["RUNNING", "RUNNING", "STOPPED"])
    assert jobs.stop(cluster, "mine") == 130
    assert cluster.stopped == ["mine"]
    ended = Cluster(statuses=["SUCCEEDED"], code=0)
    assert (jobs.stop(ended, "mine"), ended.stopped) == (0, [])


@pytest.mark.parametrize("ask", [jobs.stop, lambda client, job: jobs.follow(client, job, print)])
def test_a_job_that_is_not_there(ask):
    with pytest.raises(RunError, match="there is no job 'unknown'"):
        ask(Cluster([[]]), "unknown")


def test_the_runs_name_is_the_jobs_and_a_second_one_is_numbered():
    cluster = Cluster()
    assert jobs.free_id(cluster, "dev_fast") == "dev_fast"
    cluster.known = {"dev_fast": "FAILED", "dev_fast-2": "STOPPED", "other": "RUNNING"}
    assert jobs.free_id(cluster, "dev_fast") == "dev_fast-3"
    cluster.known["dev_fast-2"] = "RUNNING"
    with pytest.raises(InputError, match="'dev_fast-2' runs already"):
        jobs.free_id(cluster, "dev_fast")


def test_the_command_reaches_the_cluster_word_by_word():
    cluster = Cluster()
    jobs.submit(cluster, ("train", "x", "run.name=a b;rm"), "x", {"env_vars": {}})
    assert cluster.request["entrypoint"] == "python -m voxray train x 'run.name=a b;rm'"
    assert cluster.request["submission_id"] == "x"


def test_the_repositorys_environment_runs_the_submitted_tree_and_stops_gently():
    environment = jobs.runtime_env(ROOT / "runtime_env.yaml", ROOT)
    assert environment["env_vars"]["PYTHONPATH"] == "platform"
    assert environment["env_vars"]["RAY_AUTH_MODE"] == "token"
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 3  # Ray's own, too short to save
    assert environment["working_dir"] == str(ROOT)
    # `ray job submit --runtime-env` reads the file alone, so what it needs stands there.
    assert yaml.safe_load((ROOT / "runtime_env.yaml").read_text())["env_vars"] == environment["env_vars"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env_vars: {WANDB_API_KEY: canary}", "env_vars.WANDB_API_KEY looks like a secret"),
        ("env_vars: {HF_TOKEN: canary}", "looks like a secret"),
        ("env_vars: [a]", "must be a map of names"),
        ("- a", "must be a map"),
        ("a: !!python/object/apply:os.system [true]", "tag"),
    ],
)
def test_a_runtime_env_that_is_wrong_or_holds_a_secret(tmp_path: Path, text: str, message: str):
    file = tmp_path / "runtime_env.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        jobs.runtime_env(file, tmp_path)
    assert "canary" not in str(raised.value)


def test_what_a_clean_checkout_sends_is_small_and_has_what_a_job_needs():
    package = package_of(ROOT)
    assert package.megabytes < 10
    assert {"platform/voxray/__init__.py", "platform/voxray/cluster/templates/slurm.sh.j2"} <= set(
        package.files
    )
    assert {"experiments/cxr_memory/dev_fast.yaml", "runtime_env.yaml"} <= set(package.files)
    assert {"tests/", "docs/"} <= set(package.left_out)
    assert not [
        name for name in package.files if name.startswith(("tests/", "docs/", ".git/", "runs/", ".venv/"))
    ]
    assert "package: " in package.lines()[0]


def test_secrets_and_ignored_files_stay_at_home(tmp_path: Path):
    for name in (
        ".env",
        ".env.local",
        "server.pem",
        "a/id_rsa",
        "a/.netrc",
        ".ray/auth_token",
        "skip/x",
        "a/keep.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("canary")
    (tmp_path / ".rayignore").write_text("skip/\n")
    package = package_of(tmp_path)
    assert set(package.files) == {".rayignore", "a/keep.py"}
    assert package.left_out == (".env", ".env.local", ".ray/", "server.pem", "skip/")


def test_what_is_left_out_here_is_left_out_by_ray_too(tmp_path: Path):
    from zipfile import ZipFile

    from ray._private.runtime_env.packaging import create_package

    for name in (".env", "a/id_rsa", "a/keep.py", "b.py", "skip/x"):
        (tmp_path / "tree" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "tree" / name).write_text("text")
    (tmp_path / "tree/.gitignore").write_text("skip/\n")
    excludes = jobs.runtime_env(tmp_path / "none.yaml", tmp_path / "tree")["excludes"]
    create_package(str(tmp_path / "tree"), tmp_path / "p.zip", include_gitignore=True, excludes=excludes)
    sent = {name for name in ZipFile(tmp_path / "p.zip").namelist() if not name.endswith("/")}
    assert sent == set(package_of(tmp_path / "tree").files) == {".gitignore", "a/keep.py", "b.py"}


def test_a_package_that_is_too_large_names_its_largest_file(tmp_path: Path):
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(InputError, match=r"60 MB to send, more than 50: data\.bin \(60 MB\)"):
        package_of(tmp_path)


@pytest.mark.parametrize(
    ("given", "variables", "address"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("head", {}, "http://head:8265"),
        ("head:1234", {"RAY_ADDRESS": "http://other:1"}, "http://head:1234"),
        ("https://lab.example/", {}, "https://lab.example"),
        ("[::1]", {}, "http://[::1]:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:2"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "http://b:2"}, "http://b:2"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
    ],
)
def test_where_the_cluster_is(given, variables, address, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dashboard_address(given) == address


def test_without_a_token_or_a_cluster_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("RAY_A")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="there is no token in"):
        jobs.connect_jobs("127.0.0.1:9")
