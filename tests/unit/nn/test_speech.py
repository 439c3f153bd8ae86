"""Speech, the audio tower and the language model behind it, on tiny networks built from configs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from voxray.nn.speech import SAMPLING_RATE, Speech, Tower, num_tokens, tiny_tower_parts, tones, tower_tokens
from voxray.nn.speech_llm import load_speech_llm, tiny_network, tiny_tokenizer

TEXTS = ["I will go around.", "", "no", "I will go around."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A whole tiny Qwen2-Audio, as `save_pretrained` writes it."""
    made = tmp_path_factory.mktemp("qwen") / "tiny"
    tiny_network().save_pretrained(made)
    tiny_tokenizer().save_pretrained(made)
    tiny_tower_parts()[1].save_pretrained(made)
    return made


@pytest.mark.parametrize("tts", ["tones", "tiny"])
def test_a_text_always_sounds_the_same_whatever_is_said_beside_it(tts: str) -> None:
    speaker = Speech(tts, "1", "float32", "cpu", seed=3)
    torch.manual_seed(1)
    together = speaker({"text": TEXTS})["speech"]
    torch.manual_seed(2)
    alone = [speaker({"text": [text]})["speech"][0] for text in TEXTS]
    assert [len(wave) for wave in together] == [len(wave) for wave in alone]
    assert len(together[1]) == 0
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.int16
    if tts == "tiny":  # VITS draws its durations
        other = Speech(tts, "1", "float32", "cpu", seed=4)({"text": TEXTS[:1]})["speech"][0]
        assert len(other) != len(together[0]) or (other != together[0]).any()


def test_a_letter_is_two_tones_of_its_own() -> None:
    spectra = {letter: np.abs(np.fft.rfft(tones(letter), 8192)) for letter in "abcdefghijklmnopqrstuvwxyz"}
    peaks = {
        letter: tuple(sorted(np.argsort(spectrum)[-60:] * SAMPLING_RATE // 8192 // 60))
        for letter, spectrum in spectra.items()
    }
    assert len(set(peaks.values())) == 26
    assert not tones("a a")[len(tones("a")) : len(tones("a ")) or None][:900].any()


def test_the_towers_tokens_are_qwen2_audios_own(folder: Path) -> None:
    """The authority is transformers' whole model: what its projector is given for this speech."""
    speech = Speech("tones", "1", "float32", "cpu")({"text": ["hello there", "no"]})["speech"]
    tokens = Tower(str(folder), "", "float32", "cpu")({"speech": speech})["audio"]
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval()
    features = WhisperFeatureExtractor.from_pretrained(folder)
    waves = [wave.astype(np.float32) / 32767 for wave in speech]
    given = features(waves, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    lengths = num_tokens(given.attention_mask.sum(1))
    audio = torch.full((2, int(lengths.max())), model.config.audio_token_id)
    for row, length in zip(audio, lengths.tolist(), strict=True):
        row[length:] = 1
    model.config.audio_token_id, audio = 7, torch.where(audio == model.config.audio_token_id, 7, 1)
    with torch.no_grad():
        model(
            input_ids=audio,
            input_features=given.input_features,
            feature_attention_mask=given.attention_mask,
            attention_mask=torch.ones_like(audio),
        )
    for row, made, length in zip(seen[0], tokens, lengths.tolist(), strict=True):
        assert made.shape == (length, 48)
        np.testing.assert_allclose(made, row[:length].numpy(), atol=1e-4)


def test_padding_of_speech_leaves_no_trace() -> None:
    """What stands behind the valid frames, and who is beside, changes no token."""
    tower, _ = tiny_tower_parts()
    tower.eval()
    mel = torch.randn(2, 32, 800)
    frames = torch.tensor([400, 640])
    noisy = mel.clone()
    noisy[0, :, 404:], noisy[1, :, 644:] = 5.0, -5.0  # beyond the convolutions' reach
    with torch.no_grad():
        ours, theirs = (tower_tokens(tower, each, frames) for each in (mel, noisy))
    for row, length in enumerate(num_tokens(frames).tolist()):
        torch.testing.assert_close(ours[row, : length - 2], theirs[row, : length - 2], atol=1e-4, rtol=1e-4)


def test_token_counts_of_whole_and_partly_filled_windows() -> None:
    """DOMAINS.md S1.a: 30 s are 3,000 frames and 750 tokens."""
    assert num_tokens(torch.tensor([3000, 100, 75, 4])).tolist() == [750, 25, 19, 1]


def test_a_saved_model_gives_its_text_side(folder: Path) -> None:
    loaded, whole = load_speech_llm(str(folder), "", "float32"), tiny_network()
    assert loaded.embedding_dim == 48
    text = "Grüße, hello!"
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == text
    embeds = torch.randn(1, 5, 64)
    with torch.no_grad():
        theirs = whole.eval()(inputs_embeds=embeds).logits
        torch.testing.assert_close(loaded.network.lm.eval()(inputs_embeds=embeds).logits, theirs)


@pytest.mark.parametrize("load", [
    lambda: load_speech_llm("Qwen/Qwen2-Audio-7B-Instruct", "main", "float32"),
    lambda: Tower("Qwen/Qwen2-Audio-7B-Instruct", "main", "float32", "cpu"),
    lambda: Speech("facebook/mms-tts-eng", "main", "float32", "cpu"),
])  # fmt: skip
def test_an_absent_model_is_one_sentence_with_its_name_and_the_mend(load, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"^'(Qwen|facebook)/[^']+' .*name the folder of a copy$"):
        load()


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="it is a qwen2, and a qwen2_audio is needed"):
        load_speech_llm(str(tmp_path), "", "float32")
    with pytest.raises(ValueError, match=r"cannot be loaded|no audio tower"):
        Tower(str(tmp_path), "", "float32", "cpu")
