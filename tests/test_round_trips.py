"""Saved, loaded and saved again: the same files, weights, configs and outputs, however it is loaded."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

from hf_clsi import (
    ClsiConfig,
    ClsiFeatureExtractor,
    ClsiForCausalLM,
    ClsiModel,
    ClsiProcessor,
    ClsiUnitsConfig,
    ClsiUnitsModel,
)
from hf_clsi.processing_clsi import build_unit_tokenizer

BODY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 11,  # two digits: names of layers sort in two ways
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
IDS = torch.tensor([[34, 1, 32, 7, 8, 33]])  # bos, units, merges
SHARD = "32KB"  # a few shards
MODEL_FILES = [
    "config.json",
    "configuration_clsi.py",
    "generation_clsi.py",
    "generation_config.json",
    "model.safetensors",
    "modeling_clsi.py",
    "pipeline_clsi.py",
]
AUDIO_TOKENIZER_FILES = {
    "mimi": ["config.json", "model.safetensors"],
    "units": ["config.json", "configuration_clsi_units.py", "model.safetensors", "modeling_clsi_units.py"],
}


def build(tie=True, seed=0, **settings):
    torch.manual_seed(seed)
    config = ClsiConfig(
        num_units=32,
        num_merges=2,
        deduplicate=True,
        separator="bos",
        languages=["en", "fr"],
        tie_word_embeddings=tie,
        text_config={"model_type": "llama", **BODY},
        **settings,
    )
    return ClsiForCausalLM(config).eval()


def files(folder):
    """{relative path: bytes} of all that lies in a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def assert_same_weights(model, expected):
    weights, wanted = model.state_dict(), expected.state_dict()
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert weights[name].dtype == tensor.dtype, name
        assert torch.equal(weights[name], tensor), name


