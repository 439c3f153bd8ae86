"""Audio targets as columns: a synthesizer makes speech of each text, a tower makes tokens of the speech.

Each distinct sentence is computed once and cached (`data/embed.py`); training reads the column `audio`.
"""

from pathlib import Path

from voxray.core.embedder import Embedder
from voxray.core.schema import Column
from voxray.tasks.brain_text.config import QWEN2_AUDIO, TINY, TONES, AudioTargetConfig

TOWER_DIM = 1280  # of Qwen2-Audio
_BUILT_IN = {TINY: "1", TONES: "1"}  # counted up when what they make changes


def audio_columns(config: AudioTargetConfig | None) -> dict[str, Column]:
    """Return the column of the targets, where they are asked for."""
    if config is None:
        return {}
    dim = TOWER_DIM if config.tower == QWEN2_AUDIO else None
    return {"audio": Column("float32", (None, dim), unit="audio tower's tokens of 40 ms", ragged=True)}


def audio_embedders(config: AudioTargetConfig | None) -> list[Embedder]:
    """Return the two frozen networks; the speech between them is cached too and no column of the dataset."""
    if config is None:
        return []
    tts, tts_revision = _named(config.tts, config.tts_revision)
    tower, tower_revision = _named(config.tower, config.tower_revision)
    speech = Embedder(
        "voxray.nn.speech:Speech",
        tts,
        ("text",),
        {"speech": Column("int16", (None,), ragged=True)},
        revision=tts_revision,
        options={"seed": config.seed},
    )
    return [
        speech,
        Embedder(
            "voxray.nn.speech:Tower",
            tower,
            ("speech",),
            audio_columns(config),
            revision=tower_revision,
            dtype=config.dtype,
        ),
    ]


def _named(name: str, revision: str) -> tuple[str, str]:
    """Return a network's id and revision: a folder's bytes say what it is, without one."""
    if name in _BUILT_IN:
        return name, _BUILT_IN[name]
    return (str(Path(name).absolute()), "") if Path(name).is_dir() else (name, revision)
