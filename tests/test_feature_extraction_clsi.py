"""ClsiFeatureExtractor: any waveform -> mono float32 at one rate, whole frames, a mask; what is refused."""

import logging

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, MimiConfig, MimiModel

from hf_clsi import ClsiFeatureExtractor

RATE = 16_000


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


def test_warns_when_the_rate_is_missing(extractor, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        extractor(np.zeros(8), sampling_rate=RATE)
        assert caplog.records == []
        extractor(np.zeros(8))
    finally:
        logger.removeHandler(caplog.handler)
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
    ],
)
def test_refuses(extractor, audio, message):
    with pytest.raises(ValueError, match=message):
        extractor(audio, sampling_rate=RATE)


def test_refuses_impossible_settings(extractor):
    with pytest.raises(ValueError, match=r"makes 213\.333 samples a frame"):
        ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=75)
    with pytest.raises(ValueError, match="feature_size must be 1"):
        ClsiFeatureExtractor(feature_size=2)
    with pytest.raises(ValueError, match="positive whole number of Hz"):
        extractor(np.zeros(8), sampling_rate=-1)


def test_does_not_change_its_input(extractor):
    clip = np.array([0.5, 0.25, 0.125])
    extractor(clip, sampling_rate=RATE)["input_values"][:] = 7
    assert clip.tolist() == [0.5, 0.25, 0.125]


def test_saves_and_loads(tmp_path):
    ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=50).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is ClsiFeatureExtractor
    assert (loaded.sampling_rate, loaded.frame_rate, loaded.hop_length) == (16_000, 50, 320)


def test_mimi_gives_a_clip_the_same_latents_in_a_batch_as_alone():
    """Mimi alone does not: right padding changes the last, incomplete frame of the shorter clip."""
    torch.manual_seed(0)
    mimi = MimiModel(
        MimiConfig(
            hidden_size=16,
            num_filters=2,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=16,
            codebook_size=32,
            codebook_dim=8,
            vector_quantization_hidden_dimension=8,
            num_quantizers=2,
            upsample_groups=16,
        )
    ).eval()
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