def fields(config):
    """A config as a dict, without where it was loaded from."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def saved(request, tmp_path_factory):
    """(model, its checkpoint in one file); tests leave both as they are."""
    model = build(request.param)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return model, folder


# -- save, load, save ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tie", "dtype"),
    [
        ("units", True, torch.float32),
        ("units", True, torch.bfloat16),
        ("units", False, torch.float32),
        ("units", False, torch.bfloat16),
        ("mimi", True, torch.float32),
        ("mimi", False, torch.bfloat16),
    ],
    ids=str,
)
def test_the_whole_checkpoint_is_the_same_to_the_byte(kind, tie, dtype, tiny_mimi, tmp_path):
    if kind == "mimi":
        audio_tokenizer, rate = tiny_mimi(), 24_000
    else:
        audio_tokenizer, rate = ClsiUnitsModel(ClsiUnitsConfig(num_units=32)).eval(), 16_000
        audio_tokenizer.mean_run_length.copy_(torch.linspace(1, 4, 32))
    model = build(tie, sampling_rate=rate, audio_tokenizer_id="./audio_tokenizer").to(dtype)
    processor = ClsiProcessor(
        ClsiFeatureExtractor(sampling_rate=rate),
        build_unit_tokenizer(32, [(7, 8), (32, 9)]),
        audio_tokenizer,
        deduplicate=True,
    )
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        processor = AutoProcessor.from_pretrained(folder)
    first, second, third = map(files, folders)
    assert sorted(first) == sorted(
        [
            *MODEL_FILES,
            *("feature_extraction_clsi.py", "processing_clsi.py", "processor_config.json"),
            *("tokenizer.json", "tokenizer_config.json"),
            *(f"audio_tokenizer/{name}" for name in AUDIO_TOKENIZER_FILES[kind]),
        ]
    )
    assert first == second == third
    assert json.loads(first["config.json"])["dtype"] == str(dtype).removeprefix("torch.")
    with safe_open(folders[0] / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) is not tie  # noqa: SIM118
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {dtype}  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_shards(tie, dtype, tmp_path):
    model = build(tie).to(dtype)
    model.save_pretrained(tmp_path / "a", max_shard_size=SHARD)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype="auto")
    assert_same_weights(loaded, model)
    loaded.save_pretrained(tmp_path / "b", max_shard_size=SHARD)
    first = files(tmp_path / "a")
    assert files(tmp_path / "b") == first
    shards = sorted(name for name in first if name.endswith(".safetensors"))
    assert len(shards) > 2
    assert shards == [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]

    index = json.loads(first["model.safetensors.index.json"])
    held = {name: shard for shard in shards for name in load_file(tmp_path / "a" / shard)}
    assert index["weight_map"] == held
    assert index["metadata"]["total_parameters"] == model.num_parameters()
    assert index["metadata"]["total_size"] == model.num_parameters() * dtype.itemsize
    assert ("lm_head.weight" in held) is not tie

    # In one file again, it is what it would have been at once.
    loaded.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "at-once")
    assert files(tmp_path / "one") == files(tmp_path / "at-once")
    assert sorted(files(tmp_path / "one")) == MODEL_FILES


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("decoder", "sizes"),
    [
        ("qwen2", BODY),
        ("qwen3", {**BODY, "head_dim": 8}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),  # embeddings: wte
        ("opt", {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "word_embed_proj_dim": 32}),  # embeddings: decoder.embed_tokens
    ],
)  # fmt: skip
def test_other_decoders_come_back(decoder, sizes, tie, tmp_path):
    torch.manual_seed(0)
    model = ClsiForCausalLM(
        ClsiConfig(num_units=34, text_config={"model_type": decoder, **sizes}, tie_word_embeddings=tie)
    ).eval()
    model.save_pretrained(tmp_path / "a")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report.values())
    assert_same_weights(loaded, model)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tie
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    loaded.save_pretrained(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(
    ("first", "second"), [(None, SHARD), (SHARD, None), (SHARD, "64KB"), ("64KB", SHARD)], ids=str
)
def test_a_folder_that_is_saved_into_twice_holds_the_second_model_only(first, second, tmp_path):
    """A file in one piece that stays beside new shards would be loaded instead of them."""
    old, new = build(False, seed=1), build(False, seed=2)
    size = {name: {"max_shard_size": value} if value else {} for name, value in (("1", first), ("2", second))}
    old.save_pretrained(tmp_path / "twice", **size["1"])
    new.save_pretrained(tmp_path / "twice", **size["2"])
    new.save_pretrained(tmp_path / "once", **size["2"])
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "twice"), new)
    assert files(tmp_path / "twice") == files(tmp_path / "once")


def test_a_model_may_be_saved_where_it_was_loaded_from(saved, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path)
    before = files(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert files(tmp_path) == before


# -- loading as usual ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"device_map": torch.device("cpu")},
        {"low_cpu_mem_usage": True},
        {"use_safetensors": True},
        {"local_files_only": True},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_arguments_of_from_pretrained(arguments, saved):
    model, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    assert type(loaded) is ClsiForCausalLM
    assert loaded.device == torch.device("cpu")
    assert not loaded.training
    assert_same_weights(loaded, model)
    tied = loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert tied is model.config.tie_word_embeddings
    assert loaded.config._attn_implementation == arguments.get("attn_implementation", "sdpa")
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device_map", [None, "auto"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        ("float16", torch.float16),
        ("auto", torch.float32),
        (None, torch.float32),
    ],
    ids=str,
)
def test_number_types_at_loading(dtype, expected, device_map, saved):
    model, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device_map)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded.config.dtype == loaded.config.text_config.dtype == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(expected)), name
    assert loaded(IDS).logits.dtype == expected


def test_a_bfloat16_checkpoint_keeps_its_type_unless_told_otherwise(tmp_path):
    build().to(torch.bfloat16).save_pretrained(tmp_path)
    types = {dtype: AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).dtype for dtype in
             ("auto", None, torch.float32)}  # fmt: skip
    assert types == {"auto": torch.bfloat16, None: torch.bfloat16, torch.float32: torch.float32}
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_on_the_meta_device_without_any_weight(saved):
    model, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="meta")
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"meta"}
    assert loaded.num_parameters() == model.num_parameters()
    assert loaded(IDS.to("meta")).logits.shape == (1, 6, 37)


def test_layers_on_the_disk(saved, tmp_path):
    """Of a model that is larger than the memory; accelerate brings each layer when its turn comes."""
    model, folder = saved
    places = ("embed_tokens", *(f"layers.{n}" for n in range(11)), "norm", "rotary_emb")
    device_map = {f"model.language_model.{name}": "cpu" for name in places} | {"lm_head": "cpu"}
    device_map["model.language_model.layers.1"] = "disk"
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert loaded.model.language_model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert loaded.hf_device_map == device_map
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(IDS, **settings), model.generate(IDS, **settings))


def test_accelerate_may_split_between_layers_only(saved):
    model, _ = saved
    assert model._no_split_modules == {"LlamaDecoderLayer"}


def test_tied_embeddings_are_untied_at_loading(tmp_path):
    model = build(True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert loaded.config.tie_word_embeddings is loaded.config.text_config.tie_word_embeddings is False
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight


# -- configs -------------------------------------------------------------------------------------------------


def test_configs_are_equal_after_every_trip(saved, tmp_path):
    model, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert fields(loaded.config) == fields(model.config)
    assert fields(AutoConfig.from_pretrained(folder)) == fields(model.config)
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    assert loaded.generation_config.suppress_tokens == [36]
    assert loaded.config.architectures == ["ClsiForCausalLM"]
    loaded.save_pretrained(tmp_path)
    assert fields(AutoModelForCausalLM.from_pretrained(tmp_path).config) == fields(model.config)


def test_saving_and_loading_change_no_model(saved, tmp_path):
    model, _ = saved
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    model.save_pretrained(tmp_path, max_shard_size=SHARD)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.to_dict() == config
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_config_alone_rebuilds_the_model(saved):
    model, folder = saved
    config = AutoConfig.from_pretrained(folder)
    before = config.to_dict()
    again = AutoModelForCausalLM.from_config(config)
    assert type(again) is ClsiForCausalLM
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert type(AutoModel.from_config(config)) is ClsiModel
    assert {**config.to_dict(), "dtype": before["dtype"]} == before


# -- with and without a head ---------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, ClsiModel.from_pretrained], ids=["auto", "own"])
def test_the_base_model_comes_out_of_a_causal_lm(load, saved, tmp_path):
    model, folder = saved
    base, report = load(folder, output_loading_info=True)
    assert type(base) is ClsiModel
    assert not any(report.values())
    assert_same_weights(base, model.model)
    base.save_pretrained(tmp_path / "base")
    assert sorted(files(tmp_path / "base")) == [
        name for name in MODEL_FILES if "generation_config" not in name
    ]
    base.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "base")
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "base"), model.model)


def test_a_causal_lm_comes_out_of_the_base_model(saved, tmp_path):
    model, _ = saved
    model.model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ClsiForCausalLM
    assert_same_weights(loaded.model, model.model)
    if model.config.tie_word_embeddings:
        assert not any(report.values())
        assert_same_weights(loaded, model)
    else:  # the head is not in a base model, and transformers says so
        assert report.pop("missing_keys") == {"lm_head.weight"}
        assert not any(report.values())


@pytest.mark.parametrize(
    "kept", [None, {"eos_token_id": 35, "pad_token_id": 36}], ids=["no file", "old file"]
)
def test_a_checkpoint_without_the_constraint_generates_units_only(kept, tmp_path):
    """A base model has no generation_config.json, and an older one does not name the tokens."""
    model = build()
    model.model.save_pretrained(tmp_path)
    if kept is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(kept))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == model.generation_config.suppress_tokens == [36]


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM])
def test_pickles_are_never_read(auto_class, saved, tmp_path):
    model, _ = saved
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        auto_class.from_pretrained(tmp_path, use_safetensors=True)
