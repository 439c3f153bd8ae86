"""The networks and losses of S0 against their definitions in DOMAINS.md S0.a and S0.b, by hand."""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from fmri_rows import NUM_VOXELS, WIDTHS, fmri_rows, fmri_task
from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.core.randomness import key
from voxray.losses.contrastive import info_nce
from voxray.tasks.fmri_clip.data import FmriClipBatch
from voxray.tasks.fmri_clip.model import ClipAdapter, Encoder, Inverse, unit_rows
from voxray.tasks.fmri_clip.task import FmriClip
from voxray.testing.sources import ArraySource
from voxray.train.checkpoints import checkpoint
from voxray.train.loop import fit
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.run_folder import RunFolder

V, D, L, H, SD = NUM_VOXELS, WIDTHS["final"], 16, 20, WIDTHS["sd_final"]
LAYERS = {"layers": ["layer_4", "layer_8"]}
TWO_STAGE = {"architecture": "two_stage", "latent_dim": L, "n_blocks": 3, "head_dim": H}
INVERSE = {"architecture": "clip2fmri", "inverse_dim": H, "n_blocks": 2}
BLOCK = 2 * L + 2 * (L * L + L)  # LayerNorm, fc1, fc2
STAGE1 = V * L + L + 3 * BLOCK + 2 * L


def sizes(*widths: int) -> int:
    """Weights and biases of linear layers of these widths."""
    return sum(a * b + b for a, b in pairwise(widths))


def batch_of(task: FmriClip, num_rows: int = 8, **kind: Any) -> FmriClipBatch:
    source = ArraySource({"train": fmri_rows(num_rows, 1, **kind)})
    return task.collate(next(iter(source.batches(EpochRequest("train", num_rows, seed=0)))))


def terms_of(task: FmriClip, model: torch.nn.Module, batch: FmriClipBatch) -> dict[str, float]:
    """Return each term as its part of the loss: weight · sum / count."""
    stage = task.config.resolved_stages()[-1]
    counts = task.normalizers(batch, stage)
    terms = task.loss(model, batch, stage)
    return {name: float((term.weight * term.sum / counts[name]).detach()) for name, term in terms.items()}


def digest(module: torch.nn.Module) -> str:
    tensors = module.state_dict().items()
    return hashlib.sha256(b"".join(name.encode() + t.numpy().tobytes() for name, t in tensors)).hexdigest()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"architecture": "ridge"}, sizes(V, D)),
        ({"architecture": "ridge", "min_reliability": 0.5}, sizes(10, D)),
        ({"architecture": "mlp"}, sizes(V, 256, D)),
        ({"architecture": "mlp", "hidden_dims": [30, 20], "norm": "batch"}, sizes(V, 30, 20, D) + 2 * 50),
        (TWO_STAGE, STAGE1 + sizes(L, D)),
        ({**TWO_STAGE, "head": "mlp"}, STAGE1 + sizes(L, H, D)),
        ({**TWO_STAGE, **LAYERS}, STAGE1 + sizes(L, H) + sum(sizes(H, d) for d in (12, 10, 12))),
        ({**TWO_STAGE, **LAYERS, "shared_head": False}, STAGE1 + sum(sizes(L, d) for d in (12, 10, 12))),
        ({**INVERSE, "inverse": "linear"}, sizes(D, V)),
        (INVERSE, sizes(D, H, V) + 2 * H),
        ({**INVERSE, "inverse": "residual"}, sizes(D, H, V) + 4 * H + 2 * (2 * H + 2 * (H * H + H))),
        ({"architecture": "clip_adapter", "encoder": TWO_STAGE, "target": "sd_final"}, sizes(D, SD) + 2 * SD),
    ],
)
def test_trained_parameters_in_closed_form_and_unit_rows(model: dict, expected: int) -> None:
    task = fmri_task({"model": model})
    built = task.build_model().eval()
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == expected
    batch = batch_of(task)
    if isinstance(built, Inverse):
        assert built(batch.targets["final"]).shape == (8, V)
        return
    found = built(batch.x_BV)
    assert {name: rows.shape[1] for name, rows in found.items()} == {name: WIDTHS[name] for name in found}
    assert set(found) == {model.get("target", "final"), *model.get("layers", ())}
    for rows_BD in found.values():
        torch.testing.assert_close(rows_BD.norm(dim=1), torch.ones(8), atol=1e-5, rtol=0)


