"""Losses against DOMAINS.md S2.b written out in numpy, metrics against torchmetrics, augmentation, floors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    spectral_angle_mapper,
    structural_similarity_index_measure,
)

from hyperspectral_rows import NUM_BANDS, SMALL, cube_rows, hyperspectral_task
from voxray.core.batch import EpochRequest
from voxray.core.evaluation import merge
from voxray.core.run_config import Stage
from voxray.metrics.image import ssim
from voxray.tasks.hyperspectral import augment, objective
from voxray.tasks.hyperspectral.data import HyperspectralBatch
from voxray.tasks.hyperspectral.floor import fit_spectra
from voxray.tasks.hyperspectral.masking import hidden_tokens, kept_tokens
from voxray.tasks.hyperspectral.task import Hyperspectral
from voxray.testing.sources import ArraySource

GUIDES = {"mse": 1.0, "sam": 0.1, "variance": 0.01, "range": 0.001}


def batch_of(task: Hyperspectral, num: int = 6, seed: int = 0) -> HyperspectralBatch:
    source = ArraySource({"train": cube_rows(num, seed)})
    return task.collate(next(iter(source.batches(EpochRequest("train", num, seed=0)))))


def losses(task: Hyperspectral, model: torch.nn.Module, batch: HyperspectralBatch) -> dict[str, float]:
    """Return each term's mean, unweighted."""
    stage = Stage(0, "main", task.config)
    terms, counts = task.loss(model, batch, stage), task.normalizers(batch, stage)
    assert {name: term.weight for name, term in terms.items()} == objective.term_weights(
        task.config.objective
    )
    return {name: float(term.sum.detach() / counts[name]) for name, term in terms.items()}


def in_numpy(task: Hyperspectral, model: torch.nn.Module, batch: HyperspectralBatch) -> dict[str, Any]:
    """Return true and predicted cubes, and which voxels are hidden, [B, C, H, W]."""
    kept = kept_tokens(batch.mask_key_B, task.grid, task.config.model.mask_ratio, "random")
    pred = model(batch.cube_BCHW, kept)
    hidden = hidden_tokens(kept, task.grid)[..., None, None].expand_as(pred)
    arrays = {"pred": task.grid.join(pred), "true": batch.cube_BCHW, "hidden": task.grid.join(hidden)}
    return {name: value.detach().numpy() for name, value in arrays.items()} | {
        "measured": batch.measured_BHW.numpy()
    }


@pytest.mark.parametrize("region", ["masked", "all"])
def test_the_guides_loss_is_what_domains_says(region: str) -> None:
    torch.manual_seed(0)
    task = hyperspectral_task({"model": {**SMALL, "mask_ratio": 0.6}, "objective": {"recon_region": region}})
    model, batch = task.build_model(), batch_of(task)
    found = losses(task, model, batch)
    assert objective.term_weights(task.config.objective) == GUIDES
    v = in_numpy(task, model, batch)
    chosen = v["hidden"] if region == "masked" else np.ones_like(v["hidden"])
    # 1. squared error: the masked mean over the patches' elements, background included
    assert found["mse"] == pytest.approx(((v["pred"] - v["true"]) ** 2)[chosen].mean(), rel=1e-4)
    # 2. the angle over bands, at measured pixels of the region
    dot = (v["pred"] * v["true"]).sum(1)
    norms = np.linalg.norm(v["pred"], axis=1) * np.linalg.norm(v["true"], axis=1)
    angle = np.arccos(np.clip(dot / (norms + 1e-8), -1 + 1e-7, 1 - 1e-7))
    assert found["sam"] == pytest.approx(angle[chosen.any(1) & v["measured"]].mean(), rel=1e-4)
    # 3. variance, per band over all measured pixels of the batch
    spectra = {key: np.moveaxis(v[key], 1, -1)[v["measured"]] for key in ("pred", "true")}
    lacking = np.maximum(1 - spectra["pred"].std(0) / (spectra["true"].std(0) + 1e-6), 0).mean()
    assert found["variance"] == pytest.approx(lacking, rel=1e-4)
    # 4. range, over everything
    outside = np.maximum(-v["pred"], 0) + np.maximum(v["pred"] - 1, 0)
    assert found["range"] == pytest.approx(outside.mean(), rel=1e-4)


