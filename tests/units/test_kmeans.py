"""Fitting units: Lloyd's algorithm on literal points, and a tokenizer fitted on tones."""

import numpy as np
import pytest
import torch

from hf_clsi.configuration_clsi_units import ClsiUnitsConfig
from hf_clsi.units.kmeans import fit_units, lloyd, start_centers

BUFFERS = (
    "centroids",
    "feature_mean",
    "feature_std",
    "centroid_mels",
    "mean_run_length",
    "quantization_error",
)


def small_config(**settings):
    return ClsiUnitsConfig(**{"num_units": 6, "num_deltas": 0, "normalization": "global", **settings})


def melodies(count=12, notes=5, seed=0):
    """Clips of `notes` steady tones of 0.32 s (4 frames at 12.5 Hz) of four pitches, with a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(5120) / 16000
    clips = []
    for _ in range(count):
        pitches = rng.choice([300.0, 800.0, 1800.0, 4000.0], size=notes)
        clip = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in pitches])
        clips.append((clip + 0.001 * rng.standard_normal(len(clip))).astype(np.float32))
    return clips


def noisy_melodies(count):
    random = np.random.default_rng(1)
    return [(clip + 0.05 * random.standard_normal(len(clip))).astype(np.float32) for clip in melodies(count)]


def test_lloyd_finds_the_means_and_leaves_an_unused_center_where_it_was():
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 5.0]])
    start = torch.tensor([[0.0, 0.0], [9.0, 9.0], [50.0, 50.0]])
    centers = lloyd(points, start, num_iterations=10, tolerance=0.0)
    assert centers.tolist() == [[1.0, 0.0], [9.0, 5.0], [50.0, 50.0]]
    assert start.tolist() == [[0.0, 0.0], [9.0, 9.0], [50.0, 50.0]]


def test_lloyd_goes_on_until_nothing_changes():
    # 0 | 1 10 11 first gives the means 0 and 22 / 3; then 0 1 | 10 11.
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert lloyd(points, torch.tensor([[0.0], [1.0]]), 1, 0.0).flatten().tolist() == pytest.approx(
        [0.0, 22 / 3]
    )
    assert lloyd(points, torch.tensor([[0.0], [1.0]]), 10, 0.0).flatten().tolist() == [0.5, 10.5]


@pytest.mark.parametrize(
    ("tolerance", "expected"), [(0.9, [1.0, 6.0]), (0.5, [1.5, 6.5]), (1e-5, [2.0, 7.0])]
)
def test_lloyd_stops_once_the_error_falls_by_less_than_the_tolerance(tolerance, expected):
    # Squared distances from the centers 0 1, 0 5, 1 6, 1.5 6.5, 2 7: 204, 40 (80% less), 25 (38%
    # less), 22.5 (10% less), 20 (11% less). The centers at the stop are the means found last.
    points = torch.arange(10, dtype=torch.float32)[:, None]
    centers = lloyd(points, torch.tensor([[0.0], [1.0]]), num_iterations=10, tolerance=tolerance)
    assert centers.flatten().tolist() == expected


def test_start_centers_are_different_points_drawn_by_the_seed():
    points = torch.arange(200, dtype=torch.float32)[:, None] // 20  # ten values, twenty times each
    draws = [
        start_centers(points, 10, torch.Generator().manual_seed(seed)).flatten().tolist()
        for seed in (0, 0, 1)
    ]
    # A value that is a center already has distance zero, so ten centers are all ten values.
    assert sorted(draws[0]) == [float(value) for value in range(10)]
    assert draws[0] == draws[1] != draws[2]


def test_start_centers_with_fewer_values_than_centers_still_come_out():
    centers = start_centers(torch.zeros(8, 2), 3, torch.Generator().manual_seed(0))
    assert centers.tolist() == [[0.0, 0.0]] * 3


def test_each_tone_gets_units_of_its_own():
    model = fit_units(melodies(), small_config(), seed=0, progress=False)
    time = torch.arange(16000) / 16000
    found = []
    for pitch in (300.0, 800.0, 1800.0, 4000.0):
        codes = model.encode(0.3 * torch.sin(2 * torch.pi * pitch * time)[None, None]).audio_codes
        inner = codes[0, 0, 1:-1].unique().tolist()  # the border frames see the clip begin and end
        assert len(inner) == 1
        found += inner
    assert len(set(found)) == 4


def test_the_same_seed_gives_the_same_tokenizer_and_another_seed_another():
    first, again, other = (fit_units(melodies(), small_config(), seed, progress=False) for seed in (3, 3, 4))
    for name in BUFFERS:
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.config.codebook_digest == again.config.codebook_digest == first.codebook_digest()
    assert first.config.codebook_digest != other.config.codebook_digest


def test_neither_the_config_nor_the_waveforms_nor_the_global_generator_are_touched():
    config, clips = small_config(), melodies(count=3)
    before, copies, state = (config.to_dict(), [clip.copy() for clip in clips], torch.get_rng_state())
    model = fit_units(clips, config, seed=0, progress=False)
    assert config.to_dict() == before and config.codebook_digest is None
    assert model.config is not config and not model.training
    assert all(np.array_equal(clip, copy) for clip, copy in zip(clips, copies, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("normalization", ["none", "global", "utterance", "utterance_mean"])
def test_normalization_statistics_are_those_of_the_training_speech(normalization):
    clips = melodies(count=4)
    config = small_config(normalization=normalization, num_deltas=1)
    model = fit_units(clips, config, seed=0, progress=False)
    features = [model.spectral_features(torch.from_numpy(clip)[None, None])[0][0] for clip in clips]
    if normalization == "utterance_mean":
        features = [clip - clip.mean(0) for clip in features]
    pooled = torch.cat(features).double()
    mean, deviation = pooled.mean(0), pooled.std(0, correction=0).clamp(min=1e-3)
    if normalization in ("none", "utterance"):
        mean, deviation = torch.zeros_like(mean), torch.ones_like(deviation)
    if normalization == "utterance_mean":
        mean = torch.zeros_like(mean)
    torch.testing.assert_close(model.feature_mean.double(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.feature_std.double(), deviation, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 4.0])
def test_spectra_and_run_lengths_of_the_units_are_means_over_the_speech(penalty):
    """Of the units that encode gives, so after any duration penalty."""
    clips = noisy_melodies(count=5)
    config = small_config(hop_length=320, duration_penalty=penalty)
    model = fit_units(clips, config, seed=0, progress=False)
    frames, spectra = [], []
    runs = {unit: [] for unit in range(6)}
    for clip in clips:
        units = model.encode(torch.from_numpy(clip)[None, None]).audio_codes[0, 0].tolist()
        frames += units
        spectra.append(model.spectral_features(torch.from_numpy(clip)[None, None])[1][0])
        start = 0
        for position in range(1, len(units) + 1):
            if position == len(units) or units[position] != units[start]:
                runs[units[start]].append(position - start)
                start = position
    spectra = torch.cat(spectra)
    for unit in set(frames):
        chosen = torch.tensor([frame == unit for frame in frames])
        torch.testing.assert_close(model.centroid_mels[unit], spectra[chosen].mean(0), rtol=1e-4, atol=1e-4)
        assert model.mean_run_length[unit].item() == pytest.approx(np.mean(runs[unit]))
    assert max(map(max, (lengths for lengths in runs.values() if lengths))) > 1


def test_quantization_error_is_the_mean_squared_distance_from_the_nearest_centroid():
    clips = melodies(count=5)
    models = [
        fit_units(clips, small_config(duration_penalty=penalty), seed=0, progress=False)
        for penalty in (0.0, 8.0)
    ]
    plain, penalized = models
    features = [plain.extract_features(torch.from_numpy(clip)[None, None])[0] for clip in clips]
    distances = torch.cdist(torch.cat(features).double(), plain.centroids.double()).square()
    expected = distances.min(1).values.mean().item()
    assert plain.quantization_error.item() == pytest.approx(expected, rel=1e-3)
    assert penalized.quantization_error == plain.quantization_error  # nearest, whatever the penalty
    assert torch.equal(penalized.centroids, plain.centroids)


def test_a_penalty_makes_units_last_longer():
    clips = noisy_melodies(count=6)
    notes = [np.abs(np.fft.rfft(clip.reshape(5, -1))).argmax(1) for clip in clips]  # the pitch of each
    borders = sum(int(np.count_nonzero(np.diff(pitches))) for pitches in notes)
    changes = []
    for penalty in (0.0, 2.0, 8.0):
        config = small_config(hop_length=320, num_units=12, duration_penalty=penalty)
        model = fit_units(clips, config, seed=0, progress=False)
        codes = [model.encode(torch.from_numpy(clip)[None, None]).audio_codes for clip in clips]
        changes.append(sum(int((clip.diff() != 0).sum()) for clip in codes))
    # Nearest centroids flicker inside a note; at a high price little more than the borders is left.
    assert changes[0] > 2 * changes[1] > 2 * changes[2]
    assert borders <= changes[2] < 2 * borders


def test_a_unit_without_frames_keeps_the_mean_spectrum_and_length_one():
    # Silence has one feature vector only, so of the three units one is used.
    model = fit_units([np.zeros(16000, np.float32)], small_config(num_units=3), seed=0, progress=False)
    assert torch.isfinite(model.centroid_mels).all()
    torch.testing.assert_close(model.centroid_mels, torch.full((3, 40), float(np.log(1e-5))))
    assert sorted(model.mean_run_length.tolist()) == [1.0, 1.0, 13.0]


def test_max_frames_fits_on_a_sample_and_still_counts_all_of_the_speech():
    clips = melodies(count=20)  # 400 frames
    whole = fit_units(clips, small_config(), seed=0, progress=False)
    part = fit_units(clips, small_config(), seed=0, max_frames=100, progress=False)
    again = fit_units(lambda: iter(clips), small_config(), seed=0, max_frames=100, progress=False)
    for name in BUFFERS:
        assert torch.equal(getattr(part, name), getattr(again, name))
    torch.testing.assert_close(part.feature_mean, whole.feature_mean)
    assert not torch.equal(part.centroids, whole.centroids)
    units = [part.encode(torch.from_numpy(clip)[None, None]).audio_codes[0, 0] for clip in clips]
    runs = sum(int((clip.diff() != 0).sum()) + 1 for clip in units)
    counts = torch.cat(units).bincount(minlength=6)
    # Frames over mean run length is the number of runs: all 400 frames were counted, not the 100 sampled.
    assert (counts / part.mean_run_length).sum().item() == pytest.approx(runs)


def test_too_little_speech_is_refused():
    with pytest.raises(ValueError, match="4 frames are too few for 6 units"):
        fit_units([np.zeros(5000, np.float32)], small_config(), seed=0, progress=False)
    with pytest.raises(ValueError, match="max_frames must be at least num_units = 6, got 5"):
        fit_units(melodies(), small_config(), seed=0, max_frames=5)


def test_an_iterator_that_can_be_read_only_once_is_refused():
    with pytest.raises(ValueError, match="read only once"):
        fit_units(iter(melodies()), small_config(), seed=0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((2, 400), np.float32), r"shape \(2, 400\)"),
        (np.zeros(0, np.float32), "no samples"),
        (np.full(4000, np.nan, np.float32), "NaN"),
    ],
)
def test_a_bad_waveform_is_named_by_its_index(bad, reason):
    with pytest.raises(ValueError, match=f"Waveform 1 .*{reason}"):
        fit_units([*melodies(count=1), bad], small_config(), seed=0, progress=False)
