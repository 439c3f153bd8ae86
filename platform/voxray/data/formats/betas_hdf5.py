"""NSD's `betas_sessionNN.hdf5`: the dataset `betas` [trials, Z, Y, X], as MATLAB writes [X, Y, Z, trials].

All functions raise ValueError with the reason and the mend; the caller adds the file's name.
"""

from pathlib import Path

import h5py
import numpy as np

from voxray.data.formats.nifti import SeriesHeader, blocks, check_mask
from voxray.data.formats.safe_hdf5 import child_array, damage_named, open_hdf5

DATASET = "betas"


def read_betas_header(path: Path) -> SeriesHeader:
    """Return sizes and kind; the time between trials is not said."""
    with open_hdf5(path) as file:
        betas = child_array(file, DATASET, "iuf")
        *volume, num_trials = _shape(betas)
        return SeriesHeader((volume[0], volume[1], volume[2]), num_trials, 0.0, betas.dtype.kind in "iu")


def read_masked_betas(path: Path, mask_XYZ: np.ndarray) -> np.ndarray:
    """Return float32 [trials, voxels] where the mask is True, in the order of `nifti.read_masked`."""
    with open_hdf5(path) as file:
        betas = child_array(file, DATASET, "iuf")
        shape = _shape(betas)
        check_mask(shape, mask_XYZ)
        values_NV = np.empty((shape[3], int(mask_XYZ.sum())), np.float32)
        for start, stop in blocks(shape):
            with damage_named():
                block_NZYX = betas[start:stop]
            values_NV[start:stop] = block_NZYX.transpose(0, 3, 2, 1)[:, mask_XYZ]
    return values_NV


def _shape(betas: h5py.Dataset) -> tuple[int, int, int, int]:
    if len(betas.shape) != 4 or 0 in betas.shape:
        raise ValueError(f"'{DATASET}' has the shape {list(betas.shape)}, not [trials, z, y, x]")
    num_trials, z, y, x = (int(size) for size in betas.shape)
    return x, y, z, num_trials
