"""Typed config of the fMRI-to-CLIP task: what its data needs, and the guide's spellings of it."""

from typing import Literal

from pydantic import Field

from voxray.config.spellings import Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import loader_workers
from voxray.data.config import DataConfig, PrepareConfig


class FmriClipPrepareConfig(PrepareConfig, frozen=True):
    """How raw fMRI becomes rows. Patterns of `.npz` files are taken as they are; `mask` and `zscore` are for
    NIfTI and HDF5.
    """

    layout: Literal["auto", "nsd", "events", "npz"] = Field(
        default="auto",
        description="nsd: betas and NSD's stimulus table; events: BOLD with *_events.tsv; npz: arrays "
        "[trials, voxels]; auto: whichever of them the folder holds",
    )
    files: str = Field(
        default="", description="glob of the files with the patterns, e.g. `*_25mm.nii.gz`; default: all"
    )
    subjects: tuple[str, ...] = Field(
        default=(), description="which subjects are taken; default: all, if they have equally many voxels"
    )
    mask: str = Field(
        default="",
        description="glob of the mask's file; default: nsdgeneral.nii.gz for NSD, else the one *mask* file",
    )
    zscore: bool = Field(
        default=True, description="give each voxel mean 0 and standard deviation 1 within each session (run)"
    )
    hrf_delay_s: float = Field(
        default=5.0, ge=0, le=30, description="seconds from an event to the BOLD volumes that show it"
    )
    group: Literal["stimulus_id", "session_id"] = Field(
        default="stimulus_id", description="what is never in two splits: a stimulus, or a session (run)"
    )
    test_split: Literal["shared1000", "drawn"] = Field(
        default="shared1000",
        description="the test split of NSD: the 1,000 pictures that all subjects saw (if stimuli are the "
        "groups), or drawn like the others",
    )
    images: Literal["auto", "none", "encoded", "pixels"] = Field(
        default="auto",
        description="the stimuli in each row: none, a PNG, or uint8 pixels; auto: a PNG where there is a "
        "picture but no CLIP target",
    )
    image_size: int = Field(default=224, ge=8, description="side of a stored picture; CLIP takes 224")


class FmriClipDataConfig(DataConfig, frozen=True):
    """Which fMRI rows a run reads."""

    prepare: FmriClipPrepareConfig = FmriClipPrepareConfig()


class Config(RunConfig, frozen=True):
    """An fMRI-to-CLIP experiment."""

    task: str = "fmri_clip"
    data: FmriClipDataConfig = FmriClipDataConfig()


# guide's path → our path
ALIASES = {
    "experiment.name": "experiment_name",
    "experiment.description": "description",
    "experiment.tags": "tags",
    "dataset.subject": Spelling(
        "data.prepare.subjects", lambda names: [names] if isinstance(names, str) else names
    ),
    "dataset.train_ratio": "data.prepare.splits.train",
    "dataset.val_ratio": "data.prepare.splits.val",
    "dataset.test_ratio": "data.prepare.splits.test",
    "dataset.num_workers": Spelling("data.read_threads", loader_workers),
    "ridge.alpha": Spelling(instead="write training.closed_form.alphas: [ALPHA]"),
    "ridge.alpha_range": Spelling("training.closed_form.alphas", also={"training.stepper": "closed_form"}),
    "ridge.cv_folds": "training.closed_form.folds",
    "ridge.fit_intercept": "training.closed_form.fit_intercept",
}
