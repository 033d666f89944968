"""Facts of a machine and a decoder become a choice, and a choice is applied to a model and taken back."""

import json
import os

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, Trainer, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.configuration_clsi import SIZES as CONFIGS
from hf_clsi.training.recipes import ModelSettings
from hf_clsi.training.speed import (
    ATTENTIONS,
    Decoder,
    Machine,
    SpeedChoice,
    apply_speed,
    check_isolation,
    choose_speed,
    detect_machine,
)

CPU = Machine("cpu")
ALL_PACKAGES = frozenset(("flash_attention_2", "flash_attention_3", "triton"))
PAPER = ModelSettings(CONFIGS["360m"]["text_config"], dtype="bfloat16")


def cuda(*packages, capability=(9, 0), bf16=True):
    return Machine("cuda", "a GPU", capability, bf16, frozenset(packages))


HOPPER = cuda(*ALL_PACKAGES)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def build(**settings):
    torch.manual_seed(0)
    return ClsiForCausalLM(ClsiConfig(num_units=20, text_config={**SIZES, **settings}))


def settings_of(choice):
    return choice.attention, choice.dtype, choice.compile, choice.fused, choice.flash_kwargs, choice.tf32


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (CPU, ("sdpa", "float32", False, True, False, False)),
        (Machine("mps"), ("sdpa", "float32", False, True, False, False)),
        (Machine("npu"), ("sdpa", "float32", False, False, False, False)),
        (HOPPER, ("flash_attention_3", "bfloat16", True, True, True, True)),
        (cuda("flash_attention_2", "triton"), ("flash_attention_2", "bfloat16", True, True, True, True)),
        (cuda(*ALL_PACKAGES, capability=(8, 0)), ("flash_attention_2", "bfloat16", True, True, True, True)),
        (cuda("triton"), ("varlen", "bfloat16", True, True, True, True)),
        (cuda(), ("varlen", "bfloat16", False, True, True, True)),
        (cuda(*ALL_PACKAGES, capability=(7, 0), bf16=False), ("sdpa", "float32", False, True, False, False)),
    ],
)
def test_what_a_machine_gets(machine, expected):
    assert settings_of(choose_speed(PAPER, machine=machine)) == expected
    assert (
        settings_of(choose_speed(machine=machine)) == expected
    )  # no settings: a Llama, as fast as it can be


def test_long_rows_of_isolated_documents_are_cut_into_documents_on_a_cpu():
    assert choose_speed(PAPER, machine=CPU, max_length=2048).attention == "varlen"
    assert choose_speed(PAPER, machine=CPU, max_length=512).attention == "sdpa"
    assert choose_speed(PAPER, machine=CPU, max_length=2048, isolate=False).attention == "sdpa"
    assert choose_speed(PAPER, machine=Machine("mps"), max_length=2048).attention == "sdpa"
    gpt_neo = ModelSettings({"model_type": "gpt_neo"})
    assert choose_speed(gpt_neo, machine=CPU, max_length=2048).attention == "eager"


def test_a_recipe_in_float32_stays_in_float32():
    choice = choose_speed(ModelSettings(SIZES, dtype="float32"), machine=HOPPER)
    assert settings_of(choice) == ("sdpa", "float32", False, True, False, False)


def test_documents_that_are_not_isolated_need_no_borders():
    choice = choose_speed(PAPER, machine=HOPPER, isolate=False)
    assert settings_of(choice)[0::4] == ("flash_attention_3", False)
    choice = choose_speed(PAPER, machine=cuda("triton"), isolate=False)
    assert settings_of(choice)[0::4] == ("sdpa", False)
    assert any("leave position_ids out" in reason for reason in choice.reasons)


@pytest.mark.parametrize(
    ("text_config", "packages", "attention"),
    [
        ({"model_type": "gemma2"}, {"triton"}, "flex_attention"),  # capped scores
        ({"model_type": "gemma2"}, (), "eager"),
        ({**SIZES, "attention_dropout": 0.1}, {"triton"}, "sdpa"),
        ({**SIZES, "attention_dropout": 0.1}, ALL_PACKAGES, "flash_attention_3"),
        ({**SIZES, "head_dim": 320}, ALL_PACKAGES, "flex_attention"),
        ({"model_type": "gpt_neo"}, {"triton"}, "eager"),  # attention of its own
    ],
)
def test_a_decoder_gets_what_it_can_use(text_config, packages, attention):
    settings = ModelSettings(text_config, dtype="bfloat16")
    assert choose_speed(settings, machine=cuda(*packages)).attention == attention


def test_a_decoder_without_sdpa_is_eager_on_a_cpu():
    assert choose_speed(ModelSettings({"model_type": "gemma2"}), machine=CPU).attention == "eager"


