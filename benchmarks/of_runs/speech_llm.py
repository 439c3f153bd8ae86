"""A tiny Qwen2-Audio that reads speech, for synthetic recordings: tower, projector and language model.

    python benchmarks/of_runs/speech_llm.py OUT --size small --seed 0 --steps 3000

It learns, on a CPU, to write sentences of the synthetic lexicon (`tasks/brain_text/speech.py`) from what a
synthesizer makes of them, and is saved as transformers saves a model. Then it is frozen:

    voxray train brain_text/planted_audio_llm data.prepare.audio.tower=OUT model.llm.source=OUT

The sentences are drawn by another seed than those of the recordings; a text-prior-only control is how well
the same model writes with the speech left out, which is printed too.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxray.nn.speech import SAMPLING_RATE, num_tokens, tiny_tower_parts, tones, tower_tokens
from voxray.nn.speech_llm import end_token, tiny_network, tiny_tokenizer
from voxray.tasks.brain_text import scores
from voxray.tasks.brain_text.speech import Lexicon
from voxray.tasks.brain_text.synth import SYNTH_SIZES, sentence_text

# Shapes: B sentences, M mel bands, N frames, A audio tokens, E the language model's width, L text tokens.
PROMPT = "Transcript: "
NOISE = 0.02  # of the waveform, so that the tower does not lean on silence
NUM_TESTED = 100


class Sentences:
    """Sentences as the synthetic recordings have them, by a generator of their own."""

    def __init__(self, size: str, seed: int) -> None:
        self._spec = SYNTH_SIZES[size]
        self._lexicon = Lexicon(self._spec.num_words)
        self._rng = np.random.default_rng([seed, 8])

    def draw(self, num: int) -> list[str]:
        """Return texts."""
        first, last = self._spec.words
        lengths = self._rng.integers(first, last + 1, num)
        chosen = (self._rng.choice(len(self._lexicon.words), n, p=self._lexicon.prior_W) for n in lengths)
        return [sentence_text([self._lexicon.words[word] for word in words]) for words in chosen]


class Reader:
    """The whole tiny model and what it is fed with."""

    def __init__(self, seed: int) -> None:
        self.network = tiny_network(seed=seed)
        self.features = tiny_tower_parts(seed)[1]
        self.tokenizer = tiny_tokenizer()
        self.end = end_token(self.tokenizer)
        prompt: list[int] = self.tokenizer(PROMPT, add_special_tokens=False).input_ids
        self._prompt = torch.tensor(prompt)

    def loss(self, texts: list[str], rng: np.random.Generator) -> torch.Tensor:
        """Return the mean cross-entropy of the texts' tokens after their speech and the prompt."""
        tokens = [[*self.tokenizer(text).input_ids, self.end] for text in texts]
        audio, lengths = self._audio(texts, rng)
        embed = self.network.get_input_embeddings()
        width = max(int(n) + len(self._prompt) + len(t) for n, t in zip(lengths, tokens, strict=True))
        given = torch.zeros(len(texts), width, audio.shape[-1])
        labels = torch.full((len(texts), width), -100)
        mask = torch.zeros(len(texts), width, dtype=torch.long)
        for row, (num, own) in enumerate(zip(lengths.tolist(), tokens, strict=True)):
            text = torch.cat([self._prompt, torch.tensor(own)])
            given[row, : num + len(text)] = torch.cat([audio[row, :num], embed(text)])
            labels[row, num + len(self._prompt) : num + len(text)] = torch.tensor(own)
            mask[row, : num + len(text)] = 1
        return self.network(inputs_embeds=given, attention_mask=mask, labels=labels).loss

    def _audio(self, texts: list[str], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projected tokens [B, A, E] of the texts' speech, and how many are each one's."""
        waves = [wave + NOISE * rng.standard_normal(len(wave)) for wave in map(tones, texts)]
        made = self.features(
            waves, sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt"
        )
        frames = made.attention_mask.sum(1)
        audio = tower_tokens(self.network.model.audio_tower, made.input_features, frames)
        return self.network.model.multi_modal_projector(audio), num_tokens(frames)

    @torch.no_grad()
    def write(self, text: str, rng: np.random.Generator, with_speech: bool = True) -> str:
        """Return what the model writes for a sentence's speech, or for the prompt alone."""
        prompt = self.network.get_input_embeddings()(self._prompt)[None]
        audio, lengths = self._audio([text], rng)
        given = torch.cat([audio[:, : int(lengths[0]) if with_speech else 0], prompt], 1)
        options: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": self.end}
        mask = torch.ones(given.shape[:2], dtype=torch.long)
        written = self._generate(given, mask, options)
        return self.tokenizer.decode(written[0], skip_special_tokens=True)

    def _generate(self, given: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return self.network.generate(
            inputs_embeds=given, attention_mask=mask, pad_token_id=self.end, **options
        )

    def save(self, out: Path) -> None:
        """Write the folder that `tower` and `llm.source` name."""
        for part in (self.network, self.tokenizer, self.features):
            part.save_pretrained(out)


def batches(sentences: Sentences, steps: int, batch_size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the sentences of each update."""
    for step in range(steps):
        yield step, sentences.draw(batch_size)


def train(
    reader: Reader, sentences: Sentences, steps: int, batch_size: int, rng: np.random.Generator
) -> None:
    """Train all of it by AdamW, one cycle."""
    optimizer = torch.optim.AdamW(reader.network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    begun, total = time.monotonic(), 0.0
    reader.network.train()
    for step, texts in batches(sentences, steps, batch_size):
        optimizer.zero_grad()
        loss = reader.loss(texts, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {total / 100:.3f}, {time.monotonic() - begun:.0f} s", flush=True)
            total = 0.0
    reader.network.eval()


def main() -> None:
    """Train, test, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=tuple(SYNTH_SIZES), default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    rng = np.random.default_rng(asked.seed)
    reader, sentences = Reader(asked.seed), Sentences(asked.size, asked.seed)
    train(reader, sentences, asked.steps, asked.batch_size, rng)
    tested = sentences.draw(NUM_TESTED)
    for name, with_speech in (("from speech", True), ("from the prompt alone", False)):
        written = [reader.write(text, rng, with_speech) for text in tested]
        errors = scores.text_errors(written, tested)
        print(f"{name}: WER {errors['wer'].rate():.3f}, exact {errors['exact'].rate():.3f}", flush=True)
    reader.save(asked.out)


if __name__ == "__main__":
    main()
