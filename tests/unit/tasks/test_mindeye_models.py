"""The networks of S3 against DOMAINS.md S3.a: public counts, layers by hand, reference libraries."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions
from transformers.models.t5.modeling_t5 import T5Attention

from voxray.tasks.mindeye.brain_network import BrainNetwork
from voxray.tasks.mindeye.prior_network import PriorNetwork, TimestepEmbedding, TokenPriorNetwork
from voxray.tasks.mindeye.prior_transformer import (
    GainNorm,
    MultiQueryAttention,
    PositionBias,
    PriorTransformer,
    TransformerShape,
    rotate,
)

NUM_VOXELS = 15_724  # subject 1
TINY = TransformerShape(dim=24, depth=2, heads=3, dim_head=8)
ROTARY_FREQUENCIES = 16  # which DALLE2-pytorch counts as a parameter that is not trained


def num_parameters(*modules: nn.Module) -> int:
    return sum(value.numel() for module in modules for value in module.parameters())


def test_public_parameter_counts() -> None:
    with torch.device("meta"):
        hidden = BrainNetwork(NUM_VOXELS, tokens=257)
        prior = TokenPriorNetwork(257)
        first = BrainNetwork(NUM_VOXELS, norm="bn", act_first=True, projector=False)
    assert num_parameters(hidden) == 947_579_904
    assert num_parameters(hidden, prior) + ROTARY_FREQUENCIES == 1_003_635_088
    assert round(num_parameters(first) / 1e6, 1) == 134.7


def layer_by_hand(x: torch.Tensor, layer: nn.Module, order: str) -> torch.Tensor:
    """Evaluation mode: BatchNorm by its running statistics."""
    x = x @ layer.linear.weight.T + layer.linear.bias
    norm = layer.norm
    steps = {
        "relu": lambda x: x.clamp(min=0),
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "bn": lambda x: (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias,
        "ln": lambda x: (
            (x - x.mean(1, keepdim=True))
            / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            * norm.weight
            + norm.bias
        ),
    }
    for name in order.split():
        x = steps[name](x)
    return x


@pytest.mark.parametrize(
    ("norm", "act_first", "order"),
    [("bn", True, "relu bn"), ("bn", False, "bn relu"), ("ln", False, "ln gelu"), ("ln", True, "gelu ln")],
)
def test_brain_network_by_hand(norm: str, act_first: bool, order: str) -> None:
    torch.manual_seed(0)
    network = BrainNetwork(
        10, 6, hidden=8, n_blocks=2, norm=norm, act_first=act_first, projector=False
    ).double()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 1)  # norms and running statistics that do something
    network.eval()
    x = torch.randn(4, 10, dtype=torch.float64)
    expected = layer_by_hand(x, network.first, order)
    for block in network.blocks:
        expected = layer_by_hand(expected, block, order) + expected
    expected = expected @ network.out.weight.T + network.out.bias
    embedding, projected = network(x)
    assert projected is None
    torch.testing.assert_close(embedding, expected)


def test_brain_network_projects_each_token_alone() -> None:
    torch.manual_seed(0)
    network = BrainNetwork(10, 6, hidden=8, n_blocks=1, tokens=5, projector_hidden=7).eval()
    embedding, projected = network(torch.randn(3, 10))
    assert embedding.shape == projected.shape == (3, 5, 6)
    assert [(layer.in_features, layer.out_features) for layer in network.projector.linears] == [
        (6, 7), (7, 7), (7, 6),
    ]  # fmt: skip
    alone = embedding[1, 3]
    for norm, linear in zip(network.projector.norms, network.projector.linears, strict=True):
        alone = linear(F.gelu(F.layer_norm(alone, alone.shape, norm.weight, norm.bias)))
    torch.testing.assert_close(projected[1, 3], alone)


def test_dropout_is_a_half_first_and_015_in_the_blocks() -> None:
    torch.manual_seed(0)
    network = BrainNetwork(10, 6, hidden=100, n_blocks=1, projector=False)
    kept = network.first(torch.randn(400, 10)) != 0
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    assert [block.dropout.p for block in network.blocks] == [0.15]


def test_rotation_is_gpt_j_s() -> None:
    torch.manual_seed(0)
    x_BHNE = torch.randn(2, 3, 9, 40)
    table = create_sinusoidal_positions(9, 32)
    sin, cos = table[None].chunk(2, dim=-1)
    expected = apply_rotary_pos_emb(x_BHNE[..., :32].transpose(1, 2), sin, cos).transpose(1, 2)
    torch.testing.assert_close(rotate(x_BHNE)[..., :32], expected)
    assert torch.equal(rotate(x_BHNE)[..., 32:], x_BHNE[..., 32:])


def test_position_buckets_are_t5_s() -> None:
    bias = PositionBias(heads=2)
    with torch.no_grad():
        bias.table.weight[:] = torch.arange(32.0)[:, None]
    num = 300
    distance = torch.arange(num + 1)[None] - torch.arange(num)[:, None]
    expected = T5Attention._relative_position_bucket(distance, False, 32, 128)
    assert torch.equal(bias(num)[1], expected.float())


def test_gain_norm() -> None:
    torch.manual_seed(0)
    norm = GainNorm(6)
    stable = GainNorm(6, stable=True)
    with torch.no_grad():
        norm.gain[:] = stable.gain[:] = torch.rand(6)
    x = torch.randn(3, 6) * 0.01
    wide = x.double().numpy()
    for module, scaled in ((norm, wide), (stable, wide / wide.max(1, keepdims=True))):
        centred = scaled - scaled.mean(1, keepdims=True)
        expected = centred / np.sqrt(scaled.var(1, keepdims=True) + 1e-5) * module.gain.detach().numpy()
        np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def attention_by_hand(attention: MultiQueryAttention, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One row [N, D], head by head and query by query."""

    def gain_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, gain.shape) * gain

    x = gain_norm(x, attention.norm.gain)
    size = attention.null_key_value.shape[1]
    key, value = (x @ attention.to_key_value.weight.T).split(size, dim=-1)
    keys = torch.cat((attention.null_key_value[:1], rotate(key)))
    values = torch.cat((attention.null_key_value[1:], value))
    heads = []
    for head in range(attention.heads):
        weight = attention.to_query.weight[head * size : (head + 1) * size]
        query = rotate(x @ weight.T)
        rows = []
        for place in range(len(x)):
            cosine = torch.stack([F.cosine_similarity(query[place], key, dim=0) for key in keys])
            rows.append(torch.softmax(16 * cosine + bias[head, place], 0) @ values)
        heads.append(torch.stack(rows))
    return gain_norm(torch.cat(heads, dim=-1) @ attention.to_out.weight.T, attention.out_norm.gain)


