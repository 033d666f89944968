"""The embedded audio tokenizer: features, units, waveforms, and checkpoints that load anywhere."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file

from hf_clsi.configuration_clsi_units import ClsiUnitsConfig
from hf_clsi.modeling_clsi_units import ClsiUnitsModel, nearest, steadiest

BUFFERS = {
    "centroids",
    "feature_mean",
    "feature_std",
    "centroid_mels",
    "mean_run_length",
    "quantization_error",
}


def random_model(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ClsiUnitsModel(ClsiUnitsConfig(**{"num_units": 16, **settings})).eval()


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- config --------------------------------------------------------------------------------------------------


def test_rates_and_sizes_follow_from_the_config():
    config = ClsiUnitsConfig(hop_length=640, num_deltas=1)
    assert (config.frame_rate, config.features_per_frame, config.feature_size) == (25.0, 4, 26)
    assert config.highest_frequency == 8000.0
    assert (ClsiUnitsConfig().frame_rate, ClsiUnitsConfig().feature_size) == (12.5, 39)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop_length": 1000}, "multiple of inner_hop_length, got 1000 and 160"),
        ({"window_length": 1024}, "n_fft must be at least window_length = 1024, got 512"),
        ({"num_mfcc": 41}, "num_mfcc must be at most num_mel_bins = 40, got 41"),
        ({"num_deltas": 3}, "num_deltas must be 0, 1 or 2, got 3"),
        ({"delta_window": 4}, "delta_window must be odd and at least 3, got 4"),
        ({"delta_rate": "outer"}, "delta_rate must be one of .* got 'outer'"),
        ({"normalization": "speaker"}, "normalization must be one of .* got 'speaker'"),
        ({"max_frequency": 9000.0}, "got 50.0 and 9000.0"),
        ({"num_units": 65537}, "num_units must be at most 65536"),
        ({"num_units": 0}, "num_units must be positive, got 0"),
        ({"duration_penalty": -0.5}, "duration_penalty must be a number of at least 0, got -0.5"),
        ({"duration_penalty": math.inf}, "got inf"),
        ({"duration_penalty": math.nan}, "got nan"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClsiUnitsConfig(**settings)


# -- features ------------------------------------------------------------------------------------------------


def test_features_are_cepstra_of_the_frame():
    """One spectrum per frame: compared with the definition, written in numpy."""
    model = random_model(
        hop_length=512,
        inner_hop_length=512,
        window_length=512,
        num_mel_bins=20,
        num_deltas=0,
        normalization="none",
    )
    signal = noise(1, 1, 1536)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    power = np.abs(np.fft.rfft(signal.double().numpy().reshape(3, 512) * window)) ** 2
    filters = torchaudio.functional.melscale_fbanks(257, 50.0, 8000.0, 20, 16000).double().numpy()
    log_mels = np.log(power @ filters + 1e-5)
    k, m = np.arange(13)[:, None], np.arange(20)
    cosines = np.sqrt(2 / 20) * np.cos(np.pi / 20 * (m + 0.5) * k)
    cosines[0] /= np.sqrt(2)
    np.testing.assert_allclose(
        model.extract_features(signal)[0].numpy(), log_mels @ cosines.T, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(model.spectral_features(signal)[1][0].numpy(), log_mels, rtol=1e-3, atol=1e-3)


def test_a_frame_is_the_mean_of_its_inner_spectra():
    models = [random_model(hop_length=hop, num_deltas=0, normalization="none") for hop in (1280, 160)]
    coarse, fine = (model.extract_features(noise(1, 1, 3840))[0] for model in models)
    torch.testing.assert_close(coarse, fine.unflatten(0, (3, 8)).mean(1))


@pytest.mark.parametrize(("delta_rate", "step_length"), [("inner", 160), ("frame", 1280)])
def test_deltas_are_slopes_per_step(delta_rate, step_length):
    """A tone whose log amplitude grows by 0.001 per sample: every filter's log power grows by twice that."""
    growth = 1e-3
    model = random_model(delta_rate=delta_rate, delta_window=3, normalization="none", log_floor=1e-30)
    time = torch.arange(12800, dtype=torch.float64)
    signal = (torch.exp(growth * (time - 12800)) * torch.sin(2 * math.pi * 0.1 * time)).float()
    features = model.extract_features(signal[None, None])[0, 3:-3]
    # c0 of the orthonormal transform is sqrt(40 filters) times the mean log power.
    torch.testing.assert_close(
        features[:, 13], torch.full((4,), math.sqrt(40) * 2 * growth * step_length), rtol=5e-3, atol=0.0
    )
    assert features[:, 26].abs().max() < 0.01 * features[:, 13].max()  # a straight line has no second slope


