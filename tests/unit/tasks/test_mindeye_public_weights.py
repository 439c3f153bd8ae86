"""Published S3 weights: their names and shapes, literally, and what a network computes by those names."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mindeye_rows import DIM, NUM_VOXELS
from mindeye_workers import train_share
from voxray.config.errors import InputError
from voxray.tasks.mindeye.brain_network import BrainNetwork
from voxray.tasks.mindeye.prior import DiffusionPrior
from voxray.tasks.mindeye.prior_network import PriorNetwork, TokenPriorNetwork
from voxray.tasks.mindeye.prior_transformer import TransformerShape
from voxray.tasks.mindeye.public_weights import convert
from voxray.train.checkpoints.weights import WeightsAt, load_into, read_weights
from voxray.train.run_folder import RunFolder

Shapes = dict[str, tuple[int, ...]]
SIZES_1X768 = TransformerShape(768, 12, 12, 64, 4, normformer=True)


def linear(name: str, num_in: int, num_out: int) -> Shapes:
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def norm(name: str, num: int, is_batch: bool = False) -> Shapes:
    batch = {f"{name}.running_mean": (num,), f"{name}.running_var": (num,), f"{name}.num_batches_tracked": ()}
    return {f"{name}.weight": (num,), f"{name}.bias": (num,)} | (batch if is_batch else {})


def seed_era_voxel2clip(voxels: int = 15_724, hidden: int = 4_096, width: int = 768) -> Shapes:
    """Linear, ReLU, BatchNorm, Dropout: checkpoints/clip_image_vitL_2stage_mixco_lotemp_….pth."""
    shapes = linear("lin0.0", voxels, hidden) | norm("lin0.2", hidden, is_batch=True)
    for i in range(4):
        shapes |= linear(f"mlp.{i}.0", hidden, hidden) | norm(f"mlp.{i}.2", hidden, is_batch=True)
    return shapes | linear("lin1", hidden, width)


def release_voxel2clip(
    voxels: int = 15_724, hidden: int = 4_096, width: int = 768, tokens: int = 257, inner: int = 2_048
) -> Shapes:
    """Linear, LayerNorm, GELU, Dropout, and the projector."""
    shapes = linear("lin0.0", voxels, hidden) | norm("lin0.1", hidden)
    for i in range(4):
        shapes |= linear(f"mlp.{i}.0", hidden, hidden) | norm(f"mlp.{i}.1", hidden)
    shapes |= linear("lin1", hidden, tokens * width)
    shapes |= norm("projector.0", width) | linear("projector.2", width, inner)
    shapes |= norm("projector.3", inner) | linear("projector.5", inner, inner)
    return shapes | norm("projector.6", inner) | linear("projector.8", inner, width)


def transformer(shape: TransformerShape) -> Shapes:
    """DALLE2-pytorch's CausalTransformer."""
    dim, inner, root = shape.dim, shape.feed_forward_mult * shape.dim, "net.causal_transformer"
    shapes: Shapes = {f"{root}.rel_pos_bias.relative_attention_bias.weight": (32, shape.heads)}
    for i in range(shape.depth):
        layer = f"{root}.layers.{i}"
        shapes |= {
            f"{layer}.0.null_kv": (2, shape.dim_head),
            f"{layer}.0.norm.g": (dim,),
            f"{layer}.0.to_q.weight": (shape.heads * shape.dim_head, dim),
            f"{layer}.0.to_kv.weight": (2 * shape.dim_head, dim),
            f"{layer}.0.rotary_emb.freqs": (min(32, shape.dim_head) // 2,),
            f"{layer}.0.to_out.0.weight": (dim, shape.heads * shape.dim_head),
            f"{layer}.0.to_out.1.g": (dim,),
            f"{layer}.1.0.g": (dim,),
            f"{layer}.1.1.weight": (2 * inner, dim),
            f"{layer}.1.5.weight": (dim, inner),
        }
        if shape.normformer:
            shapes[f"{layer}.1.3.g"] = (inner,)
    return shapes | {f"{root}.norm.g": (dim,), f"{root}.project_out.weight": (dim, dim)}


def schedule(timesteps: int) -> Shapes:
    names = """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
        log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance
        posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 p2_loss_weight"""
    return {f"noise_scheduler.{name}": (timesteps,) for name in names.split()}


def release_prior(shape: TransformerShape | None = None, tokens: int = 257, timesteps: int = 100) -> Shapes:
    """VersatileDiffusionPriorNetwork with continuous timesteps and learned_query_mode pos_emb."""
    shape = shape or TransformerShape()
    dim = shape.dim
    return {
        "net.learned_query": (tokens, dim),
        "net.null_brain_embeds": (tokens, dim),
        "net.null_image_embed": (tokens, dim),
        **linear("net.to_time_embeds.0.1.net.0.0", dim, 2 * dim),
        **linear("net.to_time_embeds.0.1.net.1.0", 2 * dim, 2 * dim),
        **linear("net.to_time_embeds.0.1.net.2", 2 * dim, dim),
        **transformer(shape),
        **schedule(timesteps),
    }


def laion_prior(
    shape: TransformerShape = SIZES_1X768, num_padding: int = 77, timesteps: int = 1_000
) -> Shapes:
    """nousr/conditioned-prior, vit-l-14/aesthetic: older than the null embeddings."""
    return {
        "net.learned_query": (shape.dim,),
        "net.null_text_embed": (1, num_padding, shape.dim),
        "net.to_time_embeds.0.weight": (timesteps, shape.dim),
        **transformer(shape),
        **schedule(timesteps),
        "clip.clip.visual.class_embedding": (1_024,),
        "clip.clip.logit_scale": (),
    }


def on_meta(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random(shapes: Shapes) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand(shape) + 0.1 for name, shape in shapes.items() if "noise_sch" not in name}


def assigned_whole(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    module.load_state_dict({name: value.to("meta") for name, value in weights.items()}, assign=True)


def test_published_names_and_shapes_fit_at_their_real_sizes() -> None:
    with torch.device("meta"):
        seed_era = BrainNetwork(15_724, norm="bn", act_first=True, projector=False)
        release = BrainNetwork(15_724, tokens=257)
        tokens_prior = DiffusionPrior(TokenPriorNetwork(257), 100)
        laion = DiffusionPrior(PriorNetwork(SIZES_1X768, 77, learned_timesteps=1_000), 1_000)
    assigned_whole(seed_era, convert("voxel2clip", on_meta(seed_era_voxel2clip()), seed_era).weights)
    whole = release_prior() | {f"voxel2clip.{k}": v for k, v in release_voxel2clip().items()}
    for prefix in ("", "module."):
        public = on_meta({f"{prefix}{name}": shape for name, shape in whole.items()})
        assigned_whole(release, convert("voxel2clip", public, release).weights)
        converted = convert("prior", public, tokens_prior)
        assert converted.made == ()
        assigned_whole(tokens_prior, converted.weights)
    converted = convert("prior", on_meta(laion_prior()), laion)
    assert set(converted.made) == {"network.null_brain", "network.null_image"}
    assigned_whole(laion, converted.weights)


def test_a_prior_without_padding_gets_a_new_one() -> None:
    shapes = laion_prior(TransformerShape(8, 1, 2, 4, normformer=True), 5, 10)
    del shapes["net.null_text_embed"]
    network = PriorNetwork(TransformerShape(8, 1, 2, 4, normformer=True), 256, learned_timesteps=10)
    converted = convert("prior", random(shapes), DiffusionPrior(network, 10))
    assert set(converted.made) == {"network.padding", "network.null_brain", "network.null_image"}
    assert converted.weights["network.padding"].std() == pytest.approx(1, abs=0.1)


def brain_network_by_public_names(w: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The release's BrainNetwork of 6-wide tokens in evaluation mode."""

    def dense(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def layer_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.gelu(layer_norm("lin0.1", dense("lin0.0", x)))
    for i in range(4):
        x = x + F.gelu(layer_norm(f"mlp.{i}.1", dense(f"mlp.{i}.0", x)))
    tokens = dense("lin1", x).reshape(len(x), -1, 6)
    projected = tokens
    for i in (0, 3, 6):
        projected = dense(f"projector.{i + 2}", F.gelu(layer_norm(f"projector.{i}", projected)))
    return tokens, projected


def test_release_voxel2clip_computes_what_its_names_mean() -> None:
    public = random(release_voxel2clip(10, 8, 6, 3, 7))
    network = BrainNetwork(10, 6, hidden=8, tokens=3, projector_hidden=7).eval()
    network.load_state_dict(convert("voxel2clip", public, network).weights)
    x = torch.randn(4, 10)
    for ours, theirs in zip(network(x), brain_network_by_public_names(public, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_seed_era_voxel2clip_computes_what_its_names_mean() -> None:
    public = random(seed_era_voxel2clip(10, 8, 6))
    network = BrainNetwork(10, 6, hidden=8, norm="bn", act_first=True, projector=False).eval()
    network.load_state_dict(convert("voxel2clip", public, network).weights)

    def layer(linear: str, batch_norm: str, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.linear(x, public[f"{linear}.weight"], public[f"{linear}.bias"]))
        kinds = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(public[f"{batch_norm}.{kind}"] for kind in kinds))

    x = given = torch.randn(4, 10)
    x = layer("lin0.0", "lin0.2", x)
    for i in range(4):
        x = layer(f"mlp.{i}.0", f"mlp.{i}.2", x) + x
    expected = F.linear(x, public["lin1.weight"], public["lin1.bias"])
    torch.testing.assert_close(network(given)[0], expected)


def transformer_by_public_names(w: dict[str, torch.Tensor], x: torch.Tensor, causal: bool) -> torch.Tensor:
    """One layer with two heads of four numbers over [N, 8], by DOMAINS.md S3.a."""
    root, layer = "net.causal_transformer", "net.causal_transformer.layers.0"
    num = len(x)

    def gain_norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:]) * w[f"{name}.g"]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(num)[:, None] * torch.tensor([1.0, 0.01])  # 10,000^(-2i/4)
        turned = torch.view_as_complex(x.reshape(num, 2, 2)) * torch.polar(torch.ones(num, 2), place)
        return torch.view_as_real(turned).flatten(1)

    normed = gain_norm(f"{layer}.0.norm", x)
    query = normed @ w[f"{layer}.0.to_q.weight"].T
    key, value = (normed @ w[f"{layer}.0.to_kv.weight"].T).chunk(2, dim=-1)
    null_key, null_value = w[f"{layer}.0.null_kv"]
    keys = torch.cat((null_key[None], rotated(key)))
    values = torch.cat((null_value[None], value))
    distance = (torch.arange(num)[:, None] - torch.arange(num + 1)).clamp(min=0)  # under 16: its own bucket
    bias = w[f"{root}.rel_pos_bias.relative_attention_bias.weight"][distance]
    heads = []
    for head in range(2):
        cosine = F.normalize(rotated(query[:, 4 * head : 4 * head + 4]), dim=-1) @ F.normalize(keys, dim=-1).T
        score = 16 * cosine + bias[..., head]
        if causal:
            score = score.masked_fill(torch.ones(num, num + 1).triu(2).bool(), -1e9)
        heads.append(score.softmax(-1) @ values)
    attended = torch.cat(heads, dim=-1) @ w[f"{layer}.0.to_out.0.weight"].T
    x = x + gain_norm(f"{layer}.0.to_out.1", attended)
    up, gate = (gain_norm(f"{layer}.1.0", x) @ w[f"{layer}.1.1.weight"].T).chunk(2, dim=-1)
    inner = up * F.silu(gate)
    if f"{layer}.1.3.g" in w:
        inner = gain_norm(f"{layer}.1.3", inner)
    x = x + inner @ w[f"{layer}.1.5.weight"].T
    return gain_norm(f"{root}.norm", x / x.amax(-1, keepdim=True)) @ w[f"{root}.project_out.weight"].T


def test_laion_prior_computes_what_its_names_mean() -> None:
    shape = TransformerShape(8, 1, 2, 4, normformer=True)
    public = random(laion_prior(shape, 5, 10))
    prior = DiffusionPrior(PriorNetwork(shape, 5, learned_timesteps=10), 10).eval()
    prior.load_state_dict(convert("prior", public, prior).weights)
    noised, brain, timestep = torch.randn(2, 8), torch.randn(2, 8), torch.tensor([3, 9])
    answer = prior.network(noised, timestep, brain)
    for i in range(2):
        tokens = torch.cat(
            (
                public["net.null_text_embed"][0],
                brain[i : i + 1],
                public["net.to_time_embeds.0.weight"][timestep[i : i + 1]],
                noised[i : i + 1],
                public["net.learned_query"][None],
            )
        )
        expected = transformer_by_public_names(public, tokens, causal=True)[-1]
        torch.testing.assert_close(answer[i], expected, rtol=1e-4, atol=1e-4)


def test_release_prior_computes_what_its_names_mean() -> None:
    shape = TransformerShape(8, 1, 2, 4)
    public = random(release_prior(shape, 3, 10))
    prior = DiffusionPrior(TokenPriorNetwork(3, shape), 10).eval()
    prior.load_state_dict(convert("prior", public, prior).weights)
    noised, brain = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    root = "net.to_time_embeds.0.1.net"
    angles = 7 / 10_000 ** (torch.arange(4) / 3)
    time = torch.cat((angles.sin(), angles.cos()))
    for name in ("0.0", "1.0"):
        time = F.silu(F.linear(time, public[f"{root}.{name}.weight"], public[f"{root}.{name}.bias"]))
    time = F.linear(time, public[f"{root}.2.weight"], public[f"{root}.2.bias"])
    timestep, dropped = torch.tensor([7]), torch.tensor([False])
    for keep, brain_tokens, image_tokens in (
        (None, brain[0], noised[0]),
        (dropped, public["net.null_brain_embeds"], public["net.null_image_embed"]),
    ):
        tokens = torch.cat((brain_tokens, time[None], image_tokens + public["net.learned_query"]))
        expected = transformer_by_public_names(public, tokens, causal=False)[-3:]
        answer = prior.network(noised, timestep, brain, keep, keep)[0]
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_a_published_file_is_read_safely_and_loads(tmp_path: Path) -> None:
    public = random(release_voxel2clip(10, 8, 6, 3, 7))
    torch.save({"epoch": 239, "model_state_dict": public, "optimizer_state_dict": {}}, tmp_path / "last.pth")
    network = BrainNetwork(10, 6, hidden=8, tokens=3, projector_hidden=7)
    weights = read_weights(WeightsAt(tmp_path / "last.pth", "last.pth"))
    loaded = load_into(network, convert("voxel2clip", weights, network).weights, print)
    assert (loaded.missing, loaded.unexpected) == ((), ())
    assert torch.equal(network.out.weight, public["lin1.weight"])


def test_what_was_renamed_made_and_left_out_is_told() -> None:
    shapes = laion_prior(TransformerShape(8, 1, 2, 4, normformer=True), 5, 10)
    network = PriorNetwork(TransformerShape(8, 1, 2, 4, normformer=True), 5, learned_timesteps=10)
    converted = convert("prior", random(shapes), DiffusionPrior(network, 10))
    ours = converted.weights.keys() - converted.made
    assert converted.told() == [
        f"{len(ours)} weights have other names here, e.g. net.learned_query is network.query",
        "the file lacks network.null_brain, network.null_image: new, normal random numbers, "
        "the same in every run",
        "in the file but no weights of this part, so left out: 1 *.rotary_emb.*, 2 clip.*",
    ]
    assert set(converted.renamed.values()) == set(ours)


def test_a_run_that_starts_from_a_published_file_tells_what_became_of_it(tmp_path: Path) -> None:
    """The file fits the small network: one block of 32, and a projector."""
    shapes = release_voxel2clip(NUM_VOXELS, 32, DIM, 1, 32)
    public = random({name: shape for name, shape in shapes.items() if not re.match(r"mlp\.[1-3]", name)})
    torch.save(public, tmp_path / "voxel2clip.pth")
    train_share(str(tmp_path / "run"), voxel2clip=str(tmp_path / "voxel2clip.pth"))
    notes = [record["text"] for record in RunFolder(tmp_path / "run").records() if record["kind"] == "note"]
    text = f"{len(public)} weights have other names here, e.g. lin0.0.weight is first.linear.weight"
    assert f"voxel2clip: {text}" in notes


def test_our_own_weights_stay_as_they_are() -> None:
    network = BrainNetwork(10, 6, hidden=8)
    assert convert("voxel2clip", network.state_dict(), network).told() == []
    alone = convert("voxel2clip", network.state_dict(), network).weights
    below = {f"voxel2clip.{name}": value for name, value in network.state_dict().items()}
    for found in (alone, convert("voxel2clip", below | {"prior.x": torch.zeros(1)}, network).weights):
        network.load_state_dict(found)


def test_every_name_and_shape_that_does_not_fit_is_told_at_once() -> None:
    public = random(release_voxel2clip(10, 8, 6, 3, 7))
    public["temp"] = torch.tensor(0.006)
    del public["projector.5.bias"]
    network = BrainNetwork(12, 6, hidden=8, tokens=3, projector_hidden=7, n_blocks=3)
    with pytest.raises(InputError) as told:
        convert("voxel2clip", public, network)
    assert set(told.value.problems) == {
        "the model has no place for temp []",
        "the model has no place for mlp.3.0.weight [8, 8]",
        "the model has no place for mlp.3.0.bias [8]",
        "the model has no place for mlp.3.1.weight [8]",
        "the model has no place for mlp.3.1.bias [8]",
        "lin0.0.weight is [8, 10], the model's first.linear.weight is [8, 12]",
        "the weights lack projector.linears.1.bias",
    }


def test_the_order_of_norm_and_activation_is_compared() -> None:
    network = BrainNetwork(10, 6, hidden=8, norm="bn", act_first=False, projector=False)
    with pytest.raises(InputError, match="are of layers with the activation before the norm"):
        convert("voxel2clip", random(seed_era_voxel2clip(10, 8, 6)), network)


def test_a_prior_of_other_sizes_tells_its_own() -> None:
    network = PriorNetwork(TransformerShape(768, 6, 12, 64), 256, learned_timesteps=1_000)
    with pytest.raises(InputError) as told:
        convert("prior", on_meta(laion_prior()), DiffusionPrior(network, 1_000))
    assert told.value.problems[-1] == (
        "the weights are of a prior with depth 12, dim 768, heads 12, dim_head 64, feed_forward_mult 4, "
        "normformer true, a table of timesteps 1000, num_padding 77"
    )
    assert "the model has no place for net.causal_transformer.layers.11.1.3.g [3072]" in told.value.problems
    text = "net.null_text_embed is [1, 77, 768], the model's network.padding is [256, 768]"
    assert text in told.value.problems


def test_another_schedule_is_refused() -> None:
    shape = TransformerShape(8, 1, 2, 4)
    prior = DiffusionPrior(TokenPriorNetwork(3, shape), 10)
    public = random(release_prior(shape, 3, 10))
    own = np.cos((np.arange(11) / 10 + 0.008) / 1.008 * np.pi / 2) ** 2
    signal = torch.tensor(own[1:] / own[0]).float()
    signal[-1] = signal[-2] * 0.001  # the last beta is cut at 0.999
    key = "noise_scheduler.alphas_cumprod"
    convert("prior", public | {key: signal}, prior)
    with pytest.raises(InputError, match="another schedule"):
        convert("prior", public | {key: signal * 0.9}, prior)
    with pytest.raises(InputError, match="of 12 timesteps, the model has 10"):
        convert("prior", public | {key: torch.rand(12)}, prior)