def test_range_and_angle_have_the_gold_values() -> None:
    """DOMAINS.md section 7."""
    task = hyperspectral_task({"model": SMALL})
    values = torch.tensor([-0.5, 0.2, 1.5, 0.9]).reshape(1, 1, 1, 1, 4)
    region = objective.Region(
        torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 4, dtype=torch.bool),
        torch.ones(1, dtype=torch.bool), task.config.objective)  # fmt: skip
    sums = objective.row_sums(objective.Predicted(values, values, values, values), region)
    counts = objective.row_counts(region, 1, 1)
    assert float(sums["range"][0] / counts["range"][0]) == pytest.approx(0.25)
    one, other = (torch.tensor(v).reshape(1, 1, 1, 3, 1) for v in ([1.0, 0, 0], [1.0, 1, 0]))
    assert float(objective.angles(one, other)) == pytest.approx(0.785398, abs=1e-5)


def test_upstreams_loss_is_hidden_squares_and_squares_of_sums() -> None:
    """DOMAINS.md S2.b: sum(mask · mean_patch((p - t)²)) / sum(mask) + mean((sum_t p - sum_t t)²)."""
    task = hyperspectral_task({"model": SMALL, "objective": {"loss": "spectralgpt"}})
    model, batch = task.build_model(), batch_of(task)
    found = losses(task, model, batch)
    v = in_numpy(task, model, batch)
    grid = task.grid
    pred, true, hidden = (grid.cut(torch.from_numpy(v[key])) for key in ("pred", "true", "hidden"))
    mask = hidden[..., 0, 0].float()
    patches = (pred - true).square().mean((3, 4))
    assert found["mse"] == pytest.approx(float((mask * patches).sum() / mask.sum()), rel=1e-5)
    sums = (pred.sum(1) - true.sum(1)).square().mean()
    assert found["spatial_sum"] == pytest.approx(float(sums), rel=1e-5)


def test_background_counts_in_no_squared_error_where_that_is_asked_for() -> None:
    task = hyperspectral_task({"model": SMALL, "objective": {"mse_over": "measured"}})
    model, batch = task.build_model(), batch_of(task)
    v = in_numpy(task, model, batch)
    chosen = v["hidden"] & v["measured"][:, None]
    expected = ((v["pred"] - v["true"]) ** 2)[chosen].mean()
    assert losses(task, model, batch)["mse"] == pytest.approx(expected, rel=1e-5)


def test_tokens_are_normalised_as_mae_does() -> None:
    """(x - mean) / sqrt(var + 1e-6) per token, var unbiased (facebookresearch/mae, norm_pix_loss)."""
    tokens = torch.rand(2, 3, 4, 2, 9)
    mean, std = objective.token_moments(tokens)
    flat = tokens.flatten(3)
    theirs = (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, keepdim=True) + 1e-6) ** 0.5
    torch.testing.assert_close(((tokens - mean) / std).flatten(3), theirs)