def test_utterance_normalization_gives_mean_zero_and_deviation_one():
    clip, _ = random_model(normalization="utterance").extract_features(noise(2, 1, 20000))
    torch.testing.assert_close(clip.mean(0), torch.zeros(39), rtol=0, atol=1e-4)
    torch.testing.assert_close(clip.std(0, correction=0), torch.ones(39), rtol=1e-3, atol=0)
    model = random_model(normalization="utterance_mean")
    model.feature_std.fill_(2.0)
    clip = model.extract_features(noise(1, 1, 20000))[0]
    raw = model.spectral_features(noise(1, 1, 20000))[0][0]
    torch.testing.assert_close(clip, (raw - raw.mean(0)) / 2, rtol=1e-4, atol=1e-4)


def test_global_normalization_uses_the_training_statistics():
    model = random_model(normalization="global")
    raw = model.extract_features(noise(1, 1, 5000))
    model.feature_mean.fill_(1.0)
    model.feature_std.fill_(4.0)
    torch.testing.assert_close(model.extract_features(noise(1, 1, 5000)), (raw - 1) / 4)


@pytest.mark.parametrize("delta_rate", ["inner", "frame"])
@pytest.mark.parametrize("normalization", ["none", "global", "utterance", "utterance_mean"])
def test_features_do_not_depend_on_the_company(normalization, delta_rate):
    model = random_model(normalization=normalization, delta_rate=delta_rate)
    lengths = [700, 1280, 9001, 16000]
    batch = noise(4, 1, 16000)  # what stands in the padding is noise: it must be masked, not just be zero
    mask = torch.arange(16000) < torch.tensor(lengths)[:, None]
    together = model.extract_features(batch, mask)
    for row, length in enumerate(lengths):
        alone = model.extract_features(batch[row : row + 1, :, :length])
        whole_frames = torch.nn.functional.pad(batch[row : row + 1, :, :length], (0, -length % 1280))
        torch.testing.assert_close(together[row : row + 1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.extract_features(whole_frames), alone, rtol=1e-4, atol=1e-4)


def test_long_clips_are_computed_in_blocks_without_seams(monkeypatch):
    model, signal = random_model(), noise(1, 1, 40000)
    whole = model.extract_features(signal)
    monkeypatch.setattr(sys.modules[ClsiUnitsModel.__module__], "SPECTRA_PER_BLOCK", 7)
    torch.testing.assert_close(model.extract_features(signal), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalization", ["none", "global", "utterance", "utterance_mean"])
@pytest.mark.parametrize("length", [1, 1280, 50000])
def test_silence_is_finite_and_one_unit(normalization, length):
    model = random_model(normalization=normalization)
    features = model.extract_features(torch.zeros(1, 1, length))
    assert torch.isfinite(features).all()
    assert len(model.encode(torch.zeros(1, 1, length)).audio_codes.unique()) == 1
    assert torch.isfinite(model.decode(torch.zeros(1, 1, 4, dtype=torch.long)).audio_values).all()


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (torch.zeros(1, 100), None, r"must be \[batch, 1, samples\], got \(1, 100\)"),
        (torch.zeros(1, 2, 100), None, r"got \(1, 2, 100\)"),
        (torch.zeros(1, 1, 0), None, "no samples"),
        (torch.tensor([[[0.0, math.nan, 0.0]]]), None, "NaN or infinite"),
        (torch.tensor([[[0.0, math.inf, 0.0]]]), None, "NaN or infinite"),
        (
            torch.zeros(1, 1, 3),
            torch.ones(1, 4),
            r"padding_mask must be \[1, 3\] or \[1, 1, 3\], got \(1, 4\)",
        ),
        (torch.zeros(1, 1, 3), torch.tensor([[0, 1, 1]]), "pad clips on the right"),
        (torch.zeros(1, 1, 3), torch.tensor([[1, 0, 1]]), "pad clips on the right"),
        (torch.zeros(1, 1, 3), torch.zeros(1, 3), "at least one 1 in every row"),
    ],
)
def test_bad_input_is_refused(values, mask, message):
    with pytest.raises(ValueError, match=message):
        random_model().encode(values, padding_mask=mask)


