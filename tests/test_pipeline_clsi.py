"""pipeline("speech-continuation"): any form of audio in; audio, units, seconds out; one, many, streamed."""

import io
import json
import logging
import shutil

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, GenerationConfig, pipeline

from hf_clsi import ClsiForCausalLM, ClsiProcessor, ClsiUnitsModel, SpeechContinuationPipeline

RATE = 16_000


def noise(seconds, seed=0):
    """Noise that changes its color, so that units vary."""
    generator = np.random.default_rng(seed)
    samples = generator.normal(size=round(seconds * RATE))
    return (0.1 * np.convolve(samples, generator.normal(size=9), mode="same")).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_slm):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny_slm()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speak(checkpoint):
    return pipeline("speech-continuation", model=str(checkpoint))


GREEDY = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
ENDLESS = {"suppress_tokens": [30, 31, 32]}  # BOS, EOS, PAD

# -- what comes out ------------------------------------------------------------------------------------------


def test_the_task_loads_model_and_processor_by_name(checkpoint, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        speak = pipeline("speech-continuation", model=str(checkpoint))
    assert type(speak) is SpeechContinuationPipeline
    assert type(speak.model) is ClsiForCausalLM
    assert type(speak.processor.audio_tokenizer) is ClsiUnitsModel
    assert caplog.text == ""
    assert [str(each.message) for each in recwarn if "clsi" in str(each.filename)] == []


def test_a_continuation_is_generates_own(speak):
    prompt = noise(0.5)
    result = speak(prompt, sampling_rate=RATE, **GREEDY)
    inputs = speak.processor(prompt, sampling_rate=RATE)
    ids = speak.model.generate(**inputs, **GREEDY)[0]
    assert sorted(result) == ["audio", "sampling_rate", "seconds", "units"]
    assert result["units"].dtype == np.uint16
    assert result["units"].tolist() == ids[26:].tolist()  # BOS and 25 frames before
    assert result["sampling_rate"] == RATE
    assert result["seconds"] == pytest.approx(12 * 0.02)
    np.testing.assert_array_equal(result["audio"], speak.processor.decode(ids)[25 * 320 :])


def test_prompt_and_joined_are_returned_if_asked_for(speak):
    prompt = noise(0.5)[:7777]  # not a whole number of frames
    result = speak(prompt, sampling_rate=RATE, return_prompt=True, **GREEDY)
    np.testing.assert_array_equal(result["prompt"], prompt)
    np.testing.assert_array_equal(result["joined"], np.concatenate([prompt, result["audio"]]))


def test_merges_and_collapsed_runs_are_undone(tiny_slm):
    model, processor = tiny_slm(merges=[(1, 2), (7, 14)], deduplicate=True)
    result = model.speech_continuation(processor)({"units": [5, 5, 7, 14]}, **GREEDY)
    ids = model.generate(processor(units=[5, 5, 7, 14])["input_ids"], **GREEDY)[0]
    assert ids[:3].tolist() == [32, 5, 31]
    np.testing.assert_array_equal(result["units"], processor.decode_units(ids[3:]))
    whole, prompt = processor.decode_frames(ids), processor.decode_frames(ids[:3])
    assert len(result["audio"]) == (len(whole) - len(prompt)) * 320 > 12 * 320


# -- what goes in --------------------------------------------------------------------------------------------


class AudioDecoder:
    """What datasets 4 yields of an Audio column where torchcodec works."""

    def __init__(self, samples):
        self.samples = samples

    def get_all_samples(self):
        return type("AudioSamples", (), {"data": torch.from_numpy(self.samples)[None], "sample_rate": RATE})


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "prompt.flac"
    soundfile.write(path, noise(0.5), RATE)
    samples, _ = soundfile.read(path, dtype="float32")
    file = path.read_bytes()
    return {
        "path": str(path),
        "Path": path,
        "bytes": file,
        "undecoded": {"bytes": file, "path": None},
        "by path": {"bytes": None, "path": str(path)},
        "decoded": {"array": samples, "sampling_rate": RATE},
        "raw": {"raw": samples, "sampling_rate": RATE},
        "AudioDecoder": AudioDecoder(samples),
    }


@pytest.mark.parametrize(
    "form", ["path", "Path", "bytes", "undecoded", "by path", "decoded", "raw", "AudioDecoder"]
)
def test_every_form_of_audio_gives_the_same(speak, forms, form):
    expected = speak(forms["decoded"], **GREEDY)
    np.testing.assert_array_equal(speak(forms[form], **GREEDY)["audio"], expected["audio"])


def test_other_rates_are_resampled(speak):
    result = speak(noise(0.5), sampling_rate=8_000, return_prompt=True, **GREEDY)
    assert len(result["prompt"]) == RATE  # 0.5 * 16,000 samples at 8,000 Hz are a second


PROMPTS = [
    {"array": noise(seconds, seed), "sampling_rate": RATE} for seed, seconds in enumerate((0.3, 0.7, 0.2))
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_gives_a_list_whatever_the_batches(speak, batch_size):
    one_by_one = [speak(prompt, **GREEDY) for prompt in PROMPTS]
    together = speak(PROMPTS, batch_size=batch_size, return_prompt=True, **GREEDY)
    for alone, among, prompt in zip(one_by_one, together, PROMPTS, strict=True):
        np.testing.assert_array_equal(alone["units"], among["units"])
        np.testing.assert_allclose(alone["audio"], among["audio"], atol=1e-5)
        np.testing.assert_array_equal(among["prompt"], prompt["array"])


def test_generators_and_datasets_are_read_as_they_come(speak):
    class Prompts(torch.utils.data.Dataset):
        def __len__(self):
            return len(PROMPTS)

        def __getitem__(self, index):
            return PROMPTS[index]

    lists = [
        list(speak((prompt for prompt in PROMPTS), **GREEDY)),
        list(speak(Prompts(), batch_size=2, **GREEDY)),
        speak(PROMPTS, **GREEDY),
    ]
    for results in zip(*lists, strict=True):
        assert len({tuple(result["units"].tolist()) for result in results}) == 1


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_continuations_of_each_prompt(speak, batch_size):
    settings = {"num_return_sequences": 2, "max_new_tokens": 12, "min_new_tokens": 12, "seed": 1}
    results = speak(PROMPTS, batch_size=batch_size, **settings)
    assert [len(each) for each in results] == [2, 2, 2]
    assert all(len(result["units"]) == 12 for each in results for result in each)
    first, second = results[0]
    assert first["units"].tolist() != second["units"].tolist()
    beams = speak(PROMPTS[0], num_beams=3, num_return_sequences=3, **GREEDY)
    assert len({tuple(beam["units"].tolist()) for beam in beams}) == 3


# -- how long, how drawn -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "units"), [(0.01, 1), (0.02, 1), (0.5, 25), (0.51, 25), (0.52, 26)])
def test_seconds_bound_the_continuation(speak, seconds, units):
    result = speak(PROMPTS[0], max_new_seconds=seconds, **ENDLESS)
    assert len(result["units"]) == units


def test_a_long_continuation_has_its_last_frame(tiny_slm):
    """131.06 s in float32 are a little less than 6,553 frames."""
    model, processor = tiny_slm(max_position_embeddings=7000, hidden_size=8, num_attention_heads=1)
    prompt = processor(units=[1, 2])
    sequences = torch.cat([prompt["input_ids"], torch.ones(1, 6553, dtype=torch.long)], dim=1)
    speak = model.speech_continuation(processor)
    model.generate = lambda **settings: sequences
    processor.frames_to_audio = lambda frames: np.zeros(len(frames) * 320, dtype=np.float32)
    assert len(speak({"units": [1, 2]}, max_new_seconds=131.06)["units"]) == 6553


def test_seconds_are_counted_as_the_tokens_sound(tiny_slm):
    """Tokens of several units, units of several frames: the last one is cut, streamed or not."""
    model, processor = tiny_slm(merges=[(1, 2), (7, 14), (30, 31), (5, 3)], deduplicate=True)
    speak = model.speech_continuation(processor)
    cut = 0
    for seed in range(8):
        settings = {"max_new_seconds": 0.4, "suppress_tokens": [34, 35, 36], "seed": seed}
        result = speak({"units": [5, 3]}, **settings)
        assert result["seconds"] == pytest.approx(0.4)
        # The units are those that it takes to say the audio, no more and no fewer.
        tokens, prompt = [34, 5, 3, *result["units"]], len(processor.decode_frames([34, 5, 3]))
        frames = processor.decode_frames(tokens)
        assert len(processor.decode_frames(tokens[:-1])) - prompt < 20 <= len(frames) - prompt
        audio = processor.frames_to_audio(frames[: prompt + 20])[prompt * 320 :]
        np.testing.assert_array_equal(result["audio"], audio)
        chunks = np.concatenate(list(speak.stream({"units": [5, 3]}, chunk_seconds=0.1, **settings)))
        assert len(chunks) == len(result["audio"])
        cut += len(frames) - prompt > 20
    assert cut > 0


def test_five_seconds_are_the_default(checkpoint):
    speak = pipeline("speech-continuation", model=str(checkpoint), **ENDLESS)
    speak.model.config.text_config.max_position_embeddings = 1000
    assert speak(PROMPTS[0])["seconds"] == pytest.approx(5.0)
    config = GenerationConfig(max_new_tokens=7, min_new_tokens=7, do_sample=False)
    assert len(speak(PROMPTS[0], generation_config=config)["units"]) == 7


def test_the_first_tokens_of_a_longer_continuation_are_those_of_a_shorter_one(speak):
    short, long = (speak(PROMPTS[0], max_new_seconds=s, **ENDLESS, seed=5) for s in (0.2, 0.6))
    assert long["units"][:10].tolist() == short["units"].tolist()


def test_a_seed_decides_the_draw_and_leaves_the_global_generator_alone(speak):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, again, other = (
        speak(PROMPTS[0], max_new_tokens=30, **ENDLESS, seed=seed)["units"].tolist() for seed in (7, 7, 8)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults_of_the_pipeline_are_overridden_by_the_call(checkpoint):
    speak = pipeline("speech-continuation", model=str(checkpoint), **GREEDY)
    assert len(speak(PROMPTS[0])["units"]) == 12
    assert len(speak(PROMPTS[0], max_new_tokens=3, min_new_tokens=3)["units"]) == 3


def test_a_static_cache_changes_nothing(speak):
    static = speak(PROMPTS[0], cache_implementation="static", **GREEDY)
    assert static["units"].tolist() == speak(PROMPTS[0], **GREEDY)["units"].tolist()


# -- refused -------------------------------------------------------------------------------------------------


def test_more_than_the_context_holds_is_refused(speak):
    with pytest.raises(ValueError, match=r"prompt of 16 tokens leaves room for 2\.2 s .* max_new_seconds=3"):
        speak(PROMPTS[0], max_new_seconds=3)
    with pytest.raises(ValueError, match="prompt has 251 tokens, and the model's context is 128"):
        speak(noise(5.0), sampling_rate=RATE, max_new_tokens=5)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, dtype=np.float32), "empty"),
        ({"units": []}, "no units"),
        ({"units": [30]}, r"Units must lie in 0\.\.29, got 30\.\.30"),
        ("nowhere.wav", "nowhere.wav"),
    ],
)
def test_audio_that_cannot_be_continued_is_refused(speak, audio, message):
    with pytest.raises(ValueError, match=message):
        speak(audio, sampling_rate=None if isinstance(audio, str) else RATE)


