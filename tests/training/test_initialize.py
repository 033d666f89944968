"""initialize_from_text_model: the body bit for bit, a new vocabulary, and no way back to the text model."""

import json
import logging
import os
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    OPTConfig,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
)

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.training import initialize
from hf_clsi.training.initialize import initialize_from_text_model

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough that a difference shows
    "bos_token_id": 3,
    "eos_token_id": 4,
    "pad_token_id": 5,
}
GPT2_SIZES = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2_SIZES |= {"bos_token_id": 3, "eos_token_id": 4}
FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, SIZES),
    "llama": (LlamaConfig, LlamaForCausalLM, SIZES),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, SIZES | {"head_dim": 8}),
    "gpt2": (GPT2Config, GPT2LMHeadModel, GPT2_SIZES),
}
UNITS = 20  # 23 tokens
PROMPT = torch.tensor([[20, 1, 2, 3, 19, 0]])


def text_model(family="llama", seed=0, dtype=torch.float32, **settings):
    """A text model of random weights: norms and biases too, which would else be 1 and 0 in every model."""
    config_class, model_class, sizes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**{**sizes, **settings}))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.normal_(mean=1.0, std=0.1)
    return model.to(dtype).eval()


def body(model):
    """The tensors of a text model's base model, or of a speech model's decoder, without the embeddings."""
    base = model.model.language_model if isinstance(model, ClsiForCausalLM) else model.base_model
    embeddings = base.get_input_embeddings().weight
    named = [*base.named_parameters(), *base.named_buffers()]
    return {name: tensor for name, tensor in named if tensor is not embeddings}


def assert_same(tensors, others):
    assert tensors.keys() == others.keys()
    assert {name for name, tensor in tensors.items() if tensor.dtype != others[name].dtype} == set()
    assert {name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])} == set()


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_body_of_a_checkpoint_is_kept_bit_for_bit(tmp_path, family, tie):
    text_model(family, tie_word_embeddings=tie).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = initialize_from_text_model(tmp_path, num_units=UNITS)
    assert len(body(base)) > 20
    assert_same(body(model), body(base))
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (23, 32)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tie
    assert model.config.tie_word_embeddings is tie
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_computes_what_the_text_model_computes(family):
    base = text_model(family)
    model = initialize_from_text_model(base, num_units=UNITS)
    embeddings = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    expected = base.base_model(inputs_embeds=embeddings).last_hidden_state
    assert torch.equal(model.model(inputs_embeds=embeddings).last_hidden_state, expected)


def test_bfloat16_checkpoint_stays_bfloat16(tmp_path):
    text_model("qwen2", dtype=torch.bfloat16).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    for dtype in ("auto", None):
        model = initialize_from_text_model(tmp_path, num_units=UNITS, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model.config.dtype == torch.bfloat16
        assert_same(body(model), body(base))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16], ids=str)
@pytest.mark.parametrize("from_folder", [True, False], ids=["folder", "model"])
def test_another_number_type_is_a_cast(tmp_path, from_folder, dtype):
    base = text_model("qwen2")
    base.save_pretrained(tmp_path)
    model = initialize_from_text_model(tmp_path if from_folder else base, num_units=UNITS, dtype=dtype)
    cast = {name: tensor.bfloat16() for name, tensor in base.base_model.named_parameters()}
    del cast["embed_tokens.weight"]
    assert_same({name: tensor for name, tensor in body(model).items() if name in cast}, cast)
    assert base.dtype == torch.float32


def test_sharded_checkpoint(tmp_path):
    base = text_model("llama", tie_word_embeddings=False)
    base.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(body(initialize_from_text_model(tmp_path, num_units=UNITS)), body(base))