# -- units ---------------------------------------------------------------------------------------------------


def test_quantize_takes_the_nearest_centroid_and_the_lower_of_two():
    model = random_model(num_units=3, num_mfcc=2, num_deltas=0)
    model.centroids.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 10.0]]))
    features = torch.tensor([[[0.9, 0.0], [1.1, 0.0], [1.0, 0.0]], [[0.0, 4.9], [0.0, 5.1], [-9.0, -9.0]]])
    assert model.quantize(features).tolist() == [[0, 1, 0], [0, 2, 0]]


def best_path(points, centers, penalty):
    """All K ** F paths, in the order that `steadiest` prefers: points [F][D], centers [K][D], integers."""
    costs = [
        [sum((a - b) ** 2 for a, b in zip(point, center, strict=True)) for center in centers]
        for point in points
    ]
    prices = {
        path: sum(frame[unit] for frame, unit in zip(costs, path, strict=True))
        + penalty * sum(a != b for a, b in itertools.pairwise(path))
        for path in itertools.product(range(len(centers)), repeat=len(points))
    }
    cheapest = min(prices.values())
    paths = [path for path, price in prices.items() if price == cheapest]
    ties = len(paths)
    for frame in reversed(range(len(points))):
        later = paths[0][frame + 1 : frame + 2]  # the same for all that are left
        kept = [path for path in paths if path[frame : frame + 1] == later]  # none at the last frame
        lowest = min(path[frame] for path in paths)
        paths = kept or [path for path in paths if path[frame] == lowest]
    return list(paths[0]), ties


def test_the_steadiest_path_is_the_best_of_all_paths_ties_included():
    random, changes, ties, not_nearest = np.random.default_rng(0), 0, 0, 0
    for _ in range(120):
        frames, units = random.integers(1, 7), random.integers(1, 5)
        points = random.integers(0, 4, size=(frames, 2)).tolist()
        centers = random.integers(0, 4, size=(units, 2)).tolist()  # small integers: ties, and no rounding
        penalty = float(random.choice([0.5, 1, 2, 3, 5, 9]))
        path = steadiest(torch.tensor([points]).float(), torch.tensor(centers).float(), penalty)[0].tolist()
        expected, equally_good = best_path(points, centers, penalty)
        assert path == expected
        changes += len(set(path)) > 1
        ties += equally_good > 1
        not_nearest += path != nearest(torch.tensor(points).float(), torch.tensor(centers).float()).tolist()
    assert min(changes, ties, not_nearest) >= 20


