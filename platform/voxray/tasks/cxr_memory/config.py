"""Typed config of the chest X-ray task, and the guide's spellings that it understands."""

from typing import Literal

from pydantic import Field

from voxray.config.section import Section
from voxray.config.spellings import Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import in_words, loader_workers
from voxray.data.config import DataConfig, PrepareConfig

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
        default=(), description="`module:function` of (labels, scores) → float, by name"
    )
    augment: bool = Field(default=True, description="random flips and small rotations of training images")


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

    def told(self) -> list[str]:
        """Return which timm model a torchvision name stands for."""
        timm_name = TORCHVISION_NAMES.get(self.model.backbone)
        return [f"model.backbone '{self.model.backbone}' is timm's '{timm_name}'"] if timm_name else []


# A phase's key → that of a stage, which may be a spelling itself (`lr`, `use_lr_finder`).
_OF_A_PHASE = {
    "total_epochs": "epochs",
    "lr_max": "learning_rate",
    "loss": "objective.loss",
    "patience": "early_stopping_patience",
    "memory_momentum": "memory.momentum",
    **{
        key: key
        for key in (
            "batch_size",
            "epochs",
            "learning_rate",
            "lr",
            "lr_min",
            "weight_decay",
            "optimizer",
            "early_stopping_patience",
            "min_delta",
            "use_lr_finder",
            "freeze_epochs",
        )
    },
}

# guide's path → our path; a value of a guide's file or command line moves unchanged.
ALIASES = {
    "data_dir": "data.path",
    "data.data_dir": "data.path",
    "data.val_pct": "data.prepare.splits.val",
    "data.valid_pct": "data.prepare.splits.val",
    "data.image_size.0": "data.prepare.image_size",
    "data.image_size.1": "data.prepare.image_size",
    "data.seed": "training.seed",
    "memory.memory_momentum": "memory.momentum",
    "model.dropout_rate": "model.dropout",
    **{
        f"phase{index + 1}.{theirs}": f"stages.{index}.{ours}"
        for index in (0, 1)
        for theirs, ours in _OF_A_PHASE.items()
    },
    "phase1.num_workers": Spelling("data.read_threads", loader_workers),
    "phase2.num_workers": Spelling("data.read_threads", loader_workers),
    "phase1.save_best": "checkpoints.save_best",
    "phase2.save_best": "checkpoints.save_best",
    "phase2.load_from_phase1": Spelling("stages.1.start_from", in_words({"true": "best"})),
}
