"""Turns story rows into packed batches: draws languages, merges units, counts what goes in, fills rows.

The collator holds no random state (see interleave.py) and never changes the rows it is given. Work that is
done for every unit is done by numpy; Python loops run over rows and sentences only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from ..units.runs import collapse_ragged, run_lengths
from .interleave import WHOLE_DOCUMENT, check_weights, draw_languages, story_key
from .packing import (
    build_documents,
    concatenate,
    fill_rows,
    pack_best_fit,
    split_long_documents,
    spread,
)

if TYPE_CHECKING:
    from ..units.merges import UnitMerges

MODES = ("interleaved", "monolingual", "mixed")
PACKINGS = ("best_fit", "concatenate")
SEPARATORS = ("none", "bos", "eos")
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(slots=True)
class _Document:
    """One row as read, before its languages are drawn; lists hold one entry a language, None if unused."""

    story: str
    key: int
    epoch: int
    limit: int  # max_tokens
    language: int | None  # the only language, where one is asked for
    size: list[int]  # [L] sentences
    columns: list[Any]  # [L] the sentences: tokens, or else raw units
    is_raw: list[bool]  # [L] `columns` holds raw units, still to be merged
    raw_columns: list[Any]  # [L] the raw units, None where the row has tokens only


@dataclass(slots=True)
class _Chosen:
    """The sentences drawn from a batch of rows: S sentences in D documents."""

    documents: list[_Document]
    counts: list[int]  # [D] sentences
    languages: list[int]  # [S]
    sentences: list[Any]  # [S] arrays or lists

    def is_raw(self) -> list[bool]:
        """`[S]`: the sentence is raw units."""
        flags: list[bool] = []
        start = 0
        for document, count in zip(self.documents, self.counts, strict=True):
            flags += [document.is_raw[language] for language in self.languages[start : start + count]]
            start += count
        return flags

    def place(self, sentence: int) -> tuple[_Document, int]:
        """The document of a sentence and the sentence's index in it."""
        offsets = np.cumsum([0, *self.counts])
        document = int(np.searchsorted(offsets, sentence, side="right")) - 1
        return self.documents[document], sentence - int(offsets[document])

    def name(self, sentence: int) -> str:
        """'story X, sentence i' for error messages."""
        document, index = self.place(sentence)
        return f"story {document.story!r}, sentence {index}"

    def raw(self, sentence: int) -> Any:
        """The raw units of a sentence, or None."""
        document, index = self.place(sentence)
        column = document.raw_columns[self.languages[sentence]]
        return None if column is None else column[index]


