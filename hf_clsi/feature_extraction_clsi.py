"""Any waveform becomes mono float32 at the audio tokenizer's rate, padded to whole frames, with a mask."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType, logging

logger = logging.get_logger(__name__)

# Integer PCM -> (value of silence, value of full scale).
PCM_SCALES = {"uint8": (128, 128.0), "int16": (0, 32_768.0), "int32": (0, 2_147_483_648.0)}


class ClsiFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Prepares waveforms for an audio tokenizer (Mimi, or the embedded `ClsiUnitsModel`).

    Each waveform is mixed down to mono, resampled to `sampling_rate`, and zero-padded at its end to a
    multiple of `hop_length = sampling_rate / frame_rate` samples. Since every clip is a whole number of
    frames before the batch is padded to its longest one, a clip gets the same units in a batch as alone.

    Args:
        sampling_rate (`int`, *optional*, defaults to 24000): Hz that the audio tokenizer expects.
        frame_rate (`float`, *optional*, defaults to 12.5): units per second, Hz.
        padding_value (`float`, *optional*, defaults to 0.0): value of the samples that fill up.

    Raises:
        ValueError: `sampling_rate / frame_rate` is not a whole number of samples.

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
        audio: "np.ndarray | torch.Tensor | Mapping | Sequence",
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Prepare one waveform or a list of them.

        Args:
            audio: a waveform, or a list of waveforms. A waveform is an array or tensor [n] (mono) or
                [channels, n] (mixed down by the mean), or a list of floats, or what datasets' Audio column
                yields: a mapping with "array" and "sampling_rate". Floats lie in -1..1; integer PCM (uint8,
                int16, int32) is scaled to that.
            sampling_rate: Hz of `audio`; if it differs from the extractor's, `audio` is resampled (needs
                torchaudio). A missing rate is taken to be right, with a warning.
            return_tensors: "np" or None for numpy arrays, "pt" for torch tensors.

        Returns:
            `input_values` [B, 1, T] float32, T a multiple of `hop_length`; `padding_mask` [B, T] int64, 1 on
            the samples of the (resampled) clip and 0 on all that was added.

        Raises:
            ValueError: no waveform, an empty one, one that is not finite, has more than two axes or
                unsupported numbers; the message gives its place in the list.
        """
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
        if isinstance(clip, Mapping):
            own_rate = clip.get("sampling_rate")
            if own_rate is not None and sampling_rate is not None and own_rate != sampling_rate:
                raise ValueError(
                    f"Waveform {place} says {own_rate} Hz, but sampling_rate={sampling_rate} was passed. "
                    "Leave the argument out for audio that carries its own rate."
                )
            clip, sampling_rate = clip["array"], own_rate or sampling_rate
        if isinstance(clip, torch.Tensor):
            clip = clip.detach().cpu()
            clip = (clip.float() if clip.is_floating_point() else clip).numpy()
        samples = np.asarray(clip)
        if samples.dtype.name in PCM_SCALES:
            silence, full_scale = PCM_SCALES[samples.dtype.name]
            samples = (samples.astype(np.float64) - silence) / full_scale
        elif not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(
                f"Waveform {place} holds {samples.dtype} numbers; expected floats in -1..1 or PCM of type "
                f"{', '.join(PCM_SCALES)}."
            )
        if samples.ndim == 2:
            if samples.shape[0] > samples.shape[1] > 0:
                raise ValueError(
                    f"Waveform {place} has shape {samples.shape}; expected [channels, samples]. If it is "
                    "[samples, channels], as soundfile reads it, pass its transpose."
                )
            samples = samples.mean(axis=0)
        elif samples.ndim != 1:
            raise ValueError(
                f"Waveform {place} has shape {samples.shape}; expected [samples] or [channels, samples]."
            )
        if samples.size == 0:
            raise ValueError(f"Waveform {place} is empty. Leave it out, or check how it was read.")
        samples = samples.astype(np.float32)
        if not np.isfinite(samples).all():
            raise ValueError(f"Waveform {place} holds NaN or infinite samples. Check how it was read.")
        if sampling_rate is None:
            logger.warning(
                f"No sampling_rate was passed: waveform {place} is taken to be at {self.sampling_rate} Hz. A "
                "wrong rate gives wrong units without an error, so pass it."
            )
        elif sampling_rate != self.sampling_rate:
            samples = _resample(samples, sampling_rate, self.sampling_rate)
        return samples


def _as_list(audio) -> list:
    """One waveform or several -> a list of waveforms."""
    if not isinstance(audio, (list, tuple)):
        return [audio]
    if len(audio) == 0:
        raise ValueError("No waveform was given: the list is empty.")
    return [audio] if isinstance(audio[0], (int, float, np.number)) else list(audio)


def _resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample float32 [n] -> [ceil(n * to_hz / from_hz)]."""
    if not from_hz > 0 or from_hz != int(from_hz):
        raise ValueError(f"sampling_rate must be a positive whole number of Hz, got {from_hz}.")
    # Inside `try`, transformers does not demand the package before it loads this file as remote code.
    try:
        from torchaudio.functional import resample
    except ImportError as error:
        raise ImportError(
            f"The audio is at {from_hz} Hz and must be resampled to {to_hz} Hz, which needs torchaudio: "
            "`pip install torchaudio`. Or resample it yourself."
        ) from error
    return resample(torch.from_numpy(samples), int(from_hz), to_hz).numpy()


__all__ = ["ClsiFeatureExtractor"]