def test_loaded_model_is_neither_changed_nor_shared():
    base = text_model("llama", tie_word_embeddings=False).requires_grad_(False).train()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = base.config.to_json_string()
    model = initialize_from_text_model(base, num_units=UNITS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.config.text_config.rope_parameters["rope_theta"] = 7.0
    assert_same(base.state_dict(), before)
    assert base.config.to_json_string() == config
    assert base.training
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_settings_of_the_body_are_kept_and_those_of_the_words_are_not():
    # The body of Qwen2-0.5B in miniature: what must not fall back to a class's default.
    base = text_model(
        "qwen2",
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=3e-7,
        max_position_embeddings=131_072,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
        attention_dropout=0.25,
        task_specific_params={"text-generation": {"max_length": 50}},
        sep_token_id=6,
    )
    model = initialize_from_text_model(base, num_units=UNITS, num_merges=4, deduplicate=True, separator="eos")
    decoder, expected = model.config.text_config.to_dict(), base.config.to_dict()
    of_words = {"vocab_size": 27, "bos_token_id": 24, "eos_token_id": 25, "pad_token_id": 26}
    assert {name: decoder[name] for name in of_words} == of_words
    assert "sep_token_id" not in decoder
    assert decoder["task_specific_params"] is None if "task_specific_params" in decoder else True
    gone = {*of_words, "sep_token_id", "task_specific_params", "dtype", "tie_word_embeddings"}
    names = {*decoder, *expected} - gone
    assert {name for name in names if decoder.get(name) != expected.get(name)} == set()
    assert decoder["rope_parameters"] == {"rope_type": "default", "rope_theta": 1_000_000.0}
    assert (model.config.deduplicate, model.config.separator) == (True, "eos")
    assert_same(body(model), body(base))


def test_generation_settings_are_not_inherited(tmp_path):
    base = text_model("qwen2")
    base.generation_config.update(
        do_sample=True, temperature=0.3, repetition_penalty=1.1, eos_token_id=[4, 5]
    )
    base.save_pretrained(tmp_path)
    for source in (base, tmp_path):
        model = initialize_from_text_model(source, num_units=UNITS)
        config = ClsiConfig(num_units=UNITS, text_config=model.config.text_config)
        expected = ClsiForCausalLM(config).generation_config.to_dict()
        assert model.generation_config.to_dict() == expected
        assert model.generation_config.temperature is None
        assert model.generation_config.eos_token_id == 21


def known_embeddings(base, matrix, head=None):
    base.get_input_embeddings().weight.data = matrix
    if head is not None:
        base.get_output_embeddings().weight.data = head
    return base


def normal(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# Rows alternate between two vectors: mean and standard deviation of every dimension can be said exactly.
MEAN = torch.arange(32) / 8 - 2
DEVIATION = torch.tensor([0.5, 0.25, 1.0, 2.0]).repeat(8)
ROWS = torch.stack([MEAN + DEVIATION, MEAN - DEVIATION] * 30)


def test_random_embeddings_have_the_root_mean_square_of_the_text_embeddings():
    signs = torch.ones(60, 32)
    signs[::3] = -1.0  # mean 1/3, but every element has the magnitude 0.5, so its square root mean is 0.5
    base = known_embeddings(text_model(vocab_size=60, tie_word_embeddings=True), 0.5 * signs)
    base.tie_weights()
    model = initialize_from_text_model(base, num_units=UNITS, seed=11)
    (noise,) = normal(11, (23, 32))
    torch.testing.assert_close(model.get_input_embeddings().weight.data, 0.5 * noise, rtol=1e-6, atol=0)


def test_mean_embeddings_are_the_mean_plus_scaled_noise():
    base = known_embeddings(text_model(vocab_size=60, tie_word_embeddings=True), ROWS)
    base.tie_weights()
    model = initialize_from_text_model(base, num_units=UNITS, embeddings="mean", noise_scale=0.25, seed=11)
    (noise,) = normal(11, (23, 32))
    expected = MEAN + 0.25 * DEVIATION * noise
    torch.testing.assert_close(model.get_input_embeddings().weight.data, expected, rtol=1e-6, atol=1e-6)


def test_without_noise_every_row_is_the_mean():
    base = known_embeddings(text_model(vocab_size=60, tie_word_embeddings=True), ROWS)
    base.tie_weights()
    model = initialize_from_text_model(base, num_units=UNITS, embeddings="mean", noise_scale=0.0)
    assert torch.equal(model.get_input_embeddings().weight.data, MEAN.expand(23, 32))


def test_untied_output_embeddings_follow_the_head():
    base = text_model(vocab_size=60, tie_word_embeddings=False)
    known_embeddings(base, ROWS, head=-8 * ROWS)
    model = initialize_from_text_model(base, num_units=UNITS, embeddings="mean", noise_scale=0.5, seed=3)
    noise, head_noise = normal(3, (23, 32), (23, 32))
    close = {"rtol": 1e-6, "atol": 1e-5}
    expected = MEAN + 0.5 * DEVIATION * noise
    torch.testing.assert_close(model.get_input_embeddings().weight.data, expected, **close)
    expected = -8 * MEAN + 0.5 * 8 * DEVIATION * head_noise
    torch.testing.assert_close(model.lm_head.weight.data, expected, **close)


def test_statistics_do_not_depend_on_the_chunks(monkeypatch):
    rows = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) + 3
    monkeypatch.setattr(initialize, "CHUNK_ROWS", 7)
    mean, deviation = initialize._statistics(rows)
    torch.testing.assert_close(mean, rows.double().mean(0))
    torch.testing.assert_close(deviation, rows.double().std(0, correction=0))


@pytest.mark.parametrize(("embeddings", "spread"), [("random", 2.5), ("mean", 0.2)])
def test_spread_of_many_rows(embeddings, spread):
    # Text embeddings of mean 1.5 and deviation 2.0, so of root mean square 2.5; 64,096 draws per model, whose
    # mean and deviation lie within 5 standard errors, 5 * spread / sqrt(n) and 5 * spread / sqrt(2 n).
    base = text_model(vocab_size=400, tie_word_embeddings=True)
    base.get_input_embeddings().weight.data = 1.5 + 2.0 * torch.tensor([1.0, -1.0]).repeat(200)[
        :, None
    ].expand(400, 32)
    base.tie_weights()
    model = initialize_from_text_model(base, num_units=2000, embeddings=embeddings)
    weights = model.get_input_embeddings().weight.data
    assert weights.shape == (2003, 32)
    error = spread / 64_096**0.5
    assert abs(weights.mean() - (1.5 if embeddings == "mean" else 0.0)) < 5 * error
    assert abs(weights.std() - spread) < 5 * error / 2**0.5


def test_seed_decides_the_new_rows_and_nothing_else_does():
    base = text_model("qwen2", tie_word_embeddings=False)
    torch.manual_seed(1)
    one = initialize_from_text_model(base, num_units=UNITS, seed=5)
    torch.manual_seed(2)
    same = initialize_from_text_model(base, num_units=UNITS, seed=5)
    other = initialize_from_text_model(base, num_units=UNITS, seed=6)
    assert_same(one.state_dict(), same.state_dict())
    new = {
        name for name, tensor in one.state_dict().items() if not torch.equal(tensor, other.state_dict()[name])
    }
    assert new == {"model.language_model.embed_tokens.weight", "lm_head.weight"}


def test_global_random_state_is_untouched(tmp_path):
    base = text_model()
    base.save_pretrained(tmp_path)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    initialize_from_text_model(base, num_units=UNITS)
    initialize_from_text_model(tmp_path, num_units=UNITS)
    assert torch.equal(torch.get_rng_state(), before)


def test_folder_and_loaded_model_give_the_same(tmp_path):
    base = text_model("qwen3")
    base.save_pretrained(tmp_path)
    from_folder = initialize_from_text_model(str(tmp_path), num_units=UNITS)
    assert_same(from_folder.state_dict(), initialize_from_text_model(base, num_units=UNITS).state_dict())


def test_hub_id(tmp_path):
    # The cache of huggingface_hub, as it lies after a download.
    repository, bases = tmp_path / "models--clsi--text-tiny", {}
    (repository / "refs").mkdir(parents=True)
    for seed, (branch, commit) in enumerate({"main": "a" * 40, "older": "b" * 40}.items()):
        (repository / "refs" / branch).write_text(commit)
        bases[branch] = text_model("qwen2", seed=seed)
        bases[branch].save_pretrained(repository / "snapshots" / commit)
    hub = {"cache_dir": tmp_path, "local_files_only": True}
    model = initialize_from_text_model("clsi/text-tiny", num_units=UNITS, **hub)
    assert_same(body(model), body(bases["main"]))
    assert model.config.initialized_from == "clsi/text-tiny"
    older = initialize_from_text_model("clsi/text-tiny", num_units=UNITS, revision="older", **hub)
    assert_same(body(older), body(bases["older"]))


def test_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="find them in the cached files"):
        initialize_from_text_model("nobody/nothing", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_tying_can_be_chosen(before, after):
    base = text_model("llama", tie_word_embeddings=before)
    model = initialize_from_text_model(base, num_units=UNITS, tie_word_embeddings=after)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is after
    assert model.config.text_config.tie_word_embeddings is after
    assert not after or torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert after or not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert_same(body(model), body(base))


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reloads_quietly_without_the_text_model(tmp_path, family, tie, caplog, capsys):
    folder = tmp_path / "a-text-model"
    text_model(family, tie_word_embeddings=tie).save_pretrained(folder)
    model = initialize_from_text_model(folder, num_units=UNITS)
    model.save_pretrained(tmp_path / "speech")
    shutil.rmtree(folder)
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    capsys.readouterr()
    try:
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "speech")
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert caplog.records == []
    assert "REPORT" not in "".join(capsys.readouterr())
    assert type(reloaded) is ClsiForCausalLM
    assert_same(reloaded.state_dict(), model.state_dict())
    assert torch.equal(reloaded(PROMPT).logits, model(PROMPT).logits)
    assert reloaded.config.initialized_from == "a-text-model"


