"""A tiny Qwen2-Audio that reads speech, for synthetic recordings: tower, projector and language model.

    python benchmarks/of_runs/speech_llm.py OUT --size small --seed 0

It learns, on a CPU, to write sentences of the synthetic lexicon (`tasks/brain_text/speech.py`) from what a
synthesizer makes of them, and is saved as transformers saves a model. Then it is frozen:

    voxray train brain_text/planted_audio_llm data.prepare.audio.tower=OUT model.llm.source=OUT

It learns to read from sentences of one word first, then of more, and its audio tokens spell their letters by
CTC on the side: of whole sentences alone it learns how they are written and never to listen. Its audio tokens
come slower and faster than speech, as those of a brain will.

The sentences are drawn by another seed than those of the recordings. A share of them is read without speech,
so that what the model writes after the prompt alone is its own best guess: the text prior that a control asks
for (`decoding.control=no_brain`). At the end it prints its error rate from speech, from the prompt alone, and
from the speech of another sentence.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from voxray.nn.speech import SAMPLING_RATE, num_tokens, tiny_tower_parts, tones, tower_tokens
from voxray.nn.speech_llm import end_token, tiny_network, tiny_tokenizer
from voxray.tasks.brain_text import scores
from voxray.tasks.brain_text.speech import Lexicon
from voxray.tasks.brain_text.synth import SYNTH_SIZES, SynthSize, sentence_text

# Shapes: B sentences, M mel bands, N frames, A audio tokens, E the language model's width, S a row's places.
PROMPT = "Transcript: "
NOISE = 0.02  # of the waveform, so that the tower does not lean on silence
UNHEARD = 0.1  # share of sentences read without speech
LEARNING_RATE = 3e-3
SHORT = (1, 2)  # words of the sentences that it begins with, for a share of the steps
SHORT_STEPS = 0.4
TEMPI = (0.7, 2.5)  # audio tokens are stretched by so much: brain tokens come at another pace than speech's
HEARD_AT_ONCE = 64


class Sentences:
    """Sentences as the synthetic recordings have them, by a generator of their own."""

    def __init__(self, size: SynthSize, seed: int) -> None:
        self._size, self._lexicon = size, Lexicon(size.num_words)
        self._rng = np.random.default_rng([seed, 8])

    def draw(self, num: int, words: tuple[int, int] | None = None) -> list[str]:
        """Return texts of so many words, by default as many as the recordings' have."""
        first, last = words or self._size.words
        lengths = self._rng.integers(first, last + 1, num)
        chosen = (self._rng.choice(len(self._lexicon.words), n, p=self._lexicon.prior_W) for n in lengths)
        return [sentence_text([self._lexicon.words[word] for word in words]) for words in chosen]

    def longest_s(self) -> int:
        """Return how long the longest sentence lasts, in whole seconds."""
        longest = max(self._lexicon.words, key=len)
        return math.ceil(len(tones(" ".join([longest] * self._size.words[1]))) / SAMPLING_RATE)


class Heard(NamedTuple):
    """Sentences and the log-mel spectra [B, M, N] of their speech, of which `num_frames_B` are no padding."""

    texts: list[str]
    mel_BMN: torch.Tensor
    num_frames_B: torch.Tensor

    def take(self, rows: np.ndarray) -> "Heard":
        """Return some of them."""
        return Heard([self.texts[row] for row in rows], self.mel_BMN[rows], self.num_frames_B[rows])


