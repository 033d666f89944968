"""Units become fewer, longer tokens: byte-pair merges of units (acoustic BPE), on the tokenizers library.

Every unit is written as one character and a sentence as one word, so merges are learned and applied inside a
sentence only. See Ren et al. 2022, "Speech Pre-training with Acoustic Piece", and Shen et al. 2023, "Acoustic
BPE for Speech Generation with Discrete Tokens".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer, models, trainers

from ..processing_clsi import FIRST_UNIT_CHARACTER, HUB_ID, MAX_UNITS, build_unit_tokenizer
from .runs import collapse_ragged

SETTINGS_FILE = "unit_merges.json"


class UnitMerges:
    """Merges over `num_units` units; token ids are units, then merges, then bos, eos and pad.

    Args:
        num_units: K of the audio tokenizer, 1..65,536.
        pairs: pairs of token ids, in the order learned (see `build_unit_tokenizer`); empty: tokens are units.
        deduplicate: `encode` first makes one unit of each run of equal units.

    Example:
        >>> merges = UnitMerges(num_units=4, pairs=[(0, 1), (4, 2)])  # 4 = "0 1", 5 = "0 1 2"
        >>> merges.encode([np.array([3, 0, 1, 2, 0, 1], dtype=np.uint16)])
        [array([3, 5, 4], dtype=int32)]
        >>> merges.decode(np.array([3, 5, 4]))
        array([3, 0, 1, 2, 0, 1], dtype=uint16)
    """

    def __init__(self, num_units: int, pairs: Iterable[tuple[int, int]] = (), deduplicate: bool = False):
        if not 1 <= num_units <= MAX_UNITS:
            raise ValueError(f"num_units must lie in 1..{MAX_UNITS} (units are uint16), got {num_units}.")
        self.num_units, self.deduplicate = num_units, deduplicate
        self.pairs = tuple((int(left), int(right)) for left, right in pairs)
        strings = [chr(FIRST_UNIT_CHARACTER + unit) for unit in range(num_units)]
        ids = {string: token for token, string in enumerate(strings)}
        merged = []
        for position, (left, right) in enumerate(self.pairs):
            if not (0 <= left < len(strings) and 0 <= right < len(strings)):
                raise ValueError(
                    f"Merge {position} joins {left} and {right}, but only tokens 0..{len(strings) - 1} exist "
                    "before it; give the pairs in the order learned."
                )
            merged.append((strings[left], strings[right]))
            # Two pairs may spell the same units: they are one token.
            if strings[left] + strings[right] not in ids:
                ids[strings[left] + strings[right]] = len(strings)
                strings.append(strings[left] + strings[right])
        self._bpe = Tokenizer(models.BPE(vocab=ids, merges=merged))
        # Units in each token, merges included.
        self.token_lengths = np.array([len(string) for string in strings], dtype=np.int64)
        self._flat = _units_of("".join(strings))  # units of token 0, of token 1, ...
        self._offsets = np.concatenate([[0], np.cumsum(self.token_lengths)])

    @classmethod
    def learn(
        cls,
        sequences: Sequence[np.ndarray],
        num_units: int,
        num_merges: int,
        deduplicate: bool = False,
        show_progress: bool = True,
    ) -> UnitMerges:
        """Learn up to `num_merges` merges, the most frequent pair first; the same input, the same merges.

        Args:
            sequences: raw units of each sentence [n]; a merge never reaches from one into the next.
            num_merges: new tokens wanted. Learning ends early once no pair occurs twice; see the property.
            deduplicate: learn on, and later `encode`, collapsed runs.

        Raises:
            ValueError: a unit outside 0..num_units - 1, a sequence that is not one-dimensional, or a negative
                num_merges.
        """
        if num_merges < 0:
            raise ValueError(f"num_merges must be at least 0, got {num_merges}.")
        plain = cls(num_units, deduplicate=deduplicate)
        if num_merges == 0:
            return plain
        flat, offsets = plain._ragged(sequences)
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=num_units + num_merges,
            min_frequency=2,
            # Sorted by code point by the trainer, hence unit i gets id i, heard or not.
            initial_alphabet=[chr(FIRST_UNIT_CHARACTER + unit) for unit in range(num_units)],
            special_tokens=[],
            show_progress=show_progress,
        )
        texts = _texts(flat, offsets)
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        return cls(num_units, _pairs(json.loads(tokenizer.to_str())["model"]), deduplicate)

    @property
    def num_merges(self) -> int:
        """New tokens; at most as many as were asked for."""
        return len(self.token_lengths) - self.num_units

    @property
    def bos_token_id(self) -> int:
        return len(self.token_lengths)

    @property
    def eos_token_id(self) -> int:
        return self.bos_token_id + 1

    @property
    def pad_token_id(self) -> int:
        return self.bos_token_id + 2

    @property
    def vocab_size(self) -> int:
        """num_units + num_merges + 3."""
        return self.bos_token_id + 3

    def encode(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Raw units of many sentences -> tokens of each [m] int32, deduplicated first if `deduplicate`.

        Raises:
            ValueError: a unit outside 0..num_units - 1 or a sequence that is not one-dimensional.
        """
        flat, offsets = self._ragged(sequences)
        if self.num_merges == 0:
            flat = flat.astype(np.int32)
            return [flat[start:stop] for start, stop in itertools.pairwise(offsets)]
        encodings = self._bpe.encode_batch_fast(_texts(flat, offsets), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [m] -> units [n] uint16 (still deduplicated, if `deduplicate`: run lengths are not kept).

        Raises:
            ValueError: a token that is neither a unit nor a merge; drop bos, eos and pad first.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        if tokens.ndim != 1:
            raise ValueError(f"Tokens must be one-dimensional, got shape {tokens.shape}.")
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.bos_token_id):
            raise ValueError(
                f"Tokens must lie in 0..{self.bos_token_id - 1} (units and merges), got {tokens.min()}.."
                f"{tokens.max()}; drop bos, eos and pad before decoding."
            )
        lengths = self.token_lengths[tokens]
        starts = np.cumsum(lengths) - lengths
        # Place in the result, minus where its token starts there, plus where the token's units are kept.
        shift = np.repeat(self._offsets[tokens] - starts, lengths)
        return self._flat[np.arange(len(shift)) + shift]

    def to_fast_tokenizer(self):
        """The same merges as a transformers PreTrainedTokenizerFast (see `build_unit_tokenizer`)."""
        return build_unit_tokenizer(self.num_units, self.pairs)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json (any library reads it) and unit_merges.json (for `load`) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_fast_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "num_units": self.num_units,
            "num_merges": self.num_merges,
            "deduplicate": self.deduplicate,
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path, **hub: Any) -> UnitMerges:
        """Read what `save` wrote, or a clsi checkpoint's tokenizer.json with the config.json beside it.

        Args:
            source: a folder, or the Hub id of a checkpoint.
            **hub: `revision`, `cache_dir`, `token`, `local_files_only`, for a Hub id.

        Raises:
            FileNotFoundError: no such folder, no tokenizer.json, or neither of the two others.
            OSError: no such checkpoint on the Hub (from huggingface_hub).
            ValueError: the files do not agree.
        """
        folder = Path(source)
        if not folder.is_dir() and "/" in str(source) and HUB_ID.fullmatch(str(source)):
            files = ("tokenizer.json", SETTINGS_FILE, "config.json")
            folder = Path(snapshot_download(str(source), allow_patterns=files, **hub))
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        settings_file = folder / SETTINGS_FILE
        if not settings_file.exists():
            settings_file = folder / "config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        merges = cls(settings["num_units"], _pairs(model), settings["deduplicate"])
        if merges.num_merges != settings["num_merges"]:
            raise ValueError(
                f"tokenizer.json in {folder} has {merges.num_merges} merges, but {settings_file.name} says "
                f"{settings['num_merges']}: the files come from different tokenizers."
            )
        return merges

    def _ragged(self, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Sequences -> checked (flat [n], offsets [m + 1]), deduplicated if need be."""
        sequences = [np.asarray(sequence) for sequence in sequences]
        for index, sequence in enumerate(sequences):
            if sequence.ndim != 1:
                raise ValueError(f"Sequence {index} must be one-dimensional, got shape {sequence.shape}.")
        offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int64)
        filled = [sequence for sequence in sequences if len(sequence)]
        flat = np.concatenate(filled) if filled else np.zeros(0, dtype=np.uint16)
        if len(flat) and (flat.min() < 0 or flat.max() >= self.num_units):
            wrong = int(np.flatnonzero((flat < 0) | (flat >= self.num_units))[0])
            index = int(np.searchsorted(offsets, wrong, side="right")) - 1
            raise ValueError(
                f"Sequence {index} has unit {flat[wrong]}, but units lie in 0..{self.num_units - 1}: it was "
                "encoded by another audio tokenizer."
            )
        return collapse_ragged(flat, offsets) if self.deduplicate else (flat, offsets)


def _texts(flat: np.ndarray, offsets: np.ndarray) -> list[str]:
    """Units of many sentences -> one string each, one character a unit."""
    text = (flat.astype("<u4") + np.uint32(FIRST_UNIT_CHARACTER)).tobytes().decode("utf-32-le")
    return [text[start:stop] for start, stop in itertools.pairwise(offsets.tolist())]


def _units_of(text: str) -> np.ndarray:
    """The inverse of `_texts`, for one string: uint16 [n]."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return (characters - np.uint32(FIRST_UNIT_CHARACTER)).astype(np.uint16)


def _pairs(model: dict) -> list[tuple[int, int]]:
    """The "model" of a tokenizer.json -> its merges as pairs of token ids."""
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]
