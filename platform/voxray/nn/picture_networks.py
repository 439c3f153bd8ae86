"""Pretrained networks that compare reconstructions with what was seen (DOMAINS.md S3.d), from one folder.

AlexNet, InceptionV3 and EfficientNet-B1 of torchvision, SwAV's ResNet-50, and CLIP's vision tower. Files have
the names under which they are published, or begin like them: torch's ~/.cache/torch/hub/checkpoints is such a
folder. Weights are read as tensors alone: safetensors, or torch.load(weights_only=True).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

# Shape letters: B pictures, H × W pixels, F features.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std of red, green, blue
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_NUM_NAMES_TOLD = 3


@dataclass(frozen=True)
class NetworkFacts:
    """A network: its file, the side in pixels at which it sees pictures, and the modules whose outputs are
    compared, by the metric's name.
    """

    stem: str  # what the name of its file begins with
    published: str
    side: int
    layers: Mapping[str, str]
    measure: Literal["two_way", "distance"]
    unused: tuple[str, ...] = ()  # behind those modules, or of the training that made the weights
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def metrics(self) -> str:
        """The metrics' names."""
        return ", ".join(self.layers)

    @property
    def is_clip(self) -> bool:
        """Whether it is a folder of transformers."""
        return self.published.endswith("/")


NETWORKS = (
    NetworkFacts(
        "alexnet",
        "alexnet-owt-7be5be79.pth",
        256,
        {"AlexNet(2)": "features.4", "AlexNet(5)": "features.11"},
        "two_way",
        ("classifier",),
    ),
    NetworkFacts(
        "inception_v3",
        "inception_v3_google-0cc3c7bd.pth",
        342,
        {"InceptionV3": "avgpool"},
        "two_way",
        ("fc", "AuxLogits"),
        # its weights are of inputs scaled to [-1, 1], which the network does itself
        {"transform_input": True, "aux_logits": False, "init_weights": False},
    ),
    NetworkFacts("clip-vit-large-patch14", "clip-vit-large-patch14/", 224, {"CLIP": ""}, "two_way"),
    NetworkFacts(
        "efficientnet_b1",
        "efficientnet_b1-c27df63c.pth",
        255,
        {"EffNet-B1": "avgpool"},
        "distance",
        ("classifier",),
    ),
    NetworkFacts(
        "swav",
        "swav_800ep_pretrain.pth.tar",
        224,
        {"SwAV": "avgpool"},
        "distance",
        ("fc", "projection_head", "prototypes"),
    ),
)
_ARCHITECTURES = {"swav": "resnet50"}  # torchvision's names where they are not the stem


@dataclass(frozen=True)
class FoundNetwork:
    """A network and its file; of CLIP its folder."""

    facts: NetworkFacts
    path: Path


def find_networks(folder: str) -> tuple[FoundNetwork, ...]:
    """Return the networks whose weights `folder` holds; none without a folder. No weights are read.

    Raises ValueError, a sentence, for a folder that is not there or holds none, and where it does not tell
    which of several files is meant.
    """
    if not folder:
        return ()
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"there is no folder '{folder}'")
    found = [FoundNetwork(facts, file) for facts in NETWORKS if (file := _file(path, facts)) is not None]
    if not found:
        names = ", ".join(facts.published for facts in NETWORKS)
        raise ValueError(f"the folder '{folder}' holds none of the weights that are known: {names}")
    return tuple(found)


def lacking(found: tuple[FoundNetwork, ...]) -> list[str]:
    """Return in one sentence which file would give which further metric; nothing where all were found."""
    there = {network.facts.stem for network in found}
    missing = [f"{facts.metrics} ({facts.published})" for facts in NETWORKS if facts.stem not in there]
    if not missing:
        return []
    return [f"not measured, as their weights are not in generation.networks: {'; '.join(missing)}"]


def load_networks(found: tuple[FoundNetwork, ...], device: torch.device) -> list["PictureNetwork"]:
    """Return the networks on a device, in float32. Raises ValueError, a sentence, for weights that cannot be
    read without running code, or are another network's.
    """
    return [PictureNetwork(network, device) for network in found]


