"""Tokens, masks and the masked autoencoder against upstream's words, torch's own layers and timm's block."""

from typing import Any

import numpy as np
import pytest
import timm.models.vision_transformer as timm_vit
import torch
from pydantic import ValidationError
from torch import nn

from hyperspectral_rows import SMALL, cube_rows, hyperspectral_task
from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.tasks.hyperspectral.config import PRESETS, Config, ModelConfig
from voxray.tasks.hyperspectral.masking import TokenGrid, drawn_keys, hidden_tokens, kept_tokens, num_kept
from voxray.tasks.hyperspectral.model import Bands, MaskedAutoencoder, build, forward_flops
from voxray.tasks.hyperspectral.transformer import Blocks
from voxray.testing.sources import ArraySource

GUIDE = TokenGrid(groups=6, height=20, width=20, bands=5, side=25)
GRID = TokenGrid(groups=3, height=2, width=4, bands=2, side=4)


# --- tokens


def test_cutting_is_upstreams_and_joining_undoes_it() -> None:
    """DOMAINS.md S2.a: patchify is "nctuhpwq->nthwupqc", band-major; unpatchify is its inverse."""
    cube = torch.randn(2, 6, 8, 16)
    n, t, u, h, p, w = 2, GRID.groups, GRID.bands, GRID.height, GRID.side, GRID.width
    blocks = cube.reshape(n, 1, t, u, h, p, w, p)
    theirs = torch.einsum("nctuhpwq->nthwupqc", blocks).reshape(n, t * h * w, u * p * p)
    ours = GRID.cut(cube)
    torch.testing.assert_close(ours.flatten(3).flatten(1, 2), theirs, rtol=0, atol=0)
    assert torch.equal(GRID.join(ours), cube)
    assert torch.equal(GRID.cut_map(cube[:, 3]), ours[:, 1, :, 1])  # band 3 is the second of group 1


# --- masks


def test_480_of_the_guides_2400_tokens_are_kept() -> None:
    """Upstream's int(2400 * (1 - 0.8)) is 479."""
    assert (GUIDE.tokens, num_kept(GUIDE.tokens, 0.8), int(2400 * (1 - 0.8))) == (2400, 480, 479)
    kept = kept_tokens(torch.arange(3), GUIDE, 0.8, "random")
    assert kept.shape == (3, 480)
    assert hidden_tokens(kept, GUIDE).sum((1, 2)).tolist() == [1920] * 3


def test_a_rows_mask_depends_on_its_key_alone() -> None:
    keys = drawn_keys(7, torch.arange(20))
    assert len(set(keys.tolist())) == 20
    whole = kept_tokens(keys, GUIDE, 0.8, "random")
    assert torch.equal(kept_tokens(keys[4:6], GUIDE, 0.8, "random"), whole[4:6])
    assert torch.equal(drawn_keys(7, torch.tensor([4, 5])), keys[4:6])
    assert not torch.equal(whole[0], whole[1])
    shares = hidden_tokens(kept_tokens(torch.arange(400), GRID, 0.75, "random"), GRID).float().mean(0)
    assert float((shares - 0.75).abs().max()) < 5 * (0.75 * 0.25 / 400) ** 0.5  # each token alike


def test_tubes_go_through_all_bands_or_all_places() -> None:
    spatial = hidden_tokens(kept_tokens(torch.arange(5), GRID, 0.75, "spatial_tube"), GRID)
    assert (spatial == spatial[:, :1]).all()
    assert spatial[:, 0].sum(1).tolist() == [6] * 5
    spectral = hidden_tokens(kept_tokens(torch.arange(5), GRID, 0.6, "spectral_tube"), GRID)
    assert (spectral == spectral[:, :, :1]).all()
    assert spectral[:, :, 0].sum(1).tolist() == [2] * 5


def test_the_mask_changes_in_training_and_not_in_evaluation() -> None:
    task = hyperspectral_task({"model": SMALL})
    source = ArraySource({"train": cube_rows(8, 0)})
    batch = task.collate(next(iter(source.batches(EpochRequest("train", 8, seed=0)))))
    again = task.collate(next(iter(source.batches(EpochRequest("train", 8, seed=1)))))
    by_name = dict(zip(batch.sample_id, batch.mask_key_B.tolist(), strict=True))
    assert by_name == dict(zip(again.sample_id, again.mask_key_B.tolist(), strict=True))
    masks = [task.augment(batch, key).mask_key_B for key in (1, 2)]
    assert not torch.equal(*masks)


# --- the network


def test_the_presets_have_the_known_numbers_of_parameters() -> None:
    """DOMAINS.md S2.a, computed for the guide's cubes, in millions."""
    known = {"tiny": 10.3, "small": 27.0, "base": 95.2, "medium": 59.6, "large": 313.4, "huge": 641.8}
    for name in PRESETS:
        with torch.device("meta"):
            model = build(
                ModelConfig.model_validate({"name": name}), GUIDE, Bands(torch.zeros(30), torch.ones(30))
            )
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert round(millions, 1) == known[name.removeprefix("mae_")], name


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_positions_begin_as_far_apart_as_asked_for(std: float) -> None:
    """MAE's learned embeddings begin with 0.02 (DOMAINS.md S2.a), the default."""
    torch.manual_seed(0)
    values = {"name": "mae_tiny"} | ({} if std == 0.02 else {"position_std": std})
    bands = Bands(torch.zeros(30), torch.ones(30))
    model = build(ModelConfig.model_validate(values), GUIDE, bands)
    for part in ("encoder", "decoder"):
        found = model.get_parameter(f"{part}.positions.place_LD").detach().std()
        assert float(found) == pytest.approx(std, rel=0.02)