def test_the_facts_of_a_decoder():
    assert Decoder.of(CONFIGS["360m"]["text_config"]) == Decoder("qwen2", 64, 0.0)
    gpt2 = Decoder.of({"model_type": "gpt2", "n_embd": 96, "n_head": 4})
    assert (gpt2.head_size, gpt2.dropout) == (24, 0.1)
    assert Decoder.of(ClsiConfig(num_units=20, text_config=SIZES).text_config).head_size == 8


def test_what_is_asked_for_is_taken():
    choice = choose_speed(PAPER, machine=HOPPER, attention="sdpa", compile=False, dtype="float32",
                          optimizer="adamw_torch")  # fmt: skip
    assert settings_of(choice) == ("sdpa", "float32", False, False, False, False)
    assert all(reason.endswith("asked for") for reason in choice.reasons)
    choice = choose_speed(machine=CPU, attention="varlen", compile=True)
    assert settings_of(choice) == ("varlen", "float32", True, True, True, False)


@pytest.mark.parametrize(
    ("machine", "asked", "message"),
    [
        (cuda("triton"), {"attention": "flash_attention_2"}, "needs the package flash-attn "),
        (cuda("triton"), {"attention": "flash_attention_3"}, "needs the package flash-attn-3"),
        (cuda(*ALL_PACKAGES, capability=(8, 6)), {"attention": "flash_attention_3"}, "Hopper"),
        (cuda(*ALL_PACKAGES, capability=(7, 5), bf16=False), {"attention": "varlen"}, "half precision only"),
        (HOPPER, {"attention": "flash_attention_2", "dtype": "float32"}, "half precision only"),
        (CPU, {"attention": "flash_attention_2"}, "on CUDA devices only"),
        (CPU, {"attention": "flex_attention"}, "on CUDA devices only"),
        (cuda(), {"attention": "flex_attention"}, "triton"),
        (cuda(), {"compile": True}, "triton"),
        (cuda(capability=(7, 0), bf16=False), {"dtype": "bfloat16"}, "does not compute in it in hardware"),
        (Machine("npu"), {"optimizer": "adamw_torch_fused"}, "does not exist on 'npu'"),
        (CPU, {"attention": "flash"}, "attention must be one of auto, sdpa, eager, varlen"),
        (CPU, {"dtype": "float16"}, "dtype must be one of"),
        (CPU, {"compile": "yes"}, "compile must be"),
        (CPU, {"device": "cuda"}, "does not go with a machine"),
    ],
)
def test_what_is_impossible_is_refused(machine, asked, message):
    with pytest.raises(ValueError, match=message):
        choose_speed(PAPER, machine=machine, **asked)


def test_bfloat16_on_a_cpu_warns():
    with pytest.warns(UserWarning, match="bfloat16 on a CPU"):
        choice = choose_speed(machine=CPU, dtype="bfloat16")
    assert choice.dtype == "bfloat16" and not choice.tf32


def test_a_choice_is_described_with_its_reasons():
    lines = choose_speed(PAPER, machine=cuda("triton")).describe().splitlines()
    assert lines[0] == (
        "speed on cuda (a GPU): attention varlen (borders of documents from the collator), bfloat16 with "
        "TF32, torch.compile, fused AdamW"
    )
    assert len(lines) == 4 and "not flash_attention_2: it needs the package flash-attn (pip" in lines[2]
    assert choose_speed(machine=CPU).describe().splitlines()[0] == (
        "speed on cpu: attention sdpa, float32, no torch.compile, fused AdamW"
    )


def test_the_machine_of_this_process():
    assert detect_machine("cpu") == CPU
    if not torch.cuda.is_available():
        assert detect_machine() == CPU
        with pytest.raises(ValueError, match="no CUDA device"):
            detect_machine("cuda")


def test_a_choice_is_applied_and_taken_back():
    model = build()
    before = model.config.to_dict()
    with apply_speed(model, choose_speed(machine=CPU, attention="eager")):
        assert model.config._attn_implementation == "eager"
        assert model.model.language_model.config._attn_implementation == "eager"
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "sdpa" and model.config.to_dict() == before
    applied = apply_speed(model, choose_speed(machine=CPU, attention="varlen"))
    assert model.config.get_text_config()._attn_implementation == "varlen"
    applied.close()
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_an_applied_attention_is_not_saved(tmp_path):
    model = build()
    apply_speed(model, choose_speed(machine=CPU, attention="varlen"))
    model.save_pretrained(tmp_path)
    assert "varlen" not in (tmp_path / "config.json").read_text()
    loaded = ClsiForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.get_text_config()._attn_implementation == "sdpa"


