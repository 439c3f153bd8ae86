"""Where a dataset's voxels lie: the volume, its affine and the places inside a mask; maps as NIfTI files.

`affine` takes voxel indices to millimetres (x to the right, y forward, z up), as nibabel reads it: the sform
of a NIfTI header, else its qform. With neither code set (`space` is `unknown`) it holds voxel sizes alone.
"""

import gzip
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from voxray.data.formats.nifti import VolumeError, nibabel_module, read_affine, read_mask

# NIfTI-1's codes of a coordinate system (nifti1.h, NIFTI_XFORM_*), by their number.
SPACES = ("unknown", "scanner", "aligned", "talairach", "mni")
STANDARD_SPACES = ("talairach", "mni")  # in which one brain's outline is another's


@dataclass(frozen=True)
class VoxelSpace:
    """V voxels of a volume [X, Y, Z]: `voxels` are their flat places (x slowest, z fastest), ascending; the
    affine's 16 numbers stand row after row.
    """

    shape: tuple[int, int, int]
    affine: tuple[float, ...]
    space: str
    voxels: tuple[int, ...]

    @classmethod
    def of_mask(cls, path: Path) -> Self:
        """Return the space of a mask's file. Raises VolumeError for a file that is no mask."""
        mask_XYZ, (affine, code) = read_mask(path), read_affine(path)
        x, y, z = mask_XYZ.shape
        space = SPACES[code] if code < len(SPACES) else SPACES[0]
        numbers = tuple(float(value) for value in affine.reshape(-1))
        return cls((x, y, z), numbers, space, tuple(np.flatnonzero(mask_XYZ).tolist()))

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Return what `plain` gave, after JSON. Raises VolumeError for values that are none of it."""
        try:
            shape, affine = tuple(map(int, values["shape"])), tuple(map(float, values["affine"]))
            voxels, space = tuple(map(int, values["voxels"])), str(values["space"])
        except (KeyError, TypeError, ValueError) as error:
            raise VolumeError("no space of voxels; prepare the dataset again") from error
        fits = len(shape) == 3 and len(affine) == 16 and space in SPACES and len(voxels) > 0
        if not fits or min(voxels) < 0 or max(voxels) >= np.prod(shape):
            raise VolumeError("no space of voxels; prepare the dataset again")
        return cls((shape[0], shape[1], shape[2]), affine, space, voxels)

    def plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def affine_44(self) -> np.ndarray:
        """Return the affine as a matrix [4, 4]."""
        return np.array(self.affine).reshape(4, 4)

    @property
    def sizes_mm(self) -> tuple[float, float, float]:
        """Return the sides of a voxel."""
        x, y, z = np.linalg.norm(self.affine_44[:3, :3], axis=0).tolist()
        return x, y, z

    def volume(self, values_V: np.ndarray) -> np.ndarray:
        """Return float32 [X, Y, Z] with the values in their places and NaN elsewhere."""
        assert len(values_V) == len(self.voxels), "a value for each voxel of the mask"
        flat = np.full(int(np.prod(self.shape)), np.nan, np.float32)
        flat[list(self.voxels)] = values_V
        return flat.reshape(self.shape)

    def nifti(self, values_V: np.ndarray) -> bytes:
        """Return a `.nii.gz` of the values, NaN outside the mask, with this affine as sform and qform.

        The same values are the same bytes. Raises InputError without nibabel.
        """
        nibabel = nibabel_module()
        image = nibabel.Nifti1Image(self.volume(values_V), self.affine_44)
        code = SPACES.index(self.space)
        image.set_sform(self.affine_44, code)
        image.set_qform(self.affine_44, code)
        image.header.set_xyzt_units("mm")
        return gzip.compress(image.to_bytes(), mtime=0)
