"""hub/export.py: what is written computes what the model computes, and its tokenizer says the same units."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.decoders import DecodeStream
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_clsi import ClsiConfig, ClsiFeatureExtractor, ClsiForCausalLM, ClsiProcessor
from hf_clsi.hub import export
from hf_clsi.hub.export import build_text_tokenizer, export_model, text_to_units, units_to_text, vllm_command
from hf_clsi.modeling_clsi import ISOLATING_DECODERS
from hf_clsi.processing_clsi import build_unit_tokenizer
from hf_clsi.units.merges import UnitMerges

PAIRS = [(7, 8), (30, 9), (1, 1), (31, 30)]  # 30 = "7 8", 31 = "7 8 9", 32 = "1 1", 33 = "7 8 9 7 8"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough for every part to be heard in the logits
}


def make_model(model_type="llama", merged=False, decoder=None, **settings):
    """A model of 30 units; `merged`: with the four merges above, over collapsed runs."""
    torch.manual_seed(0)
    if merged:
        settings = {"num_merges": 4, "deduplicate": True, **settings}
    text_config = {"model_type": model_type, **SIZES, **(decoder or {})}
    model = ClsiForCausalLM(ClsiConfig(num_units=30, text_config=text_config, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they begin at zero, where a lost one would not be missed
                parameter.normal_()
    return model


def make_processor(num_units=30, pairs=PAIRS, deduplicate=True):
    return ClsiProcessor(
        ClsiFeatureExtractor(), build_unit_tokenizer(num_units, pairs), deduplicate=deduplicate
    )


def prompts(config):
    """Three prompts of different lengths, padded on the left."""
    ids = torch.randint(config.num_units, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 5, 9)):
        ids[row, :padding], mask[row, :padding] = config.pad_token_id, 0
        ids[row, padding] = config.bos_token_id
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def difference(model, other):
    batch = prompts(model.config)
    seen = batch["attention_mask"].bool()
    return (model(**batch).logits - other(**batch).logits)[seen].abs().max().item()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3"])
def test_the_plain_model_computes_the_same(model_type, tied, tmp_path):
    rotary = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    model = make_model(model_type, tie_word_embeddings=tied, decoder={"rope_parameters": rotary}).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    assert export_model(model, tmp_path / "plain") == tmp_path / "plain"

    assert model.training and model.config.to_dict() == config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert (
        type(plain).__name__
        == {"qwen2": "Qwen2", "llama": "Llama", "qwen3": "Qwen3"}[model_type] + "ForCausalLM"
    )
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    assert difference(model.eval(), plain) <= 1e-5
    settings = {"do_sample": False, "max_new_tokens": 20}
    batch = prompts(model.config)
    assert model.generate(**batch, **settings).tolist() == plain.generate(**batch, **settings).tolist()


@pytest.mark.parametrize("model_type", sorted(ISOLATING_DECODERS | {"opt", "phi", "mixtral"}))
def test_every_decoder_has_its_plain_class(model_type, tmp_path):
    decoder = {
        "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},
        "granite": {"logits_scaling": 8.0},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "mixtral": {"num_local_experts": 2},
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    }.get(model_type)
    model = make_model(model_type, decoder=decoder)
    plain = AutoModelForCausalLM.from_pretrained(export_model(model, tmp_path / "plain"))
    assert plain.config.model_type == model_type
    assert difference(model, plain) <= 1e-5


def test_what_the_folder_says(tmp_path):
    rotary = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = make_model(
        merged=True,
        decoder={"rope_parameters": rotary},
        languages=["en", "fr"],
        audio_tokenizer_id=str(tmp_path / "mimi"),
    )
    model.generation_config.update(do_sample=True, temperature=0.7)
    make_processor().save_pretrained(tmp_path / "slm")
    model.save_pretrained(tmp_path / "slm")
    folder = export_model(tmp_path / "slm", tmp_path / "plain")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # all as readable as each other
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert b"auto_map" not in content and b"clsi" not in content.replace(b"hf-clsi export", b""), path

    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": 37,
        "bos_token_id": 34,
        "eos_token_id": 35,
        "pad_token_id": 36,
        "max_position_embeddings": 64,
        "rope_parameters": rotary,
        # As transformers 4 has it.
        "rope_theta": 500_000.0,
        "rope_scaling": {name: value for name, value in rotary.items() if name != "rope_theta"},
    }
    assert {name: config[name] for name in expected} == expected
    assert AutoConfig.from_pretrained(folder).rope_parameters == rotary
    generation = json.loads((folder / "generation_config.json").read_text())
    assert {name: generation[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 34,
        "eos_token_id": 35,
        "pad_token_id": 36,
    }
    assert generation["suppress_tokens"] == [34, 36] and generation["temperature"] == 0.7
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # both transformers 4 and 5 know it
    assert settings["model_max_length"] == 64 and settings["padding_side"] == "left"
    readme = (folder / "README.md").read_text()
    assert "# slm, for engines" in readme and "Languages: en, fr." in readme and "(`mimi`)" in readme
    assert "collapses runs of equal units and merges units" in readme
    assert "| `30` .. `33` | merges of units |\n| `34` | `<|bos|>`" in readme
    assert '`"logit_bias": {"34": -100, "36": -100}`' in readme
    assert vllm_command(folder) == (
        f"vllm serve {folder} --served-model-name plain --max-model-len 64 --dtype float32"
    )


ELSEWHERE = """
import json, re, sys, os
sys.modules["hf_clsi"] = None
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {}
for name in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    batch = tokenizer(["<|u1|><|u1|><|u7|><|u8|><|u9|>", "<|u4|>"], padding=True, return_tensors="pt")
    ids = model.generate(**batch, do_sample=False, max_new_tokens=10)
    found[name] = [type(model).__name__, batch["input_ids"].tolist(), ids.tolist(),
                   tokenizer.batch_decode(ids, skip_special_tokens=True)]
    os.chdir(name)
    exec(re.search("```python\\n(.*?)```", open("README.md").read(), re.S)[1])
    os.chdir("..")
