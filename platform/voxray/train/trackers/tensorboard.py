"""TensorBoard: event files in RUN/tensorboard; a resume begins another, which takes back what follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voxray.train.log_tail import Record
from voxray.train.trackers.tracker import IMAGES, RunInfo, TrackerState, metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoard:
    """Scalars under the log's own names, figures as images, notes and the config as text."""

    key = "tensorboard"
    name = "TensorBoard"
    patience_s = 10.0

    def __init__(self) -> None:
        """Nothing is written before `start`."""
        self._writer: SummaryWriter | None = None
        self._step = 0

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Open an event file. Raises ImportError when TensorBoard is not installed."""
        self._info = info
        self._folder = info.run.path / "tensorboard"
        self._open(None)
        if not state.go_to(str(self._folder)):
            lines = [f"| {name} | `{value}` |" for name, value in info.config.items()]
            self._writer_now.add_text("config", "\n".join(["| key | value |", "|---|---|", *lines]), 0)
        return f"TensorBoard: tensorboard --logdir {self._folder}"

    def record(self, record: Record) -> None:
        """Write a record's numbers, its figure or its note."""
        writer = self._writer_now
        self._step = int(record.get("step", self._step))
        match record["kind"]:
            case "step" | "epoch" | "validation":
                for name, value in metrics(record).items():
                    writer.add_scalar(name, value, self._step)
            case "resume":
                # Readers drop what they have from this step on: the resumed run makes it again.
                self._open(self._step + 1)
            case "figure":
                self._add_figure(record)
            case "note":
                writer.add_text("notes", str(record["text"]), self._step)

    def flush(self) -> None:
        """Write to disk what was taken."""
        self._writer_now.flush()

    def finish(self, status: str) -> None:
        """Close the event file."""
        self._writer_now.close()

    @property
    def _writer_now(self) -> SummaryWriter:
        assert self._writer is not None
        return self._writer

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        if self._writer is not None:
            self._writer.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    def _add_figure(self, record: Record) -> None:
        import numpy as np
        from PIL import Image

        path = self._info.run.path / record["path"]
        if path.suffix.lower() not in IMAGES:
            return
        with Image.open(path) as image:
            pixels_HWC = np.asarray(image.convert("RGB"))
        self._writer_now.add_image(record["title"], pixels_HWC, self._step, dataformats="HWC")
