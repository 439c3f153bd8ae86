"""A folder with the networks that judge reconstructions, with random weights under their published names."""

from pathlib import Path

import torch
from torch import nn
from torchvision import models


def random_network(name: str, seed: int = 0) -> nn.Module:
    """Return torchvision's network with random weights whose signal reaches the last layers."""
    options = {"transform_input": True, "init_weights": False} if name == "inception_v3" else {}
    torch.manual_seed(seed)
    module = models.get_model(name, weights=None, **options)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return module.eval()


def save_networks(folder: Path, *stems: str) -> dict[str, nn.Module]:
    """Write the state dicts of these networks into `folder` as they are published; return the networks."""
    made = {}
    for stem in stems:
        module = made[stem] = random_network("resnet50" if stem == "swav" else stem)
        weights = module.state_dict()
        if stem == "alexnet":  # 233 MB behind the layers that count, which ours does not read
            weights = {name: value for name, value in weights.items() if not name.startswith("classifier")}
        if stem == "swav":
            weights = {f"module.{name}": value for name, value in weights.items() if "fc." not in name}
            weights["module.projection_head.0.weight"] = torch.zeros(2, 2)
            weights["module.prototypes.weight"] = torch.zeros(2, 2)
        torch.save(weights, folder / PUBLISHED[stem])
    return made


def save_clip(folder: Path) -> None:
    """Write a tiny CLIP tower for pictures of 224 pixels."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=56,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip-vit-large-patch14")


PUBLISHED = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "inception_v3": "inception_v3_google-0cc3c7bd.pth",
    "efficientnet_b1": "efficientnet_b1-c27df63c.pth",
    "swav": "swav_800ep_pretrain.pth.tar",
}
