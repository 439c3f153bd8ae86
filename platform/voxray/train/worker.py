"""One training process, and the only place that talks to Ray Train from inside a worker."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from voxray.config.errors import RunError, VoxrayError
from voxray.core import collectives
from voxray.core.registry import config_class, task_class
from voxray.core.run_config import RunConfig
from voxray.data.dataset import dataset_path
from voxray.data.location import working_folder
from voxray.data.manifest import load_manifest
from voxray.data.source import batch_rules, open_source
from voxray.train import faults
from voxray.train.control import Control, Stopped
from voxray.train.evaluated_rows import check_evaluated
from voxray.train.loop import Report, fit
from voxray.train.mirror import Mirror
from voxray.train.run_folder import RunFolder
from voxray.train.trained.dataset_facts import DatasetFacts
from voxray.train.watch import Watch


def train_here(
    config: RunConfig,
    run_dir: Path,
    report: Report,
    control: Control | None = None,
    device: torch.device | None = None,
) -> None:
    """Train in this process, which is connected to Ray: alone (a trial's actor) or as one worker of several.

    `report` is called once per evaluation with its numbers. `device` is by default the first GPU that the
    process sees, or its CPU.
    """
    if device is None:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(config.scale.threads_per_worker)
    with stored(config, run_dir):
        _train(config, run_dir, report, control, device)


def _train(
    config: RunConfig, run_dir: Path, report: Report, control: Control | None, device: torch.device
) -> None:
    dataset = dataset_path(config)
    manifest = load_manifest(dataset)
    task = task_class(config.task)(config, manifest.statistics, manifest.schema)
    run = RunFolder(run_dir)
    if collectives.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        DatasetFacts.of(str(dataset), manifest).write(run_dir)
    source = open_source(
        dataset,
        config.data,
        collectives.rank(),
        collectives.world_size(),
        task.read_stages(),
        on_fault=lambda text: run.log({"kind": "note", "rank": collectives.rank(), "text": text}),
    )
    for stage in config.resolved_stages():
        if source.num_chosen("train", batch_rules(stage.config.data, training=True)) == 0:
            raise RunError(
                f"dataset {dataset} has no training rows, or data.filter leaves none ({stage.name})"
            )
    check_evaluated(task, source, config.resolved_stages())
    with contextlib.closing(source):
        fit(task, source, config, run, report, device, control)


@contextlib.contextmanager
def stored(config: RunConfig, run_dir: Path) -> Generator[None]:
    """Where `storage.path` is a URL, fetch what is stored of the run first, and send the rest at the end.

    Raises InputError or RunError where the store cannot be reached.
    """
    mirror = Mirror.of(config.storage.path, run_dir)
    if mirror is None:
        yield
        return
    mirror.open()
    is_writer = collectives.rank() == 0
    try:
        yield
    except BaseException:
        if is_writer:
            with contextlib.suppress(RunError):  # the first error is the one to show
                mirror.close()
        raise
    if is_writer:
        mirror.close()


def run_worker(payload: dict[str, Any]) -> None:
    """Ray Train's entry: rebuild the config from JSON, train, and tell Ray Train each evaluation's numbers.

    An error of ours is a verdict: it is written down, and a worker that is started again ends at once.
    """
    import ray.train

    values = json.loads(payload["config"])
    config = config_class(values["task"]).model_validate(values)
    run = RunFolder(working_folder(config.storage.path) / payload["run_dir"])
    if any(collectives.all_gather_objects(run.verdict_file.exists())):
        return
    device = _device_of_ray_train()
    try:
        with watch_over(run, config) as watch:
            train_here(config, run.path, lambda metrics: ray.train.report(metrics), watch.control, device)
    except Stopped:
        return
    except VoxrayError as error:
        run.write_verdict(error)
        is_on_all = isinstance(error, faults.NotFiniteError) or not collectives.is_distributed()
        if not is_on_all:
            raise  # the others wait for this worker; Ray ends them and starts all again


def watch_over(run: RunFolder, config: RunConfig) -> Watch:
    """Return the watch beside a run's loop in this process; where the loop hangs, it ends the process."""
    rank = collectives.rank()
    return Watch(
        run.stop_file,
        _node_is_leaving,
        config.scale.hang_timeout_s,
        lambda file: faults.note_failure(
            run, rank, -1, f"no update for {config.scale.hang_timeout_s:g} s: {file}"
        ),
        run.path / f"hang-rank{rank}.txt",
    )


def _node_is_leaving() -> bool:
    """Whether Ray was told that this node will be drained, e.g. a spot instance that is reclaimed."""
    import ray
    import ray._private.state as private

    with contextlib.suppress(Exception):  # a private call: without it a run only saves less often
        draining: dict[str, int] = getattr(private, "state").get_draining_nodes()  # noqa: B009 - not typed
        return ray.get_runtime_context().get_node_id() in draining
    return False


def _device_of_ray_train() -> torch.device | None:
    """Return which of the node's GPUs is this worker's, where it is one of several."""
    if not (torch.cuda.is_available() and collectives.is_distributed()):
        return None
    from ray.train.torch import get_device

    return get_device()
