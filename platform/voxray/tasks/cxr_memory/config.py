"""Typed config of the chest X-ray task, and the guide's spellings that it understands. No torch, ray or numpy."""

from typing import Literal

from pydantic import Field

from voxray.config.section import Section
from voxray.core.run_config import RunConfig
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


class CxrPrepareConfig(PrepareConfig):
    """How raw radiographs become rows."""

    image_size: int | Literal["auto"] = Field(
        "auto", description="side of the stored square image in pixels; auto: 224, or less where the files are smaller"
    )


class CxrDataConfig(DataConfig):
    """Which chest X-rays a run reads."""

    prepare: CxrPrepareConfig = CxrPrepareConfig()


class ModelConfig(Section):
    """Backbone and classifier head (DOMAINS.md S4.a)."""

    backbone: str = Field("tf_efficientnetv2_s", description="a timm name, or a guide's torchvision name")
    pretrained: bool = Field(False, description="load timm's weights; needs a reachable hub or a local cache")
    in_chans: Literal[1, 3] = Field(1, description="1: grey; 3: the grey image repeated, as the guide's RGB")
    hidden_dim: int = Field(512, ge=1, description="width of the classifier's hidden layer")
    dropout: float = Field(0.3, ge=0, lt=1)


class ObjectiveConfig(Section):
    """Loss and extra metrics."""

    loss: str = Field("bce", description="bce, or `module:function` of (logits, targets) → elementwise loss")
    metrics: tuple[str, ...] = Field((), description="`module:function` of (labels, scores) → float, by name")
    augment: bool = Field(True, description="random flips and small shifts of training images")


class Config(RunConfig):
    """A chest X-ray experiment."""

    task: str = "cxr_memory"
    data: CxrDataConfig = CxrDataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()


# guide's path → our path. A value of the guide's file or command line moves unchanged.
ALIASES = {
    "data.data_dir": "data.path",
    "general.seed": "training.seed",
    "phase1.batch_size": "stages.0.batch_size",
    "phase1.epochs": "stages.0.epochs",
    "phase1.learning_rate": "stages.0.learning_rate",
    "phase1.weight_decay": "stages.0.weight_decay",
    "phase1.patience": "stages.0.patience",
    "phase2.batch_size": "stages.1.batch_size",
    "phase2.epochs": "stages.1.epochs",
    "phase2.learning_rate": "stages.1.learning_rate",
    "phase2.weight_decay": "stages.1.weight_decay",
}
