"""The diffusion prior against its equations: gold betas, loss and samplers written out, diffusers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn
from torch.nn import functional as F

from voxray.config.errors import InputError
from voxray.tasks.mindeye.diffusion import betas, signal_shares, visited
from voxray.tasks.mindeye.prior import DiffusionPrior, PriorDraws
from voxray.tasks.mindeye.prior_network import PriorNetwork, TokenPriorNetwork
from voxray.tasks.mindeye.prior_transformer import TransformerShape

TINY = TransformerShape(dim=24, depth=2, heads=3, dim_head=8)
D, T = 24, 20


def tiny_prior(tokens: int = 1, **settings: object) -> DiffusionPrior:
    torch.manual_seed(0)
    network = PriorNetwork(TINY, 4) if tokens == 1 else TokenPriorNetwork(tokens, TINY)
    return DiffusionPrior(network, **{"timesteps": T} | settings).eval()


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Answers(nn.Module):
    """A network that answers as a function says, of what it is given."""

    def __init__(self, answer, dim: int = D) -> None:
        super().__init__()
        self.answer, self.dim, self.learned_timesteps = answer, dim, None

    def guided(self, noised, timestep_B, brain, guidance=1.0):
        return self.answer(noised, timestep_B, brain)

    def forward(self, noised, timestep_B, brain, keep_brain_B=None, keep_image_B=None):
        return self.answer(noised, timestep_B, brain)


def test_cosine_betas_are_the_gold_ones() -> None:
    ours = betas("cosine", 100)
    np.testing.assert_allclose(ours[:3], [0.000631, 0.001117, 0.001603], atol=5e-7)
    np.testing.assert_allclose(ours[-2:], [0.749939, 0.999], atol=5e-7)


@pytest.mark.parametrize(("ours", "theirs"), [("cosine", "squaredcos_cap_v2"), ("linear", "linear")])
def test_schedules_are_those_of_diffusers(ours: str, theirs: str) -> None:
    expected = DDPMScheduler(1000, beta_schedule=theirs)
    np.testing.assert_allclose(betas(ours, 1000), expected.betas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(signal_shares(ours, 1000), expected.alphas_cumprod.numpy(), rtol=1e-3)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_loss_by_hand(tokens: int, predict_x0: bool) -> None:
    prior = tiny_prior(tokens, predict_x0=predict_x0, image_embed_scale=3.0)
    shape = (4, D) if tokens == 1 else (4, tokens, D)
    brain, target, noise = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    given = target.clone()
    timestep = torch.tensor([0, 7, 13, T - 1])
    keep_brain = torch.tensor([True, False, True, True])
    keep_image = torch.tensor([True, True, False, True])
    error, predicted = prior.loss(brain, target, PriorDraws(timestep, noise, keep_brain, keep_image))
    signal = torch.tensor(signal_shares("cosine", T)[timestep]).float()
    for i in range(4):
        noised = signal[i] ** 0.5 * 3 * target[i] + (1 - signal[i]) ** 0.5 * noise[i]
        answer = prior.network(
            noised[None], timestep[i : i + 1], brain[i : i + 1], keep_brain[i : i + 1], keep_image[i : i + 1]
        )[0]
        wanted = 3 * target[i] if predict_x0 else noise[i]
        torch.testing.assert_close(error[i], F.mse_loss(answer, wanted), rtol=1e-4, atol=1e-5)
        clean = answer if predict_x0 else (noised - (1 - signal[i]) ** 0.5 * answer) / signal[i] ** 0.5
        torch.testing.assert_close(predicted[i], clean / 3, rtol=1e-3, atol=1e-3)
    assert torch.equal(target, given)


def test_every_parameter_gets_a_gradient_whoever_is_dropped() -> None:
    for tokens in (1, 3):
        for dropout in (0.0, 1.0):
            prior = tiny_prior(tokens, condition_dropout=dropout)
            shape = (4, D) if tokens == 1 else (4, tokens, D)
            prior.loss(torch.randn(shape), torch.randn(shape)).error_B.sum().backward()
            assert [name for name, value in prior.named_parameters() if value.grad is None] == []


def test_default_scale_is_the_root_of_the_width() -> None:
    prior = DiffusionPrior(Answers(lambda noised, timestep, brain: brain, 768))
    assert prior.scale == pytest.approx(27.71, abs=0.005)


def test_draws_follow_their_distributions_and_their_generator() -> None:
    prior = tiny_prior(condition_dropout=0.2)
    draws = prior.draw(torch.empty(20_000, D), seeded())
    assert np.bincount(draws.timestep_B.numpy(), minlength=T).min() > 20_000 / T * 0.85
    assert len(draws.timestep_B.unique()) == T
    assert draws.keep_brain_B.float().mean() == pytest.approx(0.8, abs=0.01)
    assert draws.keep_image_B.float().mean() == pytest.approx(0.8, abs=0.01)
    both = (draws.keep_brain_B & draws.keep_image_B).float().mean()
    assert both == pytest.approx(0.64, abs=0.015)  # independent of each other
    assert draws.noise.std() == pytest.approx(1, abs=0.01)
    again = prior.draw(torch.empty(20_000, D), seeded())
    assert torch.equal(draws.noise, again.noise)
    assert torch.equal(draws.timestep_B, again.timestep_B)
    torch.manual_seed(3)
    one = prior.loss(torch.ones(4, D), torch.ones(4, D)).error_B
    torch.manual_seed(3)
    assert torch.equal(one, prior.loss(torch.ones(4, D), torch.ones(4, D)).error_B)


def test_guidance_is_linear_from_the_null_answer() -> None:
    for tokens in (1, 3):
        prior = tiny_prior(tokens)
        shape = (4, D) if tokens == 1 else (4, tokens, D)
        noised, brain, timestep = torch.randn(shape), torch.randn(shape), torch.tensor([0, 3, 8, 19])
        nothing = torch.zeros(4, dtype=torch.bool)
        conditioned = prior.network(noised, timestep, brain)
        null = prior.network(noised, timestep, brain, nothing, nothing)
        assert torch.equal(prior.network.guided(noised, timestep, brain, 1.0), conditioned)
        assert not torch.allclose(null, conditioned)
        torch.testing.assert_close(
            prior.network.guided(noised, timestep, brain, 2.5), -1.5 * null + 2.5 * conditioned
        )


def test_sampling_at_guidance_1_is_sampling_without() -> None:
    prior, brain = tiny_prior(), torch.randn(3, D)
    plain = prior.sample(brain, generator=seeded())
    assert torch.equal(prior.sample(brain, guidance=1.0, generator=seeded()), plain)
    assert not torch.allclose(prior.sample(brain, guidance=2.0, generator=seeded()), plain)


def ddpm_by_hand(prior: DiffusionPrior, brain: torch.Tensor, noise: torch.Generator) -> np.ndarray:
    """DDPM's algorithm 2 with the posterior's mean and variance (arXiv 2006.11239 eq. 6 and 7)."""
    beta = betas("cosine", T)
    alpha = 1 - beta
    signal = np.cumprod(alpha)
    before = np.append(1.0, signal[:-1])
    x = torch.randn(brain.shape, generator=noise).numpy().astype(np.float64)
    for t in reversed(range(T)):
        with torch.no_grad():
            answer = prior.network(torch.tensor(x).float(), torch.full((len(brain),), t), brain)
        clean = answer.numpy().astype(np.float64)
        x = (
            np.sqrt(before[t]) * beta[t] / (1 - signal[t]) * clean
            + np.sqrt(alpha[t]) * (1 - before[t]) / (1 - signal[t]) * x
        )
        if t > 0:
            z = torch.randn(brain.shape, generator=noise).numpy()
            x = x + np.sqrt(beta[t] * (1 - before[t]) / (1 - signal[t])) * z
    return x / np.sqrt(D)


def ddim_by_hand(prior: DiffusionPrior, brain: torch.Tensor, noise: torch.Generator) -> np.ndarray:
    """DDIM at eta 0 over timesteps 19, 14, 9, 4 (arXiv 2010.02502 eq. 12)."""
    signal = np.cumprod(1 - betas("cosine", T))
    x = torch.randn(brain.shape, generator=noise).numpy().astype(np.float64)
    for t, before in ((19, 14), (14, 9), (9, 4), (4, None)):
        with torch.no_grad():
            answer = prior.network(torch.tensor(x).float(), torch.full((len(brain),), t), brain)
        clean = answer.numpy().astype(np.float64)
        direction = (x - np.sqrt(signal[t]) * clean) / np.sqrt(1 - signal[t])
        share = 1.0 if before is None else signal[before]
        x = np.sqrt(share) * clean + np.sqrt(1 - share) * direction
    return x / np.sqrt(D)


@pytest.mark.parametrize("tokens", [1, 3])
def test_samplers_by_hand(tokens: int) -> None:
    prior = tiny_prior(tokens)
    brain = torch.randn((3, D) if tokens == 1 else (3, tokens, D))
    ours = prior.sample(brain, method="ddpm", generator=seeded())
    np.testing.assert_allclose(ours[:, 0], ddpm_by_hand(prior, brain, seeded()), atol=2e-5)
    ours = prior.sample(brain, steps=4, method="ddim", generator=seeded())
    np.testing.assert_allclose(ours[:, 0], ddim_by_hand(prior, brain, seeded()), atol=2e-5)


@pytest.mark.parametrize("steps", [T, 5])
@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_samplers_are_those_of_diffusers(steps: int, method: str, predict_x0: bool) -> None:
    # noise is predicted on the linear schedule: at the cosine one's end it is divided by an ᾱ of nearly 0
    prior = tiny_prior(predict_x0=predict_x0, beta_schedule="cosine" if predict_x0 else "linear")
    brain = torch.randn(3, D)
    settings = {
        "num_train_timesteps": T,
        "trained_betas": betas("cosine" if predict_x0 else "linear", T).tolist(),
        "prediction_type": "sample" if predict_x0 else "epsilon",
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    scheduler = DDPMScheduler(**settings) if method == "ddpm" else DDIMScheduler(**settings)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == [timestep for timestep, _ in visited(T, steps)]
    generator = seeded()
    x = torch.randn(brain.shape, generator=generator)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            answer = prior.network(x, timestep.expand(3), brain)
            x = scheduler.step(answer, timestep, x, generator=generator).prev_sample
    ours = prior.sample(brain, steps, method=method, generator=seeded())[:, 0]
    scale = float(x.abs().max()) / D**0.5
    torch.testing.assert_close(ours, x / D**0.5, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_samples_of_a_perfect_prior_have_its_distribution(method: str) -> None:
    """For x_0 ~ N(m, s²) the expected x_0 of x_t is known, so the samples' mean and spread are."""
    mean, spread, num = 0.7, 0.4, 4_000
    shares = torch.tensor(signal_shares("cosine", 400)).float()

    def expected_clean(noised, timestep_B, brain):
        signal = shares[timestep_B][:, None]
        gain = signal.sqrt() * spread**2 / (signal * spread**2 + 1 - signal)
        return mean + gain * (noised - signal.sqrt() * mean)

    prior = DiffusionPrior(Answers(expected_clean, 1), timesteps=400, image_embed_scale=2.0)
    samples = prior.sample(torch.zeros(num, 1), method=method, generator=seeded()).flatten()
    assert samples.mean() == pytest.approx(mean / 2, abs=0.012)
    assert samples.std() == pytest.approx(spread / 2, rel=0.05)


