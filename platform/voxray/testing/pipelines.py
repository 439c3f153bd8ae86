"""Tiny diffusers pipelines with random weights, saved to a folder as the published ones are.

Sizes: pictures of 16 pixels, latents of 8; an embedding has as many numbers as asked for (a multiple of 4).
"""

import json
from pathlib import Path
from typing import Any

from voxray.nn.generation import Kind

IMAGE_SIDE = 32  # what the CLIP tower sees


def save_tiny_pipeline(folder: Path, kind: Kind, embedding_dim: int = 24, seed: int = 0) -> Path:
    """Write a pipeline of a kind into `folder` and return it."""
    import torch

    torch.manual_seed(seed)
    make = {"unclip": _unclip, "image_variation": _variation, "stable_diffusion": _stable_diffusion}[kind]
    make(folder, embedding_dim).save_pretrained(folder)
    return folder


def _diffusers() -> Any:
    import diffusers

    return diffusers


def _unclip(folder: Path, dim: int) -> Any:
    import torch

    lib = _diffusers()
    normalizer = lib.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(embedding_dim=dim)
    normalizer.mean.data = 0.3 * torch.randn(1, dim)
    normalizer.std.data = 0.5 + torch.rand(1, dim)
    return lib.StableUnCLIPImg2ImgPipeline(
        feature_extractor=_extractor(),
        image_encoder=_image_encoder(dim),
        image_normalizer=normalizer,
        image_noising_scheduler=lib.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=_tokenizer(folder),
        text_encoder=_text_encoder(dim),
        unet=_unet(dim, class_embed_type="projection", projection_class_embeddings_input_dim=2 * dim),
        scheduler=lib.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        vae=_vae(),
    )


def _variation(folder: Path, dim: int) -> Any:
    lib = _diffusers()
    return lib.StableDiffusionImageVariationPipeline(
        vae=_vae(),
        image_encoder=_image_encoder(dim),
        unet=_unet(dim),
        scheduler=lib.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=_extractor(),
        requires_safety_checker=False,
    )


def _stable_diffusion(folder: Path, dim: int) -> Any:
    lib = _diffusers()
    return lib.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(dim),
        tokenizer=_tokenizer(folder),
        unet=_unet(dim),
        scheduler=lib.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=_extractor(),
        requires_safety_checker=False,
    )


def _unet(dim: int, **more: Any) -> Any:
    return _diffusers().UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=dim,
        attention_head_dim=8,
        norm_num_groups=8,
        **more,
    )


def _vae() -> Any:
    return _diffusers().AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )


def _image_encoder(dim: int) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            projection_dim=dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIDE,
            patch_size=8,
        )
    ).eval()


def _extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )


def _text_encoder(dim: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=dim,
            intermediate_size=2 * dim,
            projection_dim=dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=512,
            eos_token_id=513,
        )
    ).eval()


def _tokenizer(folder: Path) -> Any:
    """Return a tokenizer of single bytes, without merges."""
    from transformers import CLIPTokenizer

    place = folder / "tokenizer"
    place.mkdir(parents=True)
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        vocab_file=str(place / "vocab.json"), merges_file=str(place / "merges.txt"), model_max_length=16
    )
