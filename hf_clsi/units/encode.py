"""Many waveforms become units, in buckets of similar length, through any audio tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling_clsi_units import ClsiUnitsModel

LARGEST_CODEBOOK = 65_536  # units are stored as uint16


def load_audio_tokenizer(name_or_path: str) -> PreTrainedModel:
    """Load a ClsiUnitsModel or a MimiModel from a folder or the Hub, in eval mode and float32.

    Raises:
        ValueError: the checkpoint holds another kind of model.
    """
    settings, _ = PreTrainedConfig.get_config_dict(name_or_path)
    kind = settings.get("model_type")
    if kind == "clsi_units":
        return ClsiUnitsModel.from_pretrained(name_or_path).eval()
    if kind == "mimi":
        from transformers import MimiModel  # slow to import, and only its users need it

        return MimiModel.from_pretrained(name_or_path, dtype=torch.float32).eval()
    raise ValueError(
        f"{name_or_path} holds a model of type {kind!r}; an audio tokenizer must be of type 'clsi_units' "
        "(hf_clsi's ClsiUnitsModel) or 'mimi' (MimiModel, for example kyutai/mimi)."
    )


def sampling_rate_of(tokenizer: PreTrainedModel) -> int:
    """Hz of the waveforms that the tokenizer takes."""
    return _config_of(tokenizer).sampling_rate


def frame_rate_of(tokenizer: PreTrainedModel) -> float:
    """Units per second."""
    return float(_config_of(tokenizer).frame_rate)


def samples_per_frame_of(tokenizer: PreTrainedModel) -> int:
    """Samples that one unit stands for."""
    config = _config_of(tokenizer)
    return config.hop_length if config.model_type == "clsi_units" else config.frame_size


def num_units_of(tokenizer: PreTrainedModel) -> int:
    """Size of the (first) codebook."""
    config = _config_of(tokenizer)
    return config.num_units if config.model_type == "clsi_units" else config.codebook_size


@torch.no_grad()
def encode_waveforms(
    waveforms: Sequence[np.ndarray],
    tokenizer: PreTrainedModel,
    batch_seconds: float = 60.0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[np.ndarray]:
    """Encode each waveform into its units; a waveform gets the same units in any company.

    Every waveform is padded with zeros to whole frames: Mimi's last unit would otherwise depend on what
    follows it.

    Args:
        waveforms: mono float waveforms [n] at `sampling_rate_of(tokenizer)`.
        tokenizer: a ClsiUnitsModel or a MimiModel, whose first codebook is used.
        batch_seconds: a batch holds at most this much audio, padding included, or else a single waveform.
        device: where to encode; the tokenizer comes back to where it was. None: where it is.
        progress: show a bar in seconds of audio.

    Returns:
        uint16 [ceil(n / samples per frame)] for each waveform, in the order given.

    Raises:
        ValueError: a waveform (named by its index) that is empty, not one-dimensional, not floating point, or
            not finite; another kind of tokenizer; a codebook beyond uint16; batch_seconds not positive.
    """
    frame_length = samples_per_frame_of(tokenizer)
    if num_units_of(tokenizer) > LARGEST_CODEBOOK:
        raise ValueError(
            f"The codebook has {num_units_of(tokenizer)} units, but units are stored as uint16, at most "
            f"{LARGEST_CODEBOOK}."
        )
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds must be positive, got {batch_seconds}.")
    waveforms = [_checked(waveform, index) for index, waveform in enumerate(waveforms)]
    frames = np.array([-(-len(waveform) // frame_length) for waveform in waveforms], dtype=np.int64)
    frame_rate = frame_rate_of(tokenizer)

    units: list[np.ndarray] = [np.zeros(0, dtype=np.uint16)] * len(waveforms)
    before, was_training = tokenizer.device, tokenizer.training
    tokenizer.eval().to(device or before)
    seconds = 1 / frame_rate
    bar = tqdm(total=int(frames.sum()), desc="encoding", unit="s", unit_scale=seconds, disable=not progress)
    try:
        for bucket in buckets(frames, int(batch_seconds * frame_rate)):
            longest = int(frames[bucket].max())
            batch = torch.zeros(len(bucket), 1, longest * frame_length)
            for row, index in enumerate(bucket):
                batch[row, 0, : len(waveforms[index])] = torch.from_numpy(waveforms[index])
            inside = torch.arange(longest) < torch.from_numpy(frames[bucket])[:, None]
            mask = inside.repeat_interleave(frame_length, dim=1)
            codes = tokenizer.encode(
                batch.to(tokenizer.device),
                padding_mask=mask.to(tokenizer.device),
                num_quantizers=1,
                return_dict=True,
            ).audio_codes[:, 0]
            codes = codes.cpu().numpy().astype(np.uint16)
            for row, index in enumerate(bucket):
                units[index] = codes[row, : frames[index]].copy()
            bar.update(int(frames[bucket].sum()))
    finally:
        tokenizer.train(was_training).to(before)
        bar.close()
    return units


def buckets(frames: np.ndarray, capacity: int) -> Iterator[np.ndarray]:
    """Lengths [n] -> groups of indices, longest first, each at most `capacity` frames once padded to its
    longest.

    Longest first, so that a batch too large for the memory fails at once. A clip above the capacity goes
    alone.

    >>> [group.tolist() for group in buckets(np.array([2, 9, 3, 3]), 6)]
    [[1], [2, 3], [0]]
    """
    order = np.argsort(-frames, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, capacity // max(1, int(frames[order[start]])))
        yield order[start : start + size]
        start += size


def _config_of(tokenizer: PreTrainedModel) -> PreTrainedConfig:
    config = getattr(tokenizer, "config", None)
    # By type name and not by class: a tokenizer loaded with trust_remote_code has a class of its own.
    if getattr(config, "model_type", None) not in ("clsi_units", "mimi"):
        raise ValueError(
            f"The audio tokenizer must be a ClsiUnitsModel or a MimiModel, got {type(tokenizer).__name__}; "
            "see load_audio_tokenizer."
        )
    return config


def _checked(waveform: np.ndarray, index: int) -> np.ndarray:
    """The waveform as float32 [n], or a ValueError that names its index."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise ValueError(f"Waveform {index} has shape {waveform.shape}; expected mono samples [n].")
    if len(waveform) == 0:
        raise ValueError(f"Waveform {index} is empty; leave it out, or look at how it was read.")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"Waveform {index} has dtype {waveform.dtype}; expected floats in -1..1, as read_audio gives."
        )
    if not np.isfinite(waveform).all():
        raise ValueError(f"Waveform {index} holds NaN or infinite samples.")
    return np.ascontiguousarray(waveform, dtype=np.float32)
