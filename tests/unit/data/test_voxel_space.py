"""Where voxels lie, against nibabel's reading of the same files; maps are read back by nibabel."""

import gzip
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from voxray.data.formats.nifti import read_masked
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.tasks.fmri_clip.figures.brain import upright

nib = pytest.importorskip("nibabel")

SHAPE = (4, 5, 3)
AFFINE = np.array([[-3.0, 0.1, 0, 60], [0, 3.5, 0.2, -35], [0, 0, 4, -10], [0, 0, 0, 1]])


def mask_file(folder: Path, sform: int = 1, qform: int = 1) -> tuple[Path, np.ndarray]:
    mask_XYZ = np.random.default_rng(1).random(SHAPE) < 0.4
    image = nib.Nifti1Image(mask_XYZ.astype(np.uint8), None)
    image.header.set_zooms((3, 3.5, 4))
    image.set_qform(np.diag([3, 3.5, 4, 1]) + np.eye(4, k=3) * 7, qform)
    image.set_sform(AFFINE, sform)
    nib.save(image, folder / "mask.nii.gz")
    return folder / "mask.nii.gz", mask_XYZ


@pytest.mark.parametrize(
    ("sform", "qform", "space"),
    [(1, 1, "scanner"), (4, 0, "mni"), (3, 1, "talairach"), (0, 2, "aligned"), (0, 0, "unknown")],
)
def test_a_mask_says_where_its_voxels_lie(tmp_path: Path, sform: int, qform: int, space: str) -> None:
    path, mask_XYZ = mask_file(tmp_path, sform, qform)
    found = VoxelSpace.of_mask(path)
    np.testing.assert_array_equal(found.affine_44, nib.load(path).affine)
    assert (found.shape, found.space) == (SHAPE, space)
    np.testing.assert_array_equal(np.unravel_index(found.voxels, SHAPE), np.nonzero(mask_XYZ))
    np.testing.assert_allclose(found.sizes_mm, nib.affines.voxel_sizes(nib.load(path).affine))
    assert VoxelSpace.from_plain(json.loads(json.dumps(found.plain()))) == found


@pytest.mark.parametrize(("sform", "qform"), [(4, 1), (0, 2), (0, 0)])
def test_a_map_is_a_volume_with_the_masks_affine(tmp_path: Path, sform: int, qform: int) -> None:
    path, mask_XYZ = mask_file(tmp_path, sform, qform)
    series_XYZT = np.random.default_rng(2).normal(size=(*SHAPE, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(series_XYZT, AFFINE), tmp_path / "bold.nii.gz")
    values_V = read_masked(tmp_path / "bold.nii.gz", mask_XYZ)[1]
    space = VoxelSpace.of_mask(path)
    content = space.nifti(values_V)
    assert content == space.nifti(values_V)
    image = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content)))
    expected_XYZ = np.where(mask_XYZ, series_XYZT[..., 1], np.nan)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), expected_XYZ)
    if sform or qform:
        np.testing.assert_allclose(image.affine, nib.load(path).affine, atol=1e-5)
    assert int(image.header["sform_code"]) == (sform or qform)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_what_is_no_space_is_refused(tmp_path: Path) -> None:
    plain = VoxelSpace.of_mask(mask_file(tmp_path)[0]).plain()
    wrong = (
        {"shape": (4, 5)},
        {"affine": (1.0,) * 12},
        {"space": "moon"},
        {"voxels": ()},
        {"voxels": (60,)},
        {"voxels": (-1,)},
        {"voxels": None},
    )
    for change in wrong:
        with pytest.raises(ValueError, match="prepare the dataset again"):
            VoxelSpace.from_plain(plain | change)


def test_upright_is_nibabels_closest_canonical() -> None:
    volume = np.random.default_rng(0).normal(size=SHAPE)
    tilt = AFFINE @ np.diag([-1, 1, 1, 1])
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            affine_44 = tilt[:, [*axes, 3]] @ np.diag([*signs, 1])
            expected = nib.as_closest_canonical(nib.Nifti1Image(volume, affine_44))
            found, turned_44 = upright(volume, affine_44)
            np.testing.assert_array_equal(found, expected.get_fdata())
            np.testing.assert_allclose(turned_44, expected.affine)


def test_haxbys_mask(shared_data: Path) -> None:
    path = shared_data / "fmri" / "haxby2001_sub001" / "masks25mm_brain.nii.gz"
    space = VoxelSpace.of_mask(path)
    assert (space.shape, space.space, len(space.voxels)) == ((6, 10, 10), "scanner", 129)
    assert space.sizes_mm == (25, 25, 25)
    np.testing.assert_array_equal(space.affine_44, nib.load(path).affine)
