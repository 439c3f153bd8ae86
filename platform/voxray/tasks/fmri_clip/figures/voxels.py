"""What an evaluation kept of each voxel: a histogram, and a map where the dataset says where voxels lie.

No torch. Shapes: V voxels of the dataset, v of them that are used.
"""

import html
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.figures import BLUE, GREY, Figure, RunView
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.tasks.fmri_clip.figures.brain import brain_picture

VOXEL = "voxel"  # the table's column of places in the dataset's x
SPACE_KEY = "voxray.space"
MAX_BINS = 60


@dataclass(frozen=True)
class _Words:
    title: str
    axis: str
    caption: str
    is_signed: bool


_WORDS = {
    "r": _Words(
        "How well each voxel is predicted",
        "r",
        "Pearson's correlation of the predicted and the measured response, over the rows of the split.",
        True,
    ),
    "weight": _Words(
        "What the model takes from each voxel",
        "length of the weights",
        "Length of the weights from each voxel into the first linear layer. Weights say what the model uses; "
        "a voxel without a signal may get some, to cancel noise that it shares with others (Haufe et al. "
        "2014).",
        False,
    ),
}


def table_name(split: str) -> str:
    """Return the name of the table of voxels beside an evaluation."""
    return f"voxels_{split}.parquet"


def volume_name(value: str, split: str) -> str:
    """Return the name of a value's volume beside an evaluation."""
    return f"voxel_{value}_{split}.nii.gz"


def voxel_figures(run: RunView) -> list[Figure]:
    """Return a histogram of each value and its map; nothing for an evaluation that kept no voxels."""
    file = run.run_dir / table_name(run.split)
    if not file.is_file():
        return []
    try:
        columns, space = _read(file)
    except InputError as error:
        return [Figure("Voxels", f"They are not shown: {error}")]
    places = columns[VOXEL]
    figures: list[Figure] = []
    for name, words in _WORDS.items():
        if name in columns:
            figures.append(_histogram(name, words, columns, run.split, is_alone=space is None))
            if space is not None:
                figures.append(_map(run, name, words, places, columns[name], space))
    return figures


def _read(file: Path) -> tuple[dict[str, np.ndarray], VoxelSpace | None]:
    """Return the table's columns and where the voxels lie. Raises InputError for a broken file."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        metadata = (table.schema.metadata or {}).get(SPACE_KEY.encode())
        space = None if metadata is None else VoxelSpace.from_plain(json.loads(metadata))
        places = columns[VOXEL]
        if space is not None and (places.min() < 0 or places.max() >= len(space.voxels)):
            raise ValueError("its voxels lie outside of the mask")
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise InputError(f"{file} cannot be read ({error}); evaluate the run again") from error
    return columns, space


def _histogram(
    name: str, words: _Words, columns: dict[str, np.ndarray], split: str, is_alone: bool
) -> Figure:
    values = columns[name][~np.isnan(columns[name])]
    caption = words.caption
    if len(values) < len(columns[name]):
        caption += f" {len(columns[name]) - len(values):,} voxels never change and have none."
    if is_alone:
        caption += (
            " There is no map: the dataset does not say where its voxels lie. Those of NIfTI files and of "
            "NSD's HDF5 do, if all rows have one mask and were prepared by this version."
        )
    if not len(values):
        return Figure(words.title, caption)
    edges = np.histogram_bin_edges(values, bins=min(MAX_BINS, max(5, int(np.sqrt(len(values)) * 2))))
    traces = [_bars("voxels", values, edges, BLUE, words.axis)]
    ceiling = columns.get(f"{name}_ceiling")
    if ceiling is not None:
        known = ceiling[~np.isnan(ceiling)]
        caption += f" The mean is {values.mean():.3f}; noise leaves {known.mean():.3f} possible."
    else:
        caption += f" The mean is {values.mean():.3g}."
    mean = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": GREY, "dash": "dash"}}
    plot = {
        "data": traces,
        "layout": {
            "height": 320,
            "bargap": 0.02,
            "xaxis": {"title": {"text": html.escape(words.axis)}},
            "yaxis": {"title": {"text": "voxels"}},
            "shapes": [{**mean, "x0": float(values.mean()), "x1": float(values.mean())}],
        },
    }
    return Figure(f"{words.title}, {split}", caption, plot, wide=False)


def _bars(name: str, values: np.ndarray, edges: np.ndarray, color: str, axis: str) -> dict[str, object]:
    counts, _ = np.histogram(values, edges)
    return {
        "type": "bar",
        "name": name,
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "width": np.diff(edges).tolist(),
        "y": counts.tolist(),
        "marker": {"color": color},
        "hovertemplate": f"{html.escape(axis)} %{{x:.3f}}: %{{y}} voxels<extra></extra>",
    }


def _map(
    run: RunView, name: str, words: _Words, places: np.ndarray, values_v: np.ndarray, space: VoxelSpace
) -> Figure:
    values_V = np.full(len(space.voxels), np.nan)
    values_V[places] = values_v
    picture, about = brain_picture(space, values_V, words.axis, words.is_signed)
    volume = volume_name(name, run.split)
    if (run.run_dir / volume).is_file():
        about += f" As a volume: {volume}."
    else:
        about += " A NIfTI file of it is written by `voxray evaluate` where nibabel is installed."
    return Figure(f"{words.title}, in the brain", about, picture=picture)
