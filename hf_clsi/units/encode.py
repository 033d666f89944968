"""Many waveforms become units, in buckets of similar length, through any audio tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling_clsi_units import ClsiUnitsModel

LARGEST_CODEBOOK = 65_536  # units are stored as uint16

# How Mimi runs on a CPU, see _MimiOnCpu; the sizes are chosen by measuring (benchmarks/encode.py).
KNOWN_MIMI = {
    "audio_channels": 1,
    "last_kernel_size": 3,
    "num_residual_layers": 1,
    "pad_mode": "constant",
    "residual_kernel_size": 3,
    "upsampling_ratios": [8, 6, 5, 4],
    "use_causal_conv": True,
    "use_conv_shortcut": False,
}
PIECE_FRAMES = (3, 24)  # at 24,000 and at 6,000 steps a second: 1.5 and 6 MB, which caches hold
MIMI_BATCH_FRAMES = 150  # 12 s: enough rows for the matrix products, and again what caches hold
ELU_BLOCK = 1 << 16  # numbers, 256 KB
LARGE_WEIGHT = 1 << 18  # numbers, 1 MB


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


@torch.no_grad()  # and not inference_mode: Mimi keeps its codebook after the first call, for training too
def encode_waveforms(
    waveforms: Sequence[np.ndarray],
    tokenizer: PreTrainedModel,
    batch_seconds: float = 60.0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[np.ndarray]:
    """Encode each waveform into its units; a waveform gets the same units in any company.

    Every waveform is padded with zeros to whole frames: Mimi's last unit would otherwise depend on what
    follows it. Sums are rounded otherwise in other company, about 1e-6 of their size, which could matter only
    for a frame that lies that near to the middle between two codebook entries.

    A float32 Mimi on a CPU runs as `_MimiOnCpu` arranges it, faster than its own `encode` clip by clip and
    much faster than that in large batches (benchmarks/encode.py).

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
        encode = _MimiOnCpu(tokenizer) if _MimiOnCpu.takes(tokenizer) else _AsItIs(tokenizer)
        for bucket in buckets(frames, min(int(batch_seconds * frame_rate), encode.most_frames)):
            codes = encode([waveforms[index] for index in bucket], frames[bucket])
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


class _AsItIs:
    """The tokenizer's own `encode`, on a padded batch."""

    most_frames = sys.maxsize  # in a batch

    def __init__(self, tokenizer: PreTrainedModel):
        self.tokenizer = tokenizer
        self.frame_length = samples_per_frame_of(tokenizer)

    def __call__(self, clips: Sequence[np.ndarray], frames: np.ndarray) -> torch.Tensor:
        """Waveforms, frames of each [B] -> units [B, longest]; those past a clip's end mean nothing."""
        longest = int(frames.max())
        batch = torch.zeros(len(clips), 1, longest * self.frame_length)
        for row, clip in zip(batch, clips, strict=True):
            row[0, : len(clip)] = torch.from_numpy(clip)
        inside = torch.arange(longest) < torch.from_numpy(frames)[:, None]
        mask = inside.repeat_interleave(self.frame_length, dim=1)
        return self.tokenizer.encode(
            batch.to(self.tokenizer.device),
            padding_mask=mask.to(self.tokenizer.device),
            num_quantizers=1,
            return_dict=True,
        ).audio_codes[:, 0]


