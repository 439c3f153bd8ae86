"""Hyperspectral rows: schema, raw rows of four layouts, loading, typed batches.

A scene whose only group is itself cannot be split: `prepare.tile` cuts it, and `prepare.split_by=block` lets
square blocks of its tiles go to several splits, `row` single tiles. Neighbours are alike, so such a score is
too good for another scene.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.prepared_rows import PreparedRows
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import BadRow, BadRowError, MapStage, RawRow, SynthReport, TaskData
from voxray.data.formats.cube_files import NPY_SUFFIX, load_npy_cube, npy_cube_size, read_cube_files
from voxray.data.formats.envi import ENVI_SUFFIX, load_envi, read_envi_scenes
from voxray.data.formats.hypercube import (
    SPECTRALEYE_BANDS,
    hypercube_size,
    load_hypercube,
    load_rgb,
    read_hypercubes,
)
from voxray.data.formats.scene_mat import load_scene, read_scenes
from voxray.data.formats.scene_tiles import pad, tiles, window
from voxray.tasks.hyperspectral.config import Config, HyperspectralPrepareConfig
from voxray.tasks.hyperspectral.masking import row_keys
from voxray.tasks.hyperspectral.reflectance import log_reflectance
from voxray.tasks.hyperspectral.synth import synth

# Shape letters: B batch, C bands (a cube's channels), H height, W width.

_UNITS = {"log10": "(log10 reflectance + 3) / 3, background 1", "reflectance": "reflectance, 0-1"}
# Glints reflect more than a white target; far more than it are counts that nobody has scaled.
_MAX_REFLECTANCE = 10.0


@dataclass(frozen=True)
class HyperspectralBatch(Batch):
    """Cubes float32 [B, C, H, W], wavelengths in nm [B, C] (NaN unknown), and what is known of each pixel.

    `measured_BHW` is False for background, outside a scene, and in rows that only pad the batch;
    `classes_BHW` int16 is 0 where unlabelled. `rgb` are PNG files, empty where there is none. `mask_key_B`
    is what a row's mask is drawn from: of its name, or in training of its place in the order.
    """

    cube_BCHW: torch.Tensor
    wavelengths_BC: torch.Tensor
    measured_BHW: torch.Tensor
    classes_BHW: torch.Tensor
    label: list[str]
    rgb: list[bytes]
    mask_key_B: torch.Tensor


class HyperspectralData(TaskData):
    """Cubes of reflectances over bands and pixels."""

    Config = Config
    config: Config

    def schema(self) -> Schema:
        """One row per cube or tile; sizes are the raw files' where the config leaves them open."""
        prepare = self.config.data.prepare
        side = prepare.image_size or prepare.tile
        bands = chosen_bands(prepare)
        num_bands = None if bands is None else len(bands)
        return Schema(
            {
                "sample_id": Column(TEXT),
                "group": Column(TEXT),
                "patient_id": Column(TEXT),
                "label": Column(TEXT),
                "cube": Column("float32", (num_bands, side, side), unit=_UNITS[prepare.intensity]),
                "wavelengths_nm": Column("float32", (num_bands,), unit="nm, NaN unknown"),
                "measured": Column(
                    "uint8", (side, side), unit="1 measured, 0 background or outside the scene"
                ),
                "classes": Column("int16", (side, side), unit="0 unlabelled"),
                "rgb": Column(BYTES, unit="PNG, empty without one"),
            },
            group="group",
        )

    def read_raw(self, source: Path) -> Iterator[RawRow | BadRow]:
        """Yield the cubes of a table, the scenes (or tiles) of MAT or ENVI files, or single files.

        Raises InputError as `read_hypercubes`, `read_scenes`, `read_envi_scenes` and `read_cube_files` do.
        """
        prepare = self.config.data.prepare
        layout = _layout_of(source) if prepare.layout == "auto" else prepare.layout
        for row in _READERS[layout](source, prepare):
            if isinstance(row, BadRow):
                yield row
                continue
            patient = row.get("scene") or row["patient_id"]
            group = _group_of(row, patient, prepare)
            yield {"label": "", "rgb_path": ""} | row | {"patient_id": patient, "group": group}

    def map_stages(self) -> list[MapStage]:
        """Load a cube, choose its bands, shrink it, and scale its values."""
        return [MapStage("load", partial(load, prepare=self.config.data.prepare))]

    def column_statistics(self, rows: PreparedRows) -> dict[str, dict[str, Any]]:
        """Return each band's mean and standard deviation over the training rows' measured pixels, a row at a
        time.
        """
        total_3C: np.ndarray | None = None
        for index in range(len(rows)):
            columns = rows.take([index], ["cube", "measured"])
            spectra_CN = columns["cube"][0][:, columns["measured"][0] > 0].astype(np.float64)
            part_3C = np.stack(
                [spectra_CN.sum(1), (spectra_CN**2).sum(1), np.full(len(spectra_CN), spectra_CN.shape[1])]
            )
            total_3C = part_3C if total_3C is None else total_3C + part_3C
        if total_3C is None or not total_3C[2].any():
            return {}
        mean_C = total_3C[0] / total_3C[2]
        std_C = np.sqrt(np.maximum(total_3C[1] / total_3C[2] - mean_C**2, 0))
        return {"cube": {"band_mean": mean_C.tolist(), "band_std": std_C.tolist()}}

    def synth(self, out: Path, size: str, seed: int) -> SynthReport:
        """Write synthetic retinas as a table of HDF5 cubes; see `synth.synth`."""
        return synth(out, size, seed)

    def collate(self, columns: Columns) -> HyperspectralBatch:
        """Turn columns into tensors; no pixel of a row that only pads is valid."""
        valid_B = as_tensor(columns["valid"], dtype=torch.bool)
        return HyperspectralBatch(
            sample_id=columns["sample_id"].tolist(),
            group_id=columns["group"].tolist(),
            valid_B=valid_B,
            position_B=as_tensor(columns["position"]),
            cube_BCHW=as_tensor(columns["cube"]),
            wavelengths_BC=as_tensor(columns["wavelengths_nm"]),
            measured_BHW=as_tensor(columns["measured"], dtype=torch.bool) & valid_B[:, None, None],
            classes_BHW=as_tensor(columns["classes"]),
            label=columns["label"].tolist(),
            rgb=columns["rgb"].tolist(),
            mask_key_B=torch.tensor(row_keys(columns["sample_id"].tolist()), dtype=torch.int64),
        )


