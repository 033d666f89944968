"""Turns story rows, as lists or as Arrow, into flat arrays that batches are cut from.

A language of many stories is one array of units with two lists of offsets (`UnitColumn`), as Arrow and
Parquet store it, so nothing here or in the collator loops over units. `StoryTable` holds such columns, in
memory or memory-mapped; `Documents` says which of its stories become documents, and how. Rows that come as
Python lists stay lists until their languages are drawn (`ListedStories`): only what is drawn is converted.

Letters: N stories of a table, D documents, S sentences of all documents, L languages.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from ..rows.shards import UnitColumn, to_unit_column
from .interleave import story_key

ANY_LANGUAGE = -1
NO_LIMIT = 0
NO_PARTNER = -1
# Columns of several languages are joined, to be read by one index, unless that copies much more than is used.
_JOIN_AT_MOST = 8


@dataclass(frozen=True)
class Documents:
    """Which stories of a table become documents, and how; D documents.

    Attributes:
        story: `[D]` int64 places of the stories in the table.
        epoch: `[D]` int64 epochs that their languages are drawn for.
        language: `[D]` int64 index of a document's only language; -1: drawn.
        max_tokens: `[D]` int64 tokens that a document is cut to; 0: whole.
        partner: `[D]` int64 the story that gives the sentences of all languages but the first (the unaligned
            control); -1: the story itself.
    """

    story: np.ndarray
    epoch: np.ndarray
    language: np.ndarray
    max_tokens: np.ndarray
    partner: np.ndarray

    @classmethod
    def whole(cls, story: np.ndarray | int, epoch: int = 0, language: int = ANY_LANGUAGE) -> Documents:
        """Whole stories, at these places of the table (or the first `story` of it)."""
        story = np.arange(story) if isinstance(story, int) else np.asarray(story, dtype=np.int64)
        return cls(
            story,
            np.full(story.size, epoch, dtype=np.int64),
            np.full(story.size, language, dtype=np.int64),
            np.full(story.size, NO_LIMIT, dtype=np.int64),
            np.full(story.size, NO_PARTNER, dtype=np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """All documents of several, in order."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.story)

    def __getitem__(self, which: slice | np.ndarray) -> Documents:
        return Documents(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True)