print(json.dumps(found))
"""


def test_plain_transformers_loads_it_where_hf_clsi_does_not_exist(tmp_path):
    models = {"plain": make_model("qwen2"), "merged": make_model("llama", merged=True)}
    inputs = {
        "plain": [[30, 1, 1, 7, 8, 9], [32, 32, 32, 32, 30, 4]],
        "merged": [[34, 1, 31], [36, 34, 4]],
    }
    for name, model in models.items():
        export_model(model, tmp_path / name, tokenizer=make_processor() if name == "merged" else None)
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *models],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,  # the assertion below shows what went wrong
    )
    assert result.returncode == 0, result.stderr[-4000:]
    *_, last = result.stdout.splitlines()
    for name, (kind, batch, ids, texts) in json.loads(last).items():
        model, processor = (
            models[name],
            make_processor(pairs=PAIRS if name == "merged" else [], deduplicate=False),
        )
        assert kind == {"plain": "Qwen2ForCausalLM", "merged": "LlamaForCausalLM"}[name]
        assert batch == inputs[name]
        mask = torch.tensor(batch) != model.config.pad_token_id
        ours = model.generate(torch.tensor(batch), attention_mask=mask, do_sample=False, max_new_tokens=10)
        assert ids == ours.tolist()
        units = [processor.decode_units(row) for row in ours]
        assert [text_to_units(text).tolist() for text in texts] == [row.tolist() for row in units]
    for noise in ("LOAD REPORT", "UNEXPECTED", "MISSING", "newly initialized", "remote code"):
        assert noise not in result.stderr


@pytest.mark.parametrize("num_units", [64, 2048])
@pytest.mark.parametrize("case", ["plain", "deduplicated", "merged", "merged and deduplicated"])
def test_text_gives_the_ids_of_the_processor(case, num_units, tmp_path):
    generator = np.random.default_rng(num_units)
    deduplicate = "deduplicated" in case

    def speech(length):  # few units are frequent, as in speech, and some last long
        units = (num_units * generator.beta(0.3, 3, size=length)).astype(np.uint16)
        return units.repeat(generator.integers(1, 4, size=length))

    pairs = []
    if "merged" in case:
        merges = UnitMerges.learn([speech(300) for _ in range(30)], num_units, 150, deduplicate, False)
        pairs = merges.pairs
        assert len(pairs) > 100
    processor = make_processor(num_units, pairs, deduplicate)
    build_text_tokenizer(processor.tokenizer, num_units, deduplicate).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == len(processor.tokenizer)
    every = np.arange(num_units, dtype=np.uint16)
    for units in [every, every[::-1], *(speech(length) for length in [0, 1, 2, 3, *range(10, 170, 40)])]:
        expected = processor.encode_units(units).tolist()
        text = units_to_text(units)
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        ids = tokenizer(text).input_ids
        assert ids == [processor.tokenizer.bos_token_id, *expected]
        said = tokenizer.decode(ids, skip_special_tokens=True)
        assert said == units_to_text(processor.decode_units(expected))
        stream = DecodeStream(skip_special_tokens=True)  # as engines decode while they generate
        pieces = [stream.step(tokenizer.backend_tokenizer, token) for token in ids[:100]]
        assert "".join(piece or "" for piece in pieces) == tokenizer.decode(
            ids[:100], skip_special_tokens=True
        )


def test_special_tokens_in_a_text():
    tokenizer = build_text_tokenizer(build_unit_tokenizer(30, PAIRS), 30, deduplicate=True)
    text = "<|u7|><|u7|><|bos|><|u7|><|u8|><|eos|><|u8|>"
    assert tokenizer(text).input_ids == [34, 7, 34, 30, 35, 8]  # nothing collapses or merges across them
    assert tokenizer.decode([34, 7, 34, 30, 35, 8]) == "<|bos|><|u7|><|bos|><|u7|><|u8|><|eos|><|u8|>"
    assert tokenizer("").input_ids == [34]
    batch = tokenizer(["<|u4|>", "<|u1|><|u2|><|u3|>"], padding=True)
    assert dict(batch) == {
        "input_ids": [[36, 36, 34, 4], [34, 1, 2, 3]],
        "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]],
    }


@pytest.mark.parametrize(
    "text", ["hello", "<|u30|>", "<|u1|> <|u2|>", "<|u1|>\n", "<|u01|>", "<|u1|", "<|unk|>"]
)
@pytest.mark.parametrize("pairs", [[], PAIRS], ids=["units", "merges"])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_text_that_is_no_unit_is_refused(text, pairs, deduplicate):
    tokenizer = build_text_tokenizer(build_unit_tokenizer(30, pairs), 30, deduplicate)
    with pytest.raises(Exception, match=r"(?i)unk"):  # the library's own error, of no particular class
        tokenizer(text)


def test_transformers_reads_a_qwen2_as_another_class(tmp_path, caplog):
    """A limitation of transformers 5: units are safe from it, other text vanishes. See docs/serving.md."""
    folder = export_model(make_model("qwen2"), tmp_path / "qwen2")
    assert "drops without a word what is no unit" in caplog.text and "--as-llama" in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert tokenizer("<|u7|><|u29|>").input_ids == [30, 7, 29]
    assert tokenizer("<|u7|>hello<|u30|><|endoftext|>").input_ids == [30, 7]
    assert tokenizer.decode([30, 7, 29, 31]) == "<|bos|><|u7|><|u29|><|eos|>"
    assert len(tokenizer) == 33  # no token behind the embeddings
    caplog.clear()
    export_model(make_model("llama"), tmp_path / "llama")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_qwen2_with_merges_is_written_as_the_llama_that_it_is(tmp_path):
    model = make_model("qwen2", merged=True)
    with pytest.raises(
        ValueError, match=r"which cannot say that units are deduplicated and merged.*as_llama=True"
    ):
        export_model(model, tmp_path / "plain", tokenizer=make_processor())
    assert list(tmp_path.iterdir()) == []
    folder = export_model(model, tmp_path / "plain", tokenizer=make_processor(), as_llama=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert difference(model, plain) <= 1e-5
    assert AutoTokenizer.from_pretrained(folder)("<|u7|><|u7|><|u8|>").input_ids == [34, 30]


def test_as_llama_is_for_a_qwen2_of_full_attention(tmp_path):
    with pytest.raises(ValueError, match="'qwen2', and this one is a 'qwen3'"):
        export_model(make_model("qwen3"), tmp_path / "plain", as_llama=True)
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    with pytest.raises(ValueError, match="sliding windows"):
        export_model(make_model("qwen2", decoder=sliding), tmp_path / "plain", as_llama=True)


def test_shards(tmp_path):
    model = make_model(tie_word_embeddings=False)
    folder = export_model(model, tmp_path / "plain", max_shard_size="20KB")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert (folder / "model.safetensors.index.json").exists()
    assert difference(model, AutoModelForCausalLM.from_pretrained(folder)) <= 1e-5


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_bfloat16(tied, tmp_path):
    model = make_model("qwen2", tie_word_embeddings=tied)
    folder = export_model(model, tmp_path / "rounded", dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    weights = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in weights) != tied
    for name, tensor in weights.items():
        ours = "lm_head.weight" if name == "lm_head.weight" else f"model.language_model.{name[6:]}"
        assert torch.equal(tensor, model.state_dict()[ours].bfloat16())
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.dtype == torch.bfloat16
    # The same numbers from our class, as loaded in bfloat16; and a model in bfloat16 stays in it.
    model.save_pretrained(tmp_path / "slm")
    rounded = ClsiForCausalLM.from_pretrained(tmp_path / "slm", dtype=torch.bfloat16)
    assert difference(rounded, plain) == 0
    again = export_model(model.to(torch.bfloat16), tmp_path / "again")
    for name, tensor in load_file(again / "model.safetensors").items():
        assert torch.equal(tensor, weights[name])


def test_a_model_of_the_hub_is_called_by_its_id(tmp_path):
    cache = Path(os.environ["HF_HOME"], "hub", "models--someone--slm-tiny")
    revision = "0123456789abcdef0123456789abcdef01234567"
    try:
        make_model().save_pretrained(cache / "snapshots" / revision)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(revision)
        folder = export_model("someone/slm-tiny", tmp_path / "plain")
    finally:
        shutil.rmtree(cache)
    readme = (folder / "README.md").read_text()
    assert (
        "# someone/slm-tiny, for engines" in readme and "the one that comes with `someone/slm-tiny`" in readme
    )


def test_an_adapter_is_merged(tmp_path):
    from peft import LoraConfig, get_peft_model

    make_processor().save_pretrained(tmp_path / "slm")
    base = make_model(merged=True)
    base.save_pretrained(tmp_path / "slm")
    base = ClsiForCausalLM.from_pretrained(tmp_path / "slm")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(export_model(tmp_path / "adapter", tmp_path / "plain"))
    assert difference(adapted, plain) <= 1e-5
    assert difference(make_model(merged=True), plain) > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")("<|u7|><|u8|>").input_ids == [34, 30]

    with pytest.raises(ValueError, match=r"got PeftModelForCausalLM. Merge an adapter first"):
        export_model(adapted, tmp_path / "other")
    with pytest.raises(ValueError, match=r"not those of a LlamaForCausalLM: 56 are .*Merge adapters first"):
        export_model(adapted.base_model.model, tmp_path / "other", tokenizer=make_processor())
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (None, "has 4 merges of units, which its config does not hold"),
        (build_unit_tokenizer(30), r"\(33 tokens\) is not the unit tokenizer of this model, which has 37"),
        (build_unit_tokenizer(34), r"\(37 tokens\) is not the unit tokenizer"),
        (UnitMerges(30, PAIRS, deduplicate=False), "deduplicate=True, but its UnitMerges has False"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(tokenizer, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(make_model(merged=True), tmp_path / "plain", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_merges_come_in_any_form(tmp_path):
    model, processor = make_model(merged=True), make_processor()
    forms = [processor, processor.tokenizer, UnitMerges(30, PAIRS, deduplicate=True)]
    written = [
        (export_model(model, tmp_path / str(i), tokenizer=form, verify=False) / "tokenizer.json").read_bytes()
        for i, form in enumerate(forms)
    ]
    assert written[0] == written[1] == written[2]


def test_models_that_are_not_ours_are_refused(tmp_path):
    folder = export_model(make_model(), tmp_path / "plain")
    with pytest.raises(ValueError, match="of type 'llama', not of units"):
        export_model(folder, tmp_path / "again")
    with pytest.raises(ValueError, match="got LlamaForCausalLM"):
        export_model(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "again")
    with pytest.raises(OSError):
        export_model(tmp_path / "nothing", tmp_path / "again")
    make_model(merged=True).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"no tokenizer was found in .*bare\. Save its processor"):
        export_model(tmp_path / "bare", tmp_path / "again")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        export_model(make_model(), tmp_path / "again", dtype="int8")
    with torch.device("meta"):
        empty = ClsiForCausalLM(ClsiConfig(num_units=30, text_config=SIZES))
    with pytest.raises(ValueError, match="is not in memory"):
        export_model(empty, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "plain"]


def test_only_an_earlier_export_is_overwritten(tmp_path):
    model = make_model()
    folder = export_model(model, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"plain is not empty.*--overwrite"):
        export_model(model, folder)
    export_model(model, folder, dtype="float16", max_shard_size="20KB", overwrite=True)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert not (folder / "model.safetensors").exists()  # replaced, not mixed
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which no export has written"):
        export_model(model, folder, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        export_model(model, folder / "notes.txt", overwrite=True)
    model.save_pretrained(tmp_path / "slm")
    for target in (tmp_path / "slm", tmp_path):
        with pytest.raises(ValueError, match="holds the model itself"):
            export_model(tmp_path / "slm", target, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert (export_model(model, tmp_path / "empty", verify=False) / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "plain", "slm"]


@pytest.mark.parametrize("fault", ["config", "weights", "head"])
def test_what_differs_is_not_exported(fault, tmp_path, monkeypatch):
    """Each fault is put between writing and reading back; an earlier export stays as it was."""
    folder = export_model(make_model(), tmp_path / "plain")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = make_model("granite", decoder={"logits_scaling": 8.0})
    message = "logits of the exported GraniteForCausalLM differ"
    if fault == "head":
        monkeypatch.setattr(export, "HEAD_SETTINGS", {})
    else:
        write = export._add_old_names

        def spoil(path):
            write(path)
            if fault == "config":
                config = json.loads(path.read_text())
                config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 123.0
                path.write_text(json.dumps(config))
            else:
                content = bytearray((path.parent / "model.safetensors").read_bytes())
                content[-2] ^= 64
                (path.parent / "model.safetensors").write_bytes(content)

        monkeypatch.setattr(export, "_add_old_names", spoil)
        message = message if fault == "config" else "was not read back as it was written"
    with pytest.raises(RuntimeError, match=message):
        export_model(model, folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    export_model(model, folder, overwrite=True, verify=False)


def test_units_and_text():
    assert units_to_text(np.array([17, 4, 65_535], dtype=np.uint16)) == "<|u17|><|u4|><|u65535|>"
    assert units_to_text([]) == ""
    units = text_to_units("<|bos|><|u17|><|u4|><|bos|><|u65535|><|eos|><|pad|>")
    assert units.dtype == np.uint16 and units.tolist() == [17, 4, 65_535]
    assert text_to_units("").tolist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<|u1|>hello", "got 'hello' at character 6"),
        ("<|u1|> <|u2|>", "at character 6"),
        ("<|u1|>\n", "at character 6"),
        ("<|u-1|>", "at character 0"),
        ("<|u01|>", "at character 0"),
        ("<|u١|>", "at character 0"),
        ("<|unk|>", "at character 0"),
        ("<|u65536|>", "0..65535 .*got 65536"),
        ("<|u1", "at character 0"),
    ],
)
def test_other_text_is_no_units(text, message):
    with pytest.raises(ValueError, match=message):
        text_to_units(text)


@pytest.mark.parametrize("units", [[-1], [65_536], [1.0], [[1, 2]]])
def test_other_numbers_are_no_units(units):
    with pytest.raises(ValueError, match="Units must"):
        units_to_text(units)


def test_documented_examples():
    import doctest

    for function in (units_to_text, text_to_units, build_text_tokenizer):
        names = {**vars(export)}
        for test in doctest.DocTestFinder(recurse=False).find(function, globs=names):
            assert test.examples and doctest.DocTestRunner().run(test).failed == 0


def test_the_programs_of_the_page_on_serving(tmp_path, monkeypatch):
    """The one for transformers runs; of the one for a server, which is not here, the names are checked."""
    page = (Path(export.__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    local, client = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    export_model(make_model(merged=True), tmp_path / "served", tokenizer=make_processor())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(local, names)
    assert names["text"].startswith("<|u17|><|u4|><|u9|>") and len(names["tokens"][0]) > 4
    compile(client, "client", "exec")
    imports = [line for line in client.splitlines() if re.match("import|from", line)]
    assert len(imports) == 5
    exec("\n".join(imports), names)
