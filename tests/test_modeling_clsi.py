"""ClsiModel and ClsiForCausalLM: isolated packed documents, caches, losses, greedy and sampled ids."""

import pytest
import torch
from transformers import DynamicCache, Trainer, TrainingArguments

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.modeling_clsi import ISOLATING_DECODERS

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough that a leak shows in the first digits
}
BOS, EOS, PAD = 20, 21, 22
DOCUMENTS = [[BOS, 1, 2, 3, EOS], [BOS, 4, 5, 6, 7, 8, EOS], [BOS, 9, 3, 3]]


def build(decoder="llama", attention="sdpa", **settings):
    torch.manual_seed(0)
    config = ClsiConfig(num_units=20, text_config={"model_type": decoder, **SIZES, **settings})
    model = ClsiForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    return model


def pack(documents, length=None):
    """One row of documents: ids, labels without each document's first token, positions; `length` long."""
    ids = [token for document in documents for token in document]
    labels = [token for document in documents for token in (-100, *document[1:])]
    positions = [position for document in documents for position in range(len(document))]
    fill = (length or len(ids)) - len(ids)
    row = (ids + [PAD] * fill, labels + [-100] * fill, positions + [0] * fill)
    return {
        key: torch.tensor([value])
        for key, value in zip(("input_ids", "labels", "position_ids"), row, strict=True)
    }


def separate_loss_sum(model, documents):
    total = 0.0
    for document in documents:
        ids = torch.tensor([document])
        total += model(input_ids=ids, labels=ids, num_items_in_batch=1).loss
    return total


NUM_TARGETS = sum(len(document) - 1 for document in DOCUMENTS)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_packed_documents_equal_separate_ones(decoder, attention, mode):
    model = build(decoder, attention).train(mode == "train")
    packed = pack(DOCUMENTS, length=20)
    out = model(**packed, output_hidden_states=True)
    assert out.past_key_values is None
    start = 0
    for document in DOCUMENTS:
        alone = model(input_ids=torch.tensor([document]), output_hidden_states=True)
        stop = start + len(document)
        torch.testing.assert_close(out.logits[:, start:stop], alone.logits, atol=1e-5, rtol=1e-5)
        for packed_layer, alone_layer in zip(out.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(packed_layer[:, start:stop], alone_layer, atol=1e-5, rtol=1e-5)
        start = stop
    torch.testing.assert_close(
        out.loss, separate_loss_sum(model, DOCUMENTS) / NUM_TARGETS, atol=1e-5, rtol=1e-5
    )


def test_positions_alone_isolate_without_labels_too():
    model = build()
    packed = pack(DOCUMENTS)
    positions_only = {"input_ids": packed["input_ids"], "position_ids": packed["position_ids"]}
    with torch.no_grad():
        hidden = model.model(**positions_only).last_hidden_state
        logits = model(**positions_only).logits
        last = model(input_ids=torch.tensor([DOCUMENTS[-1]])).logits
        torch.testing.assert_close(model.lm_head(hidden), logits)
        torch.testing.assert_close(logits[:, -4:], last, atol=1e-5, rtol=1e-5)


def test_isolation_is_visible_at_all():
    """The control of the two tests above: the same row without restarting positions gives other logits."""
    model = build()
    packed = pack(DOCUMENTS)
    with torch.no_grad():
        isolated = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"]).logits
        concatenated = model(input_ids=packed["input_ids"]).logits
    torch.testing.assert_close(isolated[:, :5], concatenated[:, :5], atol=1e-5, rtol=1e-5)
    assert (isolated[:, 5:] - concatenated[:, 5:]).abs().max() > 0.1


def test_several_packed_rows_and_their_gradients_equal_separate_documents():
    model = build().train()
    rows = [pack(DOCUMENTS[:2], length=12), pack(DOCUMENTS[2:] + DOCUMENTS[:1], length=12)]
    batch = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    model(**batch, num_items_in_batch=17).loss.backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    (separate_loss_sum(model, [*DOCUMENTS, DOCUMENTS[0]]) / 17).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=1e-5, rtol=1e-4)


DECODER_SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    "gemma2": {**SIZES, "head_dim": 8},
    "qwen3": {**SIZES, "head_dim": 8},
}


