"""ClsiForCausalLM computes what the plain decoder computes on the same weights, to the last bit."""

import functools
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
)

from hf_clsi import ClsiConfig, ClsiForCausalLM

DECODERS = ["llama", "qwen2", "qwen3"]
BODY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough that ids vary and a difference shows in the first digits
}
NUM_UNITS = 40
BOS, EOS, PAD = 40, 41, 42
IDS = torch.tensor([[BOS, 1, 2, 3, 30, 5, 5], [PAD, PAD, PAD, BOS, 17, 8, 9], [PAD, BOS, 39, 21, 7, 7, 11]])
MASK = (IDS != PAD).long()
LABELS = IDS.where(IDS != PAD, -100)


@functools.cache
def pair(decoder="llama", tie=True, attention="sdpa"):
    """(our model, the plain decoder of transformers on the same weights); tests leave them as they are."""
    torch.manual_seed(0)
    config = ClsiConfig(
        num_units=NUM_UNITS, text_config={"model_type": decoder, **BODY}, tie_word_embeddings=tie
    )
    ours = ClsiForCausalLM(config).eval()
    plain = AutoModelForCausalLM.from_config(type(config.text_config)(**config.text_config.to_dict())).eval()
    for model in (ours, plain):
        model.set_attn_implementation(attention)
    plain.load_state_dict({plain_name(name): tensor for name, tensor in ours.state_dict().items()})
    assert type(plain).__module__.startswith(f"transformers.models.{decoder}.")
    assert plain.config.tie_word_embeddings is tie
    return ours, plain


def plain_name(name):
    return name.replace("model.language_model.", "model.")


def both(models, **inputs):
    with torch.no_grad():
        return [model(**inputs) for model in models]


# -- forward and backward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("decoder", DECODERS)
def test_forward_and_gradients(decoder, tie, attention):
    ours, plain = pair(decoder, tie, attention)
    for model in (ours, plain):
        model.zero_grad()
    wanted = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    mine = ours(input_ids=IDS, attention_mask=MASK, labels=LABELS, **wanted)
    theirs = plain(input_ids=IDS, attention_mask=MASK, labels=LABELS, use_cache=False, **wanted)

    assert mine.keys() == theirs.keys()
    assert mine.logits.shape == (3, 7, 43)
    assert mine.logits.std() > 0.1
    assert torch.equal(mine.logits, theirs.logits)
    assert mine.loss.item() == theirs.loss.item()
    assert len(mine.hidden_states) == 3
    assert all(map(torch.equal, mine.hidden_states, theirs.hidden_states))
    if attention == "eager":
        assert [layer.shape for layer in mine.attentions] == [(3, 4, 7, 7)] * 2
        assert all(map(torch.equal, mine.attentions, theirs.attentions))

    mine.loss.backward()
    theirs.loss.backward()
    gradients = {plain_name(name): parameter.grad for name, parameter in ours.named_parameters()}
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert gradients.keys() == expected.keys()
    assert ("lm_head.weight" in gradients) is not tie
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": IDS},
        {"input_ids": IDS, "attention_mask": MASK, "logits_to_keep": 2},
        {"input_ids": IDS, "labels": LABELS, "num_items_in_batch": 50, "use_cache": False},
        {"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), "use_cache": False},
        {"inputs_embeds": torch.linspace(-1, 1, 2 * 5 * 32).sin().view(2, 5, 32)},
        {"input_ids": IDS, "output_hidden_states": True, "return_dict": False},
    ],
    ids=["ids", "logits_to_keep", "num_items_in_batch", "packed", "embeddings", "tuple"],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_way_of_calling(decoder, inputs):
    mine, theirs = both(pair(decoder), **inputs)
    if not isinstance(mine, tuple):
        mine, theirs = mine.to_tuple(), theirs.to_tuple()
    assert len(mine) == len(theirs)
    tensors = [(a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, torch.Tensor)]
    assert tensors
    assert all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("make_cache", [DynamicCache, StaticCache])
@pytest.mark.parametrize("decoder", DECODERS)
def test_prompt_then_one_token_at_a_time(decoder, make_cache):
    """What the cache holds is the same, too."""
    logits, caches = [], []
    for model in pair(decoder):
        arguments = {"max_cache_len": 8} if make_cache is StaticCache else {}
        cache = make_cache(config=model.config, **arguments)
        steps = [IDS[:1, :3], IDS[:1, 3:4], IDS[:1, 4:5], IDS[:1, 5:]]
        with torch.no_grad():
            logits.append([model(input_ids=ids, past_key_values=cache).logits for ids in steps])
        caches.append(cache)
        whole = model(input_ids=IDS[:1]).logits
        torch.testing.assert_close(torch.cat(logits[-1], dim=1), whole, atol=1e-5, rtol=1e-5)
    assert all(map(torch.equal, *logits))
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


def test_a_training_step_in_bfloat16():
    ours, plain = pair()
    weights = []
    for model in (ours, plain):
        config = model.config
        copied = type(model)(config).to(torch.bfloat16).train()
        copied.load_state_dict(model.state_dict())
        optimizer = torch.optim.AdamW(copied.parameters(), lr=0.1)
        copied(input_ids=IDS, attention_mask=MASK, labels=LABELS, use_cache=False).loss.backward()
        optimizer.step()
        weights.append({plain_name(name): tensor for name, tensor in copied.state_dict().items()})
        assert not torch.equal(copied.lm_head.weight, model.lm_head.weight.bfloat16())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# -- generation ----------------------------------------------------------------------------------------------