def test_a_processor_of_another_model_is_refused(tiny_slm):
    model, _ = tiny_slm()
    _, other = tiny_slm(merges=[(1, 2)])
    with pytest.raises(ValueError, match="processor has num_merges=1, but the model has num_merges=0"):
        model.speech_continuation(other)


def test_a_processor_is_needed_with_its_audio_tokenizer(tiny_slm):
    model, processor = tiny_slm()
    with pytest.raises(RuntimeError, match="no audio tokenizer"):
        model.speech_continuation(ClsiProcessor(processor.feature_extractor, processor.tokenizer))
    with pytest.raises(ValueError, match="needs a processor"):
        SpeechContinuationPipeline(model)


# -- saved, streamed -----------------------------------------------------------------------------------------


def test_a_saved_pipeline_comes_back(speak, checkpoint, tmp_path):
    speak.save_pretrained(tmp_path / "again")
    again = pipeline("speech-continuation", model=str(tmp_path / "again"))
    assert again(PROMPTS[0], **GREEDY)["units"].tolist() == speak(PROMPTS[0], **GREEDY)["units"].tolist()
    files = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*")}
    assert files == {path.relative_to(checkpoint) for path in checkpoint.rglob("*")}


def test_the_checkpoint_names_the_pipeline_for_those_without_hf_clsi(checkpoint):
    """Executed there by tests/test_auto.py."""
    config = json.loads((checkpoint / "config.json").read_text())
    impl = config["custom_pipelines"]["speech-continuation"]["impl"]
    assert impl == "pipeline_clsi.SpeechContinuationPipeline"
    assert (checkpoint / "pipeline_clsi.py").is_file()


