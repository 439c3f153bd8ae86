"""The text side of Qwen2-Audio: its projector and language model, with the tokenizer, without its tower.

transformers is imported when it is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxray.nn.hub import loading_problem

TINY = "tiny"
_KIND = "qwen2_audio"
_END = "<|end|>"


class TextSide(nn.Module):
    """`projector` takes audio embeddings to the width of `lm`, a causal language model of transformers."""

    def __init__(self, projector: nn.Module, lm: Any) -> None:
        """Hold both."""
        super().__init__()
        self.projector, self.lm = projector, lm


@dataclass(frozen=True)
class SpeechLlm:
    """The networks, the tokenizer, and `end`, the token that ends a text."""

    network: TextSide
    tokenizer: Any
    end: int
    embedding_dim: int  # what the projector takes


def load_tokenizer(source: str, revision: str) -> Any:
    """Return the tokenizer alone. Raises ValueError, a sentence, where that cannot be done."""
    from transformers import AutoTokenizer

    if source == TINY:
        return tiny_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(source, **_options(source, revision))
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(loading_problem(source, error)) from error


def end_token(tokenizer: Any) -> int:
    """Return the token that ends a text."""
    assert tokenizer.eos_token_id is not None
    return int(tokenizer.eos_token_id)


def load_speech_llm(source: str, revision: str, dtype: str, embedding_dim: int | None = None) -> SpeechLlm:
    """Load it from a folder or the hub; `tiny` is built from a config, for embeddings of `embedding_dim`.

    Raises ValueError, a sentence, where that cannot be done.
    """
    from transformers import AutoConfig, Qwen2AudioForConditionalGeneration

    if source == TINY:
        return _without_tower(tiny_network(embedding_dim), tiny_tokenizer())
    options = _options(source, revision)
    try:
        kind: Any = AutoConfig.from_pretrained(source, **options).model_type
        if kind != _KIND:
            raise ValueError(f"it is a {kind}, and a {_KIND} is needed")
        network: Any = Qwen2AudioForConditionalGeneration.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(loading_problem(source, error)) from error
    return _without_tower(network, load_tokenizer(source, revision))


def tiny_network(embedding_dim: int | None = None, seed: int = 0, seconds: int = 8) -> Any:
    """Return the whole model with random weights, its tower `speech.tiny_tower_parts` for `seconds` of
    speech; the projector takes embeddings of `embedding_dim`, by default the tower's.
    """
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    from voxray.nn.speech import tiny_tower_parts

    text = {
        "model_type": "qwen2",
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    tower, _ = tiny_tower_parts(seed, seconds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen2AudioConfig(audio_config=tower.config.to_dict(), text_config=text)
        network: Any = Qwen2AudioForConditionalGeneration(config)
        network.model.audio_tower.load_state_dict(tower.state_dict())
        if embedding_dim is not None:
            width = network.model.multi_modal_projector.linear.out_features
            network.model.multi_modal_projector.linear = nn.Linear(embedding_dim, width)
    return network


def tiny_tokenizer() -> Any:
    """Return a tokenizer with a token per byte, and token 0 at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate([_END, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END)


def _without_tower(whole: Any, tokenizer: Any) -> SpeechLlm:
    """Return the parts of a Qwen2AudioForConditionalGeneration behind its tower: targets are columns of the
    dataset, and the whole model generates nothing without a tower.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(whole.config.text_config)
    lm.model, lm.lm_head = whole.model.language_model, whole.lm_head
    projector = whole.model.multi_modal_projector
    return SpeechLlm(
        TextSide(projector, lm), tokenizer, end_token(tokenizer), int(projector.linear.in_features)
    )


def _options(source: str, revision: str) -> dict[str, Any]:
    return {} if Path(source).is_dir() else {"revision": revision}
