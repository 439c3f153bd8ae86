"""A synthetic subject in MindEye's WebDataset tars, with `clip.npz` for the targets.

Voxels and targets come from a `World`: y = 16 normalise(W x + noise), as CLIP's embeddings have norms about
16; at full size the targets are rectified features of the codes, of which a linear map knows a part. The
pictures are linear in the same codes. The members that no reader of ours takes (`wholebrain_3d.npy`) are
left out.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from voxray.core.task import SynthReport
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import ID
from voxray.data.formats.mindeye import NUM_PICTURES
from voxray.data.formats.planted_world import GALLERY, MAX_FLOOR_ROWS, World, recall_at_1, ridge_guess, spread

SUBJECT = "subj01"
FOLDER = "webdataset_avg_split"
NUM_REPEATS = 3
ROWS_PER_TAR = 500
TARGET_NORM = 16.0
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class SynthSize:
    """Pictures per split, voxels, the pictures' side, and what the `World` is."""

    rows: dict[str, int]
    num_voxels: int
    side: int
    num_codes: int
    noise_to_signal: float
    threshold: float | None = None
    voxel_noise: float | None = None

    def world(self, seed: int) -> World:
        """Return the world behind the files."""
        return World(
            seed,
            sum(self.rows.values()),
            self.num_voxels,
            self.num_codes,
            self.noise_to_signal,
            self.threshold,
            self.voxel_noise,
        )


# full: subject 1 as MindEye has it (DOMAINS S3.c).
SYNTH_SIZES = {
    "tiny": SynthSize({"train": 400, "val": 50, "test": 100}, 500, 64, 32, 3.0),
    "small": SynthSize({"train": 3000, "val": 300, "test": 982}, 4000, 128, 32, 3.0),
    "full": SynthSize({"train": 8559, "val": 300, "test": 982}, 15_724, 256, 24, 0.1, 1.0, 1.5),
}


def synth(out: Path, size: str, seed: int) -> SynthReport:
    """Write one subject's tars, their metadata and `clip.npz`; the same seed writes the same bytes.

    The report's metric is recall at 1 over test pictures, the three repeats averaged: oracle by the posterior
    mean of the codes, floor by ridge regression on up to 2,000 training pictures.
    """
    spec = SYNTH_SIZES[size]
    world = spec.world(seed)
    rng = np.random.default_rng([seed, 100])
    nsd_id_M = rng.permutation(NUM_PICTURES)[: world.num_stimuli]
    trials_MR = np.sort(rng.permutation(world.num_stimuli * NUM_REPEATS).reshape(-1, NUM_REPEATS), axis=1)
    first = 0
    for split, num_rows in spec.rows.items():
        for number, start in enumerate(range(0, num_rows, ROWS_PER_TAR)):
            stimuli = range(first + start, first + min(start + ROWS_PER_TAR, num_rows))
            path = out / FOLDER / split / f"{split}_{SUBJECT}_{number}.tar"
            _write_tar(path, spec, world, stimuli, nsd_id_M, trials_MR)
        first += num_rows
    metadata = {"totals": spec.rows}
    (out / FOLDER / f"metadata_{SUBJECT}.json").write_text(json.dumps(metadata) + "\n", encoding="utf-8")
    with (out / TARGETS).open("wb") as file:
        np.savez(file, **{ID: nsd_id_M, "final": np.float32(TARGET_NORM) * world.targets("final")})
    return _report(spec, world)


def _voxels(world: World, stimulus: int) -> np.ndarray:
    """Return float32 [repeats, V]."""
    return world.responses(np.full(NUM_REPEATS, stimulus), stimulus)


def _report(spec: SynthSize, world: World) -> SynthReport:
    num_train, num_test = spec.rows["train"], spec.rows["test"]
    train = spread(range(num_train), MAX_FLOOR_ROWS)
    tests = spread(range(world.num_stimuli - num_test, world.num_stimuli), GALLERY)
    train_NV, tests_NV = (
        np.stack([_voxels(world, int(stimulus)).mean(axis=0) for stimulus in stimuli])
        for stimuli in (train, tests)
    )
    y_MD = world.targets("final")
    guess = ridge_guess(train_NV, y_MD[train], tests_NV)
    return SynthReport(
        metric=f"r1_of_{len(tests)}",
        num_rows=world.num_stimuli,
        oracle=recall_at_1(world.best_guess(tests_NV, NUM_REPEATS), y_MD[tests]),
        floor=recall_at_1(guess, y_MD[tests]),
        chance=1 / len(tests),
        notes={
            "floor": f"ridge regression on {len(train)} pictures, repeats averaged",
            "oracle": "the posterior mean of the codes behind voxels and targets, repeats averaged",
        },
    )


def _write_tar(
    path: Path, spec: SynthSize, world: World, stimuli: range, nsd_id_M: np.ndarray, trials_MR: np.ndarray
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for stimulus in stimuli:
            members = {
                "coco73k.npy": _npy(nsd_id_M[stimulus]),
                "jpg": _jpeg(world.picture(stimulus, spec.side)),
                "nsdgeneral.npy": _npy(_voxels(world, stimulus)),
                "num_uniques.npy": _npy(np.array([NUM_REPEATS])),
                "trial.npy": _npy(trials_MR[stimulus]),
            }
            for name, content in members.items():
                member = tarfile.TarInfo(f"sample{stimulus:09d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _jpeg(pixels_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
