"""Typed config of the chest X-ray task, and the guide's spellings that it understands."""

import re
from difflib import SequenceMatcher, get_close_matches
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from voxray.config.section import Section, errors_at
from voxray.core.run_config import OF_A_STAGE, RunConfig
from voxray.data.config import DataConfig, PrepareConfig
from voxray.tasks.cxr_memory import spellings

ALIASES = spellings.ALIASES

# Upstream's order (DOMAINS.md S4.c); every array of labels carries these names.
LABELS = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
)

# A guide's torchvision names → timm's, the same architectures.
TORCHVISION_NAMES = {
    "efficientnet_v2_s": "tf_efficientnetv2_s",
    "efficientnet_v2_m": "tf_efficientnetv2_m",
    "efficientnet_v2_l": "tf_efficientnetv2_l",
}

# Of a second phase: 0.9999 moves a full slot by a tenth in a thousand writes, 0.999 in a hundred.
CALM_MOMENTUM = 0.999


class CxrPrepareConfig(PrepareConfig, frozen=True):
    """How raw radiographs become rows."""

    image_size: int | Literal["auto"] = Field(
        default="auto",
        description="side of the stored square image in pixels; auto: 224, or less for smaller files",
    )
    uncertain: Literal["ignore", "zeros", "ones"] = Field(
        default="ignore",
        description="what a label of -1 (CheXpert, MIMIC-CXR) becomes; ignore: unknown, it counts in no loss",
    )
    views: Literal["all", "frontal", "lateral"] = Field(
        default="all", description="keep only images of this projection"
    )
    unlabelled: bool = Field(
        default=False,
        description="read images named as NIH's (00000003_001.png) without a table; all labels unknown",
    )


class CxrDataConfig(DataConfig, frozen=True):
    """Which chest X-rays a run reads."""

    prepare: CxrPrepareConfig = CxrPrepareConfig()


class ModelConfig(Section, frozen=True):
    """Backbone and classifier head (DOMAINS.md S4.a)."""

    backbone: str = Field(
        default="tf_efficientnetv2_s", description="a timm name, or a guide's torchvision name"
    )
    pretrained: bool = Field(
        default=False, description="load timm's weights; needs a reachable hub, a local cache or a file"
    )
    pretrained_file: str = Field(
        default="", description="pretrained: take timm's weights from this .safetensors, .pth or .bin file"
    )
    grad_checkpointing: bool = Field(
        default=False,
        description="keep fewer of the backbone's activations and compute them again: less memory",
    )
    in_chans: Literal[1, 3] = Field(
        default=1, description="1: grey; 3: the grey image repeated, as the guide's RGB"
    )
    hidden_dim: int = Field(default=512, ge=1, description="width of the classifier's hidden layer")
    dropout: float = Field(default=0.3, ge=0, lt=1)


class AslConfig(Section, frozen=True):
    """The asymmetric loss (Ridnik et al. 2021); with 0, 0 and 0 it is BCE."""

    gamma_neg: float = Field(default=4.0, ge=0, description="focusing of absent labels")
    gamma_pos: float = Field(default=1.0, ge=0, description="focusing of present labels")
    clip: float = Field(default=0.05, ge=0, lt=1, description="shift of an absent label's probability")
    focal_gradient: bool = Field(default=False, description="let a gradient through the focusing weights")


class FocalConfig(Section, frozen=True):
    """The focal loss: alpha · (1 − e^−bce)^gamma · bce."""

    alpha: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=2.0, ge=0)