class Reader:
    """The whole tiny model and what it is fed with."""

    def __init__(self, seed: int, seconds: int) -> None:
        self.network = tiny_network(seed=seed, seconds=seconds)
        self.features = tiny_tower_parts(seed, seconds)[1]
        self.tokenizer = tiny_tokenizer()
        self.end = end_token(self.tokenizer)
        width = self.network.get_input_embeddings().embedding_dim
        self.speller = torch.nn.Linear(width, len(self.tokenizer))  # for CTC; blank is the end's number
        prompt: list[int] = self.tokenizer(PROMPT, add_special_tokens=False).input_ids
        self._prompt = torch.tensor(prompt)

    def hear(self, texts: list[str], rng: np.random.Generator) -> Heard:
        """Return the texts with their speech, noise on it."""
        spectra, frames = [], []
        for start in range(0, len(texts), HEARD_AT_ONCE):
            waves = map(tones, texts[start : start + HEARD_AT_ONCE])
            noisy = [wave + NOISE * rng.standard_normal(len(wave), dtype=np.float32) for wave in waves]
            made = self.features(
                noisy, sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt"
            )
            spectra.append(made.input_features)
            frames.append(made.attention_mask.sum(1))
        return Heard(texts, torch.cat(spectra), torch.cat(frames))

    def loss(self, heard: Heard, is_unheard_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross-entropy of the texts' tokens after their speech and the prompt (of some rows
        after the prompt alone), and CTC's loss per token of what the audio tokens spell.
        """
        tokens = [torch.tensor([*self.tokenizer(text).input_ids, self.end]) for text in heard.texts]
        audio_BAE, lengths_B = self._audio(heard)
        spelling = self._spelling(audio_BAE, lengths_B, [own[:-1] for own in tokens])
        audio_BAE, lengths_B = stretched(audio_BAE, lengths_B)
        lengths = torch.where(torch.from_numpy(is_unheard_B), 0, lengths_B).tolist()
        width = max(num + len(self._prompt) + len(own) for num, own in zip(lengths, tokens, strict=True))
        given_BSE = torch.zeros(len(tokens), width, audio_BAE.shape[-1])
        labels_BS = torch.full((len(tokens), width), -100)
        mask_BS = torch.zeros(len(tokens), width, dtype=torch.long)
        embed = self.network.get_input_embeddings()
        for row, (num, own) in enumerate(zip(lengths, tokens, strict=True)):
            text = torch.cat([self._prompt, own])
            given_BSE[row, : num + len(text)] = torch.cat([audio_BAE[row, :num], embed(text)])
            labels_BS[row, num + len(self._prompt) : num + len(text)] = own
            mask_BS[row, : num + len(text)] = 1
        written = self.network(inputs_embeds=given_BSE, attention_mask=mask_BS, labels=labels_BS).loss
        return written, spelling

    def _spelling(
        self, audio_BAE: torch.Tensor, lengths_B: torch.Tensor, tokens: list[torch.Tensor]
    ) -> torch.Tensor:
        log_ABV = self.speller(audio_BAE).log_softmax(-1).transpose(0, 1)
        nums_B = torch.tensor([len(own) for own in tokens])
        found_B = F.ctc_loss(
            log_ABV, torch.cat(tokens), lengths_B, nums_B, self.end, reduction="none", zero_infinity=True
        )
        return found_B.sum() / nums_B.sum()

    def _audio(self, heard: Heard) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projected tokens [B, A, E] of the speech, and how many are each one's."""
        audio = tower_tokens(self.network.model.audio_tower, heard.mel_BMN, heard.num_frames_B)
        return self.network.model.multi_modal_projector(audio), num_tokens(heard.num_frames_B)

    @torch.no_grad()
    def write(self, heard: Heard, with_speech: bool = True) -> list[str]:
        """Return what the model writes for each sentence's speech, or for the prompt alone."""
        prompt = self.network.get_input_embeddings()(self._prompt)
        audio_BAE, lengths_B = self._audio(heard)
        return [
            self._written(torch.cat([audio_AE[: num if with_speech else 0], prompt])[None])
            for audio_AE, num in zip(audio_BAE, lengths_B.tolist(), strict=True)
        ]

    def _written(self, given_BSE: torch.Tensor) -> str:
        options: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False}
        mask_BS = torch.ones(given_BSE.shape[:2], dtype=torch.long)
        tokens = self.network.generate(
            inputs_embeds=given_BSE,
            attention_mask=mask_BS,
            eos_token_id=self.end,
            pad_token_id=self.end,
            **options,
        )
        return self.tokenizer.decode(tokens[0], skip_special_tokens=True)

    def save(self, out: Path) -> None:
        """Write the folder that `tower` and `llm.source` name."""
        for part in (self.network, self.tokenizer, self.features):
            part.save_pretrained(out)


def stretched(audio_BAE: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's tokens at another pace, which wanders by a tenth along it, and their numbers."""
    rows: list[torch.Tensor] = []
    for audio_AE, num in zip(audio_BAE, lengths_B.tolist(), strict=True):
        tempo = torch.empty(()).uniform_(*TEMPI)
        steps_A = torch.empty(max(1, round(num * float(tempo)))).uniform_(0.9, 1.1)
        place_A = (steps_A.cumsum(0) - steps_A[0]) * (num / float(steps_A.sum()))
        rows.append(audio_AE[place_A.long().clamp(max=num - 1)])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def train(
    reader: Reader, short: Heard, whole: Heard, steps: int, batch_size: int, rng: np.random.Generator
) -> None:
    """Train all of it by AdamW, one cycle; on short sentences first."""
    parameters = [*reader.network.parameters(), *reader.speller.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    begun, totals_2, every = time.monotonic(), torch.zeros(2), max(1, steps // 30)
    reader.network.train()
    for step in range(1, steps + 1):
        heard = short if step <= SHORT_STEPS * steps else whole
        rows = rng.integers(0, len(heard.texts), batch_size)
        losses_2 = torch.stack(reader.loss(heard.take(rows), rng.random(batch_size) < UNHEARD))
        optimizer.zero_grad()
        losses_2.sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        totals_2 += losses_2.detach()
        if step % every == 0:
            written, spelt = (totals_2 / every).tolist()
            took_s = time.monotonic() - begun
            print(f"step {step}: loss {written:.3f}, spelling {spelt:.3f}, {took_s:.0f} s", flush=True)
            totals_2.zero_()
    reader.network.eval()


def test(reader: Reader, heard: Heard) -> None:
    """Print the error rates of sentences that were not trained on, and of two controls."""
    written = reader.write(heard)
    ways = {
        "from speech": written,
        "from the prompt alone": reader.write(heard.take(np.arange(1)), with_speech=False) * len(written),
        "from another sentence's speech": [written[-1], *written[:-1]],
    }
    for name, texts in ways.items():
        errors = scores.text_errors(texts, heard.texts)
        print(f"{name}: WER {errors['wer'].rate():.3f}, exact {errors['exact'].rate():.3f}", flush=True)


def main() -> None:
    """Train, test, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=tuple(SYNTH_SIZES), default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--sentences", type=int, default=2000, help="that it learns from")
    parser.add_argument("--tested", type=int, default=100, help="sentences to test on")
    asked = parser.parse_args()
    if asked.out.exists():
        parser.error(
            f"'{asked.out}' exists; datasets that were made with it would no longer fit, name another"
        )
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    rng = np.random.default_rng(asked.seed)
    sentences = Sentences(SYNTH_SIZES[asked.size], asked.seed)
    reader = Reader(asked.seed, sentences.longest_s())
    short, whole = (reader.hear(sentences.draw(asked.sentences, words), rng) for words in (SHORT, None))
    train(reader, short, whole, asked.steps, asked.batch_size, rng)
    test(reader, reader.hear(sentences.draw(asked.tested), rng))
    reader.save(asked.out)


if __name__ == "__main__":
    main()