def test_one_step_of_our_blocks_is_one_of_timms() -> None:
    """The same weights, the same input, one step of SGD: outputs and weights agree to 1e-6."""
    torch.manual_seed(0)
    ours = Blocks(32, depth=2, num_heads=4, mlp_ratio=4.0, recompute=False)
    theirs = nn.Sequential(
        *(timm_vit.Block(32, 4, mlp_ratio=4.0, qkv_bias=True, norm_layer=_LayerNorm) for _ in range(2))
    )
    theirs.load_state_dict(ours.blocks.state_dict())
    x, target = torch.randn(3, 10, 32), torch.randn(3, 10, 32)
    norm = nn.LayerNorm(32)
    for model, forward in ((ours, ours), (theirs, lambda value: norm(theirs(value)))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = (forward(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.blocks.state_dict()[name], value, atol=1e-6, rtol=1e-6, msg=name)
    torch.testing.assert_close(nn.Sequential(*ours.blocks)(x), theirs(x), atol=1e-6, rtol=1e-6)


class _LayerNorm(nn.LayerNorm):
    """timm's: eps 1e-6."""

    def __init__(self, dim: int, **more: Any) -> None:
        super().__init__(dim, eps=1e-6, **more)


def small_model(**values: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**SMALL, **values})
    model = build(config, GRID, Bands(torch.zeros(6), torch.ones(6)))
    assert isinstance(model, MaskedAutoencoder)
    return model


def test_the_embedding_is_upstreams_convolution() -> None:
    """Conv3d(1, D, kernel = stride = (bands, side, side)) with the same numbers as weights."""
    embed = small_model().encoder.embed
    conv = nn.Conv3d(1, 32, (2, 4, 4), (2, 4, 4))
    with torch.no_grad():
        conv.weight.copy_(embed.weight.reshape(32, 1, 2, 4, 4))
        assert conv.bias is not None
        conv.bias.copy_(embed.bias)
    cube = torch.randn(2, 6, 8, 16)
    theirs = conv(cube[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(GRID.cut(cube).flatten(3).flatten(1, 2)), theirs, atol=1e-5, rtol=1e-5)


def test_what_is_hidden_does_not_reach_the_output() -> None:
    model = small_model().eval()
    cube = torch.randn(2, 6, 8, 16)
    kept = kept_tokens(torch.arange(2), GRID, 0.75, "random")
    hidden = GRID.join(hidden_tokens(kept, GRID)[..., None, None].expand_as(GRID.cut(cube)))
    changed = torch.where(hidden, cube + 100, cube)
    assert torch.equal(model(cube, kept), model(changed, kept))
    assert not torch.equal(model(cube, kept), model(torch.where(hidden, cube, cube + 1), kept))
    assert model.encoder(cube, kept).shape[1] == kept.shape[1] == 6


def test_keeping_all_tokens_is_hiding_none() -> None:
    model = small_model().eval()
    cube = torch.randn(2, 6, 8, 16)
    every = torch.arange(GRID.tokens).expand(2, -1)
    torch.testing.assert_close(model(cube, every), model(cube))


def test_recomputing_gives_the_same_gradients() -> None:
    cube, kept = torch.randn(2, 6, 8, 16), kept_tokens(torch.arange(2), GRID, 0.75, "random")
    gradients = []
    for recompute in (False, True):
        model = small_model(grad_checkpointing=recompute).train()
        model(cube, kept).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_flops_are_torchs_count_of_matrix_multiplications() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig.model_validate(SMALL)
    model, kept = small_model(), kept_tokens(torch.arange(1), GRID, 0.75, "random")
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(torch.randn(1, 6, 8, 16), kept)
    assert forward_flops(config, GRID, kept.shape[1]) == counter.get_total_flops()


# --- what does not fit


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"model": {"embed_dim": 100, "num_heads": 3}}, "embed_dim=100 cannot be divided among num_heads=3"),
        ({"model": {"image_size": 500, "patch_size": [12, 5]}}, "spatial patch_size among 1, 2, 4, 5, 10"),
        ({"model": {"in_chans": 30, "patch_size": [25, 4]}}, "spectral patch_size among 1, 2, 3, 5, 6"),
        ({"model": {"mask_ratio": 0.0}}, "recon_region=all"),
        ({"model": {"head": "classification"}}, "needs `classes`"),
        ({"model": {"name": "spectral_autoencoder", "head": "segmentation"}}, "choose one of mae_tiny"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values: dict, error: str) -> None:
    with pytest.raises(ValidationError, match=error.replace("[", r"\[")):
        Config.model_validate(values)


def test_a_dataset_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match="choose a divisor of 6: 1, 2, 3, 6"):
        hyperspectral_task({"model": {**SMALL, "patch_size": [4, 4]}}).build_model()
    with pytest.raises(InputError, match="choose a divisor of 12: 1, 2, 3, 4, 6, 12"):
        hyperspectral_task({"model": {**SMALL, "patch_size": [5, 2]}}).build_model()
    with pytest.raises(InputError, match="in_chans=30"):
        hyperspectral_task({"model": {**SMALL, "in_chans": 30}}).build_model()


@pytest.mark.parametrize(("side", "patch"), [(500, 25), (240, 12), (145, 5), (90, 9)])
def test_any_size_that_divides_can_be_cut(side: int, patch: int) -> None:
    grid = hyperspectral_task({"model": {**SMALL, "patch_size": [patch, 2]}}, side=side).grid
    assert grid.places == (side // patch) ** 2
    assert np.prod([grid.tokens, grid.values]) == 6 * side**2