def chosen_bands(prepare: HyperspectralPrepareConfig) -> tuple[int, ...] | None:
    """Return the indices of the bands to keep, None for all."""
    if prepare.bands == "spectraleye":
        return SPECTRALEYE_BANDS
    return None if prepare.bands == "all" else tuple(prepare.bands)


# --- raw rows
# ------------------------------------------------------------------------------------------------------------


def _group_of(row: RawRow, patient: str, prepare: HyperspectralPrepareConfig) -> str:
    if prepare.split_by == "block" and "top" in row:
        return f"{patient}:{row['top'] // prepare.block}:{row['left'] // prepare.block}"
    return row["sample_id"] if prepare.split_by == "row" else patient


def _layout_of(source: Path) -> str:
    if any(source.glob("*.csv")):
        return "table"
    suffixes = {path.suffix.lower() for path in source.rglob("*")}
    return "scene" if ".mat" in suffixes else "envi" if ENVI_SUFFIX in suffixes else "file"


def _read_table(source: Path, prepare: HyperspectralPrepareConfig) -> Iterator[RawRow | BadRow]:
    rows = read_hypercubes(source, prepare.table or None, chosen_bands(prepare), prepare.dataset)
    return _cut(rows, prepare)


def _read_scenes(source: Path, prepare: HyperspectralPrepareConfig) -> Iterator[RawRow | BadRow]:
    return read_scenes(source, prepare.tile, prepare.variable or None)


def _read_envi(source: Path, prepare: HyperspectralPrepareConfig) -> Iterator[RawRow | BadRow]:
    return read_envi_scenes(source, prepare.tile)


def _read_files(source: Path, prepare: HyperspectralPrepareConfig) -> Iterator[RawRow | BadRow]:
    return _cut(read_cube_files(source, prepare.dataset), prepare)


def _cut(rows: Iterator[RawRow | BadRow], prepare: HyperspectralPrepareConfig) -> Iterator[RawRow | BadRow]:
    """Yield the tiles of single cubes, whose headers tell their size; their photographs are left out."""
    for row in rows:
        if prepare.tile is None or isinstance(row, BadRow):
            yield row
            continue
        is_npy = row["path"].lower().endswith(NPY_SUFFIX)
        try:
            height, width = npy_cube_size(row, _band_axis(prepare)) if is_npy else hypercube_size(row)
        except BadRowError as error:
            yield BadRow(row["origin"], str(error))
        else:
            place = {"top": 0, "left": 0, "height": height, "width": width}
            yield from tiles(row | place | {"rgb_path": ""}, prepare.tile)


