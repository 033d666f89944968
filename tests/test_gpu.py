"""The same on an accelerator as on the CPU; left out unless asked for: pytest -m gpu tests/test_gpu.py."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.gpu  # tests/conftest.py skips it where there is none

GREEDY = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 40}


def noise(seconds):
    steps = np.random.default_rng(0).normal(size=round(seconds * 16_000))
    return (np.cumsum(steps) * 0.002).astype(np.float32)


def test_a_continuation_is_the_same_as_on_the_cpu(tiny_slm):
    model, processor = tiny_slm()
    here = model.speech_continuation(processor)(noise(0.5), sampling_rate=16_000, **GREEDY)
    model, processor = tiny_slm()
    there = model.to("cuda").speech_continuation(processor)(noise(0.5), sampling_rate=16_000, **GREEDY)
    assert processor.audio_tokenizer.device.type == "cuda"
    assert there["units"].tolist() == here["units"].tolist()
    assert there["audio"].shape == here["audio"].shape


def test_a_stream_ends_with_the_same_samples_as_a_call(tiny_slm):
    model, processor = tiny_slm()
    speak = model.to("cuda").speech_continuation(processor)
    chunks = list(speak.stream(noise(0.5), sampling_rate=16_000, chunk_seconds=0.2, **GREEDY))
    whole = speak(noise(0.5), sampling_rate=16_000, **GREEDY)["audio"]
    assert np.concatenate(chunks).shape == whole.shape


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_caches_agree_with_no_cache(cache, dtype, tiny_slm):
    """A static cache is compiled by `generate` on an accelerator."""
    model, processor = tiny_slm()
    model = model.to("cuda", dtype)
    prompts = processor(units=[[1, 2, 3, 4], [5, 6]]).to("cuda")
    without = model.generate(**prompts, **GREEDY, use_cache=False)
    with_cache = model.generate(**prompts, **GREEDY, cache_implementation=cache)
    same = (without == with_cache).float().mean().item()
    assert same == 1.0 if dtype == torch.float32 else same > 0.5  # a near tie may fall otherwise in bfloat16


def test_ids_outside_the_vocabulary_are_refused_before_they_reach_a_kernel(tiny_slm):
    model, _ = tiny_slm()
    with pytest.raises(ValueError, match=r"got 1\.\.99"):
        model.to("cuda").generate(torch.tensor([[1, 99]], device="cuda"))


def test_packed_gradients_are_those_of_the_cpu(tiny_slm):
    ids = torch.tensor([[30, 1, 2, 3, 31, 30, 4, 5, 6, 7]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
    labels = ids.clone()
    labels[:, [0, 5]] = -100
    gradients = []
    for device in ("cpu", "cuda"):
        model = tiny_slm()[0].train().to(device)
        model(
            input_ids=ids.to(device), position_ids=positions.to(device), labels=labels.to(device)
        ).loss.backward()
        gradients.append({name: parameter.grad.cpu() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