@pytest.mark.parametrize("decoder", sorted(ISOLATING_DECODERS))
def test_every_listed_decoder_isolates(decoder):
    torch.manual_seed(0)
    sizes = DECODER_SIZES.get(decoder, SIZES)
    model = ClsiForCausalLM(
        ClsiConfig(num_units=20, text_config={"model_type": decoder, **sizes, "initializer_range": 0.3})
    ).eval()
    packed = pack(DOCUMENTS)
    with torch.no_grad():
        isolated = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"]).logits[:, -4:]
        alone = model(input_ids=torch.tensor([DOCUMENTS[-1]])).logits
        concatenated = model(input_ids=packed["input_ids"]).logits[:, -4:]
    torch.testing.assert_close(isolated, alone, atol=2e-5, rtol=1e-4)
    assert (concatenated - alone).abs().max() > 1e-2


def test_a_decoder_that_leaks_is_refused_packed_and_works_otherwise():
    sizes = {"ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 32}
    config = ClsiConfig(num_units=20, text_config={"model_type": "opt", "hidden_size": 32, **sizes})
    model = ClsiForCausalLM(config).eval()
    assert model.lm_head.weight is model.get_input_embeddings().weight  # OPT: decoder.embed_tokens
    packed = pack(DOCUMENTS)
    with pytest.raises(ValueError, match="decoders of type 'opt' are not known to keep documents apart"):
        model(**packed)
    assert model(**pack(DOCUMENTS[:1])).logits.shape == (1, 5, 23)


def test_restarts_with_a_cache_or_a_mask_are_refused():
    model = build()
    packed = pack(DOCUMENTS)
    inputs = {"input_ids": packed["input_ids"], "position_ids": packed["position_ids"]}
    for leak in (
        {"use_cache": True},
        {"past_key_values": DynamicCache(config=model.config)},
        {"attention_mask": torch.ones_like(packed["input_ids"])},
    ):
        with pytest.raises(ValueError, match="the documents would attend to each other"):
            model(**inputs, **leak)


def test_flash_attention_needs_the_borders_of_documents_in_several_rows():
    """It reads them off the positions of one row only; of several rows it makes one document each."""
    model = build()
    packed = pack(DOCUMENTS[:2])
    rows = {name: packed[name].repeat(2, 1) for name in ("input_ids", "position_ids")}
    model.config.text_config._attn_implementation = "flash_attention_2"  # not installed here
    with pytest.raises(ValueError, match=r"in 2 rows of packed documents.*return_flash_attn_kwargs=True"):
        model(**rows)
    whole = {"input_ids": rows["input_ids"], "position_ids": torch.arange(12).repeat(2, 1)}
    model.config.text_config._attn_implementation = "sdpa"
    with torch.no_grad():
        assert model(**rows).logits.shape == model(**whole).logits.shape


def test_restarts_under_a_mask_are_only_refused_between_real_tokens():
    """Left padding: the positions of the padding do not run on, and nobody looks at them."""
    model = build()
    alone = model(input_ids=torch.tensor([DOCUMENTS[0]])).logits
    padded = model(
        input_ids=torch.tensor([[PAD, PAD, *DOCUMENTS[0]]]),
        attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1]]),
        position_ids=torch.tensor([[1, 1, 0, 1, 2, 3, 4]]),
    ).logits
    torch.testing.assert_close(padded[:, 2:], alone, atol=1e-5, rtol=1e-5)


def test_a_4d_mask_is_used_as_it_is():
    model = build()
    packed = pack(DOCUMENTS[:2])
    document = torch.tensor([0] * 5 + [1] * 7)
    mask = (document[:, None] == document[None]) & torch.ones(12, 12, dtype=torch.bool).tril()
    with torch.no_grad():
        inputs = {"input_ids": packed["input_ids"], "position_ids": packed["position_ids"]}
        masked = model(**inputs, attention_mask=mask[None, None]).logits
        torch.testing.assert_close(masked, model(**inputs).logits)


def test_prompt_cache_gives_the_logits_of_the_whole():
    model = build()
    ids = torch.tensor([DOCUMENTS[1]])
    with torch.no_grad():
        prompt = model(input_ids=ids[:, :4], use_cache=True)
        rest = model(
            input_ids=ids[:, 4:],
            past_key_values=prompt.past_key_values,
            position_ids=torch.tensor([[4, 5, 6]]),
        )
        torch.testing.assert_close(rest.logits, model(input_ids=ids).logits[:, 4:], atol=1e-5, rtol=1e-5)


