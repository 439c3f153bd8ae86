"""The tiny task of voxray.testing keeps the contract."""

from voxray.testing.contract import TaskContract
from voxray.testing.sources import ArraySource
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows


class TestTiny(TaskContract):
    def config(self):
        return TinyConfig()

    def source(self):
        return ArraySource({"train": tiny_rows(40, 0, unknown=0.1), "val": tiny_rows(50, 1)})

    def task(self):
        return Tiny(self.config())
