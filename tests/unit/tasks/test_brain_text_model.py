"""Brain-to-text networks: gold values, parity with the public baseline's equations, what is frozen."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch.nn import functional as F

from trial_rows import AUDIO_DIM, SMALL, TINY_LLM, brain_task, trial_rows
from voxray.config.errors import InputError
from voxray.core.experiment import load_experiment
from voxray.core.schema import Schema
from voxray.tasks.brain_text import objective
from voxray.tasks.brain_text.config import TransformsConfig
from voxray.tasks.brain_text.encoder import num_patches
from voxray.tasks.brain_text.model import BrainTextModel
from voxray.tasks.brain_text.task import BrainText
from voxray.tasks.brain_text.transforms import augmented, gaussian_taps, smoothed
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.optimisation.parameters import choose_trainable
from voxray.train.optimisation.schedules import Place, rate

CTC = {"alpha": 0.0, "beta": 0.0, "gamma": 1.0}
LLM = {"alpha": 0.0, "beta": 1.0}


def batch_of(task: BrainText, num_rows: int = 6, seed: int = 0, **rows: Any):
    columns = trial_rows(num_rows, seed, **rows)
    return task.collate({**columns, "valid": np.ones(num_rows, bool), "position": np.arange(num_rows)})


def summed(task: BrainText, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    terms = task.loss(model, batch, task.config.resolved_stages()[-1])
    return torch.stack([term.weight * term.sum for term in terms.values()]).sum()


# --- definitions and gold values (DOMAINS.md S1.a, S1.b, 7)


def test_patches_of_a_trial() -> None:
    bins = torch.tensor([13, 14, 17, 18, 100, 544])
    assert num_patches(bins, 14, 4).tolist() == [0, 1, 1, 2, 22, 133]


def test_rates_of_the_guide() -> None:
    training = load_experiment("brain_text/ctc_baseline").config.training
    gold = {0: 0.0, 500: 0.0025, 1000: 0.005, 60500: 0.00255, 119999: 0.0001, 130000: 0.0001}
    for step, expected in gold.items():
        found = rate(training, training.learning_rate, Place(step, training.steps or 0, 0, 1))
        assert found == pytest.approx(expected, abs=1e-8), step


def test_three_groups_of_parameters() -> None:
    """Biases without decay, sessions' layers with a rate of their own and no decay, all others."""
    task = brain_task({"model": SMALL, "objective": CTC})
    model = task.build_model()
    training = load_experiment("brain_text/ctc_baseline", ["training.parameters.day_*.learning_rate=0.002"])
    choose_trainable(model, training.config.training)
    groups = build_optimizer(model, training.config.training).param_groups
    names = {id(value): name for name, value in model.named_parameters()}
    found = {
        (group["lr"], group["weight_decay"]): {names[id(value)].split(".")[0] for value in group["params"]}
        for group in groups
    }
    assert found == {
        (0.002, 0.0): {"day_layers"},
        (0.005, 1e-3): {"gru", "head"},
        (0.005, 0.0): {"gru", "head"},
    }


def test_forward_is_the_public_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Day layer, patches, GRU and head written out in numpy from the baseline's equations."""
    task = brain_task({"model": {**SMALL, "patch_size": 14}, "objective": CTC})
    torch.manual_seed(1)
    model = task.build_model().eval()
    assert isinstance(model, BrainTextModel)
    assert model.day_layers is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = batch_of(task, 3)
    monkeypatch.setattr(model, "transforms", TransformsConfig(smooth_data=False))
    logits = model(batch.neural_BTF, batch.num_time_steps_B, batch.day_B).logits_BPK
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    for row in range(3):
        day, num = int(batch.day_B[row]), int(batch.num_time_steps_B[row])
        x = batch.neural_BTF[row, :num].numpy() @ weights["day_layers.weight"][day]
        x = x + weights["day_layers.bias"][day]
        x = x / (1 + np.abs(x))
        steps = np.stack([x[start : start + 14].reshape(-1) for start in range(0, num - 13, 4)])
        for layer in range(SMALL["n_layers"]):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            w_ih, w_hh, b_ih, b_hh = (weights[f"gru.rnn.{name}_l{layer}"] for name in names)
            h, states = weights["gru.h0_11H"][0, 0], []
            for step in steps:
                r_i, z_i, n_i = np.split(w_ih @ step + b_ih, 3)
                r_h, z_h, n_h = np.split(w_hh @ h + b_hh, 3)
                r, z = sigmoid(r_i + r_h), sigmoid(z_i + z_h)
                h = (1 - z) * np.tanh(n_i + r * n_h) + z * h
                states.append(h)
            steps = np.stack(states)
        expected = steps @ weights["head.weight"].T + weights["head.bias"]
        np.testing.assert_allclose(logits[row, : len(expected)].detach(), expected, atol=2e-5)


