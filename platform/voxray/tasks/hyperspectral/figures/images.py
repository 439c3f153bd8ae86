"""Pictures of cubes: three bands by wavelength as red, green and blue, and maps of classes. No torch here.

Shapes: C bands, H × W pixels, 3 colours last.
"""

import io

import numpy as np

from voxray.tasks.hyperspectral.figures.shown import Shown

SHOWN_SIDE_PX = 320  # smaller pictures are enlarged to about this, by whole factors
GAP_PX, LINE_PX = 12, 2  # between pictures: a line, since what is white in them has no edge
STRETCH = (2.0, 98.0)  # percentiles of the measured pixels that become black and white
HIDDEN_GREY, OUTSIDE_GREY = 0.5, 1.0
LINE_GREY = 120
_GOLDEN = 0.61803398875  # of the colour circle: neighbouring classes get colours far apart


def display_bands(wavelengths_C: np.ndarray, rgb_nm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the bands nearest to red, green and blue; where the wavelengths are not known, bands at five
    sixths, a half and a sixth of the spectrum.
    """
    num = len(wavelengths_C)
    if np.isnan(wavelengths_C).any():
        return (5 * num // 6, num // 2, num // 6)
    red, green, blue = (int(np.abs(wavelengths_C - nm).argmin()) for nm in rgb_nm)
    return red, green, blue


def stretch_limits(shown: Shown, bands: tuple[int, int, int]) -> np.ndarray:
    """Return what is black and what is white in each of three bands of the truth, [2, 3].

    The bands share them, which keeps hues; not where wavelengths are unknown and there are no true hues.
    """
    values_3X = shown.true_CHW[list(bands)][:, shown.measured_HW]
    if not values_3X.size:
        return np.array([[0.0] * 3, [1.0] * 3])
    axis = 1 if np.isnan(shown.wavelengths_C).any() else None
    low_3, high_3 = (np.broadcast_to(each, 3) for each in np.percentile(values_3X, STRETCH, axis=axis))
    return np.stack([low_3, np.maximum(high_3, low_3 + 1e-6)])


def colours(
    cube_CHW: np.ndarray, bands: tuple[int, int, int], limits_23: np.ndarray, measured_HW: np.ndarray
) -> np.ndarray:
    """Return three bands as colours, float [H, W, 3] from 0 to 1; white where nothing was measured."""
    stretched = (np.moveaxis(cube_CHW[list(bands)], 0, -1) - limits_23[0]) / (limits_23[1] - limits_23[0])
    return np.where(measured_HW[..., None], stretched.clip(0, 1), OUTSIDE_GREY)


def panels(shown: Shown, rgb_nm: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """Return a cube's pictures by their names, uint8 [H, W, 3]: original, masked, reconstruction; or
    original, truth and prediction of classes.
    """
    bands = display_bands(shown.wavelengths_C, rgb_nm)
    limits_23 = stretch_limits(shown, bands)
    original = colours(shown.true_CHW, bands, limits_23, shown.measured_HW)
    found = {"original": original}
    if shown.made_CHW is not None and shown.hidden_CHW is not None:
        hidden_HW3 = np.moveaxis(shown.hidden_CHW[list(bands)], 0, -1) & shown.measured_HW[..., None]
        found["masked"] = np.where(hidden_HW3, HIDDEN_GREY, original)
        found["reconstruction"] = colours(shown.made_CHW, bands, limits_23, shown.measured_HW)
    if shown.predicted_HW is not None:
        found["classes"] = class_colours(shown.classes_HW)
        found["predicted"] = class_colours(np.where(shown.measured_HW, shown.predicted_HW, 0))
        found["predicted where labelled"] = class_colours(
            np.where(shown.classes_HW > 0, shown.predicted_HW, 0)
        )
    return {name: (255 * picture + 0.5).astype(np.uint8) for name, picture in found.items()}


def class_colours(classes_HW: np.ndarray) -> np.ndarray:
    """Return a colour per class, float [H, W, 3]; 0 is white."""
    import colorsys

    table = [(1.0, 1.0, 1.0)]
    for number in range(1, int(classes_HW.max(initial=0)) + 1):
        table.append(colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.85 - 0.3 * (number % 2), 0.9))
    return np.array(table)[classes_HW]


def side_by_side(pictures: list[np.ndarray]) -> bytes:
    """Return pictures in a row as one PNG file, enlarged by a whole factor where they are small."""
    from PIL import Image

    factor = -(-SHOWN_SIDE_PX // max(pictures[0].shape[:2]))
    enlarged = [picture.repeat(factor, 0).repeat(factor, 1) for picture in pictures]
    gap = np.full((enlarged[0].shape[0], GAP_PX, 3), 255, np.uint8)
    gap[:, (GAP_PX - LINE_PX) // 2 : (GAP_PX + LINE_PX) // 2] = LINE_GREY
    row: list[np.ndarray] = []
    for picture in enlarged:
        row += [gap, picture] if row else [picture]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(row, axis=1)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def photograph(shown: Shown) -> np.ndarray | None:
    """Return the cube's photograph, uint8 [H, W, 3], in the cube's size; None without one."""
    from PIL import Image

    if not shown.rgb:
        return None
    height, width = shown.measured_HW.shape
    with Image.open(io.BytesIO(shown.rgb)) as image:
        return np.asarray(image.convert("RGB").resize((width, height)))
