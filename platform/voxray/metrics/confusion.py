"""What a confusion matrix [Q, Q] of Q classes tells, rows the truth and columns the prediction."""

import torch


def confusion(truth_N: torch.Tensor, predicted_N: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return how often each class (0 … Q - 1) was taken for each, int64 [Q, Q]."""
    pairs_N = truth_N.long() * num_classes + predicted_N.long()
    return torch.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def overall_accuracy(matrix_RQQ: torch.Tensor) -> torch.Tensor:
    """Return the share that is right [R]; NaN without any."""
    matrix_RQQ = matrix_RQQ.double()
    return _diagonal(matrix_RQQ).sum(-1) / matrix_RQQ.sum((-2, -1))


def average_accuracy(matrix_RQQ: torch.Tensor) -> torch.Tensor:
    """Return the mean over the classes that occur of their shares that are right [R]."""
    matrix_RQQ = matrix_RQQ.double()
    return (_diagonal(matrix_RQQ) / matrix_RQQ.sum(-1)).nanmean(-1)


def kappa(matrix_RQQ: torch.Tensor) -> torch.Tensor:
    """Return Cohen's kappa [R]: agreement beyond that of chance with the same margins."""
    matrix_RQQ = matrix_RQQ.double()
    total_R = matrix_RQQ.sum((-2, -1))
    agreed_R = _diagonal(matrix_RQQ).sum(-1) / total_R
    chance_R = (matrix_RQQ.sum(-1) * matrix_RQQ.sum(-2)).sum(-1) / total_R**2
    return (agreed_R - chance_R) / (1 - chance_R)


def _diagonal(matrix_RQQ: torch.Tensor) -> torch.Tensor:
    return matrix_RQQ.diagonal(dim1=-2, dim2=-1)
