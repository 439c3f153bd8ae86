"""Pictures from predicted embeddings, by the diffusers pipeline that `generation.pipeline` names.

Shapes: R rows that get pictures, K pictures of each, E numbers of an embedding, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from voxray.config.errors import InputError
from voxray.core.generation import facts_for, told_of_networks, told_of_pipeline
from voxray.core.pictures import NO_TRUTHS, Picture, Pictures, Take, chosen_rows, pictured_rows
from voxray.core.randomness import key
from voxray.data.formats.clip_targets import PREFIX
from voxray.data.formats.pictures import stored_pictures
from voxray.metrics.reconstruction import reconstruction_scores
from voxray.nn.generation import Generator, read_pipeline
from voxray.nn.made_pictures import clip_scores, embedding_norm, norm_of_targets
from voxray.nn.picture_networks import PictureNetwork, find_networks, lacking, load_networks
from voxray.tasks.fmri_clip.config import Config


class StimulusMaker:
    """Makes pictures of what was seen from predicted embeddings, with a seed of its own for each.

    `statistics` are those of the dataset's columns, as far as they are known.
    """

    def __init__(
        self, config: Config, embedding_dim: int, statistics: Mapping[str, Any], device: torch.device
    ) -> None:
        """Read the pipeline's small files. Raises InputError where it does not take such embeddings, and for
        networks that are not there.
        """
        self._config, self._device = config.generation, device
        target = config.model.target
        self._target_norm = norm_of_targets(statistics.get(PREFIX + target, {}), embedding_dim)
        if config.model.architecture == "clip2fmri":
            raise InputError("model.architecture=clip2fmri predicts voxels; pictures are made of embeddings")
        mend = "train an adapter to a target of {wanted} numbers, as the experiment adapter_vitl14 does"
        self._facts = facts_for(read_pipeline, config.generation, embedding_dim, target, mend)
        with told_of_networks():
            self._networks = find_networks(config.generation.networks)

    def __call__(self, predictions: Mapping[str, Any], take: Take | None) -> Pictures:
        """Return the pictures of the first rows; how like they are to what was seen where the dataset stores
        that, their CLIP scores where the pipeline allows it.

        Raises InputError where the pipeline or a network cannot be loaded or run, RunError where the GPU's
        memory ends.
        """
        config = self._config
        chosen = chosen_rows(predictions["sample_id"], predictions["stimulus_id"], config.num_rows)
        ids = [predictions["sample_id"][row] for row in chosen]
        truths = stored_pictures(take(ids) if take is not None else {})
        with told_of_networks():
            networks = load_networks(self._networks if truths else (), self._device)
        with told_of_pipeline():
            generator = Generator(self._facts, self._device)
            norm, whence = embedding_norm(config.embedding_norm, self._target_norm, generator)
            embeddings_RE = norm * F.normalize(predictions["embedding"][chosen].float(), dim=-1)
            made = [
                self._made(generator, embedding_E, name)
                for embedding_E, name in zip(embeddings_RE, ids, strict=True)
            ]
        scores_RKR = clip_scores(generator, made, truths) if truths else None
        pictures = [
            [Picture(pixels, _lines(scores_RKR, place, k)) for k, pixels in enumerate(made_KHW3)]
            for place, made_KHW3 in enumerate(made)
        ]
        notes = [f"embeddings were given the norm {norm:.4g} ({whence})", *_score_notes(scores_RKR)]
        notes += [*_likeness(made, truths, networks), *lacking(self._networks)] if truths else [NO_TRUTHS]
        return Pictures(pictured_rows(predictions, chosen, pictures, truths), tuple(notes))

    def _made(self, generator: Generator, embedding_E: torch.Tensor, name: str) -> np.ndarray:
        """Return one row's pictures, uint8 [K, H, W, 3]; each has a seed that row and number give."""
        config = self._config
        seeds = [key(config.seed, name, number) for number in range(config.num_images)]
        return generator.generate(embedding_E, seeds, config.steps, config.guidance, config.size)


# --- how like what was seen
# -------------------------------------------------------------------------------------------------------


def _likeness(
    made: Sequence[np.ndarray], truths: Sequence[np.ndarray], networks: Sequence[PictureNetwork]
) -> list[str]:
    """Return how like the pictures that were seen the first picture of each row is, in words."""
    firsts = [torch.from_numpy(pictures[0]) for pictures in made]
    return reconstruction_scores(firsts, [torch.from_numpy(truth) for truth in truths], networks).lines()


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
