"""Speech -> speaker embeddings, float32 [n, D] of unit length: near where one voice speaks, far where two do.

    verifier = load_verifier("microsoft/wavlm-base-plus-sv")  # or "spectral", which needs no download
    same = embed_speech([english, french], 24_000, verifier)  # [2, D]
    same[0] @ same[1]  # the cosine that the paper compares with 0.90

A clip has one embedding, whatever it is embedded together with. Padding would break that, with an attention
mask or without: x-vector models of the base sizes normalize their first convolution over time (group norm),
padding included, and all of them pool over frames that saw padding, since the length that transformers
computes for the TDNN layers leaves out their dilation. So only clips of equal length share a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from hf_clsi.speech.audio import resample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, SequenceFeatureExtractor

DEFAULT_VERIFIER = "microsoft/wavlm-base-plus-sv"
SPECTRAL = "spectral"


class SpeechVerifier(ABC):
    """What tells speakers apart.

    name: the checkpoint, for the record. sampling_rate_hz: of the waveforms it takes. min_samples: the
    shortest one it can embed.
    """

    name: str
    sampling_rate_hz: int
    min_samples: int

    @abstractmethod
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Waveforms at `sampling_rate_hz`, float32 [n], of one length -> float32 [B, D], of any norm."""

    def settings(self) -> dict[str, str]:
        """Which verifier this is, JSON values, for the record."""
        return {"verifier": self.name}


class XVectorVerifier(SpeechVerifier):
    """A transformers model with an x-vector head (`WavLMForXVector` and its relatives) and its extractor."""

    def __init__(self, model: PreTrainedModel, extractor: SequenceFeatureExtractor, name: str):
        self.model = model.eval()
        self.extractor = extractor
        self.name = name
        self.sampling_rate_hz = extractor.sampling_rate

    @cached_property
    def min_samples(self) -> int:
        """Samples of two frames behind the TDNN layers: of one alone there is no standard deviation."""
        config = self.model.config
        layers = zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
        samples = 2 + sum(dilation * (kernel - 1) for kernel, dilation in layers)
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        # Nothing is padded: every length is the same. No attention mask either, which would be all ones and
        # which models with group norm were trained without.
        inputs = self.extractor(
            list(waveforms),
            sampling_rate=self.sampling_rate_hz,
            padding=True,
            return_attention_mask=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            return self.model(inputs["input_values"].to(self.model.device)).embeddings.float().cpu().numpy()

    def settings(self) -> dict[str, str]:
        revision = getattr(self.model.config, "_commit_hash", None)
        return {
            "verifier": self.name,
            "verifier_class": type(self.model).__name__,
            **({"verifier_revision": revision} if revision else {}),
        }


class SpectralVerifier(SpeechVerifier):
    """Mean and standard deviation of a clip's cepstra: a baseline for use offline, **not the paper's**.

    19 liftered mel cepstra (without the zeroth, the level) of 25 ms every 10 ms, over the frames that are at
    most 40 dB below the loudest. It knows the long-term spectrum of a clip: the voice, but the microphone and
    the phonemes of the language just as well. Nothing is trained, so the paper's 0.90 has no meaning here.
    """

    name = SPECTRAL
    sampling_rate_hz = 16_000
    min_samples = 4_000  # a quarter of a second: a mean over less tells the phoneme, not the speaker
    NUM_CEPSTRA = 20
    LIFTER = 22
    RANGE_DB = 40.0

    @cached_property
    def _cepstra(self) -> torch.nn.Module:
        from torchaudio.transforms import MFCC

        spectrum = {"n_fft": 400, "hop_length": 160, "n_mels": 40, "center": False}
        return MFCC(self.sampling_rate_hz, self.NUM_CEPSTRA, log_mels=True, melkwargs=spectrum)

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        batch = torch.from_numpy(np.stack(waveforms))
        # Full scale does not matter: each clip is brought to the same level first.
        batch = batch / batch.square().mean(dim=1, keepdim=True).sqrt()
        level = 10 * batch.unfold(1, 400, 160).square().mean(dim=-1).clamp_min(1e-12).log10()  # [B, F]
        speech = level > level.max(dim=1, keepdim=True).values - self.RANGE_DB
        order = torch.arange(self.NUM_CEPSTRA)
        # As HTK does: high cepstra are small, and would not count beside the first ones.
        lifter = 1 + self.LIFTER / 2 * torch.sin(torch.pi * order / self.LIFTER)
        cepstra = self._cepstra(batch)[:, 1:] * lifter[1:, None]  # [B, 19, F]
        return torch.stack(
            [
                torch.cat([clip[:, frames].mean(dim=1), clip[:, frames].std(dim=1, correction=0)])
                for clip, frames in zip(cepstra, speech, strict=True)
            ]
        ).numpy()


def load_verifier(name: str = DEFAULT_VERIFIER, device: str | None = None) -> SpeechVerifier:
    """Load a verifier, in eval mode and float32.

    Args:
        name: a Hub id or folder of a model with an x-vector head (WavLM, wav2vec 2.0, UniSpeech-SAT, ...), or
            "spectral" for `SpectralVerifier`, which needs no weights.
        device: where an x-vector model runs, for example "cuda"; None: the CPU.

    Raises:
        ValueError: the checkpoint has no x-vector head, not all weights of one, or takes no waveforms.
    """
    if name == SPECTRAL:
        return SpectralVerifier()
    import torch
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioXVector
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES

    remedy = f"use {DEFAULT_VERIFIER} or another model that was fine-tuned for speaker verification"
    config = AutoConfig.from_pretrained(name)
    if config.model_type not in MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES:
        raise ValueError(
            f"{name} is a model of type {config.model_type!r}, which has no x-vector head; types with one: "
            f"{', '.join(sorted(MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES))}; {remedy}"
        )
    saved = config.architectures or []
    if saved and not any(architecture.endswith("ForXVector") for architecture in saved):
        raise ValueError(f"{name} was saved as {', '.join(saved)}, without an x-vector head; {remedy}")
    if not hasattr(config, "conv_kernel"):
        raise ValueError(
            f"{name} ({config.model_type}) takes spectra; only models of waveforms are supported; {remedy}"
        )
    model, loading = AutoModelForAudioXVector.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True
    )
    # What embeddings do not go through: the classifier of the training speakers, its loss, the training mask.
    unused = ("classifier.", "objective.")
    missing = [key for key in loading["missing_keys"] if not key.startswith(unused)]
    missing = sorted(key for key in missing if not key.endswith("masked_spec_embed"))
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of a {type(model).__name__} ({', '.join(missing[:3])}, "
            f"...), which would be random numbers; {remedy}"
        )
    # The folders above a checkpoint are this machine's business, not the record's.
    label = "/".join(Path(name).parts[-2:]) if Path(name).is_dir() else name
    return XVectorVerifier(model.to(device or "cpu"), AutoFeatureExtractor.from_pretrained(name), label)


