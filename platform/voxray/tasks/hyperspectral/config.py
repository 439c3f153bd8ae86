"""Typed config of the hyperspectral task: what its data needs, and the guide's spellings."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from voxray.config.section import Section
from voxray.core.run_config import RunConfig
from voxray.data.config import DataConfig, PrepareConfig
from voxray.tasks.hyperspectral import spellings

ALIASES = spellings.ALIASES


@dataclass(frozen=True)
class Shape:
    """The sizes of a masked autoencoder."""

    depth: int
    num_heads: int
    embed_dim: int
    decoder_depth: int = 8
    decoder_heads: int = 8
    decoder_dim: int = 256
    mlp_ratio: float = 4.0


# The guide's table; the decoder's widths are DOMAINS.md S2.a's, where base's 12 heads do not divide 256.
PRESETS = {
    "mae_tiny": Shape(12, 3, 192, decoder_heads=3, decoder_dim=192),
    "mae_small": Shape(12, 6, 384, decoder_heads=6, decoder_dim=192),
    "mae_base": Shape(12, 12, 768),
    "mae_medium": Shape(16, 16, 512, decoder_heads=16),
    "mae_large": Shape(24, 16, 1024, decoder_heads=16),
    "mae_huge": Shape(32, 16, 1280, decoder_heads=16),
}


class HyperspectralPrepareConfig(PrepareConfig, frozen=True):
    """How raw cubes become rows."""

    layout: Literal["auto", "table", "scene", "envi", "file"] = Field(
        default="auto",
        description=(
            "table: HDF5 cubes that a CSV lists; scene: MAT files with ground truth beside them; envi: ENVI "
            "headers and their files, likewise; file: HDF5 or NPY cubes without a table; auto: what the "
            "folder holds, in this order"
        ),
    )
    table: str = Field(default="", description="the CSV file, where the folder holds several")
    dataset: str = Field(default="/Cube/Images", min_length=1, description="the cube in an HDF5 file")
    variable: str = Field(default="", description="the cube in a MAT file, where it holds several 3-D arrays")
    band_axis: Literal["first", "last"] = Field(default="first", description="the bands' axis in an NPY file")
    bands: Literal["all", "spectraleye"] | tuple[int, ...] = Field(
        default="all",
        description="bands to keep, numbered from 0; spectraleye: 0, 2, … 56 and 80, of its raw cubes",
    )
    tile: int | None = Field(default=None, ge=1, description="cut scenes into tiles of this side in pixels")
    image_size: int | None = Field(
        default=None, ge=1, description="shrink cubes to this side in pixels; by default they are kept"
    )
    scale: float = Field(
        default=1.0, gt=0, description="what values are multiplied with to be reflectances, e.g. 1e-4"
    )
    intensity: Literal["log10", "reflectance"] = Field(
        default="log10",
        description="log10: (log10 reflectance + 3) / 3, 1 for background, as SpectralEye's models take it",
    )
    split_by: Literal["patient", "row", "block"] = Field(
        default="patient",
        description="what is never in two splits: a patient (or a scene), a square block of a scene's tiles, "
        "or only the row itself",
    )
    block: int = Field(default=32, ge=1, description="split_by=block: the blocks' side in pixels")

    @field_validator("bands")
    @classmethod
    def _increase(cls, bands: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(bands, tuple) and (
            not bands or bands[0] < 0 or any(low >= high for low, high in pairwise(bands))
        ):
            raise ValueError("bands are increasing numbers from 0 on, at least one")
        return bands


class HyperspectralDataConfig(DataConfig, frozen=True):
    """Which cubes a run reads, and how training cubes are augmented."""

    prepare: HyperspectralPrepareConfig = HyperspectralPrepareConfig()
    augment: Literal["none", "basic", "spectraleye"] = Field(
        default="basic",
        description="basic: flips and right-angle turns; spectraleye: half of the cubes are flipped, "
        "shifted, turned, scaled and noisy, by the values below",
    )
    shift: float = Field(default=0.3, ge=0, le=1, description="spectraleye: at most this share of the side")
    rotate_deg: float = Field(default=30.0, ge=0, le=180, description="spectraleye: at most so many degrees")
    zoom: float = Field(default=0.5, ge=0, lt=1, description="spectraleye: scaled by 1 − zoom … 1 + zoom")
    noise_std: float = Field(default=0.02, ge=0, description="spectraleye: standard deviation of the noise")
    normalize: bool = Field(
        default=False,
        description="the model sees and predicts each band less its mean, over its standard deviation (of "
        "the measured training pixels); metrics stay on the dataset's scale",
    )


class ModelConfig(Section, frozen=True):
    """The masked autoencoder, or what is trained on its encoder (DOMAINS.md S2.a)."""

    name: Literal[
        "mae_tiny", "mae_small", "mae_base", "mae_medium", "mae_large", "mae_huge", "spectral_autoencoder"
    ] = Field(
        default="mae_medium",
        description="the sizes below; spectral_autoencoder: a perceptron on each pixel's spectrum",
    )
    image_size: int | None = Field(default=None, ge=1, description="refuse a dataset of another side")
    in_chans: int | None = Field(default=None, ge=1, description="refuse a dataset of another band count")
    patch_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default=(25, 5), description="[spatial, spectral]: a token's side in pixels, and its bands"
    )
    mask_ratio: float = Field(default=0.8, ge=0, lt=1, description="share of the tokens that are hidden")
    mask_strategy: Literal["random", "spatial_tube", "spectral_tube"] = Field(
        default="random",
        description="spatial_tube: a place is hidden in all bands; spectral_tube: bands are hidden at all "
        "places",
    )
    grad_checkpointing: bool = Field(
        default=False, description="compute the blocks' activations again instead of keeping them"
    )
    position_std: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="deviation that the position embeddings begin with; upstream's 0.02 is small beside "
        "embedded values of about 1",
    )
    # the preset's unless set
    embed_dim: int | None = Field(default=None, ge=1)
    depth: int | None = Field(default=None, ge=1)
    num_heads: int | None = Field(default=None, ge=1)
    decoder_dim: int | None = Field(default=None, ge=1)
    decoder_depth: int | None = Field(default=None, ge=1)
    decoder_heads: int | None = Field(default=None, ge=1)
    mlp_ratio: float | None = Field(default=None, gt=0)
    # spectral_autoencoder
    hidden_dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(128, 64), description="spectral_autoencoder: widths before the latent numbers"
    )
    latent_dim: int = Field(default=16, ge=1, description="spectral_autoencoder: numbers per pixel")
    # on the encoder
    head: Literal["none", "segmentation", "classification"] = Field(
        default="none",
        description="segmentation: a class per pixel, from column `classes`; classification: a class per "
        "cube, from column `label`; both see all tokens",
    )
    num_classes: int = Field(default=16, ge=2, description="segmentation: classes 1 … num_classes; 0: none")
    classes: tuple[str, ...] = Field(
        default=(), description="classification: labels that are told apart; other cubes count in no loss"
    )
    pool: Literal["concat", "mean"] = Field(
        default="concat", description="segmentation: how the groups of bands at a place are put together"
    )

    @property
    def shape(self) -> Shape:
        """The sizes: the preset's, and over them those that are set."""
        preset = PRESETS.get(self.name, PRESETS["mae_medium"])
        return Shape(
            **{
                name: value if (value := getattr(self, name)) is not None else default
                for name, default in vars(preset).items()
            }
        )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        shape = self.shape
        for dim_key, heads_key in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_heads")):
            dim, heads = getattr(shape, dim_key), getattr(shape, heads_key)
            if dim % heads:
                raise ValueError(
                    f"{dim_key}={dim} cannot be divided among {heads_key}={heads} heads; set one of the two"
                )
        if self.head != "none" and self.name == "spectral_autoencoder":
            raise ValueError("a head needs an encoder of tokens: choose one of mae_tiny … mae_huge")
        if self.head == "classification" and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError("head=classification needs `classes`, at least two labels, each named once")
        return self