def test_the_audio_tokenizer_stays_in_float32(checkpoint):
    speak = pipeline("speech-continuation", model=str(checkpoint), dtype=torch.bfloat16)
    assert speak.model.dtype == torch.bfloat16
    assert speak.processor.audio_tokenizer.dtype == torch.float32


def test_an_adapter_folder_is_a_model(checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = shutil.copytree(checkpoint, tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    speak = pipeline("speech-continuation", model=str(tmp_path / "adapter"))
    prompt = AutoProcessor.from_pretrained(base)(noise(0.3), sampling_rate=RATE)
    ids = adapted.eval().generate(**prompt, **GREEDY)[0]
    assert speak(noise(0.3), sampling_rate=RATE, **GREEDY)["units"].tolist() == ids[16:].tolist()


def test_streamed_chunks_are_the_continuation(speak):
    settings = {"max_new_tokens": 60, "min_new_tokens": 60, "do_sample": False}
    chunks = list(speak.stream(PROMPTS[0], chunk_seconds=0.3, **settings))
    whole = speak(PROMPTS[0], **settings)["audio"]
    joined = np.concatenate(chunks)
    assert len(chunks) >= 4
    assert joined.shape == whole.shape
    assert (
        np.corrcoef(joined, whole)[0, 1] > 0.8
    )  # Griffin-Lim looks ahead; a causal decoder says exactly the same


def test_a_reader_that_leaves_stops_the_generation(speak):
    import threading

    chunks = speak.stream(PROMPTS[0], max_new_tokens=100, **ENDLESS, chunk_seconds=0.02)
    next(chunks)
    assert any(thread.name == "speech-continuation" for thread in threading.enumerate())
    chunks.close()
    assert not any(thread.name == "speech-continuation" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_errors_of_the_stream_reach_its_reader(speak):
    with pytest.raises(ValueError, match="beam search"):
        list(speak.stream(PROMPTS[0], num_beams=2, max_new_tokens=4, do_sample=False))
    with pytest.raises(ValueError, match="leaves room"):
        list(speak.stream(PROMPTS[0], max_new_seconds=100))


def test_reading_and_writing_files_is_soundfiles(forms):
    """The fixture's bytes are a file, not samples."""
    samples, rate = soundfile.read(io.BytesIO(forms["bytes"]))
    assert (len(samples), rate) == (8000, RATE)
