"""Typed config of the hyperspectral task: what its data needs, and the guide's spellings."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator

from voxray.config.spellings import Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import HYDRA, optimizer, schedule
from voxray.data.config import DataConfig, PrepareConfig


class HyperspectralPrepareConfig(PrepareConfig, frozen=True):
    """How raw cubes become rows."""

    layout: Literal["auto", "table", "scene", "file"] = Field(
        default="auto",
        description=(
            "table: HDF5 cubes that a CSV lists; scene: MAT files with ground truth beside them; file: HDF5 "
            "or NPY cubes without a table; auto: what the folder holds, in this order"
        ),
    )
    table: str = Field(default="", description="the CSV file, where the folder holds several")
    dataset: str = Field(default="/Cube/Images", min_length=1, description="the cube in an HDF5 file")
    variable: str = Field(default="", description="the cube in a MAT file, where it holds several 3-D arrays")
    band_axis: Literal["first", "last"] = Field(default="first", description="the bands' axis in an NPY file")
    bands: Literal["all", "spectraleye"] | tuple[int, ...] = Field(
        default="all",
        description="bands to keep, numbered from 0; spectraleye: 0, 2, … 56 and 80, of its raw cubes",
    )
    tile: int | None = Field(default=None, ge=1, description="cut scenes into tiles of this side in pixels")
    image_size: int | None = Field(
        default=None, ge=1, description="shrink cubes to this side in pixels; by default they are kept"
    )
    scale: float = Field(
        default=1.0, gt=0, description="what values are multiplied with to be reflectances, e.g. 1e-4"
    )
    intensity: Literal["log10", "reflectance"] = Field(
        default="log10",
        description="log10: (log10 reflectance + 3) / 3, 1 for background, as SpectralEye's models take it",
    )
    split_by: Literal["patient", "row"] = Field(
        default="patient",
        description="row: tiles of one scene may be in several splits; a single scene leaves no other way",
    )

    @field_validator("bands")
    @classmethod
    def _increase(cls, bands: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(bands, tuple) and (
            not bands or bands[0] < 0 or any(low >= high for low, high in pairwise(bands))
        ):
            raise ValueError("bands are increasing numbers from 0 on, at least one")
        return bands


class HyperspectralDataConfig(DataConfig, frozen=True):
    """Which cubes a run reads."""

    prepare: HyperspectralPrepareConfig = HyperspectralPrepareConfig()


class Config(RunConfig, frozen=True):
    """A hyperspectral experiment."""

    task: str = "hyperspectral"
    data: HyperspectralDataConfig = HyperspectralDataConfig()


# guide's path → our path. Hydra's groups are named at the top: `optimizer=adamw scheduler=cosine`.
ALIASES = {
    **HYDRA,
    "optimizer": Spelling("training.optimizer", optimizer),
    "scheduler": Spelling("training.schedule", schedule),
    "dataset.csv_file": "data.prepare.table",
}
