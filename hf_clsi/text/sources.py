"""Files and datasets of the Hub become rows, one at a time: what is bad in them is told, never raised.

    .txt      stories between lines <|endoftext|> (TinyStories' own format): one row {"text": ...} each
    .jsonl    one object a line
    .parquet  row by row, a batch of rows in memory
    owner/name[@revision]  a dataset of the Hub, streamed

The first two may be packed (.txt.gz, .jsonl.gz). Text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..processing_clsi import HUB_ID

END_OF_TEXT = "<|endoftext|>"
KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
FILE_ENDINGS = (*KINDS, ".csv", ".tsv", ".json", ".gz")  # a path with one of these is no Hub id
_LONGEST_STORY = 4_000_000  # bytes without an end: then the file is not in TinyStories' format
_BATCH_ROWS = 512  # of text or JSON


class Row(NamedTuple):
    """One row of a source: `where` it is (file and line), and its columns, or else what is wrong with it."""

    where: str
    columns: Mapping[str, Any] | None
    fault: str = ""


def parse_hub_id(source: str | Path) -> tuple[str, str | None] | None:
    """("owner/name", revision or None) of a Hub dataset id, None if it cannot be one.

    >>> parse_hub_id("roneneldan/TinyStories@main")
    ('roneneldan/TinyStories', 'main')
    """
    name, _, revision = str(source).partition("@")
    is_id = isinstance(source, str) and "/" in name and HUB_ID.fullmatch(name)
    return (name, revision or None) if is_id and not name.endswith(FILE_ENDINGS) else None


def open_hub(name: str, revision: str | None = None, config: str | None = None) -> Mapping[str, Iterable]:
    """Split name -> rows of a Hub dataset, streamed.

    Raises:
        FileNotFoundError: there is no such dataset, or the Hub cannot be reached.
        ValueError: it needs a loading script, or one of its configs must be chosen.
    """
    from datasets import load_dataset

    with _hub_errors(name):
        return load_dataset(name, config, revision=revision, streaming=True)


def hub_configs(name: str, revision: str | None = None) -> list[str]:
    """The configs of a Hub dataset. Raises as `open_hub`."""
    from datasets import get_dataset_config_names

    with _hub_errors(name):
        return get_dataset_config_names(name, revision=revision)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of the Hub and of the connection alike
        raise FileNotFoundError(
            f"'{name}' is neither a file or folder here nor a dataset that the Hub gives: {error}. Check the "
            "name and the connection, or download it and give the folder of its files."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"the Hub dataset {name} cannot be loaded: {error}. If it is a script, the Hub's own conversion "
            f"may do: {name}@refs/convert/parquet."
        ) from error


def story_files(folder: Path) -> list[Path]:
    """The story files of a folder by name, all of one kind.

    Raises:
        ValueError: there are none, of several kinds, or two that differ in their ending alone.
    """
    paths = sorted(p for p in folder.iterdir() if p.name.endswith(KINDS) and p.name[0] != "." and p.is_file())
    kinds = {kind_of(path) for path in paths}
    if len(kinds) != 1:
        raise ValueError(
            f"{folder} has "
            + (f"files of several kinds, {', '.join(sorted(kinds))}" if kinds else "no story file")
            + f". A folder is a source if the files directly in it are of one kind of {', '.join(KINDS)}; "
            "otherwise give one file."
        )
    stems = [stem_of(path) for path in paths]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"{folder} has two files '{twice[0]}', one of them packed. Remove one of them.")
    return paths


def kind_of(path: Path) -> str:
    """ ".txt", ".jsonl" or ".parquet"; packing does not matter.

    Raises:
        ValueError: another kind of file.
    """
    if not path.name.endswith(KINDS):
        raise ValueError(f"{path} is no story file: its name must end in one of {', '.join(KINDS)}.")
    return Path(path.name.removesuffix(".gz")).suffix


def stem_of(path: Path) -> str:
    """The name without its ending: stories of stories.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        ValueError: it is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file, or is cut short: {error}") from error


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a .txt, .jsonl or .parquet file, packed or not, one at a time; bad ones among them.

    Args:
        columns: of Parquet, the only ones that are read; those that the file lacks do not matter.

    Raises:
        ValueError: the file is of another kind, broken, or has a line or story without an end.
    """
    readers = {".txt": _read_text, ".jsonl": _read_jsonl}
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _read_parquet(path, columns)
        return
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            yield from readers[kind](file, path.name)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a gzip file, or is cut short: {error}") from error


def _read_text(file: BinaryIO, name: str) -> Iterator[Row]:
    """Stories between lines <|endoftext|>; what follows the last of them counts if there is something."""
    story: list[bytes] = []
    size, first_line, line_number = 0, 1, 0
    marker = END_OF_TEXT.encode()
    while line := file.readline(_LONGEST_STORY):
        line_number += 1
        if line.strip() == marker:
            yield _decoded(b"".join(story), f"{name}:{first_line}")
            story, size, first_line = [], 0, line_number + 1
            continue
        story.append(line)
        size += len(line)
        if size >= _LONGEST_STORY:
            raise ValueError(
                f"{name}: no line {END_OF_TEXT} in the {_LONGEST_STORY:,} bytes after line {first_line}. A "
                ".txt source has that line between its stories."
            )
    if b"".join(story).strip():
        yield _decoded(b"".join(story), f"{name}:{first_line}")


def _decoded(story: bytes, where: str) -> Row:
    try:
        return Row(where, {"text": story.decode()})
    except UnicodeDecodeError as error:
        return Row(where, None, f"not UTF-8: {error}")


def _read_jsonl(file: BinaryIO, name: str) -> Iterator[Row]:
    for number in count(1):
        line = file.readline(_LONGEST_STORY)
        if not line:
            return
        if len(line) == _LONGEST_STORY:
            raise ValueError(f"{name}: line {number} has more than {_LONGEST_STORY:,} bytes.")
        where = f"{name}:{number}"
        if line.isspace():
            continue
        try:
            columns = json.loads(line.decode())
        except ValueError as error:  # of UTF-8 and of JSON
            yield Row(where, None, f"not JSON in UTF-8: {error}")
            continue
        except RecursionError:
            yield Row(where, None, "nested too deeply")
            continue
        if not isinstance(columns, dict):
            yield Row(where, None, f"not an object but {shown(columns)}")
        elif b"\\u" in line and _has_half_a_character(columns):
            yield Row(where, None, "half of a surrogate pair, which no file can hold")
        else:
            yield Row(where, columns)


def _has_half_a_character(columns: dict[str, Any]) -> bool:
    try:
        json.dumps(columns, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = parquet_columns(path)
    if columns is not None:
        names = [name for name in names if name in columns]
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=names):
                for row in range(len(batch)):
                    number += 1
                    where = f"{path.name}:{number}"
                    try:
                        yield Row(where, batch.slice(row, 1).to_pylist()[0])
                    except UnicodeDecodeError as error:
                        yield Row(where, None, f"not UTF-8: {error}")
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged after row {number}: {error}") from error


def shown(value: Any) -> str:
    """A cell in an error message: its type and how it begins."""
    return f"{type(value).__name__} {value!r:.60}"
