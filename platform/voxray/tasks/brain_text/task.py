"""The brain-to-text task: a GRU over neural features, taught by audio targets, a frozen language model, CTC.

Shapes: B trials of a batch, N of a split, T time bins, P steps, D audio embedding, L tokens or units.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.batch import Batch, Columns
from voxray.core.evaluation import Evaluation, Rows, Sum
from voxray.core.losses import LossTerm, LossTerms
from voxray.core.run_config import RunConfig, Stage
from voxray.core.schema import Schema
from voxray.core.task import Summary, Task
from voxray.losses.contrastive import info_nce
from voxray.nn.speech_llm import end_token, load_tokenizer
from voxray.tasks.brain_text import objective, scores
from voxray.tasks.brain_text.config import Config
from voxray.tasks.brain_text.controls import shuffled
from voxray.tasks.brain_text.data import BrainTextBatch, BrainTextData
from voxray.tasks.brain_text.edits import marked
from voxray.tasks.brain_text.encoder import num_patches
from voxray.tasks.brain_text.floor import linear_floor
from voxray.tasks.brain_text.language import LanguageModel
from voxray.tasks.brain_text.model import BrainTextModel, Encoded
from voxray.tasks.brain_text.transforms import augmented
from voxray.tasks.brain_text.units import Units, greedy, plain_text, prefix_search, units_of

POOLED = ("pooled_brain", "pooled_audio")  # columns of what info_nce compares
SPELT = "spelt"  # column of what CTC spells, where the language model's text is what is decoded


class BrainText(BrainTextData, Task):
    """Neural activity of attempted speech → text."""

    SCORES = "decoded"
    config: Config

    def __init__(
        self, config: RunConfig, statistics: dict[str, Any] | None = None, schema: Schema | None = None
    ) -> None:
        """Take what every task takes."""
        super().__init__(config, statistics, schema)
        self._own = self.config.objective

    # --- data
    def collate(self, columns: Columns) -> BrainTextBatch:
        """Turn padded columns into tensors, with the sessions' places, the texts' tokens and their units,
        where the objective needs them. Raises InputError for a session without a layer.
        """
        batch = super().collate(columns)
        if self.config.data.transforms.standardize:
            batch = replace(batch, neural_BTF=self._standardized(batch))
        if self.config.model.day_layers:
            batch = replace(batch, day_B=torch.tensor([self._day_of(name) for name in batch.session]))
        if self._own.beta:
            batch = replace(batch, **_padded("tokens", [self._tokens(text) for text in batch.text]))
        if self._own.gamma and self._own.units == "phonemes":
            return replace(batch, units_BL=batch.phonemes_BL, num_units_B=batch.num_phonemes_B)
        if self._own.gamma:
            return replace(batch, **_padded("units", [self._units.encode(text) for text in batch.text]))
        return batch

    def _standardized(self, batch: BrainTextBatch) -> torch.Tensor:
        mean_F, std_F = self._moments
        num_bins = batch.neural_BTF.shape[1]
        is_bin_BT = torch.arange(num_bins) < batch.num_time_steps_B[:, None]
        return torch.where(is_bin_BT[..., None], (batch.neural_BTF - mean_F) / std_F, 0.0)

    @cached_property
    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each feature's mean and standard deviation; that of a silent one is 1."""
        found = self.statistics.get("neural", {})
        if "feature_mean" not in found:
            raise InputError(
                "data.transforms.standardize: the dataset's features were not measured; prepare it anew"
            )
        mean_F, std_F = (torch.tensor(found[f"feature_{name}"]) for name in ("mean", "std"))
        return mean_F, torch.where(std_F > 0, std_F, 1.0)

    @cached_property
    def _days(self) -> dict[str, int]:
        sessions: list[str] = self.statistics.get("day", {}).get("sessions", [])
        return {name: place for place, name in enumerate(sessions)}

    def _day_of(self, session: str) -> int:
        if session not in self._days:
            raise InputError(
                f"session '{session}' has no layer in the model: it is none of the {len(self._days)} "
                "sessions that were trained on; leave its trials out with data.filter, or train with "
                "model.day_layers=false"
            )
        return self._days[session]

    @cached_property
    def _units(self) -> Units:
        return units_of(self._own.units, self.statistics)

    @cached_property
    def _tokenizer(self) -> Any:
        llm = self.config.model.llm
        try:
            return load_tokenizer(llm.source, llm.revision)
        except ValueError as error:
            raise InputError(f"model.llm.source: {error}") from error

    def _tokens(self, text: str) -> list[int]:
        """Return the text's tokens and the one that ends it; none without a text."""
        text = text.strip()
        if not text:
            return []
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, end_token(self._tokenizer)]

    # --- model
    def build_model(self) -> nn.Module:
        """Build the model for the dataset's features, sessions and audio targets. Raises InputError where the
        dataset lacks what the objective needs.
        """
        columns, wanted = self.dataset_schema.columns, self.config.model.audio_embedding_dim
        num_features = columns["neural"].shape[-1]
        assert num_features is not None
        audio = columns.get("audio")
        if self._own.alpha and audio is None:
            raise InputError(
                "objective.alpha: the dataset has no audio targets; prepare it with audio={}, e.g. "
                "audio={tts: tones, tower: tiny}, or set objective.alpha=0"
            )
        stored = audio.shape[-1] if audio is not None else None
        if wanted is not None and stored not in (None, wanted):
            raise InputError(
                f"model.audio_embedding_dim={wanted}, and the dataset's audio targets have {stored} numbers; "
                "leave it out"
            )
        if self.config.model.day_layers and not self._days:
            raise InputError(
                "the dataset has no table of its training sessions; prepare it anew, or set "
                "model.day_layers=false"
            )
        num_units = len(self._units.names) if self._own.gamma else 0
        width = stored if self._own.alpha else wanted or stored
        return BrainTextModel(self.config, num_features, max(1, len(self._days)), num_units, width)

    def augment(self, batch: Batch, key: int) -> BrainTextBatch:
        """Add noise, offsets and a cut, as `data.transforms` says."""
        batch = cast(BrainTextBatch, batch)
        neural_BTF, num_bins_B = augmented(
            batch.neural_BTF, batch.num_time_steps_B, batch.position_B, key, self.config.data.transforms
        )
        return replace(batch, neural_BTF=neural_BTF, num_time_steps_B=num_bins_B)

    def example_inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the features, the trials' lengths and the sessions' places."""
        batch = cast(BrainTextBatch, batch)
        return batch.neural_BTF, batch.num_time_steps_B, batch.day_B

    # --- objective
    def normalizers(self, batch: Batch, stage: Stage) -> dict[str, torch.Tensor]:
        """Count matched steps (trials for info_nce), the texts' tokens, and the trials that CTC can spell."""
        batch, counts = cast(BrainTextBatch, batch), dict[str, torch.Tensor]()
        steps_B = self._num_steps(batch)
        if self._own.alpha:
            num_audio_B = _given(batch.num_audio_B)
            entries_B = objective.num_matched(self._own.align, steps_B, num_audio_B)
            counts["align"] = (entries_B > 0).sum() if self._own.align == "info_nce" else entries_B.sum()
        if self._own.beta:
            counts["llm"] = torch.where(steps_B > 0, _given(batch.num_tokens_B), 0).sum()
        if self._own.gamma:
            units = _given(batch.units_BL), _given(batch.num_units_B)
            counts["ctc"] = objective.alignable(steps_B, *units).sum()
        return counts

    def _num_steps(self, batch: BrainTextBatch) -> torch.Tensor:
        """Return the trials' steps; none of a row that only pads the batch."""
        model = self.config.model
        return num_patches(batch.num_time_steps_B, model.patch_size, model.patch_stride) * batch.valid_B

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> LossTerms:
        """Return alpha · align + beta · llm + gamma · ctc."""
        batch, model = cast(BrainTextBatch, batch), cast(BrainTextModel, model)
        found = self._encoded(model, batch)
        terms = self._own_terms(model, found, batch)
        if self._own.alpha and self._own.align == "info_nce":
            brain_BD, audio_BD, usable_B = self._pooled(found, batch)
            brain_ND = self.update_rows.gathered("brain", brain_BD, usable_B)
            audio_ND = self.update_rows.gathered("audio", audio_BD, usable_B)
            loss = info_nce(brain_ND, audio_ND, self._own.tau) if len(brain_ND) else brain_BD.sum() * 0
            terms["align"] = self.update_rows.term(loss, brain_ND, usable_B, self._own.alpha)
        return terms

    def _encoded(self, model: nn.Module, batch: BrainTextBatch) -> Encoded:
        found: Encoded = model(batch.neural_BTF, batch.num_time_steps_B, batch.day_B)
        return found._replace(num_steps_B=found.num_steps_B * batch.valid_B)

    def _own_terms(self, model: BrainTextModel, found: Encoded, batch: BrainTextBatch) -> LossTerms:
        """Return the terms in which trials do not meet."""
        own, terms, steps_B = self._own, LossTerms(), found.num_steps_B
        if own.alpha and own.align != "info_nce":
            pair = _given(found.brain_BPD), _given(batch.audio_BAD), steps_B, _given(batch.num_audio_B)
            if own.align == "soft_dtw":
                away = objective.dtw_distance(*pair, gamma=own.dtw_gamma)
            else:
                away = objective.stepwise_distance(own.align, *pair)
            terms["align"] = LossTerm(away, own.alpha)
        if model.llm is not None:
            tokens = _given(batch.tokens_BL), _given(batch.num_tokens_B)
            terms["llm"] = LossTerm(model.llm.loss(_given(found.brain_BPD), steps_B, *tokens), own.beta)
        if own.gamma:
            units = _given(batch.units_BL), _given(batch.num_units_B)
            terms["ctc"] = LossTerm(objective.ctc(_given(found.logits_BPK), steps_B, *units), own.gamma)
        return terms

    def _pooled(
        self, found: Encoded, batch: BrainTextBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the means over time of brain and audio [B, D], and which trials [B] have both."""
        num_audio_B = _given(batch.num_audio_B)
        usable_B = (found.num_steps_B > 0) & (num_audio_B > 0)
        brain_BD = objective.mean_step(_given(found.brain_BPD), found.num_steps_B)
        return brain_BD, objective.mean_step(_given(batch.audio_BAD), num_audio_B), usable_B

    # --- evaluation
    def evaluate(self, model: nn.Module, batch: Batch, stage: Stage) -> Evaluation:
        """Decode real rows; keep their texts, and the loss terms as sums."""
        batch, model = cast(BrainTextBatch, batch), cast(BrainTextModel, model)
        found = self._encoded(model, batch)
        counts = self.normalizers(batch, stage)
        terms = self._own_terms(model, found, batch)
        sums = {name: Sum(term.weight * term.sum, counts[name]) for name, term in terms.items()}
        keep = batch.valid_B.cpu().numpy()
        columns: dict[str, np.ndarray] = {"text": _texts(batch.text), **self._decoded(model, found, batch)}
        if self._own.alpha and self._own.align == "info_nce":
            brain_BD, audio_BD, usable_B = self._pooled(found, batch)
            pooled = (torch.where(usable_B[:, None], rows, torch.nan) for rows in (brain_BD, audio_BD))
            columns |= {name: rows.cpu().numpy() for name, rows in zip(POOLED, pooled, strict=True)}
        names = [np.asarray(ids, dtype=object)[keep].tolist() for ids in (batch.sample_id, batch.group_id)]
        return Evaluation(sums, Rows(names[0], names[1], {name: v[keep] for name, v in columns.items()}))

    def _decoded(self, model: BrainTextModel, found: Encoded, batch: BrainTextBatch) -> dict[str, np.ndarray]:
        """Return the decoded columns: phonemes and true ones, and the text of CTC or the language model."""
        columns: dict[str, np.ndarray] = {}
        if self._own.gamma:
            spelt = _texts([self._units.show(units) for units in self._spelt(found)])
            if self._own.units == "phonemes":
                true = zip(batch.phonemes_BL.tolist(), batch.num_phonemes_B.tolist(), strict=True)
                columns["phonemes"] = _texts([self._units.show(units[:num]) for units, num in true])
                columns["decoded_phonemes"] = spelt
            else:
                columns[SPELT if self._writes else self.SCORES] = spelt
        if self._writes and model.llm is not None:
            columns[self.SCORES] = _texts(self._written(model.llm, found))
        return columns

    def _written(self, llm: LanguageModel, found: Encoded) -> list[str]:
        asked = self.config.decoding
        if asked.control == "no_brain":
            return [llm.write_unread(asked.num_beams, asked.max_new_tokens)] * len(found.num_steps_B)
        brain_BPD = _given(found.brain_BPD)
        return llm.write(brain_BPD, found.num_steps_B, asked.num_beams, asked.max_new_tokens)

    def _spelt(self, found: Encoded) -> list[list[int]]:
        logits_BPK, num_steps_B = _given(found.logits_BPK).float(), found.num_steps_B.cpu().numpy()
        num_beams = self.config.decoding.ctc_beams
        if num_beams == 1:
            return greedy(logits_BPK.argmax(-1).cpu().numpy(), num_steps_B)
        log_probs_BPK = logits_BPK.log_softmax(-1).cpu().numpy()
        rows = zip(log_probs_BPK, num_steps_B.tolist(), strict=True)
        return [prefix_search(log_probs_PK[:num], num_beams) for log_probs_PK, num in rows]

    @property
    def _writes(self) -> bool:
        return bool(self._own.beta) and self.config.decoding.generate

    def _columns(self, merged: Evaluation) -> dict[str, np.ndarray]:
        assert merged.rows is not None
        if self.config.decoding.control != "shuffled":
            return merged.rows.columns
        decoded = (self.SCORES, SPELT, "decoded_phonemes")
        return shuffled(merged.rows.columns, decoded, self.config.training.seed)

    def _errors(self, merged: Evaluation) -> dict[str, scores.Errors]:
        """Return the errors of each metric that is a rate."""
        columns = self._columns(merged)
        found: dict[str, scores.Errors] = {}
        if "phonemes" in columns:
            pair = columns["decoded_phonemes"].tolist(), columns["phonemes"].tolist()
            found["per"] = scores.phoneme_errors(*pair)
        if self.SCORES in columns:
            found |= scores.text_errors(columns[self.SCORES].tolist(), columns["text"].tolist())
        if SPELT in columns:
            errors = scores.text_errors(columns[SPELT].tolist(), columns["text"].tolist())
            found |= {f"ctc_{name}": errors[name] for name in ("wer", "cer")}
        return found

    def summarize(self, merged: Evaluation) -> Summary:
        """Return the loss and its terms, error rates, the share of texts that are right, and BLEU; NaN where
        no row has a transcript.
        """
        columns = self._columns(merged)
        terms = {
            name: float(term.value / term.count) if term.count else math.nan
            for name, term in merged.sums.items()
        }
        if POOLED[0] in columns:
            terms["align"] = self._own.alpha * self._compared(*(columns[name] for name in POOLED))
        summary: Summary = {"loss": sum(terms.values()), **terms}
        summary |= {name: errors.rate() for name, errors in self._errors(merged).items()}
        if self.SCORES in columns:
            summary["bleu"] = scores.bleu(columns[self.SCORES].tolist(), columns["text"].tolist())
        return summary

    def _compared(self, brain_ND: np.ndarray, audio_ND: np.ndarray) -> float:
        """Return info_nce among all rows of the split that have both."""
        has_both_N = ~(np.isnan(brain_ND).any(1) | np.isnan(audio_ND).any(1))
        if not has_both_N.any():
            return math.nan
        brain, audio = (torch.from_numpy(rows[has_both_N]) for rows in (brain_ND, audio_ND))
        return float(info_nce(brain, audio, self._own.tau))

    def metric_names(self) -> tuple[str, ...]:
        """Return the loss, its terms, and the rates of what is decoded."""
        own = self._own
        terms = [
            name for name, weight in (("align", own.alpha), ("llm", own.beta), ("ctc", own.gamma)) if weight
        ]
        spells_text = bool(own.gamma) and own.units != "phonemes"
        rates = ["per"] if own.gamma and own.units == "phonemes" else []
        if spells_text or self._writes:
            rates += ["wer", "cer", "exact", "bleu"]
        if spells_text and self._writes:
            rates += ["ctc_wer", "ctc_cer"]
        return ("loss", *terms, *rates)

    def intervals(self, merged: Evaluation, seed: int) -> dict[str, list[tuple[float, float]]]:
        """Return 95 % intervals of the rates by resampled groups."""
        assert merged.rows is not None
        _, groups_N = np.unique(np.asarray(merged.rows.group_id), return_inverse=True)
        errors = self._errors(merged)
        return {name: [each.interval(groups_N, seed)] for name, each in errors.items()}

    def table(self, merged: Evaluation, summary: Summary) -> list[dict[str, Any]]:
        """Return a row per number, with the interval of a rate beside it."""
        found = self.intervals(merged, self.config.training.seed)
        rows: list[dict[str, Any]] = []
        for name, value in summary.items():
            low, high = found.get(name, [(None, None)])[0]
            rows.append({"metric": name, "value": value, "low": low, "high": high})
        return rows

    def predictions(self, merged: Evaluation) -> dict[str, np.ndarray]:
        """Return texts, what was decoded, and how they differ: `alignment` writes a substituted word as
        [decoded|true], an inserted one as [+decoded] and a missing one as [-true]; none without transcript.
        """
        columns = {name: values for name, values in self._columns(merged).items() if name not in POOLED}
        pairs = {"decoded": "text", "decoded_phonemes": "phonemes"}
        for ours, true in pairs.items():
            if ours in columns:
                name = "alignment" if ours == "decoded" else "phoneme_alignment"
                plain = plain_text if ours == "decoded" else str
                rows = zip(columns[ours].tolist(), columns[true].tolist(), strict=True)
                columns[name] = _texts(
                    [marked(plain(a).split(), plain(b).split()) if b else "" for a, b in rows]
                )
        return columns

    def floor(self, train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
        """Return for each held-out row the training text that linear discriminants choose."""
        return linear_floor(train, held_out)


def _given(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def _texts(texts: Sequence[str]) -> np.ndarray:
    column = np.empty(len(texts), dtype=object)
    column[:] = list(texts)
    return column


def _padded(name: str, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return the fields `<name>_BL`, padded with zeros to at least one column, and `num_<name>_B`."""
    lengths = [len(row) for row in rows]
    padded_BL = torch.zeros(len(rows), max([1, *lengths]), dtype=torch.int64)
    for place, row in enumerate(rows):
        padded_BL[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return {f"{name}_BL": padded_BL, f"num_{name}_B": torch.tensor(lengths)}