def embed_speech(
    waveforms: Sequence[np.ndarray],
    sampling_rate_hz: int,
    verifier: SpeechVerifier,
    batch_seconds: float = 60.0,
    progress: bool = False,
) -> np.ndarray:
    """Waveforms, float [n] each -> their embeddings, float32 [B, D], unit length, order kept.

    A clip gets the same embedding in any company (to float32 accuracy): nothing is padded, clips of equal
    length share a batch.

    Args:
        sampling_rate_hz: of all waveforms; resampled to the verifier's rate where it differs.
        batch_seconds: a batch holds at most this much audio, or else a single clip.
        progress: show a bar, in clips.

    Raises:
        ValueError: no waveforms, one (named by its index) that is no float [n], not finite, silent or too
            short for the verifier, or batch_seconds not positive.
    """
    if not len(waveforms):
        raise ValueError("no waveforms to embed; give at least one")
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds must be positive, got {batch_seconds}")
    rate = verifier.sampling_rate_hz
    by_length: dict[int, list[int]] = defaultdict(list)
    clips = []
    for index, waveform in enumerate(waveforms):
        clip = resample(_checked(waveform, index), sampling_rate_hz, rate)
        if len(clip) < verifier.min_samples:
            raise ValueError(
                f"waveform {index} lasts {len(clip) / rate:.3f} s; {verifier.name} needs at least "
                f"{verifier.min_samples / rate:.3f} s; leave it out"
            )
        by_length[len(clip)].append(index)
        clips.append(clip)
    rows: list[np.ndarray | None] = [None] * len(clips)
    with tqdm(total=len(clips), desc="embed", unit=" clips", disable=not progress) as bar:
        # Longest first, so that what does not fit the memory fails at once.
        for length in sorted(by_length, reverse=True):
            size = max(1, int(batch_seconds * rate) // length)
            indices = by_length[length]
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                for index, row in zip(batch, verifier.embed([clips[i] for i in batch]), strict=True):
                    rows[index] = row
                bar.update(len(batch))
    embeddings = np.stack(rows).astype(np.float64)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.all():
        raise ValueError(
            f"{verifier.name} gives waveform {int(np.flatnonzero(~usable)[0])} an embedding that is zero or "
            "not finite; leave the clip out, or check the verifier's weights"
        )
    return (embeddings / norms).astype(np.float32)


def _checked(waveform: np.ndarray, index: int) -> np.ndarray:
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or waveform.dtype.kind != "f":
        raise ValueError(
            f"waveform {index} is {waveform.dtype} of shape {list(waveform.shape)}; expected floats [n]"
        )
    if not np.isfinite(waveform).all():
        raise ValueError(f"waveform {index} holds NaN or infinite samples; make it anew")
    if not waveform.any():
        raise ValueError(f"waveform {index} is silent ({len(waveform)} samples); leave it out")
    return waveform
