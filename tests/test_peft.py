"""LoRA adapters of peft on ClsiForCausalLM: where they go, what they save, and what merging gives back."""

import json
import shutil
import warnings
from contextlib import contextmanager

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_clsi import ClsiConfig, ClsiForCausalLM, InterleavingDataCollator

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = "model.language_model.embed_tokens"
VOCABULARY = 23  # 20 units and 3 special tokens
# Two layers, rank 4, inputs + outputs of q and o, of k and v, of gate, up and down.
LORA_WEIGHTS = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
IDS = torch.tensor([[20, 3, 7, 7, 1, 0, 19, 5], [20, 11, 2, 4, 4, 9, 16, 8]])

every_model = pytest.mark.parametrize(
    ("kind", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)]
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(kind, tied) -> folder of a random checkpoint."""
    made = {}

    def make(kind, tied):
        if (kind, tied) not in made:
            folder = tmp_path_factory.mktemp("base")
            text_config = {"model_type": kind, "tie_word_embeddings": tied, **SIZES}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                ClsiForCausalLM(ClsiConfig(num_units=20, text_config=text_config)).save_pretrained(folder)
            made[kind, tied] = folder
        return made[kind, tied]

    return make


@contextmanager
def quiet(caplog):
    """Fail on anything that transformers or peft would print on a user's terminal."""
    transformers_logging.enable_propagation()
    caplog.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # peft 0.21 asks transformers 5.23 by a name that it calls old; nobody here can help it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        transformers_logging.disable_propagation()
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


def adapt(folder, target_modules="all-linear", **settings):
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=target_modules, task_type="CAUSAL_LM", **settings)
    return get_peft_model(base, config)


