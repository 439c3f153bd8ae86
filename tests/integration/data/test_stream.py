"""Through Ray Data come the rows that a local read gives, in the same order, bit for bit."""

import numpy as np
import pytest

from voxray.core.batch import EpochRequest
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.stream import RayStream
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(("rank", "world_size", "start"), [(0, 1, 0), (0, 1, 3), (1, 3, 0)])
def test_ray_data_delivers_what_a_local_read_does(tmp_path, rank, world_size, start):
    rows = {"train": tiny_rows(201, 1)}
    dataset = write_dataset(tmp_path / "d", Tiny(TinyConfig()).schema(), rows, rows_per_shard=60)
    config = DataConfig(window_mb=0.003, shuffle_mb=0.005)
    request = EpochRequest("train", 20, seed=5, epoch=2, start_batch=start)
    local, through_ray = (
        [
            {name: values.copy() for name, values in batch.items()}
            for batch in stream(dataset, config, rank, world_size).batches(request)
        ]
        for stream in (LocalStream, RayStream)
    )
    assert len(local) == len(through_ray) == 11 - start
    for ours, theirs in zip(local, through_ray, strict=True):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            np.testing.assert_array_equal(theirs[name], values)
            assert theirs[name].dtype == values.dtype, name