class ObjectiveConfig(Section, frozen=True):
    """Weights of the loss terms (DOMAINS.md S2.b), and what they are over."""

    loss: Literal["mae_spectral", "spectralgpt"] = Field(
        default="mae_spectral",
        description="mae_spectral: the terms below; spectralgpt: upstream's squared errors of hidden tokens "
        "and of the sums over the groups of bands, 1 each",
    )
    mse: float = Field(default=1.0, ge=0, description="squared error")
    sam: float = Field(default=0.1, ge=0, description="angle between predicted and true spectra, radians")
    variance: float = Field(
        default=0.01, ge=0, description="bands whose predictions vary less than the truth, over an update"
    )
    range_penalty: float = Field(default=0.001, ge=0, description="how far predictions are outside of 0 … 1")
    recon_region: Literal["masked", "all"] = Field(
        default="masked",
        description="what is scored: hidden tokens (and the pixels that have any), or everything; with "
        "masked the reconstruction shows what was seen as it is",
    )
    mse_over: Literal["pixels", "measured"] = Field(
        default="pixels",
        description="measured: background and what is outside of a scene count in no squared error either",
    )
    norm_pix: bool = Field(
        default=False, description="the squared error is of tokens less their mean, over their deviation"
    )
    floor_components: int | None = Field(
        default=None,
        ge=0,
        description="the floor's principal components of training spectra; 0: the mean spectrum; default: "
        "the spectral autoencoder's numbers per pixel",
    )

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if self.loss == "mae_spectral" and not (self.mse or self.sam):
            raise ValueError("mse and sam are both 0, so nothing would be reconstructed; give one a weight")
        return self


