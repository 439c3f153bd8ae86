"""A map of voxels as a picture: axial slices, or a glass brain where the space is a standard one. No torch.

Shapes: X, Y, Z of the volume; after `upright` they run to the right, forward and up.
"""

import io
from itertools import permutations
from typing import Any

import numpy as np

from voxray.core.figures import GREY
from voxray.data.formats.voxel_space import STANDARD_SPACES, VoxelSpace

MAX_SLICES, COLUMNS = 20, 5
INCHES = 1.9  # of one slice's wider side
DPI = 110
_SEEN = 1e-6  # of the largest value: less is not drawn in a glass brain
_MASK_COLOUR = "#9CA3AF"  # of voxels of the mask without a value


def brain_picture(space: VoxelSpace, values_V: np.ndarray, label: str, signed: bool) -> tuple[bytes, str]:
    """Return a PNG of a value per voxel of the mask (NaN: none), and the sentence that says what it shows.

    `signed` values have colours to both sides of 0. In a standard space (MNI, Talairach) nilearn, where it is
    installed, draws a glass brain.
    """
    limit = float(np.nanmax(np.abs(values_V), initial=0.0)) or 1.0
    if space.space in STANDARD_SPACES:
        drawn = _glass_brain(space, values_V, limit, signed)
        if drawn is not None:
            return drawn, f"Largest values through a transparent brain, in {space.space} coordinates."
    return _slices(space, values_V, label, limit, signed), _about_slices(space)


def upright(volume_XYZ: np.ndarray, affine_44: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the volume with axes that run (most nearly) to the right, forward and up, and its affine."""
    linear_33 = affine_44[:3, :3] / np.linalg.norm(affine_44[:3, :3], axis=0)
    axes = max(
        permutations(range(3)), key=lambda order: sum(abs(linear_33[i, a]) for i, a in enumerate(order))
    )
    turned, affine = volume_XYZ.transpose(axes), affine_44[:, [*axes, 3]].copy()
    for axis in range(3):
        if affine[axis, axis] < 0:
            turned = np.flip(turned, axis)
            affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
            affine[:3, axis] *= -1
    return turned, affine


def _about_slices(space: VoxelSpace) -> str:
    sizes = " × ".join(f"{size:.3g}" for size in space.sizes_mm)
    where = {
        "unknown": "and the mask's header names no coordinate system, so that left may be right",
        "scanner": "coordinates of the scanner",
    }.get(space.space, f"{space.space} coordinates")
    return f"Axial slices, the lowest first; voxels of {sizes} mm, {where}. Dark grey: no value."


def _slices(space: VoxelSpace, values_V: np.ndarray, label: str, limit: float, signed: bool) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    values_XYZ, affine_44 = upright(space.volume(values_V), space.affine_44)
    inside_XYZ = upright(space.volume(np.ones(len(values_V))), space.affine_44)[0] == 1
    box, chosen = _box(inside_XYZ), _chosen(inside_XYZ)
    rows, columns = -(-len(chosen) // COLUMNS), min(COLUMNS, len(chosen))
    side_x, side_y, _ = np.linalg.norm(affine_44[:3, :3], axis=0)
    wide, high = side_x * (box[0].stop - box[0].start), side_y * (box[1].stop - box[1].start)
    scale = INCHES / max(wide, high)
    size = (max(3.0, columns * wide * scale + 0.9), max(1.6, rows * (high * scale + 0.3)))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    colours: dict[str, Any] = (
        {"cmap": "coolwarm", "vmin": -limit} if signed else {"cmap": "viridis", "vmin": 0.0}
    )
    image = None
    for panel, z in zip(panels, chosen, strict=False):
        mask_YX = np.where(inside_XYZ[*box, z], 1.0, np.nan).T
        panel.imshow(mask_YX, cmap=ListedColormap([_MASK_COLOUR]), origin="lower", aspect=side_y / side_x)
        image = panel.imshow(
            values_XYZ[*box, z].T, vmax=limit, origin="lower", aspect=side_y / side_x, **colours
        )
        panel.set_title(_name_of_slice(z, affine_44, values_XYZ.shape, space), fontsize=8)
    for panel in panels:
        panel.set_axis_off()
    if space.space != "unknown":
        for x, side in ((-0.02, "L"), (1.02, "R")):
            panels[0].text(x, 0.5, side, transform=panels[0].transAxes, fontsize=8, color=GREY, ha="center")
    assert image is not None, "a mask has voxels"
    figure.colorbar(image, ax=panels.tolist(), label=label, shrink=0.9)
    return _png(figure)


def _name_of_slice(z: int, affine_44: np.ndarray, shape: tuple[int, ...], space: VoxelSpace) -> str:
    """Return a slice's height in millimetres at its middle, or its number."""
    if space.space == "unknown":
        return f"slice {z + 1}"
    middle = affine_44 @ [(shape[0] - 1) / 2, (shape[1] - 1) / 2, z, 1]
    return f"z = {round(float(middle[2]))} mm"


def _box(inside_XYZ: np.ndarray) -> tuple[slice, slice]:
    """Return the columns and rows that hold the mask."""
    found = (np.flatnonzero(inside_XYZ.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    x, y = (slice(int(places[0]), int(places[-1]) + 1) for places in found)
    return x, y


def _chosen(inside_XYZ: np.ndarray) -> list[int]:
    """Return the slices that hold the mask, at most MAX_SLICES of them, evenly spaced."""
    filled = np.flatnonzero(inside_XYZ.any(axis=(0, 1)))
    places = np.linspace(0, len(filled) - 1, min(len(filled), MAX_SLICES)).round().astype(int)
    return filled[places].tolist()


def _glass_brain(space: VoxelSpace, values_V: np.ndarray, limit: float, signed: bool) -> bytes | None:
    """Return what nilearn draws; None where it is not installed."""
    try:
        import nibabel  # pyright: ignore[reportMissingImports]
        from nilearn import plotting  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    volume = np.nan_to_num(space.volume(values_V))
    colours = {"cmap": "coolwarm", "vmin": -limit} if signed else {"cmap": "viridis", "vmin": 0.0}
    display = plotting.plot_glass_brain(
        nibabel.Nifti1Image(volume, space.affine_44),
        display_mode="lyrz",
        plot_abs=False,
        colorbar=True,
        vmax=limit,
        threshold=_SEEN * limit,  # what is outside the mask stays transparent
        symmetric_cbar=signed,
        **colours,
    )
    try:
        return _png(display.frame_axes.figure)
    finally:
        display.close()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
