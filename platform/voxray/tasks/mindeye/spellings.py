"""The MindEye guide's spellings: the flat keys of train_combined.py and its config files (DOMAINS.md S3)."""

from typing import Any

from voxray.config.spellings import NOTHING, Aliases, Spelling
from voxray.core.spellings import at_top, in_words, true_is

# where the guide's tars lie; upstream's URLs name the branch `main` too
HUB = "hf://datasets/pscotti/naturalscenesdataset/webdataset_avg_split"


def layer(value: Any) -> Any:
    """Return the target that upstream's `hidden: true` means; other values stay as they are."""
    return ("hidden" if value else "final") if isinstance(value, bool) else value


_NORMS = {"bn": "batch", "ln": "layer"}
_REMOTE = Spelling(
    "data.path",
    true_is(f"raw:{HUB}", NOTHING),
    also={"data.prepare.subjects": ["subj01"], "data.prepare.clip": [{"model": "vit_l14"}]},
)
_COMMIT = Spelling(instead=f"name it in the URL: data.path=raw:{HUB.replace('dataset/', 'dataset@COMMIT/')}")

# guide's path → our path
ALIASES: Aliases = {
    **at_top("batch_size", "num_epochs", "lr_scheduler", "lr_scheduler_type", "mixed_precision"),
    "max_lr": "training.learning_rate",
    "first_batch": Spelling("training.overfit_batches", true_is(1, None)),
    "ckpt_interval": "checkpoints.save_every_n_epochs",
    "wandb_log": "logging.wandb.enabled",
    "wandb_project": "logging.wandb.project",
    "wandb_run_name": "run.name",
    "wandb_notes": "description",
    # which weights, which losses
    "voxel2clip_path": "training.parts.voxel2clip",
    "combine_models": "model.combine_models",
    "combine_losses": "objective.combine_losses",
    "alpha": "objective.alpha",
    **dict.fromkeys(("mixup_pct", "objective.mixup_pct"), "objective.mixco_fraction"),
    "prior_mult": "objective.alpha",
    # what the networks are
    **dict.fromkeys(("h", "hidden_dim"), "model.voxel2clip.hidden_dim"),
    "n_blocks": "model.voxel2clip.n_blocks",
    "norm_type": Spelling("model.voxel2clip.norm", in_words(_NORMS)),
    "act_first": "model.voxel2clip.act_first",
    "use_projector": "model.voxel2clip.projector",
    "hidden": Spelling("model.target", layer),
    "cond_drop_prob": "model.prior.condition_dropout",
    "image_embed_scale": "model.prior.image_embed_scale",
    "recons_per_sample": "generation.num_images",
    # on which rows
    "remote_data": _REMOTE,
    "data_commit": _COMMIT,
    "use_image_aug": "data.augmented_views",
    **dict.fromkeys(("wds_cache_dir", "cache_dir"), "data.cache_dir"),
}