def _band_axis(prepare: HyperspectralPrepareConfig) -> int:
    return 0 if prepare.band_axis == "first" else 2


_READERS: Mapping[str, Callable[[Path, HyperspectralPrepareConfig], Iterator[RawRow | BadRow]]] = {
    "table": _read_table,
    "scene": _read_scenes,
    "envi": _read_envi,
    "file": _read_files,
}


# --- one row
# ------------------------------------------------------------------------------------------------------------


def load(row: RawRow, prepare: HyperspectralPrepareConfig) -> RawRow:
    """Return the row with all columns of the schema. Raises BadRowError, naming the file."""
    loaded = _load_cube(row, prepare)
    cube = loaded["cube"] * np.float32(prepare.scale)
    height, width = cube.shape[1:]
    valid = np.asarray(loaded.get("valid", np.ones((height, width))), dtype=np.uint8)
    classes = loaded.get("labels", np.zeros((height, width), dtype=np.int16))
    if prepare.image_size is not None:
        cube, valid, classes = _shrink(row["path"], cube, valid, classes, prepare.image_size)
    if prepare.intensity == "log10":
        cube, background_HW = _log_reflectance(row["path"], cube)
        valid = np.where(background_HW, np.uint8(0), valid)
    unknown = np.full(len(cube), np.nan, dtype=np.float32)
    rgb = b""
    if row["rgb_path"]:
        load_rgb(row)
        rgb = Path(row["rgb_path"]).read_bytes()
    return row | {
        "cube": cube,
        "wavelengths_nm": loaded.get("wavelengths_nm", unknown),
        "measured": valid,
        "classes": classes,
        "rgb": rgb,
    }


def _load_cube(row: RawRow, prepare: HyperspectralPrepareConfig) -> RawRow:
    bands = chosen_bands(prepare)
    if row["path"].lower().endswith(ENVI_SUFFIX):
        loaded = load_envi(row)
    elif "scene" in row:
        loaded = load_scene(row)
    elif row["path"].lower().endswith(NPY_SUFFIX):
        loaded = load_npy_cube(row, _band_axis(prepare))
        loaded = _padded(loaded | {"cube": loaded["cube"][:, *window(row)]}, row)
    else:
        return _padded(load_hypercube(row | {"bands": bands}), row)
    if bands is None:
        return loaded
    cube = loaded["cube"]
    if bands[-1] >= len(cube):
        raise BadRowError(
            f"'{row['path']}': band {bands[-1]} is asked for, but the cube has {len(cube)} bands (numbered "
            "from 0); choose others"
        )
    chosen = ("cube", "wavelengths_nm")
    return loaded | {name: loaded[name][list(bands)] for name in chosen if name in loaded}


def _padded(loaded: RawRow, row: RawRow) -> RawRow:
    """Fill a tile that reaches over its cube's edge; what is filled in was not measured."""
    if "top" not in row:
        return loaded
    cube = loaded["cube"]
    valid = pad(np.ones(cube.shape[1:], np.uint8), row)
    return loaded | {"cube": pad(cube, row), "valid": valid, "labels": np.zeros(valid.shape, np.int16)}


def _shrink(
    path: str, cube: np.ndarray, valid_HW: np.ndarray, classes_HW: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all three at side × side: the cube averaged, the maps at the nearest pixel."""
    height, width = valid_HW.shape
    if height != width or height < side:
        raise BadRowError(
            f"'{path}' has {height} × {width} pixels; image_size={side} shrinks squares of at least that side"
        )
    size = (side, side)
    averaged = interpolate(torch.from_numpy(cube)[None], size, mode="bilinear", antialias=True)[0].numpy()
    place = ((np.arange(side) + 0.5) * height / side).astype(np.int64)
    nearest = np.ix_(place, place)
    return averaged, valid_HW[nearest], classes_HW[nearest]


def _log_reflectance(path: str, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if (largest := float(cube.max())) > _MAX_REFLECTANCE:
        raise BadRowError(
            f"'{path}' holds values up to {largest:g}, which are no reflectances; set scale, e.g. 1e-4, or "
            "intensity=reflectance to keep them"
        )
    return log_reflectance(cube)
