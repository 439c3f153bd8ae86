"""Switches for someone who looks for a fault: deterministic operations, anomalies, shapes, a profile."""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import contextlib
import re
import resource
import sys
from collections.abc import Generator, Iterator
from dataclasses import fields

import torch
from torch.profiler import ProfilerActivity, profile

from voxray.config.errors import RunError
from voxray.core import collectives
from voxray.core.batch import Batch
from voxray.core.run_config import RunConfig, Stage
from voxray.train.fit_context import Fit
from voxray.train.micro_batches import Group
from voxray.train.state import TrainState

PROFILE_FROM = 2  # updates of a stage before the profile: the first ones start kernels and allocate
TOP_OPERATIONS = 20


@contextlib.contextmanager
def settings(config: RunConfig, device: torch.device) -> Generator[None]:
    """Deterministic algorithms and anomaly detection, as the config says, and as they were afterwards.

    Raises RunError that names an operation which is not deterministic.
    """
    training = config.training
    before = torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()
    is_changed = training.deterministic and not before[0]
    if is_changed:  # the call imports torch's compiler, a second or two
        torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(training.debug or before[1])
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if not (training.deterministic and found):
            raise
        raise RunError(
            f"training.deterministic: {found[1]} has no deterministic form on {device.type}; "
            "use another layer, or training.deterministic=false"
        ) from error
    finally:
        if is_changed:
            torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(before[1])


def memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this worker held, and on a GPU the most that was allocated there, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    used = {"memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)}
    if device.type == "cuda":
        used["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    return used


def watched(groups: Iterator[Group], loop: Fit, state: TrainState, stage: Stage) -> Iterator[Group]:
    """Pass the groups on; log the first one's shapes (`debug`) and profile some updates (`profile_steps`)."""
    training = stage.training
    if training.debug and state.step == 0:
        groups = _with_shapes(groups, loop)
    if training.profile_steps is None or collectives.rank() != 0 or state.stage_step > PROFILE_FROM:
        return groups
    return _profiled(groups, loop, state, stage, training.profile_steps)


def _with_shapes(groups: Iterator[Group], loop: Fit) -> Iterator[Group]:
    for number, group in enumerate(groups):
        if number == 0:
            loop.note(f"first micro-batch: {shapes(group.micro_batches[0])}")
        yield group


def shapes(batch: Batch) -> str:
    """Return each tensor's name, dtype and shape."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return ", ".join(
        f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    )


def _profiled(
    groups: Iterator[Group], loop: Fit, state: TrainState, stage: Stage, num_steps: int
) -> Iterator[Group]:
    """Profile the updates from PROFILE_FROM on; write the trace and the table of the top operations."""
    activities = [ProfilerActivity.CPU]
    if loop.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with contextlib.ExitStack() as running:
        profiler: profile | None = None
        for group in groups:
            if state.stage_step == PROFILE_FROM and profiler is None:
                profiler = running.enter_context(profile(activities=activities))
            if profiler is not None and state.stage_step >= PROFILE_FROM + num_steps:
                running.close()
                _write_profile(profiler, loop, stage, num_steps)
                yield group
                break
            yield group
        else:
            if profiler is not None:
                running.close()
                _write_profile(profiler, loop, stage, num_steps)
            return
    yield from groups


def _write_profile(profiler: profile, loop: Fit, stage: Stage, num_steps: int) -> None:
    folder = loop.run.path / "profile"
    folder.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"{stage.name}.json"))
    by = "self_cuda_time_total" if loop.device.type == "cuda" else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=TOP_OPERATIONS)
    (folder / f"{stage.name}.txt").write_text(table)
    loop.note(
        f"profile of {num_steps} updates: profile/{stage.name}.txt has the top operations, "
        f"profile/{stage.name}.json the trace for ui.perfetto.dev"
    )
