"""MindEye2's files, small: betas of a subject, tars that say what was shown when, pictures."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

NUM_PICTURES, NUM_TRIALS, NUM_VOXELS = 60, 1600, 12


def write_mindeye2(
    raw: Path, shown: Mapping[str, Iterable[tuple[int, int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Write them; `shown` is (picture, row of betas) of a folder's trials. Return betas and pictures."""
    rng = np.random.default_rng(0)
    betas = rng.standard_normal((NUM_TRIALS, NUM_VOXELS)).astype(np.float32)
    images = rng.random((NUM_PICTURES, 3, 224, 224)).astype(np.float16)
    raw.mkdir()
    for name, dataset, values in (
        ("betas_all_subj01_fp32_renorm.hdf5", "betas", betas),
        ("coco_images_224_float16.hdf5", "images", images),
    ):
        with h5py.File(raw / name, "w") as file:
            file[dataset] = values
    for folder, trials in shown.items():
        path = raw / "wds" / "subj01" / folder / "0.tar"
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w") as tar:
            for nsd_id, row in trials:
                behav = np.zeros((1, 17))
                behav[0, [0, 5, 16]] = nsd_id, row, folder != "train"
                for member in ("behav.npy", "past_behav.npy"):
                    content = io.BytesIO()
                    np.save(content, behav)
                    info = tarfile.TarInfo(f"sample{row:06d}.{member}")
                    info.size = len(content.getvalue())
                    tar.addfile(info, io.BytesIO(content.getvalue()))
    return betas, images
