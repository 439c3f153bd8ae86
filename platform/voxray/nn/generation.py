"""Pictures from CLIP image embeddings, by a pretrained diffusers pipeline: a folder, or a hub's id.

Three kinds of pipeline take an embedding, each in its own place:

* `unclip` (StableUnCLIPImg2ImgPipeline): as `image_embeds`, beside an empty prompt;
* `image_variation` (StableDiffusionImageVariationPipeline): as what its image encoder would have made;
* `stable_diffusion` (StableDiffusionPipeline): as every token of the prompt. Equal tokens attend as a single
  one would, so their number only follows that of the empty prompt, which guidance compares with.

The pipelines expect a CLIP tower's `image_embeds`, which are not divided by their norm, or, for Stable
Diffusion, the norm of a token behind the text encoder. Weights are read from safetensors only, and
only classes of diffusers and transformers are made. diffusers is imported when a pipeline is loaded.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import torch

# Shape letters: K pictures of one embedding, T tokens, E numbers of an embedding, H height, W width.
Kind = Literal["unclip", "image_variation", "stable_diffusion"]
CLASSES: dict[Kind, str] = {
    "unclip": "StableUnCLIPImg2ImgPipeline",
    "image_variation": "StableDiffusionImageVariationPipeline",
    "stable_diffusion": "StableDiffusionPipeline",
}
# What a pipeline's index may name: anything else would be imported, whatever it is.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
INDEX, UNET = "model_index.json", "unet/config.json"


@dataclass(frozen=True)
class PipelineFacts:
    """What a pipeline's small files tell: how it takes an embedding, and of how many numbers."""

    location: str
    revision: str
    kind: Kind
    embedding_dim: int


def read_pipeline(
    location: str, revision: str = "main", kind: Kind | Literal["auto"] = "auto"
) -> PipelineFacts:
    """Read what a pipeline is; no weights are loaded. `revision` is of a hub's id.

    Raises ValueError, a sentence, for a place without a pipeline, one of another kind, or one that names
    classes from elsewhere.
    """
    location = str(Path(location).expanduser()) if location.startswith("~") else location
    index = _read_json(location, INDEX, revision)
    name = str(index.get("_class_name"))
    found: Kind | None = next((known for known, class_name in CLASSES.items() if class_name == name), None)
    if found is None:
        raise ValueError(f"'{location}' is a {name}; one of these takes embeddings: {_and(CLASSES.values())}")
    if kind not in ("auto", found):
        raise ValueError(f"'{location}' is a {name}, so kind={kind} does not fit; it is {found}")
    for part, value in index.items():
        if isinstance(value, list) and value and value[0] not in (None, *LIBRARIES):
            raise ValueError(
                f"'{location}' takes its {part} from '{value[0]}'; only {_and(LIBRARIES)} are trusted"
            )
    unet = _read_json(location, UNET, revision)
    try:
        # unCLIP's class embedding is the image embedding and, as wide, that of its noise level
        is_unclip = found == "unclip"
        key = "projection_class_embeddings_input_dim" if is_unclip else "cross_attention_dim"
        width = int(unet[key]) // (2 if is_unclip else 1)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{UNET} of '{location}' does not say how wide an embedding is ({error})") from error
    return PipelineFacts(location, revision, found, width)