def test_attention_by_hand_and_its_gradients() -> None:
    torch.manual_seed(0)
    attention = MultiQueryAttention(TINY).double()
    x = torch.randn(2, 5, TINY.dim, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(TINY.heads, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, bias, *attention.parameters())
    ours, _ = attention(x, bias)
    by_hand = torch.stack([attention_by_hand(attention, row, bias) for row in x])
    torch.testing.assert_close(ours, by_hand)
    weight = torch.randn_like(ours)
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)
    expected = torch.autograd.grad((by_hand * weight).sum(), inputs)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("normformer", [False, True])
def test_feed_forward_is_swiglu(normformer: bool) -> None:
    torch.manual_seed(0)
    layer = (
        PriorTransformer(
            TransformerShape(dim=8, depth=1, heads=2, dim_head=4, feed_forward_mult=3, normformer=normformer),
            causal=True,
        )
        .layers[0]
        .feed_forward
    )
    x = torch.randn(2, 3, 8)
    weight_value, weight_gate = layer.up.weight.chunk(2)
    normed = F.layer_norm(x, (8,))
    inner = (normed @ weight_value.T) * F.silu(normed @ weight_gate.T)
    assert inner.shape[-1] == 24
    if normformer:
        inner = F.layer_norm(inner, (24,))
    torch.testing.assert_close(layer(x), inner @ layer.down.weight.T)


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(causal: bool) -> None:
    torch.manual_seed(0)
    transformer = PriorTransformer(TINY, causal)
    tokens = torch.randn(1, 6, TINY.dim)
    changed = tokens.clone()
    changed[0, 3] += 1
    differs = (transformer(tokens) != transformer(changed)).any(-1)[0].tolist()
    assert differs == ([False] * 3 + [True] * 3 if causal else [True] * 6)


