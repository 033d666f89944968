"""Stories of any source become sentences by language, one story at a time: grammar, text, Parquet or the Hub.

| source | what it holds |
|---|---|
| `grammar` | the built-in story grammar (text/stories.py): every language at once, with topics |
| `.txt`, `.txt.gz` | TinyStories' own format: stories between lines `<|endoftext|>` |
| `.jsonl`, `.jsonl.gz` | one object a line |
| `.parquet` | the same columns |
| a folder | files of one of these kinds, read in the order of their names; sub-folders are not entered |
| `owner/name`, `owner/name@revision` | a dataset of the Hub with the same columns, streamed |

Columns: `text`, or `text_<language>` for every language that is there; each a string, which is split into
sentences, or a list of sentences. Optional: `story_id` (or `id`) and `topic`. Others are not read.

Splits: the grammar has its own. Files of a folder named after a split (`train-00000-of-00004.parquet`,
`TinyStoriesV2-GPT4-valid.txt`) and splits of the Hub are used where both train and validation exist; a
training story that is also a validation story is then dropped ("in_validation"). Anything else is divided
by a hash of the seed and the story: neither the order of the stories nor their number matters, and equal
texts never straddle. What is named test is left alone.

Memory: one story (of Parquet: one batch of rows) and a digest of each, in a table of 16 bytes a story on
average; as much again where rows bring their own ids.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from .digests import DigestSet, text_digest
from .drops import Drops
from .languages import FRAME_TABLES, LANGUAGES
from .languages import language as get_language
from .sentences import split_sentences
from .sources import (
    KINDS,
    Row,
    kind_of,
    open_hub,
    parquet_columns,
    parse_hub_id,
    read_rows,
    shown,
    stem_of,
    story_files,
)
from .stories import Holdout, draw_stories, tell

GRAMMAR = "grammar"
CorpusSplit = Literal["train", "validation"]
#: Which content of the grammar a split of the corpus tells.
_GRAMMAR_SPLITS = {"train": "train", "validation": "dev"}
_SPLIT_NAME = re.compile(r"(?:^|[-_.])(train|training|valid|validation|test)(?=[-_.\d]|$)", re.IGNORECASE)
_SPLIT_NAMES = {"training": "train", "valid": "validation", "dev": "validation"}
_WHOLE_DIGEST_BYTES = 256 << 20
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 20


@dataclass(frozen=True)
class StoryText:
    """A story in sentences: `texts[language]`, equally many in every language that is there."""

    id: str
    texts: dict[str, tuple[str, ...]]
    topic: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Limits:
    """Which stories are taken: how many sentences, and how many characters the longest may have."""

    min_sentences: int
    max_sentences: int
    max_sentence_characters: int

    def fault(self, texts: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
        """(reason, message) of what is wrong with a story, None if nothing is."""
        counts = {language: len(sentences) for language, sentences in texts.items()}
        if len(set(counts.values())) > 1:
            return "unequal_sentences", ", ".join(f"{n} in {language}" for language, n in counts.items())
        count = next(iter(counts.values()))
        if count < self.min_sentences:
            return "too_few_sentences", f"{count}, at least {self.min_sentences} are asked for"
        if count > self.max_sentences:
            return "too_many_sentences", f"{count}, at most {self.max_sentences} are asked for"
        longest = max(chain.from_iterable(texts.values()), key=len)
        if len(longest) > self.max_sentence_characters:
            return "long_sentence", f"{len(longest)} characters: {longest[:60]}…"
        return None


def read_stories(
    source: str | Path,
    *,
    split: CorpusSplit,
    languages: Sequence[str],
    source_language: str = "en",
    num_stories: int | None = None,
    seed: int = 0,
    validation_share: float = 0.01,
    min_sentences: int = 2,
    max_sentences: int = 100,
    max_sentence_characters: int = 400,
    complete: bool = False,
    drops: Drops,
) -> Iterator[StoryText]:
    """The stories of one split, in the order of the source, one at a time.

    Args:
        source: "grammar", a file, a folder or a Hub id (see the module).
        languages: which languages are wanted. The grammar tells all of them; of other sources, those that a
            row has: the source language always, the others where there is a `text_<language>` for them.
        source_language: the language of the column `text`.
        num_stories: at most so many are given, dropped ones not counted; None for all. The grammar needs a
            number, and draws so many.
        seed: of the grammar, and of the division into splits.
        validation_share: of a source without splits of its own.
        min_sentences, max_sentences, max_sentence_characters: stories outside are dropped.
        complete: every language must be in the source ("missing_language" otherwise), since nothing
            will be translated.
        drops: takes what was left out: "bad_row" (not JSON, wrong type, not UTF-8), "missing_language",
            "empty", "duplicate" (of an earlier story of the split), "duplicate_id", "in_validation",
            "too_few_sentences", "too_many_sentences", "long_sentence", "unequal_sentences". The first three
            have the file and line as id and, of a source without splits of its own, count as train's.

    Raises:
        FileNotFoundError: there is no such file or Hub dataset.
        ValueError: an argument out of range, a source that is none of these, a broken file, columns without
            the source language; of the grammar, a language that it does not speak.
    """
    if split not in _GRAMMAR_SPLITS:
        raise ValueError(f"split={split!r} is not one of {tuple(_GRAMMAR_SPLITS)}.")
    if not languages or len(set(languages)) < len(languages):
        raise ValueError(f"languages={list(languages)} must be at least one, each once.")
    if source_language not in languages:
        raise ValueError(f"source_language={source_language!r} is not among languages={list(languages)}.")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share={validation_share} must be at least 0 and below 1.")
    if num_stories is not None and num_stories < 0:
        raise ValueError(f"num_stories={num_stories} must not be negative; None takes all.")
    if not 1 <= min_sentences <= max_sentences or max_sentence_characters < 1:
        raise ValueError(
            f"min_sentences={min_sentences}, max_sentences={max_sentences} and "
            f"max_sentence_characters={max_sentence_characters} leave no story; 1 <= min <= max is needed."
        )
    limits = Limits(min_sentences, max_sentences, max_sentence_characters)
    if str(source) == GRAMMAR:
        stories = _tell_stories(split, languages, num_stories, seed, limits, drops)
    else:
        cells = _Cells(tuple(languages), source_language, complete)
        corpus = _open_corpus(source, cells)
        stories = _read_corpus(corpus, split, cells, limits, seed, validation_share, drops)
    return islice(stories, num_stories)


def _tell_stories(
    split: CorpusSplit,
    languages: Sequence[str],
    num_stories: int | None,
    seed: int,
    limits: Limits,
    drops: Drops,
) -> Iterator[StoryText]:
    if num_stories is None:
        raise ValueError(
            "the grammar has no last story: say how many with num_stories (it holds over 10^7 for training)."
        )
    for code in languages:
        get_language(code)
    plans = draw_stories(num_stories, _GRAMMAR_SPLITS[split], Holdout(seed), seed)

    def stories() -> Iterator[StoryText]:
        for number, plan in enumerate(plans):
            story_id = f"{split}-{number:06d}"
            texts = {code: tuple(tell(plan, code)) for code in languages}
            if fault := limits.fault(texts):
                drops.add(story_id, *fault)
            else:
                yield StoryText(story_id, texts, plan.topic, split)

    return stories()


# -- from rows to stories ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Corpus:
    """A source opened: `parts` gives fresh rows with the ids that they get if they bring none.

    With splits of its own the parts are "train" and "validation"; otherwise there is one, "".
    """

    parts: Mapping[str, Callable[[], Iterator[tuple[str, Row]]]]

    @property
    def has_splits(self) -> bool:
        return "" not in self.parts


class _Fault(Exception):
    """Why a row is no story; its arguments are a reason and a message."""


def _read_corpus(
    corpus: _Corpus,
    split: CorpusSplit,
    cells: _Cells,
    limits: Limits,
    seed: int,
    validation_share: float,
    drops: Drops,
) -> Iterator[StoryText]:
    held_out = DigestSet()
    if corpus.has_splits and split == "train":
        for _, row in corpus.parts["validation"]():
            with suppress(_Fault):
                held_out.add(text_digest(cells.source(row)))
    seen, ids = DigestSet(), DigestSet()
    for position, row in corpus.parts[split if corpus.has_splits else ""]():
        try:
            text = cells.source(row)
            own_id = _own_id(row)
        except _Fault as fault:
            if corpus.has_splits or split == "train":
                drops.add(row.where, *fault.args)
            continue
        story_id = own_id or position
        # Before the split is decided, so that both splits agree on which of two stories has the id.
        new_id = own_id is None or ids.add(text_digest(own_id))
        if not corpus.has_splits and _split_of(text, seed, validation_share) != split:
            continue
        digest = text_digest(text)
        if not new_id:
            drops.add(story_id, "duplicate_id", f"at {row.where}; an earlier story has this id")
        elif digest in held_out:
            drops.add(story_id, "in_validation", text[:60])
        elif not seen.add(digest):
            drops.add(story_id, "duplicate", text[:60])
        else:
            try:
                texts = cells.sentences(row)
                if fault := limits.fault(texts):
                    raise _Fault(*fault)
            except _Fault as fault:
                drops.add(story_id, *fault.args)
                continue
            topic = row.columns.get("topic")
            yield StoryText(story_id, texts, topic if isinstance(topic, str) else None, split)


@dataclass(frozen=True)
class _Cells:
    """Finds the texts of a row, by language."""

    languages: tuple[str, ...]
    source_language: str
    complete: bool

    @property
    def columns(self) -> list[str]:
        return ["story_id", "id", "topic", "text", *(f"text_{language}" for language in self.languages)]

    def check(self, columns: Iterable[str], source: str) -> None:
        """Refuse a table that cannot hold a story of the source language."""
        if not {"text", f"text_{self.source_language}"} & set(columns):
            raise ValueError(
                f"{source} has the columns {sorted(columns)}, but neither 'text' nor "
                f"'text_{self.source_language}'. Rename the column that holds the stories, or give another "
                "source_language."
            )

    def find(self, row: Row) -> dict[str, str | list[str]]:
        """The cells of a row that are there, checked: each a text or a list of sentences."""
        if row.columns is None:
            raise _Fault("bad_row", row.fault)
        found = {}
        for language in self.languages:
            cell = row.columns.get(f"text_{language}")
            if cell is None and language == self.source_language:
                cell = row.columns.get("text")
            if cell is not None:
                parts = cell if isinstance(cell, list) else [cell]
                if not all(isinstance(part, str) for part in parts):
                    raise _Fault("bad_row", f"{row.where}: the text in '{language}' is {shown(cell)}")
                found[language] = cell
        if not found:
            wanted = ["text", *(f"text_{language}" for language in self.languages)]
            raise _Fault("bad_row", f"{row.where}: none of {wanted}, but {sorted(row.columns)[:20]}")
        needed = self.languages if self.complete else (self.source_language,)
        if missing := [language for language in needed if language not in found]:
            raise _Fault("missing_language", f"{row.where}: {', '.join(missing)}")
        return found

    def source(self, row: Row) -> str:
        """The story in the source language, normalized: what makes two stories the same."""
        cell = self.find(row)[self.source_language]
        text = cell if isinstance(cell, str) else " ".join(cell)
        text = " ".join(unicodedata.normalize("NFC", text).split())
        if not any(map(str.isalnum, text)):
            raise _Fault("empty", f"{row.where}: {shown(cell)}")
        return text

    def sentences(self, row: Row) -> dict[str, tuple[str, ...]]:
        """The sentences by language."""
        texts = {}
        for language, cell in self.find(row).items():
            if isinstance(cell, str):
                texts[language] = tuple(split_sentences(cell, language))
            else:
                texts[language] = tuple(" ".join(sentence.split()) for sentence in cell)
            if not texts[language] or not all(any(map(str.isalnum, text)) for text in texts[language]):
                raise _Fault("empty", f"{row.where}: a sentence in '{language}' without a word")
        return texts


def _own_id(row: Row) -> str | None:
    for name in ("story_id", "id"):
        value = row.columns.get(name)
        if value is not None and value != "":
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise _Fault("bad_row", f"{row.where}: {name} is {shown(value)}, not a string or an integer")
            return str(value)
    return None


def _split_of(text: str, seed: int, validation_share: float) -> CorpusSplit:
    digest = text_digest(text, key=f"split {seed}")
    return "validation" if digest < validation_share * 2**64 else "train"


# -- from sources to rows ------------------------------------------------------------------------------------


def _open_corpus(source: str | Path, cells: _Cells) -> _Corpus:
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, cells)
    if path.is_file():
        kind_of(path)
        return _Corpus({"": _rows_of_files([path], cells)})
    if hub_id := parse_hub_id(source):
        return _open_hub_corpus(*hub_id, cells)
    raise FileNotFoundError(
        f"there is no story source '{source}'. Give '{GRAMMAR}', a file ({', '.join(KINDS)}), a folder of "
        "such files, or a dataset of the Hub as owner/name."
    )


def _open_folder(folder: Path, cells: _Cells) -> _Corpus:
    by_split: dict[str, list[Path]] = {}
    for path in story_files(folder):
        match = _SPLIT_NAME.search(stem_of(path))
        name = match[1].lower() if match else ""
        by_split.setdefault(_SPLIT_NAMES.get(name, name), []).append(path)
    by_split.pop("test", None)
    train, validation, other = (by_split.get(name, []) for name in ("train", "validation", ""))
    if validation and (other or not train):
        raise ValueError(
            f"{folder} has validation files ({validation[0].name}) "
            + (f"and files of no split ({other[0].name})" if other else "but no training files")
            + ". Begin the names of all files with train or validation, or give a single file."
        )
    if validation:
        parts = {"train": train, "validation": validation}
        return _Corpus({name: _rows_of_files(files, cells, name) for name, files in parts.items()})
    if not train + other:
        raise ValueError(f"{folder} has test files alone; name one of them as the source to use it.")
    return _Corpus({"": _rows_of_files(sorted(train + other), cells)})


def _rows_of_files(
    paths: Sequence[Path], cells: _Cells, split: str | None = None
) -> Callable[[], Iterator[tuple[str, Row]]]:
    """Rows with their default ids: numbered through all files of a split, or else in each file."""
    for path in paths:
        if kind_of(path) == ".parquet":
            cells.check(parquet_columns(path), str(path))

    def rows() -> Iterator[tuple[str, Row]]:
        if split is not None:
            every = chain.from_iterable(read_rows(path, cells.columns) for path in paths)
            yield from ((f"{split}-{number:08d}", row) for number, row in enumerate(every))
            return
        for path in paths:
            for number, row in enumerate(read_rows(path, cells.columns)):
                yield f"{stem_of(path)}-{number:08d}", row

    return rows


def _open_hub_corpus(name: str, revision: str | None, cells: _Cells) -> _Corpus:
    splits = {_SPLIT_NAMES.get(split, split): rows for split, rows in open_hub(name, revision).items()}
    if "train" not in splits:
        raise ValueError(f"the Hub dataset {name} has the splits {sorted(splits)}, but no 'train'.")

    def rows_of(split: str) -> Callable[[], Iterator[tuple[str, Row]]]:
        if columns := getattr(splits[split], "column_names", None):
            cells.check(columns, f"the Hub dataset {name}")

        def rows() -> Iterator[tuple[str, Row]]:
            for number, columns in enumerate(splits[split]):
                yield f"{split}-{number:08d}", Row(f"{name}:{split}:{number + 1}", columns)

        return rows

    if "validation" in splits:
        return _Corpus({split: rows_of(split) for split in ("train", "validation")})
    return _Corpus({"": rows_of("train")})


# -- which input it was --------------------------------------------------------------------------------------


def source_digest(source: str | Path | Mapping[str, str | Path]) -> str:
    """SHA-256 (hex) of what a source holds, so that a resumed build notices another input.

    * The grammar: its words and frames, and a few hundred stories as every registered language tells them.
    * A file: its name (ids come from it) and its content; of more than 256 MiB, its size and 64 blocks of
      1 MiB from the first byte to the last, so that some edits of a large file go unnoticed.
    * A folder: its story files (`story_files`).
    * A Hub id: the id and the revision in it. Without one (`owner/name@revision`), a later change of the
      dataset goes unnoticed.
    * A mapping (text/cloze_files.py): its keys, and the digest of each.

    Raises:
        FileNotFoundError: there is no such file, and it is no Hub id.
        ValueError: a folder without story files.
    """
    digest = hashlib.sha256()
    if isinstance(source, Mapping):
        digest.update(json.dumps([[key, source_digest(source[key])] for key in sorted(source)]).encode())
    elif str(source) == GRAMMAR:
        digest.update(_grammar_text().encode())
    elif Path(source).is_dir():
        for path in story_files(Path(source)):
            _update(digest, path)
    elif Path(source).is_file():
        _update(digest, Path(source))
    elif hub_id := parse_hub_id(source):
        digest.update(f"hub {hub_id}".encode())
    else:
        raise FileNotFoundError(f"there is no source '{source}'.")
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with open(path, "rb") as file:
        if size <= _WHOLE_DIGEST_BYTES:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            return
        for number in range(_SAMPLED_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))


def _grammar_text() -> str:
    tables = ("times", "characters", "topics", *FRAME_TABLES)
    words = [[code, *(repr(getattr(LANGUAGES[code], name)) for name in tables)] for code in sorted(LANGUAGES)]
    plans = draw_stories(300, "train", Holdout(0), 0)
    told = [[asdict(plan), *(tell(plan, code) for code in sorted(LANGUAGES))] for plan in plans]
    return json.dumps([words, told], sort_keys=True)
