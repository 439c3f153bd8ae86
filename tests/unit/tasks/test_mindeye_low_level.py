"""MindEye's low-level branch: its layers against a written-out forward pass, its sizes and its term."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from mindeye_rows import LATENT_SHAPE, NUM_VOXELS, SMALL, SMALL_LOW_LEVEL, mindeye_rows, mindeye_task
from voxray.config.errors import InputError
from voxray.core.schema import Schema
from voxray.tasks.mindeye.low_level import LowLevel, latent_shape
from voxray.tasks.mindeye.low_level_config import LowLevelConfig, VaeTargetConfig, vae_embedders
from voxray.tasks.mindeye.model import MindEye


def small(**values: Any) -> LowLevelConfig:
    return LowLevelConfig.model_validate(SMALL_LOW_LEVEL | values)


def by_hand(module: LowLevel, voxels: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """DOMAINS.md S3.a, by the module's weights."""
    weights = dict(module.named_parameters())

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        x = x @ weights[f"{name}.0.weight"].T
        return F.silu(F.layer_norm(x, x.shape[1:], weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]))

    x = layer("first", voxels)
    for i in range(num_blocks):
        x = x + layer(f"blocks.{i}", x)
    x = (x @ weights["to_map.weight"].T).reshape(len(x), 8, 4, 4)
    return module.decoder(F.group_norm(x, 1, weights["norm.weight"], weights["norm.bias"]))


def test_it_is_what_is_written_down() -> None:
    torch.manual_seed(0)
    module = LowLevel(small(n_blocks=2), NUM_VOXELS, LATENT_SHAPE).eval()
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.GroupNorm):  # not the identity
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    voxels = torch.randn(3, NUM_VOXELS)
    with torch.no_grad():
        found, wanted = module(voxels), by_hand(module, voxels, 2)
    assert found.shape == (3, *LATENT_SHAPE)
    torch.testing.assert_close(found, wanted)
    assert not [
        name for name, _ in module.named_parameters() if name.endswith(("first.0.bias", "to_map.bias"))
    ]


def test_the_published_sizes() -> None:
    """Of subject 1: a map of 16 × 16 × 64 and a decoder of 64, 128, 256 channels give latents [4, 64, 64]."""
    with torch.device("meta"):
        module = LowLevel(LowLevelConfig(), 15_724, (4, 64, 64))
    mlp = 15_724 * 4096 + 4 * 4096**2 + 5 * 2 * 4096
    decoder = sum(parameter.numel() for parameter in module.decoder.parameters())
    total = sum(parameter.numel() for parameter in module.parameters())
    assert total == mlp + 4096 * 16_384 + 2 * 64 + decoder
    assert module.decoder(torch.zeros(1, 64, 16, 16, device="meta")).shape == (1, 4, 64, 64)
    dropouts = [part.p for part in module.modules() if isinstance(part, nn.Dropout) and part.p]
    assert dropouts == [0.5, 0.25, 0.25, 0.25, 0.25]


def test_the_decoder_is_an_autoencoders() -> None:
    """The decoder of an AutoencoderKL of these channels takes its weights and gives the same."""
    module = LowLevel(small(map_channels=4), NUM_VOXELS, LATENT_SHAPE).eval()
    theirs = AutoencoderKL(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    theirs.decoder.load_state_dict(module.decoder.state_dict())
    x = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(module.decoder(x), theirs.decoder(x))


def test_blocks_that_do_not_lead_to_the_latents_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 blocks make sides that are multiples of 4.*10 × 12"):
        LowLevel(small(channels=[8, 8, 8]), NUM_VOXELS, (4, 10, 12))
    with pytest.raises(ValueError, match="channels: 6 is no multiple of norm_groups=4"):
        small(channels=[8, 6])


def test_a_dataset_without_latents_is_refused() -> None:
    task = mindeye_task({"model": {**SMALL, "low_level": SMALL_LOW_LEVEL}})
    columns = {name: column for name, column in task.dataset_schema.columns.items() if name != "vae_latent"}
    schema = Schema(columns, group="stimulus_id")
    with pytest.raises(
        InputError, match=r"the dataset has no column vae_latent; prepare it with vae\.model="
    ):
        latent_shape(small(), schema)
    assert latent_shape(LowLevelConfig(), schema) is None


def test_its_term_is_the_absolute_error_of_voxels_that_are_not_mixed() -> None:
    values = {
        "model": {**SMALL, "low_level": SMALL_LOW_LEVEL},
        "objective": {"gallery": "all", "mixco_fraction": 1.0},
    }
    task = mindeye_task(values)
    model = task.build_model().eval()
    assert isinstance(model, MindEye)
    assert model.low_level is not None
    columns = mindeye_rows(6, 0)
    columns |= {"valid": torch.arange(6).numpy() != 2, "position": torch.arange(6).numpy()}
    batch = task.augment(task.collate(columns), 3)
    (stage,) = task.config.resolved_stages()
    term = task.loss(model, batch, stage)["low_level"]
    with torch.no_grad():
        found = model.low_level(batch.voxels_BV)
        evaluated = task.evaluate(model, task.collate(columns), stage).sums["low_level"]
    error = F.l1_loss(found, torch.from_numpy(columns["vae_latent"]), reduction="none").mean((1, 2, 3))
    assert float(term.sum.detach()) == pytest.approx(float(error.sum() - error[2]), rel=1e-5)
    assert term.weight == pytest.approx(1 / 0.18215, rel=1e-3)
    assert int(evaluated.count) == 5
    assert "low_level" in task.metric_names()


def test_it_is_off_by_default() -> None:
    model = mindeye_task({"model": SMALL}).build_model()
    assert isinstance(model, MindEye)
    assert model.low_level is None
    assert vae_embedders(VaeTargetConfig()) == []
