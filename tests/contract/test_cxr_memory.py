"""The chest X-ray task keeps the contract, on random images with unknown labels."""

import numpy as np

from voxray.tasks.cxr_memory.config import LABELS, Config
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource


def rows(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, len(LABELS))) < 0.3).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    names = np.array([f"{seed}_{i:04d}.png" for i in range(num_rows)], dtype=object)
    image = rng.integers(0, 256, (num_rows, 1, 32, 32), dtype=np.uint8)
    return {"sample_id": names, "patient_id": names, "image": image, "labels": labels}


class TestCxrMemory(TaskContract):
    def config(self):
        return Config.model_validate({"model": {"backbone": "test_efficientnet", "dropout": 0.0}})

    def source(self):
        return ArraySource({"train": rows(24, 0), "val": rows(50, 1)})

    def task(self):
        return CxrMemory(self.config(), {"image": {"mean": 0.5, "std": 0.29}})


class TestCxrMemoryWithBank(TestCxrMemory):
    def config(self):
        memory = {"use_memory": True, "bank_size": 16, "update_strategy": "hybrid", "top_k": 3}
        model = {"backbone": "test_efficientnet", "dropout": 0.0}
        return Config.model_validate({"model": model, "memory": memory})
