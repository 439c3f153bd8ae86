"""Ray's Jobs API as `voxray submit` uses it: submit under a name, follow, stop, the driver's exit code."""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from voxray.cluster.auth import dashboard_address, has_token, token_file
from voxray.cluster.package import NEVER_SENT
from voxray.config.errors import InputError, RunError
from voxray.config.secrets import is_secret

POLL_S = 0.5
RECONNECT_S = 2.0
INTERRUPTED = 130
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray waits 3 s between SIGTERM and SIGKILL; a run that saves at its current update may need longer.
STOP_WAIT_S = 120
NO_SECRETS = ("RAY_AUTH_MODE",)  # says that there is a token, not which


class Client(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str:
        """Begin a job; return its id."""
        ...

    def list_jobs(self) -> Sequence[Any]:
        """Return all jobs with `submission_id` and `status`."""
        ...

    def get_job_info(self, job_id: str) -> Any:
        """Return a job with `status`, `driver_exit_code` and `message`."""
        ...

    def stop_job(self, job_id: str) -> bool:
        """Ask a job to end."""
        ...

    def tail_job_logs(self, job_id: str) -> Any:
        """Return an asynchronous iterator over pieces of a job's log, from its beginning."""
        ...


def connect_jobs(address: str | None) -> tuple[Client, str]:
    """Return a client of the cluster's Jobs API and its URL.

    Raises InputError where no cluster answers or the token is missing or wrong.
    """
    url = dashboard_address(address)
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        if not has_token():
            raise InputError(
                f"there is no token in {token_file()}: copy the cluster's there (chmod 600), or set "
                "RAY_AUTH_TOKEN; a cluster that asks for none is open to everybody (RAY_AUTH_MODE=disabled)"
            )
        os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # Ray takes it before any address that it is given
    from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    Config.initialize("")  # Ray reads the mode once; something may have imported it before
    try:
        return JobSubmissionClient(url), url
    except ConnectionError as error:
        mend = "start it, tunnel to it (`ray dashboard cluster.yaml`), or name it by --address"
        raise InputError(f"no cluster answers at {url}; {mend}") from error
    except AuthenticationError as error:
        raise InputError(
            f"{url} refuses the token of {token_file()}; copy the one of the cluster's head there"
        ) from error
    except RuntimeError as error:
        raise InputError(f"{url} is no Ray that takes jobs: {str(error).splitlines()[0]}") from error


def runtime_env(file: Path, folder: Path) -> dict[str, Any]:
    """Return a job's environment: what the file says, the folder, and what is never sent.

    Raises InputError for a file that is no map, and for a variable that looks like a secret: the Jobs API
    shows every value to everybody.
    """
    from voxray.config.yaml import read_yaml

    tree, problems = read_yaml(file, str(file)) if file.is_file() else (None, [])
    values = tree.plain() if tree is not None else {}
    if problems or not isinstance(values, dict):
        raise InputError(*(problems or [f"{file}: must be a map, e.g. `env_vars: {{NAME: value}}`"]))
    variables = values.setdefault("env_vars", {}) or {}
    if not isinstance(variables, dict):
        raise InputError(f"{file}: env_vars must be a map of names to text")
    for name, value in variables.items():
        if is_secret(name) and name not in NO_SECRETS:
            raise InputError(
                f"{file}: env_vars.{name} looks like a secret, and Ray's Jobs API shows it to everybody; set "
                "it in the environment of the cluster's machines"
            )
        variables[name] = str(value)
    variables.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(STOP_WAIT_S))
    excludes = [*values.get("excludes", []), *NEVER_SENT]
    return {**values, "env_vars": variables, "working_dir": str(folder.absolute()), "excludes": excludes}


def free_id(client: Client, name: str) -> str:
    """Return the name, or name-2, -3 … where jobs have had it: Ray takes an id once.

    Raises InputError where a job of that name runs: two would write the same run.
    """
    jobs = {job.submission_id: status_of(job) for job in client.list_jobs() if job.submission_id}
    taken = [known for known in jobs if known == name or known.rpartition("-")[0] == name]
    for known in taken:
        if jobs[known] not in ENDED:
            raise InputError(
                f"'{known}' runs already; follow it by `voxray submit --attach {known}`, or give this one "
                "another name with run.name="
            )
    number = 2
    while name in jobs and f"{name}-{number}" in jobs:
        number += 1
    return f"{name}-{number}" if name in jobs else name


def submit(client: Client, words: Sequence[str], name: str, environment: dict[str, Any]) -> str:
    """Begin `python -m voxray WORDS` on the cluster; return the job's id. Raises RunError."""
    command = shlex.join(["python", "-m", "voxray", *words])
    try:
        return client.submit_job(
            entrypoint=command, submission_id=free_id(client, name), runtime_env=environment
        )
    except RuntimeError as error:
        raise RunError(f"the cluster did not take the job: {str(error).splitlines()[0]}") from error


def follow(client: Client, job: str, write: Callable[[str], Any]) -> int:
    """Write the job's log as it comes until it has ended; return its driver's exit code.

    A connection that breaks is made again, and what was written is not written twice. Raises RunError for a
    job that is not there.
    """
    written = 0
    while True:
        written = asyncio.run(_follow_once(client, job, written, write))
        info = _info(client, job)
        if status_of(info) in ENDED:
            return exit_code(info)
        time.sleep(RECONNECT_S)


def stop(client: Client, job: str) -> int:
    """Ask a job to end, wait until it has, and return its exit code. Raises RunError where there is none."""
    info = _info(client, job)
    if status_of(info) not in ENDED:
        client.stop_job(job)
    while status_of(info) not in ENDED:
        time.sleep(POLL_S)
        info = _info(client, job)
    return exit_code(info)


def exit_code(info: Any) -> int:
    """Return what a job ended with: its driver's exit code, 130 where it was stopped, 1 where it has none."""
    status = status_of(info)
    if status == "STOPPED":
        return INTERRUPTED
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    if status == "FAILED":
        print(f"error: {info.message}", file=sys.stderr)
    return int(status != "SUCCEEDED")


def status_of(info: Any) -> str:
    """Return a job's status as text: PENDING, RUNNING or one of ENDED."""
    return str(getattr(info.status, "value", info.status))


async def _follow_once(client: Client, job: str, written: int, write: Callable[[str], Any]) -> int:
    """Write what comes after the first `written` characters; return how many there are now."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            new = text[max(0, written - seen) :]
            seen += len(text)
            if new:
                write(new)
    except (RuntimeError, OSError):
        pass  # the connection, not the job: its status is asked for next
    return max(seen, written)


def _info(client: Client, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise RunError(
            f"there is no job '{job}' on this cluster; `voxray submit --list` names them"
        ) from error
