"""A speech engine that beeps, fast and always alike: for builds in tests and for the memory benchmark.

Every word is a tone of 40 ms whose pitch is a hash of it; the voice sets the octave. It can write down what
it speaks, refuse a word, and wait, so that a test can kill it at work.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from hf_clsi.speech.synthesis import SynthesisEngine, SynthesisRequest, SynthesisWorker

RATE_HZ = 16_000
WORD_SAMPLES = 640


@cache
def tone(word: str, octave: int) -> np.ndarray:
    pitch_hz = (120 + hashlib.blake2b(word.encode(), digest_size=2).digest()[0]) * 2**octave
    time_s = np.arange(WORD_SAMPLES) / RATE_HZ
    return (0.5 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


class ToneWorker(SynthesisWorker):
    def __init__(self, engine: ToneEngine):
        self.engine = engine

    def synthesize(self, requests: Sequence[SynthesisRequest]) -> list[np.ndarray]:
        waveforms = []
        for request in requests:
            time.sleep(self.engine.delay_s)
            if self.engine.refused and self.engine.refused in request.text:
                raise ValueError(f"cannot say {self.engine.refused!r}: {request.text!r}")
            octave = int(request.voice[-1])
            waveforms.append(np.concatenate([tone(word, octave) for word in request.text.split()]))
            if self.engine.log:
                with open(self.engine.log, "a", encoding="utf-8") as file:  # one write: lines do not mix
                    file.write(f"{os.getpid()}\t{request.voice}\t{request.text}\n")
        return waveforms

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class ToneEngine(SynthesisEngine):
    log: str | None = None
    refused: str | None = None
    delay_s: float = 0.0

    name: ClassVar[str] = "tones"
    licence: ClassVar[str] = "CC0-1.0"
    sampling_rate_hz: ClassVar[int] = RATE_HZ
    version: ClassVar[str] = "1"

    def settings(self) -> dict:
        return {}

    def speakers(self) -> tuple[str, ...]:
        return ("low", "high")

    def voice_for(self, language: str, speaker: str = "") -> str:
        return f"{language}-{('low', 'high').index(speaker)}"

    def open_worker(self) -> ToneWorker:
        return ToneWorker(self)
