"""Reconstructions: what the prior makes of the brain's embedding, as pictures by a diffusers pipeline.

Shapes: R rows that get pictures, K pictures of each, E numbers of an embedding, H height, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from voxray.core.generation import facts_for, told_of_networks, told_of_pipeline
from voxray.core.pictures import NO_TRUTHS, Picture, Pictures, Take, chosen_rows, pictured_rows
from voxray.core.randomness import key
from voxray.data.formats.clip_targets import PREFIX
from voxray.data.formats.pictures import stored_pictures
from voxray.metrics.reconstruction import reconstruction_scores
from voxray.nn.generation import Generator, read_pipeline
from voxray.nn.made_pictures import clip_scores, embedding_norm, norm_of_targets
from voxray.nn.picture_networks import PictureNetwork, find_networks, lacking, load_networks
from voxray.tasks.mindeye.config import Config
from voxray.tasks.mindeye.low_level_config import LATENT

SAMPLES = "prior_samples"  # the column [N, K, E] of predictions that pictures are made of


class ReconstructionMaker:
    """Makes pictures of what was seen from the prior's samples, or without a prior from brain embeddings.

    Of several pictures of a row the one is kept that is nearest to the brain's embedding by the pipeline's
    image encoder. `statistics` are those of the dataset's columns, as far as they are known.
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
        mend = "train on a target of {wanted}"
        self._facts = facts_for(read_pipeline, config.generation, embedding_dim, target, mend)
        with told_of_networks():
            self._networks = find_networks(config.generation.networks)

    def __call__(self, predictions: Mapping[str, Any], take: Take | None) -> Pictures:
        """Return the pictures of the first rows, beside those that were seen where the dataset stores them.

        Raises InputError where the pipeline or a network cannot be loaded or run, RunError where the GPU's
        memory ends.
        """
        config = self._config
        chosen = chosen_rows(predictions["sample_id"], predictions["stimulus_id"], config.num_rows)
        ids = [predictions["sample_id"][row] for row in chosen]
        brain_RE = predictions["embedding"][chosen].float()
        truths = stored_pictures(take(ids) if take is not None else {})
        with told_of_networks():
            networks = load_networks(self._networks if truths else (), self._device)
        with told_of_pipeline():
            generator = Generator(self._facts, self._device)
            notes, embedding_RKE = self._embeddings(predictions, chosen, generator)
            made = [
                self._kept(generator, embedding_RKE[place], brain_RE[place], name)
                for place, name in enumerate(ids)
            ]
            blurred = _blurred(generator, predictions, chosen)
        if truths:
            notes += [*_scores(generator, made, truths, networks), *lacking(self._networks)]
            notes += _blurred_scores(blurred, truths)
        else:
            notes.append(NO_TRUTHS)
        pictures = [[Picture(pixels) for pixels in made_KHW3] for made_KHW3 in made]
        for place, pixels in enumerate(blurred):
            pictures[place].append(Picture(pixels, ("of the low-level branch",)))
        return Pictures(pictured_rows(predictions, chosen, pictures, truths), tuple(notes))

    def _embeddings(
        self, predictions: Mapping[str, Any], chosen: Sequence[int], generator: Generator
    ) -> tuple[list[str], torch.Tensor]:
        """Return what to tell, and the embeddings [R, K, E] that become pictures."""
        config, num = self._config, self._config.num_images
        samples = predictions.get(SAMPLES)
        if samples is not None:
            samples_RKE = samples[list(chosen)].float()
            if config.embedding_norm is not None:
                samples_RKE = config.embedding_norm * F.normalize(samples_RKE, dim=-1)
            return [f"pictures are made of {num} samples of the prior per row"], samples_RKE
        norm, whence = embedding_norm(config.embedding_norm, self._target_norm, generator)
        brain_RE = norm * F.normalize(predictions["embedding"][list(chosen)].float(), dim=-1)
        told = f"there is no prior: brain embeddings were given the norm {norm:.4g} ({whence})"
        return [told], brain_RE[:, None].repeat(1, num, 1)

    def _kept(
        self, generator: Generator, embedding_KE: torch.Tensor, brain_E: torch.Tensor, name: str
    ) -> np.ndarray:
        """Return one row's pictures, uint8 [K, H, W, 3], or of several the best [1, H, W, 3]; each has a seed
        that row and number give.
        """
        config = self._config
        made_KHW3 = np.concatenate(
            [
                generator.generate(
                    embedding_E, [key(config.seed, name, k)], config.steps, config.guidance, config.size
                )
                for k, embedding_E in enumerate(embedding_KE)
            ]
        )
        found_KE = generator.embed(list(made_KHW3)) if config.keep_best and len(made_KHW3) > 1 else None
        if found_KE is None:
            return made_KHW3
        best = int(F.cosine_similarity(found_KE, brain_E[None].to(found_KE), dim=-1).argmax())
        return made_KHW3[best : best + 1]


def _blurred(generator: Generator, predictions: Mapping[str, Any], chosen: Sequence[int]) -> list[np.ndarray]:
    """Return the chosen rows' pictures of the low-level branch; none without one. Raises ValueError where the
    pipeline has another autoencoder.
    """
    latents = predictions.get(LATENT)
    return [] if latents is None else list(generator.decode(latents[list(chosen)].float()))


def _blurred_scores(blurred: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> list[str]:
    if not blurred:
        return []
    made, true = ([torch.from_numpy(pixels) for pixels in pictures] for pictures in (blurred, truths))
    return [f"of the low-level branch: {reconstruction_scores(made, true).lines()[0]}"]


def _scores(
    generator: Generator,
    made: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    networks: Sequence[PictureNetwork],
) -> list[str]:
    """Return how like the pictures that were seen the first reconstruction of each row is, in words."""
    firsts = [torch.from_numpy(pictures[0]) for pictures in made]
    told = reconstruction_scores(firsts, [torch.from_numpy(truth) for truth in truths], networks).lines()
    scores_RKR = clip_scores(generator, [pictures[:1] for pictures in made], truths)
    num = len(firsts)
    if scores_RKR is not None and num > 1:
        score_RR = scores_RKR[:, 0]
        two_way = (score_RR.diagonal()[:, None] > score_RR).float().sum() / (num * (num - 1))
        told.append(f"CLIP two-way identification {float(two_way):.3f} by the pipeline's image encoder")
    return told
