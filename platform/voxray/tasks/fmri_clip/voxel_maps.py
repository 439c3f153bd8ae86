"""What an evaluation keeps of each voxel: a table, and volumes where the dataset says where its voxels lie.

An inverse network (clip2fmri) has Pearson's r of each voxel over the rows of the split. An encoder has the
length of the weights from each voxel, the columns of its first linear layer: what the model uses, which is
not where the signal is (Haufe et al. 2014, "On the interpretation of weight vectors of linear models in
multivariate neuroimaging").

Shapes: V voxels of the dataset, v of them that are used.
"""

import io
import json
from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from voxray.core.evaluation import Evaluation
from voxray.data.formats.voxel_space import VoxelSpace
from voxray.tasks.fmri_clip import scores
from voxray.tasks.fmri_clip.figures.voxels import SPACE_KEY, VOXEL, table_name, volume_name
from voxray.tasks.fmri_clip.model import ClipAdapter, Encoder, Inverse


def voxel_values(
    model: nn.Module, merged: Evaluation, ncsnr_v: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the places of the voxels that are used [v] and what is known of each [v]: `r`, and `r_ceiling`
    where the noise was measured; of encoders `weight`.
    """
    if isinstance(model, Inverse):
        values = {"r": scores.voxel_correlation(merged.sums)}
        if ncsnr_v is not None:
            values["r_ceiling"] = scores.voxel_ceiling(merged.sums, ncsnr_v)
        return model.voxels.kept_v, values
    encoder = model.encoder if isinstance(model, ClipAdapter) else model
    assert isinstance(encoder, Encoder), "the other networks hold an encoder"
    return encoder.voxels.kept_v, {"weight": weight_lengths(encoder)}


def weight_lengths(encoder: Encoder) -> torch.Tensor:
    """Return the Euclidean norm of the weights from each voxel that is used [v]."""
    path = nn.ModuleList([encoder.body, encoder.shared, encoder.heads[encoder.target]])
    first = next(layer for layer in path.modules() if isinstance(layer, nn.Linear))
    return first.weight.detach().float().norm(dim=0)


def voxel_files(
    kept_v: torch.Tensor, values: Mapping[str, torch.Tensor], space: VoxelSpace | None, split: str
) -> dict[str, bytes]:
    """Return files by their names: a Parquet table of the values, with the space in its metadata, and a
    `.nii.gz` of each value, NaN where there is none, if the space is known and nibabel is there.
    """
    places = kept_v.cpu().numpy()
    columns = {name: value.cpu().numpy().astype(np.float32) for name, value in values.items()}
    table = pa.table({VOXEL: places.astype(np.int32), **columns})
    if space is not None:
        table = table.replace_schema_metadata({SPACE_KEY: json.dumps(space.plain())})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    files = {table_name(split): buffer.getvalue()}
    if space is None or find_spec("nibabel") is None:
        return files
    for name, column in columns.items():
        whole_V = np.full(len(space.voxels), np.nan, np.float32)
        whole_V[places] = column
        files[volume_name(name, split)] = space.nifti(whole_V)
    return files
