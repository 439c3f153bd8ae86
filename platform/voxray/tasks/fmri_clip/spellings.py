"""The fMRI guide's spellings of our keys, and those of the trainer that it describes (DOMAINS.md S0)."""

# What a YAML value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from typing import Any

from voxray.config.spellings import Aliases, Spelling
from voxray.core.spellings import in_words, loader_workers

_RUNS_CHECKPOINT = re.compile(r"(.*/(?:best|last))\.(?:pt|pth|ckpt)")
_NAMES = {
    "twostage": "two_stage",
    "two_stage_encoder": "two_stage",
    "two-stage": "two_stage",
    "adapter": "clip_adapter",
    "clip2fmri_encoder": "clip2fmri",
}
_TOWERS = {
    "vit-b/32": "vit_b32",
    "vit-b-32": "vit_b32",
    "vit-b/16": "vit_b16",
    "vit-b-16": "vit_b16",
    "vit-l/14": "vit_l14",
    "vit-l-14": "vit_l14",
    "vit-h/14": "vit_h14",
    "vit-h-14": "vit_h14",
}


def one_is_a_list(value: Any) -> Any:
    """Return `[512]` for 512; a list stays as it is."""
    return [value] if isinstance(value, int | str) and not isinstance(value, bool) else value


def of_subjects(value: Any) -> Any:
    """Return the filter of rows that one or several subjects' names stand for; no filter for `all`."""
    names = [str(name) for name in one_is_a_list(value)] if value else []
    if not names or names == ["all"]:
        return ""
    return f"subject == {names[0]!r}" if len(names) == 1 else f"subject in {names!r}"


def trained_run(value: Any) -> Any:
    """Return `RUN/best` for the guide's `RUN/best.pt`."""
    found = _RUNS_CHECKPOINT.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found else value


_WIDTHS = Spelling(instead="leave it out: the targets' widths are read from the dataset")
_SUBJECTS = Spelling("data.prepare.subjects", one_is_a_list)
_MODEL = {
    "hidden_dim": Spelling("model.hidden_dims", one_is_a_list),
    "hidden_dims": Spelling("model.hidden_dims", one_is_a_list),
    "num_blocks": "model.n_blocks",
    "num_residual_blocks": "model.n_blocks",
    "head_type": "model.head",
    "head_hidden_dim": "model.head_dim",
    "shared_head_backbone": "model.shared_head",
    "dropout_rate": "model.dropout",
    "reliability_threshold": "model.min_reliability",
    "architecture": Spelling("model.architecture", in_words(_NAMES)),
    "type": Spelling("model.architecture", in_words(_NAMES)),
    "clip": Spelling("model.clip", in_words(_TOWERS)),
    **dict.fromkeys(("input_dim", "output_dim", "layer_dims", "embedding_dim"), _WIDTHS),
}
_LOSS = {
    "mse_weight": "objective.mse",
    "cosine_weight": "objective.cosine",
    **dict.fromkeys(("info_nce_weight", "infonce_weight"), "objective.info_nce"),
    "temperature": "objective.tau",
    "layer_weights": "objective.layer_weights",
    "learnable_weights": "objective.learn_layer_weights",
    **dict.fromkeys(("brain_consistency_weight", "cycle_weight"), "objective.brain_consistency"),
}

# guide's path → our path
ALIASES: Aliases = {
    "experiment.name": "experiment_name",
    "experiment.description": "description",
    "experiment.tags": "tags",
    # whose brain: of a prepared dataset a filter, of raw files who is read
    **dict.fromkeys(
        ("subject", "subjects", "data.subject", "data.subjects"), Spelling("data.filter", of_subjects)
    ),
    **dict.fromkeys(("dataset.subject", "data.prepare.subject"), _SUBJECTS),
    # what the encoder is
    **{f"{section}.{key}": said for section in ("model", "encoder") for key, said in _MODEL.items()},
    **{f"encoder.{key}": f"model.{key}" for key in ("dropout", "latent_dim", "n_blocks", "activation")},
    "clip": Spelling("model.clip", in_words(_TOWERS)),
    "clip.embedding_dim": _WIDTHS,
    "pretrained": Spelling("training.parts.encoder", trained_run),
    "model.pretrained": Spelling("training.parts.encoder", trained_run),
    # what it is trained for
    **{
        f"{section}.{key}": said
        for section in ("loss", "training.loss", "objective")
        for key, said in _LOSS.items()
        if said != f"{section}.{key}"
    },
    **dict.fromkeys(("info_nce_weight", "infonce_weight"), "objective.info_nce"),
    "temperature": "objective.tau",
    # on which rows
    "dataset.train_ratio": "data.prepare.splits.train",
    "dataset.val_ratio": "data.prepare.splits.val",
    "dataset.test_ratio": "data.prepare.splits.test",
    "dataset.num_workers": Spelling("data.read_threads", loader_workers),
    **dict.fromkeys(("dataset.max_samples", "dataset.limit_samples"), "data.limit_samples"),
    **dict.fromkeys(
        ("reliability_threshold", "preprocessing.reliability_threshold", "data.reliability_threshold"),
        "model.min_reliability",
    ),
    "data.augment": "data.augmentation",
    "data.mixup_alpha": "data.mixup",
    # ridge
    "ridge.alpha": Spelling(instead="write training.closed_form.alphas: [ALPHA]"),
    "ridge.alpha_range": Spelling(
        "training.closed_form.alphas",
        also={"training.stepper": "closed_form", "model.architecture": "ridge"},
    ),
    "ridge.cv_folds": "training.closed_form.folds",
    "ridge.fit_intercept": "training.closed_form.fit_intercept",
    **dict.fromkeys(
        ("ridge.pca_k", "data.pca_k", "preprocessing.pca_k", "pca_k"), "training.closed_form.components"
    ),
    # pictures from predictions, also as diffusers calls their values
    "generation.n": "generation.num_images",
    "generation.num_inference_steps": "generation.steps",
    "generation.guidance_scale": "generation.guidance",
    # what is logged
    "wandb_project": "logging.wandb_project",
    "tensorboard": "logging.tensorboard",
}
