"""Pocket TTS through transformers' own classes, with tiny random weights: one checkpoint a language."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_clsi.speech.audio import write_audio
from hf_clsi.speech.pocket_tts import FREE_PRESETS, PRESETS, PocketSpeaker, PocketTTSEngine
from hf_clsi.speech.synthesis import SynthesisRequest, load_engine

CAT = "The little cat sleeps."
CHAT = "Le petit chat dort."
PLACEHOLDERS = {
    "audio_prompt_token": "<|audio_prompt|>",
    "audio_latent_token": "<|audio_latent|>",
    "audio_prompt_bos_token": "<|audio_prompt_bos|>",
    "audio_bos_token": "<|audio_bos|>",
}
# As the processor describes a checkpoint's: the text alone gets the first audio position behind it.
TEMPLATE = (
    "{% for message in messages %}{% for item in message['content'] %}{% if item['type'] == 'text' %}"
    "{{ item['text'] }}{% endif %}{% endfor %}{% endfor %}<|audio_bos|>"
)


def save_checkpoint(folder, seed):
    """A model of a few thousand weights, its codec, and a tokenizer whose tokens are letters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PocketTTSAudioTokenizerConfig,
        PocketTTSAudioTokenizerModel,
        PocketTTSConfig,
        PocketTTSFeatureExtractor,
        PocketTTSForConditionalGeneration,
        PocketTTSProcessor,
        PreTrainedTokenizerFast,
    )

    letters = ["<unk>", "<pad>", *map(chr, range(32, 127)), *"éèêàçùœ’", *PLACEHOLDERS.values()]
    ids = {letter: number for number, letter in enumerate(letters)}
    spelling = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    spelling.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    spelling.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelling, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=PLACEHOLDERS
    )
    sizes = {"num_attention_heads": 2, "intermediate_size": 32, "latent_dim": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PocketTTSForConditionalGeneration(
            PocketTTSConfig(
                vocab_size=len(ids),
                hidden_size=32,
                num_hidden_layers=2,
                flow_head_config={
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "latent_dim": 4,
                    "condition_dim": 32,
                    "frequency_embedding_size": 16,
                },
                pad_token_id=ids["<pad>"],
                initializer_range=0.3,
                **{f"{name}_id": ids[token] for name, token in PLACEHOLDERS.items()},
                **sizes,
            )
        )
        torch.manual_seed(0)  # one codec for all languages, as Kyutai has it
        codec = PocketTTSAudioTokenizerModel(
            PocketTTSAudioTokenizerConfig(
                hidden_size=16,
                num_filters=2,
                num_hidden_layers=1,
                num_key_value_heads=2,
                upsample_groups=16,
                **sizes,
            )
        )
    with torch.no_grad():  # random weights shout: bring them below full scale
        *_, (_, weight), (_, bias) = codec.decoder.named_parameters()
        for parameter in (weight, bias):
            parameter.mul_(0.01)
    model.generation_config.update(do_sample=True, temperature=0.7)
    model.save_pretrained(folder)
    codec.save_pretrained(folder / "codec")
    codec = PocketTTSAudioTokenizerModel.from_pretrained(folder / "codec")  # so that it knows where it is
    processor = PocketTTSProcessor(PocketTTSFeatureExtractor(), tokenizer, codec, chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pocket")
    save_checkpoint(folder / "english", 1)
    save_checkpoint(folder / "french", 2)
    noise = np.random.default_rng(0).standard_normal((2, 24000)).astype(np.float32) * 0.1
    write_audio(folder / "ann.wav", noise[0], 24000)
    write_audio(folder / "ben.flac", noise[1, :20000], 16000)
    write_audio(folder / "hiccup.wav", noise[1, :2400], 24000)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return PocketTTSEngine(
        checkpoint={"en": str(folder / "english"), "fr": str(folder / "french")},
        voices=[str(folder / "ann.wav"), str(folder / "ben.flac")],
        licences={str(folder / "ann.wav"): "CC0-1.0"},
    )


@pytest.fixture(scope="module")
def speaker(engine):
    return PocketSpeaker(engine.to_settings())


@pytest.fixture(scope="module")
def worker(engine):
    worker = engine.open_worker()
    yield worker
    worker.close()


# The sound


def test_a_sentence_becomes_whole_frames_of_sound(speaker, engine):
    waveform = speaker.speak(CAT, engine.voice_for("en"), 0)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert len(waveform) > 0
    assert len(waveform) % 1920 == 0
    assert 0.01 < np.abs(waveform).max() < 1.0


def test_equal_requests_sound_alike_whatever_was_spoken_before(speaker, engine):
    requests = [
        (text, engine.voice_for(language, voice), seed)
        for text, language in ((CAT, "en"), (CHAT, "fr"))
        for voice in engine.voices
        for seed in (0, 1)
    ]
    forwards = [speaker.speak(*request) for request in requests]
    fresh = PocketSpeaker(engine.to_settings())
    backwards = [fresh.speak(*request) for request in reversed(requests)]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({waveform.tobytes() for waveform in forwards}) == len(requests)  # each of the three matters


def test_speaking_leaves_the_callers_random_numbers_alone(speaker, engine):
    before = torch.get_rng_state()
    speaker.speak(CAT, engine.voice_for("en"), 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_language_is_spoken_by_its_own_checkpoint(speaker, engine):
    english, french = (speaker.speak(CAT, engine.voice_for(language), 0) for language in ("en", "fr"))
    assert not np.array_equal(english, french)


def test_a_text_of_many_tokens_is_spoken_part_after_part(speaker, engine):
    first = "The little cat sleeps near the old tree."  # 40 letters, and letters are tokens here
    voice = engine.voice_for("en")
    part = speaker.speak(first, voice, 0)
    whole = speaker.speak(f"{first} The dog looks at the old tree too.", voice, 0)
    assert len(whole) > len(part)
    np.testing.assert_array_equal(whole[: len(part)], part)


def test_placeholders_in_a_text_are_not_obeyed(speaker, engine):
    voice = engine.voice_for("en")
    smuggled = speaker.speak(f"<|audio_prompt|>{CAT}<|audio_bos|>", voice, 0)
    np.testing.assert_array_equal(smuggled, speaker.speak(CAT, voice, 0))


def test_without_temperature_the_seed_makes_no_difference(engine):
    settings = {**engine.to_settings(), "temperature": 0.0}
    speaker = PocketSpeaker(settings)
    one, other = (speaker.speak(CAT, engine.voice_for("en"), seed) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)


# Voices


def test_a_voice_can_be_given_as_latents_here_or_in_the_checkpoint(speaker, engine, folder):
    from safetensors.torch import save_file

    latents = speaker.voice("en", engine.voices[0])
    assert latents.shape == (14, 4)  # one second of 12.5 frames, and the one of silence that ends a voice
    (folder / "english" / "voices").mkdir(exist_ok=True)
    for place, tensor in (
        (folder / "ann.safetensors", latents),
        (folder / "english/voices/a.safetensors", latents[None]),
    ):
        save_file({"latents": tensor.contiguous()}, place)
    expected = speaker.speak(CAT, engine.voice_for("en"), 0)
    for voice in (f"en:{folder}/ann.safetensors", "en:voices/a.safetensors"):
        np.testing.assert_array_equal(speaker.speak(CAT, voice, 0), expected)


def test_a_preset_is_a_recording_on_the_hub(speaker, engine, folder):
    from huggingface_hub.constants import HF_HUB_CACHE

    # What a download leaves behind.
    repository = Path(HF_HUB_CACHE, "models--kyutai--tts-voices")
    recording = repository / "snapshots" / ("a" * 40) / "vctk" / "p228_023_enhanced.wav"
    recording.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copy(folder / "ann.wav", recording)
    try:
        waveform = speaker.speak(CAT, "en:anna", 0)
    finally:
        shutil.rmtree(repository)
    np.testing.assert_array_equal(waveform, speaker.speak(CAT, engine.voice_for("en"), 0))


@pytest.mark.parametrize(
    ("text", "voice", "message"),
    [
        ("...", "en:{}/ann.wav", "no word in the text"),
        (CAT, "de:{}/ann.wav", r"no checkpoint for language 'de'.*there is one for en, fr"),
        (CAT, "alba", "no checkpoint for language 'alba' .voices are '<language>:<speaker>'."),
        (CAT, "en:{}/nobody.wav", "no recording '.*nobody.wav': neither a preset .alba, anna,"),
        (CAT, "en:{}/hiccup.wav", "0.1000 s, at least 0.5000 s"),
        (CAT, "en:model.safetensors", r"no voice of latents: expected one tensor \[frames, 4\], got"),
    ],
)
def test_what_cannot_be_spoken_is_a_value_error(speaker, folder, text, voice, message):
    with pytest.raises(ValueError, match=message):
        speaker.speak(text, voice.format(folder), 0)


def test_a_preset_that_cannot_be_downloaded_is_no_fault_of_the_request(speaker):
    with pytest.raises(RuntimeError, match="no recording 'vera'"):
        speaker.speak(CAT, "en:vera", 0)


# The engine


def test_a_worker_says_the_same_as_16_bit_samples(worker, speaker, engine):
    requests = [
        engine.request(CAT, "en", seed=3),
        engine.request(CHAT, "fr", seed=3),
        engine.request(CAT, "en", engine.voices[1]),
    ]
    for request, waveform in zip(requests, worker.synthesize(requests), strict=True):
        exact = speaker.speak(request.text, request.voice, request.seed)
        np.testing.assert_allclose(waveform, exact, atol=0.51 / 32768)
        np.testing.assert_array_equal(waveform * 32768, np.rint(waveform * 32768))


def test_one_text_that_fails_names_itself_and_does_not_spoil_the_worker(worker, engine):
    good = engine.request(CAT, "en")
    with pytest.raises(ValueError, match=r"no word in the text: voice 'en:.*', text '\.\.\.'"):
        worker.synthesize([good, SynthesisRequest("...", good.voice), good])
    assert len(worker.synthesize([good])[0]) > 0


def test_a_worker_ends_at_the_end_of_its_input(worker):
    worker._process.stdin.close()  # what the death of this process would do
    assert worker._process.wait(timeout=20) == 0


def test_the_record_tells_engine_voice_licence_and_seed(engine, folder):
    record = engine.record(engine.request(CHAT, "fr", seed=4))
    assert record["engine"] == "pocket-tts"
    assert record["engine_version"] == (
        f"en={folder}/english fr={folder}/french, transformers {version('transformers')}"
    )
    assert record["voice"] == f"fr:{folder}/ann.wav"
    assert (record["licence"], record["seed"], record["sampling_rate_hz"]) == ("CC0-1.0", 4, 24000)


def test_settings_make_an_equal_engine(engine):
    for each in (engine, PocketTTSEngine(), PocketTTSEngine(checkpoint="a/b", languages=["en", "fr"])):
        assert load_engine(json.loads(json.dumps(each.to_settings()))) == each
    assert load_engine("pocket-tts") == PocketTTSEngine()


def test_a_language_without_a_checkpoint_is_refused_unless_told(engine):
    assert engine.voice_for("fr", "alba") == "fr:alba"
    assert engine.voice_for("en", "alba") == "en:alba"  # the same speaker
    with pytest.raises(ValueError, match="no Pocket TTS checkpoint for language 'de', only for en, fr"):
        engine.voice_for("de", "alba")
    with pytest.raises(ValueError, match="'fr', only for en"):
        PocketTTSEngine(checkpoint="somebody/pocket").voice_for("fr")
    told = PocketTTSEngine(checkpoint="somebody/pocket", languages=("en", "fr"))
    assert told.checkpoints == {"en": "somebody/pocket", "fr": "somebody/pocket"}


def test_the_licence_of_a_preset_is_that_of_its_recording():
    engine = PocketTTSEngine()
    assert {engine.voice_licence(f"en:{name}") for name in FREE_PRESETS} == {"CC0-1.0", "CC-BY-4.0"}
    assert engine.voice_licence("fr:jean") == "CC-BY-NC-4.0"
    assert engine.speakers() == FREE_PRESETS
    for speaker in ("estelle", "rafael", "vctk/p228_023.wav", "/home/me/me.wav"):
        with pytest.warns(UserWarning, match="recorded as 'unknown'"):
            assert engine.voice_licence(f"en:{speaker}") == "unknown"
    assert len(PRESETS) == 26


def test_a_checkpoint_that_is_not_there_is_an_error_at_the_start(tmp_path):
    speaker = PocketSpeaker(PocketTTSEngine(checkpoint=str(tmp_path)).to_settings())
    with pytest.raises(OSError, match=os.fspath(tmp_path)):
        speaker.load("en")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype must be"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"num_threads": 0}, "num_threads at least 1"),
        ({"checkpoint": {}}, "must not be empty"),
        ({"voices": ()}, "must not be empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PocketTTSEngine(**settings)