class Generator:
    """A loaded pipeline. In float16 on a GPU, in float32 on a CPU."""

    def __init__(self, facts: PipelineFacts, device: torch.device) -> None:
        """Load the weights. Raises ValueError, a sentence, where that cannot be done."""
        import diffusers

        self.facts, self.device = facts, device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        no_checker = {"safety_checker": None, "requires_safety_checker": False}
        try:
            pipeline = getattr(diffusers, CLASSES[facts.kind]).from_pretrained(
                facts.location,
                revision=facts.revision,
                dtype=self.dtype,
                use_safetensors=True,
                **({} if facts.kind == "unclip" else no_checker),
            )
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"'{facts.location}' cannot be loaded: {_first_line(error)}") from error
        self._pipeline: Any = pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)

    def own_norm(self) -> float | None:
        """Return the norm that the pipeline's own embeddings have; None where it does not tell.

        unCLIP keeps the mean and the standard deviation of its CLIP's embeddings, of which the root mean
        square of the norm follows; where these were never measured they are 0 and 1, which tell nothing.
        For Stable Diffusion it is the mean norm of the empty prompt's tokens.
        """
        match self.facts.kind:
            case "unclip":
                normalizer = self._pipeline.image_normalizer
                mean_E, std_E = (value.detach().double().flatten() for value in _mean_std(normalizer))
                if not mean_E.any() and bool((std_E == 1).all()):
                    return None
                return math.sqrt(float(mean_E.square().sum() + std_E.square().sum()))
            case "stable_diffusion":
                return float(self._empty_prompt().float().norm(dim=-1).mean())
            case "image_variation":
                return None

    @torch.no_grad()
    def generate(
        self,
        embedding_E: torch.Tensor,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        size: int | None = None,
    ) -> np.ndarray:
        """Return a picture per seed, uint8 [K, H, W, 3], of one embedding that has the pipeline's norm.

        `guidance` is that of classifier-free guidance, 1 for none; `size` is the side in pixels, by default
        the pipeline's own. A picture depends on the embedding and its seed, on no other row.
        """
        if embedding_E.shape != (self.facts.embedding_dim,):
            raise ValueError(
                f"'{self.facts.location}' takes embeddings of {self.facts.embedding_dim} numbers, this one "
                f"has {embedding_E.numel()}"
            )
        embedding_KE = embedding_E.to(self.device, self.dtype).repeat(len(seeds), 1)
        made = self._run(
            embedding_KE,
            # noise comes from the CPU's generator on any device
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            output_type="np",
        )
        return np.rint(made.images * 255).astype(np.uint8)

    @torch.no_grad()
    def embed(self, pictures: Sequence[np.ndarray]) -> torch.Tensor | None:
        """Return the embeddings [N, E] of pictures uint8 [H, W, 3] by the pipeline's own image encoder, as it
        sees pictures; None for Stable Diffusion, which has none.
        """
        encoder = getattr(self._pipeline, "image_encoder", None)
        if encoder is None:
            return None
        processor = self._pipeline.feature_extractor
        pixels = processor(images=list(pictures), return_tensors="pt").pixel_values
        return encoder(pixels.to(self.device, self.dtype)).image_embeds.float().cpu()

    @torch.no_grad()
    def decode(self, latents_RChw: torch.Tensor) -> np.ndarray:
        """Return the pictures uint8 [R, H, W, 3] that the pipeline's autoencoder makes of latents, which have
        its scale. Raises ValueError, a sentence, for latents of another one.
        """
        vae = self._pipeline.vae
        channels = vae.config.latent_channels
        if latents_RChw.shape[1] != channels:
            raise ValueError(
                f"'{self.facts.location}' decodes latents of {channels} channels, these have "
                f"{latents_RChw.shape[1]}; name the pipeline whose autoencoder made the targets"
            )
        made = [
            vae.decode(latent_1Chw.to(self.device, self.dtype) / vae.config.scaling_factor).sample
            for latent_1Chw in latents_RChw.split(1)
        ]
        pixels_R3HW = (torch.cat(made).float() / 2 + 0.5).clamp(0, 1)
        return np.rint(pixels_R3HW.permute(0, 2, 3, 1).cpu().numpy() * 255).astype(np.uint8)

    def _run(self, embedding_KE: torch.Tensor, **options: Any) -> Any:
        num = len(embedding_KE)
        match self.facts.kind:
            case "unclip":
                return self._pipeline(prompt=[""] * num, image_embeds=embedding_KE, **options)
            case "image_variation":
                with _passing_on(self._pipeline.image_encoder):
                    return self._pipeline(image=embedding_KE, **options)
            case "stable_diffusion":
                empty_1TE = self._empty_prompt()
                prompt_KTE = embedding_KE[:, None].repeat(1, empty_1TE.shape[1], 1)
                return self._pipeline(
                    prompt_embeds=prompt_KTE,
                    negative_prompt_embeds=empty_1TE.repeat(num, 1, 1),
                    **options,
                )

    @torch.no_grad()
    def _empty_prompt(self) -> torch.Tensor:
        """Return Stable Diffusion's unconditional tokens [1, T, E]."""
        return self._pipeline.encode_prompt("", self.device, 1, False)[0]


@contextmanager
def _passing_on(encoder: Any) -> Iterator[None]:
    """Let an image encoder return what it is given: the image-variation pipeline takes pictures alone."""
    encoder.forward = lambda given_KE: SimpleNamespace(image_embeds=given_KE)
    try:
        yield
    finally:
        del encoder.forward  # the class's own is back


def _mean_std(normalizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return cast(torch.Tensor, normalizer.mean), cast(torch.Tensor, normalizer.std)


def _read_json(location: str, name: str, revision: str) -> dict[str, Any]:
    """Return a small file of a pipeline: from a folder, the hub's cache, or the hub."""
    if Path(location).is_dir():
        path = Path(location, name)
        if not path.is_file():
            raise ValueError(f"the folder '{location}' has no {name}, so it is no pipeline of diffusers")
    else:
        path = _from_hub(location, name, revision)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} of '{location}' cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} of '{location}' holds no JSON map")
    return value


def _from_hub(location: str, name: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(location, name, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'{location}' is no folder, and the hub gives no {name} of it (revision {revision}): "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _and(names: Any) -> str:
    return ", ".join(names)