def test_nothing_saved_leads_back_to_the_text_model(tmp_path):
    folder = tmp_path / "secret-place" / "a-text-model"
    text_model("qwen2").save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for number, source in enumerate((folder, str(folder), os.path.relpath(folder), loaded)):
        model = initialize_from_text_model(source, num_units=UNITS)
        assert model.config.initialized_from == "a-text-model"
        assert model.name_or_path == model.config.name_or_path == ""
        assert model.config.text_config.name_or_path == ""
        saved = tmp_path / f"speech-{number}"
        model.save_pretrained(saved)
        files = list(saved.glob("*.json"))
        assert {file.name for file in files} == {"config.json", "generation_config.json"}
        for file in files:
            assert "secret-place" not in file.read_text()
        settings = json.loads((saved / "config.json").read_text())
        assert settings["initialized_from"] == "a-text-model"
        assert "architectures" not in settings["text_config"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen2-0.5B", "Qwen/Qwen2-0.5B"),
        ("gpt2", "gpt2"),
        ("/somewhere/else/llama-1b", "llama-1b"),
        ("/somewhere/else/llama-1b/", "llama-1b"),
        ("./runs/llama-1b", "llama-1b"),
        ("runs/of/llama-1b", "llama-1b"),
        ("/home/me/hub/models--Qwen--Qwen2-0.5B/snapshots/91d2aff3f957", "Qwen/Qwen2-0.5B"),
        ("", ""),
    ],
)
def test_name_that_is_published(source, name):
    assert initialize._public_name(source) == name


