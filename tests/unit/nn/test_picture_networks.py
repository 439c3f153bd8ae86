"""Networks that judge reconstructions, against torchvision's own feature extractor and preprocessing."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

from picture_network_files import PUBLISHED, save_clip, save_networks
from voxray.nn.picture_networks import NETWORKS, PictureNetwork, find_networks, lacking, load_networks

CPU = torch.device("cpu")
# metric → network, torchvision's node, side in pixels, features of one picture (DOMAINS.md S3.d)
EXPECTED = {
    "AlexNet(2)": ("alexnet", "features.4", 256, 192 * 31 * 31),
    "AlexNet(5)": ("alexnet", "features.11", 256, 256 * 15 * 15),
    "InceptionV3": ("inception_v3", "avgpool", 342, 2048),
    "EffNet-B1": ("efficientnet_b1", "avgpool", 255, 1280),
    "SwAV": ("swav", "avgpool", 224, 2048),
}
TWO_WAY = {"AlexNet(2)", "AlexNet(5)", "InceptionV3", "CLIP"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[str, nn.Module]:
    save_clip(folder)
    return save_networks(folder, *PUBLISHED)


@pytest.fixture(scope="module")
def ours(folder: Path, published) -> dict[str, PictureNetwork]:
    """The network of each metric."""
    found = find_networks(str(folder))
    networks = zip(found, load_networks(found, CPU), strict=True)
    return {metric: network for one, network in networks for metric in one.facts.layers}


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def prepared(pictures: torch.Tensor, side: int) -> torch.Tensor:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return v2.Compose([v2.Resize(side, antialias=True), v2.Normalize(mean, std)])(pictures)


@pytest.mark.parametrize("metric", list(EXPECTED))
def test_features_are_torchvisions(metric: str, ours, published, pictures) -> None:
    name, node, side, num = EXPECTED[metric]
    extractor = create_feature_extractor(published[name], return_nodes=[node])
    with torch.no_grad():
        wanted = extractor(prepared(pictures, side))[node].flatten(1)
    found = ours[metric](pictures)[metric]
    assert found.shape == (2, num)
    most = float(wanted.abs().max())
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.01 * most  # they tell pictures apart
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * most)
    assert (ours[metric].measure == "two_way") == (metric in TWO_WAY)


def test_clips_features_are_its_image_embeddings(folder: Path, ours, pictures) -> None:
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(folder / "clip-vit-large-patch14").eval()
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    seen = v2.Compose([v2.Resize(224, antialias=True), v2.Normalize(mean, std)])(pictures)
    with torch.no_grad():
        wanted = model(pixel_values=seen).image_embeds
    torch.testing.assert_close(ours["CLIP"](pictures)["CLIP"], wanted, rtol=1e-4, atol=1e-5)
    assert ours["CLIP"].measure == "two_way"


def test_every_metric_is_there_and_none_is_lacking(folder: Path, ours) -> None:
    assert set(ours) == {*EXPECTED, "CLIP"}
    assert lacking(find_networks(str(folder))) == []


def test_what_is_lacking_names_the_file(folder: Path, published, tmp_path: Path) -> None:
    (tmp_path / "alexnet-mine.safetensors").symlink_to(folder / PUBLISHED["alexnet"])
    (said,) = lacking(find_networks(str(tmp_path)))
    assert "AlexNet" not in said
    for facts in NETWORKS[1:]:
        assert f"{facts.metrics} ({facts.published})" in said
    (all_of_them,) = lacking(find_networks(""))
    assert "AlexNet(2), AlexNet(5) (alexnet-owt-7be5be79.pth)" in all_of_them


def test_safetensors_are_read_too(folder: Path, published, tmp_path: Path, ours, pictures) -> None:
    from safetensors.torch import save_file

    save_file(published["efficientnet_b1"].state_dict(), tmp_path / "efficientnet_b1.safetensors")
    (network,) = load_networks(find_networks(str(tmp_path)), CPU)
    name = "EffNet-B1"
    torch.testing.assert_close(network(pictures)[name], ours[name](pictures)[name], rtol=0, atol=0)


def test_the_published_one_of_two_files_is_meant(tmp_path: Path) -> None:
    for name in ("efficientnet_b1_rwightman-bac287d4.pth", "efficientnet_b1_other.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"efficientnet_b1_other\.pth and efficientnet_b1_rwightman"):
        find_networks(str(tmp_path))
    (tmp_path / PUBLISHED["efficientnet_b1"]).touch()
    assert find_networks(str(tmp_path))[0].path.name == PUBLISHED["efficientnet_b1"]


def test_a_place_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none of the weights that are known: alexnet-owt-7be5be79"):
        find_networks(str(tmp_path))
    with pytest.raises(ValueError, match="there is no folder"):
        find_networks(str(tmp_path / "absent"))


def load_from(folder: Path) -> None:
    load_networks(find_networks(str(folder)), CPU)


class Payload:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('run')",))


def test_other_weights_are_refused(tmp_path: Path, published) -> None:
    file = tmp_path / PUBLISHED["swav"]
    torch.save(published["efficientnet_b1"].state_dict(), file)
    with pytest.raises(ValueError, match=r"swav_800ep.* do not fit; fetch them again"):
        load_from(tmp_path)
    wide = {name: value for name, value in published["swav"].state_dict().items() if "fc." not in name}
    torch.save(wide | {"conv1.weight": torch.zeros(64, 4, 7, 7)}, file)
    with pytest.raises(ValueError, match=r"size mismatch for conv1\.weight"):
        load_from(tmp_path)
    file.write_bytes(pickle.dumps({"conv1.weight": Payload()}))
    with pytest.raises(ValueError, match="no weights that can be read without running code"):
        load_from(tmp_path)
    torch.save({"conv1.weight": Payload()}, file)
    with pytest.raises(ValueError, match="no weights that can be read without running code"):
        load_from(tmp_path)


def test_another_clip_tower_is_refused(tmp_path: Path) -> None:
    from voxray.testing.frozen import save_tiny_clip

    place = save_tiny_clip(tmp_path / "clip-vit-large-patch14")
    with pytest.raises(ValueError, match="is a CLIP tower for 32 pixels"):
        load_from(tmp_path)
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no CLIP tower that can be loaded"):
        load_from(tmp_path)
