"""Speech becomes a codebook of units: Lloyd's k-means on the embedded tokenizer's features.

Cost: one pass of feature extraction (two if the speech has more frames than `max_frames`), then per iteration
one product of the kept frames with the codebook. Memory holds at most about twice `max_frames` frames.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from tqdm.auto import tqdm

from ..configuration_clsi_units import ClsiUnitsConfig
from ..modeling_clsi_units import SCORES_PER_BLOCK, SMALLEST_DEVIATION, ClsiUnitsModel, nearest
from .runs import run_lengths

START_FRAMES_PER_UNIT = 100  # frames among which k-means++ looks for starting centers
Waveforms = Iterable[np.ndarray] | Callable[[], Iterator[np.ndarray]]


def fit_units(
    waveforms: Waveforms,
    config: ClsiUnitsConfig,
    seed: int,
    num_iterations: int = 100,
    tolerance: float = 1e-5,
    max_frames: int = 1_000_000,
    progress: bool = True,
) -> ClsiUnitsModel:
    """Fit the units of `config` on speech alone.

    Args:
        waveforms: mono float32 waveforms [n] at `config.sampling_rate`, as a list or anything else that can
            be iterated over again, or a function that returns a fresh iterator.
        config: the tokenizer to fit; it is copied, and the copy gets the codebook's digest.
        seed: of the sample of frames and of the starting centers. Same speech, config and seed: same units.
        num_iterations: at most this many iterations of Lloyd's algorithm.
        tolerance: stop once the mean squared distance falls by less than this fraction.
        max_frames: clusters are fitted on a uniform sample of at most this many frames.
        progress: show bars.

    Returns:
        A ClsiUnitsModel in eval mode, with the mean squared distance of the (sampled) frames from their
        nearest centroids, and with the mean log-mel spectrum of every unit (for `decode`) and its mean run
        length, both over all of the speech and for the units that `encode` gives, so after any duration
        penalty. A unit that no frame uses keeps the overall mean spectrum and length 1.

    Raises:
        ValueError: fewer frames than units, an iterator that is spent after one pass, or a waveform that is
            empty, not one-dimensional, or not finite (with its index).
    """
    if not callable(waveforms) and iter(waveforms) is waveforms:
        raise ValueError(
            "waveforms is an iterator, which can be read only once; pass a list or a function that returns a "
            "fresh one."
        )
    if max_frames < config.num_units:
        raise ValueError(f"max_frames must be at least num_units = {config.num_units}, got {max_frames}.")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # a new model draws centroids from the caller's global generator
        model = ClsiUnitsModel(copy.deepcopy(config)).eval()
    model.config.codebook_digest = None

    # Features of every clip, normalized by the clip where the config says so (the buffers are still 0 and 1).
    # They are kept until there are more than max_frames; then only the sample is.
    clips: list[tuple[torch.Tensor, torch.Tensor]] | None = []
    sample = _Sample(max_frames, generator)
    total, square = torch.zeros(2, config.feature_size, dtype=torch.float64)
    for features, log_mels in _clips(model, waveforms, progress, "features"):
        sample.add(features)
        total += features.sum(0, dtype=torch.float64)
        square += features.double().square().sum(0)
        if clips is not None:
            clips.append((features, log_mels))
            if sample.seen > max_frames:
                clips = None
    if sample.seen < config.num_units:
        raise ValueError(
            f"{sample.seen} frames are too few for {config.num_units} units: give more speech (one frame is "
            f"{1 / config.frame_rate:g} s) or fewer units."
        )

    if config.normalization in ("global", "utterance_mean"):
        mean = total / sample.seen
        deviation = (square / sample.seen - mean.square()).clamp(min=0).sqrt()
        if config.normalization == "global":
            model.feature_mean.copy_(mean)
        model.feature_std.copy_(deviation.clamp(min=SMALLEST_DEVIATION))

    def scale(features: torch.Tensor) -> torch.Tensor:
        return (features - model.feature_mean) / model.feature_std

    points = scale(sample.frames())
    centers = lloyd(
        points, start_centers(points, config.num_units, generator), num_iterations, tolerance, progress
    )
    model.centroids.copy_(centers)
    model.quantization_error.copy_(mean_squared_distance(points, centers))

    counts, runs = torch.zeros(2, config.num_units, dtype=torch.float64)
    spectra = torch.zeros(config.num_units, config.num_mel_bins, dtype=torch.float64)
    if clips is None:  # once more from the waveforms, now normalized by the new feature_mean and feature_std
        scaled = _clips(model, waveforms, progress, "spectra of the units")
    else:
        scaled = ((scale(features), log_mels) for features, log_mels in clips)
    for features, log_mels in scaled:
        units = model.features_to_units(features[None])[0]
        spectra.index_add_(0, units, log_mels.double())
        counts += torch.bincount(units, minlength=config.num_units)
        values, _ = run_lengths(units.numpy())
        runs += torch.from_numpy(np.bincount(values, minlength=config.num_units))
    overall = spectra.sum(0) / counts.sum()
    used = counts > 0
    model.centroid_mels.copy_(torch.where(used[:, None], spectra / counts.clamp(min=1)[:, None], overall))
    model.mean_run_length.copy_(torch.where(used, counts / runs.clamp(min=1), 1.0))
    model.config.codebook_digest = model.codebook_digest()
    return model


def start_centers(points: torch.Tensor, num_centers: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007) on a uniform sample of the points: [n, D] -> [K, D].

    Each next center is a point drawn with probability proportional to its squared distance from the centers
    so far.
    """
    size = min(len(points), START_FRAMES_PER_UNIT * num_centers)
    points = points[torch.randperm(len(points), generator=generator)[:size]]
    chosen = torch.zeros(num_centers, dtype=torch.long)  # the first is points[0], already random
    distance = (points - points[0]).square().sum(1)
    for index in range(1, num_centers):
        # Cumulative sums in float64, since float32 sums of many distances are too coarse to draw from.
        cumulative = distance.cumsum(0, dtype=torch.float64)
        if cumulative[-1] > 0:
            draw = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
            chosen[index] = torch.searchsorted(cumulative, draw, right=True).clamp(max=size - 1)
        else:  # fewer different points than centers: the rest are copies that no point will choose
            chosen[index] = index
        distance = torch.minimum(distance, (points - points[chosen[index]]).square().sum(1))
    return points[chosen]


