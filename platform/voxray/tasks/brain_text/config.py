"""Typed config of the brain-to-text task (DOMAINS.md S1), and the guide's spellings of it."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from voxray.config.section import Section
from voxray.config.spellings import Spelling
from voxray.core.run_config import RunConfig
from voxray.core.spellings import at_top, loader_workers
from voxray.data.config import DataConfig, PrepareConfig

TONES = "tones"  # a synthesizer that needs no weights
TINY = "tiny"  # a network built from a small config, its random weights seeded
QWEN2_AUDIO = "Qwen/Qwen2-Audio-7B-Instruct"


class AudioTargetConfig(Section, frozen=True):
    """Audio targets, computed once per sentence when raw files are prepared: speech by a synthesizer, then
    what the audio tower of Qwen2-Audio makes of it; the column `audio`.
    """

    tts: str = Field(
        default="facebook/mms-tts-eng",
        min_length=1,
        description="a hub's id or a folder (VitsModel), tiny, or tones: a chord per letter, without weights",
    )
    tts_revision: str = Field(default="main", description="of the hub's id")
    tower: str = Field(
        default=QWEN2_AUDIO,
        min_length=1,
        description="a hub's id or a folder (Qwen2-Audio), or tiny: built from a config",
    )
    tower_revision: str = Field(default="main", description="of the hub's id")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="what the tower computes in; what is stored is float32"
    )
    seed: int = Field(default=0, ge=0, description="of the synthesizer, which varies its speech")


class BrainTextPrepareConfig(PrepareConfig, frozen=True):
    """How raw trials become rows."""

    num_features: int = Field(
        default=512,
        ge=1,
        description="T15: the features of a bin; synthetic recordings are made with as many",
    )
    text: str = Field(
        default="text",
        min_length=1,
        description=(
            "what is the text to decode: an array of `.npz` files, a column of an NWB file's trials; T15 has "
            "its own"
        ),
    )
    split_by: str = Field(
        default="trial",
        min_length=1,
        description=(
            "what is never in two splits: trial, block_num, text or session, or any other array of `.npz` "
            "files or column of trials; splits that the raw data declares are kept in any case"
        ),
    )
    signals: tuple[str, ...] = Field(
        default=(), description="NWB: the time series that are the features; without any, spike counts"
    )
    bin_s: float = Field(default=0.02, gt=0, description="NWB: the length of a bin in seconds")
    audio: AudioTargetConfig | None = Field(
        default=None, description="compute audio targets of the texts, e.g. {tts: tones, tower: tiny}"
    )


class TransformsConfig(Section, frozen=True):
    """What is done to the neural features, in this order: all rows are standardised, training rows
    augmented on the device, all rows smoothed.
    """

    standardize: bool = Field(
        default=False,
        description="give each feature mean 0 and deviation 1 over the training rows: for counts; T15's "
        "features come like this, session by session",
    )
    static_gain_std: float = Field(
        default=0.0, ge=0, description="a random mix of the features per trial, around the identity"
    )
    white_noise_std: float = Field(default=1.0, ge=0, description="noise of each bin and feature")
    constant_offset_std: float = Field(default=0.2, ge=0, description="an offset per trial and feature")
    random_walk_std: float = Field(default=0.0, ge=0, description="steps of a random walk over time")
    random_cut: int = Field(
        default=3, ge=0, description="0 … random_cut − 1 bins are cut from a trial's beginning"
    )
    smooth_data: bool = Field(default=True, description="smooth over time, in evaluation too")
    smooth_kernel_std: float = Field(default=2.0, gt=0, description="bins")
    smooth_kernel_size: int = Field(
        default=100, ge=1, description="bins of the window that the Gaussian is cut out of"
    )


class BrainTextDataConfig(DataConfig, frozen=True):
    """Which recordings a run reads, and how training rows are augmented."""

    prepare: BrainTextPrepareConfig = BrainTextPrepareConfig()
    transforms: TransformsConfig = TransformsConfig()


class LoraConfig(Section, frozen=True):
    """Low-rank adapters of the language model's attention, which are trained (peft)."""

    rank: int = Field(default=0, ge=0, description="0: none, the language model stays as it is")
    alpha: int = Field(default=16, ge=1, description="their output is scaled by alpha / rank")
    modules: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, description="layers of the language model by name"
    )


class LlmConfig(Section, frozen=True):
    """The frozen language model with its projector: the text side of Qwen2-Audio."""

    source: str = Field(
        default=QWEN2_AUDIO,
        min_length=1,
        description="a hub's id or a folder (Qwen2-Audio), or tiny: built from a config",
    )
    revision: str = Field(default="main", description="of the hub's id")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="its weights' format")
    prompt: str = Field(
        default="Transcript: ", description="stands between the brain's embeddings and the text"
    )
    lora: LoraConfig = LoraConfig()


class ModelConfig(Section, frozen=True):
    """The encoder of neural features (DOMAINS.md S1.a), and the frozen language model behind it."""

    day_layers: bool = Field(default=True, description="an input layer for each session; false: none")
    input_dropout: float = Field(default=0.2, ge=0, lt=1, description="after the sessions' layers")
    patch_size: int = Field(default=14, ge=1, description="bins that go into one step of the GRU")
    patch_stride: int = Field(default=4, ge=1, description="bins from one step to the next")
    n_units: int = Field(default=768, ge=1, description="width of the GRU")
    n_layers: int = Field(default=5, ge=1, description="layers of the GRU")
    rnn_dropout: float = Field(default=0.4, ge=0, lt=1, description="between the GRU's layers")
    audio_embedding_dim: int | None = Field(
        default=None, ge=1, description="width of the audio targets; default: the dataset's, or the model's"
    )
    llm: LlmConfig = LlmConfig()


