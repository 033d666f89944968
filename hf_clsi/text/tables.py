"""CSV and TSV files become rows: commas, semicolons or tabs, whichever the header has most of.

UTF-8 with or without a byte order mark, Windows-1252 with a warning; any line ends; blank lines are no rows.
A table is read whole.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from .sources import Row


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a table as {column: cell}, both text; one with too few or too many cells is bad.

    Raises:
        ValueError: neither UTF-8 nor Windows-1252, or a quote that is never closed.
    """
    text = _decoded(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    header: list[str] | None = None
    for first, last, cells in _split_tabs(text) if delimiter == "\t" else _split_csv(text, delimiter, path):
        while cells and not cells[-1].strip() and (header is None or len(cells) > len(header)):
            cells.pop()  # spreadsheets add empty columns
        if not any(cells):
            continue
        where = f"{path.name}:{first}"
        if header is None:
            header = cells
        elif len(cells) == len(header):
            yield Row(where, dict(zip(header, cells, strict=True)))
        else:
            lines = f"line {first}" if first == last else f"lines {first} to {last} (is a quote left open?)"
            yield Row(where, None, f"{lines}: {len(cells)} cells, the header has {len(header)}")


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise ValueError(
                f"{path} is neither UTF-8 nor Windows-1252: {error}. Save it as UTF-8."
            ) from error
        warnings.warn(
            f"{path} is not UTF-8 ({error}); read as Windows-1252. Look at its accents, or save it as UTF-8.",
            stacklevel=2,
        )
        return text


def _split_csv(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of every row."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    first = 1
    try:
        for cells in reader:
            yield first, reader.line_num, cells
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, from line {first} on: {error}. A quote that is opened there is not closed."
        ) from error


def _split_tabs(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """As `_split_csv`. Quotes are undone only around a whole cell: where they stand bare, as in XStoryCloze's
    files, a CSV reader would run on into the next lines."""
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        yield number, number, [_unquoted(cell.strip()) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
    match = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return match[1].replace('""', '"') if match else cell