class PictureNetwork:
    """Pictures from 0 to 1 [B, 3, H, W] → the features [B, F] of each metric, on the CPU."""

    def __init__(self, network: FoundNetwork, device: torch.device) -> None:
        """Load it. Raises ValueError, a sentence."""
        self._facts, self._device = network.facts, device
        is_clip = network.facts.is_clip
        self._module = (_clip if is_clip else _torchvision)(network).eval().requires_grad_(False).to(device)
        self._mean_311, self._std_311 = (
            torch.tensor(values, device=device)[:, None, None] for values in (CLIP if is_clip else IMAGENET)
        )
        self._seen: dict[str, Any] = {}
        for name in network.facts.layers.values():
            self._module.get_submodule(name).register_forward_hook(self._kept(name))

    @property
    def measure(self) -> Literal["two_way", "distance"]:
        """How its features are compared."""
        return self._facts.measure

    @torch.inference_mode()
    def __call__(self, pictures_B3HW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features by the metric's name."""
        side = self._facts.side
        pixels = F.interpolate(
            pictures_B3HW.to(self._device), (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        self._module((pixels - self._mean_311) / self._std_311)
        return {metric: self._seen.pop(name) for metric, name in self._facts.layers.items()}

    def _kept(self, name: str) -> Any:
        def keep(module: nn.Module, given: Any, made: Any) -> None:
            features = made.image_embeds if self._facts.is_clip else made
            self._seen[name] = features.flatten(1).float().cpu()

        return keep


def _file(folder: Path, facts: NetworkFacts) -> Path | None:
    """Return the file of a network's weights, of CLIP the folder; None where there is none."""
    if facts.is_clip:
        there = [path for path in sorted(folder.glob(f"{facts.stem}*")) if (path / "config.json").is_file()]
    else:
        there = [path for path in sorted(folder.glob(f"{facts.stem}*")) if path.suffix in SUFFIXES]
    meant = [path for path in there if path.name == facts.published.rstrip("/")] or there
    if len(meant) > 1:
        names = " and ".join(path.name for path in meant[:2])
        raise ValueError(f"'{folder}' holds {names}; keep the one that gives {facts.metrics}")
    return meant[0] if meant else None


def _torchvision(network: FoundNetwork) -> nn.Module:
    """Return torchvision's network with the weights of a file, without what stands behind its features."""
    from timm.models import load_state_dict
    from torchvision import models

    facts, path = network.facts, network.path
    try:
        weights = load_state_dict(str(path), weights_only=True)
        tensors = {
            name: value.float() if value.is_floating_point() else value
            for name, value in weights.items()
            if not name.startswith(tuple(f"{part}." for part in facts.unused))
        }
    except Exception as error:  # torch's safe reader fails in any way on what is no archive
        raise ValueError(
            f"{path} holds no weights that can be read without running code ({_first_line(error)}); fetch "
            f"{facts.published} again, or save the state dict alone"
        ) from error
    with torch.device("meta"):
        module = models.get_model(_ARCHITECTURES.get(facts.stem, facts.stem), weights=None, **facts.options)
    for name in facts.unused:
        if hasattr(module, name):
            setattr(module, name, nn.Identity())
    try:
        wrong = module.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(_other(network, str(error).splitlines()[1:])) from error
    if names := [*wrong.missing_keys, *wrong.unexpected_keys]:
        raise ValueError(_other(network, names))
    return module


def _other(network: FoundNetwork, names: list[str]) -> str:
    told = ", ".join(name.strip() for name in names[:_NUM_NAMES_TOLD])
    return (
        f"the weights of {network.path} are not those of {network.facts.published}: {told} do not fit; "
        "fetch them again"
    )


def _clip(network: FoundNetwork) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import CLIPVisionModelWithProjection

    try:
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            network.path,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{network.path} is no CLIP tower that can be loaded ({_first_line(error)}); it holds the "
            "config.json and model.safetensors of openai/clip-vit-large-patch14"
        ) from error
    model, about = loaded
    if about["missing_keys"]:
        raise ValueError(_other(network, sorted(about["missing_keys"])))
    if model.config.image_size != network.facts.side:
        raise ValueError(
            f"{network.path} is a CLIP tower for {model.config.image_size} pixels; "
            f"{network.facts.metrics} is that of openai/clip-vit-large-patch14, for {network.facts.side}"
        )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
