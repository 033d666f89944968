"""A clip has one embedding, in any company; checkpoints that cannot tell speakers apart are refused."""

import json

import numpy as np
import pytest
import torch

from hf_clsi.speech.audio import resample
from hf_clsi.speech.verifiers import (
    SpectralVerifier,
    SpeechVerifier,
    XVectorVerifier,
    embed_speech,
    load_verifier,
)

RATE = 16_000


def noise(samples, seed=0):
    return (0.1 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


def tiny_xvector(norm="group", kind="wavlm"):
    """A small x-vector model with random weights that spread widely, so that embeddings differ by clip."""
    from transformers import UniSpeechSatConfig, UniSpeechSatForXVector, WavLMConfig, WavLMForXVector

    config_class, model_class = {
        "wavlm": (WavLMConfig, WavLMForXVector),
        "unispeech-sat": (UniSpeechSatConfig, UniSpeechSatForXVector),
    }[kind]
    config = config_class(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16, 16, 16, 24),
        xvector_output_dim=12,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def extractor():
    """With what checkpoints differ in turned on: normalization of each clip, and an attention mask."""
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)


def tiny_verifier(norm="group", kind="wavlm"):
    return XVectorVerifier(tiny_xvector(norm, kind), extractor(), "tiny")


class Recorder(SpeechVerifier):
    """Embeds a clip as its first two samples, and notes the batches."""

    name, sampling_rate_hz, min_samples = "recorder", RATE, 2

    def __init__(self):
        self.batches = []

    def embed(self, waveforms):
        self.batches.append([len(waveform) for waveform in waveforms])
        return np.stack([waveform[:2] for waveform in waveforms])


# -- embed_speech --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["wavlm", "unispeech-sat"])
def test_a_clip_is_embedded_alike_in_any_company(norm, kind):
    verifier = tiny_verifier(norm, kind)
    lengths = [16_000, 24_000, 16_000, 9_999, 16_000]
    clips = [noise(length, seed) for seed, length in enumerate(lengths)]
    together = embed_speech(clips, RATE, verifier)
    alone = np.concatenate([embed_speech([clip], RATE, verifier) for clip in clips])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    # Which proves something, since different clips are further apart than that.
    assert np.abs(alone[:, None] - alone[None]).max(axis=-1)[~np.eye(5, dtype=bool)].min() > 1e-2


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_padding_would_change_an_embedding_even_with_an_attention_mask(norm):
    """Why only clips of equal length share a batch; once this fails, buckets of similar length are fine."""
    model, clip = tiny_xvector(norm), torch.from_numpy(noise(16_000))
    padded = torch.zeros(1, 24_000)
    padded[0, :16_000] = clip
    mask = (torch.arange(24_000) < 16_000).long()[None]
    with torch.no_grad():
        alone, beside = model(clip[None]).embeddings, model(padded, attention_mask=mask).embeddings
    assert torch.cosine_similarity(alone, beside).item() < 0.9999


def test_embeddings_are_the_models_own_at_unit_length():
    model, clip = tiny_xvector(), noise(16_000)
    normalized = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
    with torch.no_grad():
        expected = model(torch.from_numpy(normalized)[None]).embeddings[0].numpy()
    (found,) = embed_speech([clip], RATE, XVectorVerifier(model, extractor(), "tiny"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_batches_hold_clips_of_one_length_and_at_most_batch_seconds():
    verifier = Recorder()
    clips = [np.full(n, value, np.float32) for value, n in enumerate([4, 8, 4, 4, 8, 4], start=1)]
    clips[2][1] = 0
    found = embed_speech(clips, RATE, verifier, batch_seconds=12 / RATE)
    assert verifier.batches == [[8], [8], [4, 4, 4], [4]]  # longest first; three clips of 4 samples are 12
    diagonal = [np.sqrt(0.5)] * 2
    np.testing.assert_allclose(found, [diagonal, diagonal, [1, 0], diagonal, diagonal, diagonal], rtol=1e-6)


def test_a_clip_longer_than_a_batch_goes_alone():
    verifier = Recorder()
    embed_speech([np.ones(50, np.float32), np.ones(50, np.float32)], RATE, verifier, batch_seconds=12 / RATE)
    assert verifier.batches == [[50], [50]]


def test_other_rates_are_resampled():
    verifier = tiny_verifier()
    clip = noise(12_000)
    at_8k = embed_speech([clip], 8_000, verifier)
    np.testing.assert_array_equal(at_8k, embed_speech([resample(clip, 8_000, RATE)], RATE, verifier))


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        ([], "no waveforms"),
        ([np.ones(9, np.float32), np.ones((2, 9), np.float32)], r"waveform 1 is float32 of shape \[2, 9\]"),
        ([np.ones(9, np.int16)], "waveform 0 is int16"),
        ([np.array([1, np.nan, 1], np.float32)], "waveform 0 holds NaN"),
        ([np.ones(9, np.float32), np.zeros(9, np.float32)], r"waveform 1 is silent \(9 samples\)"),
        ([np.ones(1, np.float32)], "waveform 0 lasts 0.000 s; recorder needs at least"),
        ([np.array([0, 0, 1], np.float32)], "gives waveform 0 an embedding that is zero"),
    ],
)
def test_unusable_waveforms_are_named(waveforms, message):
    with pytest.raises(ValueError, match=message):
        embed_speech(waveforms, RATE, Recorder())