def test_two_stages_are_what_the_sheet_says() -> None:
    """S0.a in functional calls: pre-norm residual blocks, LayerNorm, a shared head, unit rows."""
    task = fmri_task({"model": {**TWO_STAGE, **LAYERS}})
    model, x_BV = task.build_model().eval(), batch_of(task).x_BV
    w = model.state_dict()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    h = F.gelu(linear("body.0", x_BV))
    for i in (3, 4, 5):
        inner = F.gelu(linear(f"body.{i}.fc1", normed(f"body.{i}.norm", h)))
        h = h + linear(f"body.{i}.fc2", inner)
    h = F.gelu(linear("shared.0", normed("body.6", h)))
    for name, rows_BD in model(x_BV).items():
        expected = linear(f"heads.{name}", h)
        torch.testing.assert_close(rows_BD, expected / expected.norm(dim=1, keepdim=True))


def test_dropout_is_where_the_sheet_has_it() -> None:
    """p in stage 1, 0.7 p in an mlp head, 0.5 p in a shared one."""
    for values, rates in (
        ({**TWO_STAGE, "head": "mlp"}, [0.3] * 4 + [0.7 * 0.3]),
        ({**TWO_STAGE, **LAYERS}, [0.3] * 4 + [0.5 * 0.3]),
    ):
        model = fmri_task({"model": {**values, "dropout": 0.3}}).build_model()
        found = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        assert found == pytest.approx(rates)


def test_single_target_losses_by_hand() -> None:
    """0.3 · MSE + 0.3 · cosine distance + 0.4 · InfoNCE, as two_stage_sota has them (S0.b)."""
    weights = {"mse": 0.3, "cosine": 0.3, "info_nce": 0.4, "tau": 0.05}
    task = fmri_task({"model": TWO_STAGE, "objective": weights})
    model, batch = task.build_model().eval(), batch_of(task)
    p, t = model(batch.x_BV)["final"].detach().numpy(), batch.targets["final"].numpy()
    logits = p.astype(np.float64) @ t.T / 0.05
    down = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    across = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    expected = {
        "mse": 0.3 * ((p - t) ** 2).mean(),
        "cosine": 0.3 * (1 - (p * t).sum(1)).mean(),
        "info_nce": 0.4 * (down.mean() + across.mean()) / 2,
    }
    assert terms_of(task, model, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 0.988533), (0.05, 3.753052)])
def test_info_nce_has_its_gold_value(tau: float, expected: float) -> None:
    """DOMAINS section 7."""
    p, t = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0, 1], [1, 0]])
    assert float(info_nce(p, t, tau)) == pytest.approx(expected, abs=1e-5)


def test_multi_layer_losses_by_hand() -> None:
    """Σ w_l (1 − cos_l) with weights scaled to 1; InfoNCE between unit means of projected embeddings."""
    own = {"cosine": 1.0, "info_nce": 0.4, "layer_weights": {"layer_4": 1, "layer_8": 2, "final": 5}}
    task = fmri_task({"model": {**TWO_STAGE, **LAYERS}, "objective": own})
    model, batch = task.build_model().eval(), batch_of(task)
    assert isinstance(model, Encoder)
    found, terms = model(batch.x_BV), terms_of(task, model, batch)
    for name, weight in (("layer_4", 1 / 8), ("layer_8", 2 / 8), ("final", 5 / 8)):
        away = (1 - F.cosine_similarity(found[name], batch.targets[name]).mean()).detach()
        assert terms[f"cosine_{name}"] == pytest.approx(weight * float(away), rel=1e-5)
        assert float(model.layer_weights()[name].detach()) == pytest.approx(weight)

    def pooled(rows: dict[str, torch.Tensor]) -> torch.Tensor:
        same = [rows[name] @ model.projectors[name].weight.T for name in found]
        return F.normalize(sum(same) / 3, dim=1)

    expected = 0.4 * info_nce(pooled(found), pooled(batch.targets), 0.05)
    assert terms["info_nce"] == pytest.approx(float(expected), rel=1e-5)