class InterleavingDataCollator:
    """Data collator for story rows.

    Use it with `TrainingArguments(remove_unused_columns=False)`, and give the Trainer
    `InterleavingCallback(collator)`, so that every epoch draws anew.

    A row is `{"story_id": str, "units_<L>": sentences}` for every language L; sentences is a list, or an
    object array, of integer lists or arrays. Rows may also hold
      - `tokens_<L>`: the sentences already deduplicated and merged; used in preference (merging is then not
        redone in every epoch). When counts are asked for, `units_<L>` beside it gives the raw units.
      - `epoch` (int): the epoch to draw for, instead of the collator's.
      - `language` (str): this document is monolingual, in that language; the others may be absent.
      - `max_tokens` (int): the document's sentences are cut to that many tokens in all (special tokens not
        counted); a budget ends exactly this way. A document that was cut gets no EOS, since its story does
        not end there.
    Optional keys that are None count as absent.

    The batch holds `input_ids`, `labels` and `position_ids`, each `[R, T]` int64; R depends on how full the
    rows are. With `isolate`, documents are kept apart by position ids that restart, with no attention_mask:
    that works on every attention backend as long as the model makes no cache (ClsiForCausalLM takes care of
    it in training). Labels are not shifted; -100 stands on pads and, with `isolate`, on the first token of
    every document.

    A story longer than `max_length` is split at sentence borders (packing="best_fit"); each part begins with
    BOS and the last one has the EOS. Nothing is dropped.

    Args:
        languages: language codes, in the order of the counts and weights.
        num_units: K; may be left out when `merges` is given.
        merges: byte-pair merges of units (hf_clsi.units.merges.UnitMerges), or None.
        max_length: T, tokens a row.
        seed: of the language draw.
        mode: "interleaved" (one draw a sentence), "mixed" (one draw a document) or "monolingual".
        weights: one weight a language for the draw; equal when None.
        language: the language of "monolingual".
        packing: "best_fit" or "concatenate", see packing.py.
        isolate: keep packed documents apart; False lets attention and positions run over the whole row.
        separator: the special token between sentences: "none", "bos" or "eos".
        append_eos: end every story with EOS.
        deduplicate: collapse runs of equal units; None takes it from `merges` (False without merges).
        pad_to_max_length: False pads to the longest row only, rounded up to a multiple of 8.
        return_counts: add `token_counts`, `[L, 3]` int64: for every language the tokens (after deduplication
            and merges), raw units and sentences in this batch, special tokens and pads not counted. The
            caller takes it out of the batch before the model's forward. A sentence cut by `max_tokens` counts
            as one sentence, and as the raw units up to the end of its last kept token.

    Raises:
        ValueError: arguments that contradict each other; in a call, a row that cannot be used (naming its
            story id).

    Example:
        >>> collator = InterleavingDataCollator(["en"], num_units=10, max_length=8)
        >>> batch = collator([{"story_id": "a", "units_en": [[1, 2], [3]]}])
        >>> batch["input_ids"].tolist()
        [[10, 1, 2, 3, 11, 12, 12, 12]]
        >>> batch["labels"].tolist()
        [[-100, 1, 2, 3, 11, -100, -100, -100]]
        >>> batch["position_ids"].tolist()
        [[0, 1, 2, 3, 4, 0, 1, 2]]
    """

    def __init__(
        self,
        languages: Sequence[str],
        num_units: int | None = None,
        merges: UnitMerges | None = None,
        max_length: int = 2048,
        seed: int = 0,
        mode: str = "interleaved",
        weights: Sequence[float] | None = None,
        language: str | None = None,
        packing: str = "best_fit",
        isolate: bool = True,
        separator: str = "none",
        append_eos: bool = True,
        deduplicate: bool | None = None,
        pad_to_max_length: bool = True,
        return_counts: bool = False,
    ):
        self.languages = tuple(languages)
        if (
            isinstance(languages, str)
            or not self.languages
            or len(set(self.languages)) != len(self.languages)
        ):
            raise ValueError(
                f"languages must be a list of different codes such as ['en', 'fr'], got {languages!r}"
            )
        for name, value, allowed in (
            ("mode", mode, MODES),
            ("packing", packing, PACKINGS),
            ("separator", separator, SEPARATORS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if (mode == "monolingual") != (language is not None):
            raise ValueError(
                f"language is for mode 'monolingual' and needed there, got mode {mode!r}, {language=}"
            )
        if language is not None:
            self._language_index(language, "the collator")
        if merges is not None and num_units is not None and merges.num_units != num_units:
            raise ValueError(
                f"num_units is {num_units} but the merges were learned on {merges.num_units} units"
            )
        if merges is None and num_units is None:
            raise ValueError("give num_units, or merges (which know it)")
        if merges is not None and deduplicate is not None and merges.deduplicate != deduplicate:
            raise ValueError(
                f"deduplicate is {deduplicate} but the merges were learned with "
                f"deduplicate={merges.deduplicate}: leave it out or make them equal"
            )
        smallest = 2 + bool(append_eos)
        if max_length < smallest:
            raise ValueError(f"max_length must hold BOS, one token and EOS ({smallest}), got {max_length}")
        self.weights = check_weights(len(self.languages) if weights is None else weights)
        if self.weights.size != len(self.languages):
            raise ValueError(f"got {self.weights.size} weights for {len(self.languages)} languages")

        self.num_units = int(merges.num_units if num_units is None else num_units)
        self.merges = merges
        self.num_tokens = self.num_units + (int(merges.num_merges) if merges is not None else 0)
        self.bos_token_id = self.num_tokens
        self.eos_token_id = self.num_tokens + 1
        self.pad_token_id = self.num_tokens + 2
        self.max_length = int(max_length)
        self.seed = int(seed)
        self.mode = mode
        self.language = language
        self.packing = packing
        self.isolate = isolate
        self.separator = separator
        self.append_eos = append_eos
        self.deduplicate = bool(merges.deduplicate if merges is not None else deduplicate)
        self.pad_to_max_length = pad_to_max_length
        self.return_counts = return_counts
        self._column_names = [(f"tokens_{code}", f"units_{code}") for code in self.languages]
        # Languages of weight 0 are never drawn, so rows may lack them.
        self._drawable = tuple(np.flatnonzero(self.weights).tolist())
        # A shared tensor, so that dataloader workers that are alive over several epochs see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that languages are drawn for, where a row does not name its own."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, in dataloader workers too."""
        self._epoch.fill_(int(epoch))

    @property
    def separator_token_id(self) -> int | None:
        """The token between sentences; None for "none"."""
        return {"none": None, "bos": self.bos_token_id, "eos": self.eos_token_id}[self.separator]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not len(rows):
            raise ValueError("a batch needs at least one row, got none")
        chosen = self._choose(rows)
        tokens, lengths = self._tokenize(chosen)
        offsets = np.concatenate([[0], np.cumsum(chosen.counts)]).astype(np.int64)
        languages = np.array(chosen.languages, dtype=np.int64)
        full_lengths = lengths
        kept = np.arange(lengths.size)  # [S] indices into `chosen`
        complete = np.ones(len(rows), dtype=bool)
        limits = np.array([document.limit for document in chosen.documents], dtype=np.int64)
        if (limits < _NO_LIMIT).any():
            tokens, lengths, offsets, kept, complete = _cut(tokens, lengths, offsets, limits)

        batch = self._pack(tokens, lengths, offsets, complete)
        if self.return_counts:
            units = self._count_units(chosen, kept, tokens, lengths, full_lengths[kept])
            per_sentence = np.stack([lengths, units, np.ones_like(units)], axis=1)  # [S, 3]
            counts = np.zeros((len(self.languages), 3), dtype=np.int64)
            np.add.at(counts, languages[kept], per_sentence)
            batch["token_counts"] = counts
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _choose(self, rows: Sequence[Mapping[str, Any]]) -> _Chosen:
        """Reads the rows and draws the language of every sentence."""
        epoch = self.epoch
        documents = [self._read(row, position, epoch) for position, row in enumerate(rows)]
        drawn = self._draw(documents)
        sentences: list[Any] = []
        for document, languages in zip(documents, drawn, strict=True):
            columns = document.columns
            sentences += [columns[language][index] for index, language in enumerate(languages)]
        return _Chosen(
            documents, [len(languages) for languages in drawn], list(chain.from_iterable(drawn)), sentences
        )

    def _read(self, row: Mapping[str, Any], position: int, epoch: int) -> _Document:
        """Checks one row and finds the columns that it will be made from."""
        get = row.get
        story = get("story_id")
        if not isinstance(story, str) or not story:
            raise ValueError(
                f"row {position} of the batch: story_id must be a non-empty string, got {story!r}"
            )
        language = get("language")
        if language is None:
            language = self.language
        only = None if language is None else self._language_index(language, f"story {story!r}")
        size = [0] * len(self.languages)
        is_raw = [False] * len(self.languages)
        columns: list[Any] = [None] * len(self.languages)
        raw_columns: list[Any] = [None] * len(self.languages)
        for index in self._drawable if only is None else (only,):
            tokens_name, units_name = self._column_names[index]
            column, raw = get(tokens_name), get(units_name)
            if column is None:
                if raw is None:
                    raise ValueError(
                        f"story {story!r}: no column {units_name!r} (nor {tokens_name!r}); "
                        f"the row has {sorted(row)}"
                    )
                column, is_raw[index] = raw, True
            elif raw is not None and len(column) != len(raw):
                raise ValueError(
                    f"story {story!r}: {tokens_name!r} has {len(column)} sentences but {units_name!r} "
                    f"{len(raw)}; merge the units again"
                )
            columns[index], raw_columns[index], size[index] = column, raw, len(column)
            if not size[index]:
                raise ValueError(
                    f"story {story!r}: it has no sentence in {self.languages[index]!r}; leave the row out"
                )
        if only is None and self.mode == "interleaved" and len({size[index] for index in self._drawable}) > 1:
            raise ValueError(
                f"story {story!r}: interleaving needs the same number of sentences in every language, got "
                f"{ {self.languages[index]: size[index] for index in self._drawable} }"
            )
        limit = get("max_tokens")
        if limit is None:
            limit = _NO_LIMIT
        elif int(limit) < 1:
            raise ValueError(
                f"story {story!r}: max_tokens must be at least 1, got {limit}; leave the row out"
            )
        own_epoch = get("epoch")
        if own_epoch is not None:
            epoch = int(own_epoch)
        return _Document(story, story_key(story), epoch, int(limit), only, size, columns, is_raw, raw_columns)

    def _draw(self, documents: list[_Document]) -> list[list[int]]:
        """The language index of every sentence of every document; one draw for the whole batch."""
        drawn = [[] if document.language is None else [document.language] for document in documents]
        undecided = [index for index, document in enumerate(documents) if document.language is None]
        keys = np.array([documents[index].key for index in undecided], dtype=np.uint64)
        epochs = np.array([documents[index].epoch for index in undecided], dtype=np.int64)
        if undecided and self.mode == "interleaved":
            counts = np.array(
                [documents[index].size[self._drawable[0]] for index in undecided], dtype=np.int64
            )
            languages = draw_languages(
                self.seed,
                np.repeat(epochs, counts),
                np.repeat(keys, counts),
                spread(np.zeros_like(counts), counts),
                self.weights,
            ).tolist()
            stop = 0
            for index, count in zip(undecided, counts.tolist(), strict=True):
                drawn[index] = languages[stop : stop + count]
                stop += count
        elif undecided:
            languages = draw_languages(self.seed, epochs, keys, WHOLE_DOCUMENT, self.weights).tolist()
            for index, language in zip(undecided, languages, strict=True):
                drawn[index] = [language]
        return [
            languages if document.language is None and self.mode == "interleaved"
            else languages * document.size[languages[0]]
            for document, languages in zip(documents, drawn, strict=True)
        ]  # fmt: skip

    def _tokenize(self, chosen: _Chosen) -> tuple[np.ndarray, np.ndarray]:
        """The chosen sentences as tokens: (`[n]` integers, `[S]` lengths)."""
        everything = range(len(chosen.sentences))
        to_do = self.merges is not None or self.deduplicate
        if not to_do or not any(any(document.is_raw) for document in chosen.documents):
            flat, lengths = self._flatten(chosen, everything)
            self._check_range(chosen, flat, lengths, everything)
            return flat, lengths

        flags = chosen.is_raw()
        raw = [index for index in everything if flags[index]]
        flat, lengths = self._flatten(chosen, raw)
        self._check_range(chosen, flat, lengths, raw)
        if self.merges is not None:  # deduplicates first if the merges were learned that way
            done = self.merges.encode(np.split(flat.astype(np.uint16), np.cumsum(lengths)[:-1]))
        else:
            flat, offsets = collapse_ragged(flat.astype(np.uint16), np.concatenate([[0], np.cumsum(lengths)]))
            done = np.split(flat, offsets[1:-1])
        if len(raw) == len(everything):
            return np.concatenate(done), np.array([len(sentence) for sentence in done], dtype=np.int64)
        rest = [index for index in everything if not flags[index]]
        flat, lengths = self._flatten(chosen, rest)
        self._check_range(chosen, flat, lengths, rest)
        sentences: list[Any] = [None] * len(chosen.sentences)
        for index, sentence in zip(raw, done, strict=True):
            sentences[index] = sentence
        for index, sentence in zip(rest, np.split(flat, np.cumsum(lengths)[:-1]), strict=True):
            sentences[index] = sentence
        return np.concatenate(sentences), np.array([len(sentence) for sentence in sentences], dtype=np.int64)

    def _flatten(self, chosen: _Chosen, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Sentences given as lists or arrays -> (`[n]` integers, `[len(indices)]` lengths)."""
        sentences = [chosen.sentences[index] for index in indices]
        try:
            lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
            if all(type(sentence) is list for sentence in sentences):
                flat = np.array(list(chain.from_iterable(sentences)))
            else:
                flat = np.concatenate([np.asarray(sentence) for sentence in sentences])
            if flat.dtype.kind in "iu" and flat.shape == (int(lengths.sum()),) and lengths.all():
                return flat, lengths
        except (TypeError, ValueError):
            pass  # the search below says which sentence it is
        for index, sentence in zip(indices, sentences, strict=True):
            try:
                array = np.asarray(sentence)
            except ValueError:  # lists of unequal lengths inside
                array = np.empty((0, 0), dtype=object)
            if array.ndim == 1 and not array.size:
                raise ValueError(f"{chosen.name(index)}: it is empty, at least 1 unit expected")
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(
                    f"{chosen.name(index)}: a sentence must be a flat list of integers, got {sentence!r:.80}"
                )
        # All are sound by themselves, but their integer types have no common one (uint64 and int64).
        return np.concatenate([np.asarray(sentence, dtype=np.int64) for sentence in sentences]), lengths

    def _check_range(
        self, chosen: _Chosen, flat: np.ndarray, lengths: np.ndarray, indices: Sequence[int]
    ) -> None:
        """Raw units must be below num_units, tokens below num_units + num_merges."""
        if not flat.size or (int(flat.min()) >= 0 and int(flat.max()) < self.num_units):
            return
        flags = chosen.is_raw()
        raw = np.array([flags[index] for index in indices])
        limit = np.repeat(np.where(raw, self.num_units, self.num_tokens), lengths)
        wrong = np.flatnonzero((flat < 0) | (flat >= limit))
        if wrong.size:
            sentence = int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))
            kind = "unit" if raw[sentence] else "token"
            raise ValueError(
                f"{chosen.name(indices[sentence])}: {kind} {int(flat[wrong[0]])} is out of range, expected "
                f"0..{int(limit[wrong[0]]) - 1}; were these rows made with another audio tokenizer"
                f"{' or other merges' if self.merges is not None else ''}?"
            )

    def _pack(
        self, tokens: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, complete: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Sentences -> documents -> rows; `complete` `[D]`: the document was not cut."""
        separator = self.separator_token_id
        ends = complete
        if self.packing == "best_fit":
            documents = np.arange(complete.size)
            lengths, new_offsets, is_last = split_long_documents(
                lengths, offsets, self.max_length, eos=self.append_eos, separator=separator is not None
            )
            if is_last.size != complete.size:
                documents = np.cumsum(is_last) - is_last  # [D'] the document that a part belongs to
            offsets, ends = new_offsets, is_last & complete[documents]
        flat, stream_offsets = build_documents(
            tokens,
            lengths,
            offsets,
            bos=self.bos_token_id,
            eos=self.eos_token_id if self.append_eos else None,
            separator=separator,
            ends=ends,
        )
        pack = pack_best_fit if self.packing == "best_fit" else concatenate
        pieces = pack(np.diff(stream_offsets), self.max_length)
        width = self.max_length
        if not self.pad_to_max_length:
            longest = int(pieces.row_lengths().max())
            width = min(width, -(-longest // 8) * 8)
        input_ids, labels, position_ids = fill_rows(
            flat, pieces, width, pad=self.pad_token_id, isolate=self.isolate
        )
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}

    def _count_units(
        self,
        chosen: _Chosen,
        kept: np.ndarray,
        tokens: np.ndarray,
        lengths: np.ndarray,
        full_lengths: np.ndarray,
    ) -> np.ndarray:
        """Raw units of every kept sentence, `[S]` int64.

        A whole sentence has as many as its raw column, a cut one those up to the end of its last kept token.
        Without a raw column the merges' token lengths give them, unless runs were collapsed: they are lost.
        """
        per_token = None if self.merges is None else np.asarray(self.merges.token_lengths, dtype=np.int64)
        collapsed = lengths
        if per_token is not None:
            collapsed = np.add.reduceat(per_token[tokens], np.cumsum(lengths) - lengths)
        if not self.deduplicate:
            return collapsed
        raw_lengths: list[int] = []  # [S] of all chosen sentences
        start = 0
        for document, count in zip(chosen.documents, chosen.counts, strict=True):
            languages = chosen.languages[start : start + count]
            for language in set(languages):
                if document.raw_columns[language] is None:
                    raise ValueError(
                        f"story {document.story!r}: raw units cannot be counted from deduplicated tokens; "
                        f"keep the column {self._column_names[language][1]!r} beside them or set "
                        f"return_counts=False"
                    )
            raw_lengths += [len(document.raw_columns[language][i]) for i, language in enumerate(languages)]
            start += count
        units = np.array(raw_lengths, dtype=np.int64)[kept]
        for position in np.flatnonzero(lengths < full_lengths).tolist():
            _, runs = run_lengths(np.asarray(chosen.raw(int(kept[position]))))
            units[position] = runs[: collapsed[position]].sum()
        return units

    def _language_index(self, language: Any, where: str) -> int:
        if language not in self.languages:
            raise ValueError(f"{where}: language {language!r} is not one of {', '.join(self.languages)}")
        return self.languages.index(language)


class InterleavingCallback(TrainerCallback):
    """Tells the collator which epoch it is, so that every epoch draws the languages anew.

    `state.epoch` alone is not enough: with an iterable dataset of unknown length it still is, at the start of
    an epoch, the fraction reached in the epoch before; so the epochs begun since the start of training count
    too.
    """

    def __init__(self, collator: InterleavingDataCollator):
        self.collator = collator
        self._last = -1

    def on_train_begin(self, args, state, control, **kwargs):
        self._last = -1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._last = max(int(state.epoch or 0), self._last + 1)
        self.collator.set_epoch(self._last)


def _cut(
    tokens: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keeps the first `limits[d]` tokens of document d.

    Args:
        tokens: `[n]`, lengths: `[S]`, offsets: `[D + 1]` in sentences, limits: `[D]` in tokens, at least 1.

    Returns:
        The same three for what is left, `[S']` the indices of the sentences that are (partly) left, and `[D]`
        bool: the document lost nothing.
    """
    counts = np.diff(offsets)
    starts = np.cumsum(lengths) - lengths
    in_document = starts - np.repeat(
        starts[offsets[:-1]], counts
    )  # [S] tokens of the document before the sentence
    left = np.clip(np.repeat(limits, counts) - in_document, 0, lengths)
    kept = np.flatnonzero(left)
    document = np.repeat(np.arange(counts.size), counts)
    new_offsets = np.concatenate([[0], np.cumsum(np.bincount(document[kept], minlength=counts.size))])
    complete = np.add.reduceat(left, offsets[:-1]) == np.add.reduceat(lengths, offsets[:-1])
    return tokens[spread(starts[kept], left[kept])], left[kept], new_offsets.astype(np.int64), kept, complete