def test_common_tokens_once_are_common_tokens_in_every_row() -> None:
    torch.manual_seed(0)
    transformer = PriorTransformer(TINY, causal=True).double()
    common = torch.randn(7, TINY.dim, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(3, 4, TINY.dim, dtype=torch.float64, requires_grad=True)
    once = transformer(tokens, common)
    repeated = transformer(torch.cat((common.expand(3, -1, -1), tokens), dim=1))[:, 7:]
    torch.testing.assert_close(once, repeated)
    weight, inputs = torch.randn_like(once), (common, tokens, *transformer.parameters())
    for one, other in zip(
        torch.autograd.grad((once * weight).sum(), inputs),
        torch.autograd.grad((repeated * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_timestep_embedding_before_its_mlp() -> None:
    embedding = TimestepEmbedding(8)
    embedding.mlp = nn.Identity()
    embedding.mlp.dtype_of = nn.Parameter(torch.zeros(()))  # the embedding follows its parameters' dtype
    row = embedding(torch.tensor([7]))[0].detach().numpy()
    angles = [7 / 10_000 ** (i / 3) for i in range(4)]
    np.testing.assert_allclose(row, [*np.sin(angles), *np.cos(angles)], atol=1e-6)


def test_prior_network_reads_its_tokens_in_order() -> None:
    torch.manual_seed(0)
    network = PriorNetwork(TINY, num_padding=4, learned_timesteps=10)
    seen = []
    network.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    noised, brain, timestep = torch.randn(2, 24), torch.randn(2, 24), torch.tensor([3, 9])
    answer = network(noised, timestep, brain)
    own = (
        brain[:, None],
        network.timestep.weight[timestep][:, None],
        noised[:, None],
        network.query.expand(2, 1, -1),
    )
    assert torch.equal(seen[0], torch.cat(own, dim=1))
    whole = torch.cat((network.padding.expand(2, -1, -1), *own), dim=1)
    torch.testing.assert_close(answer, network.transformer(whole)[:, -1])


def test_token_prior_network_reads_its_tokens_in_order() -> None:
    torch.manual_seed(0)
    network = TokenPriorNetwork(5, TINY, learned_timesteps=10)
    seen = []
    network.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    noised, brain, timestep = torch.randn(2, 5, 24), torch.randn(2, 5, 24), torch.tensor([3, 9])
    answer = network(noised, timestep, brain)
    expected = torch.cat((brain, network.timestep.weight[timestep][:, None], noised + network.place), dim=1)
    assert torch.equal(seen[0], expected)
    assert torch.equal(answer, network.transformer(expected)[:, -5:])


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_dropped_condition_is_not_seen(tokens: int) -> None:
    torch.manual_seed(0)
    network = PriorNetwork(TINY, 4) if tokens == 1 else TokenPriorNetwork(tokens, TINY)
    shape = (3, 24) if tokens == 1 else (3, tokens, 24)
    noised, brain, other = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    timestep = torch.tensor([1, 5, 8])
    keep = torch.tensor([True, False, True])
    answer = network(noised, timestep, brain, keep_brain_B=keep)
    same_row = (answer == network(noised, timestep, other, keep_brain_B=keep)).flatten(1).all(1)
    assert same_row.tolist() == [False, True, False]
    answer = network(noised, timestep, brain, keep_image_B=keep)
    same_row = (answer == network(other, timestep, brain, keep_image_B=keep)).flatten(1).all(1)
    assert same_row.tolist() == [False, True, False]


def test_half_precision_agrees() -> None:
    torch.manual_seed(0)
    network = TokenPriorNetwork(5, TINY)
    inputs = torch.randn(2, 5, 24), torch.tensor([3, 9]), torch.randn(2, 5, 24)
    full = network(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(*inputs)
    assert half.isfinite().all()
    assert F.cosine_similarity(full.flatten(1), half.float().flatten(1)).min() > 0.999
