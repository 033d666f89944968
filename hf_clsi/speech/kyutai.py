"""Sentences -> waveforms by Kyutai TTS 1.6B (English and French), the paper's synthesizer.

Its package, moshi, needs older releases of torch and huggingface-hub than hf_clsi does, so it lives in an
environment of its own, made once:

    python3 -m venv ~/moshi && ~/moshi/bin/pip install moshi
    export HF_CLSI_MOSHI_PYTHON=~/moshi/bin/python

    engine = KyutaiEngine()  # the weights (4 GB) and the voices come from the Hub
    requests = [engine.request("The cat sleeps.", "en", voice), engine.request("Le chat dort.", "fr", voice)]
    waveforms = list(synthesize_many(requests, engine, num_processes=1))

Each worker keeps one process of that environment with the model loaded (`kyutai_process.py`) and hands it
manifests; on a GPU one worker is right, more of them share it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from hf_clsi.speech.audio import read_audio
from hf_clsi.speech.synthesis import ChildProcessWorker, SynthesisEngine, SynthesisRequest

SCRIPT = Path(__file__).with_name("kyutai_process.py")
PYTHON_VARIABLE = "HF_CLSI_MOSHI_PYTHON"
VOICES_REPO = "kyutai/tts-voices"

# Folder of kyutai/tts-voices -> licence of its recordings: donations in the words of the README there
# ("licensed as CC0"), the others as public projects that use them agree (July to September 2026). The README
# could not be read in full, so look at it before publishing. unmute-prod-website is left out, since there
# each file has its own licence.
VOICE_LICENCES = {
    "voice-donations": "CC0-1.0",
    "voice-zero": "CC0-1.0",
    "vctk": "CC-BY-4.0",
    "cml-tts/fr": "CC-BY-4.0",
    "alba-mackenna": "CC-BY-4.0",
    "expresso": "CC-BY-NC-4.0",
    "ears": "CC-BY-NC-4.0",
}

# Voices of both languages, by path in kyutai/tts-voices, all free to use with attribution: the VCTK speakers
# and donors that Kyutai itself chose for Pocket TTS, and three French readers. The repository has hundreds;
# which of them sound like one person in both languages is for speech/voices.py to find out.
DEFAULT_VOICES = (
    *(
        f"vctk/p{number}_023.wav"
        for number in (228, 229, 244, 254, 259, 262, 303, 315, 333, 339, 360, 361)
    ),
    "voice-donations/Selfie.wav",
    "voice-donations/Butter.wav",
    "alba-mackenna/casual.wav",
    "cml-tts/fr/12977_10625_000037-0001.wav",
    "cml-tts/fr/1591_1028_000108-0004.wav",
    "cml-tts/fr/12205_11650_000004-0002.wav",
)  # fmt: skip


class KyutaiWorker(ChildProcessWorker):
    """A process of moshi's environment that keeps the model loaded, and the folder it writes to."""

    def __init__(self, engine: KyutaiEngine):
        self.engine = engine
        self._num_manifests = 0
        python = engine.interpreter()
        self._folder = tempfile.TemporaryDirectory(prefix="hf_clsi-kyutai-", ignore_cleanup_errors=True)
        # This process's search path belongs to its own environment.
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
        }
        command = [python, str(SCRIPT), "--serve", "--output-dir", self._folder.name, *engine.options()]
        try:
            super().__init__(command, {}, environment)
            if self.hello["sampling_rate_hz"] != engine.sampling_rate_hz:
                raise RuntimeError(
                    f"{engine.checkpoint} speaks at {self.hello['sampling_rate_hz']} Hz, expected "
                    f"{engine.sampling_rate_hz}"
                )
        except BaseException:
            if hasattr(self, "_process"):
                self.close()
            self._folder.cleanup()
            raise

    def synthesize(self, requests: Sequence[SynthesisRequest]) -> list[np.ndarray]:
        folder = Path(self._folder.name, f"{self._num_manifests:06d}")
        self._num_manifests += 1
        manifest = folder.with_suffix(".jsonl")
        try:
            with open(manifest, "w", encoding="utf-8") as file:
                for number, request in enumerate(requests):
                    line = {
                        "id": f"{number:06d}",
                        "text": request.text,
                        "voice": request.voice,
                        "seed": request.seed,
                    }
                    file.write(json.dumps(line) + "\n")
            self._process.stdin.write(os.fsencode(manifest) + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError, FileNotFoundError):  # the last two: `close` in another thread
            raise self._death() from None
        answer = self._read_header()
        if "error" in answer:
            raise RuntimeError(f"Kyutai TTS gave up on a manifest: {answer['error']}")
        try:
            return self._read_folder(folder, requests)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            manifest.unlink(missing_ok=True)

    def _read_folder(self, folder: Path, requests: Sequence[SynthesisRequest]) -> list[np.ndarray]:
        try:
            lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:  # `close` in another thread
            raise self._death() from None
        results = {result["id"]: result for result in map(json.loads, lines)}
        waveforms = []
        for number, request in enumerate(requests):
            result = results[f"{number:06d}"]
            if "error" in result:
                error = ValueError if result["kind"] == "value" else RuntimeError
                raise error(f"{result['error']}: voice {request.voice!r}, text {request.text!r}")
            if not result["num_samples"]:
                waveforms.append(np.zeros(0, np.float32))  # "no sound", which the caller reports
                continue
            waveform, _ = read_audio(folder / f"{number:06d}.wav")
            waveforms.append(waveform)
        return waveforms

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


