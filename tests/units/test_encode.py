"""Encoding many waveforms: order, buckets, and the same units in any company, for both audio tokenizers."""

import numpy as np
import pytest
import torch

from hf_clsi.configuration_clsi_units import ClsiUnitsConfig
from hf_clsi.modeling_clsi_units import ClsiUnitsModel
from hf_clsi.units import encode
from hf_clsi.units.encode import (
    buckets,
    encode_waveforms,
    frame_rate_of,
    load_audio_tokenizer,
    num_units_of,
    samples_per_frame_of,
    sampling_rate_of,
)
from hf_clsi.units.kmeans import fit_units

LENGTHS = (16000, 700, 5121, 1, 23456, 1280, 9999)  # at 12.5 Hz and 16 kHz: 13, 1, 5, 1, 19, 1 and 8 frames


def noises(lengths=LENGTHS, seed=0):
    """Noise whose color and level drift, so that its frames differ."""
    rng = np.random.default_rng(seed)
    clips = []
    for length in lengths:
        noise = rng.standard_normal(length + 64)
        smooth = np.convolve(noise, np.ones(65) / 8, mode="valid")
        blend = np.sin(np.arange(length) / rng.uniform(900, 4000)) ** 2
        clips.append((0.1 * (blend * smooth + (1 - blend) * noise[:length])).astype(np.float32))
    return clips


@pytest.fixture(scope="module")
def embedded():
    return fit_units(noises(seed=1), ClsiUnitsConfig(num_units=32), seed=0, progress=False)


@pytest.fixture(scope="module")
def mimi(tiny_mimi):
    return tiny_mimi()


def test_units_keep_the_order_and_are_uint16(embedded):
    units = encode_waveforms(noises(), embedded, progress=False)
    assert [len(clip) for clip in units] == [13, 1, 5, 1, 19, 1, 8]
    assert {clip.dtype for clip in units} == {np.dtype(np.uint16)}
    assert encode_waveforms([], embedded, progress=False) == []


@pytest.fixture(scope="module")
def penalized():
    """Frames of 20 ms, and a price for every change of unit."""
    config = ClsiUnitsConfig(num_units=32, hop_length=320, duration_penalty=2.0)
    return fit_units(noises(seed=1), config, seed=0, progress=False)


@pytest.mark.parametrize("kind", ["embedded", "penalized"])
def test_embedded_units_are_the_same_in_a_batch_and_one_by_one(kind, request):
    embedded = request.getfixturevalue(kind)
    clips = noises([*LENGTHS, *range(3000, 40000, 1777)])
    alone = [encode_waveforms([clip], embedded, progress=False)[0] for clip in clips]
    bare = [embedded.encode(torch.from_numpy(clip)[None, None]).audio_codes[0, 0].numpy() for clip in clips]
    assert len(np.unique(np.concatenate(alone))) >= 16
    for batch_seconds in (0.01, 3.0, 1000.0):
        together = encode_waveforms(clips, embedded, batch_seconds=batch_seconds, progress=False)
        assert [clip.tolist() for clip in together] == [clip.tolist() for clip in alone]
    assert [clip.tolist() for clip in bare] == [clip.tolist() for clip in alone]


