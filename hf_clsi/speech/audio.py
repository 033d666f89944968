"""Audio files -> mono float32 waveforms and back: the only reader and writer of audio in hf_clsi.

`soundfile` (libsndfile) decodes and encodes, `torchaudio.functional.resample` changes the rate; FFmpeg is
never needed. A waveform is float32 [n], one channel, full scale 1.0; its rate in Hz travels beside it.

    waveform, rate = read_audio("story.mp3", sampling_rate_hz=24000)
    write_audio("story.flac", waveform, rate)

What cannot be trusted is refused with an `AudioError` that names the file and the reason, so that a builder
can count its losses by reason. Decoders are lenient (libsndfile reads a WAV file cut in half without a
word), so WAV and Ogg are checked here against the lengths that their own headers promise.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile

if TYPE_CHECKING:
    import torch

# Frames decoded or encoded per call: libsndfile overflows its stack on long Vorbis writes.
BLOCK_FRAMES = 1 << 16
FORMAT_OF_SUFFIX = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".opus": "OPUS", ".mp3": "MP3"}
# Format -> (libsndfile's container, sample format when none is asked for).
ENCODINGS = {
    "WAV": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "OGG": ("OGG", "VORBIS"),
    "OPUS": ("OGG", "OPUS"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
}
INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
# Exact ratios up to this many kernel weights; see `resample`.
MAX_KERNEL_SIZE = 1 << 24
# Programs that write to a pipe put about 2 or 4 GiB where they do not know the length yet.
UNKNOWN_WAV_SIZE = 0x7FFF0000


class SequentialSoundFile(soundfile.SoundFile):
    """A sound file read from front to end.

    soundfile seeks to its new position after every block of a seekable file; libsndfile cannot do that in a
    FLAC stream that does not know its length (as written to a pipe), though it reads it well.
    """

    def seekable(self) -> bool:
        return False


class AudioError(ValueError):
    """Audio that is refused.

    path: the file, or what stands for it. reason: "missing", "empty" (no bytes), "not_audio", "truncated"
    (cut short or damaged), "not_finite" (NaN or infinite samples) or "too_short".
    """

    def __init__(self, path: str, reason: str, message: str):
        super().__init__(path, reason, message)  # all three, so that it survives pickling between processes
        self.path = path
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def read_audio(
    source: str | os.PathLike | bytes | BinaryIO,
    sampling_rate_hz: int | None = None,
    min_seconds: float = 0.0,
    name: str | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a file -> (waveform float32 [n], its rate in Hz).

    source: a path, the bytes of a file, or a binary file object (read to its end). WAV, FLAC, Ogg Vorbis
    and Opus, MP3 and whatever else libsndfile knows; any rate; integer samples are divided by their full
    scale (16 bit: by 32768), float samples are taken as they are; several channels are averaged.
    sampling_rate_hz: rate of the result; None keeps the file's. min_seconds: refuse what is shorter (one
    frame of the audio tokenizer is a good choice: 0.08 at 12.5 Hz); a file without any sample is always
    refused.
    name: what to call the source in errors where it is not a path.

    Raises AudioError (a ValueError). A cut MP3 file is noticed only if its first frame carries a Xing/Info
    tag, which almost every encoder writes; without one nothing in the file says how long it should be.
    """
    data, path = _read_bytes(source, name)
    if not data:
        raise AudioError(path, "empty", "the file has no bytes; copy or record it again")
    complaint = _missing_end(data)
    if complaint:
        raise AudioError(path, "truncated", f"{complaint}; copy or download it again")
    try:
        file = SequentialSoundFile(io.BytesIO(data))
    except soundfile.SoundFileError as error:
        if data.startswith(b"fLaC"):
            raise AudioError(
                path, "truncated", "the FLAC header is damaged or cut; copy or download it again"
            ) from error
        raise AudioError(
            path,
            "not_audio",
            f"not an audio file that libsndfile can read ({_first_bytes(data)}); WAV, FLAC, Ogg Vorbis, Ogg "
            "Opus and MP3 are read, convert it to one of them",
        ) from error
    with file:
        rate = file.samplerate
        frames = _decode(file, data, path)
    num_frames = len(frames)
    if num_frames == 0 or num_frames < min_seconds * rate - 1e-6:
        raise AudioError(
            path,
            "too_short",
            f"{num_frames} samples at {rate} Hz are {num_frames / rate:.4f} s, at least {min_seconds:.4f} s "
            "are needed; leave it out",
        )
    if not np.isfinite(frames).all():
        bad = int((~np.isfinite(frames)).any(axis=1).sum())
        raise AudioError(
            path, "not_finite", f"{bad} of {num_frames} samples are NaN or infinite; make the file anew"
        )
    if frames.shape[1] == 1:
        waveform = frames[:, 0]
    else:
        waveform = frames.mean(axis=1, dtype=np.float64).astype(np.float32)
    waveform = np.ascontiguousarray(waveform)
    if sampling_rate_hz is None:
        return waveform, rate
    return resample(waveform, rate, sampling_rate_hz), sampling_rate_hz