def test_a_new_layer_is_the_softsign_alone() -> None:
    model = brain_task({"model": SMALL, "objective": CTC}).build_model()
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(model.day_layers(x, torch.tensor([0, 1])), F.softsign(x))


# --- transforms


def test_the_kernel_is_what_scipy_makes_of_an_impulse() -> None:
    """As upstream builds it: taps of a filtered unit impulse that are above 0.01."""
    impulse = np.zeros(100)
    impulse[50] = 1
    taps = gaussian_filter1d(impulse, 2.0)
    taps = taps[taps > 0.01]
    np.testing.assert_allclose(gaussian_taps(2.0, 100), taps / taps.sum(), atol=1e-4)


def test_smoothing_of_a_padded_trial_is_that_of_the_trial() -> None:
    config, x = TransformsConfig(), torch.randn(1, 40, 3)
    padded = smoothed(F.pad(x, (0, 0, 0, 25)), torch.tensor([40]), config)
    torch.testing.assert_close(padded[:, :40], smoothed(x, torch.tensor([40]), config))
    assert not padded[:, 40:].any()
    taps = gaussian_taps(2.0, 100).float()
    torch.testing.assert_close(padded[0, 20, 0], (x[0, 20 - len(taps) // 2 :, 0][: len(taps)] * taps).sum())


def test_noise_is_drawn_at_a_trials_own_length() -> None:
    """A trial has the same noise whatever it is padded to; padding has none."""
    config = TransformsConfig(random_cut=3, random_walk_std=0.5, static_gain_std=0.1)
    x, position = torch.randn(4, 30, 5), torch.tensor([3, 9, 12, 40])
    lengths = torch.tensor([30, 12, 25, 1])
    x = torch.where(torch.arange(30)[None, :, None] < lengths[:, None, None], x, 0.0)
    ours, left = augmented(x, lengths, position, 5, config)
    wide, left_wide = augmented(F.pad(x, (0, 0, 0, 11)), lengths, position, 5, config)
    torch.testing.assert_close(wide[:, :30], ours)
    assert torch.equal(left, left_wide)
    for row, num in enumerate(left.tolist()):
        assert ours[row, :num].any(1).all()
        assert not ours[row, num:].any()


def test_noise_has_its_deviations_and_cuts_are_0_to_2() -> None:
    num = 600
    lengths, position = torch.full((num,), 20), torch.arange(num)
    zeros = torch.zeros(num, 20, 30)
    plain = {"white_noise_std": 0.0, "constant_offset_std": 0.0, "random_cut": 0}
    white, _ = augmented(zeros, lengths, position, 1, TransformsConfig(**{**plain, "white_noise_std": 0.7}))
    assert white.std() == pytest.approx(0.7, rel=0.01)
    offset, _ = augmented(
        zeros, lengths, position, 1, TransformsConfig(**{**plain, "constant_offset_std": 0.2})
    )
    assert offset[:, 0].std() == pytest.approx(0.2, rel=0.02)
    assert torch.equal(offset[:, 0], offset[:, 19])
    walk, _ = augmented(zeros, lengths, position, 1, TransformsConfig(**{**plain, "random_walk_std": 0.1}))
    assert walk[:, 15].std() == pytest.approx(0.4, rel=0.03)  # 16 steps
    ramp = torch.arange(20.0).expand(num, 20)[..., None]
    cut, left = augmented(ramp, lengths, position, 1, TransformsConfig(**{**plain, "random_cut": 3}))
    assert np.bincount(20 - left.numpy(), minlength=3) == pytest.approx([200, 200, 200], abs=40)
    assert torch.equal(cut[:, 0, 0], (20 - left).float())


# --- losses


def test_matching_is_interpolate_of_each_trial_alone() -> None:
    rows, num, wanted = torch.randn(4, 9, 3), torch.tensor([9, 4, 1, 7]), torch.tensor([5, 4, 1, 2])
    found = objective.matched(rows, num, wanted)
    for row, (have, want) in enumerate(zip(num.tolist(), wanted.tolist(), strict=True)):
        theirs = F.interpolate(rows[row : row + 1, :have].transpose(1, 2), size=want, mode="linear")
        torch.testing.assert_close(found[row : row + 1, :want], theirs.transpose(1, 2))


@pytest.mark.parametrize("kind", objective.STEPWISE)
def test_distances_are_means_over_matched_steps(kind: str) -> None:
    brain, audio = torch.randn(2, 8, 5), torch.randn(2, 6, 5)
    steps, tokens = torch.tensor([8, 3]), torch.tensor([6, 0])
    found = objective.stepwise_distance(kind, brain, audio, steps, tokens)
    ours = F.interpolate(brain[:1].transpose(1, 2), size=6, mode="linear").transpose(1, 2)
    away = {
        "cosine": (1 - F.cosine_similarity(ours, audio[:1], dim=-1)).sum(),
        "mse": F.mse_loss(ours, audio[:1]) * 6,
        "smooth_l1": F.smooth_l1_loss(ours, audio[:1]) * 6,
    }
    torch.testing.assert_close(found, away[kind])
    assert objective.num_matched(kind, steps, tokens).tolist() == [6, 0]


def test_ctc_leaves_out_what_it_cannot_spell() -> None:
    """A trial that is too short for its transcript counts in nothing, as one of less than a patch does."""
    units = torch.tensor([[3, 3, 4], [1, 2, 0], [5, 0, 0], [2, 2, 0]])
    num_units, steps = torch.tensor([3, 2, 1, 2]), torch.tensor([4, 2, 0, 2])
    assert objective.alignable(steps, units, num_units).tolist() == [True, True, False, False]
    logits = torch.randn(4, 4, 6, requires_grad=True)
    found = objective.ctc(logits, steps, units, num_units)
    alone = [
        F.ctc_loss(
            logits[row, :num].log_softmax(-1),
            units[row, : num_units[row]],
            torch.tensor(num),
            num_units[row],
            reduction="sum",
        )
        for row, num in ((0, 4), (1, 2))
    ]
    torch.testing.assert_close(found, alone[0] + alone[1])
    found.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[2:].any()


def test_trials_shorter_than_a_patch_are_no_error() -> None:
    task = brain_task({"model": {**SMALL, **TINY_LLM}, "objective": {"gamma": 1.0}})
    model = task.build_model().eval()
    batch = batch_of(task, 3)
    short = replace(batch, num_time_steps_B=torch.tensor([13, 5, 1]), neural_BTF=batch.neural_BTF[:, :13])
    stage = task.config.resolved_stages()[-1]
    assert {name: int(count) for name, count in task.normalizers(short, stage).items()} == {
        "align": 0, "llm": 0, "ctc": 0}  # fmt: skip
    assert summed(task, model, short).item() == 0.0
    with torch.no_grad():
        rows = task.evaluate(model, short, stage).rows
    assert rows is not None
    assert rows.columns["decoded"].tolist() == rows.columns["decoded_phonemes"].tolist() == ["", "", ""]


# --- the frozen language model


def test_only_the_text_is_foretold() -> None:
    """transformers' own loss of one row with the brain and the prompt masked, over the text's tokens."""
    task = brain_task({"model": {**SMALL, **TINY_LLM}, "objective": LLM})
    model = task.build_model().eval()
    batch = batch_of(task, 4)
    found = summed(task, model, batch)
    llm = model.llm
    total = torch.zeros(())
    encoded = model(batch.neural_BTF, batch.num_time_steps_B, batch.day_B)
    for row in range(4):
        brain = llm.frozen.network.projector(encoded.brain_BPD[row : row + 1, : encoded.num_steps_B[row]])
        tokens = batch.tokens_BL[row : row + 1, : batch.num_tokens_B[row]]
        prompt = task._tokenizer("Transcript: ", return_tensors="pt").input_ids
        embed = llm.frozen.network.lm.get_input_embeddings()
        given = torch.cat([brain, embed(prompt), embed(tokens)], 1)
        masked = torch.full((1, brain.shape[1] + prompt.shape[1]), -100)
        loss = llm.frozen.network.lm(inputs_embeds=given, labels=torch.cat([masked, tokens], 1)).loss
        total = total + loss * tokens.shape[1]
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-3)
    assert task._tokenizer.decode(batch.tokens_BL[0, : batch.num_tokens_B[0] - 1]) == batch.text[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_goes_through_frozen_weights_and_leaves_them_as_they_are(rank: int) -> None:
    torch.manual_seed(0)
    task = brain_task(
        {"model": {**SMALL, "llm": {"source": "tiny", "lora": {"rank": rank}}}, "objective": LLM}
    )
    model = task.build_model().train()
    assert not any(module.training for module in model.llm.frozen.modules())
    training = task.config.resolved_stages()[-1].training.model_copy(update={"learning_rate": 1e-2})
    choose_trainable(model, training)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(model, training)
    for _ in range(2):  # the first leaves one half of each adapter at zero
        optimizer.zero_grad()
        summed(task, model, batch_of(task)).backward()
        optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {name for name in before if not name.startswith("llm.")} == {
        name for name in changed if not name.startswith("llm.")}  # fmt: skip
    assert {name for name in changed if name.startswith("llm.")} == {
        name for name in before if "lora_" in name
    }
    assert bool(rank) == any("lora_" in name for name in before)
    assert {name for name in model.state_dict() if name.startswith("llm.")} == {
        "llm.frozen._extra_state", *(name for name in before if "lora_" in name)}  # fmt: skip


def test_frozen_weights_are_saved_as_a_digest_that_is_compared() -> None:
    task = brain_task({"model": {**SMALL, **TINY_LLM}, "objective": LLM})
    model = task.build_model()
    saved = model.state_dict()
    assert saved["llm.frozen._extra_state"].shape == (16,)
    task.build_model().load_state_dict(saved)
    other = task.build_model()
    with torch.no_grad():
        next(other.llm.frozen.network.parameters()).add_(1e-3)
    other.llm.frozen = type(other.llm.frozen)(other.llm.frozen.network, "elsewhere")
    with pytest.raises(InputError, match="the frozen weights of 'elsewhere' are not those"):
        other.load_state_dict(saved)


def test_a_copy_shares_frozen_weights_alone() -> None:
    task = brain_task({"model": {**SMALL, "llm": {"source": "tiny", "lora": {"rank": 2}}}, "objective": LLM})
    model = task.build_model()
    other = copy.deepcopy(model)
    theirs = dict(other.named_parameters())
    for name, value in model.named_parameters():
        is_frozen = name.startswith("llm.") and "lora_" not in name
        assert (theirs[name] is value) == is_frozen, name
    other.load_state_dict(model.state_dict())


# --- errors for the user


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ({}, [], r"objective\.alpha: the dataset has no audio targets; prepare it with audio"),
        ({"model": {"audio_embedding_dim": 9}}, ["audio"], "audio_embedding_dim=9, and .* have 8 numbers"),
        ({"model": {"llm": {"source": "nobody/nothing"}}}, ["audio"], r"llm\.source: 'nobody/nothing'"),
        ({"model": {"llm": {"source": "tiny", "lora": {"rank": 1, "modules": ["x_proj"]}}}}, ["audio"],
         r"lora\.modules: the language model has no layers x_proj"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(values: dict[str, Any], columns: list[str], message: str) -> None:
    task = brain_task(values)
    kept = {name: c for name, c in task.dataset_schema.columns.items() if name != "audio" or columns}
    task = BrainText(task.config, task.statistics, Schema(kept, group="group"))
    with pytest.raises(InputError, match=message):
        task.build_model()


def test_a_session_that_was_not_trained_on_is_refused() -> None:
    task = brain_task({"model": SMALL, "objective": CTC})
    task.statistics["day"]["sessions"].pop()
    with pytest.raises(InputError, match=r"session 't15\.2023\.08\.13' has no layer in the model"):
        batch_of(task)
    assert batch_of(brain_task({"model": {**SMALL, "day_layers": False}, "objective": CTC})).day_B.tolist()
    bare = BrainText(task.config, {}, task.dataset_schema)
    with pytest.raises(InputError, match="no table of its training sessions"):
        bare.build_model()


def test_widths_follow_the_dataset() -> None:
    model = brain_task({"model": {**SMALL, **TINY_LLM}}).build_model()
    assert model.projector[0].out_features == model.llm.embedding_dim == AUDIO_DIM
    assert model.head is None
