"""Waveforms and audio files become mono float32 at the audio tokenizer's rate: whole frames, and a mask."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType, logging

logger = logging.get_logger(__name__)

# Integer PCM -> (value of silence, value of full scale).
PCM_SCALES = {"uint8": (128, 128.0), "int16": (0, 32_768.0), "int32": (0, 2_147_483_648.0)}
FILE_BYTES = (bytes, bytearray, memoryview)
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive


class ClsiFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Prepares waveforms for an audio tokenizer (Mimi, or the embedded `ClsiUnitsModel`).

    A waveform may come as an array, as a file (WAV, FLAC, Ogg Vorbis, Ogg Opus, MP3; needs soundfile), or as
    datasets and transformers' pipelines hand it over. Each is mixed down to mono, resampled to
    `sampling_rate`, and zero-padded at its end to a multiple of `hop_length = sampling_rate / frame_rate`
    samples. Since every clip is a whole number of frames before the batch is padded to its longest one, a
    clip gets the same units in a batch as alone.

    Args:
        sampling_rate (`int`, *optional*, defaults to 24000): Hz that the audio tokenizer expects.
        frame_rate (`float`, *optional*, defaults to 12.5): units per second, Hz.
        padding_value (`float`, *optional*, defaults to 0.0): value of the samples that fill up.

    Raises:
        ValueError: a rate is not positive, or `sampling_rate / frame_rate` is not a whole number of samples.

    Example:

    >>> import numpy as np
    >>> extractor = ClsiFeatureExtractor(sampling_rate=16000, frame_rate=12.5)  # 1,280 samples a frame
    >>> batch = extractor([np.zeros(2000), np.zeros(1280)], sampling_rate=16000)
    >>> batch["input_values"].shape, batch["padding_mask"].sum(axis=1).tolist()
    ((2, 1, 2560), [2000, 1280])
    """

    model_input_names: ClassVar[list[str]] = ["input_values", "padding_mask"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24_000,
        padding_value: float = 0.0,
        frame_rate: float = 12.5,
        **kwargs,
    ):
        sampling_rate = _whole_hz(sampling_rate, "sampling_rate")
        if not frame_rate > 0:
            raise ValueError(f"frame_rate must be a positive number of Hz, got {frame_rate}.")
        super().__init__(
            feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs
        )
        if feature_size != 1:
            raise ValueError(
                f"feature_size must be 1 (everything is mixed down to mono), got {feature_size}."
            )
        samples = sampling_rate / frame_rate
        if abs(samples - round(samples)) > 1e-6 or round(samples) < 1:
            raise ValueError(
                f"sampling_rate={sampling_rate} Hz at frame_rate={frame_rate} Hz makes {samples:g} samples a "
                "frame; it must be a whole number. Take both from the audio tokenizer's config."
            )
        self.frame_rate = frame_rate

    @property
    def hop_length(self) -> int:
        """Samples in one frame."""
        return round(self.sampling_rate / self.frame_rate)

    def __call__(
        self,
        audio: "np.ndarray | torch.Tensor | str | os.PathLike | bytes | Mapping | Sequence",
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Prepare one waveform or a list of them.

        Args:
            audio: one waveform, or a list (any sequence) of waveforms, whose forms may differ. A waveform is

                - an array or tensor [n] (mono) or [channels, n] (mixed down by the mean), or a list of
                  floats. Floats lie in -1..1; integer PCM (uint8, int16, int32) is scaled to that;
                - an audio file: its path on this machine, or its bytes;
                - what datasets' `Audio` column yields: {"bytes", "path"} undecoded (the bytes count, the path
                  where they are None), {"array", "sampling_rate"}, or a torchcodec `AudioDecoder`;
                - {"raw", "sampling_rate"}, as transformers' pipelines write it.
            sampling_rate: Hz of `audio`, needed where the audio does not carry its own rate, as files,
                decoders and mappings do. Where it differs from the extractor's, `audio` is resampled (needs
                torchaudio). A missing rate is taken to be right, with a warning.
            return_tensors: "np" or None for numpy arrays, "pt" for torch tensors.

        Returns:
            `input_values` [B, 1, T] float32, T a multiple of `hop_length`; `padding_mask` [B, T] int64, 1 on
            the samples of the (resampled) clip and 0 on all that was added.

        Raises:
            ValueError: no waveform, an empty one, one that is not finite, has more than two axes or
                unsupported numbers; a file that is missing, empty, or not audio; a URL; a rate that is not a
                positive whole number, or contradicts the one that the audio carries. The message gives the
                waveform's place in the list, and the file's name.
            ImportError: a file, but no soundfile; another rate, but no torchaudio.
        """
        if sampling_rate is not None:
            sampling_rate = _whole_hz(sampling_rate, "sampling_rate")
        waveforms = [self._prepare(clip, sampling_rate, place) for place, clip in enumerate(_as_list(audio))]
        hop = self.hop_length
        longest = max(-(-len(waveform) // hop) for waveform in waveforms) * hop
        input_values = np.full((len(waveforms), 1, longest), self.padding_value, dtype=np.float32)
        padding_mask = np.zeros((len(waveforms), longest), dtype=np.int64)
        for row, waveform in enumerate(waveforms):
            input_values[row, 0, : len(waveform)] = waveform
            padding_mask[row, : len(waveform)] = 1
        return BatchFeature(
            {"input_values": input_values, "padding_mask": padding_mask}, tensor_type=return_tensors
        )

    def _prepare(self, clip, sampling_rate: int | None, place: int) -> np.ndarray:
        """One waveform in any accepted form -> mono float32 [n] at the extractor's rate."""
        samples, own_rates, name = _open(clip, f"Waveform {place}")
        rates = [_whole_hz(rate, f"{name}: its sampling_rate") for rate in own_rates]
        if sampling_rate is not None:
            rates.append(sampling_rate)
        if len(set(rates)) > 1:
            raise ValueError(
                f"{name} says {rates[0]} Hz, but sampling_rate={rates[-1]} was passed. "
                "Leave the argument out for audio that carries its own rate."
            )
        samples = _to_mono(samples, name)
        if not rates:
            logger.warning(
                f"No sampling_rate was passed: waveform {place} is taken to be at {self.sampling_rate} Hz. A "
                "wrong rate gives wrong units without an error, so pass it."
            )
        elif rates[0] != self.sampling_rate:
            samples = _resample(samples, rates[0], self.sampling_rate)
        return samples


