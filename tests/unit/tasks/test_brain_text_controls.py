"""Controls of decoded text, and synthetic recordings of another number of features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from trial_rows import SMALL, TINY_LLM, brain_task, trial_rows
from voxray.core.evaluation import Evaluation, Rows
from voxray.core.task import BadRow
from voxray.tasks.brain_text.config import Config
from voxray.tasks.brain_text.controls import shuffled
from voxray.tasks.brain_text.data import BrainTextData, load
from voxray.tasks.brain_text.task import BrainText

LLM = {"alpha": 0.0, "beta": 1.0}


def task_with(control: str, **decoding: Any) -> BrainText:
    return brain_task(
        {
            "model": {**SMALL, **TINY_LLM},
            "objective": LLM,
            "decoding": {"control": control, "max_new_tokens": 6, **decoding},
        }
    )


def texts(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


# --- another trial's activity


@pytest.mark.parametrize("num_rows", [2, 3, 17])
def test_each_row_has_what_was_decoded_of_another(num_rows: int) -> None:
    columns = {"decoded": np.arange(num_rows), "spelt": np.arange(num_rows), "text": np.arange(num_rows)}
    found = shuffled(columns, ("decoded", "spelt", "decoded_phonemes"), seed=3)
    assert sorted(found["decoded"]) == list(range(num_rows))
    assert not (found["decoded"] == columns["decoded"]).any()
    assert (found["decoded"] == found["spelt"]).all()  # what was decoded of one trial stays together
    assert (found["text"] == columns["text"]).all()
    again = shuffled(columns, ("decoded",), seed=3)
    assert (again["decoded"] == found["decoded"]).all()


def test_who_decodes_all_from_the_brain_gets_nothing_of_shuffled_trials() -> None:
    """Texts without a word in common: word error rate 0, and 1 when each stands at another trial's."""
    said = texts("go home", "good water", "thanks nurse")
    merged = Evaluation(rows=Rows(list("abc"), list("abc"), {"text": said, "decoded": said.copy()}))
    assert task_with("none").summarize(merged)["wer"] == 0
    control = task_with("shuffled")
    summary = control.summarize(merged)
    assert (summary["wer"], summary["exact"]) == (1, 0)
    assert control.intervals(merged, 0)["wer"] == [(1, 1)]
    predicted = control.predictions(merged)
    assert set(predicted["decoded"]) == set(said)
    assert all("|" in line for line in predicted["alignment"])


# --- no activity


@pytest.mark.parametrize("num_beams", [1, 3])
def test_without_a_brain_the_text_is_generates_own_after_the_prompt(num_beams: int) -> None:
    task = task_with("no_brain", num_beams=num_beams)
    torch.manual_seed(0)
    model = task.build_model().eval()
    found = {}
    for seed in (0, 1):
        rows = trial_rows(3, seed) | {"valid": np.ones(3, bool), "position": np.arange(3)}
        merged = task.evaluate(model, task.collate(rows), task.config.resolved_stages()[-1])
        assert merged.rows is not None
        found[seed] = merged.rows.columns["decoded"].tolist()
    lm, tokenizer = model.llm.frozen.network.lm, task._tokenizer
    prompt = tokenizer("Transcript: ", return_tensors="pt").input_ids
    options = {"max_new_tokens": 6, "num_beams": num_beams, "early_stopping": num_beams > 1}
    given = lm.get_input_embeddings()(prompt)
    mask = torch.ones(prompt.shape, dtype=torch.long)
    tokens = lm.generate(
        inputs_embeds=given, attention_mask=mask, do_sample=False, eos_token_id=0, pad_token_id=0, **options
    )
    expected = tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
    assert found[0] == found[1] == [expected] * 3


@pytest.mark.parametrize(
    "values", [{"objective": {"beta": 0.0}}, {"decoding": {"generate": False}}], ids=["beta", "generate"]
)
def test_no_brain_needs_a_writer(values: dict[str, Any]) -> None:
    decoding = {"control": "no_brain", **values.get("decoding", {})}
    with pytest.raises(ValidationError, match=r"needs objective\.beta above 0"):
        Config.model_validate({**values, "decoding": decoding})


# --- recordings of another number of features


def test_synthetic_recordings_have_the_features_that_are_asked_for(tmp_path: Path) -> None:
    few = BrainTextData(Config.model_validate({"data": {"prepare": {"num_features": 64}}}))
    report = few.synth(tmp_path, "tiny", 0)
    rows = list(few.read_raw(tmp_path))
    assert len(rows) == report.num_rows
    assert not any(isinstance(row, BadRow) for row in rows)
    assert load(rows[5])["neural"].shape[1] == 64
    assert 0 <= report.oracle < 0.05 < report.floor < report.chance
    refused = list(BrainTextData(Config()).read_raw(tmp_path))
    assert all(isinstance(row, BadRow) and "× 512 are needed" in row.reason for row in refused)
