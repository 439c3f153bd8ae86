"""MindEye2's shared-subject form (DOMAINS.md S3.a): a linear map of each subject's own voxels, without an
activation, to a space that one network for all subjects takes.

Shapes: B rows, V voxels of the widest subject (the others have zeros behind theirs), H width of that space.
"""

from collections.abc import Sequence

import torch
from torch import nn

from voxray.config.errors import InputError


class SubjectMaps(nn.Module):
    """x [B, V] and each row's subject [B], counted from 0 → [B, H]. A padded voxel is 0, so its weights never
    count: the map is that of the subject's own voxels.
    """

    def __init__(self, num_voxels: int, dim: int, num_subjects: int) -> None:
        """Make one linear map per subject."""
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(num_voxels, dim) for _ in range(num_subjects))

    def forward(self, voxels_BV: torch.Tensor, subject_B: torch.Tensor) -> torch.Tensor:
        """Return [B, H]; every map takes part, so that a subject without rows has gradients of 0."""
        places = [(subject_B == subject).nonzero()[:, 0] for subject in range(len(self.linears))]
        found = [linear(voxels_BV[rows]) for linear, rows in zip(self.linears, places, strict=True)]
        return torch.cat(found)[torch.cat(places).argsort()]


def subject_places(names: Sequence[str], valid_B: torch.Tensor, known: Sequence[str]) -> torch.Tensor:
    """Return each row's place in `known`, int64 [B]; 0 for padding. Raises InputError for another subject."""
    index = {name: place for place, name in enumerate(known)}
    for name, is_valid in zip(names, valid_B.tolist(), strict=True):
        if is_valid and name not in index:
            raise InputError(
                f"model.subjects names {', '.join(known)}, and a row is of '{name}'; name all subjects "
                "of the dataset"
            )
    return torch.tensor([index.get(name, 0) for name in names], device=valid_B.device)