def _as_list(audio) -> list:
    """One waveform or several -> a list of waveforms."""
    if not isinstance(audio, Sequence) or isinstance(audio, (str, *FILE_BYTES)):
        return [audio]
    if len(audio) == 0:
        raise ValueError("No waveform was given: the list is empty.")
    return [audio] if isinstance(audio[0], (int, float, np.number)) else list(audio)


def _whole_hz(rate, what: str) -> int:
    """A sampling rate, of whatever type of number, as an integer."""
    if isinstance(rate, (np.ndarray, torch.Tensor)) and rate.ndim == 0:  # datasets' torch format
        rate = rate.item()
    # `nan % 1` and `inf % 1` are nan, which is not 0.
    is_number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, (bool, np.complexfloating))
    if not is_number or rate % 1 != 0 or rate <= 0:
        raise ValueError(f"{what} must be a positive whole number of Hz, got {rate!r}.")
    return int(rate)


def _open(clip, name: str) -> tuple[object, list, str]:
    """A waveform in any form -> (its samples, the rates in Hz that come with it, its name in errors)."""
    rates = []
    if isinstance(clip, Mapping):
        key = next((key for key in ("array", "raw", "bytes", "path") if clip.get(key) is not None), None)
        if key is None:
            raise ValueError(
                f'{name} is a mapping with the keys {sorted(map(str, clip))}; expected "array" or "raw" with '
                '"sampling_rate", or an audio file\'s "bytes" or "path", and not None.'
            )
        if clip.get("sampling_rate") is not None:
            rates.append(clip["sampling_rate"])
        if key == "bytes" and clip.get("path"):
            name = f"{name} ({clip['path']})"
        clip = clip[key]
    if isinstance(clip, (str, os.PathLike)):
        clip, name = _read(os.fsdecode(clip), name)
    if isinstance(clip, FILE_BYTES):
        clip, rate = _decode(bytes(clip), name)
        rates.insert(0, rate)
    elif hasattr(clip, "get_all_samples"):  # torchcodec's AudioDecoder; the package itself is not needed
        try:
            decoded = clip.get_all_samples()
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{name} could not be decoded: {error}") from error
        clip = decoded.data
        rates.insert(0, decoded.sample_rate)
    return clip, rates, name


