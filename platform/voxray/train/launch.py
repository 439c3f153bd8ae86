"""`voxray train`: check the run's folder, make the dataset where it is synthetic, start the workers, follow
them.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from voxray.config.errors import InputError, RunError
from voxray.config.provenance import write_provenance
from voxray.config.resolve import Resolved
from voxray.core.registry import task_class
from voxray.core.run_config import RunConfig
from voxray.data.dataset import dataset_path, ensure_dataset
from voxray.data.manifest import load_manifest
from voxray.data.source import batch_rules, choose_transport, open_source
from voxray.train.length import planned_updates
from voxray.train.progress import follow
from voxray.train.run_folder import RunFolder, differences

Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True)
class Plan:
    """What `--dry-run` prints: a run's size, known before it starts."""

    num_train_rows: int
    num_val_rows: int
    num_updates: int
    num_parameters: int
    transport: str  # and why


def run_folder(config: RunConfig) -> RunFolder:
    """Return the run's folder: <storage.path>/<task>/<run name>; a task outside voxray goes by its class
    name.
    """
    return RunFolder(Path(config.storage.path) / config.task.rpartition(":")[2] / config.run_name)


def launch(resolved: Resolved[RunConfig], resume: Resume, console: Console) -> RunFolder:
    """Train on Ray and return the run's folder. The caller has connected to Ray.

    Raises InputError for a config that cannot run here, RunError when the run fails.
    """
    config = resolved.config
    check_monitor(config)
    run = run_folder(config)
    ensure_dataset(config)
    if not prepare_folder(run, resolved, resume, console.print):
        return run
    payload = {"config": config.model_dump_json(), "run_dir": str(run.path.resolve())}
    with follow(run.log_file, console, config.resolved_stages()[-1].training.monitor):
        _train(config, payload, run)
    return run


def check_monitor(config: RunConfig) -> None:
    """Raise InputError when a stage monitors a metric that nobody reports."""
    known = task_class(config.task)(config).reported()
    for stage in config.resolved_stages():
        if stage.training.monitor not in known:
            raise InputError(
                f"training.monitor: nobody reports '{stage.training.monitor}'; there is {', '.join(known)}"
            )


def prepare_folder(
    run: RunFolder, resolved: Resolved[RunConfig], resume: Resume, tell: Callable[[str], Any]
) -> bool:
    """Make or check RUN; return False when there is nothing left to train.

    Raises InputError when the folder holds a run of another config, or when `resume` forbids what would
    happen.
    """
    config = resolved.config
    if not run.log_file.exists():  # nothing was trained: an attempt that failed at once may be corrected
        if resume == "must":
            raise InputError(
                f"--resume must: there is no run in {run.path}; leave the option out to begin one"
            )
        if run.path.exists() and any(run.path.iterdir()) and not run.config_file.exists():
            raise InputError(f"{run.path} exists and is no run; give this one another name with run.name=")
        run.write_config(config, resolved.sources)
        write_provenance(run.path)
        return True
    if resume == "never":
        raise InputError(
            f"--resume never: {run.path} holds a run already; give this one another name with run.name="
        )
    before = run.config()
    different = differences(before, config.model_dump(mode="json"))
    if different:
        raise InputError(
            f"{run.path} holds a run of another config; give this one another name with run.name=", *different
        )
    if run.is_finished() and _epochs(before) == _epochs(config.model_dump(mode="json")):
        tell(f"{run.path} is finished already; nothing to do")
        return False
    run.write_config(config, resolved.sources)
    return True


def plan(config: RunConfig) -> Plan:
    """Return the run's size from the manifest and the model on the meta device; nothing is trained."""
    import torch

    check_monitor(config)
    dataset = ensure_dataset(config)
    manifest = load_manifest(dataset)
    task = task_class(config.task)(config, manifest.statistics, manifest.schema)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in task.build_model().parameters())
    source = open_source(dataset, config.data)
    train, val = (
        source.num_chosen(split, batch_rules(config.data, training=split == "train"))
        for split in ("train", "val")
    )
    updates = sum(planned_updates(source, stage, config) for stage in config.resolved_stages())
    return Plan(train, val, updates, parameters, ": ".join(choose_transport(dataset, config.data)))


def _epochs(config: dict[str, Any]) -> list[Any]:
    return [config["training"]["epochs"], [stage.get("epochs") for stage in config["stages"]]]


def _train(config: RunConfig, payload: dict[str, str], run: RunFolder) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    from voxray.train.worker import run_worker

    trainer = TorchTrainer(
        run_worker,
        train_loop_config=payload,
        scaling_config=scaling(config),
        run_config=ray.train.RunConfig(
            name=".ray",
            storage_path=str(run.path.resolve()),
            worker_runtime_env={"env_vars": worker_environment(config)},
        ),
    )
    try:
        trainer.fit()
    except (
        SystemExit
    ) as error:  # what Ray Train's own SIGINT handler makes of Ctrl-C, after it stopped the workers
        raise KeyboardInterrupt from error
    except WorkerGroupError as error:
        raise first_cause(error.worker_failures) from error


def scaling(config: RunConfig) -> Any:
    """Return Ray Train's scaling of `scale`. Raises InputError when the cluster cannot hold the workers."""
    import ray
    from ray.train import ScalingConfig

    scale = config.scale
    there = ray.cluster_resources()
    gpus = scale.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if there.get("GPU", 0) >= scale.num_workers else 0.0
    # Read tasks need a CPU beside the workers': without it they never start, and all wait for ever.
    reading = 1 if choose_transport(dataset_path(config), config.data)[0] == "stream" else 0
    needed = {"CPU": scale.num_workers * scale.cpus_per_worker + reading, "GPU": scale.num_workers * gpus}
    for name, amount in needed.items():
        if amount > there.get(name, 0):
            raise InputError(
                f"scale.num_workers={scale.num_workers} needs {amount:g} {name}"
                f"{', one of them for data.transport=stream' if reading and name == 'CPU' else ''}; Ray has "
                f"{there.get(name, 0):g}; lower scale.num_workers or scale.{name.lower()}s_per_worker"
            )
    resources = {"CPU": scale.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    return ScalingConfig(num_workers=scale.num_workers, use_gpu=gpus > 0, resources_per_worker=resources)


def worker_environment(config: RunConfig) -> dict[str, str]:
    """Return what a worker's process is started with: its threads, and where this driver's Ray is."""
    import ray

    return {
        "OMP_NUM_THREADS": str(config.scale.threads_per_worker),
        # A stale cluster file of a killed Ray would else send the State API to a dead cluster (FACTS.md
        # section 2).
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}),
    }


def first_cause(failures: Mapping[int, Exception]) -> Exception:
    """Return our own error where a worker raised one, else a RunError that names rank and exception."""
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, InputError | RunError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    rank, failure = next(iter(failures.items()))
    return RunError(f"worker {rank} failed: {failure}")