def test_name_can_be_given_and_is_never_made_up():
    base = text_model("qwen2")
    assert initialize_from_text_model(base).config.initialized_from == "a qwen2 without a name"
    model = initialize_from_text_model(base, initialized_from="Qwen/Qwen2-0.5B")
    assert model.config.initialized_from == "Qwen/Qwen2-0.5B"


def test_fields_of_the_config_are_passed_on():
    model = initialize_from_text_model(
        text_model(),
        num_units=500,
        sampling_rate=16_000,
        frame_rate=50.0,
        audio_tokenizer_id="./audio_tokenizer",
        languages=["en", "fr"],
    )
    config = model.config
    assert (config.num_units, config.sampling_rate, config.frame_rate) == (500, 16_000, 50.0)
    assert (config.audio_tokenizer_id, config.languages) == ("./audio_tokenizer", ["en", "fr"])
    assert model.lm_head.out_features == 503
    assert initialize_from_text_model(text_model()).config.num_units == 2048


@pytest.mark.parametrize("embeddings", ["random", "mean"])
def test_trains(embeddings):
    model = initialize_from_text_model(
        text_model(initializer_range=0.02, tie_word_embeddings=True), num_units=UNITS, embeddings=embeddings
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model(PROMPT, labels=PROMPT).loss
    before.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.shape == (23, 32)
    assert (gradient.abs().sum(1) > 0).all()  # tied: every row is an output
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    assert model(PROMPT, labels=PROMPT).loss < before


def test_report_counts_what_is_kept_and_new(caplog):
    base = text_model("llama", tie_word_embeddings=False)
    with caplog.at_level(logging.INFO, logger="hf_clsi"):
        initialize_from_text_model(base, num_units=UNITS, initialized_from="x")
    (record,) = [record for record in caplog.records if record.name == "hf_clsi.training.initialize"]
    # Two layers of 2 * 32 * 32 + 2 * 32 * 16 (attention), 3 * 32 * 64 (MLP), 2 * 32 (norms), one norm of 32;
    # two matrices of 23 rows of 32.
    assert record.getMessage() == (
        "Started from x: 18,592 parameters kept, 1,472 new (23 tokens, untied "
        "embeddings, embeddings='random')."
    )


def test_a_bias_of_the_head_goes_with_the_words():
    with torch.random.fork_rng():
        base = PhiForCausalLM(PhiConfig(**SIZES)).eval()
    assert base.lm_head.bias is not None
    model = initialize_from_text_model(base, num_units=UNITS)
    assert model.lm_head.bias is None
    assert_same(body(model), body(base))


def test_text_part_of_a_multimodal_checkpoint_is_used_where_the_library_gives_it(tmp_path):
    base = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8)).eval()
    model = initialize_from_text_model(base, num_units=UNITS)
    assert model.config.text_config.model_type == "gemma3_text"
    embeddings = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    expected = base.model(inputs_embeds=embeddings).last_hidden_state
    assert torch.equal(model.model(inputs_embeds=embeddings).last_hidden_state, expected)