def test_labels_alone_make_no_cache():
    ids = torch.tensor([DOCUMENTS[0]])
    assert build()(input_ids=ids, labels=ids).past_key_values is None
    assert build()(input_ids=ids).past_key_values is not None


def test_num_items_in_batch_divides_the_sum():
    model = build()
    packed = pack(DOCUMENTS)
    mean = model(**packed).loss
    torch.testing.assert_close(model(**packed, num_items_in_batch=100).loss, mean * NUM_TARGETS / 100)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])])
def test_logits_to_keep(keep):
    model = build()
    ids = torch.tensor([DOCUMENTS[0]])
    full = model(input_ids=ids).logits
    expected = full[:, -keep:] if isinstance(keep, int) else full[:, keep]
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=keep).logits, expected)


class PackedRows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {key: value[0] for key, value in pack(DOCUMENTS, length=18).items()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_plain_trainer_reports_the_loss_of_separate_documents(decoder, attention, tmp_path):
    """The first logged loss, at learning rate 0, is the separate documents' mean; the user sets no flag."""
    model = build(decoder, attention)
    with torch.no_grad():
        expected = float(separate_loss_sum(model, DOCUMENTS)) / NUM_TARGETS
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            learning_rate=0.0,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=PackedRows(),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([expected, expected], abs=1e-4)


def test_activation_checkpointing_gives_the_same_gradients():
    packed = pack(DOCUMENTS)
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            # Named otherwise in transformers 5.17.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(**packed).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_greedy_ids_are_the_same_with_and_without_cache_and_with_left_padding(decoder):
    model = build(decoder)
    prompts = [[BOS, 1, 2, 3, 4, 5], [BOS, 7]]
    # One step at a time, by whole forwards: the definition of greedy generation. Only units come out.
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(10):
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1, :BOS].argmax()))
        expected.append(ids[len(prompt) :])
    assert len({token for row in expected for token in row}) > 3
    longest = max(map(len, prompts))
    batch = {
        "input_ids": torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    for use_cache in (True, False):
        together = model.generate(**batch, **settings, use_cache=use_cache)[:, longest:].tolist()
        assert together == expected
        alone = model.generate(torch.tensor([prompts[0]]), **settings, use_cache=use_cache)
        assert alone[0, len(prompts[0]) :].tolist() == expected[0]


def test_generation_stops_at_eos_and_pads_the_rest():
    model = build()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(23, 32))
    # All logits equal: greedy takes id 0 until EOS is forced.
    ids = model.generate(torch.tensor([[BOS, 1]]), max_new_tokens=4, do_sample=False, forced_eos_token_id=EOS)
    assert ids.tolist() == [[BOS, 1, 0, 0, 0, EOS]]


def test_sampling_depends_on_the_seed_only():
    model = build()
    prompt = torch.tensor([[BOS, 1, 2]])

    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=True).tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert max(sample(1)[0]) < 23


def test_a_config_changed_behind_its_back_is_refused():
    config = build().config
    config.num_units = 30
    with pytest.raises(ValueError, match="text_config has vocab_size=23"):
        ClsiForCausalLM(config)


def test_inputs_are_not_changed():
    model = build()
    packed = pack(DOCUMENTS)
    before = {key: value.clone() for key, value in packed.items()}
    config = model.config.to_dict()
    model(**packed).loss.backward()
    assert all(torch.equal(packed[key], before[key]) for key in before)
    assert model.config.to_dict() == config


def test_a_tuple_comes_back_where_one_is_asked_for():
    model, ids = build(), torch.tensor([DOCUMENTS[0]])
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state
        assert torch.equal(model.model(input_ids=ids, return_dict=False)[0], hidden)
        model.config.return_dict = False
        for answer in (model.model(input_ids=ids), model(input_ids=ids)):
            assert isinstance(answer, tuple)


def test_a_decoder_without_a_key_value_cache_is_refused():
    decoder = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    with pytest.raises(ValueError, match="'mamba' have no key-value cache"):
        ClsiForCausalLM(ClsiConfig(num_units=20, text_config=decoder))