STRATEGIES = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.95},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "constrained": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}
WITHOUT_EOS = {"max_new_tokens": 10, "min_new_tokens": 10}


def generate_each(models, settings, seed=0):
    """Ids and scores of each, with one generation config: ours, which forbids what is no unit."""
    generation = GenerationConfig.from_dict({**pair()[0].generation_config.to_dict(), **settings})
    outputs = []
    for model in models:
        torch.manual_seed(seed)
        outputs.append(
            model.generate(
                IDS,
                attention_mask=MASK,
                generation_config=generation,
                return_dict_in_generate=True,
                output_scores=True,
            )
        )
    return outputs


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_generated_ids_and_scores(decoder, strategy, use_cache):
    settings = {**WITHOUT_EOS, **STRATEGIES[strategy], "use_cache": use_cache}
    mine, theirs = generate_each(pair(decoder), settings)
    rows = 3 * settings.get("num_return_sequences", 1)
    assert mine.sequences.shape == (rows, 17)
    assert torch.equal(mine.sequences, theirs.sequences)
    assert len(mine.scores) == 10
    assert all(map(torch.equal, mine.scores, theirs.scores))
    assert len(mine.sequences[:, 7:].unique()) > 3


def test_strategies_differ_and_a_seed_decides():
    """The control: equality above is not that of constant output."""
    texts = {
        strategy: generate_each(pair(), {**WITHOUT_EOS, **settings})[0].sequences[0].tolist()
        for strategy, settings in STRATEGIES.items()
    }
    assert len({tuple(text) for text in texts.values()}) == len(texts)
    sampled = {**WITHOUT_EOS, **STRATEGIES["sampled"]}
    first, other = (generate_each(pair(), sampled, seed=seed) for seed in (1, 2))
    assert torch.equal(other[0].sequences, other[1].sequences)
    assert not torch.equal(first[0].sequences, other[0].sequences)


def test_rows_that_end_are_filled_alike():
    models = pair(tie=False)
    settings = {"max_new_tokens": 40, "do_sample": True}
    for seed in range(10):
        mine, theirs = generate_each(models, settings, seed=seed)
        assert torch.equal(mine.sequences, theirs.sequences)
        continuation = mine.sequences[:, 7:]
        if EOS in continuation and PAD in continuation:
            return
    pytest.fail("no row ended before another in ten seeds")


@pytest.mark.parametrize("strategy", ["greedy", "sampled", "beams"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_static_cache(decoder, strategy):
    settings = {**WITHOUT_EOS, **STRATEGIES[strategy]}
    mine, theirs = generate_each(pair(decoder), {**settings, "cache_implementation": "static"})
    assert torch.equal(mine.sequences, theirs.sequences)
    assert type(mine.past_key_values) is StaticCache
    dynamic, _ = generate_each(pair(decoder), settings)
    assert torch.equal(mine.sequences, dynamic.sequences)


# -- compiled ------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs():
    """Counter of the graphs that are compiled in a test, by a compiler without memory of earlier ones."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "inputs",
    [
        {"attention_mask": MASK, "labels": LABELS},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 3), "use_cache": False},
    ],
    ids=["padded", "packed"],
)
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_the_compiled_forward_is_one_graph(decoder, inputs, graphs):
    ours, plain = pair(decoder)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    mine, theirs = both((compiled, plain), input_ids=IDS, **inputs)
    assert graphs["unique_graphs"] == 1
    torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.loss, theirs.loss, atol=1e-5, rtol=1e-5)


def test_compiled_steps_share_one_graph(graphs):
    """A StaticCache keeps every shape: one graph for the prompt, one for all the single tokens after it."""
    ours, plain = pair()
    compiled = torch.compile(ours, fullgraph=True, backend="eager", dynamic=False)
    logits = []
    for model in (compiled, plain):
        cache = StaticCache(config=plain.config, max_cache_len=16)
        cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
        steps = [IDS[:1, :4], *(torch.tensor([[unit]]) for unit in (3, 9, 1, 22, 8))]
        place, found = 0, []
        for ids in steps:
            positions = torch.arange(place, place + ids.shape[1])[None]
            place += ids.shape[1]
            with torch.no_grad():
                found.append(model(input_ids=ids, position_ids=positions, past_key_values=cache).logits)
        logits.append(torch.cat(found, dim=1))
    assert graphs["unique_graphs"] == 2
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def compiled_generation(decoder, backend):
    compile_config = CompileConfig(fullgraph=True, dynamic=False, mode="default", backend=backend)
    compile_config._compile_all_devices = True  # transformers compiles on accelerators only, unless told so
    ours, plain = pair(decoder)
    settings = {**WITHOUT_EOS, "do_sample": False}
    compiled = {**settings, "cache_implementation": "static", "compile_config": compile_config}
    (mine,) = generate_each([ours], compiled)
    (theirs,) = generate_each([plain], settings)
    return mine.sequences, theirs.sequences


def test_generate_compiles_its_steps(graphs):
    assert torch.equal(*compiled_generation("llama", "eager"))
    assert graphs["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_generate_compiled_by_inductor(decoder, graphs):
    assert torch.equal(*compiled_generation(decoder, "inductor"))
    assert graphs["unique_graphs"] == 1
