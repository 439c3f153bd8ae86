"""The picture that a run draws while it trains: cubes, their reconstructions, spectra, errors. No torch."""

import io
from collections.abc import Sequence

import numpy as np

from voxray.core.figures import BLUE
from voxray.tasks.hyperspectral.config import FiguresConfig
from voxray.tasks.hyperspectral.figures.images import panels, photograph
from voxray.tasks.hyperspectral.figures.shown import Shown
from voxray.tasks.hyperspectral.figures.spectra import COLOURS, band_axis, chosen_pixels

INCHES = 2.3  # of one picture


def drawn(shown: Sequence[Shown], config: FiguresConfig, kind: str = "png") -> bytes:
    """Return one file of `kind` (png, pdf, svg): a row per cube, below it the errors over wavelengths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_made = shown[0].made_CHW is not None
    rows = [_pictures(each, config) for each in shown]
    num_pictures = max(len(row) for row in rows)
    width, height = num_pictures + 1.6 * is_made, len(rows) + is_made
    figure = Figure(figsize=(INCHES * width, INCHES * height), dpi=config.dpi, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows) + is_made, num_pictures + is_made, width_ratios=[1.0] * num_pictures + [1.6] * is_made
    )
    for number, (each, row) in enumerate(zip(shown, rows, strict=True)):
        for column, (name, picture) in enumerate(row.items()):
            axes = figure.add_subplot(grid[number, column])
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(name, fontsize=9)
        if is_made:
            _draw_spectra(figure.add_subplot(grid[number, num_pictures]), each)
    if is_made:
        _draw_errors(figure.add_subplot(grid[len(rows), :]), shown)
    buffer = io.BytesIO()
    # Neither a date nor random ids: the same pictures are the same bytes.
    metadata = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _pictures(shown: Shown, config: FiguresConfig) -> dict[str, np.ndarray]:
    photo = photograph(shown) if config.load_rgb else None
    return ({} if photo is None else {"photograph": photo}) | panels(shown, config.rgb_nm)


def _draw_spectra(axes, shown: Shown) -> None:  # noqa: ANN001 - matplotlib's Axes, which is not imported here
    assert shown.made_CHW is not None
    x, title = band_axis(shown.wavelengths_C)
    for (row, column), colour in zip(chosen_pixels(shown), COLOURS, strict=False):
        axes.plot(x, shown.true_CHW[:, row, column], color=colour, linewidth=1.5)
        axes.plot(x, shown.made_CHW[:, row, column], color=colour, linewidth=1, linestyle=":")
    axes.set_xlabel(title, fontsize=7)
    axes.set_title(f"{shown.sample_id[-40:]}: true, and made (dotted)", fontsize=7)
    axes.tick_params(labelsize=7)


def _draw_errors(axes, shown: Sequence[Shown]) -> None:  # noqa: ANN001 - as above
    x, title = band_axis(shown[0].wavelengths_C)
    total_C, count_C = np.zeros(len(x)), np.zeros(len(x))
    for each in shown:
        assert each.made_CHW is not None
        assert each.hidden_CHW is not None
        scored = each.hidden_CHW & each.measured_HW
        scored = scored if scored.any() else np.broadcast_to(each.measured_HW, scored.shape)
        total_C += (np.square(each.made_CHW - each.true_CHW) * scored).sum((1, 2))
        count_C += scored.sum((1, 2))
    axes.plot(x, total_C / np.maximum(count_C, 1), color=BLUE, marker="o", markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(title, fontsize=8)
    axes.set_ylabel("MSE", fontsize=8)
    axes.set_title("squared error per wavelength of these cubes, where hidden", fontsize=8)
    axes.tick_params(labelsize=7)
