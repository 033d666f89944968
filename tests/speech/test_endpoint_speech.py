"""Speech from a server that answers as it should, late, in pieces, with errors, or not at all."""

import json
import struct
import threading
import time
import traceback

import numpy as np
import pytest

from hf_clsi.speech.audio import encode_audio
from hf_clsi.speech.endpoint_speech import EndpointSpeechEngine, public_host
from hf_clsi.speech.synthesis import SynthesisRequest, load_engine, synthesize_many

pytest.importorskip("openai")

KEY = "sk-very-secret-0123456789"
TONE = (np.sin(np.arange(2400) / 10) * 0.5 * 32767).astype(np.int16)
WAVEFORM = TONE.astype(np.float32) / np.float32(32768)
WAV = {"body": encode_audio(WAVEFORM, 24000, "WAV"), "headers": {"Content-Type": "audio/wav"}}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def engine(server, **settings):
    return EndpointSpeechEngine(
        **{
            "model": "tts",
            "base_url": server.url,
            "backoff_s": 0.01,
            "retries": 2,
            "timeout_s": 5.0,
            **settings,
        }
    )


def test_a_sentence_is_asked_for_and_its_samples_come_back(misbehaving_server):
    server = misbehaving_server([WAV])
    speaks = engine(server, speed=1.1, instructions="Slowly.", options={"seed": 3})
    waveform = speaks.synthesize("Le chat dort.", "nova")
    np.testing.assert_array_equal(waveform, WAVEFORM)
    assert waveform.dtype == np.float32
    (request,) = server.requests
    assert request.path == "/v1/audio/speech"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.json == {
        "model": "tts",
        "input": "Le chat dort.",
        "voice": "nova",
        "response_format": "wav",
        "speed": 1.1,
        "instructions": "Slowly.",
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("response_format", "body"),
    [("flac", encode_audio(WAVEFORM, 24000, "FLAC")), ("pcm", TONE.astype("<i2").tobytes())],
)
def test_flac_and_headerless_samples_are_read_too(misbehaving_server, response_format, body):
    server = misbehaving_server([{"body": body}])
    speaks = engine(server, response_format=response_format)
    np.testing.assert_array_equal(speaks.synthesize("Hi.", "nova"), WAVEFORM)
    assert server.requests[0].json["response_format"] == response_format


def test_a_wav_that_was_streamed_without_knowing_its_length_is_read(misbehaving_server):
    # What OpenAI sends: 0xFFFFFFFF where the lengths belong.
    streamed = bytearray(WAV["body"])
    place = streamed.index(b"data") + 4
    streamed[4:8] = streamed[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    server = misbehaving_server([{"body": bytes(streamed)}])
    np.testing.assert_array_equal(engine(server).synthesize("Hi.", "nova"), WAVEFORM)


def test_replies_of_another_rate_are_resampled(misbehaving_server):
    server = misbehaving_server([WAV])
    waveform = engine(server, sampling_rate_hz=16000).synthesize("Hi.", "nova")
    assert len(waveform) == 1600
    middle = np.sin(np.arange(1600) * 1.5 / 10) * 0.5
    np.testing.assert_allclose(waveform[100:-100], middle[100:-100], atol=0.01)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "body": {"error": {"message": "slow down"}}},
        {"status": 500, "body": "oops"},
        {"sleep_s": 0.6},
        {"cut_after": -1},
        {**WAV, "cut_after": 1000},
        {**WAV, "cut_after": 1000, "declare_length": False},
        {"body": {"error": {"message": "no GPU left"}}},
        {"body": b""},
    ],
    ids=["429", "500", "time-out", "no answer", "cut", "cut unnoticed", "error with status 200", "empty"],
)
def test_faults_that_pass_are_asked_again(misbehaving_server, fault):
    server = misbehaving_server([fault, WAV])
    waveform = engine(server, timeout_s=0.3).synthesize("Hi.", "nova")
    np.testing.assert_array_equal(waveform, WAVEFORM)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 500, "body": {"error": {"message": "broken"}}}, "status 500: broken"),
        ({"body": "<html>", "headers": {"Content-Type": "text/html"}}, "no audio but text/html: <html>"),
        ({"body": b"????????????"}, "not an audio file"),
        ({**WAV, "cut_after": 1000, "declare_length": False}, "promises 4800 bytes of samples, 956 follow"),
    ],
)
def test_a_fault_that_stays_names_text_and_voice(misbehaving_server, answer, said):
    server = misbehaving_server([answer])
    with pytest.raises(RuntimeError, match=r"after 3 tries.*: voice 'nova', text 'Le chat dort\.'") as caught:
        engine(server).synthesize("Le chat dort.", "nova")
    assert said in str(caught.value)
    assert len(server.requests) == 3


