"""Terms that compare the rows of an update, against the same update in one micro-batch on one worker."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from voxray.core import collectives
from voxray.losses.contrastive import info_nce
from voxray.testing.sources import ArraySource
from voxray.testing.spawn import spawn
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

ROWS = 50  # the last update is short, so that padding counts


class ContrastiveConfig(TinyConfig, frozen=True):
    task: str = "tests:Contrastive"

    def global_terms(self) -> tuple[str, ...]:
        return ("info_nce",)


class Contrastive(Tiny):
    """The tiny task and InfoNCE between outputs and known targets, at a temperature that is learnt."""

    Config = ContrastiveConfig

    def build_model(self):
        model = super().build_model()
        model.register_parameter("log_tau", nn.Parameter(torch.zeros(())))
        return model

    def normalizers(self, batch, stage):
        return {**super().normalizers(batch, stage), "info_nce": batch.valid_B.sum()}

    def loss(self, model, batch, stage):
        terms = super().loss(model, batch, stage)
        rows = self.update_rows
        pred_NO = rows.gathered("pred", model(batch.x_BI), batch.valid_B)
        known_NO = rows.gathered("target", batch.y_BO.nan_to_num(), batch.valid_B)
        tau = rows.shared(model.log_tau, pred_NO, batch.valid_B).exp()
        return {**terms, "info_nce": rows.term(info_nce(pred_NO, known_NO, tau), pred_NO, batch.valid_B, 0.5)}


def train(folder: Path, batch_size: int, accumulate: int, batch_norm: bool = False) -> None:
    values = {"batch_size": batch_size, "accumulate_grad_batches": accumulate, "epochs": 2}
    config = ContrastiveConfig.model_validate(
        {
            "training": {**values, "learning_rate": 0.05, "optimizer": "sgd", "clip_grad_norm": None},
            "model": {"dropout": 0.0, "batch_norm": batch_norm},
            "logging": {"log_every_n_steps": 1},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"train": tiny_rows(ROWS, 1, unknown=0.0), "val": tiny_rows(20, 2, unknown=0.0)}
    source = ArraySource(arrays, collectives.rank(), collectives.world_size())
    fit(Contrastive(config), source, config, RunFolder(folder), lambda metrics: None, torch.device("cpu"))


def losses(folder: Path) -> list[float]:
    return [r["train/info_nce"] for r in RunFolder(folder).records() if r["kind"] == "step"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(RunFolder(folder).checkpoints, print) / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, 24, 1)
    return folder


@pytest.mark.parametrize(("workers", "batch_size", "accumulate"), [(1, 8, 3), (2, 24, 1), (2, 8, 3)])
def test_cut_over_workers_and_micro_batches_it_is_the_same_update(
    tmp_path, whole, workers, batch_size, accumulate
):
    if workers == 1:
        train(tmp_path, batch_size, accumulate)
    else:
        spawn(workers, train, tmp_path, batch_size, accumulate)
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=1e-5, atol=1e-6)


def test_info_nce_gold_values_and_its_pairs():
    """DOMAINS.md section 7."""
    unit = nn.functional.normalize
    pred = unit(torch.tensor([[1, 0], [0, 1], [0.6, 0.8]]))
    target = torch.tensor([[0.8, 0.6], [0, 1], [1, 0]])
    assert float(info_nce(pred, target, 0.5)) == pytest.approx(0.988533, abs=1e-5)
    assert float(info_nce(pred, target, 0.05)) == pytest.approx(3.753052, abs=1e-5)
    orthogonal = torch.eye(4)
    falling = [float(info_nce(orthogonal, orthogonal, tau)) for tau in (1.0, 0.5, 0.1)]
    assert falling == sorted(falling, reverse=True)


def test_running_statistics_move_once_per_micro_batch(tmp_path):
    """BatchNorm's count of batches is that of the micro-batches, not of the passes."""
    train(tmp_path, 8, 3, batch_norm=True)
    (count,) = [v for name, v in weights(tmp_path).items() if name.endswith("num_batches_tracked")]
    assert int(count) == 2 * 7 * 2  # two epochs of 50 rows in eights, and the loss runs the model twice
