"""Dataset folders and Hub datasets become stories that training reads, memory-mapped or streamed.

A source deals in shards (the files of a dataset) and blocks (consecutive stories of a shard), each block a
`StoryTable`. There are four: `ParquetStories` (files, local or remote, row group by row group),
`IterableStories` and `DatasetStories` (what `load_dataset` gives, streamed or not), and `MappedStories`:
everything in flat arrays on disk, written once from one of the others and memory-mapped since, so that all
processes of a machine share one copy. With the same shards all four give the same blocks.

Memory: one block while reading or writing, whatever the corpus; a mapped corpus costs address space only.

Rows that cannot be used are refused with their ids, or counted by reason (`faulty="leave_out"`). Such a story
keeps its place with no sentence in any language, so that the blocks of all sources stay the same.

Letters: N stories, S sentences, n units.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from tqdm.auto import tqdm

from ..batches.interleave import story_key
from ..batches.stories import StoryTable, spread
from ..processing_clsi import HUB_ID, MAX_UNITS
from ..rows.shards import STREAMING, UnitColumn, list_shards
from ..units.runs import collapse_ragged
from .budget import StoryLengths

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from ..units.merges import UnitMerges

FAULTY = ("refuse", "leave_out")
UNITS_CONFIG = "units"
BLOCK_STORIES = 4096
_FORMAT = 1
_REMOTE = "hf://"
_COMMIT = re.compile(r"@[0-9a-f]{40}/")
_INDEX = "stories.json"
_EXAMPLES = 5  # ids kept for every reason to leave rows out
_CHUNK = 1 << 22  # values copied at a time


class ShardedStories(Protocol):
    """Stories in shards, read in blocks; what `open_stories` and the streamed feed work with."""

    languages: tuple[str, ...]

    @property
    def num_shards(self) -> int: ...

    def languages_of(self, shard: int) -> frozenset[str]:
        """Languages that stories of a shard may have."""

    def blocks(self, shard: int, start: int = 0, size: int = BLOCK_STORIES) -> Iterator[StoryTable]:
        """Blocks `start`, `start + 1`, ... of a shard: `size` consecutive stories each, the last fewer."""


# -- rows as arrays ------------------------------------------------------------------------------------------


@dataclass
class LeftOut:
    """Rows that were not used: how many for each reason, and the first few ids."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, story_id: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(story_id)