class StoryTable:
    """N stories as flat arrays.

    Attributes:
        ids: `[N]` story ids.
        columns: language -> the sentences that the model reads. A story that lacks the language has none.
            Columns whose `units` are one and the same array (with absolute `sentence_offsets`) are read
            without a copy, which is how memory-mapped corpora come.
        units: language -> raw units, for the counts; may be left out where `columns` are raw themselves.
        keys: `[N]` uint64 `story_key` of the ids; computed when None.
        raw: whether `columns` hold raw units, which the collator still deduplicates and merges if its
            vocabulary asks for it; False: that has been done.
    """

    ids: Sequence[str]
    columns: Mapping[str, UnitColumn]
    units: Mapping[str, UnitColumn] = field(default_factory=dict)
    keys: np.ndarray | None = None
    raw: bool = True

    def __post_init__(self):
        for code, column in self.columns.items():
            if len(column.row_offsets) != len(self.ids) + 1:
                raise ValueError(
                    f"there are {len(self.ids)} story ids but {len(column.row_offsets) - 1} stories in "
                    f"{code!r}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def story_keys(self) -> np.ndarray:
        """`[N]` uint64."""
        if self.keys is not None:
            return self.keys
        return np.array([story_key(story_id) for story_id in self.ids], dtype=np.uint64)

    @classmethod
    def from_arrow(cls, table: Any, languages: Sequence[str]) -> StoryTable:
        """From a pyarrow Table or RecordBatch with `story_id` and `units_<L>` (or better `tokens_<L>`).

        Columns are views of the Arrow buffers where the table has one chunk, as a slice of a few rows has; a
        table of many chunks is copied. Not for whole corpora (hf_clsi.training.stories maps those).

        Raises:
            ValueError: no story_id column, no language at all, or columns that do not hold lists of lists of
                integers.
        """
        names = table.schema.names
        if "story_id" not in names:
            raise ValueError(f"the table has no column 'story_id'; it has {names}")
        found = {
            kind: {
                code: _column_of(table, f"{kind}_{code}") for code in languages if f"{kind}_{code}" in names
            }
            for kind in ("tokens", "units")
        }
        if found["tokens"]:
            missing = set(found["units"]) - set(found["tokens"])
            if missing:
                raise ValueError(
                    f"the table has tokens in {', '.join(found['tokens'])} but only units in "
                    f"{', '.join(sorted(missing))}; merge the units of all languages or of none"
                )
            return cls(table.column("story_id").to_pylist(), found["tokens"], found["units"], raw=False)
        if not found["units"]:
            raise ValueError(f"the table has none of the columns {[f'units_{code}' for code in languages]}")
        return cls(table.column("story_id").to_pylist(), found["units"])

    def spans(self, code: str, story: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of stories `[D]` in one language: (`[D]` their first sentences, `[D]` how many)."""
        column = self.columns.get(code)
        if column is None:
            return np.zeros_like(story), np.zeros_like(story)
        first = np.asarray(column.row_offsets[story], dtype=np.int64)
        return first, np.asarray(column.row_offsets[story + 1], dtype=np.int64) - first

    def is_raw(self, code: str, story: np.ndarray) -> np.ndarray:
        """`[D]` bool: these stories are raw units in this language, still to be merged."""
        return np.full(len(story), self.raw)

    def read(
        self, codes: Sequence[str], language: np.ndarray, sentence: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sentences of several languages as pieces of one array.

        Args:
            codes: `[L]` languages, language: `[S]` indices into them, sentence: `[S]` places in the columns.

        Returns:
            (values `[n]`, `[S]` where in it each sentence starts, `[S]` its length).
        """
        start, length = np.empty(len(sentence), dtype=np.int64), np.empty(len(sentence), dtype=np.int64)
        present = np.flatnonzero(np.bincount(language)).tolist()
        used = [(index, self.columns[codes[index]]) for index in present]
        for index, column in used:
            which = slice(None) if len(used) == 1 else language == index
            places = sentence[which]
            start[which] = column.sentence_offsets[places]
            length[which] = column.sentence_offsets[places + 1]
            length[which] -= start[which]
        values = used[0][1].units
        if all(column.units is values for _, column in used):
            return values, start, length
        if sum(column.units.size for _, column in used) <= _JOIN_AT_MOST * int(length.sum()):
            bases = np.zeros(len(codes), dtype=np.int64)
            base = 0
            for index, column in used:
                bases[index] = base
                base += column.units.size
            return np.concatenate([column.units for _, column in used]), start + bases[language], length
        flat = [
            column.units[spread(start[language == index], length[language == index])]
            for index, column in used
        ]
        order = np.argsort(language, kind="stable")
        compact = np.empty_like(start)
        compact[order] = np.cumsum(length[order]) - length[order]
        return np.concatenate(flat), compact, length

    def raw_lengths(self, code: str, sentence: np.ndarray, story: np.ndarray) -> np.ndarray | None:
        """`[n]` raw units of sentences (places in `columns`) of stories `[n]`; None if they are not known."""
        column = self.units.get(code, self.columns.get(code) if self.raw else None)
        if column is None:
            return None
        place = self._raw_place(code, column, sentence, story)
        return np.asarray(column.sentence_offsets[place + 1], dtype=np.int64) - column.sentence_offsets[place]

    def raw_sentence(self, code: str, sentence: int, story: int) -> np.ndarray:
        """Raw units of one sentence."""
        column = self.units.get(code, self.columns[code])
        place = int(self._raw_place(code, column, np.array([sentence]), np.array([story]))[0])
        return np.asarray(column.units[column.sentence_offsets[place] : column.sentence_offsets[place + 1]])

    def _raw_place(
        self, code: str, column: UnitColumn, sentence: np.ndarray, story: np.ndarray
    ) -> np.ndarray:
        own = self.columns[code]
        if own is column:
            return sentence
        place = np.asarray(column.row_offsets[story], dtype=np.int64) + sentence - own.row_offsets[story]
        wrong = np.flatnonzero(place >= column.row_offsets[story + 1])
        if wrong.size:
            story_id = self.ids[int(story[wrong[0]])]
            raise ValueError(
                f"story {story_id!r}: its tokens have more sentences in {code!r} than its units; merge the "
                "units again"
            )
        return place


class ListedStories:
    """Rows as dicts of lists, in the part of a `StoryTable`; sentences are converted once they are drawn.

    Args:
        rows: see `InterleavingDataCollator`.
        languages: codes whose columns are looked at.

    Raises:
        ValueError: a row without a story id, or whose tokens and units differ in their number of sentences.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], languages: Sequence[str]):
        self.ids = []
        for position, row in enumerate(rows):
            story = row.get("story_id")
            if not isinstance(story, str) or not story:
                raise ValueError(
                    f"row {position} of the batch: story_id must be a non-empty string, got {story!r}"
                )
            self.ids.append(story)
        self.story_keys = np.array([story_key(story) for story in self.ids], dtype=np.uint64)
        self._sentences: dict[str, list[Any]] = {}
        self._offsets: dict[str, np.ndarray] = {}
        self._is_raw: dict[str, np.ndarray] = {}
        self._raw: dict[str, list[Any]] = {}  # [N] the raw column of each row, or None
        for code in languages:
            units = [row.get(f"units_{code}") for row in rows]
            tokens = [row.get(f"tokens_{code}") for row in rows]
            chosen = units
            if any(column is not None for column in tokens):
                chosen = [u if t is None else t for t, u in zip(tokens, units, strict=True)]
                for story, ours, raw in zip(self.ids, tokens, units, strict=True):
                    if ours is not None and raw is not None and len(ours) != len(raw):
                        raise ValueError(
                            f"story {story!r}: 'tokens_{code}' has {len(ours)} sentences but 'units_{code}' "
                            f"{len(raw)}; merge the units again"
                        )
            chosen = [() if column is None else column for column in chosen]
            self._sentences[code] = list(chain.from_iterable(chosen))
            self._offsets[code] = np.cumsum([0, *map(len, chosen)])
            self._is_raw[code] = np.array([column is None for column in tokens])
            self._raw[code] = units

    def __len__(self) -> int:
        return len(self.ids)

    def spans(self, code: str, story: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offsets = self._offsets[code]
        return offsets[story], offsets[story + 1] - offsets[story]

    def is_raw(self, code: str, story: np.ndarray) -> np.ndarray:
        return self._is_raw[code][story]

    def read(
        self, codes: Sequence[str], language: np.ndarray, sentence: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = [self._sentences[code] for code in codes]
        sentences = [
            columns[index][place] for index, place in zip(language.tolist(), sentence.tolist(), strict=True)
        ]
        values, length = self._flatten(sentences, codes, language, sentence)
        return values, np.cumsum(length) - length, length

    def _flatten(self, sentences, codes, language, sentence) -> tuple[np.ndarray, np.ndarray]:
        """Sentences given as lists or arrays -> (`[n]` integers, `[S]` lengths)."""
        try:
            lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
            if all(type(sentence) is list for sentence in sentences):
                integers = array("q")  # half the time of numpy's own reading of lists, and as strict
                for each in sentences:
                    integers.fromlist(each)
                flat = np.frombuffer(integers, dtype=np.int64)
            else:
                flat = np.concatenate(sentences)
            if flat.dtype.kind in "iu" and flat.shape == (int(lengths.sum()),) and lengths.all():
                return flat, lengths
        except (TypeError, ValueError, OverflowError):
            pass  # the search below says which sentence it is
        for position, value in enumerate(sentences):
            try:
                found = np.asarray(value)
            except ValueError:  # lists of unequal lengths inside
                found = np.empty((0, 0), dtype=object)
            if found.ndim == 1 and not found.size:
                continue  # the collator refuses it by its length
            if found.ndim != 1 or found.dtype.kind not in "iu":
                code = codes[language[position]]
                story = int(np.searchsorted(self._offsets[code], sentence[position], side="right")) - 1
                index = int(sentence[position] - self._offsets[code][story])
                raise ValueError(
                    f"story {self.ids[story]!r}, sentence {index}: a sentence must be a flat list of "
                    f"integers, got {value!r:.80}"
                )
        # All are sound by themselves, but their integer types have no common one (uint64 and int64), or some
        # are empty.
        arrays = [np.asarray(value, dtype=np.int64).reshape(-1) for value in sentences]
        return np.concatenate(arrays), np.array([each.size for each in arrays], dtype=np.int64)

    def raw_lengths(self, code: str, sentence: np.ndarray, story: np.ndarray) -> np.ndarray | None:
        columns, offsets = self._raw[code], self._offsets[code]
        lengths = np.empty(len(sentence), dtype=np.int64)
        for position, (place, row) in enumerate(zip(sentence.tolist(), story.tolist(), strict=True)):
            if columns[row] is None:
                return None
            lengths[position] = len(columns[row][place - offsets[row]])
        return lengths

    def raw_sentence(self, code: str, sentence: int, story: int) -> np.ndarray:
        return np.asarray(self._raw[code][story][sentence - self._offsets[code][story]])


def listed_documents(rows: Sequence[Mapping[str, Any]], languages: Sequence[str], epoch: int) -> Documents:
    """The documents of rows that may name their own `language`, `epoch` and `max_tokens` (None: absent).

    Raises:
        ValueError: a language that is not one of `languages`, or max_tokens below 1.
    """
    documents = Documents.whole(len(rows), epoch)
    for position, row in enumerate(rows):
        get = row.get
        language, limit, own_epoch = get("language"), get("max_tokens"), get("epoch")
        if language is not None:
            if language not in languages:
                raise ValueError(
                    f"story {row['story_id']!r}: language {language!r} is not one of {', '.join(languages)}"
                )
            documents.language[position] = languages.index(language)
        if limit is not None:
            if int(limit) < 1:
                raise ValueError(
                    f"story {row['story_id']!r}: max_tokens must be at least 1, got {limit}; leave the "
                    "row out"
                )
            documents.max_tokens[position] = int(limit)
        if own_epoch is not None:
            documents.epoch[position] = int(own_epoch)
    return documents


def is_arrow(rows: Any) -> bool:
    """Whether this is a pyarrow Table or RecordBatch, told without importing pyarrow."""
    return type(rows).__module__.partition(".")[0] == "pyarrow" and hasattr(rows, "schema")


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The index ranges start, start + 1, ..., start + length - 1 one after the other, `[sum(lengths)]` int64.

    Example:
        >>> spread(np.array([5, 0]), np.array([2, 3]))
        array([5, 6, 0, 1, 2])
    """
    shift = starts - (np.cumsum(lengths) - lengths)
    out = np.repeat(shift, lengths)
    out += np.arange(out.size)
    return out


def _column_of(table: Any, name: str) -> UnitColumn:
    """A column of lists of lists, whose missing rows are stories without this language."""
    column = table.column(name)
    if hasattr(column, "combine_chunks"):  # of a Table
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if column.null_count:
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        present = to_unit_column(column.drop_null(), name)
        rows = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return UnitColumn(present.units, present.sentence_offsets, rows)
    return to_unit_column(column, name)
