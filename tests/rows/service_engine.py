"""The beeping engine as a service of the network: it has a key, and there is a list of what it fails on."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tone_engine import ToneEngine, ToneWorker

from hf_clsi.speech.synthesis import SynthesisRequest


class ServiceWorker(ToneWorker):
    def synthesize(self, requests: Sequence[SynthesisRequest]) -> list[np.ndarray]:
        key = os.environ["SERVICE_KEY"]
        faults = Path(self.engine.faults)
        words = set(faults.read_text().split()) if faults.is_file() else set()
        for request in requests:
            if words & set(request.text.split()):
                answer(request.text, key, "killed" in words)
        return super().synthesize(requests)


def answer(text: str, key: str, killed: bool) -> None:
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(f"503 for {text!r} with a key" if key else key)  # the key is a variable of this line


@dataclass(frozen=True)
class ServiceEngine(ToneEngine):
    """faults: a file with words; a sentence that has one of them is not spoken."""

    faults: str = ""

    def open_worker(self) -> ServiceWorker:
        return ServiceWorker(self)
