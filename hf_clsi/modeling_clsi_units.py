"""Waveforms become units (cepstra, nearest centroid), and units a waveform (centroid spectra, Griffin-Lim).

Encoding costs about one FFT per `inner_hop_length` samples and one product with the codebook per frame; with
a duration penalty, also a step of dynamic programming per frame, for all clips and units of a batch at once.

Letters: B clips, T samples, F frames (units), S inner steps (S = F * features_per_frame), M mel filters,
D feature dimensions, K units.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
import torchaudio.functional as audio
from torch.nn import functional
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_clsi_units import ClsiUnitsConfig

SPECTRA_PER_BLOCK = 8192  # spectra held at once: 257 bins * 4 bytes * 8192 = 8 MB, which stays near the cache
SCORES_PER_BLOCK = 1 << 24  # entries of the frame-by-unit score matrix held at once: 64 MB
SMALLEST_DEVIATION = 1e-3  # a clip that does not change (silence) must not have its rounding noise blown up


@dataclass
class ClsiUnitsEncoderOutput(ModelOutput):
    """audio_codes: [B, 1, F] int64, one unit per frame."""

    audio_codes: torch.LongTensor | None = None


@dataclass
class ClsiUnitsDecoderOutput(ModelOutput):
    """audio_values: [B, 1, F * hop_length] float32."""

    audio_values: torch.FloatTensor | None = None


@dataclass
class ClsiUnitsOutput(ModelOutput):
    """audio_codes: [B, 1, F] int64; audio_values: [B, 1, T] float32, what the units bring back."""

    audio_codes: torch.LongTensor | None = None
    audio_values: torch.FloatTensor | None = None


class ClsiUnitsModel(PreTrainedAudioTokenizerBase):
    """A small audio tokenizer that takes and returns what MimiModel's `encode` and `decode` do.

    A frame of `hop_length` samples is described by MFCCs (Davis and Mermelstein 1980) and their differences;
    its unit is the nearest of K centroids, like the spectral baseline of textless language modeling (Lakhotia
    et al. 2021, "On Generative Spoken Language Modeling from Raw Audio"), or, with `duration_penalty` above
    0, the one on the best path through the whole clip (Kamper and van Niekerk 2021).
    `hf_clsi.units.kmeans.fit_units` fits the centroids; a model made from a config alone has random ones.

    Every feature of a clip depends only on the clip itself, zero-padded to whole frames, so that a clip gives
    the same units alone and in a batch. Clips are padded on the right, with a `padding_mask`.

    Example:

    >>> model = ClsiUnitsModel(ClsiUnitsConfig(num_units=16))
    >>> codes = model.encode(torch.zeros(1, 1, 3000)).audio_codes
    >>> tuple(codes.shape), tuple(model.decode(codes).audio_values.shape)
    ((1, 1, 3), (1, 1, 3840))
    """

    config: ClsiUnitsConfig
    config_class = ClsiUnitsConfig
    base_model_prefix = "units"
    main_input_name = "input_values"
    input_modalities = "audio"
    # Rounded centroids are other centroids: units made before and after would not be the same ones.
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = [
        "centroids",
        "feature_mean",
        "feature_std",
        "centroid_mels",
        "mean_run_length",
        "quantization_error",
    ]

    def __init__(self, config: ClsiUnitsConfig):
        super().__init__(config)
        units, size = config.num_units, config.feature_size
        self.register_buffer("centroids", torch.zeros(units, size))  # [K, D], in normalized features
        self.register_buffer("feature_mean", torch.zeros(size))  # [D]
        self.register_buffer("feature_std", torch.ones(size))  # [D]
        self.register_buffer("centroid_mels", torch.zeros(units, config.num_mel_bins))  # [K, M], log of power
        self.register_buffer("mean_run_length", torch.ones(units))  # [K], frames a unit lasts
        # Mean squared distance of training frames from their nearest centroids, the unit of duration_penalty.
        self.register_buffer("quantization_error", torch.ones(()))
        # Window, filters and cosines follow from the config; made on first use, on the device in use.
        self._analysis: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.normal_(self.centroids)
            init.zeros_(self.feature_mean)
            init.ones_(self.feature_std)
            init.zeros_(self.centroid_mels)
            init.ones_(self.mean_run_length)
            init.ones_(self.quantization_error)

    # The base class asks the parameters, and this model has buffers only.
    @property
    def device(self) -> torch.device:
        return self.centroids.device

    @property
    def dtype(self) -> torch.dtype:
        return self.centroids.dtype

    # -- waveform -> features --------------------------------------------------------------------------------

    def get_encoded_length(self, input_length):
        """Frames of a clip of `input_length` samples (int or tensor): the last frame may be incomplete."""
        return -(-input_length // self.config.hop_length)

    def get_audio_codes_mask(self, padding_mask: torch.Tensor) -> torch.Tensor:
        """padding_mask [B, T] or [B, 1, T] -> bool [B, F], true on frames with at least one sample."""
        lengths = self._lengths(padding_mask)
        frames = self.get_encoded_length(padding_mask.shape[-1])
        steps = torch.arange(frames, device=lengths.device)
        return steps < self.get_encoded_length(lengths)[:, None]

    @torch.no_grad()
    def spectral_features(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Describe every frame, before any normalization.

        Args:
            input_values: [B, 1, T] float, at `config.sampling_rate`.
            padding_mask: [B, T] or [B, 1, T], 1 on samples and 0 on the padding to their right; None: no
                padding.

        Returns:
            features [B, F, D], log_mels [B, F, M] (mean over the frame), frame_mask bool [B, F]. What stands
            where frame_mask is false means nothing.

        Raises:
            ValueError: another shape, no samples, NaN or infinite samples, or padding not on the right.
        """
        config = self.config
        if input_values.ndim != 3 or input_values.shape[1] != 1:
            raise ValueError(
                f"input_values must be [batch, 1, samples], got {tuple(input_values.shape)}; a mono waveform "
                "of n samples becomes waveform[None, None]."
            )
        samples = input_values[:, 0].to(torch.float32)
        batch, length = samples.shape
        if length == 0:
            raise ValueError("input_values hold no samples.")
        if padding_mask is None:
            lengths = torch.full((batch,), length, device=samples.device)
        else:
            if tuple(padding_mask.shape) not in ((batch, length), (batch, 1, length)):
                raise ValueError(
                    f"padding_mask must be [{batch}, {length}] or [{batch}, 1, {length}], "
                    f"got {tuple(padding_mask.shape)}."
                )
            lengths = self._lengths(padding_mask.to(samples.device))
            inside = torch.arange(length, device=samples.device) < lengths[:, None]
            samples = torch.where(inside, samples, samples.new_zeros(()))
        if not torch.isfinite(torch.stack(torch.aminmax(samples))).all():  # a NaN anywhere makes both NaN
            raise ValueError("input_values hold NaN or infinite samples.")

        frames = self.get_encoded_length(length)
        frame_lengths = self.get_encoded_length(lengths)  # [B]
        log_mels = self._log_mels(samples, frames)  # [B, S, M]
        cepstra = log_mels @ self._constants()[2]  # [B, S, num_mfcc]

        if config.delta_rate == "inner":
            features = self._frame_means(
                self._with_deltas(cepstra, frame_lengths * config.features_per_frame), frames
            )
        else:
            features = self._with_deltas(self._frame_means(cepstra, frames), frame_lengths)
        frame_mask = torch.arange(frames, device=samples.device) < frame_lengths[:, None]
        return features, self._frame_means(log_mels, frames), frame_mask

    def normalize(self, features: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Features [B, F, D] as `spectral_features` gives them -> normalized as the config says."""
        kind = self.config.normalization
        if kind in ("utterance", "utterance_mean"):
            weights = (frame_mask / frame_mask.sum(-1, keepdim=True))[..., None]  # [B, F, 1]
            features = features - (features * weights).sum(1, keepdim=True)
            if kind == "utterance":
                deviation = (features.square() * weights).sum(1, keepdim=True).sqrt()
                return features / deviation.clamp(min=SMALLEST_DEVIATION)
        return (features - self.feature_mean) / self.feature_std

    def extract_features(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Waveforms [B, 1, T] -> normalized features [B, F, D], the space of the centroids."""
        features, _, frame_mask = self.spectral_features(input_values, padding_mask)
        return self.normalize(features, frame_mask)

    # -- features -> units -> waveform -----------------------------------------------------------------------

    def quantize(self, features: torch.Tensor) -> torch.Tensor:
        """Normalized features [..., D] -> nearest units [...] int64 (Euclidean; of two, the lower)."""
        flat = features.reshape(-1, features.shape[-1])
        return nearest(flat, self.centroids).reshape(features.shape[:-1])

    def features_to_units(
        self, features: torch.Tensor, frame_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalized features [B, F, D] of whole clips -> units [B, F] int64, as `encode` gives them.

        Nearest centroids, or with `duration_penalty` above 0 the units u of each clip that minimize
        sum_t |x_t - c_(u_t)|^2 / quantization_error + duration_penalty * (changes of unit). Frames where
        frame_mask (bool [B, F], its zeros on the right) is false do not count, and their units mean nothing.
        """
        penalty = self.config.duration_penalty * self.quantization_error.item()
        if penalty > 0:
            return steadiest(features, self.centroids, penalty, frame_mask)
        return self.quantize(features)

    @can_return_tuple
    def encode(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> ClsiUnitsEncoderOutput:
        """Waveforms [B, 1, T] -> units [B, 1, F], F = ceil(T / hop_length).

        Args:
            input_values, padding_mask: as in `spectral_features`. Units of a shorter clip past its own
                `get_encoded_length` mean nothing: cut them.
            num_quantizers: None or 1, the one codebook there is (MimiModel takes this argument).
            return_dict: False for a plain tuple.
        """
        if num_quantizers not in (None, 1):
            raise ValueError(
                f"ClsiUnitsModel has 1 codebook, but num_quantizers={num_quantizers} was asked for."
            )
        features, _, frame_mask = self.spectral_features(input_values, padding_mask)
        units = self.features_to_units(self.normalize(features, frame_mask), frame_mask)
        return ClsiUnitsEncoderOutput(audio_codes=units[:, None])

    @can_return_tuple
    @torch.no_grad()
    def decode(
        self, audio_codes: torch.Tensor, padding_mask: torch.Tensor | None = None, num_iterations: int = 32
    ) -> ClsiUnitsDecoderOutput:
        """Units [B, 1, F] -> waveforms [B, 1, F * hop_length]; the same units always give the same samples.

        Each unit stands for its mean log-mel spectrum, interpolated between the frame centers; mel powers
        become linear magnitudes by the pseudo-inverse of the filters, and Griffin and Lim (1984) find phases,
        starting from zero. Pitch is lost: units keep the envelope only, so the voice is robotic. The level is
        that of the training speech, except that a clip which would go beyond -1..1 (where audio files end)
        is scaled down until it does not.

        Args:
            padding_mask: [B, T] or [B, 1, T]; its T cuts the result to T samples, as MimiModel does.
            num_iterations: Griffin-Lim iterations.
        """
        config = self.config
        if audio_codes.ndim != 3 or audio_codes.shape[1] != 1 or audio_codes.shape[2] == 0:
            raise ValueError(f"audio_codes must be [batch, 1, frames], got {tuple(audio_codes.shape)}.")
        low, high = int(audio_codes.min()), int(audio_codes.max())
        if low < 0 or high >= config.num_units:
            raise ValueError(
                f"audio_codes must lie in 0..{config.num_units - 1}, got {low}..{high}; turn merged tokens "
                "back into units first, and drop special ones."
            )
        frames = audio_codes.shape[2]
        samples = frames * config.hop_length
        # Three quarters of overlap is what Griffin-Lim wants. Steps before the start and after the end hold
        # the outermost spectra and are cut afterwards, so that the borders are like any other place.
        step = max(n for n in range(1, max(1, config.window_length // 4) + 1) if config.hop_length % n == 0)
        margin = -(-config.n_fft // step)
        steps = torch.arange(-margin, samples // step + margin + 1, device=self.device)
        position = (steps * (step / config.hop_length) - 0.5).clamp(0, frames - 1)  # in frame centers
        left = position.floor().long().clamp(max=max(frames - 2, 0))
        mels = self.centroid_mels[audio_codes[:, 0].to(self.device)]  # [B, F, M]
        mels = torch.lerp(
            mels[:, left], mels[:, (left + 1).clamp(max=frames - 1)], (position - left)[:, None]
        )
        window, filters, _ = self._constants()
        powers = (mels.exp() - config.log_floor).clamp(min=0) @ torch.linalg.pinv(filters)  # [B, steps, bins]
        waveforms = audio.griffinlim(
            powers.clamp(min=0).sqrt().transpose(1, 2),
            window=window,
            n_fft=config.n_fft,
            hop_length=step,
            win_length=config.window_length,
            power=1.0,
            n_iter=num_iterations,
            momentum=0.99,
            length=None,
            rand_init=False,
        )
        waveforms = waveforms[:, margin * step : margin * step + samples]
        waveforms = waveforms / waveforms.abs().amax(-1, keepdim=True).clamp(min=1)
        if padding_mask is not None:
            waveforms = waveforms[:, : padding_mask.shape[-1]]
        return ClsiUnitsDecoderOutput(audio_values=waveforms[:, None])

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        audio_codes: torch.Tensor | None = None,
    ) -> ClsiUnitsOutput:
        """Encode (unless `audio_codes` are given) and decode: [B, 1, T] -> units and [B, 1, T]."""
        if audio_codes is None:
            audio_codes = self.encode(input_values, padding_mask, return_dict=True).audio_codes
        audio_values = self.decode(audio_codes, return_dict=True).audio_values
        return ClsiUnitsOutput(
            audio_codes=audio_codes, audio_values=audio_values[..., : input_values.shape[-1]]
        )

    def expand_runs(self, units: torch.Tensor) -> torch.Tensor:
        """Deduplicated units [n] -> units [m], each for as many frames as it lasted in training speech.

        Fractions are carried over, so that the whole lasts `mean_run_length[units].sum()` frames, rounded.
        """
        ends = self.mean_run_length[units].clamp(min=1).double().cumsum(0).round().long()
        return torch.repeat_interleave(units, ends.diff(prepend=ends.new_zeros(1)))

    # -- saving and loading ----------------------------------------------------------------------------------

    def codebook_digest(self) -> str:
        """SHA-256 (hex) of what decides a unit besides the config.

        That is centroids, feature_mean, feature_std and quantization_error, as little-endian float32.
        """
        digest = hashlib.sha256()
        for buffer in (self.centroids, self.feature_mean, self.feature_std, self.quantization_error):
            digest.update(buffer.to("cpu", torch.float32).numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`, in eval mode.

        Raises:
            RuntimeError: the codebook is not the one that the config was written for.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info=True
        expected = model.config.codebook_digest
        if expected is not None and model.codebook_digest() != expected:
            raise RuntimeError(
                f"The codebook of {pretrained_model_name_or_path} has SHA-256 {model.codebook_digest()}, but "
                f"its config.json expects {expected}: weights and config come from different checkpoints, so "
                "the units are not those that a language model learned. Download or fit the tokenizer again."
            )
        return loaded

    def save_pretrained(self, save_directory, **kwargs):
        """As `PreTrainedModel.save_pretrained`; the checkpoint also loads where hf_clsi is not installed."""
        # transformers writes the one Auto class that auto.py registers; AutoModel has to find the class too.
        module = type(self).__module__.rpartition(".")[2]
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": f"{module}.{type(self).__name__}",
        }
        return super().save_pretrained(save_directory, **kwargs)

    # -- parts -----------------------------------------------------------------------------------------------

    @staticmethod
    def _lengths(padding_mask: torch.Tensor) -> torch.Tensor:
        """padding_mask [B, T] or [B, 1, T] -> samples of each clip [B]."""
        mask = padding_mask.reshape(padding_mask.shape[0], -1).bool()
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "padding_mask must be ones followed by zeros with at least one 1 in every row: pad clips on "
                "the right."
            )
        return mask.sum(-1)

    def _constants(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hann window [window_length], mel filters [bins, M], cosines [M, num_mfcc]."""
        if self.device not in self._analysis:
            config = self.config
            window = torch.hann_window(config.window_length)
            filters = audio.melscale_fbanks(
                config.n_fft // 2 + 1,
                config.min_frequency,
                config.highest_frequency,
                config.num_mel_bins,
                config.sampling_rate,
            )
            cosines = audio.create_dct(config.num_mfcc, config.num_mel_bins, norm="ortho")
            self._analysis[self.device] = tuple(part.to(self.device) for part in (window, filters, cosines))
        return self._analysis[self.device]

    def _log_mels(self, samples: torch.Tensor, frames: int) -> torch.Tensor:
        """[B, T], zero past each clip's end -> [B, S, M]; step i is centered on (i + 1/2) inner hops."""
        config = self.config
        window, filters, _ = self._constants()
        hop = config.inner_hop_length
        steps = frames * config.features_per_frame
        left = (config.n_fft - hop) // 2  # where the hop is longer than the FFT, this is negative and crops
        right = (steps - 1) * hop + config.n_fft - left - samples.shape[1]
        padded = functional.pad(samples, (left, right))
        block = max(1, SPECTRA_PER_BLOCK // samples.shape[0])
        parts = []
        for start in range(0, steps, block):
            stop = min(start + block, steps)
            spectra = torch.stft(
                padded[:, start * hop : (stop - 1) * hop + config.n_fft],
                config.n_fft,
                hop_length=hop,
                win_length=config.window_length,
                window=window,
                center=False,
                return_complex=True,
            )
            # Much faster than abs() or a sum over a last axis of two.
            powers = spectra.real.square().addcmul_(spectra.imag, spectra.imag)  # [B, bins, steps]
            parts.append((powers.transpose(1, 2) @ filters + config.log_floor).log())
        return torch.cat(parts, 1)

    def _frame_means(self, steps: torch.Tensor, frames: int) -> torch.Tensor:
        """[B, S, n] -> [B, F, n]."""
        return steps.unflatten(1, (frames, self.config.features_per_frame)).mean(2)

    def _with_deltas(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, n, C] of which `lengths` [B] steps count -> [B, n, C * (1 + num_deltas)].

        Past a clip's end its last step is repeated, which is what compute_deltas does at the end of the
        tensor: a clip's differences do not depend on the length of its neighbors in the batch. The second
        differences need the same treatment, since the first ones do not end in a constant.
        """
        last = torch.arange(values.shape[1], device=values.device).minimum(lengths[:, None] - 1)  # [B, n]
        parts = [values]
        for _ in range(self.config.num_deltas):
            held = parts[-1].gather(1, last[..., None].expand_as(values))
            delta = audio.compute_deltas(held.transpose(1, 2), self.config.delta_window)
            parts.append(delta.transpose(1, 2))
        return torch.cat(parts, -1)


def nearest(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Points [n, D], centers [K, D] -> index of the nearest center of each point [n], in blocks of points."""
    offset = centers.square().sum(1) / 2
    block = max(1, SCORES_PER_BLOCK // len(centers))
    # argmin |x - c|^2 = argmax x.c - |c|^2 / 2
    return torch.cat(
        [torch.addmm(offset, part, centers.T, beta=-1).argmax(1) for part in points.split(block)]
        or [torch.zeros(0, dtype=torch.long, device=points.device)]
    )


@torch.no_grad()
def steadiest(
    points: torch.Tensor, centers: torch.Tensor, penalty: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The path through the centers that is near the points and seldom changes, exactly.

    Minimizes sum_t |x_t - c_(u_t)|^2 + penalty * (changes of u). Kamper and van Niekerk (2021) reward a
    segment of n frames with n - 1, which is the same up to a constant. Of equally good paths: the last unit
    is the lowest; going back in time, a unit goes on rather than begins; where it begins, the one before is
    the lowest.

    A change comes from whatever unit is best at the frame before, wherever it leads. So the best unit of
    every frame and the start of its run are all there is to remember: 2 * F numbers a clip, not F * K.

    Args:
        points: [B, F, D].
        centers: [K, D].
        penalty: above 0, a squared distance.
        mask: bool [B, F], true on the frames that count, which come first; None: all count.

    Returns:
        [B, F] int64; a clip's last unit goes on where mask is false.

    >>> points = torch.tensor([[[0.0], [0.6], [0.0], [1.0], [1.0], [1.0]]])
    >>> steadiest(points, torch.tensor([[0.0], [1.0]]), penalty=0.5).tolist()
    [[0, 0, 0, 1, 1, 1]]
    """
    batch, frames, size = points.shape
    offset = centers.square().sum(1)
    cost = points.new_zeros(batch, len(centers))  # of the best path to each unit, above the best of all
    since = torch.zeros(batch, len(centers), dtype=torch.long, device=points.device)  # start of its last run
    least = points.new_empty(batch, 1)
    begins = torch.empty_like(cost, dtype=torch.bool)
    best, start = torch.empty(2, frames, batch, 1, dtype=torch.long, device=points.device)
    block = max(1, SCORES_PER_BLOCK // (batch * len(centers)))
    for first in range(0, frames, block):
        part = points[:, first : first + block].transpose(0, 1)
        # |x|^2 is left out: it is the same for all units.
        scores = torch.addmm(offset, part.reshape(-1, size), centers.T, alpha=-2).unflatten(0, (-1, batch))
        if mask is not None:  # frames without a cost leave the best unit the best: its run goes on to the end
            scores = scores.masked_fill(~mask[:, first : first + block].T[..., None], 0.0)
        for frame, score in enumerate(scores, first):
            # No unit is further behind the best than a change from there.
            torch.gt(cost, penalty, out=begins)
            since.masked_fill_(begins, frame)
            cost.clamp_(max=penalty).add_(score)
            torch.min(cost, 1, keepdim=True, out=(least, best[frame]))
            torch.gather(since, 1, best[frame], out=start[frame])
            cost.sub_(least)  # sums over hours would lose precision
    units = torch.empty(batch, frames, dtype=torch.long)
    for row, bests, starts in zip(units, best[..., 0].T.tolist(), start[..., 0].T.tolist(), strict=True):
        stop = frames
        while stop > 0:
            begin = starts[stop - 1]
            row[begin:stop] = bests[stop - 1]
            stop = begin
    return units.to(points.device)


__all__ = ["ClsiUnitsDecoderOutput", "ClsiUnitsEncoderOutput", "ClsiUnitsModel", "ClsiUnitsOutput"]