def refused(match, source, **settings):
    with pytest.raises(ValueError, match=match):
        initialize_from_text_model(source, num_units=UNITS, **settings)


def save_config(config, folder):
    """A folder with a config and no weights: whoever refuses it has not looked for weights."""
    config.save_pretrained(folder)
    return folder


def test_refuses_encoder_decoders(tmp_path):
    refused(r"is an encoder-decoder \(t5\)\. Start from a decoder-only", save_config(T5Config(), tmp_path))


def test_refuses_half_of_an_encoder_decoder():
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    with torch.random.fork_rng():
        base = BartForCausalLM(BartConfig(**sizes, vocab_size=30))
    refused("body of class BartDecoderWrapper, but .* of type 'bart' transformers builds BartModel", base)


def test_refuses_encoders(tmp_path):
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    refused("weights between its body and its head.*cls.predictions.transform", save_config(config, tmp_path))


def test_refuses_bodies_that_look_ahead():
    base = text_model()
    base.model.layers[1].self_attn.is_causal = False
    refused("is an encoder: its tokens see those after them", base)


def test_refuses_multimodal_models(tmp_path):
    refused(
        r"is more than a text model \(gemma3 holds a gemma3_text inside\)",
        save_config(Gemma3Config(), tmp_path),
    )


def test_refuses_speech_models(tmp_path):
    refused(r"clsi holds a llama inside", initialize_from_text_model(text_model(), num_units=UNITS))


def test_refuses_quantized_checkpoints(tmp_path):
    config = LlamaConfig(**SIZES)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    refused("is quantized", save_config(config, tmp_path))
    base = text_model()
    base.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    refused("is quantized", base)


def test_refuses_models_without_a_head():
    refused(r"\(LlamaModel\) has no head that predicts tokens", LlamaModel(LlamaConfig(**SIZES)))


