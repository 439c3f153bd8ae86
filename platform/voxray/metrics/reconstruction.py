"""How like the picture that was seen a reconstruction is, as MindEye measures it (DOMAINS.md S3.d): by pixels
(PixCorr, SSIM) and by what pretrained networks see in both.

Shapes: B pictures, N pairs of pictures, H × W pixels, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch.nn import functional as F

from voxray.metrics.correlation import EPSILON, row_correlation
from voxray.metrics.image import ssim

FIRST_SIDE = 256  # pixels: all pictures are brought to it before anything is compared
SIDE = 425  # pixels, of NSD's pictures: PixCorr and SSIM compare at this size
BATCH = 16  # pictures that a network sees at a time
_LUMINANCE = (0.2125, 0.7154, 0.0721)  # of red, green, blue (ITU-R BT.709, as scikit-image has it)


class PictureNetwork(Protocol):
    """A pretrained network, and how its features compare a reconstruction with what was seen."""

    @property
    def measure(self) -> Literal["two_way", "distance"]:
        """Two-way identification (higher is better), or the correlation distance (lower is better)."""
        ...

    def __call__(self, pictures_B3HW: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return features [B, F] of pictures from 0 to 1, by the name of what they measure."""
        ...


@dataclass(frozen=True)
class ReconstructionScores:
    """Means over `num` pairs; two-way identification, for which one pair is too few, and correlation distance
    by what was compared.
    """

    num: int
    pixcorr: float
    ssim: float
    two_way: Mapping[str, float]
    distance: Mapping[str, float]

    def lines(self) -> list[str]:
        """Return them in words."""
        said = [f"PixCorr {self.pixcorr:.3f}, SSIM {self.ssim:.3f} over {self.num} rows"]
        if self.two_way:
            said.append(f"two-way identification (chance 0.5): {_listed(self.two_way)}")
        if self.distance:
            said.append(f"correlation distance (lower is better): {_listed(self.distance)}")
        return said


def reconstruction_scores(
    made: Sequence[torch.Tensor], true: Sequence[torch.Tensor], networks: Sequence[PictureNetwork] = ()
) -> ReconstructionScores:
    """Return how like the pictures that were seen the reconstructions are, uint8 [H, W, 3] of any sizes."""
    pairs = [(first_sized(one), first_sized(other)) for one, other in zip(made, true, strict=True)]
    found: dict[str, dict[str, float]] = {"two_way": {}, "distance": {}}
    for network in networks:
        made_by_name, true_by_name = _features(network, made), _features(network, true)
        for name, made_NF in made_by_name.items():
            if network.measure == "distance":
                distance_N = correlation_distance(made_NF, true_by_name[name])
                found["distance"][name] = float(distance_N.nanmean())
            elif len(made_NF) > 1:
                found["two_way"][name] = identified(correlations(true_by_name[name], made_NF))
    return ReconstructionScores(
        num=len(pairs),
        pixcorr=float(torch.cat([pixel_correlation(*pair) for pair in pairs]).nanmean()),
        ssim=float(torch.cat([grey_ssim(*pair) for pair in pairs]).mean()),
        **found,
    )


# --- pixels
# -------------------------------------------------------------------------------------------------------


def first_sized(pixels_HW3: torch.Tensor) -> torch.Tensor:
    """Return a picture uint8 [H, W, 3] as float [1, 3, 256, 256] from 0 to 1."""
    return resized(pixels_HW3.permute(2, 0, 1)[None].float() / 255, FIRST_SIDE)


def resized(pictures_B3HW: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Return pictures float [B, 3, side, side], bilinear with antialiasing."""
    return F.interpolate(pictures_B3HW, (side, side), mode="bilinear", antialias=True, align_corners=False)


def pixel_correlation(made_B3HW: torch.Tensor, true_B3HW: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r over all pixels and colours of each pair [B], at 425 × 425."""
    return row_correlation(resized(made_B3HW).flatten(1), resized(true_B3HW).flatten(1))


def grey_ssim(made_B3HW: torch.Tensor, true_B3HW: torch.Tensor) -> torch.Tensor:
    """Return structural similarity of each pair in grey [B], at 425 × 425; pictures are from 0 to 1."""
    grey = [_grey(resized(pictures)) for pictures in (made_B3HW, true_B3HW)]
    return ssim(grey[0], grey[1], 1.0, inside=True)[:, 0]


def _grey(pictures_B3HW: torch.Tensor) -> torch.Tensor:
    weight_3 = torch.tensor(_LUMINANCE, dtype=pictures_B3HW.dtype, device=pictures_B3HW.device)
    return torch.einsum("bchw,c->bhw", pictures_B3HW, weight_3)[:, None]


# --- features
# -------------------------------------------------------------------------------------------------------


def correlations(true_NF: torch.Tensor, made_NF: torch.Tensor) -> torch.Tensor:
    """Return Pearson's r of each true picture's features (rows) with each reconstruction's (columns), [N, N];
    NaN where one of both is constant.
    """
    return _centred(true_NF) @ _centred(made_NF).T


def identified(r_NN: torch.Tensor) -> float:
    """Return two-way identification: the share of the other true pictures (rows) that a reconstruction
    (column) is less like than its own. A tie is a miss, as upstream; there are at least two pairs.
    """
    num = len(r_NN)
    return float((r_NN < r_NN.diagonal()).sum(0).double().mean() / (num - 1))


def correlation_distance(made_NF: torch.Tensor, true_NF: torch.Tensor) -> torch.Tensor:
    """Return 1 - Pearson's r of each pair [N]; NaN where one of both is constant."""
    return 1 - row_correlation(made_NF, true_NF)


def _centred(features_NF: torch.Tensor) -> torch.Tensor:
    """Return rows without their mean and of length 1; NaN for constants, of which only rounding is left."""
    own_NF = features_NF - features_NF.mean(1, keepdim=True)
    norm_N1 = own_NF.norm(dim=1, keepdim=True)
    is_constant_N1 = norm_N1.square() <= EPSILON * features_NF.norm(dim=1, keepdim=True).square()
    return own_NF / torch.where(is_constant_N1, torch.nan, norm_N1)


def _features(network: PictureNetwork, pictures: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    parts = [network(batch_B3HW) for batch_B3HW in _batches(pictures)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _batches(pictures: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for start in range(0, len(pictures), BATCH):
        yield torch.cat([first_sized(pixels) for pixels in pictures[start : start + BATCH]])


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
