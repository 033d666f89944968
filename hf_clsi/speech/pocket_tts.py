"""Sentences -> waveforms by Pocket TTS (Kyutai, 100M parameters, quick on a CPU), in transformers.

    engine = PocketTTSEngine(checkpoint={"en": "eustlb/pocket-tts", "fr": "/models/pocket-tts-french"})
    texts = {"en": "The cat sleeps.", "fr": "Le chat dort."}
    requests = [engine.request(text, language, "alba") for language, text in texts.items()]
    waveforms = list(synthesize_many(requests, engine, num_processes=2))

A checkpoint speaks one language (Kyutai has them for English, French, German, Italian, Portuguese and
Spanish), in whatever voice it hears first: a speaker is a recording, and the same recording given to two
checkpoints is the same speaker in both languages.

Each worker is a process of its own that runs this file, since generation draws from torch's global stream of
random numbers: two workers in one process would take each other's. It speaks the protocol of `espeak.py`.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hf_clsi.speech.audio import read_audio
from hf_clsi.speech.kyutai import voice_licence
from hf_clsi.speech.synthesis import ChildProcessWorker, SynthesisEngine

# Speakers by name: the recordings behind Kyutai's predefined voices, as listed in pocket_tts/utils/utils.py
# of github.com/kyutai-labs/pocket-tts (June 2026).
_COMMIT = "64ab7d24c479d736a83b8cc666c4a776fca30fda"
PRESETS = {
    name: f"hf://kyutai/{path}"
    for name, path in {
        "alba": "tts-voices/alba-mackenna/casual.wav",
        "anna": "tts-voices/vctk/p228_023_enhanced.wav",
        "vera": "tts-voices/vctk/p229_023_enhanced.wav",
        "fantine": "tts-voices/vctk/p244_023_enhanced.wav",
        "charles": "tts-voices/vctk/p254_023_enhanced.wav",
        "paul": "tts-voices/vctk/p259_023_enhanced.wav",
        "eponine": "tts-voices/vctk/p262_023_enhanced.wav",
        "azelma": "tts-voices/vctk/p303_023_enhanced.wav",
        "george": "tts-voices/vctk/p315_023_enhanced.wav",
        "mary": "tts-voices/vctk/p333_023_enhanced.wav",
        "jane": "tts-voices/vctk/p339_023_enhanced.wav",
        "michael": "tts-voices/vctk/p360_023_enhanced.wav",
        "eve": "tts-voices/vctk/p361_023_enhanced.wav",
        "marius": "tts-voices/voice-donations/Selfie.wav",
        "javert": "tts-voices/voice-donations/Butter.wav",
        "bill_boerst": "tts-voices/voice-zero/bill_boerst.wav",
        "peter_yearsley": "tts-voices/voice-zero/peter_yearsley.wav",
        "stuart_bell": "tts-voices/voice-zero/stuart_bell.wav",
        "caro_davy": "tts-voices/voice-zero/caro_davy.wav",
        # Not for everything from here on: EARS and Expresso are non-commercial, the rest says nothing.
        "jean": "tts-voices/ears/p010/freeform_speech_01_enhanced.wav",
        "cosette": "tts-voices/expresso/ex04-ex02_confused_001_channel1_499s.wav",
        "estelle": "tts-voices/unmute-prod-website/developpeuse-3.wav"
        "@1fc7395b7e012e2bbebfca14b942a4ef62ccc899",
        "giovanni": f"pocket-tts/common_voice_it_36520747-enhanced-v2.mp3@{_COMMIT}",
        "lola": f"pocket-tts/common_voice_es_19762977-enhanced-v2.mp3@{_COMMIT}",
        "juergen": f"pocket-tts/de-DE-juergen.mp3@{_COMMIT}",
        "rafael": f"pocket-tts/g-Vi8PgmSY0-enhanced-v2.wav@{_COMMIT}",
    }.items()
}
FREE_PRESETS = tuple(PRESETS)[: tuple(PRESETS).index("jean")]


class PocketSpeaker:
    """The models of an engine, each loaded when its language is first spoken.

    settings: as of `PocketTTSEngine.to_settings`.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.engine = PocketTTSEngine(**{key: value for key, value in settings.items() if key != "engine"})
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._voices: dict[str, Any] = {}

    def speak(self, text: str, voice: str, seed: int) -> np.ndarray:
        """Speak `text` as `voice` ("fr:alba") -> float32 [n] at 24 kHz, the same for the same arguments.

        Texts of more than 50 tokens are cut between sentences or clauses, as Kyutai does, and spoken part
        after part. Raises ValueError for a language, voice or text that cannot be spoken.
        """
        import torch

        language, _, prompt = voice.partition(":")
        processor, model = self.load(language)
        heard = self.voice(language, prompt)
        parts = [part for part in processor.split_text(text) if any(map(str.isalnum, part))]
        if not parts:
            raise ValueError("there is no word in the text")
        waveforms = []
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for part in parts:
                inputs = processor(
                    text=self._prompt(processor, part), audio_prompt_latents=[heard], return_tensors="pt"
                )
                (latents,) = model.generate(**inputs.to(model.device), **self._sampling())
                waveforms.append(processor.decode(latents).numpy())
        return np.concatenate(waveforms)

    def load(self, language: str) -> tuple[Any, Any]:
        """Language -> (its processor with the audio codec, its model)."""
        if language not in self._loaded:
            checkpoints = self.engine.checkpoints
            if language not in checkpoints:
                raise ValueError(
                    f"no checkpoint for language {language!r} (voices are '<language>:<speaker>'); there is "
                    f"one for {', '.join(checkpoints)}"
                )
            self._loaded[language] = self._load(checkpoints[language])
        return self._loaded[language]

    def _load(self, checkpoint: str) -> tuple[Any, Any]:
        try:
            from transformers import PocketTTSForConditionalGeneration, PocketTTSProcessor
        except ImportError as error:
            raise ImportError(
                "Pocket TTS needs a release of transformers with PocketTTSForConditionalGeneration, such as "
                "5.23: pip install -U transformers"
            ) from error
        import torch

        revision = {"revision": self.engine.revision} if self.engine.revision else {}
        processor = PocketTTSProcessor.from_pretrained(checkpoint, **revision)
        if processor.audio_tokenizer is None:
            raise RuntimeError(f"{checkpoint} has no audio tokenizer, which its speech is decoded with")
        if processor.feature_extractor.sampling_rate != self.engine.sampling_rate_hz:
            raise RuntimeError(
                f"{checkpoint} speaks at {processor.feature_extractor.sampling_rate} Hz, expected "
                f"{self.engine.sampling_rate_hz}"
            )
        model = PocketTTSForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, self.engine.dtype), **revision
        )
        processor.audio_tokenizer.to(self.engine.device).eval()
        return processor, model.to(self.engine.device).eval()

    def voice(self, language: str, prompt: str) -> Any:
        """A recording, heard by the codec of a language -> float32 [frames, latent_dim]; kept."""
        key = f"{language}:{prompt}"
        if key not in self._voices:
            processor, model = self.load(language)
            path = self._find(prompt, self.engine.checkpoints[language])
            if path.suffix == ".safetensors":
                self._voices[key] = read_latents(path, model.config.latent_dim)
            else:
                self._voices[key] = self._hear(path, processor)
        return self._voices[key]

    def _hear(self, path: Path, processor: Any) -> Any:
        waveform, _ = read_audio(path, self.engine.sampling_rate_hz, min_seconds=0.5)
        heard = processor(
            text=self._prompt(processor, "x."),
            audio=[waveform],
            return_tensors="pt",
            audio_kwargs={"sampling_rate": self.engine.sampling_rate_hz},
        )
        return heard["audio_prompt_latents"][0]

    def _find(self, prompt: str, checkpoint: str) -> Path:
        """A preset, hf://owner/repository/path[@revision], a file here or of the checkpoint -> its path."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

        place = PRESETS.get(prompt, prompt)
        if Path(place).is_file():
            return Path(place)
        if not place.startswith("hf://"):
            if Path(checkpoint, place).is_file():
                return Path(checkpoint, place)
            place = f"hf://{checkpoint}/{place}"
        owner, repository, path = [*place.removeprefix("hf://").split("/", 2), "", ""][:3]
        path, _, revision = path.partition("@")
        try:
            return Path(hf_hub_download(f"{owner}/{repository}", path, revision=revision or None))
        except LocalEntryNotFoundError as error:
            reason, kind = error, RuntimeError  # no network; the name may be right
        except (EntryNotFoundError, HFValidationError, ValueError) as error:
            reason, kind = error, ValueError
        raise kind(
            f"no recording {prompt!r}: neither a preset ({', '.join(PRESETS)}), nor a file here, nor one of "
            f"{checkpoint} ({reason})"
        ) from reason

    def _prompt(self, processor: Any, text: str) -> str:
        """What the model reads: the voice, then the text as the checkpoint's chat template prepares it.

        The layout is the one that PocketTTSProcessor documents. Written out here, since only the checkpoint's
        template knows in which role it expects a voice.
        """
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": text}]}]
        )
        for token in processor.placeholder_tokens:
            rendered = rendered.replace(token, "")
        start = processor.audio_prompt_bos_token or ""
        return f"{start}{processor.audio_token}{rendered}{processor.audio_bos_token}"

    def _sampling(self) -> dict:
        temperature = self.engine.temperature
        if temperature is None:  # what the checkpoint says
            return {}
        return {"do_sample": temperature > 0, **({"temperature": temperature} if temperature else {})}


def read_latents(path: Path, latent_dim: int) -> Any:
    """.safetensors file -> its only tensor, float32 [frames, latent_dim]: a voice that was encoded before."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    (latents, *others) = tensors.values()
    if latents.ndim == 3 and latents.shape[0] == 1:
        latents = latents[0]
    if others or latents.ndim != 2 or latents.shape[1] != latent_dim:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"{path} is no voice of latents: expected one tensor [frames, {latent_dim}], got {shapes}; give "
            "the recording itself"
        )
    return latents.float()


