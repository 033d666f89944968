"""Names and settings become audio tokenizers, and tokenizers labels that tell nothing of this machine."""

import json

import pytest

from hf_clsi.units.tokenizers import (
    embedded_config,
    resolve_audio_tokenizer,
    save_tokenizer,
    tokenizer_label,
)


def test_settings_of_an_embedded_tokenizer():
    config = embedded_config(100, 25.0, 1.5)
    assert (config.num_units, config.hop_length, config.frame_rate, config.duration_penalty) == (
        100,
        640,
        25.0,
        1.5,
    )
    with pytest.raises(ValueError, match="must divide 16000 Hz into whole samples, got 13"):
        embedded_config(100, 13.0)


def test_a_model_or_a_dataset_leads_to_its_tokenizer(tmp_path):
    assert resolve_audio_tokenizer("kyutai/mimi") == "kyutai/mimi"
    assert resolve_audio_tokenizer(tmp_path) == str(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"audio_tokenizer_id": "kyutai/mimi"}))
    assert resolve_audio_tokenizer(tmp_path) == "kyutai/mimi"
    (tmp_path / "processor_config.json").write_text(json.dumps({"audio_tokenizer_id": "./inside"}))
    assert resolve_audio_tokenizer(tmp_path) == str(tmp_path / "inside")
    (tmp_path / "audio_tokenizer").mkdir()
    (tmp_path / "audio_tokenizer" / "config.json").write_text("{}")
    assert resolve_audio_tokenizer(tmp_path) == str(tmp_path / "audio_tokenizer")


def test_labels(tiny_mimi, tiny_slm, tmp_path):
    _, processor = tiny_slm()
    embedded = processor.audio_tokenizer
    assert tokenizer_label(embedded, "anything") == f"hf_clsi embedded, sha256 {embedded.codebook_digest()}"
    (tmp_path / "my-mimi").mkdir()
    assert tokenizer_label(tiny_mimi(), str(tmp_path / "my-mimi")) == "my-mimi"
    assert tokenizer_label(tiny_mimi(), "kyutai/mimi") == "kyutai/mimi"


def test_saving_replaces_what_was_there(tiny_slm, tmp_path):
    _, processor = tiny_slm()
    (tmp_path / "audio_tokenizer").mkdir()
    (tmp_path / "audio_tokenizer" / "stale").touch()
    save_tokenizer(processor.audio_tokenizer, tmp_path / "audio_tokenizer")
    assert not (tmp_path / "audio_tokenizer" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["audio_tokenizer"]
