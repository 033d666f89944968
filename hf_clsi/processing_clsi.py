"""Waveforms become unit tokens, and unit tokens become a waveform again, through an audio tokenizer."""

import re
from collections.abc import Iterable
from inspect import signature
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModel, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

# Units are written as single characters of the Supplementary Private Use Area-A (U+F0000..U+FFFFF): 65,536
# code points, as many as uint16 has values, that no normalizer, case folding or combining rule will ever
# touch.
FIRST_UNIT_CHARACTER = 0xF0000
MAX_UNITS = 65_536
AUDIO_TOKENIZER_KEY = "audio_tokenizer_id"  # in processor_config.json
AUDIO_TOKENIZER_FOLDER = "audio_tokenizer"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # "owner/name", or "name" as the oldest models have it
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token")
BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<|bos|>", "<|eos|>", "<|pad|>"


def build_unit_tokenizer(num_units: int, merges: Iterable[tuple[int, int]] = ()) -> PreTrainedTokenizerFast:
    """Build the tokenizer of units: byte-pair merges over an alphabet in which each unit is one character.

    Args:
        num_units: size K of the audio tokenizer's codebook, 1..65,536. Unit i is token id i.
        merges: pairs of token ids in the order in which they were learned. The pair (a, b) joins the strings
            of a and b; a string not seen before gets the next id, num_units, num_units + 1, ... (so two pairs
            that spell the same units share one id, and the tokenizer may hold fewer new tokens than pairs).

    Returns:
        A fast tokenizer of `len(tokenizer) == num_units + num_new_tokens + 3`; bos, eos and pad are the last
        three ids in this order, and padding goes to the left. It adds no special token by itself.

    Raises:
        ValueError: num_units out of range, or a merge that names an id that does not exist yet.

    Example:
        >>> tokenizer = build_unit_tokenizer(4, [(0, 1), (4, 2)])  # 4 = "0 1", 5 = "0 1 2"
        >>> text = "".join(tokenizer.convert_ids_to_tokens([3, 0, 1, 2, 0, 1]))
        >>> tokenizer(text, add_special_tokens=False)["input_ids"]
        [3, 5, 4]
    """
    if not 1 <= num_units <= MAX_UNITS:
        raise ValueError(f"num_units must lie in 1..{MAX_UNITS} (units are uint16), got {num_units}.")
    tokens = [chr(FIRST_UNIT_CHARACTER + unit) for unit in range(num_units)]
    ids = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for position, (left, right) in enumerate(merges):
        if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
            raise ValueError(
                f"Merge {position} joins ids {left} and {right}, but only ids 0..{len(tokens) - 1} exist "
                "before it. Give the merges in the order in which they were learned."
            )
        pairs.append((tokens[left], tokens[right]))
        merged = tokens[left] + tokens[right]
        if merged not in ids:
            ids[merged] = len(tokens)
            tokens.append(merged)
    backend = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    backend.decoder = decoders.Fuse()  # without a decoder, tokenizers puts spaces between the tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class ClsiProcessor(ProcessorMixin):
    r"""
    Speech in, token ids out, and back: a feature extractor, a tokenizer of units, and an audio tokenizer.

    waveform -> (feature extractor) samples -> (audio tokenizer, first codebook) units -> collapsed runs,
    where the model wants them -> (tokenizer) merges -> token ids with BOS, padded on the left. `decode` is
    the way back.

    Args:
        feature_extractor (`ClsiFeatureExtractor`): prepares waveforms.
        tokenizer (`PreTrainedTokenizerFast`): units, merges and bos, eos, pad, as [`build_unit_tokenizer`] or
            `hf_clsi.units.merges.UnitMerges.to_fast_tokenizer` make it.
        audio_tokenizer (*optional*): any model with Mimi's `encode` and `decode` (`MimiModel`,
            `ClsiUnitsModel`). It stays on the device where it is. Without one, units go in and out.
        deduplicate (`bool`, *optional*, defaults to `False`): collapse runs of equal units (as `ClsiConfig`
            says).

    Raises:
        ValueError: the tokenizer is not one of units, or the audio tokenizer disagrees with the tokenizer
            (codebook size) or with the feature extractor (sampling rate, frame rate).

    A checkpoint records its audio tokenizer under `audio_tokenizer_id` in processor_config.json: a Hub id, or
    a path that starts with "./" and is relative to the checkpoint; never an absolute path. (The library's own
    `audio_tokenizer` entry accepts three classes only, writes absolute paths, and loads nothing else.)

    Example:

    >>> tokenizer = build_unit_tokenizer(100, [(7, 8)])
    >>> processor = ClsiProcessor(ClsiFeatureExtractor(), tokenizer, deduplicate=True)
    >>> processor(units=[[5, 5, 7, 8], [9]])["input_ids"]
    tensor([[101,   5, 100],
            [103, 101,   9]])
    >>> processor.decode_units([101, 5, 100])
    array([5, 7, 8], dtype=uint16)
    """

    def __init__(self, feature_extractor, tokenizer, audio_tokenizer=None, deduplicate=False):
        super().__init__(feature_extractor, tokenizer)
        strings = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        # Units are the tokens of one character; everything between them and bos is a merge.
        self.num_units = sum(len(string) == 1 for string in strings)
        specials = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        if specials != list(range(len(strings) - 3, len(strings))) or any(
            string != chr(FIRST_UNIT_CHARACTER + unit)
            for unit, string in enumerate(strings[: self.num_units])
        ):
            raise ValueError(
                "The tokenizer does not hold units, merges, bos, eos and pad in this order. Build it with "
                "build_unit_tokenizer(num_units, merges), or UnitMerges.to_fast_tokenizer()."
            )
        self._strings = strings[:-3]
        self.deduplicate = deduplicate
        self.audio_tokenizer_id = None
        self.audio_tokenizer = None
        if audio_tokenizer is not None:
            self._attach(audio_tokenizer, None)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"]

    def __call__(
        self,
        audio=None,
        units=None,
        *,
        sampling_rate: int | None = None,
        add_bos: bool = True,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Turn speech, or units, into a batch of prompts.

        Args:
            audio: a waveform or a list of waveforms, as [`ClsiFeatureExtractor`] takes them: arrays, paths
                of audio files, what datasets' Audio column yields.
            units: instead of `audio`, the raw units of one clip [n] or of several (a list, or an array
                [B, n]).
            sampling_rate: Hz of `audio`; resampled where it differs from the audio tokenizer's.
            add_bos: begin each row with BOS, as the documents of the training did.
            return_tensors: "pt" for torch tensors, "np" for numpy arrays, None for lists.

        Returns:
            `input_ids` [B, T] and `attention_mask` [B, T] int64, padded on the left. One clip gives B = 1.

        Raises:
            ValueError: neither or both of `audio` and `units`, a unit outside 0..num_units - 1, no unit at
                all.
            RuntimeError: audio, but no audio tokenizer.
        """
        if kwargs:
            raise TypeError(
                f"ClsiProcessor takes audio or units, and got unexpected {', '.join(sorted(kwargs))}."
            )
        if (audio is None) == (units is None):
            raise ValueError(
                "Give exactly one of `audio` (waveforms) and `units` (ids of the audio tokenizer)."
            )
        sequences = self.encode_audio(audio, sampling_rate) if units is None else _as_sequences(units)
        tokens = [self.encode_units(sequence).tolist() for sequence in sequences]
        for place, row in enumerate(tokens):
            if not row:
                raise ValueError(f"Sequence {place} has no units. Leave it out.")
        if add_bos:
            tokens = [[self.tokenizer.bos_token_id, *row] for row in tokens]
        longest = max(len(row) for row in tokens)
        pad = self.tokenizer.pad_token_id
        batch = {
            "input_ids": [[pad] * (longest - len(row)) + row for row in tokens],
            "attention_mask": [[0] * (longest - len(row)) + [1] * len(row) for row in tokens],
        }
        return BatchFeature(batch, tensor_type=return_tensors)

    def encode_audio(self, audio, sampling_rate: int | None = None) -> list[np.ndarray]:
        """Waveforms (one or a list) -> the raw units of each [n] uint16, first codebook, in one batch.

        Raises:
            ValueError: what the feature extractor refuses.
            RuntimeError: there is no audio tokenizer.
        """
        model = self._require_audio_tokenizer()
        batch = self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt").to(
            model.device
        )
        # Mimi would compute all of its 32 codebooks by default.
        first_only = {"num_quantizers": 1} if "num_quantizers" in signature(model.encode).parameters else {}
        with torch.no_grad():
            codes = model.encode(
                batch["input_values"].to(model.dtype), padding_mask=batch["padding_mask"], **first_only
            ).audio_codes[:, 0]
        frames = -(-batch["padding_mask"].sum(dim=1) // self.feature_extractor.hop_length)
        return [
            row[:length].cpu().numpy().astype(np.uint16)
            for row, length in zip(codes, frames.tolist(), strict=True)
        ]

    def encode_units(self, units) -> np.ndarray:
        """Raw units of a clip [n] -> token ids [m] int64: runs collapsed (if `deduplicate`), merges applied.

        Raises:
            ValueError: a unit outside 0..num_units - 1, or not one-dimensional.
        """
        units = _as_integers(units)
        if units.size and not (units.min() >= 0 and units.max() < self.num_units):
            raise ValueError(
                f"Units must lie in 0..{self.num_units - 1}, got {units.min()}..{units.max()}: they come "
                "from another audio tokenizer than the model's."
            )
        if self.deduplicate:
            units = units[np.diff(units, prepend=-1) != 0]
        if len(self._strings) == self.num_units:
            return units
        text = "".join(map(self._strings.__getitem__, units.tolist()))
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def decode_units(self, token_ids) -> "np.ndarray | list[np.ndarray]":
        """Token ids -> units uint16, without specials and merges. One sequence [m] -> [n], a batch -> a list.

        Where the model was trained on collapsed runs, the units are collapsed too.

        Raises:
            ValueError: an id outside 0..vocab_size - 1.
        """
        if _is_batch(token_ids):
            return [self.decode_units(row) for row in token_ids]
        tokens = _as_integers(token_ids)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < len(self._strings) + 3):
            raise ValueError(
                f"Token ids must lie in 0..{len(self._strings) + 2}, got {tokens.min()}..{tokens.max()}: "
                "they come from a model with another vocabulary."
            )
        text = "".join(self._strings[token] for token in tokens.tolist() if token < len(self._strings))
        return np.array([ord(character) - FIRST_UNIT_CHARACTER for character in text], dtype=np.uint16)

    def decode_frames(self, token_ids) -> np.ndarray:
        """Token ids [m] -> the unit of each frame [F] int64, as the audio tokenizer speaks them.

        Specials are dropped and merges undone. Where runs were collapsed, an audio tokenizer that knows how
        long its units last (`expand_runs`, as ClsiUnitsModel has) stretches them again to their mean length;
        with any other, each unit sounds for one frame. The frames of a beginning are the beginning of the
        frames.

        Raises:
            ValueError: an id outside 0..vocab_size - 1.
        """
        units = torch.from_numpy(self.decode_units(token_ids).astype(np.int64))
        if self._expands_runs and len(units):
            units = self.audio_tokenizer.expand_runs(units.to(self.audio_tokenizer.device)).cpu()
        return units.numpy()

    def frames_to_audio(self, frames: np.ndarray) -> np.ndarray:
        """The unit of each frame [F] -> waveform float32 [F * hop_length]; no frame, an empty waveform.

        Raises:
            RuntimeError: there is no audio tokenizer.
        """
        model = self._require_audio_tokenizer()
        if len(frames) == 0:
            return np.zeros(0, dtype=np.float32)
        codes = torch.from_numpy(np.asarray(frames, dtype=np.int64)).to(model.device)
        with torch.no_grad():
            return model.decode(codes[None, None]).audio_values[0, 0].float().cpu().numpy()

    def decode(self, token_ids) -> "np.ndarray | list[np.ndarray]":
        """Token ids -> waveform float32 [samples] at `feature_extractor.sampling_rate`; a batch -> a list.

        The frames of `decode_frames`, spoken by the audio tokenizer. No unit at all gives an empty waveform.

        **What it sounds like.** A model of Mimi's first codebook writes the first codebook only. What is said
        lies there (it was trained to agree with WavLM, Moshi, section 3.3); the voice, the pitch and the
        room lie in the other 31, which nobody has written here. Decoded alone, expect muffled, flat speech in
        no particular voice, of which words can be made out at best. (This follows from how Mimi was trained;
        its weights were not at hand to listen to.) A second model that adds the other codebooks, or a vocoder
        of units, would give it a voice. `ClsiUnitsModel` is plainer still: cluster centers and Griffin-Lim.

        Raises:
            ValueError: an id outside 0..vocab_size - 1.
            RuntimeError: there is no audio tokenizer.
        """
        self._require_audio_tokenizer()
        if _is_batch(token_ids):
            return [self.decode(row) for row in token_ids]
        return self.frames_to_audio(self.decode_frames(token_ids))

    @property
    def _expands_runs(self) -> bool:
        return self.deduplicate and hasattr(self.audio_tokenizer, "expand_runs")

    @property
    def token_seconds(self) -> np.ndarray:
        """How long each token sounds when decoded [vocab_size] float64, in seconds; special tokens 0.

        A token of several units lasts for all of them; a unit of collapsed runs for the mean length of its
        runs, where the audio tokenizer knows it.
        """
        frames = np.ones(self.num_units)
        if self._expands_runs:
            frames = self.audio_tokenizer.mean_run_length.double().clamp(min=1).cpu().numpy()
        units_of = ([ord(unit) - FIRST_UNIT_CHARACTER for unit in string] for string in self._strings)
        lengths = [frames[units].sum() for units in units_of]
        return np.array([*lengths, 0.0, 0.0, 0.0]) / self.feature_extractor.frame_rate

    def check_model(self, model) -> None:
        """Raise ValueError unless `model` (or its config) speaks the tokens that this processor makes.

        A model of another vocabulary, another rate, or trained on units that were (not) collapsed would take
        the ids without complaint and mean something else by them.
        """
        config = getattr(model, "config", model)
        for name, own in (
            ("num_units", self.num_units),
            ("num_merges", len(self._strings) - self.num_units),
            ("deduplicate", self.deduplicate),
            ("sampling_rate", self.feature_extractor.sampling_rate),
            ("frame_rate", self.feature_extractor.frame_rate),
        ):
            its = getattr(config, name, None)
            if its != own:
                raise ValueError(
                    f"The processor has {name}={own}, but the model has {name}={its}: they do not belong "
                    "together. Load both from one checkpoint."
                )

    def batch_decode(self, token_ids) -> list[np.ndarray]:
        """Token ids of several rows [B, m] -> a list of waveforms; see [`decode`]."""
        return [self.decode(row) for row in token_ids]

    def to_dict(self) -> dict:
        """What processor_config.json holds; the audio tokenizer as a reference only."""
        output = {
            "processor_class": type(self).__name__,
            "feature_extractor": self.feature_extractor.to_dict(),
            "deduplicate": self.deduplicate,
            AUDIO_TOKENIZER_KEY: self.audio_tokenizer_id,
        }
        if getattr(self, "auto_map", None) is not None:
            output["auto_map"] = self.auto_map
        return output

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Write processor_config.json, the tokenizer, the code, and the audio tokenizer or a reference to it.

        An audio tokenizer that came from the Hub is recorded by its id. One that lies inside `save_directory`
        is recorded by its relative path. Any other is written into `save_directory/audio_tokenizer`, so that
        the checkpoint is complete on every machine.
        """
        folder = Path(save_directory)
        if self.audio_tokenizer is not None:
            self.audio_tokenizer_id = self._save_audio_tokenizer(folder)
        elif (self.audio_tokenizer_id or "").startswith("./") and not (
            folder / self.audio_tokenizer_id
        ).is_dir():
            raise ValueError(
                f"The processor refers to its audio tokenizer by {self.audio_tokenizer_id!r}, which {folder} "
                "does not have, and was loaded without it. Load it with its audio tokenizer, or save it "
                "where it came from."
            )
        files = super().save_pretrained(save_directory)
        if push_to_hub:  # the library's own way would leave out the audio tokenizer's folder
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return files

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *,
        audio_tokenizer=None,
        load_audio_tokenizer: bool = True,
        **kwargs,
    ) -> "ClsiProcessor":
        """Load a processor and, unless told otherwise, its audio tokenizer.

        Args:
            pretrained_model_name_or_path: a Hub id or a folder.
            audio_tokenizer: a loaded model to use instead of the recorded one.
            load_audio_tokenizer: False leaves it out (its weights are not needed for units in, units out).
            **kwargs: as in `ProcessorMixin.from_pretrained`; `device_map` and `dtype` go to the audio
                tokenizer.

        Raises:
            OSError: the recorded audio tokenizer cannot be loaded; the message says how to do without.
        """
        placement = {key: kwargs.pop(key) for key in ("device_map", "dtype") if key in kwargs}
        if kwargs.pop("_from_pipeline", None) is not None:
            # A pipeline passes on what it loads its model with. Units do not survive rounding.
            placement = {}
        # ProcessorMixin resolves the same arguments; it must not see the ones above.
        processor_dict, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for key in (
            "is_local",
            "local_files_only",
        ):  # how it was loaded is no property of the tokenizer to be saved
            processor.tokenizer.init_kwargs.pop(key, None)
        reference = processor_dict.get(AUDIO_TOKENIZER_KEY)
        processor.audio_tokenizer_id = reference
        if audio_tokenizer is not None:
            processor._attach(audio_tokenizer, None)
        elif reference is not None and load_audio_tokenizer:
            hub = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
            try:
                path = _locate(str(pretrained_model_name_or_path), reference, kwargs)
                model = AutoModel.from_pretrained(
                    path, trust_remote_code=kwargs.get("trust_remote_code"), **hub, **placement
                )
            except OSError as error:
                raise OSError(
                    f"The audio tokenizer {reference!r} of {pretrained_model_name_or_path} could not be "
                    f"loaded ({error}). Pass load_audio_tokenizer=False to work with units alone, or "
                    "audio_tokenizer=<model>."
                ) from error
            processor._attach(model.eval(), reference)
        return processor

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        # Not an argument of __init__, and read by `from_pretrained` itself.
        processor_dict = {key: value for key, value in processor_dict.items() if key != AUDIO_TOKENIZER_KEY}
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def audio_tokenizer(self):
        """The model that turns speech into units and back, or None."""
        return self._audio_tokenizer

    @audio_tokenizer.setter
    def audio_tokenizer(self, model) -> None:
        self._audio_tokenizer = model
        # A folder is told from a Hub id now: relative to another working directory it would look like one.
        origin = getattr(model, "name_or_path", None)
        self._audio_tokenizer_folder = Path(origin).resolve() if origin and Path(origin).is_dir() else None

    def _attach(self, audio_tokenizer, reference: str | None) -> None:
        """Check that the audio tokenizer fits, and keep it."""
        config = audio_tokenizer.config
        codebook = getattr(config, "codebook_size", None) or getattr(config, "num_units", None)
        for what, own, its in (
            ("units", self.num_units, codebook),
            (
                "Hz of sampling rate",
                self.feature_extractor.sampling_rate,
                getattr(config, "sampling_rate", None),
            ),
            ("units a second", self.feature_extractor.frame_rate, getattr(config, "frame_rate", None)),
        ):
            if its is not None and its != own:
                raise ValueError(
                    f"The processor has {own:g} {what}, but the audio tokenizer "
                    f"{type(audio_tokenizer).__name__} has {its:g}: they do not belong together."
                )
        self.audio_tokenizer = audio_tokenizer
        self.audio_tokenizer_id = reference

    def _require_audio_tokenizer(self):
        if self.audio_tokenizer is None:
            raise RuntimeError(
                "This processor has no audio tokenizer, so it cannot turn audio into units or units into "
                "audio. Set one with ClsiProcessor(..., audio_tokenizer=model), or pass units."
            )
        return self.audio_tokenizer

    def _save_audio_tokenizer(self, folder: Path) -> str:
        """Write the audio tokenizer into `folder` if it must be there; return what the checkpoint records."""
        origin, place = self.audio_tokenizer.name_or_path, self._audio_tokenizer_folder
        inside = folder.resolve() / AUDIO_TOKENIZER_FOLDER
        if place is not None:
            if place.is_relative_to(folder.resolve()):
                return "./" + place.relative_to(folder.resolve()).as_posix()
        elif origin and HUB_ID.fullmatch(origin):
            return origin
        self.audio_tokenizer.save_pretrained(inside)
        return f"./{AUDIO_TOKENIZER_FOLDER}"