def test_two_micro_batches_have_the_gradient_of_one_batch() -> None:
    """The variance is over all rows of an update."""
    task = hyperspectral_task({"model": SMALL, "objective": {"mse": 0.1, "variance": 5.0}})
    torch.manual_seed(0)
    model, batch = task.build_model(), batch_of(task)
    parts, stage = [batch.rows(slice(0, 2)), batch.rows(slice(2, 6))], Stage(0, "main", task.config)
    counts = task.normalizers(batch, stage)

    def gradient(pieces: list[HyperspectralBatch]) -> list[torch.Tensor]:
        model.zero_grad()
        if len(pieces) > 1:
            with torch.no_grad():
                for index, piece in enumerate(pieces):
                    task.update_rows.record(index)
                    task.loss(model, piece, stage)
        for index, piece in enumerate(pieces):
            if len(pieces) > 1:
                task.update_rows.replay(index)
            terms = task.loss(model, piece, stage)
            torch.stack(
                [term.weight * term.sum / counts[name] for name, term in terms.items()]
            ).sum().backward()
        task.update_rows.forget()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    for one, other in zip(gradient([batch]), gradient(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_terms_are_in_float32_under_autocast() -> None:
    task = hyperspectral_task({"model": SMALL})
    model, batch = task.build_model(), batch_of(task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = task.loss(model, batch, Stage(0, "main", task.config))
        assert model(batch.cube_BCHW).dtype == torch.bfloat16
    assert {term.sum.dtype for term in terms.values()} == {torch.float32}


def test_a_collapsed_prediction_has_a_finite_gradient() -> None:
    flat = torch.zeros(1, 2, 3, 2, 4, requires_grad=True)
    true, measured = torch.rand(1, 2, 3, 2, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    loss = objective.variance_loss(objective.moments(flat, measured), objective.moments(true, measured))
    (loss + objective.angles(flat, true).sum()).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
    assert float(loss.detach()) == pytest.approx(1, abs=1e-3)


# --- metrics


def test_metrics_are_torchmetrics_of_the_shown_reconstruction() -> None:
    """What was seen, and what is not measured, is shown as it is; masked ones look at hidden voxels alone."""
    task = hyperspectral_task({"model": SMALL})
    torch.manual_seed(0)
    model, batch = task.build_model().eval(), batch_of(task)
    with torch.no_grad():
        summary = task.summarize(merge([task.evaluate(model, batch, Stage(0, "main", task.config))]))
    v = in_numpy(task, model, batch)
    hidden = v["hidden"] & v["measured"][:, None]
    shown = torch.from_numpy(np.where(hidden, v["pred"], v["true"]))
    true = torch.from_numpy(v["true"])
    measured = v["measured"]
    squared = ((shown - true) ** 2).numpy()
    by_row = [squared[i][:, measured[i]].mean() for i in range(len(squared))]
    assert summary["mse"] == pytest.approx(np.mean(by_row), rel=1e-5)
    assert summary["mse_masked"] == pytest.approx(squared[hidden].mean(), rel=1e-5)
    psnrs = []
    for i in range(len(squared)):
        spectra = [torch.as_tensor(x[i].numpy()[:, measured[i]]) for x in (shown, true)]
        psnrs.append(float(peak_signal_noise_ratio(*spectra, data_range=1.0)))
    assert summary["psnr"] == pytest.approx(np.mean(psnrs), rel=1e-5)
    angles = spectral_angle_mapper(shown, true, reduction="none").numpy()[measured].mean()
    # Where all of a pixel was seen the angle is 0, and acos of 1 - 1e-7 is 4.5e-4.
    assert summary["sam"] == pytest.approx(angles, abs=5e-4)
    assert summary["sam_deg"] == pytest.approx(np.rad2deg(summary["sam"]))
    bands = [float(_similarity(shown[:, [b]], true[:, [b]])) for b in range(NUM_BANDS)]
    assert summary["ssim"] == pytest.approx(np.mean(bands), abs=1e-4)
    assert float(ssim(shown, true).mean()) == pytest.approx(summary["ssim"], abs=1e-4)
    per_band = [squared[:, b][hidden[:, b]].mean() for b in range(NUM_BANDS)]
    np.testing.assert_allclose(summary["mse_per_band"], per_band, rtol=1e-5)


def _similarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    found = structural_similarity_index_measure(one, other, data_range=1.0)
    assert isinstance(found, torch.Tensor)
    return found


# --- augmentation


def test_basic_augmentation_moves_pixels_and_nothing_else() -> None:
    task = hyperspectral_task({"model": SMALL})
    batch = batch_of(task, 40)
    whole = task.augment(batch, 3)
    for i in range(len(batch)):
        before, after = (
            np.concatenate(
                [
                    each.cube_BCHW[i].reshape(NUM_BANDS, -1).numpy(),
                    each.measured_BHW[i].reshape(1, -1).numpy(),
                    each.classes_BHW[i].reshape(1, -1).numpy(),
                ]
            ).T
            for each in (batch, whole)
        )
        np.testing.assert_array_equal(before[np.lexsort(before.T)], after[np.lexsort(after.T)])
    forms = {whole.measured_BHW[i].numpy().tobytes() for i in range(len(batch))}
    assert len(forms) == 4  # the two columns that are not measured, at each of four sides


def test_images_that_are_not_square_are_turned_by_half_a_turn_alone() -> None:
    cube = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6).repeat(30, 1, 1, 1)
    maps = cube[:, 0] > 5
    turned, measured, _ = augment.turned_and_flipped((cube, maps, maps.short()), torch.arange(30), 1)
    assert turned.shape == cube.shape
    assert torch.equal(turned[:, 0] > 5, measured)
    first = cube[0]
    allowed = [
        first,
        first.flip(-1),
        torch.rot90(first, 2, (-2, -1)),
        torch.rot90(first.flip(-1), 2, (-2, -1)),
    ]
    found = {next(n for n, form in enumerate(allowed) if torch.equal(form, each)) for each in turned}
    assert found == {0, 1, 2, 3}


def test_upstreams_augmentation_keeps_spectra_whole() -> None:
    task = hyperspectral_task({"model": SMALL, "data": {"augment": "spectraleye", "noise_std": 0.0}})
    batch = batch_of(task, 40)
    batch = replace(batch, measured_BHW=torch.ones_like(batch.measured_BHW))
    whole = task.augment(batch, 5)
    changed = 0
    for i in range(len(batch)):
        known = {s.tobytes() for s in batch.cube_BCHW[i].reshape(NUM_BANDS, -1).T.contiguous().numpy()}
        measured = whole.measured_BHW[i].flatten()
        spectra = whole.cube_BCHW[i].reshape(NUM_BANDS, -1).T[measured]
        rounded = [s for s in spectra.contiguous().numpy() if s.tobytes() not in known]
        for s in rounded:  # 1 is taken away and added: at most a rounding apart
            assert min(np.abs(np.frombuffer(k, np.float32) - s).max() for k in known) < 1e-6
        outside = whole.cube_BCHW[i].reshape(NUM_BANDS, -1).T[~measured]
        assert (outside == 1).all()  # what background is after log10
        assert not whole.classes_BHW[i].flatten()[~measured].any()
        changed += not torch.equal(whole.cube_BCHW[i], batch.cube_BCHW[i])
    assert 10 <= changed <= 30  # half of them


# --- floors


def test_no_component_is_the_mean_spectrum_and_enough_of_them_are_exact() -> None:
    rng = np.random.default_rng(0)
    endmembers = rng.standard_normal((2, NUM_BANDS))
    cubes = np.einsum("nkhw,kc->nchw", rng.standard_normal((5, 2, 4, 4)), endmembers) + 3.0
    measured = np.ones((5, 4, 4), np.uint8)
    seen = np.zeros((NUM_BANDS, 4, 4), bool)
    seen[:3] = True
    mean = cubes[:4].mean((0, 2, 3))
    flat = fit_spectra(cubes[:4], measured[:4], 0).predict(cubes[4], seen)
    np.testing.assert_allclose(flat, np.broadcast_to(mean[:, None, None], flat.shape))
    exact = fit_spectra(cubes[:4], measured[:4], 2).predict(cubes[4], seen)
    np.testing.assert_allclose(exact, cubes[4], atol=1e-3)


def test_components_are_the_conditional_mean_of_a_gaussian() -> None:
    """With all components: x_h = mean + S_hs S_ss⁻¹ (x_s - mean), up to the noise's floor."""
    rng = np.random.default_rng(1)
    cubes = np.einsum("cd,ndhw->nchw", rng.standard_normal((4, 4)), rng.standard_normal((6, 4, 8, 8)))
    spectra = np.moveaxis(cubes, 1, 0).reshape(4, -1)
    mean, cov = spectra.mean(1), np.cov(spectra, bias=True)
    seen = np.zeros((4, 8, 8), bool)
    seen[[0, 2]] = True
    found = fit_spectra(cubes, np.ones((6, 8, 8)), 4).predict(cubes[0], seen)
    weights = cov[np.ix_([1, 3], [0, 2])] @ np.linalg.inv(cov[np.ix_([0, 2], [0, 2])])
    away = cubes[0][[0, 2]].reshape(2, -1) - mean[[0, 2], None]
    expected = mean[[1, 3], None] + weights @ away
    np.testing.assert_allclose(found[[1, 3]].reshape(2, -1), expected, atol=1e-5)


@pytest.mark.parametrize("head", ["none", "segmentation", "classification"])
def test_the_floor_has_the_metrics_of_the_model(head: str) -> None:
    model = {**SMALL, "head": head, "num_classes": 3, "classes": ["AMD", "GA"], "mask_ratio": 0.4}
    task = hyperspectral_task({"model": model})
    train, held_out = cube_rows(20, 1), cube_rows(8, 2)
    network, batch = task.build_model().eval(), batch_of(task, 8, 2)
    with torch.no_grad():
        own = task.evaluate(network, batch, Stage(0, "main", task.config))
    numbers = task.floor(train, held_out)
    assert own.rows is not None
    assert numbers.shape == own.rows.columns["numbers"].shape
    own.rows.columns["numbers"] = numbers
    summary = task.summarize(own)
    if head == "none":
        mean_alone = hyperspectral_task({"model": model, "objective": {"floor_components": 0}})
        own.rows.columns["numbers"] = mean_alone.floor(train, held_out)
        with_components, without = summary["mse_masked"], mean_alone.summarize(own)["mse_masked"]
        assert isinstance(with_components, float)
        assert isinstance(without, float)
        assert with_components < 0.5 * without
    elif head == "segmentation":
        accuracy = summary["overall_accuracy"]
        assert isinstance(accuracy, float)
        assert accuracy > 0.95