LOSSES = ("bce", "asl", "focal")
METRICS = ("accuracy", "macro_f1")
OWN_METRICS = ("loss", "auroc", "ap", "num_defined", "auroc_per_class", "ap_per_class")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _check_name(name: str, kind: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is neither one of `choices` nor written as `module:function`."""
    if name in choices or _REFERENCE.fullmatch(name):
        return
    said = name.lower()
    near = get_close_matches(said, choices, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    ranked = sorted(choices, key=lambda choice: -SequenceMatcher(None, said, choice).ratio())
    raise ValueError(
        f"'{name}' is no {kind}; {hint}there is {', '.join(ranked)}, or a function of your own, "
        "`module:function`"
    )


class ObjectiveConfig(Section, frozen=True):
    """Loss, extra metrics, augmentation."""

    loss: str = Field(
        default="bce",
        description="bce, asl, focal, or `module:function` of (logits, targets) → elementwise loss",
    )
    asl: AslConfig = AslConfig()
    focal: FocalConfig = FocalConfig()
    reduction: Literal["mean", "sum"] = Field(
        default="mean", description="over the known labels of an update; sum: rates then depend on its rows"
    )
    metrics: tuple[str, ...] = Field(
        default=(),
        description="more metrics: accuracy, macro_f1 (both at 0.5), or `module:function` of (labels, "
        "scores), arrays [N, 14] → float",
    )
    augment: bool = Field(default=True, description="random flips and small rotations of training images")

    @field_validator("loss")
    @classmethod
    def _is_a_loss(cls, name: str) -> str:
        _check_name(name, "loss", LOSSES)
        return name

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        seen: list[str] = [*OWN_METRICS]
        for name in names:
            _check_name(name, "metric", METRICS)
            short = name.rpartition(":")[2]
            if short in seen:
                raise ValueError(f"'{name}': there is a metric '{short}' already; give yours another name")
            seen.append(short)
        return names


class MemoryConfig(Section, frozen=True):
    """The memory bank between backbone and head (DOMAINS.md S4.b-2)."""

    use_memory: bool = Field(default=False, description="add what the bank retrieves to the features")
    bank_size: int = Field(default=512, ge=1, description="vectors that the bank holds")
    update_strategy: Literal["rarity", "diversity", "hybrid", "statistical", "fifo", "reservoir"] = Field(
        default="rarity", description="which vectors of a batch are kept"
    )
    top_k: int = Field(default=3, ge=1, description="vectors that are retrieved for an image")
    normalize_retrieved: Literal["both", "none", "query_only", "memory_only"] | bool = Field(
        default="both",
        description="what the similarity normalises; true: both, and what is retrieved gets the query's "
        "length; false: none",
    )
    momentum: float = Field(
        default=0.9, ge=0, le=1, description="share of a full slot that stays when a vector is written there"
    )
    momentum_mode: Literal["write", "stats"] = Field(
        default="write", description="stats: the momentum is of the running statistics alone, as upstream"
    )
    rarity_threshold: float = Field(
        default=0.2, ge=0, description="rarity, statistical: how far from the mean length a vector must be"
    )
    select_fraction: float = Field(default=0.2, gt=0, le=1, description="diversity, hybrid: share of a batch")
    diversity_weight: float = Field(default=0.5, ge=0, le=1, description="hybrid: the rest is rarity's")
    self_match_threshold: float = Field(
        default=1.0,
        gt=0,
        description="vectors whose cosine reaches it are not retrieved; 1: none is left out",
    )
    min_fill: int | None = Field(
        default=None, ge=0, description="keep everything until the bank holds so many; default: top_k"
    )
    update_order: Literal["after_retrieve", "before_retrieve"] = Field(
        default="after_retrieve",
        description="before_retrieve: a batch finds its own vectors too, as upstream",
    )
    compat: Literal["ours", "upstream"] = Field(
        default="ours", description="upstream: its rules of what is kept, for the ablation"
    )

    @property
    def fewest(self) -> int:
        """Vectors below which everything is kept."""
        return self.top_k if self.min_fill is None else self.min_fill


class Config(RunConfig, frozen=True):
    """A chest X-ray experiment."""

    task: str = "cxr_memory"
    data: CxrDataConfig = CxrDataConfig()
    model: ModelConfig = ModelConfig()
    memory: MemoryConfig = MemoryConfig()
    objective: ObjectiveConfig = ObjectiveConfig()

    @model_validator(mode="after")
    def _stages_share_one_bank(self, info: ValidationInfo) -> Self:
        if info.context is OF_A_STAGE or not self.stages:
            return self
        first: tuple[str, int] | None = None
        for stage in self.resolved_stages():
            assert isinstance(stage.config, Config)
            memory = stage.config.memory
            if not memory.use_memory:
                continue
            name, size = first = first or (stage.name, memory.bank_size)
            if size != memory.bank_size:
                text = (
                    f"stage '{stage.name}': bank_size={memory.bank_size} cannot take over a bank, and stage "
                    f"'{name}' has {size}; set memory.bank_size once, outside of the stages"
                )
                raise errors_at([(("stages", stage.entry, "memory", "bank_size"), text)])
        return self

    def told(self) -> list[str]:
        """Return which timm model a torchvision name stands for, and what spoils the memory of a phase 2."""
        timm_name = TORCHVISION_NAMES.get(self.model.backbone)
        said = [f"model.backbone '{self.model.backbone}' is timm's '{timm_name}'"] if timm_name else []
        return [*super().told(), *said, *self._restless_memories()]

    def _restless_memories(self) -> list[str]:
        """Return a warning for each stage that comes after one with fewer images or a lower momentum, and
        whose own momentum is far from the guide's.
        """
        warnings: list[str] = []
        earlier: list[Config] = []
        for stage in self.resolved_stages():
            here = stage.config
            assert isinstance(here, Config)
            memory = here.memory
            is_second_phase = any(
                (before.data.filter and not here.data.filter) or before.memory.momentum < memory.momentum
                for before in earlier
            )
            is_written = memory.use_memory and memory.momentum_mode == "write"
            if is_written and is_second_phase and memory.momentum < CALM_MOMENTUM:
                warnings.append(
                    f"warning: stage '{stage.name}': memory.momentum={memory.momentum:g} is far from 0.9999: "
                    f"each write changes {1 - memory.momentum:.2g} of a slot of the full bank, so the images "
                    "that come in here, normal ones among them, would soon have replaced the memories; the "
                    "guide keeps 0.9999 in its phase 2"
                )
            earlier.append(here)
        return warnings
