"""ClsiConfig: the derived vocabulary, what the decoder's config gets, named sizes, refusals, round trips."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, GenerationConfig, LlamaConfig, Qwen2Config

from hf_clsi import ClsiConfig, ClsiForCausalLM, ClsiModel
from hf_clsi.configuration_clsi import SIZES as NAMED_SIZES
from hf_clsi.experiment.presets import preset

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


# -- sizes with a name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "parameters", "embeddings"),
    [("tiny", 410_496, 1967 * 96), ("360m", 359_735_808, 2051 * 896), ("1b", 977_346_560, 2051 * 2048)],
)
def test_sizes_have_the_published_number_of_parameters(size, parameters, embeddings):
    """Counted without any memory for them; tied, so that the embeddings count once."""
    with torch.device("meta"):
        model = ClsiForCausalLM(ClsiConfig.from_size(size))
        untied = ClsiForCausalLM(ClsiConfig.from_size(size, tie_word_embeddings=False))
        base = ClsiModel(ClsiConfig.from_size(size))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(parameter.numel() for parameter in base.parameters()) == parameters
    assert sum(parameter.numel() for parameter in untied.parameters()) == parameters + embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


# As in config.json of Qwen/Qwen2-0.5B and meta-llama/Llama-3.2-1B, vocabulary and token ids aside.
BODIES = {
    "360m": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
    },
    "1b": {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131_072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "use_cache": True,
    },
}


@pytest.mark.parametrize("size", BODIES)
def test_sizes_have_the_published_bodies_over_mimi(size):
    config = ClsiConfig.from_size(size)
    body = config.text_config.to_dict()
    assert {name: body[name] for name in BODIES[size]} == BODIES[size]
    assert (config.num_units, config.num_merges, config.vocab_size, body["vocab_size"]) == (
        2048,
        0,
        2051,
        2051,
    )
    assert (config.sampling_rate, config.frame_rate, config.hop_length) == (24_000, 12.5, 1920)
    assert config.audio_tokenizer_id == "kyutai/mimi"
    assert (config.deduplicate, config.separator, config.languages) == (False, "none", None)


def test_the_bodies_differ_from_their_classes_defaults():
    """The control of the test above: what it compares is what `from_size` sets."""
    defaults = {"360m": Qwen2Config().to_dict(), "1b": LlamaConfig().to_dict()}
    for size, body in BODIES.items():
        different = {name for name, value in body.items() if defaults[size][name] != value}
        assert {"hidden_size", "max_position_embeddings", "num_hidden_layers", "rope_parameters"} <= different


def test_the_tiny_size_is_the_miniatures():
    """`hf-clsi reproduce` builds its model from its own preset; the two must not drift apart."""
    tiny, size = preset("tiny"), NAMED_SIZES["tiny"]
    assert tiny.training.model.text_config == size["text_config"]
    assert tiny.units.num_merges == size["num_merges"]
    assert tiny.units.deduplicate is size["deduplicate"]
    assert tiny.units.config["num_units"] == size["num_units"]
    assert tiny.training.batch.separator == size["separator"]
    config = ClsiConfig.from_size("tiny")
    assert config.hop_length == tiny.units.config["hop_length"]
    assert (config.sampling_rate, config.vocab_size) == (16_000, 1967)


@pytest.mark.parametrize("size", ["350m", "", "Tiny", None])
def test_an_unknown_size_is_refused(size):
    with pytest.raises(ValueError, match=r"There is no size .*; choose from tiny, 360m, 1b\."):
        ClsiConfig.from_size(size)


def test_changes_of_a_size_are_applied():
    config = ClsiConfig.from_size(
        "360m",
        num_units=500,
        frame_rate=25.0,
        languages=["en", "de"],
        tie_word_embeddings=False,
        text_config={"num_hidden_layers": 3, "use_cache": False},
    )
    assert (config.num_units, config.frame_rate, config.languages) == (500, 25.0, ["en", "de"])
    assert (config.text_config.num_hidden_layers, config.text_config.use_cache) == (3, False)
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is False
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (503, 896)


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_configs_of_a_size_share_nothing(size):
    before = copy.deepcopy(NAMED_SIZES)
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    first = ClsiConfig.from_size(size, text_config=changes, languages=["en"])
    first.text_config.rope_parameters["rope_theta"] = 5.0
    first.text_config.hidden_size = 1
    assert changes == {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    second, third = ClsiConfig.from_size(size), ClsiConfig.from_size(size)
    assert second.text_config is not third.text_config
    second.text_config.rope_parameters["rope_theta"] = 5.0
    assert third.to_dict() == ClsiConfig.from_size(size).to_dict()
    assert before == NAMED_SIZES


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_a_size_saves_and_loads_equal(size, tmp_path):
    config = ClsiConfig.from_size(size)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    origin = {"_name_or_path": str(tmp_path), "transformers_version": loaded.transformers_version}
    assert loaded.to_dict() == {**config.to_dict(), **origin}
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
