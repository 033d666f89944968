"""ClsiFeatureExtractor: any waveform or file -> mono float32 at one rate, whole frames, a mask; refusals."""

import io
import logging
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor
from transformers.dynamic_module_utils import get_imports

from hf_clsi import ClsiFeatureExtractor, feature_extraction_clsi
from hf_clsi.speech.audio import FORMAT_OF_SUFFIX, read_audio, write_audio

RATE = 16_000


def wav(samples, rate=RATE, subtype="PCM_16"):
    """Samples [n] or [n, channels] -> the bytes of a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples), rate, subtype=subtype, format="WAV")
    return buffer.getvalue()


class Decoder:
    """What datasets' Audio column yields where torchcodec is installed, as far as it matters here."""

    def __init__(self, samples, rate=RATE):
        self.samples, self.rate = samples, rate

    def get_all_samples(self):
        if self.samples is None:
            raise RuntimeError("No valid stream found in input file.")
        return SimpleNamespace(data=torch.tensor(self.samples), sample_rate=self.rate)


@contextmanager
def transformers_log(caplog):
    """transformers' loggers hand nothing on to the root logger, where caplog listens."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


@pytest.fixture
def extractor():
    return ClsiFeatureExtractor(sampling_rate=RATE, frame_rate=4000)  # 4 samples a frame


def test_pads_to_whole_frames_and_marks_the_clip(extractor):
    batch = extractor([np.array([0.1, 0.2, 0.3]), np.full(5, 0.5)], sampling_rate=RATE)
    assert batch["input_values"].dtype == np.float32
    np.testing.assert_array_equal(
        batch["input_values"][:, 0],
        np.array([[0.1, 0.2, 0.3, 0, 0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0]], dtype=np.float32),
    )
    np.testing.assert_array_equal(batch["padding_mask"], [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])


def test_a_whole_number_of_frames_gets_no_padding(extractor):
    batch = extractor(np.ones(8, dtype=np.float32), sampling_rate=RATE, return_tensors="pt")
    assert batch["input_values"].shape == (1, 1, 8)
    assert batch["padding_mask"].tolist() == [[1] * 8]


@pytest.mark.parametrize(
    "clip",
    [
        np.array([0.5, -0.5, 0.25, 0.0]),
        [0.5, -0.5, 0.25, 0.0],
        torch.tensor([0.5, -0.5, 0.25, 0.0], dtype=torch.bfloat16),
        np.array([[0.5, -0.5, 0.25, 0.0]]),
        np.array([[1.0, -1.0, 0.5, 1.0], [0.0, 0.0, 0.0, -1.0]]),
        np.array([16384, -16384, 8192, 0], dtype=np.int16),
        np.array([2**30, -(2**30), 2**29, 0], dtype=np.int32),
        np.array([192, 64, 160, 128], dtype=np.uint8),
        {"array": np.array([0.5, -0.5, 0.25, 0.0]), "sampling_rate": RATE},
    ],
    ids=["float64", "list", "bfloat16", "mono row", "stereo", "int16", "int32", "uint8", "datasets"],
)
def test_every_accepted_form_gives_the_same_samples(extractor, clip):
    values = extractor(clip, sampling_rate=RATE)["input_values"]
    np.testing.assert_array_equal(values, np.array([[[0.5, -0.5, 0.25, 0.0]]], dtype=np.float32))


CLIP = [0.5, -0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    "form",
    [
        lambda path: path,
        lambda path: str(path),
        lambda path: path.read_bytes(),
        lambda path: bytearray(path.read_bytes()),
        lambda path: {"bytes": None, "path": str(path)},
        lambda path: {"bytes": path.read_bytes(), "path": None},
        lambda path: {"bytes": path.read_bytes(), "path": "inside/an/archive.wav"},
        lambda path: {"path": "elsewhere.wav", "array": np.array(CLIP), "sampling_rate": np.int64(RATE)},
        lambda path: {"raw": np.array(CLIP), "sampling_rate": RATE},
        lambda path: {"array": torch.tensor(CLIP), "sampling_rate": torch.tensor(RATE)},
        lambda path: Decoder([CLIP]),
        lambda path: Decoder([[1.0, -1.0, 0.5, 1.0], [0.0, 0.0, 0.0, -1.0]]),
    ],
    ids=[
        *("Path", "str", "bytes", "bytearray", "datasets path", "datasets bytes", "datasets bytes and path"),
        *("datasets array and path", "pipeline", "datasets torch", "decoder", "stereo decoder"),
    ],
)
def test_every_form_that_carries_its_rate_gives_the_same_samples(form, extractor, tmp_path, caplog):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(CLIP))
    with transformers_log(caplog):
        for rate in (None, RATE):
            values = extractor(form(path), sampling_rate=rate)["input_values"]
            np.testing.assert_array_equal(values, np.array([[CLIP]], dtype=np.float32))
        values = extractor([form(path), np.zeros(3)], sampling_rate=RATE)["input_values"]
        np.testing.assert_array_equal(values[0, 0], np.array(CLIP, dtype=np.float32))
    assert caplog.records == []  # the rate is known


@pytest.mark.parametrize("suffix", FORMAT_OF_SUFFIX)
def test_reads_a_file_as_the_package_itself_does(suffix, tmp_path):
    extractor = ClsiFeatureExtractor(sampling_rate=RATE, frame_rate=12.5)
    path = tmp_path / f"clip{suffix}"
    time_s = np.arange(24_000) / 24_000
    write_audio(path, 0.3 * np.sin(2 * np.pi * 440 * time_s), 24_000)
    expected, _ = read_audio(path, RATE)
    batch = extractor(path)
    assert batch["padding_mask"].sum() == len(expected) >= RATE
    np.testing.assert_array_equal(batch["input_values"][0, 0, : len(expected)], expected)
    assert 0.2 < np.abs(expected).max() < 0.4


def test_a_list_may_mix_forms_and_rates(extractor, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav([0.5] * 6))
    stereo = wav([[0.5, 0.0]] * 8)
    forms = [
        tmp_path / "a.wav",
        stereo,
        {"array": np.zeros(8), "sampling_rate": 2 * RATE},
        Decoder([[0.25] * 5]),
    ]
    batch = extractor(forms)
    assert batch["padding_mask"].sum(axis=1).tolist() == [6, 8, 4, 5]
    assert batch["input_values"].shape == (4, 1, 8)
    np.testing.assert_array_equal(
        batch["input_values"][[0, 1, 3], 0, :4], np.float32([[0.5] * 4, [0.25] * 4, [0.25] * 4])
    )


def test_takes_a_column_of_datasets(extractor):
    from datasets import Audio, Dataset

    rows = [{"bytes": wav([0.5] * 4), "path": None}, {"bytes": wav([0.25] * 8), "path": "b.wav"}]
    column = Dataset.from_dict({"audio": rows}).cast_column("audio", Audio(decode=False))["audio"]
    batch = extractor(column)
    assert batch["padding_mask"].sum(axis=1).tolist() == [4, 8]
    assert batch["input_values"][:, 0, 0].tolist() == [0.5, 0.25]


def test_resamples_to_its_own_rate():
    extractor = ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=12.5)
    time_s = np.arange(44_100) / 44_100
    batch = extractor(np.sin(2 * np.pi * 440 * time_s), sampling_rate=44_100)
    assert batch["padding_mask"].sum() == 16_000
    assert batch["input_values"].shape == (1, 1, 16_640)  # 13 frames of 1,280
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    inner = slice(200, 15_800)
    np.testing.assert_allclose(batch["input_values"][0, 0, :16_000][inner], expected[inner], atol=5e-3)


def test_the_clips_own_rate_counts(extractor):
    clip = {"array": np.zeros(80), "sampling_rate": 2 * RATE}
    assert extractor(clip)["padding_mask"].sum() == 40
    with pytest.raises(ValueError, match="says 32000 Hz, but sampling_rate=16000 was passed"):
        extractor(clip, sampling_rate=RATE)


@pytest.mark.parametrize(
    "form",
    [
        wav([0.0] * 80, 2 * RATE),
        Decoder([[0.0] * 80], 2 * RATE),
        {"raw": [0.0] * 80, "sampling_rate": 2 * RATE},
    ],
    ids=["file", "decoder", "pipeline"],
)
def test_a_rate_that_contradicts_the_audios_own_is_refused(extractor, form):
    assert extractor(form)["padding_mask"].sum() == 40
    with pytest.raises(ValueError, match=r"Waveform 1 says 32000 Hz, but sampling_rate=16000 was passed"):
        extractor([np.zeros(4), form], sampling_rate=RATE)


def test_a_rate_beside_a_file_must_be_the_files(extractor):
    with pytest.raises(
        ValueError, match=r"Waveform 0 \(a\.wav\) says 16000 Hz, but sampling_rate=8000 was passed"
    ):
        extractor({"bytes": wav([0.0] * 8), "path": "a.wav", "sampling_rate": 8000})


def test_warns_when_the_rate_is_missing(extractor, caplog):
    with transformers_log(caplog):
        extractor(np.zeros(8), sampling_rate=RATE)
        assert caplog.records == []
        extractor(np.zeros(8))
    assert "No sampling_rate was passed: waveform 0 is taken to be at 16000 Hz" in caplog.text


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([], "No waveform was given"),
        ([np.ones(4), np.zeros(0)], "Waveform 1 is empty"),
        (np.zeros((2, 0)), "Waveform 0 is empty"),
        ([np.ones(4), np.array([0.0, np.nan])], "Waveform 1 holds NaN or infinite"),
        (np.array([np.inf, 0.0]), "Waveform 0 holds NaN or infinite"),
        (np.zeros((1, 2, 3)), r"has shape \(1, 2, 3\)"),
        (np.zeros((8, 2)), "pass its transpose"),
        (np.array([1, 2, 3], dtype=np.int64), "holds int64 numbers"),
        (np.array([1j]), "holds complex128 numbers"),
        (torch.tensor([1j]), "holds complex64 numbers"),
        (np.array([True, False]), "Waveform 0 holds bool numbers"),
        ([True, False], "Waveform 0 holds bool numbers"),
        (np.array([0.5, None]), "Waveform 0 is a ndarray of object values"),
        (
            [np.ones(4), None],
            "Waveform 1 is a NoneType of object values; expected an array of numbers, an audio",
        ),
        (iter([np.ones(4)]), "Waveform 0 is a list_iterator of object values"),
        ([np.ones(4), [[0.5], [0.5, 0.5]]], "Waveform 1 is a list that makes no array"),
        (0.5, r"has shape \(\); expected"),
        (Decoder(None), "Waveform 0 could not be decoded: No valid stream"),
        (Decoder([[]]), "Waveform 0 is empty"),
        ([np.ones(4), {}], r"Waveform 1 is a mapping with the keys \[\]"),
        ({"bytes": None, "path": None}, r"mapping with the keys \['bytes', 'path'\]; expected \"array\""),
        ({"array": None, "sampling_rate": RATE}, r"keys \['array', 'sampling_rate'\]"),
    ],
)
def test_refuses(extractor, audio, message):
    with pytest.raises(ValueError, match=message):
        extractor(audio, sampling_rate=RATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"clip\.wav\) has no bytes: an empty file"),
        (b"# Not audio at all\n" * 20, r"clip\.wav\) is damaged, or not an audio file .*Format not recogni"),
        (wav([0.1] * 100)[:20], r"clip\.wav\) is damaged, or not an audio file"),
        (wav(np.zeros(0)), r"clip\.wav\) is empty"),
        (wav([0.5, np.nan], subtype="FLOAT"), r"clip\.wav\) holds NaN or infinite"),
        (wav([0.5, np.inf], subtype="DOUBLE"), r"clip\.wav\) holds NaN or infinite"),
    ],
    ids=["no bytes", "text", "cut header", "no samples", "nan", "infinite"],
)
def test_refuses_files_by_place_and_name(extractor, tmp_path, content, message):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    for form in (path, str(path), {"bytes": content, "path": "a/clip.wav"}):
        with pytest.raises(ValueError, match=f"Waveform 1 .*{message}"):
            extractor([np.ones(4), form], sampling_rate=RATE)
    with pytest.raises(ValueError, match="Waveform 0 "):  # nothing but its place is known
        extractor(content)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "no/such/clip.wav",
            r"\(no/such/clip\.wav\) cannot be read: No such file or directory\. Check the path",
        ),
        (".", r"\(\.\) cannot be read: Is a directory"),
        ("clip\0.wav", "cannot be read: embedded null byte"),
        ("UklGRiQ" * 1000, r"\((UklGRiQ){28}UklG\.\.\.\) cannot be read: File name too long"),
        ("https://example.org/clip.wav", r"clip\.wav\) is a URL\. Download the file first"),
        ("hf://datasets/someone/speech/clip.wav", "is a URL"),
    ],
    ids=["missing", "folder", "nul", "base64", "https", "hf"],
)
def test_refuses_paths_by_place_and_name(extractor, path, message):
    for form in (path, {"bytes": None, "path": path}):
        with pytest.raises(ValueError, match=f"^Waveform 1 .*{message}"):
            extractor([np.ones(4), form], sampling_rate=RATE)


def test_what_a_lenient_decoder_reads_is_taken(extractor):
    """The promise of the docs: only hf_clsi.speech.audio looks for a missing end."""
    assert extractor(wav(np.zeros(1000))[:-1000])["padding_mask"].sum() == 500


@pytest.mark.parametrize(
    "rate",
    [-1, 0, float("nan"), float("inf"), 16_000.5, True, "16000", 16_000j, [16_000], np.array([16_000])],
)
def test_a_rate_that_is_none_is_refused(extractor, rate):
    message = "must be a positive whole number of Hz, got"
    for audio in (np.zeros(8), wav(np.zeros(8)), {"array": np.zeros(8), "sampling_rate": RATE}):
        with pytest.raises(ValueError, match=f"^sampling_rate {message}"):
            extractor(audio, sampling_rate=rate)
    with pytest.raises(ValueError, match=f"^Waveform 1: its sampling_rate {message}"):
        extractor([np.zeros(4), {"array": np.zeros(8), "sampling_rate": rate}], sampling_rate=RATE)
    with pytest.raises(ValueError, match=message):
        ClsiFeatureExtractor(sampling_rate=rate)


@pytest.mark.parametrize("rate", [16_000.0, np.int32(16_000), np.float32(16_000), torch.tensor(16_000)])
def test_a_rate_may_be_any_whole_number(extractor, rate, caplog):
    with transformers_log(caplog):
        assert extractor(np.zeros(8), sampling_rate=rate)["padding_mask"].sum() == 8
    assert caplog.records == []


def test_files_need_soundfile_only_when_there_are_files(extractor, monkeypatch):
    """And transformers does not ask for it (or torchaudio) before it loads the file as remote code."""
    assert not {"soundfile", "torchaudio", "torchcodec"} & set(get_imports(feature_extraction_clsi.__file__))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    extractor(np.zeros(8), sampling_rate=RATE)
    with pytest.raises(ImportError, match=r"Waveform 0 is an audio file; .*`pip install soundfile`"):
        extractor(wav(np.zeros(8)))


def test_another_rate_needs_torchaudio(extractor, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(ImportError, match="`pip install torchaudio`"):
        extractor(wav(np.zeros(8), 8000))


def test_refuses_impossible_settings():
    with pytest.raises(ValueError, match=r"makes 213\.333 samples a frame"):
        ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=75)
    with pytest.raises(ValueError, match="feature_size must be 1"):
        ClsiFeatureExtractor(feature_size=2)
    for frame_rate in (0, -12.5, float("nan")):
        with pytest.raises(ValueError, match="frame_rate must be a positive number of Hz"):
            ClsiFeatureExtractor(frame_rate=frame_rate)


def test_does_not_change_its_input(extractor):
    clip = np.array([0.5, 0.25, 0.125])
    extractor(clip, sampling_rate=RATE)["input_values"][:] = 7
    assert clip.tolist() == [0.5, 0.25, 0.125]
    mapping = {"bytes": wav(CLIP), "path": None, "raw": None}
    extractor(mapping)
    assert mapping == {"bytes": wav(CLIP), "path": None, "raw": None}


def test_saves_and_loads(tmp_path):
    ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=50).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is ClsiFeatureExtractor
    assert (loaded.sampling_rate, loaded.frame_rate, loaded.hop_length) == (16_000, 50, 320)


def test_mimi_gives_a_clip_the_same_latents_in_a_batch_as_alone(tiny_mimi):
    """Mimi alone does not: right padding changes the last, incomplete frame of the shorter clip."""
    mimi = tiny_mimi()
    extractor = ClsiFeatureExtractor()
    generator = np.random.default_rng(0)
    short, long = generator.normal(size=3000) * 0.1, generator.normal(size=9000) * 0.1

    def latents(audio):
        batch = extractor(audio, sampling_rate=24_000, return_tensors="pt")
        with torch.no_grad():
            return mimi.encoder(batch["input_values"], padding_mask=batch["padding_mask"]).latents

    alone, together = latents([short]), latents([short, long])
    assert alone.shape[-1] == 2
    torch.testing.assert_close(together[:1, :, :2], alone, atol=1e-4, rtol=1e-3)
