"""Sentences -> waveforms by any server that speaks OpenAI's /v1/audio/speech.

    export OPENAI_BASE_URL=http://localhost:8880/v1
    engine = EndpointSpeechEngine(model="kokoro", voices=["af_heart"], licence="Apache-2.0")
    waveform = engine.synthesize("The cat sleeps.", "af_heart")

Retries, back-off and the key are those of `text/endpoint.py`. A server draws its own random numbers, so the
same request may sound a little different the second time; the seed is recorded, but not sent.
"""

from __future__ import annotations

import ipaddress
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from hf_clsi.speech.audio import AudioError, read_audio, resample
from hf_clsi.speech.synthesis import SynthesisEngine, SynthesisRequest, SynthesisWorker
from hf_clsi.text.endpoint import BadResponse, Endpoint, EndpointError

PCM_RATE_HZ = 24000  # of format "pcm", which has no header to say so: 16 bit, little-endian, mono
_ENDPOINT_FIELDS = tuple(each.name for each in fields(Endpoint))


class EndpointSpeechWorker(SynthesisWorker):
    """One request under way at a time; as many workers as there are to be at once."""

    def __init__(self, engine: EndpointSpeechEngine):
        self.engine = engine
        self._endpoint = engine.endpoint()
        self._endpoint.client()  # a missing package or key is known now
        self._closed = threading.Event()

    def synthesize(self, requests: Sequence[SynthesisRequest]) -> list[np.ndarray]:
        return [self._speak(request) for request in requests]

    def close(self) -> None:
        self._closed.set()

    def _speak(self, request: SynthesisRequest) -> np.ndarray:
        engine = self.engine
        body = {name: value for name, value in engine.sent().items() if value is not None}
        try:
            return self._endpoint.request(
                lambda client: engine.read(
                    client.audio.speech.create(input=request.text, voice=request.voice, **body)
                ),
                stop=self._closed,
            )
        except EndpointError as error:
            raise EndpointError(
                f"{error}: voice {request.voice!r}, text {request.text!r}", error.status, error.code
            ) from None


def public_host(url: str) -> str:
    """The host of a public service; rows and cards need not know the address of one in a private network.

    >>> public_host("https://api.openai.com/v1"), public_host("http://10.0.0.7:8000/v1")
    ('api.openai.com', 'a private address')
    """
    host = urlsplit(url).hostname or ""
    try:
        private = not ipaddress.ip_address(host).is_global
    except ValueError:  # a name
        private = "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return "a private address" if private else host


@dataclass(frozen=True)
class EndpointSpeechEngine(SynthesisEngine):
    """A server with OpenAI's speech API: OpenAI's own, or one of the many that imitate it.

    A voice is the server's name of it and serves every language, so the same voice in two languages is the
    same speaker, as far as the server makes it so (speech/voices.py tells).

    model: the server's name of the model. voices: those to draw speakers from. languages: those that may be
    asked for; empty for any. licence: what the terms of the service say of its output; "unknown" unless you
    tell. licences: voice -> licence, where voices differ. sampling_rate_hz: replies are resampled to it.
    response_format: "wav", "flac" or "pcm" (16 bit at 24 kHz). speed, instructions: sent if set. options:
    further fields of the request. The rest is as in `text.endpoint.Endpoint`; base URL and key come from the
    environment by default, and the key is never a setting.
    """

    model: str
    voices: tuple[str, ...] = ("alloy", "echo", "fable", "onyx", "nova", "shimmer")
    languages: tuple[str, ...] = ()
    licence: str = "unknown"
    licences: Mapping[str, str] = field(default_factory=dict, hash=False)
    sampling_rate_hz: int = 24000
    response_format: str = "wav"
    speed: float | None = None
    instructions: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    base_url: str | None = None
    api_key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    retries: int = 6
    backoff_s: float = 1.0
    max_wait_s: float = 120.0

    name: ClassVar[str] = "openai-compatible"

    def __post_init__(self):
        for name in ("voices", "languages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("licences", "options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        if not self.model or not self.voices:
            raise ValueError("model and voices must not be empty; give names that the server knows")
        if self.response_format not in ("wav", "flac", "pcm"):
            raise ValueError(
                "response_format must be 'wav', 'flac' or 'pcm', which lose nothing; got "
                f"{self.response_format!r}"
            )
        if self.sampling_rate_hz <= 0:
            raise ValueError(f"sampling_rate_hz must be positive, got {self.sampling_rate_hz!r}")
        self.endpoint()  # which checks its own settings

    def endpoint(self) -> Endpoint:
        return Endpoint(**{name: getattr(self, name) for name in _ENDPOINT_FIELDS})

    @property
    def version(self) -> str:
        return f"{self.model} at {public_host(self.endpoint().url)}"

    def settings(self) -> dict:
        names = ("response_format", "speed", "instructions")
        return {**{name: getattr(self, name) for name in names}, "options": dict(self.options)}

    def sent(self) -> dict[str, Any]:
        """What goes into every request, as arguments of the package openai; None is left out."""
        names = ("model", "response_format", "speed", "instructions")
        return {**{name: getattr(self, name) for name in names}, "extra_body": dict(self.options) or None}

    def speakers(self) -> tuple[str, ...]:
        return self.voices

    def voice_for(self, language: str, speaker: str = "") -> str:
        if self.languages and language not in self.languages:
            raise ValueError(
                f"{self.model} is set up for {', '.join(self.languages)}, not {language!r}; add it to "
                "languages if the server speaks it"
            )
        return speaker or self.voices[0]

    def voice_licence(self, voice: str) -> str:
        licence = self.licences.get(voice, self.licence)
        if licence == "unknown":
            warnings.warn(
                f"the licence of what {self.version} speaks as {voice!r} is recorded as 'unknown': look into "
                "the terms of the service and give it as licence=...",
                stacklevel=2,
            )
        return licence

    def read(self, response: Any) -> np.ndarray:
        """Reply of the server -> float32 [n] at `sampling_rate_hz`; BadResponse if it is no whole audio."""
        data = response.content
        said = response.response.headers.get("content-type", "")
        if said.startswith(("application/json", "text/")):
            raise BadResponse(f"the reply is no audio but {said}: {data[:200].decode(errors='replace')}")
        if self.response_format != "pcm":
            try:
                return read_audio(data, self.sampling_rate_hz, name="the reply")[0]
            except AudioError as error:
                raise BadResponse(str(error)) from error
        if not data or len(data) % 2:
            raise BadResponse(f"the reply has {len(data)} bytes, which are no samples of 16 bits")
        waveform = np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)
        return resample(waveform, PCM_RATE_HZ, self.sampling_rate_hz)

    def open_worker(self) -> EndpointSpeechWorker:
        return EndpointSpeechWorker(self)