def test_learnt_layer_weights_are_optimised_and_saved() -> None:
    """S0.g: upstream's never learn. Their gradient is that of Σ softmax(logits)_l · d_l."""
    own = {"learn_layer_weights": True, "info_nce": 0.4}
    task = fmri_task({"model": {**TWO_STAGE, **LAYERS}, "objective": own})
    model, batch = task.build_model().eval(), batch_of(task)
    assert isinstance(model, Encoder)
    begun = {name: float(weight) for name, weight in model.layer_weights().items()}
    assert begun == pytest.approx({"layer_4": 0.15 / 0.75, "layer_8": 0.2 / 0.75, "final": 0.4 / 0.75})
    optimizer = build_optimizer(model, task.config.training)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.layer_logits) in trained
    assert {id(p) for p in model.projectors.parameters()} <= trained
    assert "layer_logits" in model.state_dict()
    stage = task.config.resolved_stages()[-1]
    counts, terms = task.normalizers(batch, stage), task.loss(model, batch, stage)
    torch.stack([term.weight * term.sum / counts[name] for name, term in terms.items()]).sum().backward()
    w = torch.stack(list(model.layer_weights().values())).detach()
    found = model(batch.x_BV)
    d = torch.stack([1 - (found[name] * batch.targets[name]).sum(1).mean() for name in model.names]).detach()
    torch.testing.assert_close(model.layer_logits.grad, w * (d - (w * d).sum()), atol=1e-5, rtol=1e-4)
    optimizer.step()
    assert float(sum(model.layer_weights().values())) == pytest.approx(1)
    numbers = task.state_numbers(model)
    assert list(numbers) == ["layers/layer_4", "layers/layer_8", "layers/final"]
    assert numbers["layers/final"] != pytest.approx(begun["final"], abs=1e-6)


def test_the_loop_trains_and_saves_layer_weights_and_projectors(tmp_path: Path) -> None:
    """S0.g: both are in the optimiser and in the checkpoint, and move; InfoNCE under accumulation."""
    own = {"learn_layer_weights": True, "info_nce": 0.4, "gallery": 20}
    training = {"batch_size": 8, "accumulate_grad_batches": 2, "epochs": 2, "learning_rate": 0.01}
    task = fmri_task({"model": {**TWO_STAGE, **LAYERS}, "objective": own, "training": training})
    splits = {"train": fmri_rows(48, 1), "val": fmri_rows(40, 2, num_stimuli=40)}
    run = RunFolder(tmp_path)
    fit(task, ArraySource(splits), task.config, run, lambda numbers: None, torch.device("cpu"))
    newest = checkpoint.newest(run.checkpoints, print)
    assert newest is not None
    torch.manual_seed(key(task.config.training.seed, "model"))
    saved, begun = load_file(newest / "model.safetensors"), task.build_model().state_dict()
    assert saved.keys() == begun.keys()
    assert (saved["layer_logits"] - begun["layer_logits"]).abs().min() > 1e-4
    moved = (saved["projectors.layer_8.weight"] - begun["projectors.layer_8.weight"]).abs()
    assert 1e-4 < moved.mean() < 0.1  # 6 updates of at most about 0.01
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    assert epochs[-1]["train/loss"] < epochs[0]["train/loss"]


def test_brain_consistency_reaches_the_encoder_and_leaves_the_inverse_alone() -> None:
    """S0.b: 0.1 · MSE(clip2fmri(p), x), the inverse frozen but not cut off."""
    own = {"cosine": 0.0, "brain_consistency": 0.1}
    values = {
        "model": {"architecture": "mlp", "brain": {**INVERSE, "min_reliability": 0.5}},
        "objective": own,
    }
    task = fmri_task(values)
    model, batch = task.build_model().train(), batch_of(task)
    assert isinstance(model, Encoder)
    assert isinstance(model.brain, Inverse)
    assert not model.brain.training
    before = digest(model.brain)
    optimizer = build_optimizer(model, task.config.training)
    for _ in range(3):
        optimizer.zero_grad()
        stage = task.config.resolved_stages()[-1]
        (term,) = task.loss(model, batch, stage).values()
        (term.weight * term.sum / task.normalizers(batch, stage)["brain"]).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in model.heads.parameters())
    assert all(p.grad is None for p in model.brain.parameters())
    assert digest(model.brain) == before
    model.eval()
    imagined = model.brain(model(batch.x_BV)["final"])
    expected = 0.1 * float((imagined - batch.x_BV[:, -10:]).square().mean())
    assert terms_of(task, model, batch) == pytest.approx({"brain": expected}, rel=1e-5)


def test_the_adapters_encoder_is_frozen() -> None:
    values = {"architecture": "clip_adapter", "encoder": {"architecture": "mlp"}, "target": "sd_final"}
    task = fmri_task({"model": values, "objective": {"info_nce": 0.1}})
    model, batch = task.build_model().train(), batch_of(task)
    assert isinstance(model, ClipAdapter)
    assert not model.encoder.training
    assert float(model.adapter[0].bias.abs().sum()) == 0
    before = digest(model.encoder)
    optimizer = build_optimizer(model, task.config.training)
    stage = task.config.resolved_stages()[-1]
    torch.stack([term.sum for term in task.loss(model, batch, stage).values()]).sum().backward()
    optimizer.step()
    assert digest(model.encoder) == before
    model.eval()
    inner = model.encoder(batch.x_BV)["final"]
    scaled = F.layer_norm(model.adapter[0](inner), (SD,), *model.adapter[1].parameters())
    torch.testing.assert_close(model(batch.x_BV)["sd_final"], F.normalize(scaled, dim=1))


