"""The frozen language model behind the encoder: [brain | prompt | text] → the text's cross-entropy; text.

Shapes: B trials, P steps of the brain's embedding, D its width, E the language model's width, Q tokens of the
prompt, L of the text, S of the whole sequence, V the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from voxray.config.errors import InputError
from voxray.core.frozen_part import FrozenPart
from voxray.nn.speech_llm import SpeechLlm, load_speech_llm
from voxray.tasks.brain_text.config import LlmConfig, LoraConfig


class LanguageModel(nn.Module):
    """Qwen2-Audio's projector and language model: frozen, but for low-rank adapters where they are asked for.

    Each row's sequence ends at the same place: padding stands before the brain's embedding, so that the text
    follows the prompt in every row. Positions are counted without padding.
    """

    def __init__(self, config: LlmConfig, embedding_dim: int | None) -> None:
        """Load it, for embeddings of `embedding_dim` where that is known. Raises InputError where it cannot
        be loaded or takes others.
        """
        super().__init__()
        try:
            loaded: SpeechLlm = load_speech_llm(config.source, config.revision, config.dtype, embedding_dim)
        except ValueError as error:
            raise InputError(f"model.llm.source: {error}") from error
        self.embedding_dim = loaded.embedding_dim
        if embedding_dim not in (None, loaded.embedding_dim):
            raise InputError(
                f"model.llm.source: '{config.source}' takes embeddings of {loaded.embedding_dim} numbers, "
                f"and the audio targets have {embedding_dim}; prepare them with its own tower"
            )
        self._tokenizer, self._end = loaded.tokenizer, loaded.end
        self._prompt: list[int] = loaded.tokenizer(config.prompt, add_special_tokens=False).input_ids
        adapt = _adapters(config.lora) if config.lora.rank else None
        self.frozen = FrozenPart(loaded.network, config.source, adapt)

    @property
    def _lm(self) -> Any:
        return self.frozen.network.lm

    def loss(
        self,
        brain_BPD: torch.Tensor,
        num_steps_B: torch.Tensor,
        tokens_BL: torch.Tensor,
        num_tokens_B: torch.Tensor,
    ) -> torch.Tensor:
        """Return the cross-entropy [] summed over the texts' tokens. A row without steps has none; neither
        brain nor prompt is a target.
        """
        prefix_BSE, is_there_BS = self._prefix(brain_BPD, num_steps_B)
        text_BLE = self._lm.get_input_embeddings()(tokens_BL).to(prefix_BSE.dtype)
        is_text_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < num_tokens_B[:, None]
        given_BSE = torch.cat([prefix_BSE, text_BLE], 1)
        mask_BS = torch.cat([is_there_BS, is_text_BL], 1)
        states_BSE = self._lm.model(
            inputs_embeds=given_BSE,
            attention_mask=mask_BS.long(),
            position_ids=(mask_BS.long().cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        # the state before a token foretells it; only these meet the vocabulary
        before_BLE = states_BSE[:, prefix_BSE.shape[1] - 1 : -1]
        counts_BL = is_text_BL & (num_steps_B > 0)[:, None]
        logits_NV = self._lm.lm_head(before_BLE[counts_BL]).float()
        return F.cross_entropy(logits_NV, tokens_BL[counts_BL], reduction="sum")

    def write(
        self, brain_BPD: torch.Tensor, num_steps_B: torch.Tensor, num_beams: int, max_new_tokens: int
    ) -> list[str]:
        """Return the text that the language model writes for each row, empty for one without steps."""
        texts = self._written(brain_BPD, num_steps_B, num_beams, max_new_tokens)
        return [text if num else "" for text, num in zip(texts, num_steps_B.tolist(), strict=True)]

    @torch.no_grad()
    def _written(
        self, brain_BPD: torch.Tensor, num_steps_B: torch.Tensor, num_beams: int, max_new_tokens: int
    ) -> list[str]:
        prefix_BSE, is_there_BS = self._prefix(brain_BPD, num_steps_B)
        tokens_BL = self._lm.generate(
            inputs_embeds=prefix_BSE,
            attention_mask=is_there_BS.long(),
            num_beams=num_beams,
            early_stopping=num_beams > 1,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=self._end,
        )
        texts: Sequence[str] = self._tokenizer.batch_decode(tokens_BL, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def write_unread(self, num_beams: int, max_new_tokens: int) -> str:
        """Return what the language model writes after the prompt alone, with no brain before it."""
        network: Any = self.frozen.network
        nothing_BPD = torch.zeros(1, 0, self.embedding_dim, device=network.projector.linear.weight.device)
        num_steps_B = torch.zeros(1, dtype=torch.long, device=nothing_BPD.device)
        return self._written(nothing_BPD, num_steps_B, num_beams, max_new_tokens)[0]

    def _prefix(
        self, brain_BPD: torch.Tensor, num_steps_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return padding, the projected brain's steps and the prompt [B, S, E], and what is no padding."""
        num_trials, most, _ = brain_BPD.shape
        projector: Any = self.frozen.network.projector
        brain_BPE = projector(brain_BPD.to(projector.linear.weight.dtype))
        step_BP = torch.arange(most, device=brain_BPE.device) - (most - num_steps_B[:, None])
        moved_BPE = brain_BPE.gather(1, step_BP.clamp(min=0)[..., None].expand_as(brain_BPE))
        prompt_Q = torch.tensor(self._prompt, dtype=torch.long, device=brain_BPE.device)
        prompt_BQE = self._lm.get_input_embeddings()(prompt_Q).expand(num_trials, -1, -1).to(brain_BPE.dtype)
        is_prompt_BQ = torch.ones(num_trials, len(prompt_Q), dtype=torch.bool, device=brain_BPE.device)
        return torch.cat([moved_BPE, prompt_BQE], 1), torch.cat([step_BP >= 0, is_prompt_BQ], 1)


def _adapters(config: LoraConfig) -> Any:
    """Return what puts low-rank adapters into the language model (Hu et al. 2021, arXiv 2106.09685)."""

    def adapt(network: Any) -> None:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model

        wanted = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.modules))
        try:
            inject_adapter_in_model(wanted, network.lm.model)
        except ValueError as error:
            raise InputError(
                f"model.llm.lora.modules: the language model has no layers {', '.join(config.modules)}; "
                "usual ones are q_proj, k_proj, v_proj, o_proj"
            ) from error

    return adapt