def test_refuses_models_without_embeddings():
    base = text_model()
    base.get_input_embeddings = lambda: None
    refused("has no input embeddings", base)


def test_refuses_embeddings_narrower_than_the_body(tmp_path):
    config = OPTConfig(hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=1, num_attention_heads=2)
    refused("embeddings of 16 dimensions in a body of 32", save_config(config, tmp_path))


def test_refuses_adapters():
    peft = pytest.importorskip("peft")
    base = text_model()
    base.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    refused("carries adapters. Merge them first", base)
    refused(
        "got PeftModel.*merge_and_unload",
        peft.get_peft_model(text_model(), peft.LoraConfig(target_modules=["q_proj"])),
    )


def test_refuses_code_of_strangers(tmp_path):
    settings = {"model_type": "stranger", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    refused("is of type 'stranger', which brings code of its own", tmp_path)

    class StrangersModel(LlamaModel):
        pass

    base = text_model()
    base.model.__class__ = StrangersModel
    refused("body of class StrangersModel, but .* of type 'llama' transformers builds LlamaModel", base)


def test_refuses_weights_that_are_elsewhere():
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**SIZES))
    refused("not wholly in memory", base)


def test_refuses_embeddings_that_are_not_finite():
    base = text_model()
    base.get_input_embeddings().weight.data[7, 7] = float("nan")
    refused("not finite", base)


def test_refuses_what_is_no_model():
    refused("text_model must be a Hub id, a folder or a transformers model, got dict", {})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"embeddings": "zeros"}, "embeddings must be one of random, mean; got 'zeros'"),
        ({"noise_scale": -0.1}, "noise_scale must be a number of at least 0, got -0.1"),
        ({"noise_scale": float("nan")}, "noise_scale must be a number of at least 0, got nan"),
        ({"dtype": "int8"}, "dtype must be 'auto' or a floating-point type such as 'bfloat16', got 'int8'"),
        ({"dtype": "fp16"}, "got 'fp16'"),
        ({"text_config": {"hidden_size": 8}}, "text_config is the text model's own config"),
        ({"vocab_size": 23}, "does not know vocab_size.*num_units, num_merges"),
        ({"separator": "comma"}, "separator must be one of none, bos, eos"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        initialize_from_text_model(text_model(), **settings)


def test_checkpoint_that_lacks_weights_is_an_error(tmp_path):
    base = text_model("llama")
    weights = base.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    del weights["lm_head.weight"]
    base.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(
        RuntimeError, match=r"lacks weights of a LlamaForCausalLM.*layers.1.mlp.up_proj.weight"
    ):
        initialize_from_text_model(tmp_path, num_units=UNITS)


def test_body_that_contradicts_its_config_is_an_error():
    base = text_model("llama")
    base.config.num_hidden_layers = 3
    with pytest.raises(
        RuntimeError, match=r"does not fit.*missing: model.language_model.layers.2.input_layernorm"
    ):
        initialize_from_text_model(base, num_units=UNITS)
    base.config.num_hidden_layers = 1
    with pytest.raises(RuntimeError, match=r"without a place: model.language_model.layers.1.input_layernorm"):
        initialize_from_text_model(base, num_units=UNITS)


def test_body_of_two_number_types_is_an_error_until_one_is_chosen():
    base = text_model("llama", dtype=torch.bfloat16)
    base.model.norm.float()
    with pytest.raises(
        RuntimeError, match=r"of another number type: model.language_model.norm.weight.*pass dtype"
    ):
        initialize_from_text_model(base, num_units=UNITS)
    model = initialize_from_text_model(base, num_units=UNITS, dtype="float32")
    assert torch.equal(model.model.language_model.norm.weight, base.model.norm.weight)


@pytest.mark.gpu
def test_text_model_on_a_gpu_gives_the_same():
    base = text_model("qwen2", tie_word_embeddings=False)
    expected = initialize_from_text_model(base, num_units=UNITS).state_dict()
    assert_same(initialize_from_text_model(base.cuda(), num_units=UNITS).state_dict(), expected)
    assert base.device.type == "cuda"