def test_an_odd_number_of_bytes_is_no_pcm(misbehaving_server):
    server = misbehaving_server([{"body": b"abc"}])
    with pytest.raises(RuntimeError, match="3 bytes, which are no samples of 16 bits"):
        engine(server, response_format="pcm").synthesize("Hi.", "nova")


def test_a_request_that_is_refused_is_not_repeated_and_the_key_is_not_told(misbehaving_server):
    refusal = {"status": 401, "body": {"error": {"message": f"Incorrect API key provided: {KEY}"}}}
    server = misbehaving_server([refusal])
    speaks = engine(server)
    with pytest.raises(RuntimeError, match="status 401") as caught:
        speaks.synthesize("Hi.", "nova")
    assert len(server.requests) == 1
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in repr(speaks) + json.dumps(speaks.to_settings())


def test_as_many_requests_are_under_way_as_there_are_workers(misbehaving_server):
    server = misbehaving_server([lambda request: {**WAV, "sleep_s": 0.05}])
    requests = [SynthesisRequest(f"Hello {number}.", "nova") for number in range(12)]
    assert len(list(synthesize_many(requests, engine(server), 3, progress=False))) == 12
    assert max(request.in_flight for request in server.requests) == 3


def test_closing_the_worker_ends_the_waiting(misbehaving_server):
    server = misbehaving_server([{"status": 503}])
    worker = engine(server, backoff_s=30.0).open_worker()
    threading.Timer(0.2, worker.close).start()
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="stopped"):
        worker.synthesize([SynthesisRequest("Hi.", "nova")])
    assert time.monotonic() - started < 5


def test_the_record_names_model_server_voice_and_licence(misbehaving_server):
    server = misbehaving_server([WAV])
    speaks = engine(server, voices=["a", "b"], licence="Apache-2.0", licences={"b": "CC-BY-NC-4.0"})
    record = speaks.record(speaks.request("Hi.", "en", "b", seed=4))
    assert record["engine"] == "openai-compatible"
    assert record["engine_version"] == "tts at a private address"
    assert public_host("https://api.openai.com:443/v1") == "api.openai.com"
    for url in ("http://localhost:8000/v1", "http://gpu7/v1", "http://10.0.0.7/v1", "http://tts.internal/v1"):
        assert public_host(url) == "a private address"
    assert (record["voice"], record["licence"], record["seed"]) == ("b", "CC-BY-NC-4.0", 4)
    assert record["sampling_rate_hz"] == 24000
    assert speaks.voice_licence("a") == "Apache-2.0"
    assert speaks.speakers() == ("a", "b")
    assert speaks.voice_for("fr") == "a"


def test_a_licence_that_nobody_gave_is_unknown_and_warned_of():
    speaks = EndpointSpeechEngine("tts")
    with pytest.warns(UserWarning, match="recorded as 'unknown': look into the terms"):
        assert speaks.voice_licence("alloy") == "unknown"


def test_settings_make_an_equal_engine():
    speaks = EndpointSpeechEngine("tts", ["x"], ["fr"], licences={"x": "CC0-1.0"}, options={"seed": 1})
    settings = json.loads(json.dumps(speaks.to_settings()))
    assert settings["engine"] == "openai"
    assert load_engine(settings) == speaks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model and voices must not be empty"),
        ({"model": "tts", "response_format": "mp3"}, "which lose nothing; got 'mp3'"),
        ({"model": "tts", "sampling_rate_hz": 0}, "sampling_rate_hz must be positive"),
        ({"model": "tts", "base_url": "https://me:pw@host/v1"}, "carries credentials"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EndpointSpeechEngine(**settings)


def test_a_language_beyond_those_listed_is_refused():
    with pytest.raises(ValueError, match="set up for fr, not 'de'"):
        EndpointSpeechEngine("tts", languages=["fr"]).voice_for("de")


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RuntimeError, match="OPENAI_API_KEY is not set"):
        EndpointSpeechEngine("tts-1").open_worker()