def write_audio(
    path: str | os.PathLike,
    waveform: np.ndarray,
    sampling_rate_hz: int,
    subtype: str | None = None,
    clip: bool = False,
) -> None:
    """Write a waveform, float [n], in the format of the suffix: .wav, .flac, .ogg (Vorbis), .opus or .mp3.

    The folder must exist. The rest is `encode_audio`'s, errors included; nothing is written when it refuses.
    """
    path = Path(path)
    format = FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if format is None:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(FORMAT_OF_SUFFIX)}")
    path.write_bytes(encode_audio(waveform, sampling_rate_hz, format, subtype, clip))


def encode_audio(
    waveform: np.ndarray,
    sampling_rate_hz: int,
    format: str = "FLAC",
    subtype: str | None = None,
    clip: bool = False,
) -> bytes:
    """Encode a waveform, float [n], one channel -> the bytes of a file.

    format: "WAV", "FLAC", "OGG" (Vorbis), "OPUS" or "MP3". subtype: libsndfile's sample format ("PCM_16",
    the default of WAV and FLAC; "PCM_24", "PCM_32", "FLOAT", ...). Integer samples are round(x * full
    scale), so samples that came from a 16-bit file go back to it unchanged; 1.0 itself becomes the largest
    positive integer.

    Raises ValueError for an empty or non-finite waveform, for more than one dimension, for samples beyond
    [-1, 1] (a caller that accepts the distortion passes clip=True; scaling down is usually right), and for
    a rate or a subtype that the format cannot hold.
    """
    samples = np.asarray(waveform)
    if samples.ndim != 1 or samples.size == 0 or samples.dtype.kind != "f":
        raise ValueError(
            "expected a waveform of floats, shape [n], n > 0; "
            f"got {samples.dtype} of shape {list(samples.shape)}"
        )
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{int((~np.isfinite(samples)).sum())} of {samples.size} samples are NaN or infinite"
        )
    beyond = int((np.abs(samples) > 1.0).sum())
    if beyond and not clip:
        raise ValueError(
            f"{beyond} of {samples.size} samples are beyond [-1, 1] (peak {np.abs(samples).max():.3f}); "
            "scale the waveform down, or pass clip=True to cut them off"
        )
    samples = samples.clip(-1.0, 1.0)
    if format not in ENCODINGS:
        raise ValueError(f"unknown format {format!r}; use one of {', '.join(ENCODINGS)}")
    container, default_subtype = ENCODINGS[format]
    subtype = subtype or default_subtype
    if not soundfile.check_format(container, subtype):
        raise ValueError(
            f"{format} cannot hold subtype {subtype!r}; it can: "
            f"{', '.join(soundfile.available_subtypes(container))}"
        )
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", sampling_rate_hz, 1, subtype, format=container) as file:
            for start in range(0, len(samples), BLOCK_FRAMES):
                file.write(_quantize(samples[start : start + BLOCK_FRAMES], subtype))
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"{format} ({subtype}) at {sampling_rate_hz} Hz cannot be written: {error}. Opus takes 8, "
            "12, 16, 24 and 48 kHz, MP3 the usual rates from 8 to 48 kHz; resample first"
        ) from error
    return buffer.getvalue()


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Waveform float32 [..., n] at from_hz -> float32 [..., ceil(n * to_hz / from_hz)] at to_hz.

    Windowed-sinc interpolation (torchaudio). Its kernel has about from_hz * to_hz weights, both divided by
    their greatest common divisor: 147 thousand for 22,050 -> 16,000 Hz, but 700 million (2.8 GB) for
    44,101 -> 16,000 Hz. Past 16 million the ratio is replaced by its best approximation with a denominator
    up to 4,000. The drift is then at most 0.13 ms a second (47,994 -> 16,000 Hz), and under 0.1 microseconds
    for half of all rates.
    """
    if from_hz <= 0 or to_hz <= 0 or int(from_hz) != from_hz or int(to_hz) != to_hz:
        raise ValueError(f"sampling rates are positive whole numbers of Hz, got {from_hz!r} and {to_hz!r}")
    waveform = np.asarray(waveform, dtype=np.float32)
    if from_hz == to_hz:
        return waveform.copy()
    import torch  # here and below, since reading a file at its own rate needs no torch

    ratio = Fraction(int(to_hz), int(from_hz))
    if ratio.numerator * ratio.denominator > MAX_KERNEL_SIZE:
        ratio = ratio.limit_denominator(4000)
    length = math.ceil(Fraction(int(to_hz), int(from_hz)) * waveform.shape[-1])
    with one_thread():
        # torch.tensor copies: from_numpy would warn of arrays that are read-only, as those of datasets are.
        resampled = _resampler(ratio.denominator, ratio.numerator)(torch.tensor(waveform)).numpy()
    if resampled.shape[-1] < length:  # only where the ratio was approximated
        padding = [(0, 0)] * (resampled.ndim - 1) + [(0, length - resampled.shape[-1])]
        return np.pad(resampled, padding)
    return np.ascontiguousarray(resampled[..., :length])


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute in one thread, for work of milliseconds.

    For a few seconds of sound several are not faster, and where other processes (speech synthesis) share the
    cores they wait for each other: 62 instead of 5 ms to resample a sentence on two busy cores.
    """
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@lru_cache(maxsize=4)
def _resampler(from_hz: int, to_hz: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """With its kernel, which takes longer to compute than to apply to a sentence, and up to 64 MB.

    In float32, as `torchaudio.functional.resample` computes it: the samples are the same to the last bit.
    """
    import torch
    from torchaudio.transforms import Resample

    return Resample(from_hz, to_hz, dtype=torch.float32)


def trim_silence(
    waveform: np.ndarray, sampling_rate_hz: int, threshold_db: float = -40.0, keep_ms: float = 10.0
) -> np.ndarray:
    """Waveform [n] -> a copy without its quiet ends.

    The ends are what lies before the first and after the last sample louder than threshold_db below the peak
    (-40.0: a hundredth of it), less keep_ms of each. A waveform of zeros comes back whole.
    """
    waveform = np.asarray(waveform)
    level = np.abs(waveform)
    if not level.any():
        return waveform.copy()
    loud = np.flatnonzero(level > level.max() * 10.0 ** (threshold_db / 20.0))
    keep = round(keep_ms * sampling_rate_hz / 1000.0)
    return waveform[max(0, loud[0] - keep) : loud[-1] + 1 + keep].copy()


def _read_bytes(source: str | os.PathLike | bytes | BinaryIO, name: str | None) -> tuple[bytes, str]:
    """Source -> (its bytes, what to call it)."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), name or f"<{len(source)} bytes>"
    if hasattr(source, "read"):
        return source.read(), name or str(getattr(source, "name", "<file object>"))
    path = name or os.fspath(source)
    try:
        return Path(source).read_bytes(), path
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError(path, "missing", "there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise AudioError(path, "not_audio", "this is a folder; give the path of a file in it") from error


def _decode(file: soundfile.SoundFile, data: bytes, path: str) -> np.ndarray:
    """Open file -> all its frames, float32 [n, channels]; AudioError where it ends before its header says."""
    blocks = []
    try:
        while True:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            blocks.append(block)
    except soundfile.SoundFileError as error:
        raise AudioError(
            path,
            "truncated",
            f"decoding stopped after {sum(map(len, blocks))} of {file.frames} samples ({error}); the file "
            "is cut short or damaged, copy or download it again",
        ) from error
    frames = np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)
    promised = file.frames
    if file.format == "MP3":
        # Without a Xing or Info tag the promise is a guess from the file's size; with one, the decoder's own
        # delay may still cost less than one MPEG frame.
        samples_per_frame = 1152 if file.samplerate >= 32000 else 576
        promised = promised - samples_per_frame if _has_mp3_length(data) else 0
    # 2**63 - 1 is libsndfile's promise for a FLAC stream that does not know its length.
    if len(frames) < promised < 1 << 62:
        raise AudioError(
            path,
            "truncated",
            f"{len(frames)} samples can be read, {file.frames} are promised by the header; "
            "copy or download it again",
        )
    return frames


def _quantize(samples: np.ndarray, subtype: str) -> np.ndarray:
    """Floats in [-1, 1] -> what libsndfile is given: for integer subtypes int32, rounded, in the upper bits.

    libsndfile rounds floats for FLAC but cuts them off for WAV, half a step too low on average.
    """
    if subtype not in INTEGER_BITS:
        return samples
    bits = INTEGER_BITS[subtype]
    full_scale = 1 << (bits - 1)
    integers = np.rint(samples.astype(np.float64) * full_scale).clip(-full_scale, full_scale - 1)
    return (integers.astype(np.int64) << (32 - bits)).astype(np.int32)


def _missing_end(data: bytes) -> str | None:
    """The bytes of a file -> what shows that its end is missing, or None (also where that cannot be told)."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64") and (data[8:12] == b"WAVE" or len(data) < 12):
        return _missing_end_of_wav(data)
    if data[:4] == b"OggS":
        return _missing_end_of_ogg(data)
    return None