class PocketTTSWorker(ChildProcessWorker):
    """A process that runs this file with the engine's settings."""

    def __init__(self, engine: PocketTTSEngine):
        # The package may be found by the working folder alone, which is no help to `-m`.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": str(engine.num_threads),
        }
        command = [sys.executable, "-m", "hf_clsi.speech.pocket_tts", json.dumps(engine.to_settings())]
        super().__init__(command, {}, environment)


@dataclass(frozen=True)
class PocketTTSEngine(SynthesisEngine):
    """Pocket TTS through transformers' PocketTTSForConditionalGeneration, one process a worker.

    A voice is "<language>:<speaker>". A speaker is the name of one of `PRESETS`, a file of a recording (ten
    to twenty seconds, clean, of somebody who agreed), "hf://owner/repository/path", or a .safetensors file
    of latents, here or in the checkpoint. Texts are spoken one by one, each after its seed: in a batch they
    would share one stream of random numbers. So equal requests give equal samples on one machine. A
    checkpoint without the codec's encoder can use latents only.

    checkpoint: Hub id or folder in transformers' format; or {language: Hub id or folder}, since a checkpoint
    speaks one language. languages: what a single checkpoint speaks; English unless told. revision: commit on
    the Hub. voices: speakers to draw from. licences: voice or speaker -> licence, for voices of your own.
    device, dtype: of the model, e.g. "cuda" and "bfloat16". temperature: None takes the checkpoint's, 0
    samples nothing. num_threads: of a worker on a CPU; another number may round differently.
    """

    checkpoint: str | Mapping[str, str] = field(default="eustlb/pocket-tts", hash=False)
    languages: tuple[str, ...] = ("en",)
    revision: str | None = None
    voices: tuple[str, ...] = FREE_PRESETS
    licences: Mapping[str, str] = field(default_factory=dict, hash=False)
    device: str = "cpu"
    dtype: str = "float32"
    temperature: float | None = None
    num_threads: int = 1

    name: ClassVar[str] = "pocket-tts"
    # Of the weights of kyutai/pocket-tts, by its model card. The recording's licence comes on top, and it is
    # the one that a row records.
    licence: ClassVar[str] = "CC-BY-4.0"
    sampling_rate_hz: ClassVar[int] = 24000

    def __post_init__(self):
        if isinstance(self.checkpoint, Mapping):
            object.__setattr__(self, "checkpoint", dict(self.checkpoint))
            object.__setattr__(self, "languages", tuple(self.checkpoint))
        for name in ("languages", "voices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "licences", dict(self.licences))
        if not self.checkpoint or not self.languages or not self.voices:
            raise ValueError("checkpoint, languages and voices must not be empty")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be 'float32', 'bfloat16' or 'float16', got {self.dtype!r}")
        if (self.temperature is not None and self.temperature < 0) or self.num_threads < 1:
            raise ValueError(
                f"temperature must not be negative and num_threads at least 1, got {self.temperature} and "
                f"{self.num_threads}"
            )

    @property
    def checkpoints(self) -> dict[str, str]:
        """Language -> the checkpoint that speaks it."""
        if isinstance(self.checkpoint, dict):
            return self.checkpoint
        return dict.fromkeys(self.languages, self.checkpoint)

    @property
    def version(self) -> str:
        if isinstance(self.checkpoint, dict):
            named = " ".join(f"{language}={place}" for language, place in self.checkpoint.items())
        else:
            named = self.checkpoint
        revision = f"@{self.revision}" if self.revision else ""
        return f"{named}{revision}, transformers {version('transformers')}"

    def settings(self) -> dict:
        return {"dtype": self.dtype, "temperature": self.temperature}

    def speakers(self) -> tuple[str, ...]:
        return self.voices

    def voice_for(self, language: str, speaker: str = "") -> str:
        if language not in self.checkpoints:
            raise ValueError(
                f"no Pocket TTS checkpoint for language {language!r}, only for "
                f"{', '.join(self.checkpoints)}; name one with checkpoint={{..., {language!r}: 'a Hub id or "
                "folder'}"
            )
        return f"{language}:{speaker or self.voices[0]}"

    def voice_licence(self, voice: str) -> str:
        speaker = voice.partition(":")[2]
        for key in (voice, speaker):
            if key in self.licences:
                return self.licences[key]
        # Anything but a preset is a file of the caller's, in whatever folder: nothing follows from its name.
        place = PRESETS.get(speaker, speaker)
        return voice_licence(place if place.startswith("hf://") else f"/{place}")

    def open_worker(self) -> PocketTTSWorker:
        return PocketTTSWorker(self)


def main(settings: str) -> int:
    """Speak what standard input asks for, until it ends; the protocol is written down in `espeak.py`."""
    # A private copy of standard output: whatever the libraries print cannot break into the protocol.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)  # the caller is gone; nobody would hear the rest

    threading.Thread(target=listen, daemon=True).start()
    try:
        import torch

        speaker = PocketSpeaker(json.loads(settings))
        torch.set_num_threads(speaker.engine.num_threads)
        speaker.load(speaker.engine.languages[0])  # so that a checkpoint that cannot be loaded is known now
    except Exception as error:
        output.write(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        output.flush()
        return 1
    hello = {"version": speaker.engine.version, "sampling_rate_hz": speaker.engine.sampling_rate_hz}
    output.write(json.dumps(hello).encode() + b"\n")
    output.flush()
    while True:
        for request in json.loads(lines.get()):
            try:
                waveform = speaker.speak(request["text"], request["voice"], request["seed"])
                samples = np.rint(waveform * 32768.0).clip(-32768, 32767).astype("<i2").tobytes()
                output.write(json.dumps({"num_samples": len(samples) // 2}).encode() + b"\n" + samples)
            except Exception as error:
                wrong = isinstance(error, ValueError)
                kind = "value" if wrong else "runtime"
                said = str(error) if wrong else f"{type(error).__name__}: {error}"
                output.write(json.dumps({"error": said, "kind": kind}).encode() + b"\n")
        output.flush()


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(code)
