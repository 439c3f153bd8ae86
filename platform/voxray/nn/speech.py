"""Frozen networks from text to audio embeddings: a synthesizer, then Qwen2-Audio's tower (DOMAINS.md S1.a).

Each is a factory of `core.embedder.Embedder`. transformers is imported when a network is loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.nn.hub import loading_problem

SAMPLING_RATE = 16_000  # of speech, everywhere here; Whisper's features are made for it
_PCM = 32767.0
TONES, TINY = "tones", "tiny"
_TONE_S, _GAP_S = 0.06, 0.012
_LOW_HZ, _STEP = 220.0, 2 ** (1 / 6)
_LETTERS = "abcdefghijklmnopqrstuvwxyz'-"
_TOWER = "audio_tower."


class Speech:
    """`text` → `speech`, ragged int16 [S] at 16 kHz; an empty text has none.

    By a VITS model (a hub's id or a folder), by `tiny`, one that is built from a config, or by `tones`: each
    letter a chord of two tones, each space a silence. VITS varies what it says: its generator is seeded by
    the text and `seed`, so a text always sounds the same.
    """

    def __init__(self, model_id: str, revision: str, dtype: str, device: str, seed: int = 0) -> None:
        """Load it. Raises ValueError, a sentence, where that cannot be done."""
        self._seed, self._device = seed, device
        self._model, self._tokenizer = (None, None) if model_id == TONES else _vits(model_id, revision)
        if self._model is not None:
            self._model = self._model.to(device, getattr(torch, dtype)).eval()

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
        """Return the speech of B texts, each made alone."""
        return {"speech": [self._spoken(str(text)) for text in columns["text"]]}

    def _spoken(self, text: str) -> np.ndarray:
        if not any(letter.isalnum() for letter in text):
            return np.zeros(0, np.int16)
        wave_S = tones(text) if self._model is None else self._synthesized(text)
        return np.rint(np.clip(wave_S, -1, 1) * _PCM).astype(np.int16)

    def _synthesized(self, text: str) -> np.ndarray:
        digest = hashlib.blake2b(f"{self._seed}/{text}".encode(), digest_size=7).digest()
        assert self._tokenizer is not None
        assert self._model is not None
        tokens = self._tokenizer(text, return_tensors="pt").to(self._device)
        with torch.random.fork_rng(devices=[0] if self._device == "cuda" else []), torch.inference_mode():
            torch.manual_seed(int.from_bytes(digest, "little"))
            return self._model(**tokens).waveform[0].float().cpu().numpy()


def tones(text: str) -> np.ndarray:
    """Return float32 [S]: 72 ms per character, for a letter two tones that no other letter has."""
    time_S = np.arange(round(_TONE_S * SAMPLING_RATE)) / SAMPLING_RATE
    ramp_S = np.minimum(1, np.minimum(time_S, time_S[::-1]) / 0.008)
    gap_S = np.zeros(round(_GAP_S * SAMPLING_RATE))
    pieces: list[np.ndarray] = []
    for letter in " ".join(text.casefold().split()):
        if letter in _LETTERS:
            high, low = divmod(_LETTERS.index(letter), 7)
            hertz = (_LOW_HZ * _STEP**low, 4 * _LOW_HZ * _STEP ** (2 * high))
            chord_S = sum(np.sin(2 * np.pi * each * time_S) for each in hertz)
            pieces += [0.4 * ramp_S * chord_S, gap_S]
        elif letter == " ":
            pieces += [np.zeros_like(time_S), gap_S]
    return np.concatenate(pieces, dtype=np.float32)


class Tower:
    """`speech` int16 [S] → `audio`, ragged float32 [A, D]: the tokens of Qwen2-Audio's tower, 40 ms each.

    Speech is padded as the tower asks for (30 s); tokens of padding are masked inside and left out behind.
    """

    def __init__(self, model_id: str, revision: str, dtype: str, device: str) -> None:
        """Load the tower alone. Raises ValueError, a sentence, where that cannot be done."""
        self._dtype, self._device = getattr(torch, dtype), device
        tower, self._features = _tower(model_id, revision, self._dtype)
        self._tower = tower.to(device).eval().requires_grad_(False)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
        """Return the tokens of B pieces of speech. Raises ValueError for one that is too long."""
        waves = [np.asarray(wave, np.float32) / _PCM for wave in columns["speech"]]
        longest = int(self._features.n_samples)
        if too_long := [len(wave) for wave in waves if len(wave) > longest]:
            raise ValueError(
                f"a text is {too_long[0] / SAMPLING_RATE:.0f} s of speech, and the tower takes "
                f"{longest / SAMPLING_RATE:.0f} s; leave the row out"
            )
        heard = [wave if len(wave) else np.zeros(1, np.float32) for wave in waves]
        given = self._features(
            heard, sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt"
        )
        with torch.inference_mode():
            made_BAD = tower_tokens(
                self._tower,
                given.input_features.to(self._device, self._dtype),
                given.attention_mask.sum(1).to(self._device),
            )
        lengths = num_tokens(given.attention_mask.sum(1)).tolist()
        return {
            "audio": [
                made_AD[: length if len(wave) else 0].float().cpu().numpy()
                for made_AD, length, wave in zip(made_BAD, lengths, waves, strict=True)
            ]
        }


def num_tokens(num_frames_B: torch.Tensor) -> torch.Tensor:
    """Return how many tokens so many valid mel frames are: two convolutions, then pooling by two."""
    return ((num_frames_B - 1) // 2 + 1 - 2) // 2 + 1


def tower_tokens(tower: Any, mel_BMN: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
    """Return the tower's tokens [B, A, D]; attention leaves padding out, as Qwen2-Audio itself does."""
    num_places_B = (num_frames_B - 1) // 2 + 1  # behind the convolutions
    most = (mel_BMN.shape[-1] - 1) // 2 + 1
    is_valid_BN = torch.arange(most, device=mel_BMN.device) < num_places_B[:, None]
    blocked = torch.finfo(mel_BMN.dtype).min
    mask_B11N = torch.zeros(is_valid_BN.shape, dtype=mel_BMN.dtype, device=mel_BMN.device)
    mask_B1NN = mask_B11N.masked_fill(~is_valid_BN, blocked)[:, None, None].expand(-1, 1, most, -1)
    return tower(mel_BMN, attention_mask=mask_B1NN).last_hidden_state


def tiny_tower_parts(seed: int = 0, seconds: int = 8) -> tuple[Any, Any]:
    """Return a tower of 48 numbers with random weights, and its features of `seconds` of speech."""
    from transformers import Qwen2AudioEncoderConfig, WhisperFeatureExtractor
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    config = Qwen2AudioEncoderConfig(
        num_mel_bins=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        d_model=48,
        max_source_positions=50 * seconds,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = Qwen2AudioEncoder(config)
    return tower, WhisperFeatureExtractor(feature_size=32, chunk_length=seconds)


def _vits(model_id: str, revision: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, VitsModel

    if model_id == TINY:
        return _tiny_vits()
    options: dict[str, Any] = {} if Path(model_id).is_dir() else {"revision": revision}
    try:
        model: Any = VitsModel.from_pretrained(model_id, use_safetensors=True, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(model_id, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(loading_problem(model_id, error)) from error
    if int(model.config.sampling_rate) != SAMPLING_RATE:
        raise ValueError(f"'{model_id}' speaks at {model.config.sampling_rate} Hz; one of 16,000 is needed")
    return model, tokenizer


def _tiny_vits(seed: int = 0) -> tuple[Any, Any]:
    from transformers import VitsConfig, VitsModel

    config = VitsConfig(
        vocab_size=len(_LETTERS) + 2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        window_size=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=33,
        posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        depth_separable_num_layers=2,
        wavenet_kernel_size=3,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        sampling_rate=SAMPLING_RATE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VitsModel(config), _Letters()


class _Letters:
    """The tiny synthesizer's tokens: a number per letter, 1 for any other character."""

    def __call__(self, text: str, return_tensors: str) -> Any:
        """Return input_ids and attention_mask [1, N]."""
        from transformers import BatchEncoding

        numbers = [_LETTERS.find(letter) + 2 for letter in text.casefold()]
        ids_1N = torch.tensor([numbers])
        return BatchEncoding({"input_ids": ids_1N, "attention_mask": torch.ones_like(ids_1N)})


def _tower(model_id: str, revision: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, WhisperFeatureExtractor
    from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

    if model_id == TINY:
        tower, features = tiny_tower_parts()
        return tower.to(dtype), features
    options: dict[str, Any] = {} if Path(model_id).is_dir() else {"revision": revision}
    try:
        config: Any = AutoConfig.from_pretrained(model_id, **options)
        features: Any = WhisperFeatureExtractor.from_pretrained(model_id, **options)
        weights = _weights_below(_TOWER, model_id, revision)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(loading_problem(model_id, error)) from error
    if not weights or not hasattr(config, "audio_config"):
        raise ValueError(f"'{model_id}' has no audio tower of Qwen2-Audio; name a model that has one")
    tower: Any = Qwen2AudioEncoder(config.audio_config)
    tower.load_state_dict(weights)
    return tower.to(dtype), features


def _weights_below(prefix: str, model_id: str, revision: str) -> dict[str, torch.Tensor]:
    """Return the weights whose names have `prefix`, without it; only files that hold some are fetched."""
    from safetensors import safe_open

    index = _file(model_id, revision, "model.safetensors.index.json")
    if index is None:
        files = {"model.safetensors"}
    else:
        held: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {file for name, file in held.items() if prefix in name}
    found: dict[str, torch.Tensor] = {}
    for name in sorted(files):
        path = _file(model_id, revision, name)
        if path is None:
            raise OSError(f"it has no {name}")
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                if prefix in key:
                    found[key.partition(prefix)[2]] = file.get_tensor(key)
    return found


def _file(model_id: str, revision: str, name: str) -> Path | None:
    """Return a file of a folder or of the hub; None where there is none."""
    if Path(model_id).is_dir():
        return Path(model_id, name) if Path(model_id, name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model_id, name, revision=revision))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None