def _locate(checkpoint: str, reference: str, kwargs: dict) -> str:
    """The recorded reference of `checkpoint` -> a folder on this machine, or a Hub id."""
    if not reference.startswith("./"):
        return reference
    inside = PurePosixPath(kwargs.get("subfolder") or "", reference)
    if ".." in inside.parts:
        raise ValueError(
            f"The checkpoint {checkpoint} names an audio tokenizer outside itself: {reference!r}."
        )
    if Path(checkpoint).is_dir():
        return str(Path(checkpoint, inside))
    # Its code lies in the same sub-folder, where transformers looks for remote code in local folders only.
    snapshot = snapshot_download(
        checkpoint,
        allow_patterns=f"{inside}/*",
        **{key: kwargs[key] for key in ("revision", *HUB_KWARGS) if kwargs.get(key) is not None},
    )
    return str(Path(snapshot, inside))


def _is_batch(ids) -> bool:
    """Whether `ids` is a sequence of sequences rather than one sequence of integers."""
    if isinstance(ids, (np.ndarray, torch.Tensor)):
        return ids.ndim > 1
    return len(ids) > 0 and not isinstance(ids[0], (int, np.integer)) and getattr(ids[0], "ndim", 1) > 0


def _as_sequences(units) -> list:
    """Units of one clip or of several -> a list of sequences."""
    return list(units) if _is_batch(units) else [units]


def _as_integers(ids) -> np.ndarray:
    """A sequence of integers in any form -> int64 [n]."""
    if isinstance(ids, torch.Tensor):
        ids = ids.detach().cpu().numpy()
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"Expected a one-dimensional sequence of integers, got {array.dtype} {array.shape}.")
    return array.astype(np.int64)


__all__ = ["ClsiProcessor", "build_unit_tokenizer"]
