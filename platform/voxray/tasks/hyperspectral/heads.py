"""What is trained on the encoder: a class per pixel or per cube. Loss, row numbers and the floor of both.

Shapes: B rows, N rows of a split, H × W pixels, Q classes. A class of -1 is unknown and counts nowhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from voxray.config.errors import InputError
from voxray.metrics.confusion import confusion
from voxray.tasks.hyperspectral import floor
from voxray.tasks.hyperspectral.config import ModelConfig
from voxray.tasks.hyperspectral.data import HyperspectralBatch

UNKNOWN = -1


def num_outputs(config: ModelConfig) -> int:
    """Return Q."""
    return config.num_classes if config.head == "segmentation" else len(config.classes)


def truth(batch: HyperspectralBatch, config: ModelConfig) -> torch.Tensor:
    """Return the classes from 0 on: int64 [B, H, W] of pixels or [B] of cubes; UNKNOWN in padding rows too.

    Raises InputError for a pixel whose class is above `num_classes`.
    """
    if config.head == "classification":
        known = {name: index for index, name in enumerate(config.classes)}
        labels_B = torch.tensor([known.get(name, UNKNOWN) for name in batch.label])
        return torch.where(batch.valid_B, labels_B.to(batch.valid_B.device), UNKNOWN)
    classes_BHW = batch.classes_BHW.long()
    highest = int(classes_BHW.max()) if classes_BHW.numel() else 0
    if highest > config.num_classes:
        raise InputError(
            f"a pixel has class {highest}, and model.num_classes is {config.num_classes}; set it to the "
            "highest class of the ground truth"
        )
    is_known = (classes_BHW > 0) & batch.measured_BHW
    return torch.where(is_known, classes_BHW - 1, UNKNOWN)


def summed_loss(logits: torch.Tensor, truth_: torch.Tensor) -> torch.Tensor:
    """Return the sum [] of cross-entropies over what is known, in float32 or more; logits [B, Q, …]."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide, truth_, ignore_index=UNKNOWN, reduction="sum")


def row_confusion(predicted: torch.Tensor, truth_: torch.Tensor, num: int) -> torch.Tensor:
    """Return each row's confusion matrix, flat, float64 [B, Q²]."""
    rows: list[torch.Tensor] = []
    for predicted_, known in zip(predicted.flatten(1), truth_.flatten(1), strict=True):
        keep = known != UNKNOWN
        rows.append(confusion(known[keep], predicted_[keep], num).flatten().double())
    return torch.stack(rows)


def segmentation_floor(
    train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], num: int
) -> torch.Tensor:
    """Return the held-out rows' confusion matrices of a logistic regression on labelled pixels' spectra."""
    known = (train["classes"] > 0) & (train["measured"] > 0)
    spectra_SC = floor.spectra_of(train["cube"])[known.ravel()]
    predicted = floor.logistic_regression(
        spectra_SC, train["classes"][known], floor.spectra_of(held_out["cube"])
    )
    shape = held_out["classes"].shape
    truth_NHW = np.where(held_out["measured"] > 0, held_out["classes"], 0).astype(np.int64) - 1
    found_NHW = predicted.reshape(shape).astype(np.int64) - 1
    return row_confusion(torch.from_numpy(found_NHW), torch.from_numpy(truth_NHW), num)


def classification_floor(
    train: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], classes: Sequence[str]
) -> torch.Tensor:
    """Return the held-out rows' confusion matrices of a logistic regression on cubes' mean spectra."""
    known = {name: index for index, name in enumerate(classes)}
    labels, truth_ = (
        np.array([known.get(str(name), UNKNOWN) for name in columns["label"]])
        for columns in (train, held_out)
    )
    spectra, held_out_spectra = (
        floor.mean_spectra(columns["cube"], columns["measured"]) for columns in (train, held_out)
    )
    keep = labels != UNKNOWN
    predicted = floor.logistic_regression(spectra[keep], labels[keep], held_out_spectra)
    return row_confusion(
        torch.from_numpy(predicted)[:, None], torch.from_numpy(truth_)[:, None], len(classes)
    )