def walk(frames, num_units, size, seed):
    """Centers [K, D] and points [1, F, D] that stay near one of them for some ten frames."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_units, size, generator=generator)
    runs = torch.randint(num_units, (-(-frames // 10),), generator=generator)
    points = centers[runs].repeat_interleave(10, 0)[:frames]
    return centers, (points + torch.randn(frames, size, generator=generator))[None]


def test_the_steadiest_path_of_a_long_clip_is_as_good_as_textbook_dynamic_programming():
    """With every pointer kept, and sums in float64 that are never set back."""
    centers, points = walk(3000, 12, 5, seed=0)
    penalty = 15.0
    distances = (points[0, :, None].double() - centers.double()).square().sum(-1).numpy()  # [F, K]
    prices = penalty * (1 - np.eye(12))
    total, before = distances[0], []
    for frame in distances[1:]:
        arrivals = total + prices  # [to, from]
        before.append(arrivals.argmin(1))
        total = arrivals.min(1) + frame
    path = [int(total.argmin())]
    for pointers in reversed(before):
        path.append(int(pointers[path[-1]]))
    assert steadiest(points, centers, penalty)[0].tolist() == path[::-1]
    assert 100 < np.count_nonzero(np.diff(path)) < 600


def test_the_steadiest_path_has_no_seams_between_blocks(monkeypatch):
    centers, points = walk(500, 8, 3, seed=1)
    whole = steadiest(points, centers, 6.0)
    monkeypatch.setattr(sys.modules[ClsiUnitsModel.__module__], "SCORES_PER_BLOCK", 8 * 7)
    assert torch.equal(steadiest(points, centers, 6.0), whole)


def test_frames_after_the_end_of_a_clip_do_not_count():
    centers = torch.tensor([[0.0], [1.0]])
    # The third frame is nearer to 1 (by 0.2), which pays only if the clip goes on there.
    points = torch.tensor([[0.0, 0.0, 0.6, 1.0, 1.0, 1.0]] * 2)[..., None]
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    units = steadiest(points, centers, 0.5, mask)
    assert units[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert units[1, :3].tolist() == steadiest(points[1:, :3], centers, 0.5)[0].tolist() == [0, 0, 0]


def test_a_change_has_to_pay_for_itself():
    model = random_model(num_units=2, num_mfcc=1, num_deltas=0, duration_penalty=2.0)
    model.centroids.copy_(torch.tensor([[0.0], [1.0]]))
    # An excursion of three frames to the other unit saves 3 and costs two changes of 2 * quantization_error.
    features = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0])[None, :, None]
    model.quantization_error.fill_(0.74)
    assert model.features_to_units(features)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    model.quantization_error.fill_(0.76)
    assert model.features_to_units(features)[0].tolist() == [0] * 11
    assert model.quantize(features)[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]  # always the nearest


@pytest.mark.parametrize(("penalty", "error"), [(0.0, 1.0), (8.0, 0.0)])
def test_without_a_penalty_every_frame_gets_its_nearest_centroid(penalty, error):
    model = random_model(duration_penalty=penalty)
    model.quantization_error.fill_(error)
    values = noise(2, 1, 30000)
    units = model.encode(values).audio_codes[:, 0]
    assert torch.equal(units, model.quantize(model.extract_features(values)))
    assert (units.diff() != 0).any()


@pytest.mark.parametrize("normalization", ["global", "utterance"])
def test_penalized_units_do_not_depend_on_the_company(normalization):
    model = random_model(normalization=normalization, hop_length=320, duration_penalty=4.0)
    lengths = [700, 1280, 9001, 16000, 1]
    batch = noise(5, 1, 16000) * torch.linspace(0.1, 3, 16000).sin().square()
    mask = torch.arange(16000) < torch.tensor(lengths)[:, None]
    together = model.encode(batch, mask).audio_codes
    changes = 0
    for row, length in enumerate(lengths):
        alone = model.encode(batch[row : row + 1, :, :length]).audio_codes
        assert torch.equal(together[row : row + 1, :, : alone.shape[-1]], alone)
        changes += int((alone.diff() != 0).sum())
    nearest_changes = (model.quantize(model.extract_features(batch)).diff() != 0).sum()
    assert 4 < changes < nearest_changes


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (1279, 1), (1280, 1), (1281, 2), (25600, 20)])
def test_there_is_a_unit_for_every_started_frame(samples, frames):
    model = random_model()
    codes = model.encode(noise(2, 1, samples)).audio_codes
    assert codes.shape == (2, 1, frames) and codes.dtype == torch.int64
    assert model.get_encoded_length(samples) == frames
    assert model.get_encoded_length(torch.tensor([samples])).tolist() == [frames]


def test_encode_takes_and_returns_what_mimi_does():
    model = random_model()
    values, mask = noise(2, 1, 3000), torch.ones(2, 3000, dtype=torch.int32)
    mask[1, 1280:] = 0
    codes = model.encode(values, mask, num_quantizers=1).audio_codes
    as_tuple = model.encode(values, mask[:, None], return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], codes)
    assert torch.equal(codes[1, :, :1], model.encode(values[1:, :, :1280]).audio_codes[0])
    assert model.get_audio_codes_mask(mask).tolist() == [[True, True, True], [True, False, False]]
    with pytest.raises(ValueError, match="has 1 codebook, but num_quantizers=8"):
        model.encode(values, num_quantizers=8)


def test_the_input_is_left_as_it_was():
    model = random_model()
    values, mask = noise(1, 1, 3000), torch.ones(1, 3000)
    mask[0, 2000:] = 0
    copies = values.clone(), mask.clone()
    model.encode(values, mask)
    assert torch.equal(values, copies[0]) and torch.equal(mask, copies[1])


# -- waveforms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"hop_length": 320}, {"inner_hop_length": 1280, "window_length": 1280, "n_fft": 2048}]
)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_decoding_gives_whole_frames_for_every_setting(settings, frames):
    model = random_model(**settings)
    values = model.decode(torch.arange(frames).expand(2, 1, frames)).audio_values
    assert values.shape == (2, 1, frames * model.config.hop_length)
    assert torch.isfinite(values).all()


def test_decoding_is_deterministic_and_draws_no_random_numbers():
    model, codes = random_model(), torch.tensor([[[3, 3, 7, 1]]])
    state = torch.get_rng_state()
    first, again = (model.decode(codes).audio_values, model.decode(codes, return_dict=False)[0])
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_unit_sounds_like_its_spectrum():
    """Two units whose spectra are a low and a high band: the decoded halves have their energy there."""
    model = random_model(num_units=2)
    silence = math.log(1e-5)
    model.centroid_mels.fill_(silence)
    model.centroid_mels[0, 8:12] = 3.0
    model.centroid_mels[1, 28:32] = 3.0
    edges = torchaudio.functional.melscale_fbanks(257, 50.0, 8000.0, 40, 16000)
    centers = edges.argmax(0) * 16000 / 512  # Hz of each filter
    values = model.decode(torch.tensor([[[0] * 10 + [1] * 10]])).audio_values[0, 0]
    for unit, part in enumerate((values[:12000], values[-12000:])):
        spectrum = torch.fft.rfft(part * torch.hann_window(12000)).abs().square()
        peak = spectrum.argmax().item() * 16000 / 12000
        low, high = (centers[7], centers[12]) if unit == 0 else (centers[27], centers[32])
        assert low < peak < high
        inside = slice(int(low * 12000 / 16000), int(high * 12000 / 16000))
        assert spectrum[inside].sum() > 0.95 * spectrum.sum()


def test_decoded_power_is_the_units_power():
    """A unit with the spectrum of a noise gives a waveform with the noise's mel powers, within 3 dB."""
    model = random_model(num_units=1)
    log_mels = model.spectral_features(noise(1, 1, 64000))[1][0].mean(0)
    model.centroid_mels[0] = log_mels
    waveform = model.decode(torch.zeros(1, 1, 20, dtype=torch.long)).audio_values
    decoded = model.spectral_features(waveform)[1][0, 2:-2].exp().mean(0).log()
    assert (decoded - log_mels).abs().mean() < math.log(2)


