"""What pictures made of embeddings are judged by, and the norm that embeddings get before (`nn.generation`).

Shapes: R rows that get pictures, K pictures of each, E numbers of an embedding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from voxray.nn.generation import Generator

UNIT_TOLERANCE = 1e-3  # targets whose norm is this close to 1 were divided by their own


def norm_of_targets(statistics: Mapping[str, Any], embedding_dim: int) -> float | None:
    """Return the root mean square of the training targets' norms, of the statistics of their column: the mean
    and the standard deviation over all its numbers. None where they are unknown or have norm 1 all.
    """
    if not statistics.get("count"):
        return None
    norm = math.sqrt(embedding_dim * (statistics["mean"] ** 2 + statistics["std"] ** 2))
    return None if abs(norm - 1) < UNIT_TOLERANCE else norm


def embedding_norm(given: float | None, target_norm: float | None, generator: Generator) -> tuple[float, str]:
    """Return the norm that embeddings are given, and in words where it comes from.

    In this order: `given`, which is `generation.embedding_norm`; the norm of the dataset's targets, unless
    the embedding takes the place of text tokens; what the pipeline tells; else √E, the norm of E numbers with
    variance 1.
    """
    if given is not None:
        return given, "generation.embedding_norm"
    facts = generator.facts
    if target_norm is not None and facts.kind != "stable_diffusion":
        return target_norm, "that of the dataset's training targets"
    own = generator.own_norm()
    if own is not None:
        of = "its empty prompt's tokens" if facts.kind == "stable_diffusion" else "its own embeddings"
        return own, f"the pipeline's: that of {of}"
    return math.sqrt(facts.embedding_dim), (
        f"√{facts.embedding_dim}, as neither dataset nor pipeline tells it; see generation.embedding_norm"
    )


def clip_scores(
    generator: Generator, made: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> torch.Tensor | None:
    """Return the cosines [R, K, R] between CLIP embeddings of each row's generated pictures and of all rows'
    true ones, by the pipeline's image encoder; None where it has none.
    """
    truth_RE = generator.embed(truths)
    if truth_RE is None:
        return None
    made_RKE = [generator.embed(list(pictures)) for pictures in made]
    return torch.stack(
        [
            F.normalize(row_KE, dim=-1) @ F.normalize(truth_RE, dim=-1).T
            for row_KE in made_RKE
            if row_KE is not None
        ]
    )
