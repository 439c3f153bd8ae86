"""The chest X-ray task keeps the contract, on random images with unknown labels."""

from random_radiographs import random_radiographs
from voxray.tasks.cxr_memory.config import Config
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource


class TestCxrMemory(TaskContract):
    def config(self):
        return Config.model_validate({"model": {"backbone": "test_efficientnet", "dropout": 0.0}})

    def source(self):
        return ArraySource({"train": random_radiographs(24, 0), "val": random_radiographs(50, 1)})

    def task(self):
        return CxrMemory(self.config(), {"image": {"mean": 0.5, "std": 0.29}})


class TestCxrMemoryWithBank(TestCxrMemory):
    def config(self):
        memory = {"use_memory": True, "bank_size": 16, "update_strategy": "hybrid", "top_k": 3}
        model = {"backbone": "test_efficientnet", "dropout": 0.0}
        return Config.model_validate({"model": model, "memory": memory})
