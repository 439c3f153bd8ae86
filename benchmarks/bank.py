"""Cost of the memory bank: an update of the chest X-ray model with 1,024 vectors beside one without memory.

    python benchmarks/bank.py [--quick] [--json FILE]

The models make the same updates in turn, in one process: forward, backward, AdamW, the bank's reading and
writing. Each number is the median over the updates after the first few; on a CPU it is the thread's own time,
so that a shared machine counts less. One CPU thread, 64 pixels, 16 rows; on a GPU, where there is one, 224
pixels, 64 rows and bf16. Target: ratio ≤ 1.05.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.core.batch import Batch
from voxray.tasks.cxr_memory.config import LABELS, Config
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.train import parallel
from voxray.train.control import Control
from voxray.train.gradient import GradientStepper
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.optimisation.parameters import train_mode
from voxray.train.state import TrainState

BANK_SIZE, TARGET, SKIPPED = 1024, 1.05, 3
STRATEGIES = ("rarity", "hybrid")  # the default, and the one that looks at every vector to write
WITHOUT = "no memory"


class Model:
    """One model and its updates."""

    def __init__(self, backbone: str, memory: dict[str, Any], precision: str, device: torch.device) -> None:
        """Build model, optimiser and stepper, and fill the bank."""
        model = {"backbone": backbone}
        training = {"precision": precision}
        config = Config.model_validate({"model": model, "memory": memory, "training": training})
        stage = config.resolved_stages()[0]
        self.task = CxrMemory(config)
        torch.manual_seed(0)
        self.state = TrainState(self.task.build_model().to(device))
        self.state.optimizer = build_optimizer(self.state.model, stage.training, device)
        module = parallel.wrap(parallel.LossModule(self.task, self.state.model), device)
        self.stepper = GradientStepper(self.task, self.state, stage, module, device, Control())
        train_mode(self.state.model)
        bank: Any = getattr(self.state.model, "bank")  # noqa: B009 - the model's class is not seen here
        if bank is not None:
            generator = torch.Generator().manual_seed(0)
            bank.memory_MD.copy_(torch.randn(bank.memory_MD.shape, generator=generator))
            bank.count.fill_(len(bank.memory_MD))

    def seconds(self, batch: Batch, device: torch.device) -> float:
        """Return the time of one update."""
        clock = time.perf_counter if device.type == "cuda" else time.thread_time
        before = clock()
        self.stepper.update([batch])
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken = clock() - before
        self.state.count_update(1)
        return taken


def batch_of(rows: int, side: int, device: torch.device) -> Batch:
    """Return random images with random labels."""
    rng = np.random.default_rng(0)
    columns = {
        "sample_id": np.array([f"row{i}" for i in range(rows)], dtype=object),
        "patient_id": np.array([f"row{i}" for i in range(rows)], dtype=object),
        "valid": np.ones(rows, bool),
        "position": np.arange(rows),
        "image": rng.integers(0, 256, (rows, 1, side, side), dtype=np.uint8),
        "labels": (rng.random((rows, len(LABELS))) < 0.1).astype(np.float32),
    }
    return CxrMemory(Config()).collate(columns).to(device)


def measured(backbone: str, num_updates: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds per update without memory and with each strategy, which take turns."""
    on_gpu = device.type == "cuda"
    rows, side, precision = (64, 224, "bf16") if on_gpu else (16, 64, "fp32")
    memory = {
        name: {"use_memory": True, "bank_size": BANK_SIZE, "update_strategy": name} for name in STRATEGIES
    }
    models = {WITHOUT: Model(backbone, {}, precision, device)}
    models |= {name: Model(backbone, values, precision, device) for name, values in memory.items()}
    batch = batch_of(rows, side, device)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(num_updates):
        for name, model in models.items():
            times[name].append(model.seconds(batch, device))
    return {name: values[SKIPPED:] for name, values in times.items()}


def main() -> None:
    """Measure, print, write records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="resnet18 alone, fewer updates")
    parser.add_argument("--json", type=Path, help="write records there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbones = ("resnet18",) if options.quick else ("resnet18", "tf_efficientnetv2_s")
    num_updates = SKIPPED + (15 if options.quick else 20) * (5 if device.type == "cuda" else 1)
    records: list[dict[str, Any]] = []
    for backbone in backbones:
        times = measured(backbone, num_updates, device)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"{backbone} on {device.type}, {len(times[WITHOUT])} updates in turn, bank of {BANK_SIZE}")
        for name, median in medians.items():
            ratio = median / medians[WITHOUT]
            verdict = (
                "" if name == WITHOUT else f"   ratio {ratio:.3f} {'holds' if ratio <= TARGET else 'MISSED'}"
            )
            print(f"  {name:10} {1e3 * median:9.2f} ms per update{verdict}")
            if name != WITHOUT:
                case = {"benchmark": "bank", "case": f"{backbone}, {name}, {device.type}"}
                values = {"ours": median, "peer": medians[WITHOUT], "unit": "s", "ratio": ratio}
                records.append({**case, **values, "better": "lower"})
    print(f"target ≤ {TARGET}")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
