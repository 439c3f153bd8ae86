"""Weights & Biases: one W&B run per RUN, by a stable id, over restarts and resumes.

The run is kept in files (`wandb sync` sends them) unless the user is logged in and the server answers, so
that an unreachable server loses nothing. W&B's own steps only grow: our `step` is a metric and the x axis of
all others.
"""

from __future__ import annotations

import netrc
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from voxray.train.config import WandbConfig
from voxray.train.log_tail import Record
from voxray.train.trackers.tracker import IMAGES, RunInfo, TrackerState, best_checkpoint, metrics

if TYPE_CHECKING:
    from wandb import Run, Settings

ANSWER_S = 5.0  # a server that has not answered by then is taken as absent
START_S = 15.0
FINISH_S = 15.0  # how long the driver waits
SEND_S = 10.0  # how long W&B's own process then has to send what is left
UPLOAD_S = 600.0  # with upload_best: a checkpoint may be large
EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}


class Wandb:
    """Numbers as history, figures as images, the best checkpoint as an artifact where that is asked for."""

    key = "wandb"
    name = "W&B"

    def __init__(self, config: WandbConfig) -> None:
        """Nothing is contacted before `start`."""
        self._config = config
        self.patience_s = UPLOAD_S if config.upload_best else FINISH_S
        self._run: Run | None = None
        self.why_offline = ""  # why the run is kept in files; empty where it is sent

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Begin the run, online or in files. Raises ImportError when wandb is not installed."""
        # Before wandb is imported: it would send its own errors to its makers.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._info = info
        state.id = state.id or info.key or uuid.uuid4().hex[:12]
        defaults = wandb.setup(self._settings()).settings
        self.why_offline = self._why_kept_in_files(defaults)
        try:
            self._run = self._begin(state.id, offline=bool(self.why_offline))
        except Exception as error:
            if self.why_offline:
                raise
            self.why_offline = f"the server did not take the run ({_first_line(error)})"
            # wandb's process still holds the id of the run that failed.
            self._run = self._begin(f"{state.id}-files", offline=True)
        # A folder of files holds the whole run, as does a project that has not seen it.
        state.go_to("files" if self.why_offline else self._run.path, whole=bool(self.why_offline))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if not self.why_offline:
            return f"W&B: {self._run.url}"
        return f"W&B, {self.why_offline}: send the run later by `wandb sync {self._folder}`"

    def record(self, record: Record) -> None:
        """Send a record's numbers or its figure."""
        assert self._run is not None
        match record["kind"]:
            case "step" | "epoch" | "validation":
                place = {"step": record["step"], "epoch": record.get("epoch", 0)}
                self._run.log({**place, **metrics(record)})
            case "figure":
                self._log_figure(record)

    def flush(self) -> None:
        """Nothing to do: wandb's own process has what was taken."""

    def finish(self, status: str) -> None:
        """Send the best checkpoint where that is asked for, and end the run."""
        assert self._run is not None
        if self._config.upload_best and (best := best_checkpoint(self._info.run)) is not None:
            import wandb

            name = f"{self._info.task}-{self._info.name}"[:128]
            artifact = wandb.Artifact(name, type="model", metadata={"checkpoint": best.name})
            artifact.add_dir(str(best))
            self._run.log_artifact(artifact, aliases=["best"])
        try:
            self._run.finish(exit_code=EXIT_CODES.get(status, 1))
        except TimeoutError as error:
            raise TimeoutError(
                f"the server did not take all in time; send the rest by `wandb sync {self._folder}`"
            ) from error

    @property
    def _folder(self) -> Path:
        """Where wandb keeps all that it was given."""
        assert self._run is not None
        return Path(self._run.dir).parent

    def _settings(self) -> Settings:
        """What holds for each run: no prompt, no output, nothing of the machine or of the command line."""
        import wandb

        settings = wandb.Settings(
            silent=True,
            quiet=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,  # the command line may hold a secret; RUN/provenance.json has it masked
            x_disable_stats=True,  # of the driver's machine, which does not train
            x_save_requirements=False,
            reinit="create_new",  # the runs of a search live beside each other in one driver
            init_timeout=START_S,
            finish_timeout_raises=True,
            finish_timeout=UPLOAD_S if self._config.upload_best else SEND_S,
        )
        if self._config.host:
            settings.base_url = self._config.host
        return settings

    def _begin(self, run_id: str, offline: bool) -> Run:
        import wandb

        return wandb.init(
            id=run_id,
            resume=None if offline else "allow",
            mode="offline" if offline else "online",
            project=self._config.project,
            entity=self._config.entity or None,
            group=self._config.group or self._info.group or self._info.experiment,
            job_type=self._info.job_type or None,
            name=self._info.name,
            notes=self._info.description or None,
            tags=[tag[:64] for tag in self._info.tags],
            config=self._info.config,
            dir=str(self._info.run.path),
            settings=self._settings(),
        )

    def _why_kept_in_files(self, defaults: Any) -> str:
        """Return why the run is kept in files, or nothing where it can be sent."""
        mode = self._config.mode
        if mode == "offline" or (mode == "auto" and defaults.mode != "online"):
            return "offline"
        if not _is_logged_in(defaults):
            return f"not logged in to {defaults.base_url} (`wandb login`)"
        wrong = _unreachable(defaults.base_url)
        return f"{defaults.base_url} does not answer ({wrong})" if wrong else ""

    def _log_figure(self, record: Record) -> None:
        import wandb

        assert self._run is not None
        path = self._info.run.path / record["path"]
        if path.suffix.lower() in IMAGES:
            step = {"step": record["step"]} if "step" in record else {}
            self._run.log({**step, f"figures/{record['title']}": wandb.Image(str(path))})


def _is_logged_in(defaults: Any) -> bool:
    """Tell whether there are credentials for the host: in the environment, wandb's settings, or netrc."""
    if defaults.api_key or defaults.identity_token_file:
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(urlsplit(defaults.base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _unreachable(url: str) -> str:
    """Return why a server gives no HTTP answer within ANSWER_S, or nothing when it does."""
    import requests

    try:
        requests.get(url, timeout=ANSWER_S, stream=True, allow_redirects=False).close()
    except requests.Timeout:
        return f"no answer within {ANSWER_S:.0f} s"
    except requests.ConnectionError:
        return "no connection"
    except requests.RequestException as error:
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