def test_clip2fmri_is_squared_error_over_the_voxels_that_are_used() -> None:
    task = fmri_task({"model": {**INVERSE, "min_reliability": 0.5}})
    model, batch = task.build_model().eval(), batch_of(task)
    expected = float((model(batch.targets["final"]) - batch.x_BV[:, -10:]).square().mean())
    assert terms_of(task, model, batch) == pytest.approx({"mse": expected}, rel=1e-5)


def test_one_of_stacked_trials_is_drawn_for_training() -> None:
    task = fmri_task({"model": {"architecture": "ridge"}}, stacked=True)
    batch = batch_of(task, 30, stacked=True)
    drawn_BV = task.augment(batch, 5).x_BV
    assert batch.x_BRV is not None
    is_a_trial_BR = (batch.x_BRV == drawn_BV[:, None]).all(2)
    assert is_a_trial_BR.any(1).all()
    np.testing.assert_allclose(batch.x_BV, np.nanmean(batch.x_BRV.numpy(), axis=1), atol=1e-6)


def test_ridge_is_scikit_learns(tmp_path: Path) -> None:
    """Through the loop: fitted on the training rows, predictions divided by their length."""
    closed = {"stepper": "closed_form", "closed_form": {"alphas": [10.0]}, "batch_size": 32}
    task = fmri_task({"model": {"architecture": "ridge"}, "objective": {"gallery": 20}, "training": closed})
    splits = {"train": fmri_rows(150, 1), "val": fmri_rows(40, 2, num_stimuli=40)}
    run = RunFolder(tmp_path)
    reported: list[dict[str, float]] = []
    cpu = torch.device("cpu")
    fit(task, ArraySource(splits), task.config, run, lambda numbers: reported.append(dict(numbers)), cpu)
    newest = checkpoint.newest(run.checkpoints, print)
    assert newest is not None
    model = task.build_model().eval()
    model.load_state_dict(load_file(newest / "model.safetensors"))

    def unit(y: np.ndarray) -> np.ndarray:
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    train, val = splits["train"], splits["val"]
    theirs = Ridge(alpha=10.0).fit(train["x"].astype(np.float64), unit(train["clip_final"]))
    expected = unit(theirs.predict(val["x"].astype(np.float64)))
    with torch.no_grad():
        found = model(torch.tensor(val["x"]))["final"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    cosine = (expected * unit(val["clip_final"])).sum(1).mean()
    assert reported[-1]["val/cosine_similarity"] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "objective", "match"),
    [
        ({"target": "layer_5"}, {}, "no target 'layer_5'; it has: final, layer_4, layer_8, sd_final"),
        ({"clip": "vit_l14"}, {}, "vit_l14 has 768 numbers in 'final', and the dataset 12"),
        ({"architecture": "clip_adapter"}, {}, "set training.parts.encoder=RUN"),
        ({"brain": {"architecture": "mlp"}}, {"brain_consistency": 0.1}, "a run of clip2fmri"),
        ({"brain": {**INVERSE, "target": "sd_final"}}, {"brain_consistency": 0.1}, "of 20 numbers"),
        ({"min_reliability": 0.95}, {}, "leaves no voxel; the most reliable has 0.900"),
    ],
)
def test_what_cannot_be_built_is_told(model: dict, objective: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        fmri_task({"model": model, "objective": objective}).build_model()


def test_reliability_that_was_not_measured_is_told() -> None:
    with pytest.raises(InputError, match="prepare it with reliability=true"):
        fmri_task({"model": {"min_reliability": 0.1}}, measured=False).build_model()


def test_a_row_of_zeros_has_no_direction() -> None:
    """Rows are divided by max(norm, 1e-8); numbers narrower than float32 are widened, wider ones kept."""
    rows = torch.tensor([[0.0, 0.0], [3e-9, 4e-9], [3.0, 4.0]])
    expected = torch.tensor([[0, 0], [0.3, 0.4], [0.6, 0.8]])
    torch.testing.assert_close(unit_rows(rows), expected)
    assert unit_rows(rows.bfloat16()).dtype == torch.float32
    assert unit_rows(rows.double()).dtype == torch.float64