@cache
def moshi_version(python: str) -> str:
    """Version of the package moshi that the interpreter `python` has. RuntimeError where it has none."""
    run = subprocess.run([python, str(SCRIPT), "--version"], capture_output=True, text=True)
    version = json.loads(run.stdout)["version"] if run.returncode == 0 else None
    if version is None:
        raise RuntimeError(
            f"{python} has no package moshi{': ' if run.stderr.strip() else ''}{run.stderr.strip()[-500:]}\n"
            + _how_to_install()
        )
    return version


def _how_to_install() -> str:
    return (
        "Kyutai TTS needs the package moshi in an environment of its own:\n"
        "    python3 -m venv ~/moshi && ~/moshi/bin/pip install moshi\n"
        f"    export {PYTHON_VARIABLE}=~/moshi/bin/python"
    )


@dataclass(frozen=True)
class KyutaiEngine(SynthesisEngine):
    """Kyutai's delayed-streams TTS through the package moshi, in a process of moshi's own environment.

    A voice is a path in the voices repository ("vctk/p228_023.wav"), or a local .safetensors file of an
    embedding; it speaks every language, so the same voice in two languages is the same speaker. Texts are
    spoken one by one, each after its seed: equal requests give equal samples on one machine.

    python: interpreter of the environment that has moshi; None reads $HF_CLSI_MOSHI_PYTHON. checkpoint,
    revision: Hub id and commit of the model, which must take voice embeddings. voices_repo: Hub id of their
    repository. voices: those to draw speakers from. languages: those the model speaks. licences: voice ->
    licence, where you know more than `VOICE_LICENCES`. device: None takes a GPU if there is one. dtype:
    "bfloat16", "float16" or "float32". num_codebooks: 8 to 32, quality against speed. temperature: of text
    and audio tokens. cfg_coef: how closely the voice is followed, 1.0 to 4.0 in steps of 0.5. max_seconds: a
    text that takes longer to say is an error.
    """

    python: str | None = None
    checkpoint: str = "kyutai/tts-1.6b-en_fr"
    revision: str | None = None
    voices_repo: str = VOICES_REPO
    voices: tuple[str, ...] = DEFAULT_VOICES
    languages: tuple[str, ...] = ("en", "fr")
    licences: Mapping[str, str] = field(default_factory=dict, hash=False)
    device: str | None = None
    dtype: str = "bfloat16"
    num_codebooks: int = 32
    temperature: float = 0.6
    cfg_coef: float = 2.0
    max_seconds: float = 60.0

    name: ClassVar[str] = "kyutai-tts"
    # Of the weights (model card of kyutai/tts-1.6b-en_fr); the code of moshi is MIT. The voice's licence
    # comes on top: `voice_licence`, and it is the one that a row records.
    licence: ClassVar[str] = "CC-BY-4.0"
    sampling_rate_hz: ClassVar[int] = 24000

    def __post_init__(self):
        for name in ("voices", "languages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "licences", dict(self.licences))
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"dtype must be 'bfloat16', 'float16' or 'float32', got {self.dtype!r}")
        if self.num_codebooks < 1 or self.temperature < 0 or self.max_seconds <= 0:
            raise ValueError(
                f"num_codebooks and max_seconds must be positive and temperature not negative, got "
                f"{self.num_codebooks}, {self.max_seconds} and {self.temperature}"
            )
        if not self.voices or not self.languages:
            raise ValueError("voices and languages must not be empty")

    @property
    def version(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.checkpoint}{revision}, moshi {moshi_version(self.interpreter())}"

    def settings(self) -> dict:
        names = ("voices_repo", "dtype", "num_codebooks", "temperature", "cfg_coef")
        return {name: getattr(self, name) for name in names}

    def speakers(self) -> tuple[str, ...]:
        return self.voices

    def voice_for(self, language: str, speaker: str = "") -> str:
        if language not in self.languages:
            raise ValueError(
                f"{self.checkpoint} speaks {', '.join(self.languages)}, not {language!r}; if yours does, say "
                "so with languages=[...]"
            )
        return speaker or self.voices[0]

    def voice_licence(self, voice: str) -> str:
        if voice in self.licences:
            return self.licences[voice]
        return voice_licence(voice, self.voices_repo)

    def open_worker(self) -> KyutaiWorker:
        return KyutaiWorker(self)

    def interpreter(self) -> str:
        """The interpreter to run. RuntimeError, with the commands that make its environment, without one."""
        python = self.python or os.environ.get(PYTHON_VARIABLE)
        if not python:
            raise RuntimeError(_how_to_install())
        found = shutil.which(os.path.expanduser(python))
        if found is None:
            raise RuntimeError(f"there is no interpreter at {python!r}. {_how_to_install()}")
        return found

    def options(self) -> list[str]:
        """The settings as arguments of `kyutai_process.py`."""
        names = (
            "checkpoint", "revision", "voices_repo", "device", "dtype", "num_codebooks", "temperature",
            "cfg_coef", "max_seconds",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


def voice_licence(voice: str, voices_repo: str = VOICES_REPO) -> str:
    """Licence of a voice of kyutai/tts-voices by its folder; "unknown", with a warning, for any other.

    voice: a path in `voices_repo` or "hf://kyutai/tts-voices/...", e.g. "vctk/p228_023.wav" -> "CC-BY-4.0".
    """
    if voice.startswith("hf://"):
        path = voice.removeprefix(f"hf://{VOICES_REPO}/")
    else:
        path = voice if voices_repo == VOICES_REPO else f"/{voice}"
    for folder, licence in VOICE_LICENCES.items():
        if path.startswith(f"{folder}/"):
            return licence
    warnings.warn(
        f"the licence of voice {voice!r} is not known, and recorded as 'unknown': look at "
        f"https://huggingface.co/{VOICES_REPO}, then give it as licences={{{voice!r}: 'CC-BY-4.0'}}",
        stacklevel=2,
    )
    return "unknown"