def train(model, steps=3):
    """A few large steps: lora_B starts at zero, where an adapter changes nothing."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def weights_of(folder, name="adapter_model.safetensors"):
    return load_file(folder / name)


# -- where it goes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_modules", ["all-linear", PROJECTIONS], ids=["all-linear", "names"])
@every_model
def test_lora_goes_into_the_seven_projections_and_nowhere_else(checkpoint, kind, tied, target_modules):
    model = adapt(checkpoint(kind, tied), target_modules)
    adapted = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert adapted == {
        f"model.language_model.layers.{layer}.{'self_attn' if place < 4 else 'mlp'}.{projection}"
        for layer in (0, 1)
        for place, projection in enumerate(PROJECTIONS)
    }


@every_model
def test_only_the_adapter_has_gradients_and_changes(checkpoint, kind, tied):
    model = adapt(checkpoint(kind, tied))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=IDS, labels=IDS).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert sum(before[name].numel() for name in with_gradient) == LORA_WEIGHTS
    model.zero_grad()
    train(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == with_gradient


def test_the_quiet_guard_itself_hears_warnings_and_log_messages(caplog):
    with pytest.raises(UserWarning, match="loud"), quiet(caplog):
        warnings.warn("loud", stacklevel=1)
    with pytest.raises(AssertionError, match="loud"), quiet(caplog):
        transformers_logging.get_logger("transformers.modeling_utils").warning("loud")


def test_an_adapter_begins_as_the_base_model_and_can_be_switched_off(checkpoint):
    base = AutoModelForCausalLM.from_pretrained(checkpoint("llama", True))
    reference = logits(base)
    model = adapt(checkpoint("llama", True))
    assert torch.equal(logits(model), reference)
    train(model)
    assert (logits(model) - reference).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model), reference)


def test_packed_documents_stay_apart_under_an_adapter(checkpoint):
    """As the collator packs them: positions restart and there is no mask, so no cache may be made."""
    model = train(adapt(checkpoint("llama", True)))
    packed = IDS.reshape(1, -1)
    positions = torch.arange(8).repeat(2)[None]
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=positions).logits
        labels = packed.clone()
        labels[0, [0, 8]] = -100
        loss = model(input_ids=packed, position_ids=positions, labels=labels).loss
        separate = model(input_ids=IDS, labels=IDS).loss
    torch.testing.assert_close(together.reshape(2, 8, -1), logits(model), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, separate, rtol=0, atol=1e-5)


def test_the_plain_trainer_trains_an_adapter(checkpoint, tmp_path):
    model = adapt(checkpoint("qwen2", True))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [
        {"story_id": f"s{i}", "units_en": [[i, 5, 7], [2, 3]], "units_de": [[9, i, 1], [4, 4, 8]]}
        for i in range(8)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    collator = InterleavingDataCollator(["en", "de"], num_units=20, max_length=32)
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


# -- save, reload, merge -------------------------------------------------------------------------------------


@every_model
def test_save_reload_merge(checkpoint, tmp_path, caplog, kind, tied):
    folder = checkpoint(kind, tied)
    model = train(adapt(folder))
    expected = logits(model)
    with quiet(caplog):
        model.save_pretrained(tmp_path / "adapter")
        reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert type(reloaded.get_base_model()) is ClsiForCausalLM
    assert torch.equal(logits(reloaded), expected)

    with quiet(caplog):
        merged = reloaded.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for each in (merged, loaded):
        assert type(each) is ClsiForCausalLM
        assert each.config.tie_word_embeddings is tied
        torch.testing.assert_close(logits(each), expected, rtol=0, atol=1e-5)
    # An ordinary checkpoint: the base model's files, tensors and config.
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {p.name for p in folder.iterdir()}
    shapes = [
        {k: v.shape for k, v in weights_of(each, "model.safetensors").items()}
        for each in (folder, tmp_path / "merged")
    ]
    assert shapes[0] == shapes[1]
    assert json.loads((tmp_path / "merged/config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


@every_model
def test_the_saved_adapter_holds_nothing_of_the_base_model(checkpoint, tmp_path, kind, tied):
    train(adapt(checkpoint(kind, tied))).save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    saved = weights_of(tmp_path)
    assert len(saved) == 2 * 7 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in saved)
    assert sum(tensor.numel() for tensor in saved.values()) == LORA_WEIGHTS


def test_the_adapter_names_its_base_model_as_it_was_loaded(checkpoint, tmp_path):
    """A Hub id stays a Hub id; a path is written down as it is, and is of use only where it exists."""
    folder = tmp_path / "base"
    shutil.copytree(checkpoint("llama", True), folder)
    model = train(adapt(folder))
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)

    folder.rename(tmp_path / "elsewhere")
    with pytest.raises((OSError, ValueError)):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")  # the way out: name it oneself
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(reloaded), logits(model))


@every_model
def test_generate_with_an_adapter(checkpoint, kind, tied):
    model = train(adapt(checkpoint(kind, tied)))
    prompt = {"input_ids": IDS[:, :4], "attention_mask": torch.ones(2, 4, dtype=torch.int64)}
    settings = {"max_new_tokens": 12, "do_sample": False}
    generated = model.generate(**prompt, **settings)
    assert generated[:, :4].tolist() == IDS[:, :4].tolist()
    with model.disable_adapter():
        without = model.generate(**prompt, **settings)
    assert generated.tolist() != without.tolist()
    assert model.merge_and_unload().generate(**prompt, **settings).tolist() == generated.tolist()


# -- embeddings ----------------------------------------------------------------------------------------------


def embeddings(model):
    """Input and output embeddings in force, [V, H] each."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found = []
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        copies = getattr(module, "modules_to_save", None)
        found.append((module if copies is None else copies["default"]).weight)
    return found


