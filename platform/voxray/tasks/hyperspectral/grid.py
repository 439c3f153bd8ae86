"""How a dataset's cubes are cut into tokens, checked against its schema."""

from collections.abc import Sequence

from voxray.config.errors import InputError
from voxray.tasks.hyperspectral.config import ModelConfig, divisors
from voxray.tasks.hyperspectral.masking import TokenGrid


def token_grid(config: ModelConfig, shape: Sequence[int | None]) -> TokenGrid:
    """Return the grid for cubes of `shape` (bands, height, width).

    Raises InputError where sizes differ from cube to cube, where the patch does not divide them, and where
    `image_size` or `in_chans` say something else.
    """
    if None in shape:
        raise InputError(
            "the dataset's cubes differ in size, and the model takes one size; prepare it with image_size= "
            "or tile= (and bands=), so that all are alike"
        )
    bands, height, width = (int(size) for size in shape if size is not None)
    if config.in_chans not in (None, bands):
        raise InputError(f"model.in_chans={config.in_chans}, and the dataset's cubes have {bands} bands")
    if config.image_size is not None and (height, width) != (config.image_size, config.image_size):
        raise InputError(
            f"model.image_size={config.image_size}, and the dataset's cubes have {height} × {width} pixels; "
            "prepare it with image_size= or tile=, or leave model.image_size out"
        )
    side, group = config.patch_size
    for size, part, what in (
        (height, side, "rows of pixels"),
        (width, side, "columns of pixels"),
        (bands, group, "bands"),
    ):
        if size % part:
            raise InputError(
                f"model.patch_size={list(config.patch_size)} cannot cut cubes of {size} {what} into parts of "
                f"{part}; choose a divisor of {size}: {divisors(size)}"
            )
    return TokenGrid(bands // group, height // side, width // side, group, side)
