"""Pictures from predicted embeddings, by the diffusers pipeline that `generation.pipeline` names.

Shapes: R rows that get pictures, K pictures of each, E numbers of an embedding, H height, W width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from voxray.config.errors import InputError, RunError
from voxray.core.pictures import Picture, PicturedRow, Pictures, Take
from voxray.core.randomness import key
from voxray.core.task import BadRowError
from voxray.data.formats.clip_targets import PREFIX
from voxray.data.formats.pictures import decode_rgb
from voxray.nn.generation import Generator, PipelineFacts, read_pipeline
from voxray.tasks.fmri_clip.config import Config, GenerationConfig

UNIT_TOLERANCE = 1e-3  # targets whose norm is this close to 1 were divided by their own


class StimulusMaker:
    """Makes pictures of what was seen from predicted embeddings, with a seed of its own for each.

    `statistics` are those of the dataset's columns, as far as they are known.
    """

    def __init__(
        self, config: Config, embedding_dim: int, statistics: Mapping[str, Any], device: torch.device
    ) -> None:
        """Read the pipeline's small files. Raises InputError where it does not take such embeddings."""
        self._config, self._device = config.generation, device
        target = config.model.target
        self._target_norm = norm_of_targets(statistics.get(PREFIX + target, {}), embedding_dim)
        if config.model.architecture == "clip2fmri":
            raise InputError("model.architecture=clip2fmri predicts voxels; pictures are made of embeddings")
        self._facts = _facts(config.generation)
        wanted = self._facts.embedding_dim
        if wanted != embedding_dim:
            raise InputError(
                f"generation.pipeline: '{self._facts.location}' takes embeddings of {wanted:,} numbers, and "
                f"the model predicts {embedding_dim:,} (target '{target}'); name another pipeline, or train "
                f"an adapter to a target of {wanted:,} numbers, as the experiment adapter_vitl14 does"
            )

    def __call__(self, predictions: Mapping[str, Any], take: Take | None) -> Pictures:
        """Return the pictures of the first rows; their CLIP scores where pipeline and dataset allow it.

        Raises InputError where the pipeline cannot be loaded or run, RunError where the GPU's memory ends.
        """
        config = self._config
        chosen = chosen_rows(predictions["sample_id"], predictions["stimulus_id"], config.num_rows)
        ids = [predictions["sample_id"][row] for row in chosen]
        try:
            generator = Generator(self._facts, self._device)
            norm, whence = embedding_norm(config, self._target_norm, generator)
            embeddings_RE = norm * F.normalize(predictions["embedding"][chosen].float(), dim=-1)
            made = [
                self._made(generator, embedding_E, name)
                for embedding_E, name in zip(embeddings_RE, ids, strict=True)
            ]
        except ValueError as error:
            raise InputError(f"generation.pipeline: {error}") from error
        except torch.OutOfMemoryError as error:
            raise RunError(
                "the GPU's memory does not hold the pipeline and its pictures; make them fewer or smaller "
                "with generation.num_images or generation.size"
            ) from error
        truths = _stored_pictures(take(ids) if take is not None else {})
        scores_RKR = _clip_scores(generator, made, truths) if truths else None
        rows = [
            PicturedRow(
                name,
                str(predictions["stimulus_id"][row]),
                tuple(Picture(pixels, _lines(scores_RKR, place, k)) for k, pixels in enumerate(made[place])),
                Picture(truths[place]) if truths else None,
            )
            for place, (row, name) in enumerate(zip(chosen, ids, strict=True))
        ]
        notes = [f"embeddings were given the norm {norm:.4g} ({whence})", *_score_notes(scores_RKR)]
        if not truths:
            notes.append("the dataset stores no pictures (data.prepare.images), so none stand beside these")
        return Pictures(tuple(rows), tuple(notes))

    def _made(self, generator: Generator, embedding_E: torch.Tensor, name: str) -> np.ndarray:
        """Return one row's pictures, uint8 [K, H, W, 3]; each has a seed that row and number give."""
        config = self._config
        seeds = [key(config.seed, name, number) for number in range(config.num_images)]
        return generator.generate(embedding_E, seeds, config.steps, config.guidance, config.size)


def _facts(config: GenerationConfig) -> PipelineFacts:
    if not config.pipeline:
        raise InputError(
            "generation.pipeline names no pipeline; add generation.pipeline=FOLDER or a hub's id, e.g. "
            "stabilityai/stable-diffusion-2-1-unclip-small"
        )
    try:
        return read_pipeline(config.pipeline, config.revision, config.kind)
    except ValueError as error:
        raise InputError(f"generation.pipeline: {error}") from error


def chosen_rows(sample_ids: Sequence[str], stimulus_ids: Sequence[str], num: int) -> list[int]:
    """Return the places of the first rows by sample id, one per stimulus, at most `num`."""
    first: dict[str, int] = {}
    for row in sorted(range(len(sample_ids)), key=lambda row: sample_ids[row]):
        first.setdefault(stimulus_ids[row], row)
    return list(first.values())[:num]


# --- the norm of an embedding
# -------------------------------------------------------------------------------------------------------


def norm_of_targets(statistics: Mapping[str, Any], embedding_dim: int) -> float | None:
    """Return the root mean square of the training targets' norms, of the statistics of their column: the mean
    and the standard deviation over all its numbers. None where they are unknown or have norm 1 all.
    """
    if not statistics.get("count"):
        return None
    norm = math.sqrt(embedding_dim * (statistics["mean"] ** 2 + statistics["std"] ** 2))
    return None if abs(norm - 1) < UNIT_TOLERANCE else norm


def embedding_norm(
    config: GenerationConfig, target_norm: float | None, generator: Generator
) -> tuple[float, str]:
    """Return the norm that embeddings are given, and in words where it comes from.

    In this order: `generation.embedding_norm`; the norm of the dataset's targets, unless the embedding takes
    the place of text tokens; what the pipeline tells; else √E, the norm of E numbers with variance 1.
    """
    if config.embedding_norm is not None:
        return config.embedding_norm, "generation.embedding_norm"
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


# --- the CLIP score
# -------------------------------------------------------------------------------------------------------


def _stored_pictures(columns: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the dataset's own pictures, uint8 [H, W, 3]; empty where it stores none."""
    images = columns.get("image")
    if images is None:
        return []
    if images.dtype == object:
        try:
            return [np.array(decode_rgb(content, "a picture of the dataset")) for content in images]
        except BadRowError as error:
            raise InputError(str(error)) from error
    return [np.ascontiguousarray(image_CHW.transpose(1, 2, 0)) for image_CHW in images]


def _clip_scores(
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


def _lines(scores_RKR: torch.Tensor | None, row: int, number: int) -> tuple[str, ...]:
    if scores_RKR is None:
        return ()
    return (f"CLIP score {float(scores_RKR[row, number, row]):.3f}",)


def _score_notes(scores_RKR: torch.Tensor | None) -> list[str]:
    if scores_RKR is None:
        return []
    own_R = torch.diagonal(scores_RKR.mean(1))
    others = (scores_RKR.mean(1).sum() - own_R.sum()) / max(1, len(own_R) * (len(own_R) - 1))
    beside = f", {float(others):.3f} with the other rows' pictures" if len(own_R) > 1 else ""
    return [f"CLIP score {float(own_R.mean()):.3f} with the pictures that were shown{beside}"]