def round_trip(model, folder):
    """Reload, merge, save and load the trained adapter, its logits compared on the way; the last model."""
    expected = logits(model)
    model.save_pretrained(folder / "adapter")
    reloaded = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    assert torch.equal(logits(reloaded), expected)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(folder / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    assert torch.equal(*embeddings(merged)) == torch.equal(*embeddings(loaded))
    return loaded


@pytest.mark.parametrize("modules", [["embed_tokens", "lm_head"], ["embed_tokens"]], ids=["both", "input"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tied_embeddings_stay_one_matrix_with_ensure_weight_tying(
    checkpoint, tmp_path, caplog, kind, modules
):
    """The setting for tied models; naming the input embeddings alone is enough."""
    with quiet(caplog):
        model = adapt(checkpoint(kind, True), modules_to_save=modules, ensure_weight_tying=True)
    before = embeddings(model)[0].detach().clone()
    reference = logits(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trainable == {f"base_model.model.{EMBEDDINGS}.modules_to_save.default.weight"}

    train(model)
    inputs, outputs = embeddings(model)
    assert inputs is outputs
    assert not torch.equal(inputs, before)
    with model.disable_adapter():
        assert torch.equal(logits(model), reference)

    with quiet(caplog):
        loaded = round_trip(model, tmp_path)
    assert loaded.config.tie_word_embeddings is loaded.config.text_config.tie_word_embeddings is True
    assert embeddings(loaded)[0] is embeddings(loaded)[1]
    assert "lm_head.weight" not in weights_of(tmp_path / "merged", "model.safetensors")
    # In the adapter's file the matrix stands twice, under both its names.
    saved = weights_of(tmp_path / "adapter")
    assert torch.equal(
        saved["base_model.model.lm_head.weight"], saved[f"base_model.model.{EMBEDDINGS}.weight"]
    )
    assert sum(tensor.numel() for tensor in saved.values()) == LORA_WEIGHTS + 2 * VOCABULARY * 32


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tied_embeddings_come_apart_without_it(checkpoint, tmp_path, kind):
    """peft warns, trains two matrices, and merging gives an untied model: equal logits, another model."""
    with pytest.warns(UserWarning, match="`ensure_weight_tying` is not set to True"):
        model = adapt(checkpoint(kind, True), modules_to_save=["embed_tokens", "lm_head"])
    train(model)
    assert not torch.equal(*embeddings(model))
    with pytest.warns(UserWarning, match="no longer tied after merging"):
        loaded = round_trip(model, tmp_path)
    assert loaded.config.tie_word_embeddings is loaded.config.text_config.tie_word_embeddings is False
    assert not torch.equal(*embeddings(loaded))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_untied_embeddings_are_saved_when_asked(checkpoint, tmp_path, caplog, kind):
    with quiet(caplog):
        model = train(adapt(checkpoint(kind, False), modules_to_save=["embed_tokens", "lm_head"]))
        loaded = round_trip(model, tmp_path)
    assert not torch.equal(*embeddings(loaded))
    saved = weights_of(tmp_path / "adapter")
    for place, name in enumerate((EMBEDDINGS, "lm_head")):
        assert torch.equal(saved[f"base_model.model.{name}.weight"], embeddings(model)[place])
        assert torch.equal(saved[f"base_model.model.{name}.weight"], embeddings(loaded)[place])
    assert loaded.config.tie_word_embeddings is False


@every_model
def test_some_embeddings_alone(checkpoint, tmp_path, caplog, kind, tied):
    """`trainable_token_indices`: a few rows of the embeddings, and of the head where it is the same one."""
    with quiet(caplog):
        model = adapt(checkpoint(kind, tied), trainable_token_indices=[3, 7, 20])
        before = embeddings(AutoModelForCausalLM.from_pretrained(checkpoint(kind, tied)))
        loaded = round_trip(train(model), tmp_path)
    for old, new, rows in zip(
        before, embeddings(loaded), ([3, 7, 20], [3, 7, 20] if tied else []), strict=True
    ):
        assert (old != new).any(dim=1).nonzero()[:, 0].tolist() == rows
    assert (embeddings(loaded)[0] is embeddings(loaded)[1]) is tied
    saved = weights_of(tmp_path / "adapter")
    assert sum(tensor.numel() for tensor in saved.values()) == LORA_WEIGHTS + 3 * 32