def test_batch_seconds_must_be_positive():
    with pytest.raises(ValueError, match=r"batch_seconds must be positive, got 0"):
        embed_speech([np.ones(9, np.float32)], RATE, Recorder(), batch_seconds=0)


def test_arguments_are_left_alone():
    clip = noise(16_000)
    before = clip.copy()
    for verifier in (tiny_verifier(), SpectralVerifier()):
        embed_speech([clip], RATE, verifier)
        np.testing.assert_array_equal(clip, before)


# -- x-vector models -----------------------------------------------------------------------------------------


def test_the_shortest_clip_has_two_frames_to_pool():
    """5,200 samples: 16 frames of 400 every 320, of which the TDNN layers take 14 away."""
    verifier = tiny_verifier()
    assert verifier.min_samples == 5_200
    assert np.isfinite(embed_speech([noise(5_200)], RATE, verifier)).all()
    with pytest.raises(ValueError, match=r"lasts 0\.325 s; tiny needs at least 0\.325 s"):
        embed_speech([noise(5_199)], RATE, verifier)


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    folder = tmp_path / "models" / "sv"
    tiny_xvector().save_pretrained(folder)
    extractor().save_pretrained(folder)
    verifier = load_verifier(str(folder))
    assert verifier.name == "models/sv"  # without the folders above
    assert verifier.settings() == {"verifier": "models/sv", "verifier_class": "WavLMForXVector"}
    assert not verifier.model.training
    clip = noise(16_000)
    np.testing.assert_array_equal(
        embed_speech([clip], RATE, verifier), embed_speech([clip], RATE, tiny_verifier())
    )


def test_older_names_of_weights_are_understood(tmp_path):
    """microsoft/wavlm-base-plus-sv was saved before safetensors, and before torch renamed the two parts of a
    normalized weight."""
    model = tiny_xvector()
    model.save_pretrained(tmp_path)
    extractor().save_pretrained(tmp_path)
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for key, weight in model.state_dict().items():
        for new, old in older.items():
            key = key.replace(new, old)
        weights[key] = weight
    assert sum(key.endswith(("weight_g", "weight_v")) for key in weights) == 2
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    clip = noise(16_000)
    np.testing.assert_array_equal(
        embed_speech([clip], RATE, load_verifier(str(tmp_path))), embed_speech([clip], RATE, tiny_verifier())
    )


def test_a_model_without_the_head_is_refused(tmp_path):
    tiny_xvector().wavlm.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"saved as WavLMModel, without an x-vector head; use microsoft/wavlm-base-plus-sv"
    ):
        load_verifier(str(tmp_path))


def test_a_head_without_weights_is_refused(tmp_path):
    """transformers would fill in random numbers and say so in a log."""
    tiny_xvector().wavlm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["WavLMForXVector"]}))
    with pytest.raises(ValueError, match=r"lacks 14 weights of a WavLMForXVector \(feature_extractor.bias, "):
        load_verifier(str(tmp_path))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(
        ValueError, match=r"type 'llama', which has no x-vector head; types with one: .*wavlm"
    ):
        load_verifier(str(tmp_path))


def test_a_model_of_spectra_is_refused(tmp_path):
    config = {"model_type": "wav2vec2-bert", "architectures": ["Wav2Vec2BertForXVector"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="takes spectra; only models of waveforms are supported"):
        load_verifier(str(tmp_path))


# -- the spectral baseline -----------------------------------------------------------------------------------


def test_the_baseline_needs_no_weights_and_says_its_name():
    verifier = load_verifier("spectral")
    assert isinstance(verifier, SpectralVerifier)
    assert verifier.settings() == {"verifier": "spectral"}
    assert embed_speech([noise(RATE)], RATE, verifier).shape == (1, 38)


def test_the_baseline_hears_the_spectrum_and_neither_level_nor_silence():
    verifier = SpectralVerifier()
    white = noise(2 * RATE)
    brown = np.cumsum(white).astype(np.float32)
    loud, quiet, colored = embed_speech([white, 1e-4 * white, brown], RATE, verifier)
    # Silence as long as the sound, both of whole frames; only the two frames across the border differ.
    paused = np.concatenate([white, np.zeros(2 * RATE, np.float32)])
    assert loud @ quiet > 0.99999
    assert loud @ embed_speech([paused], RATE, verifier)[0] > 0.99
    assert loud @ colored < 0.7
