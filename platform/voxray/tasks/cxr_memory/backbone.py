"""timm's backbones: any model that timm knows, pretrained from its hub or a local file, checkpointed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from voxray.config.errors import InputError
from voxray.nn.recomputation import count_batches_once
from voxray.tasks.cxr_memory.config import TORCHVISION_NAMES, ModelConfig

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
NUM_NAMES_TOLD = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A module from images to pooled features [B, dim], and what its pretrained weights were fed with: mean
    and standard deviation of each channel in [0, 1], None without pretrained weights.
    """

    module: nn.Module
    dim: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def build_backbone(config: ModelConfig, image_side: int | None) -> Backbone:
    """Build `model.backbone`, a timm name or a guide's torchvision name, for square images of `image_side`
    pixels (None: not known yet).

    `pretrained_file` is read in place of the hub's file. Raises InputError for a name that timm does not
    know, for weights that cannot be loaded or are another architecture's, for an image size that the model
    cannot take, and where it offers no gradient checkpointing.
    """
    name = TORCHVISION_NAMES.get(config.backbone, config.backbone)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:8]}*")[:3]
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise InputError(f"model.backbone: timm knows no model '{config.backbone}'{hint}")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": config.in_chans}
    facts = timm.get_pretrained_cfg(name)
    if image_side is not None and facts is not None and facts.fixed_input_size:
        options["img_size"] = image_side
    if config.pretrained_file:
        module = _from_file(name, options, Path(config.pretrained_file).expanduser())
    else:
        module = _created(name, options, config.pretrained)
    dim = _width(module, name, config.in_chans, image_side)
    if config.grad_checkpointing:
        _checkpoint(module, name)
    if not (config.pretrained or config.pretrained_file):
        return Backbone(module, dim, None, None)
    trained = cast(dict[str, Any], module.pretrained_cfg)
    return Backbone(
        module,
        dim,
        _for_channels(trained.get("mean") or IMAGENET_MEAN, config.in_chans),
        _for_channels(trained.get("std") or IMAGENET_STD, config.in_chans),
    )


def _width(module: nn.Module, name: str, in_chans: int, side: int | None) -> int:
    """Return how many features an image gets: found with an empty one, where its size is known."""
    if side is None:
        # `num_features` counts channels before the head's own layers.
        return int(getattr(module, "head_hidden_size", None) or getattr(module, "num_features"))  # noqa: B009
    try:
        with torch.no_grad():
            features: torch.Tensor = module.eval()(torch.zeros(1, in_chans, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(_other_size(name, side)) from error
    module.train()
    if features.ndim != 2:
        raise InputError(
            f"model.backbone: '{name}' gives an image features of shape {list(features.shape[1:])}, not one "
            "vector; choose another backbone"
        )
    return features.shape[1]


def _created(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if "img_size" in options and "img_size" in str(error):
            raise InputError(_other_size(name, options["img_size"])) from error
        raise
    except Exception as error:
        if not pretrained:
            raise
        raise InputError(
            f"model.pretrained: the weights of '{name}' could not be loaded ({type(error).__name__}); "
            "connect to the hub once, set model.pretrained_file, or set model.pretrained=false"
        ) from error


def _other_size(name: str, side: int) -> str:
    facts = timm.get_pretrained_cfg(name)
    own = facts.input_size[-1] if facts is not None else 224
    return (
        f"model.backbone: '{name}' cannot take images of {side} pixels, which the data has; prepare it with "
        f"data.prepare.image_size={own}, the model's own, or choose another backbone"
    )


def _from_file(name: str, options: dict[str, Any], file: Path) -> nn.Module:
    """Return the model with the weights of `file`, adapted to the input channels by timm, without its
    classifier.
    """
    if file.suffix not in SUFFIXES:
        raise InputError(f"model.pretrained_file: {file} is no {', '.join(SUFFIXES)} file")
    if not file.is_file():
        raise InputError(f"model.pretrained_file: there is no file {file}")
    try:
        weights = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # torch's safe reader fails in any way on what is no archive
        raise InputError(
            f"model.pretrained_file: {file} holds no weights that can be read without running code "
            f"({_first_line(error)}); save the state_dict alone, or safetensors"
        ) from error
    before = torch.random.get_rng_state()
    fresh = _created(name, options, pretrained=False).state_dict()
    torch.random.set_rng_state(before)
    try:
        # timm renames what older files call otherwise, adapts the input and leaves the classifier out.
        overlay = {"state_dict": weights, "custom_load": False}
        module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"model.pretrained_file: the weights of {file} do not fit '{name}' ({_first_line(error)}); "
            f"{_whose(weights)}"
        ) from error
    cast(dict[str, Any], module.pretrained_cfg).pop("state_dict", None)  # timm keeps it with the model
    missing = _not_loaded(module, fresh)
    if missing:
        more = f" and {len(missing) - NUM_NAMES_TOLD} more" if len(missing) > NUM_NAMES_TOLD else ""
        raise InputError(
            f"model.pretrained_file: {file} lacks {', '.join(missing[:NUM_NAMES_TOLD])}{more} of '{name}'; "
            f"{_whose(weights)}"
        )
    return module


def _not_loaded(module: nn.Module, fresh: dict[str, torch.Tensor]) -> list[str]:
    """Return the weights [≥ 2 axes] that are still what they were made as, from the same random numbers.

    timm loads what fits and says nothing of the rest; vectors may begin as 0 or 1 in any file.
    """
    return [
        name
        for name, value in module.state_dict().items()
        if value.ndim >= 2 and value.any() and torch.equal(value, fresh[name])
    ]


def _whose(weights: dict[str, torch.Tensor]) -> str:
    if any(name.startswith("backbone.") for name in weights):
        return "it holds a voxray model: name it in training.start_from"
    return f"its own begin with {', '.join(list(weights)[:NUM_NAMES_TOLD])}: name its architecture's backbone"


def _checkpoint(module: nn.Module, name: str) -> None:
    """Keep few activations. The bank and the head lie outside, and running statistics move once."""
    try:
        cast(Any, module).set_grad_checkpointing()
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"model.grad_checkpointing: timm's '{name}' does not offer it; set it to false"
        ) from error
    count_batches_once(module)


def _for_channels(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    """Return a value per channel; for grey images their mean: timm adds the three input kernels up, so the
    one of grey sees what each of the three saw.
    """
    return tuple(values) if in_chans == len(values) else (sum(values) / len(values),) * in_chans


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
