"""The chest X-ray guide's spellings: its two phases are three stages here, other keys have other names."""

import re
from collections.abc import Callable
from typing import Any, cast

from voxray.config.spellings import NOTHING, Aliases, Spelling
from voxray.core.spellings import in_words, loader_workers, true_is

# The guide's two phases; its first one is two stages here. What phase 1 sets are the run's own sections.
FROZEN, PHASE1, PHASE2 = "phase1_frozen", "phase1", "phase2"
PHASES: tuple[dict[str, Any], ...] = (
    {"name": FROZEN, "epochs": 3, "parameters": {"backbone": {"freeze": True}}},
    {"name": PHASE1, "epochs": 20},
    {
        "name": PHASE2,
        "start_from": f"{PHASE1}/best",
        "batch_size": 128,
        "epochs": 5,
        "learning_rate": 8e-5,
        "parameters": {"backbone": {"learning_rate": 2e-5}},
        "lr_finder": "off",
        "schedule": "one_cycle",
        "data": {"filter": ""},
        "memory": {"momentum": 0.9999},
    },
)
ABNORMAL = "any(labels)"  # a finding is known to be there; unknown ones do not count

_IN_PHASES = {
    "stages": PHASES,
    "checkpoints.export_stages": (PHASE1, PHASE2),
    "checkpoints.evaluate_at_end": ("val",),
}
_WITH_PHASE1 = {"stages.1.name": PHASE1}
_loss = in_words(
    {
        **dict.fromkeys(("bce", "binary_cross_entropy", "bcewithlogitsloss"), "bce"),
        **dict.fromkeys(("asl", "asymmetric", "asymmetric_loss", "asymmetricloss"), "asl"),
        **dict.fromkeys(("focal", "focal_loss", "focalloss"), "focal"),
    }
)
_filter = true_is(ABNORMAL, "")


def _rate(which: int) -> Callable[[Any], Any]:
    """Return a function of fastai's slice of rates, `[backbone, head]` or the text `(2e-5, 8e-5)`; one rate
    alone is both. Other values stay as they are.
    """

    def choose(value: Any) -> Any:
        rates: Any = value
        if isinstance(value, str) and (found := _PAIR.fullmatch(value.strip())):
            rates = [float(found[1]), float(found[2])]
        return rates[which] if isinstance(rates, list | tuple) and len(cast(Any, rates)) == 2 else rates

    return choose


def _epochs(value: Any) -> Any:
    """Return the epochs of the frozen stage; nothing for 0, which switches it off."""
    return value if value else NOTHING


def _is_some(value: Any) -> Any:
    return value > 0 if isinstance(value, int) else value


_NUMBER = r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*"
_PAIR = re.compile(rf"(?:slice)?[(\[]{_NUMBER},{_NUMBER}[)\]]")


def _phase(phase: str, training: str, section: str, holds: dict[str, Any]) -> dict[str, Spelling]:
    """Return the spellings of a phase's keys. `training` is where its training keys are, `section` stands
    before those of the other sections.
    """

    def said(path: str, value: Callable[[Any], Any] | None = None, **more: Any) -> Spelling:
        return Spelling(path, value, within=_IN_PHASES, holds=holds, **more)

    backbone = f"{training}.parameters.backbone.learning_rate"
    return {
        phase: said(training),
        **{f"{phase}.{key}": said(f"{training}.learning_rate") for key in ("lr_max", "base_lr")},
        f"{phase}.lr_min": said(backbone),
        f"{phase}.lr_range": said(
            f"{training}.learning_rate", _rate(1), more=(Spelling(backbone, _rate(0)),)
        ),
        f"{phase}.patience": said(f"{training}.early_stopping_patience"),
        f"{phase}.loss": said(f"{section}objective.loss", _loss),
        f"{phase}.memory_momentum": said(f"{section}memory.momentum"),
        f"{phase}.filter_normal": said(f"{section}data.filter", _filter),
        # one for the whole run
        f"{phase}.num_workers": said("data.read_threads", loader_workers),
        f"{phase}.save_best": said("checkpoints.save_best"),
    }


# guide's path → our path; a value of a guide's file or command line moves unchanged.
ALIASES: Aliases = {
    "data_dir": "data.path",
    "data.data_dir": "data.path",
    "data.val_pct": "data.prepare.splits.val",
    "data.valid_pct": "data.prepare.splits.val",
    "data.image_size.0": "data.prepare.image_size",
    "data.image_size.1": "data.prepare.image_size",
    "data.seed": "training.seed",
    "save_name": "checkpoints.export_name",
    **dict.fromkeys(("filter_normal", "data.filter_normal"), Spelling("data.filter", _filter)),
    "memory.memory_momentum": "memory.momentum",
    "model.dropout_rate": "model.dropout",
    "objective.loss": Spelling("objective.loss", _loss),
    "stages.*.objective.loss": Spelling("stages.*.objective.loss", _loss),
    **_phase("phase1", "training", "", _WITH_PHASE1),
    **_phase("phase2", "stages.2", "stages.2.", {"stages.2.name": PHASE2}),
    # fastai's fine_tune(epochs, freeze_epochs): those that are not frozen come after the frozen ones.
    **{
        f"phase1.{key}": Spelling("stages.1.epochs", within=_IN_PHASES, holds=_WITH_PHASE1)
        for key in ("epochs", "total_epochs")
    },
    "phase1.freeze_epochs": Spelling(
        "stages.0.enabled",
        _is_some,
        more=(Spelling("stages.0.epochs", _epochs),),
        within=_IN_PHASES,
        holds={"stages.0.name": FROZEN},
    ),
    "phase2.load_from_phase1": Spelling(
        "stages.2.start_from",
        in_words({"true": f"{PHASE1}/best"}),
        within=_IN_PHASES,
        holds={"stages.2.name": PHASE2},
    ),
}