def test_a_row_s_own_generator_makes_its_samples() -> None:
    prior, brain = tiny_prior(3), torch.randn(4, 3, D)
    seeds = [11, 12, 13, 14]
    samples = prior.sample(brain, n=2, generator=[seeded(seed) for seed in seeds])
    assert samples.shape == (4, 2, 3, D)
    assert not torch.allclose(samples[:, 0], samples[:, 1])
    part = prior.sample(brain[1:3], n=2, generator=[seeded(12), seeded(13)])
    torch.testing.assert_close(part, samples[1:3])


def test_samples_of_a_row_are_conditioned_on_that_row() -> None:
    prior = DiffusionPrior(Answers(lambda noised, timestep, brain: brain * 5.0), 6, image_embed_scale=5.0)
    brain = torch.randn(3, D)
    samples = prior.sample(brain, n=2, generator=seeded())
    torch.testing.assert_close(samples, brain[:, None].expand(3, 2, D))


@pytest.mark.parametrize("steps", [1, 3, 7, 19, 20])
def test_steps_go_from_the_last_timestep_to_the_end(steps: int) -> None:
    pairs = visited(T, steps)
    assert len(pairs) == steps
    assert (pairs[0][0], pairs[-1][1]) == (T - 1, -1)
    assert all(one[1] == other[0] for one, other in pairwise(pairs))
    gaps = [timestep - following for timestep, following in pairs]
    assert max(gaps) - min(gaps) <= 1
    theirs = DDIMScheduler(T, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert [timestep for timestep, _ in pairs] == theirs.timesteps.tolist()
    samples = tiny_prior().sample(torch.randn(2, D), steps, generator=seeded())
    assert samples.isfinite().all()


def test_what_a_prior_refuses() -> None:
    prior = tiny_prior()
    with pytest.raises(InputError, match="1 to 20 steps, not in 21"):
        prior.sample(torch.randn(2, D), steps=21)
    with pytest.raises(InputError, match="not in 0"):
        prior.sample(torch.randn(2, D), steps=0)
    with pytest.raises(InputError, match="condition_dropout above 0"):
        tiny_prior(condition_dropout=0.0).sample(torch.randn(2, D), guidance=2.0)
    with pytest.raises(InputError, match="timesteps=10"):
        DiffusionPrior(PriorNetwork(TINY, 4, learned_timesteps=10), timesteps=20)


def test_a_trained_prior_samples_near_what_it_was_taught() -> None:
    """The brain's embedding is a rotation of the image's: a sample must be near its own image, and nearer
    than to any other row's.
    """
    torch.manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    image = F.normalize(torch.randn(4, 8), dim=-1)
    prior = DiffusionPrior(PriorNetwork(TransformerShape(8, 2, 2, 8), 0), 20, condition_dropout=0.1)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        prior.loss((image @ rotation).repeat(4, 1) * 8**0.5, image.repeat(4, 1)).error_B.mean().backward()
        optimizer.step()
    samples = prior.eval().sample(image @ rotation * 8**0.5, generator=seeded())[:, 0]
    similarity = F.normalize(samples, dim=-1) @ image.T
    assert similarity.diagonal().mean() > 0.9
    assert torch.equal(similarity.argmax(1), torch.arange(4))
