"""The hyperspectral guide's spellings: its Hydra groups and keys in our words."""

from collections.abc import Mapping
from typing import Any

from voxray.config.spellings import NOTHING, Aliases, Spelling
from voxray.core.spellings import HYDRA, Translation, in_words, optimizer, schedule, true_is

_ALWAYS = "all metrics are always computed; leave it out"


def _nothing(value: Any) -> Any:
    """Say nothing: the class that a group's file names is what our section is."""
    return NOTHING


def _model_class(value: Any) -> Any:
    return "spectral_autoencoder" if "autoencoder" in str(value).lower() else NOTHING


def _group(path: str, words: Mapping[str, Any]) -> Spelling:
    return Spelling(path, in_words(words))


def _name_of_autoencoder() -> Translation:
    return in_words({"spectralautoencoder": "spectral_autoencoder", "autoencoder": "spectral_autoencoder"})


_AUGMENT = in_words(
    {
        **dict.fromkeys(("augment_basic", "basic", "true"), "basic"),
        **dict.fromkeys(("augment", "augment_all", "augment_strong"), "spectraleye"),
        **dict.fromkeys(("no_augment", "none", "null", "false"), "none"),
    }
)
_LOSS = {
    **dict.fromkeys(("mae_spectral", "losses.mae_spectral.maespectralloss"), "mae_spectral"),
    **dict.fromkeys(("custom_loss", "spectral_gpt", "spectralgpt"), "spectralgpt"),
}
_OWN_TRANSFORM = Spelling("data.augment", _AUGMENT)

# guide's path → our path. Hydra's groups are named at the top: `model=mae_large optimizer=adamw`.
ALIASES: Aliases = {
    **HYDRA,
    # groups
    "model": Spelling("model.name", _name_of_autoencoder()),
    "optimizer": Spelling("training.optimizer", optimizer),
    "scheduler": Spelling("training.schedule", schedule),
    "loss": _group("objective.loss", _LOSS),
    "dataset": _group("data.path", dict.fromkeys(("segmentation_dataset", "combined_dataset"), NOTHING)),
    "augmentation": Spelling("data.augment", _AUGMENT),
    "show_prediction": _group("figures.enabled", {"plot_rgb": True, "none": False}),
    "metric": Spelling(instead=_ALWAYS),
    "accuracy": Spelling(instead=_ALWAYS),
    # keys of the model's file
    "model._target_": Spelling("model.name", _model_class),
    "model.img_size": "model.image_size",
    "model.encoder_depth": "model.depth",
    "model.encoder_num_heads": "model.num_heads",
    "model.decoder_embed_dim": "model.decoder_dim",
    "model.decoder_num_heads": "model.decoder_heads",
    # of the loss'
    "loss._target_": Spelling("objective.loss", _nothing),
    "loss.mse_weight": "objective.mse",
    "loss.sam_weight": "objective.sam",
    "loss.variance_weight": "objective.variance",
    "loss.range_penalty_weight": "objective.range_penalty",
    "loss.norm_pix_loss": "objective.norm_pix",
    # of the dataset's
    "dataset._target_": Spelling("data.path", _nothing),
    "dataset.path": "data.path",
    "dataset.data_dir": "data.path",
    "dataset.transform_type": _OWN_TRANSFORM,
    "transform_type": _OWN_TRANSFORM,
    "data.transform_type": _OWN_TRANSFORM,
    "dataset.normalize": "data.normalize",
    "normalize": "data.normalize",
    "dataset.load_rgb": "figures.load_rgb",
    "load_rgb": "figures.load_rgb",
    "dataset.csv_file": "data.prepare.table",
    "csv_file": "data.prepare.table",
    # of the pictures'
    "show_prediction._target_": Spelling("figures.enabled", _nothing),
    **{
        f"{group}{key}": f"figures.{ours}"
        for group in ("show_prediction.", "")
        for key, ours in (("nb_to_plot", "num_images"), ("save_format", "format"), ("dpi", "dpi"))
    },
    # where it runs
    "debug": "training.debug",
    "general.strategy": "scale.strategy",
    "strategy": "scale.strategy",
    "scale.strategy": _group(
        "scale.strategy", dict.fromkeys(("dp", "dataparallel", "data_parallel", "ddp"), "ddp")
    ),
    "general.sync_batchnorm": "training.sync_batchnorm",
    "sync_batchnorm": "training.sync_batchnorm",
    "general.compile": Spelling("training.compile", true_is("default", "off")),
}
