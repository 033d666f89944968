"""ClsiConfig: the derived vocabulary, what the decoder's config gets, what is refused, round trips."""

import copy
import json

import pytest
from transformers import AutoConfig, GenerationConfig, LlamaConfig, Qwen2Config

from hf_clsi import ClsiConfig

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_vocabulary_is_units_then_merges_then_bos_eos_pad():
    config = ClsiConfig(num_units=10, num_merges=4, text_config=SIZES)
    assert config.vocab_size == 17
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (14, 15, 16)


def test_decoder_receives_vocabulary_and_special_tokens():
    decoder = ClsiConfig(num_units=10, text_config={"model_type": "qwen2", **SIZES}).text_config
    assert isinstance(decoder, Qwen2Config)
    assert decoder.hidden_size == 16
    assert (decoder.vocab_size, decoder.bos_token_id, decoder.eos_token_id, decoder.pad_token_id) == (
        13,
        10,
        11,
        12,
    )


def test_a_dict_without_model_type_is_a_llama():
    assert isinstance(ClsiConfig(num_units=10, text_config=SIZES).text_config, LlamaConfig)


def test_no_decoder_gives_the_default_one():
    config = ClsiConfig(num_units=100)
    assert isinstance(config.text_config, LlamaConfig)
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (512, 8)
    assert config.text_config.vocab_size == 103
    assert config.tie_word_embeddings is True


def test_generation_config_takes_the_special_tokens():
    generation = GenerationConfig.from_model_config(ClsiConfig(num_units=10, text_config=SIZES))
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (10, 11, 12)


def test_hop_length_is_samples_per_unit():
    assert ClsiConfig(num_units=10, text_config=SIZES).hop_length == 1920
    assert ClsiConfig(num_units=10, text_config=SIZES, sampling_rate=16000, frame_rate=50).hop_length == 320


@pytest.mark.parametrize("decoder", [dict(SIZES), LlamaConfig(vocab_size=13, **SIZES)])
def test_callers_decoder_is_not_changed(decoder):
    before = copy.deepcopy(decoder if isinstance(decoder, dict) else decoder.to_dict())
    config = ClsiConfig(num_units=10, text_config=decoder, tie_word_embeddings=True)
    assert config.text_config is not decoder
    assert config.text_config.bos_token_id == 10
    assert (decoder if isinstance(decoder, dict) else decoder.to_dict()) == before


@pytest.mark.parametrize(
    ("outer", "decoder", "expected"),
    [
        (None, SIZES, True),
        (None, {**SIZES, "tie_word_embeddings": False}, False),
        (None, LlamaConfig(vocab_size=13, **SIZES), False),
        (True, LlamaConfig(vocab_size=13, **SIZES), True),
        (False, {**SIZES, "tie_word_embeddings": True}, False),
    ],
)
def test_tie_word_embeddings_is_the_same_inside_and_outside(outer, decoder, expected):
    config = ClsiConfig(num_units=10, text_config=decoder, tie_word_embeddings=outer)
    assert config.tie_word_embeddings is expected
    assert config.text_config.tie_word_embeddings is expected
    config.tie_word_embeddings = not expected
    assert config.text_config.tie_word_embeddings is not expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"separator": "pad"}, "separator must be one of none, bos, eos; got 'pad'"),
        ({"num_units": 0}, "num_units must be an integer in 1..65536"),
        ({"num_units": 65_537}, "num_units must be an integer in 1..65536"),
        ({"num_merges": -1}, "num_merges must be an integer of at least 0"),
        ({"frame_rate": 0}, "must be positive"),
        ({"sampling_rate": 16000, "frame_rate": 75}, "makes 213.333 samples"),
        ({"text_config": {**SIZES, "vocab_size": 32000}}, "text_config has vocab_size=32000, but 10 units"),
        ({"text_config": LlamaConfig(**SIZES)}, "text_config has vocab_size=32000, but 10 units"),
        ({"text_config": {"model_type": "t5"}}, "is an encoder-decoder"),
        ({"vocab_size": 14}, "vocab_size=14 contradicts num_units=10 and num_merges=0"),
        ({"pad_token_id": 0}, "pad_token_id=0 contradicts"),
    ],
)
def test_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        ClsiConfig(**{"num_units": 10, "text_config": SIZES, **changes})


def test_change_after_construction_is_refused_on_save(tmp_path):
    config = ClsiConfig(num_units=10, text_config=SIZES)
    config.num_merges = 5
    with pytest.raises(ValueError, match="text_config has vocab_size=13"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_units": 10, "text_config": {"model_type": "qwen2", **SIZES}},
        {"num_units": 10, "text_config": {"model_type": "llama", **SIZES}, "tie_word_embeddings": False},
        {},
        {
            "num_units": 300,
            "num_merges": 12,
            "deduplicate": True,
            "separator": "eos",
            "sampling_rate": 16000,
            "frame_rate": 50.0,
            "audio_tokenizer_id": "./audio_tokenizer",
            "languages": ["en", "fr"],
            "text_config": {"model_type": "qwen3", **SIZES},
        },
    ],
)
def test_saves_and_loads_equal(settings, tmp_path):
    config = ClsiConfig(**settings)
    config.save_pretrained(tmp_path / "a")
    loaded = AutoConfig.from_pretrained(tmp_path / "a")
    assert type(loaded) is ClsiConfig
    origin = {"_name_or_path": str(tmp_path / "a"), "transformers_version": loaded.transformers_version}
    assert loaded.to_dict() == {**config.to_dict(), **origin}
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


def test_saved_config_names_every_class_and_no_derived_number(tmp_path):
    ClsiConfig(num_units=10, text_config=SIZES).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_clsi.ClsiConfig",
        "AutoModel": "modeling_clsi.ClsiModel",
        "AutoModelForCausalLM": "modeling_clsi.ClsiForCausalLM",
    }
    assert not {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "hop_length"} & set(saved)


@pytest.mark.parametrize(("separator", "token"), [("none", None), ("bos", 12), ("eos", 13)])
def test_the_separator_is_one_of_the_special_tokens(separator, token):
    config = ClsiConfig(num_units=10, num_merges=2, separator=separator)
    assert config.separator_token_id == token