def test_mimi_units_are_the_same_in_a_batch_and_one_by_one(mimi):
    lengths = [24000, 1, 1920, 30001, 17777, 5000, 40000, 28801, 9000, 21111]
    clips = noises(lengths)
    alone = [encode_waveforms([clip], mimi, progress=False)[0] for clip in clips]
    assert [len(clip) for clip in alone] == [-(-length // 1920) for length in lengths]
    assert len(np.unique(np.concatenate(alone))) >= 16  # else equal units would prove little
    together = encode_waveforms(clips, mimi, progress=False)
    assert [clip.tolist() for clip in together] == [clip.tolist() for clip in alone]


def test_mimi_without_padding_to_whole_frames_would_change_with_the_company(mimi):
    # Why encode_waveforms pads: alone and unpadded, the last latent differs from the one in a longer batch.
    clip = torch.from_numpy(noises([30001])[0])[None, None]
    padded = torch.nn.functional.pad(clip, (0, 1920 * 20 - 30001))
    with torch.no_grad():
        alone, company = (mimi.encoder(clip).latents, mimi.encoder(padded).latents[..., :16])
    difference = (alone - company).abs().amax(1)[0] / company.abs().max()
    assert difference[:15].max() < 1e-3 < difference[15]


def test_mimi_gives_its_first_codebook(mimi):
    clip = noises([19200])[0]
    codes = mimi.encode(torch.from_numpy(clip)[None, None]).audio_codes  # all four codebooks
    assert codes.shape == (1, 4, 10)
    assert encode_waveforms([clip], mimi, progress=False)[0].tolist() == codes[0, 0].tolist()


def whole_frames(clip):
    return np.pad(clip, (0, -len(clip) % 1920))


def latents(mimi, encode):
    """What reaches the first codebook of a Mimi while `encode` runs, [B, 8, F] of every call."""
    held = []
    projection = mimi.quantizer.semantic_residual_vector_quantizer.input_proj
    hook = projection.register_forward_hook(lambda module, inputs, output: held.append(output))
    try:
        encode()
    finally:
        hook.remove()
    return held


@pytest.mark.parametrize("large_weight", [0, 1 << 18])  # as products of matrices, and by oneDNN
@pytest.mark.parametrize("piece_frames", [(3, 24), (1, 2)])
def test_mimi_in_pieces_gives_the_latents_of_its_own_encode(mimi, monkeypatch, large_weight, piece_frames):
    monkeypatch.setattr(encode, "LARGE_WEIGHT", large_weight)
    monkeypatch.setattr(encode, "PIECE_FRAMES", piece_frames)
    monkeypatch.setattr(encode, "ELU_BLOCK", 1000)
    clips = noises([55 * 1920, 24 * 1920 + 1, 5000, 1])  # 55, 25, 3 frames and 1
    # In batches of two, as many as fit, and one by one.
    batched = latents(mimi, lambda: encode_waveforms(clips, mimi, 1000.0, progress=False))
    alone = latents(mimi, lambda: [encode_waveforms([clip], mimi, progress=False) for clip in clips])
    assert [len(batch) for batch in batched] == [2, 2] and [len(batch) for batch in alone] == [1] * 4
    batched = [row for batch in batched for row in batch]
    for clip, together, single in zip(clips, batched, alone, strict=True):
        padded = torch.from_numpy(whole_frames(clip))[None, None]
        with torch.no_grad():
            (own,) = latents(mimi, lambda padded=padded: mimi.encode(padded))
        assert single.shape == own.shape
        scale = own.abs().max()
        assert (single - own).abs().max() < 2e-5 * scale
        assert (together[:, : own.shape[2]] - own[0]).abs().max() < 2e-5 * scale


def test_a_mimi_on_a_cpu_is_not_run_by_its_own_encode(mimi, monkeypatch):
    # Or the test above would compare it with itself.
    monkeypatch.setattr(mimi, "encode", None)
    assert len(encode_waveforms(noises([5000]), mimi, progress=False)[0]) == 3


@pytest.mark.parametrize(
    "change", [{"use_conv_shortcut": True}, {"num_residual_layers": 2}, {"pad_mode": "reflect"}]
)
def test_a_mimi_of_other_convolutions_runs_as_it_is(mimi, change):
    torch.manual_seed(0)
    other = type(mimi)(type(mimi.config)(**{**mimi.config.to_dict(), **change})).eval()
    codebook = other.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    codebook.embed_sum.normal_(std=0.1)
    clip = whole_frames(noises([40000])[0])
    with torch.no_grad():
        expected = other.encode(torch.from_numpy(clip)[None, None]).audio_codes[0, 0]
    assert encode_waveforms([clip], other, progress=False)[0].tolist() == expected.tolist()


def test_a_mimi_can_be_trained_after_it_encoded(mimi):
    encode_waveforms(noises([5000]), mimi, progress=False)
    codebook = mimi.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    assert not codebook.embed.is_inference()  # kept from then on, and autograd refuses such tensors


def test_what_a_tokenizer_says_of_itself(embedded, mimi):
    functions = (sampling_rate_of, frame_rate_of, samples_per_frame_of, num_units_of)
    assert [function(embedded) for function in functions] == [16000, 12.5, 1280, 32]
    assert [function(mimi) for function in functions] == [24000, 12.5, 1920, 32]


def test_the_tokenizer_and_the_waveforms_are_left_as_they_were(embedded):
    clips = noises()
    copies = [clip.copy() for clip in clips]
    embedded.train()
    try:
        encode_waveforms(clips, embedded, device="cpu", progress=False)
        assert embedded.training
    finally:
        embedded.eval()
    assert all(np.array_equal(clip, copy) for clip, copy in zip(clips, copies, strict=True))


def test_buckets_hold_similar_lengths_up_to_the_capacity():
    groups = [group.tolist() for group in buckets(np.array([4, 10, 3, 5, 5, 3, 3]), capacity=10)]
    assert groups == [[1], [3, 4], [0, 2], [5, 6]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros(0, np.float32), "is empty"),
        (np.array([0.0, np.nan], np.float32), "NaN or infinite"),
        (np.array([0.0, np.inf], np.float32), "NaN or infinite"),
        (np.zeros((1, 50), np.float32), r"shape \(1, 50\)"),
        (np.zeros(50, np.int16), "dtype int16"),
    ],
)
def test_a_bad_waveform_is_named_by_its_index(embedded, bad, reason):
    with pytest.raises(ValueError, match=f"Waveform 2 .*{reason}"):
        encode_waveforms([*noises([50, 60]), bad], embedded, progress=False)


def test_other_models_are_refused(embedded):
    with pytest.raises(ValueError, match="must be a ClsiUnitsModel or a MimiModel, got Linear"):
        encode_waveforms(noises(), torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batch_seconds must be positive, got 0"):
        encode_waveforms(noises(), embedded, batch_seconds=0)


def test_loading_either_tokenizer_gives_the_same_units(embedded, mimi, tmp_path):
    clips = noises([30000, 7000])
    for name, model in (("embedded", embedded), ("mimi", mimi)):
        model.save_pretrained(tmp_path / name)
        loaded = load_audio_tokenizer(str(tmp_path / name))
        assert type(loaded) is type(model) and not loaded.training
        expected = encode_waveforms(clips, model, progress=False)
        assert [u.tolist() for u in encode_waveforms(clips, loaded, progress=False)] == [
            u.tolist() for u in expected
        ]


def test_loading_another_kind_of_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="model of type 'llama'; an audio tokenizer must be"):
        load_audio_tokenizer(str(tmp_path))


def test_a_random_codebook_can_encode_too():
    units = encode_waveforms(noises(), ClsiUnitsModel(ClsiUnitsConfig(num_units=8)), progress=False)
    assert [len(clip) for clip in units] == [13, 1, 5, 1, 19, 1, 8]