def _read(path: str, name: str) -> tuple[bytes, str]:
    """A path -> (the file's bytes, the waveform's name with the path in it)."""
    name = f"{name} ({path if len(path) <= 200 else path[:200] + '...'})"
    if URL.match(path):
        raise ValueError(f"{name} is a URL. Download the file first, and pass its path or its bytes.")
    try:
        return Path(path).read_bytes(), name
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} cannot be read: {reason}. Check the path.") from error


# hf_clsi.speech.audio is the reader of the package proper, which also refuses files that are cut short. This
# small one is for those who have no more than a checkpoint: it reads what libsndfile is content with.
def _decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """The bytes of an audio file -> (mono [n], the file's rate in Hz)."""
    if not data:
        raise ValueError(f"{name} has no bytes: an empty file. Leave it out, or copy it again.")
    # Inside `try`, transformers does not demand the package before it loads this file as remote code.
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: soundfile is there, but not libsndfile
        raise ImportError(
            f"{name} is an audio file; reading it needs soundfile: `pip install soundfile`. Or decode it "
            "yourself, and pass the samples with their sampling_rate."
        ) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = file.read(dtype="float32", always_2d=True)
            return samples.mean(axis=1, dtype=np.float64), file.samplerate
    except (RuntimeError, ValueError, MemoryError) as error:  # the last two: the header promises too much
        raise ValueError(
            f"{name} is damaged, or not an audio file that libsndfile can decode ({error}). WAV, FLAC, Ogg "
            "Vorbis, Ogg Opus and MP3 are read; convert it to one of them."
        ) from error


def _to_mono(clip, name: str) -> np.ndarray:
    """Samples in any array-like form, [n] or [channels, n] -> float32 [n], checked."""
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        clip = (clip.float() if clip.is_floating_point() else clip).numpy()
    try:
        samples = np.asarray(clip)
    except ValueError as error:
        raise ValueError(f"{name} is a {type(clip).__name__} that makes no array: {error}") from error
    if samples.dtype.kind not in "biufc":
        raise ValueError(
            f"{name} is a {type(clip).__name__} of {samples.dtype} values; expected an array of numbers, an "
            "audio file, or audio as datasets or transformers' pipelines pass it."
        )
    if samples.dtype.name in PCM_SCALES:
        silence, full_scale = PCM_SCALES[samples.dtype.name]
        samples = (samples.astype(np.float64) - silence) / full_scale
    elif samples.dtype.kind != "f":
        raise ValueError(
            f"{name} holds {samples.dtype} numbers; expected floats in -1..1 or PCM of type "
            f"{', '.join(PCM_SCALES)}."
        )
    if samples.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {samples.shape}; expected [samples] or [channels, samples].")
    if samples.size == 0:
        raise ValueError(f"{name} is empty. Leave it out, or check how it was read.")
    if samples.ndim == 2:
        if samples.shape[0] > samples.shape[1]:
            raise ValueError(
                f"{name} has shape {samples.shape}; expected [channels, samples]. If it is [samples, "
                "channels], as soundfile reads it, pass its transpose."
            )
        samples = samples.mean(axis=0)
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds NaN or infinite samples. Check how it was read.")
    return samples


def _resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample float32 [n] -> [ceil(n * to_hz / from_hz)]."""
    # Inside `try`, transformers does not demand the package before it loads this file as remote code.
    try:
        from torchaudio.functional import resample
    except ImportError as error:
        raise ImportError(
            f"The audio is at {from_hz} Hz and must be resampled to {to_hz} Hz, which needs torchaudio: "
            "`pip install torchaudio`. Or resample it yourself."
        ) from error
    return resample(torch.from_numpy(samples), from_hz, to_hz).numpy()


__all__ = ["ClsiFeatureExtractor"]