class FiguresConfig(Section, frozen=True):
    """Pictures of reconstructions: RUN/figures while a run trains, and the report."""

    enabled: bool = Field(default=True, description="draw at each evaluation while training")
    num_images: int = Field(default=4, ge=1, description="cubes that are shown")
    format: Literal["png", "pdf", "svg"] = "png"
    dpi: int = Field(default=150, ge=30, le=1200)
    load_rgb: bool = Field(default=True, description="show the photograph beside a cube that has one")
    rgb_nm: tuple[float, float, float] = Field(
        default=(615.0, 550.0, 465.0), description="wavelengths that are shown as red, green and blue"
    )


class Config(RunConfig, frozen=True):
    """A hyperspectral experiment."""

    AFTER_TRAINING: ClassVar[tuple[str, ...]] = ("figures",)

    task: str = "hyperspectral"
    data: HyperspectralDataConfig = HyperspectralDataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    figures: FiguresConfig = FiguresConfig()

    @model_validator(mode="after")
    def _mask_and_grid_fit(self) -> Self:
        is_masked = self.objective.recon_region == "masked" or self.objective.loss == "spectralgpt"
        if self.model.head == "none" and self.model.mask_ratio == 0 and is_masked:
            raise ValueError(
                "model.mask_ratio=0 hides nothing, so there is nothing to score; set "
                "objective.recon_region=all (and loss=mae_spectral), or hide some"
            )
        # `prepare.image_size` is left to the model's start: `data prepare` has no use for a patch.
        side, patch = self.model.image_size, self.model.patch_size[0]
        if side is not None and side % patch:
            raise ValueError(
                f"cubes of {side} pixels cannot be cut into tokens of {patch}; choose a spatial patch_size "
                f"among {divisors(side)}"
            )
        bands, group = self.model.in_chans, self.model.patch_size[1]
        if bands is not None and bands % group:
            raise ValueError(
                f"{bands} bands cannot be cut into groups of {group}; choose a spectral patch_size among "
                f"{divisors(bands)}"
            )
        return self

    def global_terms(self) -> tuple[str, ...]:
        """Return the variance, where it has a weight."""
        is_used = self.model.head == "none" and self.objective.loss == "mae_spectral"
        return ("variance",) if is_used and self.objective.variance else ()


def divisors(number: int) -> str:
    """Return the numbers that divide `number`, as text."""
    return ", ".join(str(each) for each in range(1, number + 1) if number % each == 0)
