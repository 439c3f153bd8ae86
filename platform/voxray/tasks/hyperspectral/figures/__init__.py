"""What a person wants to look at: reconstructions, spectra, errors per wavelength, maps of classes.

No torch until trained weights are needed.
"""

from typing import Any

import numpy as np

from voxray.config.errors import InputError, RunError
from voxray.core.figures import Figure, RunView
from voxray.tasks.hyperspectral.figures.images import panels, photograph, side_by_side
from voxray.tasks.hyperspectral.figures.shown import Shown, is_tile, stitched
from voxray.tasks.hyperspectral.figures.spectra import error_plot, spectra_plot

_CLASSES = "A colour per class; white: unlabelled, or not in this split."
_BANDS = (
    "The bands nearest to red, green and blue (without wavelengths: three bands of the spectrum), stretched "
    "alike in all pictures of a cube. Grey: hidden in that band."
)
MOST_TILES = 4000  # of a scene: more than these are not stitched


def figures(run: RunView) -> list[Figure]:
    """Return the figures of one evaluated split: errors per wavelength, then cubes with what was hidden and
    what the model made of it, and spectra of some pixels; of a head its map of classes.
    """
    shown = _shown(run)
    made = [each for each in shown if each.made_CHW is not None]
    return [*_errors(run, shown), *_cubes(run, shown), *_spectra(made)]


def _shown(run: RunView) -> list[Shown]:
    """Return cubes with what the trained model makes of them; none where rows or weights are not at hand."""
    if run.take is None or run.load is None:
        return []
    ids = _sample_ids(run)
    if ids and is_tile(ids[0]):
        ids = ids[:MOST_TILES]
    else:
        num = min(int(run.config["figures"]["num_images"]), len(ids))
        ids = [ids[place] for place in np.linspace(0, len(ids) - 1, num).astype(int)]
    if not ids:
        return []
    try:
        trained: Any = run.load()
        return stitched(trained.task.shown_rows(trained.model, run.take(ids)))
    except (InputError, RunError):
        return []


def _sample_ids(run: RunView) -> list[str]:
    if run.predictions is not None:
        return run.predictions.sample_id
    return [] if run.columns is None else [str(name) for name in run.columns()["sample_id"]]


def _errors(run: RunView, shown: list[Shown]) -> list[Figure]:
    metrics = run.evaluation.get("metrics") or {}
    errors = metrics.get("mse_per_band")
    if not errors:
        return []
    wavelengths_C = shown[0].wavelengths_C if shown else np.full(len(errors), np.nan)
    where = "hidden voxels" if run.config["objective"]["recon_region"] == "masked" else "all voxels"
    caption = f"Over the {where} of the split's measured pixels, on the dataset's scale."
    return [
        Figure("Squared error per wavelength", caption, plot=error_plot(wavelengths_C, [("model", errors)]))
    ]


def _cubes(run: RunView, shown: list[Shown]) -> list[Figure]:
    """Return a picture per cube; classes are compared, or voxels."""
    red, green, blue = (float(nm) for nm in run.config["figures"]["rgb_nm"])
    found: list[Figure] = []
    for each in shown:
        if each.made_CHW is None and each.predicted_HW is None:
            continue
        photo = photograph(each) if run.config["figures"]["load_rgb"] else None
        named = ({} if photo is None else {"photograph": photo}) | panels(each, (red, green, blue))
        title = "Original, masked, reconstruction" if each.predicted_HW is None else "Classes"
        lines = [" | ".join(named), *_about(each)]
        if not found:  # once is enough
            lines.append(_CLASSES if each.made_CHW is None else _BANDS)
        picture = side_by_side(list(named.values()))
        found.append(Figure(f"{title} of {each.sample_id}", ". ".join(lines), picture=picture))
    return found


def _about(shown: Shown) -> tuple[str, ...]:
    if shown.made_CHW is None or shown.hidden_CHW is None:
        return ()
    scored = shown.hidden_CHW & shown.measured_HW
    if not scored.any():
        return ()
    error = float(np.square(shown.made_CHW - shown.true_CHW)[scored].mean())
    return (f"{scored.sum() / max(1, shown.measured_HW.sum() * len(scored)):.0%} hidden, MSE {error:.3g}",)


def _spectra(shown: list[Shown]) -> list[Figure]:
    return [
        Figure(
            f"Spectra of {each.sample_id}",
            "Pixels from dark to bright. Solid: the truth; dotted: the model; dots: bands hidden there.",
            plot=spectra_plot(each),
            wide=False,
        )
        for each in shown[:4]
        if each.measured_HW.any()
    ]
