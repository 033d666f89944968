"""Packed documents are isolated, forward and backward, by each attention implementation that runs here.

tests/test_modeling_clsi.py covers the rules of ClsiModel; here the collator's own batches go through sdpa,
eager, flex_attention and varlen, and through a recording function that stands for flash-attention's kernel.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.training.speed import apply_speed, choose_speed
from hf_clsi.training.varlen import VARLEN_DECODERS, register_varlen_attention, varlen_attention

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough that a leak shows in the first digits
}
DECODER_SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    | dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    "phi3": {"pad_token_id": None},  # its own is outside of the vocabulary
}
NUM_UNITS = 20
STORIES = [
    [[1, 2, 3], [4, 5]],
    [[6, 7, 8, 9, 10, 11]],
    [[12, 3], [3, 13], [14, 15, 16]],
    [[17]],
    [[18, 19, 1, 2]],
]
DOCUMENTS = [[20, *(unit for sentence in story for unit in sentence), 21] for story in STORIES]  # BOS ... EOS
ROWS = [{"story_id": f"s{i}", "units_en": story} for i, story in enumerate(STORIES)]


def collate(**settings):
    """Rows of 16 for the five documents: three of them, with pads at their ends."""
    return InterleavingDataCollator(["en"], num_units=NUM_UNITS, max_length=16, **settings)(ROWS)


def flattened():
    """The same documents as one row with the borders between them, as the collator gives it."""
    return collate(return_flash_attn_kwargs=True)


def build(decoder="llama", attention="sdpa", **settings):
    torch.manual_seed(0)
    config = ClsiConfig(num_units=NUM_UNITS, text_config={"model_type": decoder, **SIZES, **settings})
    model = ClsiForCausalLM(config)
    model.set_attn_implementation(attention)
    assert model.config.get_text_config()._attn_implementation == attention
    return model.train()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def separate(model):
    """The documents one by one, eager: (sum of losses, gradients by parameter, hidden states by document)."""
    model.set_attn_implementation("eager")
    model.zero_grad()
    total, hidden = 0.0, []
    for document in DOCUMENTS:
        ids = torch.tensor([document], device=model.device)
        total = total + model(input_ids=ids, labels=ids, num_items_in_batch=1).loss
        with torch.no_grad():
            hidden.append(model.model(input_ids=ids).last_hidden_state[0])
    total.backward()
    return total.detach(), gradients(model), hidden


def documents_in(batch):
    """Where the documents lie in a batch: {document: (row, slice)}, found by their tokens."""
    found = {}
    for row, ids in enumerate(batch["input_ids"].tolist()):
        for start in (column for column, token in enumerate(ids) if token == NUM_UNITS):
            for index, document in enumerate(DOCUMENTS):
                if ids[start : start + len(document)] == document:
                    found[index] = (row, slice(start, start + len(document)))
    assert sorted(found) == list(range(len(DOCUMENTS)))
    return found


def check_equal_to_separate_documents(model, batch):
    """Hidden states, loss and all gradients of a packed batch, against the documents alone."""
    packed = model(**batch, num_items_in_batch=1)
    packed.loss.backward()
    packed_gradients = gradients(model)
    without_labels = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        hidden = model.model(**without_labels).last_hidden_state
    loss, expected_gradients, expected_hidden = separate(model)
    for index, (row, place) in documents_in(batch).items():
        torch.testing.assert_close(hidden[row, place], expected_hidden[index], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(packed.loss.detach(), loss, atol=1e-4, rtol=1e-5)
    for name, gradient in expected_gradients.items():
        assert (packed_gradients[name] - gradient).abs().max() < 1e-4 * (1 + gradient.abs().max()), name


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_packed_rows_equal_separate_documents(decoder, attention):
    register_varlen_attention()
    batch = collate()
    assert batch["input_ids"].shape == (3, 16)
    check_equal_to_separate_documents(build(decoder, attention), batch)


@pytest.mark.parametrize("decoder", sorted(VARLEN_DECODERS))
def test_varlen_isolates_rows_and_a_flattened_row_in_every_listed_decoder(decoder):
    register_varlen_attention()
    sizes = DECODER_SIZES.get(decoder, {})
    model = build(decoder, "varlen", **sizes)
    check_equal_to_separate_documents(model, collate())
    model = build(decoder, "varlen", **sizes)
    check_equal_to_separate_documents(model, flattened())


def test_varlen_keeps_to_a_sliding_window():
    register_varlen_attention()
    model = build("mistral", "varlen", sliding_window=4)
    assert model.model.language_model.config.sliding_window == 4
    check_equal_to_separate_documents(model, flattened())


def test_varlen_generates_as_sdpa_does_with_padding_and_cache():
    register_varlen_attention()
    model = build(attention="varlen").eval()
    prompts = torch.tensor([[22, 22, 20, 3, 4], [20, 5, 6, 7, 8]])
    inputs = {"input_ids": prompts, "attention_mask": (prompts != 22).long(), "max_new_tokens": 6}
    varlen = model.generate(**inputs, do_sample=False)
    model.set_attn_implementation("sdpa")
    assert torch.equal(varlen, model.generate(**inputs, do_sample=False))


def test_varlen_refuses_what_it_cannot_keep_apart():
    register_varlen_attention()
    states = torch.zeros(1, 2, 6, 8)  # as of a decoder that hands nothing on
    with pytest.raises(RuntimeError, match="neither cu_seq_lens_q nor position_ids"):
        varlen_attention(torch.nn.Module(), states, states, states, None)
    with pytest.raises(ValueError, match="dropout"):
        build(attention="varlen", attention_dropout=0.1)(**collate())


def test_the_borders_of_the_collator_are_those_of_its_positions():
    batch = flattened()
    ids, positions, borders = batch["input_ids"], batch["position_ids"], batch["cu_seq_lens_q"]
    assert ids.shape == positions.shape == (1, sum(map(len, DOCUMENTS)))
    assert borders.dtype == torch.int32 and torch.equal(borders, batch["cu_seq_lens_k"])
    starts = (positions[0] == 0).nonzero().view(-1)
    assert borders.tolist() == [*starts.tolist(), ids.shape[1]]
    assert batch["max_length_q"] == batch["max_length_k"] == int(borders.diff().max()) == 9
    assert "attention_mask" not in batch
    assert (batch["labels"][0, starts] == -100).all() and int((batch["labels"] == -100).sum()) == len(
        DOCUMENTS
    )


@pytest.fixture
def recording_kernel():
    """An attention function of transformers that stands for a varlen kernel: it goes by cu_seq_lens alone."""
    calls = []

    def kernel(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, cu_seq_lens_k, **kwargs):
        longest = kwargs["max_length_q"], kwargs["max_length_k"]
        calls.append((attention_mask, cu_seq_lens_q, cu_seq_lens_k, *longest))
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        out = torch.zeros_like(query)
        for start, stop in np.stack([cu_seq_lens_q[:-1], cu_seq_lens_k[1:]], axis=1).tolist():
            document = [states[:, :, start:stop] for states in (query, key, value)]
            scores = document[0] @ document[1].transpose(-1, -2) * scaling
            later = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
            out = (
                F.pad(
                    F.softmax(scores.masked_fill(later, -torch.inf), -1) @ document[2],
                    (0, 0, start, query.shape[2] - stop),
                )
                + out
            )
        return out.transpose(1, 2), None

    name = "recording_kernel"
    AttentionInterface.register(name, kernel)
    AttentionMaskInterface.register(name, flash_attention_mask)  # what transformers gives flash-attention
    yield name, calls
    AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop(name)


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_the_borders_reach_the_attention_function(decoder, recording_kernel):
    name, calls = recording_kernel
    batch = flattened()
    model = build(decoder, name)
    check_equal_to_separate_documents(model, batch)
    assert len(calls) == 2 * SIZES["num_hidden_layers"]  # with labels, and the hidden states alone
    for mask, starts, ends, longest_query, longest_key in calls:
        assert mask is None
        assert torch.equal(starts, batch["cu_seq_lens_q"]) and torch.equal(ends, batch["cu_seq_lens_k"])
        assert longest_query == longest_key == 9


def test_the_borders_survive_gradient_checkpointing(recording_kernel):
    name, calls = recording_kernel
    model = build("llama", name)
    # transformers 5.23 has another name for it, 5.17 this one only
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    check_equal_to_separate_documents(model, flattened())
    assert len(calls) == 3 * SIZES["num_hidden_layers"]  # forward, again in backward, hidden states


@pytest.mark.slow  # the kernel is compiled, which takes a minute; a CPU has no backward pass of it
def test_flex_attention_isolates_in_the_forward_pass():
    batch = collate()
    model = build(attention="flex_attention").eval()
    with torch.no_grad():
        hidden = model.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"]
        ).last_hidden_state
    _, _, expected = separate(model)
    for index, (row, place) in documents_in(batch).items():
        torch.testing.assert_close(hidden[row, place], expected[index], atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "attention", ["sdpa", "varlen", "flex_attention", "flash_attention_2", "flash_attention_3"]
)
def test_every_attention_of_a_gpu_isolates_in_bfloat16(attention, compiled):
    """`apply_speed` tries isolation; loss and gradients must be those of float32 up to rounding."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    try:
        choice = choose_speed(device="cuda", attention=attention, compile=compiled, dtype="bfloat16")
    except ValueError as error:
        pytest.skip(str(error))
    model = build(hidden_size=128, initializer_range=0.1).cuda()  # heads of 32
    expected, expected_gradients, _ = separate(model)
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    with apply_speed(model, choice), choice.autocast():
        loss = model(**on_gpu(collate(**choice.collator_arguments())), num_items_in_batch=1).loss
        loss.backward()
    torch.testing.assert_close(loss.detach(), expected, atol=0, rtol=2e-2)
    for name, gradient in gradients(model).items():
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert error < 5e-2, name
    torch._dynamo.reset()


def on_gpu(batch):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}