def test_tf32_holds_for_the_run_only():
    model = build()
    choice = SpeedChoice("sdpa", "float32", False, True, False, (), tf32=True)
    assert torch.get_float32_matmul_precision() == "highest"
    with apply_speed(model, choice):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_isolation_is_tried_without_a_trace(attention):
    model = build(attention_dropout=0.0).train()
    model.model.language_model.layers[0].eval()  # a part that somebody keeps in eval mode
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    apply_speed(model, choose_speed(machine=CPU, attention=attention))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def faulty_attention():
    """Attention functions of transformers that go wrong: one lets documents leak, the other sees nothing."""

    def leaks(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs)

    def blind(module, query, key, value, attention_mask, **kwargs):
        return torch.zeros_like(query).transpose(1, 2), None

    functions = {"leaks": leaks, "blind": blind}
    for name, function in functions.items():
        AttentionInterface.register(name, function)
    yield
    for name in functions:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name, None)


@pytest.mark.parametrize(("attention", "message"), [("leaks", "does not isolate"), ("blind", "sees none of")])
@pytest.mark.parametrize("flash_kwargs", [False, True])
def test_an_attention_that_goes_wrong_is_refused_and_nothing_is_changed(
    faulty_attention, attention, message, flash_kwargs
):
    model = build()
    choice = SpeedChoice(attention, "float32", False, True, flash_kwargs, ())
    with pytest.raises(RuntimeError, match=message):
        apply_speed(model, choice)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    apply_speed(model, choice, check=False).close()


def test_rows_that_leak_where_transformers_sees_one_row_only_are_found(monkeypatch):
    """What flash-attention does without the borders: positions are looked at in batches of one row only."""
    from hf_clsi.training import varlen

    model = build()
    choice = choose_speed(machine=CPU, attention="varlen")
    monkeypatch.setattr(
        varlen,
        "_borders",
        lambda positions, rows, length: torch.arange(rows + 1, dtype=torch.int32) * length,
    )
    with apply_speed(model, choice):  # it gets the borders
        without = SpeedChoice("varlen", "float32", False, True, False, ())
        with pytest.raises(RuntimeError, match="does not isolate"):
            check_isolation(model, without)


def rows():
    return [
        {"story_id": f"s{i}", "units_en": [[(i + j) % 20 for j in range(3 + i)], [i % 20, 1]]}
        for i in range(8)
    ]


def train(model, choice, folder, steps=2):
    """Losses of a plain Trainer, with the arguments that the choice gives."""
    collator = InterleavingDataCollator(["en"], num_units=20, max_length=32, **choice.collator_arguments())
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=3,
        **choice.training_arguments(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows(), data_collator=collator)
    with apply_speed(model, choice):
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_plain_trainer_takes_the_arguments_and_every_attention_trains_alike(tmp_path):
    losses = {
        attention: train(build(), choose_speed(machine=CPU, attention=attention), tmp_path)
        for attention in ("sdpa", "varlen")
    }
    assert len(losses["sdpa"]) == 2 and losses["sdpa"][0] != losses["sdpa"][1]
    assert losses["varlen"] == pytest.approx(losses["sdpa"], rel=1e-3)


def test_a_compiled_model_compiles_again_only_until_rows_are_a_symbol(monkeypatch):
    """Many numbers of rows, few compilations; names of weights stay, and closing takes it back."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = build()
    compiled = model.compile
    monkeypatch.setattr(model, "compile", lambda: compiled(backend=backend))
    torch._dynamo.reset()
    choice = choose_speed(machine=CPU, compile=True)
    plain = build()
    names = list(model.state_dict())
    with apply_speed(model, choice):
        assert list(model.state_dict()) == names
        for count in (2, 3, 4, 5, 6):
            ids = torch.arange(count * 16).view(count, 16) % 20
            batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(16).expand(count, -1) % 7}
            torch.testing.assert_close(model(**batch).loss, plain(**batch).loss)
            if count == 3:
                after_two = len(graphs)
        assert 2 <= after_two == len(graphs)
    assert model._compiled_call_impl is None
    torch._dynamo.reset()


@pytest.mark.slow  # C++ is compiled, which takes a minute
def test_a_really_compiled_model_trains_alike(tmp_path):
    torch._dynamo.reset()
    plain = train(build(), choose_speed(machine=CPU), tmp_path, steps=3)
    compiled = train(build(), choose_speed(machine=CPU, compile=True), tmp_path, steps=3)
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert not [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO")]
    torch._dynamo.reset()


def test_what_goes_into_arguments_is_plain():
    choice = choose_speed(PAPER, machine=HOPPER)
    assert json.loads(json.dumps(choice.training_arguments())) == {
        "use_cpu": False,
        "bf16": True,
        "optim": "adamw_torch_fused",
        "dataloader_pin_memory": True,
    }
    assert choice.collator_arguments() == {"isolate": True, "return_flash_attn_kwargs": True}
    assert set(ATTENTIONS) >= {"sdpa", "eager", "varlen", "flex_attention", "flash_attention_2"}
