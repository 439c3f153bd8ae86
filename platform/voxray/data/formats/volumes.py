"""One session's volumes inside a mask, read once per process: what rows of NIfTI and HDF5 files point to.

Z-scoring needs a whole session, and a compressed file can only be read from its start, so the session is the
unit that is read and kept; a task that decodes neighbouring rows reads it once.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from voxray.core.task import BadRowError, RawRow
from voxray.data.formats.betas_hdf5 import read_masked_betas
from voxray.data.formats.nifti import read_mask, read_masked

NSD_BETA_SCALE = 300.0  # NSD keeps percent signal change × 300 as int16 (NSD data manual, "func1pt8mm")
_SESSIONS_KEPT = 2


@dataclass(frozen=True)
class MaskedVolumes:
    """A session: its file (`.nii`, `.nii.gz`, or NSD's `.hdf5`), the mask's file, and what is done to it.

    With `zscore` each voxel has mean 0 and standard deviation 1 over all volumes of the file (0 where it is
    constant); otherwise values are divided by `scale`.
    """

    path: str
    mask: str
    zscore: bool
    scale: float = 1.0

    def read(self) -> np.ndarray:
        """Return float32 [volumes, voxels]; not to be written to. Raises BadRowError that names the file."""
        try:
            return _read(self, os.stat(self.path).st_mtime_ns)
        except OSError as error:
            raise BadRowError(f"'{self.path}' cannot be read: {error.strerror}; put it back") from error
        except ValueError as error:
            raise BadRowError(f"'{self.path}': {error}") from error


def load_volumes(row: RawRow) -> RawRow:
    """Return the row with x float32 [V]: the mean of the volumes `span` = (first, last + 1) of its session.

    Raises BadRowError, naming file and trial, for a file that is damaged and values that are not finite.
    """
    first, end = row["span"]
    x_NV = row["volumes"].read()[first:end]
    if len(x_NV) != end - first:
        raise BadRowError(f"{row['origin']}: the file ends before it; the file changed, prepare again")
    x_V = x_NV.mean(axis=0, dtype=np.float32)
    if num_bad := int((~np.isfinite(x_V)).sum()):
        raise BadRowError(
            f"{row['origin']}: {num_bad} of {x_V.size} voxels are not finite; mend or mask them"
        )
    return row | {"x": x_V}


def zscored(x_NV: np.ndarray) -> np.ndarray:
    """Return float32 [N, V] with mean 0 and (population) standard deviation 1 over N, 0 where constant."""
    mean_V = x_NV.mean(axis=0, dtype=np.float64)
    std_V = x_NV.std(axis=0, dtype=np.float64)
    # A constant's standard deviation is rounding alone.
    is_constant_V = std_V <= 1e-7 * np.abs(mean_V)
    inverse_V = np.where(is_constant_V, 0.0, 1.0 / np.where(is_constant_V, 1.0, std_V))
    return ((x_NV - mean_V.astype(np.float32)) * inverse_V.astype(np.float32)).astype(np.float32)


@lru_cache(maxsize=_SESSIONS_KEPT)
def _read(volumes: MaskedVolumes, modified_ns: int) -> np.ndarray:
    mask = _mask(volumes.mask, os.stat(volumes.mask).st_mtime_ns)
    path = Path(volumes.path)
    values_NV = read_masked_betas(path, mask) if path.suffix == ".hdf5" else read_masked(path, mask)
    values_NV = zscored(values_NV) if volumes.zscore else values_NV / np.float32(volumes.scale)
    values_NV.flags.writeable = False
    return values_NV


@lru_cache(maxsize=_SESSIONS_KEPT)
def _mask(path: str, modified_ns: int) -> np.ndarray:
    try:
        return read_mask(Path(path))
    except ValueError as error:
        raise ValueError(f"its mask '{path}': {error}") from error