def test_a_decoded_clip_stays_within_full_scale_and_the_others_keep_their_level():
    model = random_model(num_units=2)
    model.centroid_mels.fill_(-4.0)
    model.centroid_mels[0, 10] = 9.0  # louder than a sine of full scale
    both = model.decode(torch.tensor([[[0] * 10], [[1] * 10]])).audio_values
    assert both[0].abs().max().item() == pytest.approx(1.0)
    assert both[1].abs().max() < 0.5
    model.centroid_mels[0, 10] = 10.0
    again = model.decode(torch.tensor([[[0] * 10], [[1] * 10]])).audio_values
    assert again[0].abs().max().item() == pytest.approx(1.0)
    torch.testing.assert_close(again[1], both[1])


def test_a_padding_mask_cuts_the_waveform():
    model = random_model()
    values = model.decode(torch.tensor([[[3, 3, 7]]])).audio_values
    cut = model.decode(torch.tensor([[[3, 3, 7]]]), padding_mask=torch.ones(1, 3000)).audio_values
    assert torch.equal(cut, values[..., :3000])


@pytest.mark.parametrize("codes", [[[[0, 16]]], [[[-1, 2]]]])
def test_tokens_that_are_no_units_cannot_be_decoded(codes):
    with pytest.raises(ValueError, match=r"audio_codes must lie in 0\.\.15"):
        random_model().decode(torch.tensor(codes))
    with pytest.raises(ValueError, match=r"must be \[batch, 1, frames\], got \(1, 2, 3\)"):
        random_model().decode(torch.zeros(1, 2, 3, dtype=torch.long))


