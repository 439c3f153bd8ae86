"""Pictures of what the model does, drawn after an evaluation: files in RUN/figures, told to the trackers."""

import torch
from torch import nn

from voxray.core import collectives
from voxray.core.batch import EpochRequest
from voxray.core.task import Task
from voxray.train.fit_context import Fit


@torch.inference_mode()
def draw_pictures(
    loop: Fit, task: Task, model: nn.Module, request: EpochRequest, stage: str, step: int
) -> None:
    """Let the task draw the first batch of `request`. Every worker runs the model, which may be split over
    them; rank 0 writes.
    """
    if type(task).pictures is Task.pictures:
        return
    columns = next(iter(loop.source.batches(request)), None)
    if columns is None:
        return
    model.eval()
    files = task.pictures(model, task.collate(columns).to(loop.device))
    if collectives.rank() != 0:
        return
    folder = loop.run.path / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition(".")
        path = folder / f"{stem}_{stage}_{step:08d}.{suffix}"
        path.write_bytes(content)
        if suffix == "png":  # what every tracker can show
            loop.log(
                {"kind": "figure", "path": f"figures/{path.name}", "title": f"{stem}, {stage}", "step": step}
            )