def _missing_end_of_wav(data: bytes) -> str | None:
    """Walk the chunks (name, length, content padded to an even length) up to the samples."""
    order = ">" if data[:4] == b"RIFX" else "<"
    long_size = None  # RF64: the length of the samples stands in a chunk of its own, 64 bits wide
    position = 12
    while position + 8 <= len(data):
        chunk, size = struct.unpack_from(f"{order}4sI", data, position)
        start = position + 8
        if chunk == b"ds64" and start + 16 <= len(data):
            long_size = struct.unpack_from(f"{order}Q", data, start + 8)[0]
        if chunk == b"data":
            if size == 0xFFFFFFFF and long_size is not None:
                size = long_size
            elif size >= UNKNOWN_WAV_SIZE:
                return None
            if start + size <= len(data):
                return None
            return f"the WAV header promises {size} bytes of samples, {len(data) - start} follow"
        position = start + size + size % 2
    return "the WAV file ends before its samples begin"


def _missing_end_of_ogg(data: bytes) -> str | None:
    """Find the last page; it must be whole and carry the end-of-stream flag (RFC 3533, section 6)."""
    page = data.rfind(b"OggS")
    while page > 0 and data[page + 4 : page + 5] not in (
        b"\0",
        b"",
    ):  # the four letters, by chance, inside a packet
        page = data.rfind(b"OggS", 0, page)
    header = data[page : page + 27]
    if len(header) == 27:
        num_segments = header[26]
        segments = data[page + 27 : page + 27 + num_segments]
        end = page + 27 + num_segments + sum(segments)
        if len(segments) == num_segments and end <= len(data):
            return None if header[5] & 4 else "the Ogg stream has no last page"
    return "the last Ogg page is cut"


def _has_mp3_length(data: bytes) -> bool:
    """Whether the first MPEG frame carries a Xing or Info tag, where encoders write the number of frames."""
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:  # its length: four bytes of seven bits
        start = 10 + sum(
            (byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True)
        )
    first_frame = data[start : start + 256]
    return b"Xing" in first_frame or b"Info" in first_frame


def _first_bytes(data: bytes) -> str:
    return f"{len(data)} bytes, beginning {data[:8]!r}"