def test_forward_encodes_and_decodes():
    model, values = random_model(), noise(1, 1, 3000)
    output = model(values)
    assert torch.equal(output.audio_codes, model.encode(values).audio_codes)
    assert torch.equal(output.audio_values, model.decode(output.audio_codes).audio_values[..., :3000])


def test_deduplicated_units_get_their_mean_lengths_back():
    model = random_model(num_units=3)
    model.mean_run_length.copy_(torch.tensor([1.0, 2.5, 1.4]))
    # Ends at 2.5, 3.5, 6.0 and 7.4 frames, rounded (halves to even).
    assert model.expand_runs(torch.tensor([1, 0, 1, 2])).tolist() == [1, 1, 0, 0, 1, 1, 2]
    assert model.expand_runs(torch.zeros(0, dtype=torch.long)).tolist() == []


# -- checkpoints ---------------------------------------------------------------------------------------------


def fitted_like_model():
    model = random_model(normalization="global", log_floor=1e-4, delta_rate="frame", duration_penalty=0.25)
    model.feature_mean.copy_(noise(39, seed=1))
    model.feature_std.copy_(noise(39, seed=2).abs() + 1)
    model.centroid_mels.copy_(noise(16, 40, seed=3))
    model.mean_run_length.copy_(noise(16, seed=4).abs() + 1)
    model.quantization_error.fill_(12.3)
    model.config.codebook_digest = model.codebook_digest()
    return model


def test_what_is_saved_comes_back(tmp_path):
    model = fitted_like_model()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == BUFFERS
    loaded = ClsiUnitsModel.from_pretrained(tmp_path)
    assert not loaded.training
    for name in BUFFERS:
        assert torch.equal(getattr(loaded, name), getattr(model, name))
    assert (loaded.config.log_floor, loaded.config.delta_rate) == (1e-4, "frame")
    assert torch.equal(
        loaded.encode(noise(1, 1, 9000)).audio_codes, model.encode(noise(1, 1, 9000)).audio_codes
    )


def test_a_random_codebook_has_no_digest_and_loads(tmp_path):
    model = random_model()
    assert model.config.codebook_digest is None
    model.save_pretrained(tmp_path)
    assert torch.equal(ClsiUnitsModel.from_pretrained(tmp_path).centroids, model.centroids)


@pytest.mark.parametrize("name", ["centroids", "feature_mean", "feature_std", "quantization_error"])
def test_another_codebook_than_the_configs_is_refused(tmp_path, name):
    fitted_like_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"SHA-256 .* but its config.json expects"):
        ClsiUnitsModel.from_pretrained(tmp_path)


def test_the_codebook_is_never_rounded(tmp_path):
    model = fitted_like_model()
    model.save_pretrained(tmp_path)
    loaded = ClsiUnitsModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded.centroids, model.centroids)
    assert torch.equal(loaded.quantization_error, model.quantization_error)


def test_a_checkpoint_loads_where_hf_clsi_is_not_installed(tmp_path):
    import hf_clsi  # noqa: F401  importing registers: the checkpoint then carries its code

    model = fitted_like_model()
    model.save_pretrained(tmp_path / "units")
    values = noise(1, 1, 9000)
    np.save(tmp_path / "values.npy", values.numpy())
    program = """
import sys
sys.modules["hf_clsi"] = None
import numpy as np, torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization
values = torch.from_numpy(np.load("values.npy"))
config = AutoConfig.from_pretrained("units", trust_remote_code=True)
assert config.frame_rate == 12.5 and type(config).__module__.startswith("transformers_modules")
for auto in (AutoModel, AutoModelForAudioTokenization):
    model = auto.from_pretrained("units", trust_remote_code=True)
    codes = model.encode(values).audio_codes
    print(codes.flatten().tolist(), tuple(model.decode(codes).audio_values.shape))
model.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True)
print(again.encode(values).audio_codes.flatten().tolist())
"""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_MODULES_CACHE", None)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,  # the output says more than the exit code
    )
    assert result.returncode == 0, result.stderr
    units = model.encode(values).audio_codes.flatten().tolist()
    assert result.stdout.splitlines() == [f"{units} (1, 1, 10240)"] * 2 + [str(units)]
