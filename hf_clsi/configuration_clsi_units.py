"""Numbers that define the embedded audio tokenizer: waveform -> spectral features -> k-means units."""

import math

from transformers import PreTrainedConfig

NORMALIZATIONS = ("none", "global", "utterance", "utterance_mean")
DELTA_RATES = ("inner", "frame")


class ClsiUnitsConfig(PreTrainedConfig):
    r"""
    Configuration of [`ClsiUnitsModel`]. Lengths are in samples at `sampling_rate` (Hz).

    Rates:
        sampling_rate (`int`, defaults to 16000): Hz of the waveforms that go in and come out.
        hop_length (`int`, defaults to 1280): samples per frame, that is per unit; 1280 at 16 kHz is 12.5 Hz.
        inner_hop_length (`int`, defaults to 160): samples between two spectra. A frame is the mean of the
            `features_per_frame = hop_length / inner_hop_length` spectra inside it; equal to `hop_length`,
            there is one spectrum a frame.

    Spectrum:
        window_length (`int`, defaults to 400): samples of the Hann window of one spectrum.
        n_fft (`int`, defaults to 512): size of the FFT, at least `window_length`.
        num_mel_bins (`int`, defaults to 40): mel filters between `min_frequency` and `max_frequency`.
        min_frequency (`float`, defaults to 50.0): lower edge of the mel filters, Hz.
        max_frequency (`float`, *optional*): their upper edge, Hz; `None` is half the sampling rate.
        log_floor (`float`, defaults to 1e-5): added to the mel power before the logarithm, so that digital
            silence is a finite number and noise far below speech does not count.

    Features:
        num_mfcc (`int`, defaults to 13): cepstral coefficients kept, the energy-like c0 included.
        num_deltas (`int`, defaults to 2): 0, 1 or 2 orders of differences appended: 13, 26 or 39 dimensions.
        delta_window (`int`, defaults to 9): steps over which a difference is fitted, odd, at least 3.
        delta_rate (`str`, defaults to `"inner"`): `"inner"` takes differences of the inner spectra and
            averages them over the frame (how the sound moves inside the frame); `"frame"` takes differences
            between frames (how the frame differs from its neighbors).
        normalization (`str`, defaults to `"utterance"`): `"none"`; `"global"`, by mean and deviation of the
            training speech; `"utterance"`, by mean and deviation of the clip itself; `"utterance_mean"`, by
            the mean of the clip and the deviation of the training speech.

    Units:
        num_units (`int`, defaults to 128): size of the codebook, at most 65536 (units are stored as uint16).
        duration_penalty (`float`, defaults to 0.0): price of a change of unit, as a multiple of the mean
            squared distance between training frames and their nearest centroids. 0: every frame gets its
            nearest centroid. Above 0, a clip gets the units that minimize squared distances plus price times
            changes, so that a unit lasts until the sound has really changed (Kamper and van Niekerk 2021,
            "Towards unsupervised phone and word segmentation using self-supervised vector-quantized neural
            networks"). Frames of 20 ms, 32 to 64 units and `num_deltas=0` want about 4 to 14. Differences
            make the same penalty weigh more, since in 39 dimensions the nearest centroid is not much nearer
            than others: at 8, synthetic English changed unit 12 times a second with `num_deltas=0`, 5 times
            with 1 and twice with 2.
        codebook_digest (`str`, *optional*): SHA-256 of the buffers that decide a unit, written by
            `hf_clsi.units.kmeans.fit_units` and checked by `from_pretrained`; `None` for a random codebook.

    Example:

    >>> config = ClsiUnitsConfig(num_units=64, hop_length=640)
    >>> config.frame_rate, config.features_per_frame, config.feature_size
    (25.0, 4, 39)
    """

    model_type = "clsi_units"

    sampling_rate: int = 16000
    hop_length: int = 1280
    inner_hop_length: int = 160
    window_length: int = 400
    n_fft: int = 512
    num_mel_bins: int = 40
    min_frequency: float = 50.0
    max_frequency: float | None = None
    log_floor: float = 1e-5
    num_mfcc: int = 13
    num_deltas: int = 2
    delta_window: int = 9
    delta_rate: str = "inner"
    normalization: str = "utterance"
    num_units: int = 128
    duration_penalty: float = 0.0
    codebook_digest: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Raises ValueError naming the field, the value and what it may be."""
        lengths = "sampling_rate hop_length inner_hop_length window_length n_fft"
        sizes = "num_mel_bins num_mfcc num_units log_floor"
        for name in f"{lengths} {sizes}".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.hop_length % self.inner_hop_length:
            raise ValueError(
                f"hop_length must be a multiple of inner_hop_length, got {self.hop_length} and "
                f"{self.inner_hop_length}: a frame is the mean of whole inner steps."
            )
        if self.n_fft < self.window_length:
            raise ValueError(
                f"n_fft must be at least window_length = {self.window_length}, got {self.n_fft}."
            )
        if self.num_mfcc > self.num_mel_bins:
            raise ValueError(
                f"num_mfcc must be at most num_mel_bins = {self.num_mel_bins}, got {self.num_mfcc}."
            )
        if self.num_deltas not in (0, 1, 2):
            raise ValueError(f"num_deltas must be 0, 1 or 2, got {self.num_deltas}.")
        if self.delta_window < 3 or self.delta_window % 2 == 0:
            raise ValueError(f"delta_window must be odd and at least 3, got {self.delta_window}.")
        if self.delta_rate not in DELTA_RATES:
            raise ValueError(f"delta_rate must be one of {DELTA_RATES}, got {self.delta_rate!r}.")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {self.normalization!r}.")
        if not 0 <= self.min_frequency < self.highest_frequency <= self.sampling_rate / 2:
            raise ValueError(
                f"frequencies must satisfy 0 <= min_frequency < max_frequency <= sampling_rate / 2 = "
                f"{self.sampling_rate / 2} Hz, got {self.min_frequency} and {self.highest_frequency}."
            )
        if self.num_units > 65536:
            raise ValueError(
                f"num_units must be at most 65536 (units are stored as uint16), got {self.num_units}."
            )
        if not 0 <= self.duration_penalty < math.inf:
            raise ValueError(
                f"duration_penalty must be a number of at least 0, got {self.duration_penalty}; 0 gives "
                "every frame its nearest centroid."
            )

    @property
    def frame_rate(self) -> float:
        """Units per second."""
        return self.sampling_rate / self.hop_length

    @property
    def features_per_frame(self) -> int:
        """Inner spectra averaged in one frame."""
        return self.hop_length // self.inner_hop_length

    @property
    def feature_size(self) -> int:
        """Dimensions D of a frame's features."""
        return self.num_mfcc * (1 + self.num_deltas)

    @property
    def highest_frequency(self) -> float:
        """Upper edge of the mel filters, Hz."""
        return self.sampling_rate / 2 if self.max_frequency is None else self.max_frequency


__all__ = ["ClsiUnitsConfig"]