class _MimiOnCpu:
    """`MimiModel.encode` with the first codebook only: the same sums, in an order that suits a CPU.

    Two thirds of the work are convolutions at 24,000 to 1,200 steps a second, 64 to 256 channels wide. Whole
    clips of that are more than caches hold, in memory that the system hands out anew for every layer. The
    convolutions are causal, so here each clip goes through them in pieces, every convolution keeping the few
    steps that the next piece needs, and with the channels last, as oneDNN wants them. What follows has 200
    and 25 steps a second and large weights, and runs on a batch of clips.
    """

    most_frames = MIMI_BATCH_FRAMES

    def __init__(self, tokenizer: PreTrainedModel):
        # In transformers 5.17 `encoder` was the convolutions; later, all that comes before the quantizer.
        convolutions = getattr(tokenizer.encoder, "encoder_seanet", tokenizer.encoder)
        self.after = tokenizer if convolutions is tokenizer.encoder else tokenizer.encoder
        self.quantizer = tokenizer.quantizer
        self.frame_length = samples_per_frame_of(tokenizer)
        layers = [
            [_Convolution(inner) for inner in layer.block if hasattr(inner, "conv")]
            if hasattr(layer, "block")
            else _Convolution(layer, after_elu=index > 0)
            for index, layer in enumerate(convolutions.layers)
            if hasattr(layer, "block") or hasattr(layer, "conv")
        ]
        # A convolution; four times a residual block and a convolution that goes to fewer steps; and one more.
        self.stages, self.later = (layers[:3], layers[3:7]), layers[7:]

    @staticmethod
    def takes(tokenizer: PreTrainedModel) -> bool:
        """Whether this is a float32 Mimi on a CPU, with convolutions as the real one has them."""
        return (
            tokenizer.config.model_type == "mimi"
            and tokenizer.device.type == "cpu"
            and tokenizer.dtype == torch.float32
            and all(getattr(tokenizer.config, name, None) == value for name, value in KNOWN_MIMI.items())
        )

    def __call__(self, clips: Sequence[np.ndarray], frames: np.ndarray) -> torch.Tensor:
        """As `_AsItIs`."""
        done = [self._first_stages(clip, int(length)) for clip, length in zip(clips, frames, strict=True)]
        # The clips stand behind each other as if they were one, a frame of zeros before each, which is as far
        # back as a convolution reaches, and which has to be zeros again before every layer.
        rate = len(done[0]) // int(frames[0])  # steps per frame
        length = 1 + int(frames.max())
        steps = torch.zeros(len(done), length * rate, done[0].shape[1])
        for row, clip in zip(steps, done, strict=True):
            row[rate : rate + len(clip)] = clip
        for layer in self.later:
            steps = steps.unflatten(1, (length, -1))
            steps[:, 0] = 0
            steps = _through([layer], steps.flatten(0, 2), {}).unflatten(0, (len(done), -1))
        steps = steps.unflatten(1, (length, -1))[:, 1:].flatten(1, 2)
        steps = self.after.encoder_transformer(steps, use_cache=False)[0]
        latents = self.after.downsample(steps.transpose(1, 2))
        return self.quantizer.encode(latents, 1)[0]

    def _first_stages(self, clip: np.ndarray, frames: int) -> torch.Tensor:
        """Waveform [n] of so many frames, the last perhaps incomplete -> [steps, channels]."""
        steps = torch.zeros(frames * self.frame_length, 1)
        steps[: len(clip), 0] = torch.from_numpy(clip)
        pasts: dict[_Convolution, torch.Tensor] = {}
        for layers, piece_frames in zip(self.stages, PIECE_FRAMES, strict=True):
            pieces = steps.split(piece_frames * (len(steps) // frames))
            steps = torch.cat([_through(layers, piece, pasts) for piece in pieces])
        return steps


class _Convolution:
    """A MimiConv1d on [steps, channels], after an ELU or not. Takes a clip in pieces of whole strides."""

    def __init__(self, layer: torch.nn.Module, after_elu: bool = True):
        conv, self.after_elu = layer.conv, after_elu
        (kernel,), (self.stride,) = conv.kernel_size, conv.stride
        self.past_steps = kernel - self.stride
        self.bias = conv.bias
        # oneDNN rearranges the weight in every call, which takes long if it is large, and leaves kernels of
        # one step to a slower routine: those are products of matrices here.
        weight = conv.weight.transpose(1, 2)  # [out, kernel, in]
        self.matrices = ()
        if kernel == 1 or (weight.numel() >= LARGE_WEIGHT and kernel == 3 and self.stride == 1):
            self.matrices = tuple(weight[:, step].T.contiguous() for step in range(kernel))
        elif weight.numel() >= LARGE_WEIGHT and kernel == 2 * self.stride:
            first, second = (part.flatten(1).T.contiguous() for part in weight.chunk(2, dim=1))
            self.matrices = (first, first + second, -second)
        else:
            self.weight = conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)

    def __call__(self, steps: torch.Tensor, pasts: dict[_Convolution, torch.Tensor]) -> torch.Tensor:
        """steps [n, in] -> [n / stride, out]; `pasts` has the steps before these, if any were."""
        held = steps.new_empty(self.past_steps + len(steps), steps.shape[1])
        held[: self.past_steps] = pasts.get(self, 0)
        if self.after_elu:
            _elu(steps, held[self.past_steps :])
        else:
            held[self.past_steps :] = steps
        pasts[self] = held[len(steps) :].clone()
        if not self.matrices:
            image = held.T[None, :, None]  # [1, in, 1, n], channels last
            out = torch.conv2d(image, self.weight, self.bias, stride=(1, self.stride))
            return out[0, :, 0].T
        if self.stride == 1:
            out = torch.addmm(self.bias, held[: len(steps)], self.matrices[0])
            for shift, matrix in enumerate(self.matrices[1:], 1):
                out.addmm_(held[shift : shift + len(steps)], matrix)
            return out
        # Rows x of `stride` steps, y_t = A x_t + B x_(t+1). Two outputs take three products instead of four,
        # y_0 = (A + B) x_1 + A (x_0 - x_1) and y_1 = (A + B) x_1 - B (x_1 - x_2): the smallest of the fast
        # filters in Winograd 1980, "Arithmetic Complexity of Computations".
        first, both, second = self.matrices
        rows = held.view(-1, len(first))
        changes = (rows[:-1] - rows[1:]).unflatten(0, (-1, 2))
        shared = torch.addmm(self.bias, rows[1::2], both)
        out = shared.new_empty(len(shared), 2, shared.shape[1])
        torch.addmm(shared, changes[:, 0], first, out=out[:, 0])
        torch.addmm(shared, changes[:, 1], second, out=out[:, 1])
        return out.flatten(0, 1)


def _through(layers: list, steps: torch.Tensor, pasts: dict[_Convolution, torch.Tensor]) -> torch.Tensor:
    """One piece [n, in] -> [n / strides, out]; a list among the layers is a residual block."""
    for layer in layers:
        block = isinstance(layer, list)
        steps = _through(layer, steps, pasts).add_(steps) if block else layer(steps, pasts)
    return steps


def _elu(steps: torch.Tensor, out: torch.Tensor) -> None:
    """out = max(x, exp(min(x, 0)) - 1), both [n, channels]."""
    rows = max(1, ELU_BLOCK // steps.shape[1])
    for x, y in zip(steps.split(rows), out.split(rows), strict=True):
        torch.clamp(x, max=0, out=y)
        # exp(x) = 1 / sigmoid(-x) - 1: torch takes twice as long for exp as for sigmoid.
        y.neg_().sigmoid_().reciprocal_().sub_(2)
        torch.maximum(x, y, out=y)


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