def lloyd(
    points: torch.Tensor, centers: torch.Tensor, num_iterations: int, tolerance: float, progress: bool = False
) -> torch.Tensor:
    """Lloyd's algorithm: points [n, D], starting centers [K, D] -> centers [K, D].

    A center that no point chooses stays where it is. Stops after `num_iterations`, or once the mean squared
    distance falls by less than the fraction `tolerance`.

    >>> lloyd(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([[0.0], [9.0], [50.0]]), 10, 0.0).flatten()
    tensor([ 1.,  9., 50.])
    """
    block = max(1, SCORES_PER_BLOCK // len(centers))
    previous = None  # the first iteration has nothing to compare with, so it never stops
    bar = tqdm(range(num_iterations), desc="k-means", disable=not progress)
    for _ in bar:
        sums = torch.zeros(centers.shape, dtype=torch.float64)
        counts = torch.zeros(len(centers), dtype=torch.float64)
        error = 0.0
        for part in points.split(block):
            index = nearest(part, centers)
            error += (part - centers[index]).square().sum(dtype=torch.float64).item()
            sums.index_add_(0, index, part.double())
            counts += torch.bincount(index, minlength=len(centers))
        means = sums / counts.clamp(min=1)[:, None]
        centers = torch.where(counts[:, None] > 0, means, centers).to(points.dtype)
        bar.set_postfix(mean_squared_distance=f"{error / len(points):.4f}")
        if previous is not None and previous - error <= tolerance * previous:
            break
        previous = error
    bar.close()
    return centers


def mean_squared_distance(points: torch.Tensor, centers: torch.Tensor) -> float:
    """Points [n, D] from the nearest of the centers [K, D], in blocks of points.

    >>> mean_squared_distance(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([[1.0], [9.0]]))
    0.6666666666666666
    """
    total = 0.0
    for part in points.split(max(1, SCORES_PER_BLOCK // len(centers))):
        total += (part - centers[nearest(part, centers)]).square().sum(dtype=torch.float64).item()
    return total / len(points)


def _clips(
    model: ClsiUnitsModel, waveforms: Waveforms, progress: bool, what: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One (features [F, D], log_mels [F, M]) per waveform, the features normalized as the model stands."""
    source = waveforms() if callable(waveforms) else waveforms
    for index, waveform in enumerate(tqdm(source, desc=what, unit="clip", disable=not progress)):
        waveform = torch.as_tensor(waveform, dtype=torch.float32)
        if waveform.ndim != 1:
            raise ValueError(
                f"Waveform {index} has shape {tuple(waveform.shape)}; expected mono samples [n]."
            )
        try:
            features, log_mels, mask = model.spectral_features(waveform[None, None])
        except ValueError as error:
            raise ValueError(f"Waveform {index} cannot be used: {error}") from error
        yield model.normalize(features, mask)[0], log_mels[0]


class _Sample:
    """A uniform sample without replacement of at most `size` of the frames that go by."""

    def __init__(self, size: int, generator: torch.Generator):
        self.size, self.generator, self.seen = size, generator, 0
        self._kept: list[torch.Tensor] = []
        self._keys: list[torch.Tensor] = []
        self._held = 0

    def add(self, frames: torch.Tensor) -> None:
        self._kept.append(frames)
        self._keys.append(torch.rand(len(frames), generator=self.generator, dtype=torch.float64))
        self.seen += len(frames)
        self._held += len(frames)
        if self._held > 2 * self.size:
            self._prune()

    def _prune(self) -> None:
        """Keep the frames with the smallest keys, as if all had been sorted by a random key at the end."""
        keys, kept = torch.cat(self._keys), torch.cat(self._kept)
        if len(keys) > self.size:
            smallest = keys.topk(self.size, largest=False).indices.sort().values
            keys, kept = keys[smallest], kept[smallest]
        self._keys, self._kept, self._held = [keys], [kept], len(keys)

    def frames(self) -> torch.Tensor:
        self._prune()
        return self._kept[0]