class StoryReader:
    """Turns Arrow rows into `StoryTable`s: checks them, deduplicates and merges.

    Args:
        languages: codes; the rows have `units_<L>` for at least one of them.
        merges: the vocabulary; None: the model reads raw units.
        num_units: unit ids lie below; None: what `merges` says, or all of uint16.
        faulty: "refuse": the first faulty row is a ValueError; "leave_out": it is counted in `left_out` and
            becomes a story without sentences.

    A row may lack a language (missing, None or no sentence at all), but not all of them; the others must have
    the same number of sentences, none empty, all units in range.
    """

    def __init__(
        self,
        languages: Sequence[str],
        merges: UnitMerges | None = None,
        num_units: int | None = None,
        faulty: str = "refuse",
    ):
        self.languages = tuple(languages)
        if isinstance(languages, str) or not languages or len(set(languages)) != len(self.languages):
            raise ValueError(
                f"languages must be a list of different codes such as ['en', 'fr'], got {languages!r}."
            )
        if faulty not in FAULTY:
            raise ValueError(f"faulty must be one of {', '.join(FAULTY)}, got {faulty!r}.")
        if merges is not None and num_units is not None and merges.num_units != num_units:
            raise ValueError(
                f"num_units is {num_units}, but the merges were learned on {merges.num_units} units."
            )
        self.num_units = int(num_units or (merges.num_units if merges is not None else MAX_UNITS))
        self.merges, self.faulty = merges, faulty
        # Merges without a pair that keep runs leave the units as they are.
        self.merging = merges is not None and (merges.num_merges > 0 or merges.deduplicate)
        self.left_out = LeftOut()

    @property
    def token_dtype(self) -> np.dtype:
        """Of the tokens that the model reads."""
        small = self.merges is None or self.merges.bos_token_id <= MAX_UNITS
        return np.dtype(np.uint16 if small else np.int32)

    def vocabulary(self) -> dict[str, Any]:
        """All that decides how rows become tokens, as plain values."""
        merges = self.merges
        return {
            "languages": list(self.languages),
            "num_units": self.num_units,
            "deduplicate": bool(merges is not None and merges.deduplicate),
            "merges": [list(pair) for pair in merges.pairs] if merges is not None else [],
            "faulty": self.faulty,
        }

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Which of a file's columns are read.

        Raises:
            ValueError: no `story_id`, or units in none of the languages.
        """
        found = [f"units_{code}" for code in self.languages if f"units_{code}" in names]
        if "story_id" not in names or not found:
            raise ValueError(
                f"{where} has the columns {', '.join(names)}; training stories need story_id and at least "
                f"one of {', '.join(f'units_{code}' for code in self.languages)}."
            )
        return ["story_id", *found]

    def table(self, rows: pa.Table, where: str) -> StoryTable:
        """Arrow rows (columns: see `columns`) -> their stories; `where` opens messages.

        Raises:
            ValueError: columns of other types; a faulty row, with its id, unless those are left out.
        """
        ids = rows.column("story_id").to_pylist()
        faults: dict[int, str] = {}  # row -> why it cannot be used
        for row, story_id in enumerate(ids):
            if not isinstance(story_id, str) or not story_id:
                faults[row] = "no story_id"
                ids[row] = f"row {row} of {where}"
        read = {
            code: _Sentences.read(rows.column(f"units_{code}"), f"{where}: units_{code}")
            for code in self.languages
            if f"units_{code}" in rows.schema.names
        }
        counts = np.stack([column.counts for column in read.values()])  # [L', N]
        most = counts.max(0)
        smallest = np.where(counts > 0, counts, np.iinfo(np.int64).max).min(0)
        self._note(faults, most == 0, "no sentence in any language")
        self._note(faults, (most > 0) & (smallest != most), "different numbers of sentences")
        for code, column in read.items():
            self._note(faults, column.stories_with(column.lengths == 0), f"an empty sentence in {code}")
            if column.values.size and not 0 <= column.values.min() <= column.values.max() < self.num_units:
                wrong = (column.values < 0) | (column.values >= self.num_units)
                sentences = np.searchsorted(np.cumsum(column.lengths), np.flatnonzero(wrong), side="right")
                flags = np.zeros(len(column.lengths), dtype=bool)
                flags[sentences] = True
                self._note(
                    faults, column.stories_with(flags), f"units outside 0..{self.num_units - 1} in {code}"
                )
        for row in sorted(faults):
            if self.faulty == "refuse":
                raise ValueError(
                    f"{where}, story {ids[row]!r}: {faults[row]}. Mend the row, or leave such rows out and "
                    "have them counted: faulty='leave_out'."
                )
            self.left_out.add(faults[row], ids[row])
        units, columns = {}, {}
        for code in self.languages:
            column = read.get(code) or _Sentences.none(len(ids))
            if faults:
                column = column.without(np.array(sorted(faults)))
            units[code] = columns[code] = column.flat()
            if self.merging:
                columns[code] = self._merge(units[code])
        keys = np.array([story_key(story_id) for story_id in ids], dtype=np.uint64)
        return StoryTable(ids, columns, units if self.merging else {}, keys, raw=not self.merging)

    @staticmethod
    def _note(faults: dict[int, str], flags: np.ndarray, reason: str) -> None:
        for row in np.flatnonzero(flags).tolist():
            faults.setdefault(row, reason)

    def _merge(self, column: UnitColumn) -> UnitColumn:
        if not self.merges.num_merges:
            units, offsets = collapse_ragged(column.units, column.sentence_offsets)
            return UnitColumn(units, offsets, column.row_offsets)
        tokens = self.merges.encode(np.split(column.units, column.sentence_offsets[1:-1]))
        if not column.units.size:  # np.split gives one empty piece even then
            tokens = []
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in tokens])]).astype(np.int64)
        flat = np.concatenate(tokens) if tokens else np.zeros(0)
        return UnitColumn(flat.astype(self.token_dtype), offsets, column.row_offsets)


@dataclass
class _Sentences:
    """One language of some rows: `values [n]`, `lengths [S]` of sentences, `counts [N]` of stories."""

    values: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def read(cls, column: pa.ChunkedArray, where: str) -> _Sentences:
        """Missing rows have no sentence, missing sentences no unit, and missing units are -1."""
        import pyarrow as pa
        import pyarrow.compute as pc

        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        kind, depth = array.type, 0
        while hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
            kind, depth = kind.value_type, depth + 1
        if depth != 2 or not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise ValueError(
                f"{where} holds {array.type}; units are lists of lists of integers, one list a sentence."
            )
        inner = array.flatten()  # skips what missing rows may hide
        values = inner.flatten()
        if values.null_count or pa.types.is_null(kind):
            values = values.cast(pa.int64()).fill_null(-1)

        def lengths(lists):
            return pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)

        return cls(values.to_numpy(zero_copy_only=False), lengths(inner), lengths(array))

    @classmethod
    def none(cls, stories: int) -> _Sentences:
        empty = np.zeros(0, dtype=np.int64)
        return cls(np.zeros(0, dtype=np.uint16), empty, np.zeros(stories, dtype=np.int64))

    def stories_with(self, sentences: np.ndarray) -> np.ndarray:
        """`[S]` bool -> `[N]` bool: a story has such a sentence."""
        ends = np.cumsum(self.counts)
        flags = np.zeros(len(self.counts), dtype=bool)
        flags[np.searchsorted(ends, np.flatnonzero(sentences), side="right")] = True
        return flags

    def without(self, stories: np.ndarray) -> _Sentences:
        """The same number of stories, those without a sentence."""
        keep = np.ones(len(self.counts), dtype=bool)
        keep[stories] = False
        sentences = np.repeat(keep, self.counts)
        return _Sentences(
            self.values[np.repeat(sentences, self.lengths)],
            self.lengths[sentences],
            np.where(keep, self.counts, 0),
        )

    def flat(self) -> UnitColumn:
        zero = np.zeros(1, dtype=np.int64)
        return UnitColumn(
            self.values.astype(np.uint16, copy=False),
            np.concatenate([zero, np.cumsum(self.lengths)]),
            np.concatenate([zero, np.cumsum(self.counts)]),
        )


def listed_table(
    ids: Sequence[str],
    tokens: Mapping[str, Sequence[Sequence[np.ndarray]]],
    units: Mapping[str, Sequence[Sequence[np.ndarray]]],
) -> StoryTable:
    """Stories in memory as lists (language -> story -> sentence -> array) as a table; the tokens are merged.

    For the miniature, whose stories are few. Where `tokens` and `units` are one object, so are the columns.
    """

    def column(stories: Sequence[Sequence[np.ndarray]]) -> UnitColumn:
        sentences = [np.asarray(sentence) for story in stories for sentence in story]
        return UnitColumn(
            np.concatenate(sentences) if sentences else np.zeros(0, dtype=np.uint16),
            np.cumsum([0, *map(len, sentences)]),
            np.cumsum([0, *map(len, stories)]),
        )

    raw = {code: column(stories) for code, stories in units.items()}
    columns = {
        code: raw[code] if code in raw and units[code] is stories else column(stories)
        for code, stories in tokens.items()
    }
    return StoryTable(list(ids), columns, raw, raw=False)


# -- tables --------------------------------------------------------------------------------------------------


def take_stories(table: StoryTable, stories: np.ndarray) -> StoryTable:
    """Some stories of a table, copied, in the order given `[M]`."""
    taken: dict[int, UnitColumn] = {}  # by column, since tokens and units may be one

    def take(column: UnitColumn) -> UnitColumn:
        if id(column) not in taken:
            taken[id(column)] = _take(column, stories)
        return taken[id(column)]

    return StoryTable(
        [table.ids[story] for story in stories.tolist()],
        {code: take(column) for code, column in table.columns.items()},
        {code: take(column) for code, column in table.units.items()},
        table.story_keys[stories],
        table.raw,
    )


def _take(column: UnitColumn, stories: np.ndarray) -> UnitColumn:
    first = np.asarray(column.row_offsets[stories], dtype=np.int64)
    counts = np.asarray(column.row_offsets[stories + 1], dtype=np.int64) - first
    sentences = spread(first, counts)
    starts = np.asarray(column.sentence_offsets[sentences], dtype=np.int64)
    lengths = np.asarray(column.sentence_offsets[sentences + 1], dtype=np.int64) - starts
    zero = np.zeros(1, dtype=np.int64)
    return UnitColumn(
        np.asarray(column.units[spread(starts, lengths)]),
        np.concatenate([zero, np.cumsum(lengths)]),
        np.concatenate([zero, np.cumsum(counts)]),
    )


def join_tables(tables: Sequence[StoryTable]) -> StoryTable:
    """All stories of several tables of one kind (`take_stories`), one after the other."""
    if len(tables) == 1:
        return tables[0]

    def join(columns: list[UnitColumn]) -> UnitColumn:
        return UnitColumn(
            np.concatenate([column.units for column in columns]),
            _joined([column.sentence_offsets for column in columns]),
            _joined([column.row_offsets for column in columns]),
        )

    first = tables[0]
    return StoryTable(
        [story_id for table in tables for story_id in table.ids],
        {code: join([table.columns[code] for table in tables]) for code in first.columns},
        {code: join([table.units[code] for table in tables]) for code in first.units},
        np.concatenate([table.story_keys for table in tables]),
        first.raw,
    )


def _joined(offsets: Sequence[np.ndarray]) -> np.ndarray:
    bases = np.cumsum([0, *(each[-1] for each in offsets[:-1])])
    tails = [each[1:] + base for each, base in zip(offsets, bases, strict=True)]
    return np.concatenate([np.zeros(1, dtype=np.int64), *tails])


def story_lengths(
    table: StoryTable, languages: Sequence[str], needed: Sequence[str]
) -> tuple[StoryLengths, np.ndarray]:
    """The stories that can be read in some languages, as `plan_stage` wants them.

    Args:
        languages: whose tokens are wanted; a story that lacks one has sentences of 0 tokens in it.
        needed: only stories that have all of these.

    Returns:
        the lengths of M stories, and `[M]` their places in the table.

    Raises:
        ValueError: no such story.
    """
    stories = np.arange(len(table))
    spans = {code: table.spans(code, stories) for code in dict.fromkeys([*languages, *needed])}
    chosen = np.flatnonzero(np.stack([spans[code][1] > 0 for code in needed]).all(0))
    if not chosen.size:
        raise ValueError(
            f"none of the {len(table)} stories is in {' and '.join(needed)}; give a dataset that is."
        )
    counts = {code: spans[code][1][chosen] for code in languages}
    most = np.stack(list(counts.values())).max(0)
    tokens = {}
    for code, own in counts.items():
        tokens[code] = np.zeros(int(most.sum()), dtype=np.int64)
        if own.any():
            offsets = table.columns[code].sentence_offsets
            sentences = spread(spans[code][0][chosen], own)
            starts = np.asarray(offsets[sentences], dtype=np.int64)
            tokens[code][np.repeat(own > 0, most)] = offsets[sentences + 1] - starts
    keys = np.asarray(table.story_keys[chosen])
    return StoryLengths(keys, np.concatenate([[0], np.cumsum(most)]), tokens), chosen


# -- sources -------------------------------------------------------------------------------------------------


class ParquetStories:
    """Parquet files as shards, read row group by row group.

    Args:
        paths: of the files, in order: local ones, or addresses on the Hub (hf://datasets/...).
        reader: how rows become stories.
    """

    def __init__(self, paths: Sequence[str | Path], reader: StoryReader):
        if not len(paths):
            raise ValueError("there is no Parquet file to read stories from.")
        self.paths, self.reader = [str(path) for path in paths], reader
        self._languages: frozenset[str] | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        return self.reader.languages

    @property
    def num_shards(self) -> int:
        return len(self.paths)

    def languages_of(self, shard: int) -> frozenset[str]:
        """From the first file: those of one config have the same columns, else datasets would refuse them."""
        if self._languages is None:
            with _parquet(self.paths[0]) as file:
                columns = self.reader.columns(file.schema_arrow.names, self.paths[0])
            self._languages = _languages(columns)
        return self._languages

    def num_stories(self) -> int | None:
        """Rows of all files, from their footers; None for remote files, since that takes its time."""
        if any(path.startswith(_REMOTE) for path in self.paths):
            return None
        total = 0
        for path in self.paths:
            with _parquet(path) as file:
                total += file.metadata.num_rows
        return total

    def identity(self) -> list[str]:
        """One line a file that changes when the file does."""
        return [_identity(path) for path in self.paths]

    def blocks(self, shard: int, start: int = 0, size: int = BLOCK_STORIES) -> Iterator[StoryTable]:
        path = self.paths[shard]
        with _parquet(path) as file:
            columns = self.reader.columns(file.schema_arrow.names, path)
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        batches = _record_batches(path, groups, columns, start * size, size)
        for number, rows in enumerate(_rebatch(batches, size), start):
            yield self.reader.table(rows, f"{Path(path).name} from row {number * size}")


def _languages(columns: Sequence[str]) -> frozenset[str]:
    return frozenset(name.removeprefix("units_") for name in columns if name != "story_id")


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """An open ParquetFile of a local file or of an address."""
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        source: Any = path
        if path.startswith(_REMOTE):
            from huggingface_hub import HfFileSystem

            source = stack.enter_context(HfFileSystem().open(path, "rb"))  # ParquetFile would leave it open
        yield stack.enter_context(pq.ParquetFile(source, **STREAMING))


def _identity(path: str) -> str:
    if not path.startswith(_REMOTE):
        found = os.stat(path)
        return f"{Path(path).name} {found.st_size} {found.st_mtime_ns}"
    if _COMMIT.search(path):  # as datasets names the files of a Hub dataset
        return path
    from huggingface_hub import HfFileSystem

    return f"{path} {HfFileSystem().ukey(path)}"


def _record_batches(
    path: str, groups: Sequence[int], columns: list[str], start: int, size: int
) -> Iterator[Any]:
    """Record batches from row `start` on, of a file whose row groups have `groups` rows.

    Row groups before it are not read. While the caller holds the last batch of one, the file is closed: an
    open reader keeps several times the row group, and as many are open as a process has lanes and readings.
    """
    first = 0
    for group, rows in enumerate(groups):
        if first + rows > start:
            row, held = first, None
            with _parquet(path) as file:
                # Asked for all groups at once, pyarrow would keep them.
                for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                    if held is not None:
                        yield held
                    held = batch.slice(max(0, start - row)) if row + batch.num_rows > start else None
                    row += batch.num_rows
            if held is not None:
                yield held
        first += rows


def _rebatch(batches: Iterator[Any], size: int) -> Iterator[pa.Table]:
    """Record batches of any sizes -> tables of `size` rows, the last one fewer."""
    import pyarrow as pa

    held: list[Any] = []
    rows = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            batch = batch.slice(part.num_rows)
            held.append(part)
            rows += part.num_rows
            if rows == size:
                yield pa.Table.from_batches(held)
                held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


class IterableStories:
    """A streamed dataset (`load_dataset(..., streaming=True)`); its shards are the dataset's.

    To begin in the middle of a shard, datasets reads the rows before and drops them; `ParquetStories` does
    not, and `open_stories` takes it wherever the files are Parquet.

    Args:
        identity: what tells this dataset from others, for `MappedStories.build`.
    """

    def __init__(self, dataset: datasets.IterableDataset, reader: StoryReader, identity: Sequence[str] = ()):
        self.dataset, self.reader, self._identity = dataset, reader, list(identity)

    @property
    def languages(self) -> tuple[str, ...]:
        return self.reader.languages

    @property
    def num_shards(self) -> int:
        return self.dataset.num_shards

    def languages_of(self, shard: int) -> frozenset[str]:
        names = self.dataset.column_names
        if names is None:  # known once rows are read
            return frozenset(self.languages)
        return _languages(self.reader.columns(names, "the streamed dataset"))

    def num_stories(self) -> None:
        return None

    def identity(self) -> list[str]:
        if not self._identity:
            raise ValueError(
                "it is not known where this streamed dataset comes from, so no cache can be kept of it; give "
                "its folder or its Hub id to open_stories."
            )
        return list(self._identity)

    def blocks(self, shard: int, start: int = 0, size: int = BLOCK_STORIES) -> Iterator[StoryTable]:
        dataset = self.dataset.shard(num_shards=self.dataset.num_shards, index=shard)
        if dataset.column_names is not None:
            dataset = dataset.select_columns(
                self.reader.columns(dataset.column_names, "the streamed dataset")
            )
        if start:
            dataset = dataset.skip(start * size)
        for number, rows in enumerate(dataset.with_format("arrow").iter(batch_size=size)):
            where = f"shard {shard} of the streamed dataset from row {(start + number) * size}"
            self.reader.columns(rows.schema.names, where)
            yield self.reader.table(rows, where)


class DatasetStories:
    """A map-style dataset (`load_dataset(...)`), cut into shards.

    Args:
        shards: `[K + 1]` first rows of the shards and the end, such as the files had; or their number, for
            shards of nearly equal size.
    """

    def __init__(self, dataset: datasets.Dataset, reader: StoryReader, shards: Sequence[int] | int):
        rows = len(dataset)
        if isinstance(shards, int):
            if not 1 <= shards <= rows:
                raise ValueError(f"a dataset of {rows} rows has 1 to {rows} shards, got {shards}.")
            shards = [rows * index // shards for index in range(shards + 1)]
        self.shards = np.asarray(shards, dtype=np.int64)
        sizes = np.diff(self.shards)
        if not sizes.size or self.shards[0] or self.shards[-1] != rows or (sizes < 0).any():
            raise ValueError(
                f"shards must rise from 0 to {rows}, the number of rows; got {self.shards.tolist()}."
            )
        names = reader.columns(dataset.column_names, "the dataset")
        self.dataset, self.reader = dataset.select_columns(names).with_format("arrow"), reader
        self._languages = _languages(names)

    @property
    def languages(self) -> tuple[str, ...]:
        return self.reader.languages

    @property
    def num_shards(self) -> int:
        return len(self.shards) - 1

    def languages_of(self, shard: int) -> frozenset[str]:
        return self._languages

    def num_stories(self) -> int:
        return len(self.dataset)

    def identity(self) -> list[str]:
        return [f"dataset {self.dataset._fingerprint} {self.shards.tolist()}"]

    def blocks(self, shard: int, start: int = 0, size: int = BLOCK_STORIES) -> Iterator[StoryTable]:
        first, stop = self.shards[shard : shard + 2].tolist()
        for row in range(first + start * size, stop, size):
            yield self.reader.table(self.dataset[row : min(row + size, stop)], f"the dataset from row {row}")


class JoinedStories:
    """Several sources, their shards one after the other."""

    def __init__(self, sources: Sequence[ShardedStories]):
        self.sources = list(sources)
        self._offsets = np.cumsum([0, *(source.num_shards for source in self.sources)])

    @property
    def languages(self) -> tuple[str, ...]:
        return self.sources[0].languages

    @property
    def num_shards(self) -> int:
        return int(self._offsets[-1])

    def _place(self, shard: int) -> tuple[Any, int]:
        source = int(np.searchsorted(self._offsets, shard, side="right")) - 1
        return self.sources[source], shard - int(self._offsets[source])

    def languages_of(self, shard: int) -> frozenset[str]:
        source, own = self._place(shard)
        return source.languages_of(own)

    def num_stories(self) -> int | None:
        numbers = [source.num_stories() for source in self.sources]
        return None if None in numbers else sum(numbers)

    def identity(self) -> list[str]:
        return [line for source in self.sources for line in source.identity()]

    def blocks(self, shard: int, start: int = 0, size: int = BLOCK_STORIES) -> Iterator[StoryTable]:
        source, own = self._place(shard)
        return source.blocks(own, start, size)


# -- memory-mapped -------------------------------------------------------------------------------------------


class StoryIds(Sequence):
    """Ids in one blob of UTF-8 `[bytes]` with offsets `[N + 1]`: no Python string before one is asked for."""

    def __init__(self, blob: np.ndarray, offsets: np.ndarray):
        self.blob, self.offsets = blob, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StoryIds: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"ids are cut in steps of 1, got {index}.")
            return StoryIds(self.blob, self.offsets[start : max(start, stop) + 1])
        index = range(len(self))[index]
        return self.blob[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8")


class MappedStories:
    """A corpus in memory-mapped arrays, with the shards of the source that it was written from.

    A cache folder holds `stories.json` (what it was made from, and the length of every array) and

        keys.npy ids.npy id_offsets.npy      uint64 [N]; UTF-8; int64 [N + 1]
        units.npy                            uint16 [n], the languages one after the other
        tokens.npy                           what the model reads, unless that is the units
        stories_<L>.npy                      int64 [N + 1], the first sentence of every story
        units_<L>.npy tokens_<L>.npy         int64 [S + 1], where in units.npy or tokens.npy sentences begin

    Attributes:
        table: all stories, views of the files.
        shards: `[K + 1]` first story of every shard, and the end.
        left_out: rows that could not be used.
    """

    def __init__(self, folder: str | Path):
        """Open a cache folder.

        Raises:
            ValueError: it holds something else, or its files are not as they were written.
        """
        self.folder = Path(folder)
        index = _read_index(self.folder)
        arrays = {name: self._map(name, entry) for name, entry in index["arrays"].items()}
        self.languages: tuple[str, ...] = tuple(index["vocabulary"]["languages"])
        self.shards = np.array(index["shards"], dtype=np.int64)
        self._shard_languages = [frozenset(codes) for codes in index["shard_languages"]]
        self.left_out = LeftOut(**index["left_out"])

        def columns(kind: str) -> dict[str, UnitColumn]:
            return {
                code: UnitColumn(arrays[kind], arrays[f"{kind}_{code}"], arrays[f"stories_{code}"])
                for code in self.languages
            }

        merged = "tokens" in arrays
        units = columns("units")
        self.table = StoryTable(
            StoryIds(arrays["ids"], arrays["id_offsets"]),
            columns("tokens") if merged else units,
            units if merged else {},
            arrays["keys"],
            raw=not merged,
        )
        self._check_ends(index)

    def _map(self, name: str, entry: Mapping[str, Any]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            # np.memmap makes an object of every slice; a plain array over the same memory does not.
            array = np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise self._broken(f"{path.name} cannot be mapped ({error})") from error
        if array.dtype != entry["dtype"] or array.shape != (entry["length"],):
            raise self._broken(
                f"{path.name} holds {array.dtype} {array.shape}, not {entry['dtype']} ({entry['length']},)"
            )
        return array

    def _check_ends(self, index: Mapping[str, Any]) -> None:
        """What a file of the right length may still have wrong, as far as a look at its ends tells."""
        table, stories = self.table, index["stories"]
        ids = table.ids
        sound = len(table) == stories == self.shards[-1] and ids.offsets[-1] == len(ids.blob)
        sound = sound and (not stories or int(table.keys[-1]) == story_key(ids[stories - 1]))
        for columns in (table.columns, table.units):
            end = 0
            for code in self.languages if columns else ():
                column = columns[code]
                sound = sound and column.sentence_offsets[0] == end
                sound = sound and column.row_offsets[-1] == len(column.sentence_offsets) - 1
                end = column.sentence_offsets[-1]
            sound = sound and (not columns or end == len(columns[self.languages[0]].units))
        if not sound:
            raise self._broken("its arrays do not fit together")

    def _broken(self, what: str) -> ValueError:
        return ValueError(
            f"the story cache {self.folder} is damaged: {what}. Delete the folder; it is made anew."
        )

    def __reduce__(self):
        return MappedStories, (self.folder,)  # another process maps the files itself

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_shards(self) -> int:
        return len(self.shards) - 1

    def languages_of(self, shard: int) -> frozenset[str]:
        return self._shard_languages[shard]

    def blocks(self, shard: int, start: int = 0, size: int = BLOCK_STORIES) -> Iterator[StoryTable]:
        first, stop = self.shards[shard : shard + 2].tolist()
        for story in range(first + start * size, stop, size):
            yield self._cut(story, min(story + size, stop))

    def _cut(self, start: int, stop: int) -> StoryTable:
        def cut(column: UnitColumn) -> UnitColumn:
            return column._replace(row_offsets=column.row_offsets[start : stop + 1])

        table = self.table
        return StoryTable(
            table.ids[start:stop],
            {code: cut(column) for code, column in table.columns.items()},
            {code: cut(column) for code, column in table.units.items()},
            table.keys[start:stop],
            table.raw,
        )

    def corpus_tokens(self) -> dict[str, int]:
        """Tokens of every language in one epoch."""
        columns = self.table.columns
        return {
            code: int(columns[code].sentence_offsets[-1] - columns[code].sentence_offsets[0])
            for code in self.languages
        }

    @classmethod
    def build(cls, source: Any, cache_dir: str | Path | None = None, progress: bool = True) -> MappedStories:
        """Open the cache of a source, or write it; with several processes one writes and the others wait.

        Args:
            source: one of the sources above (with `reader` and `identity`).
            cache_dir: where caches lie; None: `hf_clsi/stories` in the Hugging Face home.

        Raises:
            ValueError: a faulty row; a cache folder that is damaged.
        """
        from huggingface_hub.utils import WeakFileLock

        reader = _reader_of(source)
        key = {"format": _FORMAT, "source": source.identity(), "vocabulary": reader.vocabulary()}
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
        cache = Path(cache_dir) if cache_dir is not None else _default_cache()
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / digest
        if not folder.is_dir():
            with WeakFileLock(cache / f".{digest}.lock"):
                if not folder.is_dir():  # another process may have written it in the meantime
                    _write(source, reader, key, cache / f".{digest}.partial", folder, progress)
        index = _read_index(folder)
        if {name: index.get(name) for name in key} != key:
            raise ValueError(
                f"the story cache {folder} was made from other data or another vocabulary than its name "
                "says. Delete the folder; it is made anew."
            )
        return cls(folder)


def _default_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_clsi" / "stories"


def _reader_of(source: Any) -> StoryReader:
    return _reader_of(source.sources[0]) if isinstance(source, JoinedStories) else source.reader


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            raise KeyError("format")
        return index
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is no story cache of this version ({type(error).__name__}: {error}). Delete the "
            "folder; it is made anew."
        ) from error


def _write(
    source: Any, reader: StoryReader, key: dict[str, Any], partial: Path, folder: Path, progress: bool
) -> None:
    """Write a cache beside its place, and move it there as a whole."""
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        writer = _CacheWriter(partial, reader)
        shards, shard_languages = [0], []
        bar = tqdm(
            total=source.num_stories(),
            desc="Mapping stories",
            unit=" stories",
            disable=not progress,
            leave=False,
        )
        with bar:
            for shard in range(source.num_shards):
                for block in source.blocks(shard):
                    writer.add(block)
                    bar.update(len(block))
                shards.append(writer.stories)
                shard_languages.append(sorted(source.languages_of(shard)))
        index = {
            **key,
            "stories": writer.stories,
            "shards": shards,
            "shard_languages": shard_languages,
            "left_out": vars(reader.left_out),
            "arrays": writer.finish(),
        }
        (partial / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class _CacheWriter:
    """Appends blocks to one file an array and language; `finish` joins languages and puts headers before."""

    def __init__(self, folder: Path, reader: StoryReader):
        self.folder, self.languages = folder, reader.languages
        self.kinds = {"units": np.dtype(np.uint16)}
        if reader.merging:
            self.kinds["tokens"] = reader.token_dtype
        self.stories = 0
        self.sentences = dict.fromkeys(self.languages, 0)
        self.values = {(kind, code): 0 for kind in self.kinds for code in self.languages}
        self.bytes = 0
        self._append("id_offsets", np.zeros(1, dtype=np.int64))
        for code in self.languages:
            self._append(f"stories_{code}", np.zeros(1, dtype=np.int64))
            for kind in self.kinds:
                self._append(f"{kind}_{code}", np.zeros(1, dtype=np.int64))

    def add(self, block: StoryTable) -> None:
        encoded = [story_id.encode("utf-8") for story_id in block.ids]
        self._append("ids", np.frombuffer(b"".join(encoded), dtype=np.uint8))
        self._append("id_offsets", self.bytes + np.cumsum([len(each) for each in encoded], dtype=np.int64))
        self.bytes += sum(map(len, encoded))
        self._append("keys", block.story_keys)
        self.stories += len(block)
        for code in self.languages:
            columns = {"units": block.columns[code]}
            if "tokens" in self.kinds:
                columns = {"units": block.units[code], "tokens": block.columns[code]}
            self._append(f"stories_{code}", columns["units"].row_offsets[1:] + self.sentences[code])
            self.sentences[code] += len(columns["units"].sentence_offsets) - 1
            for kind, column in columns.items():
                self._append(f"{kind}.{code}", column.units)
                self._append(f"{kind}_{code}", column.sentence_offsets[1:] + self.values[kind, code])
                self.values[kind, code] += len(column.units)

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def _append(self, name: str, values: np.ndarray) -> None:
        with open(self._part(name), "ab") as file:
            file.write(np.ascontiguousarray(values).data)

    def finish(self) -> dict[str, dict[str, Any]]:
        """The arrays: name -> dtype and length."""
        arrays = {
            name: self._finish(name, np.dtype(dtype), [(name, 0)])
            for name, dtype in (("keys", np.uint64), ("ids", np.uint8), ("id_offsets", np.int64))
        }
        for code in self.languages:
            name = f"stories_{code}"
            arrays[name] = self._finish(name, np.dtype(np.int64), [(name, 0)])
        for kind, dtype in self.kinds.items():
            arrays[kind] = self._finish(kind, dtype, [(f"{kind}.{code}", 0) for code in self.languages])
            base = 0
            for code in self.languages:
                name = f"{kind}_{code}"
                arrays[name] = self._finish(name, np.dtype(np.int64), [(name, base)])
                base += self.values[kind, code]
        return arrays

    def _finish(self, name: str, dtype: np.dtype, parts: list[tuple[str, int]]) -> dict[str, Any]:
        """Parts with something added to each value -> one .npy file, which reaches the disk."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in (self._part(p) for p, _ in parts)]
        length = sum(sizes) // dtype.itemsize
        with open(self.folder / f"{name}.npy", "wb") as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
            for (part, base), size in zip(parts, sizes, strict=True):
                for start in range(0, size // dtype.itemsize, _CHUNK):
                    values = np.fromfile(self._part(part), dtype, _CHUNK, offset=start * dtype.itemsize)
                    file.write((values + dtype.type(base) if base else values).data)
                self._part(part).unlink(missing_ok=True)
            file.flush()
            os.fsync(file.fileno())
        return {"dtype": dtype.name, "length": length}


# -- opening -------------------------------------------------------------------------------------------------


def open_stories(
    data: Sequence[str | Path] | str | Path,
    languages: Sequence[str],
    *,
    merges: UnitMerges | None = None,
    num_units: int | None = None,
    cache_dir: str | Path | None = None,
    split: str = "train",
    streaming: bool = False,
    progress: bool = True,
    faulty: str = "refuse",
) -> MappedStories | ParquetStories | IterableStories | JoinedStories:
    """Training stories of one or several datasets.

    Datasets may have different languages (the paper: LibriHeavy in English alone, TinyStories in English and
    French): a stage in one language reads all stories that have it, an interleaved stage those that have all
    its languages.

    Args:
        data: dataset folders, or Hub ids. Of a dataset with several configs, `units` is taken.
        languages: codes; every dataset has at least one of them.
        merges, num_units: the vocabulary, see `StoryReader`.
        cache_dir: where memory-mapped copies lie; None: `hf_clsi/stories` in the Hugging Face home.
        split: of all the datasets.
        streaming: read the files as training goes on, without a copy.
        progress: show a bar while the copy is made.
        faulty: "refuse" or "leave_out" rows that cannot be used.

    Returns:
        `MappedStories`, or a source to stream from.

    Raises:
        FileNotFoundError: no such folder or split.
        ValueError: a dataset without units in these languages, several configs none of which is `units`, or a
            faulty row (named by its id; while streaming, when it is read).
    """
    reader = StoryReader(languages, merges, num_units, faulty)
    names = [data] if isinstance(data, (str, Path)) else list(data)
    if not names:
        raise ValueError("there is no dataset to read; give a folder or a Hub id.")
    sources = [_source(name, split, reader) for name in names]
    source = sources[0] if len(sources) == 1 else JoinedStories(sources)
    return source if streaming else MappedStories.build(source, cache_dir, progress)


def _source(name: str | Path, split: str, reader: StoryReader) -> ParquetStories | IterableStories:
    folder = Path(name)
    if folder.is_dir():
        configs = sorted({path.parent.name for path in folder.glob(f"*/{split}-*-of-*.parquet")})
        if configs:
            config = _config(configs, name)
            return ParquetStories(list_shards(folder, split, None if config == "data" else config), reader)
    elif isinstance(name, Path) or not HUB_ID.fullmatch(str(name)):
        raise FileNotFoundError(
            f"there is no dataset folder {name}, and no dataset of the Hub has such a name."
        )
    return _loaded(str(name), split, reader)


def _config(configs: Sequence[str], name: str | Path) -> str:
    if UNITS_CONFIG in configs:
        return UNITS_CONFIG
    if len(configs) != 1:
        raise ValueError(
            f"dataset {name} has the configs {', '.join(configs)}; training reads '{UNITS_CONFIG}', or the "
            "only one of a dataset. Copy the one to be read into a folder of its own."
        )
    return configs[0]


def _loaded(name: str, split: str, reader: StoryReader) -> ParquetStories | IterableStories:
    """Another layout, or a dataset of the Hub: the files that `load_dataset` would read."""
    from datasets import get_dataset_config_names, load_dataset, load_dataset_builder

    config = _config(get_dataset_config_names(name), name)
    builder = load_dataset_builder(name, config)
    files = builder.config.data_files or {}
    if split not in files:
        raise FileNotFoundError(
            f"dataset {name} has no split '{split}'; it has {', '.join(map(str, files))}."
        )
    paths = [str(path) for path in files[split]]
    if all(path.endswith(".parquet") for path in paths):
        return ParquetStories(paths, reader)
    dataset = load_dataset(name, config, split=split, streaming=True)
    return IterableStories(dataset, reader, [_identity(path) for path in paths])