class BrainTextObjectiveConfig(Section, frozen=True):
    """alpha · align + beta · llm + gamma · ctc; a part without weight is not built."""

    alpha: float = Field(default=1.0, ge=0, description="weight of the distance to the audio targets")
    beta: float = Field(default=1.0, ge=0, description="weight of the frozen language model's cross-entropy")
    gamma: float = Field(default=0.0, ge=0, description="weight of CTC on the units")
    align: Literal["cosine", "mse", "smooth_l1", "info_nce", "soft_dtw"] = Field(
        default="cosine",
        description="cosine, mse, smooth_l1: step by step, both brought to the shorter length; info_nce: a "
        "trial's mean against those of the update; soft_dtw: along the best alignment in time",
    )
    tau: float = Field(default=0.1, gt=0, description="info_nce: its temperature")
    dtw_gamma: float = Field(default=0.1, gt=0, description="soft_dtw: how soft its minimum is")
    units: Literal["phonemes", "characters", "words"] = Field(
        default="phonemes", description="what CTC spells; words: those of the training texts"
    )

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not (self.alpha or self.beta or self.gamma):
            raise ValueError("alpha, beta and gamma are all 0, so there is no loss; give one a weight")
        return self


class DecodingConfig(Section, frozen=True):
    """How text is decoded in evaluations and predictions; nothing of it is trained."""

    generate: bool = Field(default=True, description="let the language model write the text")
    num_beams: int = Field(default=1, ge=1, description="of the language model; 1: greedy")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens that it writes at most")
    ctc_beams: int = Field(
        default=1, ge=1, description="prefixes that CTC's search keeps; 1: the best path, greedy"
    )
    control: Literal["none", "shuffled", "no_brain"] = Field(
        default="none",
        description="what text is decoded from instead of the trial's own activity; shuffled: another "
        "trial's of the split; no_brain: nothing, the language model writes after its prompt alone",
    )


class Config(RunConfig, frozen=True):
    """A brain-to-text experiment."""

    AFTER_TRAINING: ClassVar[tuple[str, ...]] = ("decoding",)

    task: str = "brain_text"
    data: BrainTextDataConfig = BrainTextDataConfig()
    model: ModelConfig = ModelConfig()
    objective: BrainTextObjectiveConfig = BrainTextObjectiveConfig()
    decoding: DecodingConfig = DecodingConfig()

    @model_validator(mode="after")
    def _control_has_a_writer(self) -> Self:
        if self.decoding.control == "no_brain" and not (self.objective.beta and self.decoding.generate):
            raise ValueError(
                "decoding.control=no_brain is the language model's writing without a brain; it needs "
                "objective.beta above 0 and decoding.generate=true"
            )
        return self

    def global_terms(self) -> tuple[str, ...]:
        """Return the alignment where it compares trials."""
        return ("align",) if self.objective.alpha and self.objective.align == "info_nce" else ()


_LR_FLOOR = Spelling(instead="write training.min_lr_fraction, lr_min / lr_max")

# guide's path → our path: the flat keys of its training_args.yaml. The cosine ends with the run here, so its
# own length (`lr_decay_steps`) has no key.
ALIASES = {
    **at_top("num_training_batches", "weight_decay", "grad_norm_clip_value", "use_amp"),
    **at_top("lr_scheduler_type", "lr_warmup_steps"),
    "lr_max": "training.learning_rate",
    "lr_min": _LR_FLOOR,
    "lr_max_day": "training.parameters.day_*.learning_rate",
    "lr_min_day": _LR_FLOOR,
    "lr_warmup_steps_day": "training.parameters.day_*.warmup_steps",
    "weight_decay_day": "training.parameters.day_*.weight_decay",
    "use_multi_gpu": "training.distributed",
    "early_stopping_val_steps": "training.early_stopping_patience",
    "batches_per_val_step": "training.validate_every.steps",
    "batches_per_train_log": "logging.log_every_n_steps",
    "save_best_checkpoint": "checkpoints.save_best",
    "save_final_model": "checkpoints.save_last",
    "cache_dir": "data.embed.cache_dir",
    "dataset.batch_size": "training.batch_size",
    "dataset.days_per_batch": Spelling("data.groups_per_batch", also={"data.group_by": "session"}),
    "dataset.dataset_dir": "data.path",
    "dataset.num_dataloader_workers": Spelling("data.read_threads", loader_workers),
    **{f"dataset.data_transforms.{key}": f"data.transforms.{key}" for key in TransformsConfig.model_fields},
    "dataset.data_transforms.random_walk_axis": Spelling(instead="the random walk goes over time"),
    "alpha": "objective.alpha",
    "beta": "objective.beta",
    "model.rnn_trainable": Spelling(instead="write training.parameters: {gru: {freeze: true}} to freeze it"),
    "model.input_network.input_layer_dropout": "model.input_dropout",
    "model.input_network.input_trainable": Spelling(
        instead="write training.parameters: {day_layers: {freeze: true}} to freeze them"
    ),
    "model.n_input_features": Spelling(instead="leave it out: the dataset says how many there are"),
}
