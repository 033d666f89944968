"""Every kind of audio file that hf_clsi reads, writes or refuses, each really made that way."""

import io
import math
import pickle
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_clsi.speech.audio import AudioError, encode_audio, read_audio, resample, trim_silence, write_audio


def tone(seconds=0.5, rate=24000, hz=440.0, amplitude=0.5):
    """A sine, float32 [seconds * rate]."""
    time_s = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def wav_bytes(frames, sample_width, rate=8000, channels=1):
    """Raw little-endian samples -> a WAV file, by the standard library, so not by what is under test."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(sample_width)
        file.setframerate(rate)
        file.writeframes(frames)
    return buffer.getvalue()


def encoded(samples, rate, format, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def refusal(source, **settings):
    with pytest.raises(AudioError) as caught:
        read_audio(source, **settings)
    return caught.value


# Reading


@pytest.mark.parametrize(
    ("sample_width", "frames", "expected"),
    [
        (1, bytes([0, 64, 128, 192, 255]), [-1.0, -0.5, 0.0, 0.5, 127 / 128]),  # 8 bit is unsigned
        (2, struct.pack("<5h", -32768, -16384, 0, 1, 32767), [-1.0, -0.5, 0.0, 1 / 32768, 32767 / 32768]),
        (
            3,
            b"".join(
                v.to_bytes(3, "little", signed=True) for v in (-(1 << 23), 0, 1, 1 << 22, (1 << 23) - 1)
            ),
            [-1.0, 0.0, 2.0**-23, 0.5, 1 - 2.0**-23],
        ),
        (4, struct.pack("<4i", -(1 << 31), 0, 128, 1 << 30), [-1.0, 0.0, 2.0**-24, 0.5]),
    ],
)
def test_integer_samples_are_divided_by_their_full_scale(sample_width, frames, expected):
    waveform, rate = read_audio(wav_bytes(frames, sample_width))
    assert rate == 8000
    assert waveform.dtype == np.float32
    assert waveform.tolist() == expected


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_samples_are_taken_as_they_are(subtype):
    samples = np.array([-1.5, -0.25, 0.0, 0.125, 2.0])
    waveform, _ = read_audio(encoded(samples, 16000, "WAV", subtype))
    assert waveform.dtype == np.float32
    assert waveform.tolist() == [-1.5, -0.25, 0.0, 0.125, 2.0]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [([[0.5, -0.25], [1.0, 0.5]], [0.125, 0.75]), ([[0.75, 0.0, -0.375], [0.0, 0.0, 0.75]], [0.125, 0.25])],
)
def test_channels_are_averaged(frames, expected):
    waveform, _ = read_audio(encoded(np.array(frames), 16000, "WAV", "FLOAT"))
    assert waveform.tolist() == expected
    assert waveform.flags["C_CONTIGUOUS"]


def test_path_bytes_and_file_object_give_the_same(tmp_path):
    path = tmp_path / "tone.flac"
    write_audio(path, tone(), 24000)
    waveform, rate = read_audio(path)
    for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        again, rate_again = read_audio(source)
        assert rate_again == rate == 24000
        np.testing.assert_array_equal(again, waveform)


def test_reading_resamples_to_the_rate_asked_for(tmp_path):
    path = tmp_path / "tone.wav"
    write_audio(path, tone(rate=22050), 22050)
    waveform, rate = read_audio(path, sampling_rate_hz=16000)
    assert rate == 16000
    assert waveform.shape == (8000,)
    np.testing.assert_allclose(waveform[100:-100], tone(rate=16000)[100:-100], atol=2e-3)


def test_wav_of_unknown_length_from_a_pipe_is_read_to_its_end():
    data = bytearray(wav_bytes(struct.pack("<4h", 1, 2, 3, 4), 2))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # what ffmpeg writes to a pipe
    waveform, _ = read_audio(bytes(data))
    assert (waveform * 32768).tolist() == [1, 2, 3, 4]


def test_flac_of_unknown_length_from_a_pipe_is_read_to_its_end():
    data = bytearray(encode_audio(tone(), 24000, "FLAC"))
    data[21] &= 0xF0  # the last 36 bits of bytes 18 to 25 count the samples; 0 is "unknown"
    data[22:26] = b"\0\0\0\0"
    waveform, _ = read_audio(bytes(data))
    assert len(waveform) == 12000


def test_wav_with_other_chunks_around_its_samples():
    plain = wav_bytes(struct.pack("<3h", 1, 2, 3), 2)
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"  # chunks of odd length are padded
    waveform, _ = read_audio(plain[:36] + odd + plain[36:] + odd)
    assert (waveform * 32768).tolist() == [1, 2, 3]


# Writing, each read back


@pytest.mark.parametrize(
    ("format", "subtype", "step"),
    [
        ("WAV", "PCM_U8", 2.0**-7),
        ("FLAC", "PCM_S8", 2.0**-7),
        ("WAV", "PCM_16", 2.0**-15),
        ("FLAC", "PCM_16", 2.0**-15),
        ("WAV", "PCM_24", 2.0**-23),
        ("FLAC", "PCM_24", 2.0**-23),
        ("WAV", "PCM_32", 2.0**-31),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "DOUBLE", 0.0),
    ],
)
def test_lossless_formats_give_back_the_samples_to_half_a_step(format, subtype, step):
    written = tone()
    waveform, rate = read_audio(encode_audio(written, 24000, format, subtype))
    assert rate == 24000
    assert waveform.shape == written.shape
    assert np.abs(waveform - written).max() <= 0.5 * step + 2.0**-25  # and float32's own rounding


def test_sixteen_bit_samples_survive_any_number_of_round_trips():
    every = np.arange(-32768, 32768, dtype=np.int32)
    waveform = (every / 32768).astype(np.float32)
    for format in ("WAV", "FLAC", "WAV"):
        waveform, _ = read_audio(encode_audio(waveform, 24000, format))
    assert (waveform * 32768).astype(np.int32).tolist() == every.tolist()


def test_full_scale_becomes_the_largest_positive_integer():
    waveform, _ = read_audio(encode_audio(np.array([1.0, -1.0]), 24000, "WAV"))
    assert waveform.tolist() == [32767 / 32768, -1.0]


@pytest.mark.parametrize("suffix", [".ogg", ".opus", ".mp3"])
def test_lossy_formats_sound_the_same(tmp_path, suffix):
    rng = np.random.default_rng(0)
    written = np.convolve(rng.normal(size=24000) * 0.1, np.ones(8) / 8, "same")  # noise below 3 kHz
    path = tmp_path / f"noise{suffix}"
    write_audio(path, written, 24000)
    waveform, rate = read_audio(path)
    assert rate == 24000
    assert len(waveform) == 24000
    assert np.corrcoef(waveform, written)[0, 1] > 0.8  # one sample of delay alone costs 0.1


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_long_waveforms_are_written_whole(tmp_path, suffix):
    path = tmp_path / f"long{suffix}"
    write_audio(path, tone(seconds=20), 24000)
    waveform, _ = read_audio(path)
    assert len(waveform) == 480000


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.array([0.0, np.nan, np.inf]), "2 of 3 samples are NaN or infinite"),
        (np.array([0.5, -1.25, 1.0]), "1 of 3 samples are beyond"),
        (np.zeros(0), "shape"),
        (np.zeros((2, 10)), "shape"),
        (np.array([1, 2, 3]), "floats"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, waveform, message):
    path = tmp_path / "out.wav"
    with pytest.raises(ValueError, match=message):
        write_audio(path, waveform, 24000)
    assert not path.exists()


def test_clipping_is_done_only_when_asked_for_and_never_in_place():
    loud = np.array([0.5, -1.25, 1.5])
    waveform, _ = read_audio(encode_audio(loud, 24000, "WAV", "FLOAT", clip=True))
    assert waveform.tolist() == [0.5, -1.0, 1.0]
    assert loud.tolist() == [0.5, -1.25, 1.5]


@pytest.mark.parametrize(
    ("name", "rate", "subtype", "message"),
    [
        ("a.txt", 24000, None, "unknown suffix '.txt'; use one of .wav"),
        ("a.opus", 22050, None, "resample first"),
        ("a.flac", 24000, "FLOAT", "FLAC cannot hold subtype 'FLOAT'; it can: PCM"),
    ],
)
def test_formats_that_do_not_exist_are_named_with_a_remedy(tmp_path, name, rate, subtype, message):
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, tone(), rate, subtype)


# Refusals


def test_a_missing_file_is_refused(tmp_path):
    error = refusal(tmp_path / "nothing.wav")
    assert (error.reason, error.path) == ("missing", str(tmp_path / "nothing.wav"))
    assert str(error) == f"{tmp_path / 'nothing.wav'}: there is no such file; check the path"


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.wav"
    path.touch()
    error = refusal(path)
    assert (error.reason, error.path) == ("empty", str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"Once upon a time.\n" * 50,
        b"\0" * 4000,
        b"RIFF\x24\0\0\0AVI " + b"\0" * 100,
        np.random.default_rng(0).bytes(20000),
        bytes(encode_audio(tone(), 24000, "MP3")[:60]),
    ],
    ids=["text", "zeros", "video", "random", "mp3 header"],
)
def test_what_is_not_audio_is_refused(tmp_path, content):
    path = tmp_path / "claims_to_be.wav"
    path.write_bytes(content)
    error = refusal(path)
    assert (error.reason, error.path) == ("not_audio", str(path))


def test_a_folder_is_refused(tmp_path):
    assert refusal(tmp_path).reason == "not_audio"


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus"])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    write_audio(path, tone(seconds=2), 24000)
    data = path.read_bytes()
    read_audio(path)  # whole, it is accepted
    path.write_bytes(data[: int(kept * len(data))])
    error = refusal(path)
    assert (error.reason, error.path) == ("truncated", str(path))


@pytest.mark.parametrize("length", [10, 20, 30, 43])
def test_a_wav_file_cut_within_its_header_is_refused(length):
    error = refusal(encode_audio(tone(), 24000, "WAV")[:length], name="story.wav")
    assert (error.reason, error.path) == ("truncated", "story.wav")


def test_a_wav_file_that_lacks_one_byte_is_refused():
    data = encode_audio(tone(seconds=1, rate=8000), 8000, "WAV")
    error = refusal(data[:-1])
    assert "promises 16000 bytes of samples, 15999 follow" in str(error)


@pytest.mark.parametrize(("container", "endian"), [("RF64", "FILE"), ("WAV", "BIG"), ("WAVEX", "FILE")])
def test_the_other_kinds_of_wav_are_read_whole_and_refused_truncated(container, endian):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), 24000, format=container, subtype="PCM_16", endian=endian)
    data = buffer.getvalue()
    assert len(read_audio(data)[0]) == 12000
    assert refusal(data[: len(data) // 2]).reason == "truncated"


def test_a_truncated_mp3_with_a_length_tag_is_refused():
    data = encode_audio(tone(seconds=2), 24000, "MP3")
    assert b"Xing" in data[:100] or b"Info" in data[:100]
    assert refusal(data[: len(data) // 2]).reason == "truncated"


def test_an_mp3_without_a_length_tag_is_read_as_far_as_it_goes():
    data = encode_audio(tone(seconds=2), 24000, "MP3")
    # Drop the first frame, which holds the tag: the next one starts with the same two bytes of sync.
    second_frame = data.index(data[:2], 2)
    waveform, _ = read_audio(data[second_frame : len(data) // 2])
    assert 0 < len(waveform) < 48000


@pytest.mark.parametrize("position", [slice(None), slice(7, 8)], ids=["all", "one"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value, position):
    samples = tone()
    samples[position] = value
    path = tmp_path / "nan.wav"
    soundfile.write(path, samples, 24000, subtype="FLOAT")
    error = refusal(path)
    assert error.reason == "not_finite"
    assert f"{np.isnan(samples).sum() or np.isinf(samples).sum()} of 12000 samples" in str(error)


def test_a_file_without_samples_is_refused():
    assert refusal(wav_bytes(b"", 2)).reason == "too_short"


def test_less_than_one_frame_is_refused_and_one_frame_is_not():
    frame = encode_audio(np.zeros(1920), 24000)  # 80 ms: a frame at 12.5 Hz
    assert len(read_audio(frame, min_seconds=0.08)[0]) == 1920
    error = refusal(encode_audio(np.zeros(1919), 24000), min_seconds=0.08)
    assert error.reason == "too_short"
    assert "1919 samples at 24000 Hz are 0.0800 s, at least 0.0800 s are needed" in str(error)


def test_the_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(refusal(b"", name="clip 7")))
    assert (error.path, error.reason, str(error)) == ("clip 7", "empty", str(refusal(b"", name="clip 7")))
    assert isinstance(error, ValueError)


# Resampling


@pytest.mark.parametrize("from_hz", [8000, 11025, 22050, 24000, 44100, 48000])
def test_a_tone_stays_the_same_tone(from_hz):
    resampled = resample(tone(seconds=1, rate=from_hz), from_hz, 16000)
    assert resampled.dtype == np.float32
    assert resampled.shape == (16000,)
    np.testing.assert_allclose(resampled[200:-200], tone(seconds=1, rate=16000)[200:-200], atol=2e-3)


@pytest.mark.parametrize("num_samples", [1, 7, 441, 442, 10007])
def test_the_length_is_rounded_up(num_samples):
    assert resample(np.zeros(num_samples), 22050, 16000).shape == (math.ceil(num_samples * 320 / 441),)


def test_an_awkward_rate_is_resampled_at_once_and_keeps_length_and_pitch():
    # 44,101 is prime to 16,000: the exact kernel would hold 16000 * 44135 weights.
    resampled = resample(tone(seconds=2, rate=44101), 44101, 16000)
    assert resampled.shape == (32000,)
    np.testing.assert_allclose(resampled[200:-200], tone(seconds=2, rate=16000)[200:-200], atol=5e-3)


def test_equal_rates_give_a_copy():
    waveform = tone()
    same = resample(waveform, 24000, 24000)
    np.testing.assert_array_equal(same, waveform)
    assert not np.shares_memory(same, waveform)


def test_several_waveforms_are_resampled_as_one_by_one():
    waveforms = np.stack([tone(), tone(hz=880.0)])
    together = resample(waveforms, 24000, 16000)
    np.testing.assert_allclose(together[1], resample(waveforms[1], 24000, 16000), atol=1e-6)


@pytest.mark.parametrize("rates", [(0, 16000), (16000, -1), (16000.5, 8000)])
def test_rates_that_make_no_sense_are_refused(rates):
    with pytest.raises(ValueError, match="positive whole numbers"):
        resample(tone(), *rates)


# Silence


def test_the_quiet_ends_are_cut_and_the_pause_within_stays():
    waveform = np.array([0.0, 0.001, 0.5, 0.0, 0.0, -1.0, 0.009, 0.0, 0.0])
    assert trim_silence(waveform, 1000, threshold_db=-40.0, keep_ms=0).tolist() == [0.5, 0.0, 0.0, -1.0]
    assert trim_silence(waveform, 1000, threshold_db=-41.0, keep_ms=0).tolist() == [
        0.5,
        0.0,
        0.0,
        -1.0,
        0.009,
    ]
    assert trim_silence(waveform, 1000, threshold_db=-40.0, keep_ms=1).tolist() == [
        0.001,
        0.5,
        0.0,
        0.0,
        -1.0,
        0.009,
    ]
    assert trim_silence(waveform, 1000, threshold_db=-40.0, keep_ms=99).tolist() == waveform.tolist()


def test_silence_alone_is_left_alone():
    assert trim_silence(np.zeros(5), 1000).tolist() == [0.0] * 5


def test_real_recordings_are_read():
    """The human-read prompts, where the shared folder is there: FLAC or WAV, all whole."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "parallel_prompts_en_fr"
    files = sorted(path for language in ("en", "fr") for path in (folder / language).glob("*"))[:20]
    if not files:
        pytest.skip(f"no recordings in {folder}")
    for path in files:
        waveform, rate = read_audio(path, sampling_rate_hz=16000, min_seconds=0.08)
        assert rate == 16000
        assert 0.01 < np.abs(waveform).max() <= 1.1
