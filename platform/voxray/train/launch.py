"""`voxray train`: check the run's folder, make the dataset where it is synthetic, start the workers, follow
them.
"""

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from voxray.config.errors import InputError, RunError
from voxray.config.provenance import write_provenance
from voxray.config.resolve import Resolved
from voxray.core.run_config import RunConfig
from voxray.data.dataset import dataset_path, ensure_dataset
from voxray.data.location import is_url, working_folder
from voxray.data.source import choose_transport
from voxray.train.dry_run.plan import check_monitor, check_start_from
from voxray.train.growth import UNKNOWN, Growth, autoscaler_file, growth_of
from voxray.train.progress import catch_up, follow
from voxray.train.run_folder import RunFolder, differences, run_folder
from voxray.train.trackers.choose import missing_libraries
from voxray.train.trackers.tracker import Tracker

Resume = Literal["auto", "never", "must"]
HEAD = "node:__internal_head__"  # a resource that only Ray's head has
LOOK_WITHIN_S = 60.0


def launch(
    resolved: Resolved[RunConfig], resume: Resume, console: Console, also: Sequence[Tracker] = ()
) -> RunFolder:
    """Train on Ray and return the run's folder. The caller has connected to Ray.

    `also` are trackers beside those that `logging` turns on.
    Raises InputError for a config that cannot run here, RunError when the run fails.
    """
    config = resolved.config
    check_monitor(config)
    check_start_from(config)
    missing = missing_libraries(config)
    if missing:
        raise InputError(*missing)
    run = run_folder(config)
    from voxray.train.mirror import Mirror, mirrored_log

    mirror = Mirror.of(config.storage.path, run.path)
    if mirror:
        mirror.open()
        console.print(f"stored at {mirror}, with a copy in {run.path}", soft_wrap=True, highlight=False)
    ensure_dataset(config)
    if not prepare_folder(run, resolved, resume, console.print):
        catch_up(run, config, console)
        if mirror:
            mirror.close()
        return run
    run.begin_attempts()
    if mirror:
        mirror.close()
    with follow(run, config, console, also), stop_on_sigterm(run), mirrored_log(mirror):
        train_workers(config, run)
        if mirror:
            mirror.open()
        if run.stop_file.exists() and not run.is_finished():
            run.stop_file.unlink()
            raise KeyboardInterrupt
    return run


@contextlib.contextmanager
def stop_on_sigterm(run: RunFolder) -> Generator[None]:
    """Let SIGTERM (a job's end on SLURM or Kubernetes) ask the workers to save at this update and end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: run.stop_file.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    different = differences(before, config.model_dump(mode="json"), config.AFTER_TRAINING)
    if different:
        raise InputError(
            f"{run.path} holds a run of another config; give this one another name with run.name=", *different
        )
    if run.is_finished() and _epochs(before) == _epochs(config.model_dump(mode="json")):
        tell(f"{run.path} is finished already; nothing to do")
        return False
    run.write_config(config, resolved.sources)
    return True


def _epochs(config: dict[str, Any]) -> list[Any]:
    return [config["training"]["epochs"], [stage.get("epochs") for stage in config["stages"]]]


def train_workers(config: RunConfig, run: RunFolder) -> None:
    """Train in workers of Ray Train until the run ends, or RUN/stop is seen; RUN goes on from its checkpoint.

    Raises InputError when the cluster cannot hold the workers, RunError, or what else ended a worker.
    """
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    from voxray.train.worker import run_worker

    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"config": config.model_dump_json(), "run_dir": place_of(run, config)},
        scaling_config=scaling(config),
        run_config=ray.train.RunConfig(
            name=".ray",
            storage_path=str(run.path.resolve()),
            worker_runtime_env={"env_vars": worker_environment(config)},
            failure_config=ray.train.FailureConfig(max_failures=config.scale.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except (
        SystemExit
    ) as error:  # what Ray Train's own SIGINT handler makes of Ctrl-C, after it stopped the workers
        raise KeyboardInterrupt from error
    except WorkerGroupError as error:
        raise run.verdict() or first_cause(error.worker_failures) from error
    verdict = run.verdict()
    if verdict is not None:
        raise verdict


def place_of(run: RunFolder, config: RunConfig) -> str:
    """Return where a worker finds RUN; where it is a copy, each machine has its own, below its own cache."""
    if is_url(config.storage.path) and run.path.is_relative_to(working_folder(config.storage.path)):
        return run.path.relative_to(working_folder(config.storage.path)).as_posix()
    return str(run.path.resolve())


def scaling(config: RunConfig) -> Any:
    """Return Ray Train's scaling of `scale`.

    Raises InputError when the cluster cannot hold the workers, with the nodes that its autoscaler may add.
    """
    import ray
    from ray.train import ScalingConfig

    scale = config.scale
    there, may_come = ray.cluster_resources(), growth()
    most = {name: there.get(name, 0) + may_come.total(name) for name in ("CPU", "GPU")}
    gpus = scale.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if most["GPU"] >= scale.fewest_workers else 0.0
    # Read tasks need a CPU beside the workers': without it they never start, and all wait for ever.
    reading = 1 if choose_transport(dataset_path(config), config.data)[0] == "stream" else 0
    fewest = scale.fewest_workers
    needed = {"CPU": fewest * scale.cpus_per_worker + reading, "GPU": fewest * gpus}
    for name, amount in needed.items():
        if amount > most[name] and may_come.is_known:
            added = f", and its autoscaler may add {may_come.total(name):g}" if may_come.nodes else ""
            raise InputError(
                f"scale.num_workers={fewest} needs {amount:g} {name}"
                f"{', one of them for data.transport=stream' if reading and name == 'CPU' else ''}; Ray has "
                f"{there.get(name, 0):g}{added}; lower scale.num_workers or scale.{name.lower()}s_per_worker"
            )
    resources = {"CPU": scale.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    return ScalingConfig(
        num_workers=scale.num_workers,
        use_gpu=gpus > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=scale.resize_every_s,
    )


def growth() -> Growth:
    """Return what an autoscaler may add to the cluster: nothing where there is none."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = node_types()
    if not there:
        return Growth()
    context = ray.get_runtime_context()
    head = next(node["NodeID"] for node in ray.nodes() if HEAD in node["Resources"])
    if context.get_node_id() == head:
        file = autoscaler_file(context.gcs_address)
    else:
        look = ray.remote(autoscaler_file).options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False)
        )
        try:
            file = ray.get(look.remote(context.gcs_address), timeout=LOOK_WITHIN_S)
        except RayError:
            file = None
    return growth_of(file, there) if file else UNKNOWN


def node_types() -> Counter[str]:
    """Return how many nodes of which type there are; nothing where no autoscaler starts them.

    It calls the nodes by the types of its own file; where there is none, Ray calls them `node_<id>` (seen in
    the report of 2.60's autoscaler and in the cluster's status).
    """
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    reported = Counter[str](report.get("active_nodes") or {})
    named = Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))
    both = reported | named  # the larger number of each
    return Counter({name: num for name, num in both.items() if name and not name.startswith("node_")})


def worker_environment(config: RunConfig) -> dict[str, str]:
    """Return what a worker's process is started with: its threads, and where this driver's Ray is."""
    import ray

    return {
        "OMP_NUM_THREADS": str(config.scale.threads_per_worker),
        # A stale cluster file of a killed Ray would else send the State API to a dead cluster (FACTS.md
        # section 2).
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        # cuBLAS is deterministic with a workspace of its own (torch.use_deterministic_algorithms).
        **({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if config.training.deterministic else {}),
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
