"""Turns sentences into documents and documents into rows of one length: token ids, labels and position ids.

Two ways to fill rows of `capacity` tokens:

- `best_fit`: whole documents, longest first, each into the fullest row that still holds it. Cost: one sort,
  then a search a document among the free spaces of the open rows, kept as the bits of one integer.
- `concatenate`: all documents one after the other, cut every `capacity` tokens (arXiv 2512.01865:
  "concatenated until 2,048 units"). No padding but in the last row; documents are broken at the borders.

Letters: S sentences, D documents, P pieces (a document or a part of one in one row), R rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORED_LABEL = -100


def build_documents(
    tokens: np.ndarray,
    sentence_lengths: np.ndarray,
    document_offsets: np.ndarray,
    *,
    bos: int,
    eos: int | None = None,
    separator: int | None = None,
    ends: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the special tokens in: `[bos] sentence [separator] sentence ... [eos]` for every document.

    Args:
        tokens: `[n]` integers, all sentences of all documents one after the other.
        sentence_lengths: `[S]` tokens of each sentence.
        document_offsets: `[D + 1]`; document d holds the sentences from its offset to the next one.
        bos, eos, separator: token ids; None puts none. The separator stands between sentences only.
        ends: `[D]` bool, the documents that get `eos` (a story that goes on in another document does not
            end); all when None.

    Returns:
        (`[N]` int64 tokens of all documents, `[D + 1]` int64 offsets of the documents among them).

    Example:
        >>> build_documents([1, 2, 3, 4], [2, 1, 1], [0, 2, 3], bos=7, eos=8, separator=9)
        (array([7, 1, 2, 9, 3, 8, 7, 4, 8]), array([0, 6, 9]))
    """
    tokens = np.asarray(tokens)
    lengths = np.asarray(sentence_lengths, dtype=np.int64)
    offsets = np.asarray(document_offsets, dtype=np.int64)
    if (np.diff(offsets) < 1).any():
        raise ValueError(
            f"every document needs at least one sentence, got document_offsets {offsets.tolist()}"
        )
    if lengths.sum() != tokens.size or offsets[-1] != lengths.size:
        raise ValueError(
            f"got {tokens.size} tokens for sentences of {lengths.sum()} in all, and {lengths.size} sentences "
            f"for document_offsets that end at {offsets[-1]}; both pairs must be equal"
        )
    first, last = offsets[:-1], offsets[1:] - 1
    before = np.full(lengths.size, 0 if separator is None else 1, dtype=np.int64)
    before[first] = 1  # bos
    after = np.zeros(lengths.size, dtype=np.int64)
    if eos is not None:
        after[last if ends is None else last[np.asarray(ends, dtype=bool)]] = 1

    stops = np.cumsum(before + lengths + after)  # [S] where each sentence with its special tokens ends
    starts = stops - after - lengths  # [S] where its own tokens begin
    out = np.empty(int(stops[-1]) if stops.size else 0, dtype=np.int64)
    if separator is not None:
        out[starts - 1] = separator
    out[starts[first] - 1] = bos
    if eos is not None:
        out[stops[after == 1] - 1] = eos
    out[spread(starts, lengths)] = tokens
    return out, np.concatenate([[0], stops[last]])


def document_tokens(
    sentences: Sequence[np.ndarray], *, bos: int, eos: int | None, separator: int | None
) -> np.ndarray:
    """One document as the model was trained on it, `[N]` int64; prompts are built with it too.

    Args:
        sentences: each `[n]` integers (tokens, after merges).
        bos, eos, separator: token ids; `eos=None` leaves the document open, `separator=None` puts none.

    Example:
        >>> document_tokens([np.array([1, 2]), np.array([3])], bos=7, eos=None, separator=9)
        array([7, 1, 2, 9, 3])
    """
    if not len(sentences):
        return np.array([bos] if eos is None else [bos, eos], dtype=np.int64)
    arrays = [np.asarray(sentence, dtype=np.int64) for sentence in sentences]
    lengths = [array.size for array in arrays]
    return build_documents(
        np.concatenate(arrays), lengths, [0, len(arrays)], bos=bos, eos=eos, separator=separator
    )[0]


def split_long_documents(
    sentence_lengths: np.ndarray,
    document_offsets: np.ndarray,
    capacity: int,
    *,
    eos: bool,
    separator: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits the documents that are longer than a row at sentence borders; nothing is dropped.

    Every part becomes a document of its own: it begins with BOS, but only the last part ends with EOS,
    because the story does not end at the others. A single sentence longer than a row is cut into parts of
    full length.

    Args:
        sentence_lengths: `[S]` tokens of each sentence.
        document_offsets: `[D + 1]` in sentences.
        capacity: tokens a row, BOS and EOS included.
        eos, separator: whether documents carry EOS, and a token between sentences.

    Returns:
        (`[S']` sentence lengths, `[D' + 1]` document offsets, `[D']` bool: the document ends its story).
        The tokens themselves stay where they are.
    """
    lengths = np.asarray(sentence_lengths, dtype=np.int64)
    offsets = np.asarray(document_offsets, dtype=np.int64)
    room = capacity - 1 - int(eos)
    if room < 1:
        raise ValueError(f"capacity must hold BOS, one token{' and EOS' if eos else ''}, got {capacity}")
    counts = np.diff(offsets)
    totals = 1 + int(eos) + np.add.reduceat(lengths, offsets[:-1]) + int(separator) * (counts - 1)
    too_long = np.flatnonzero(totals > capacity)
    if not too_long.size:
        return lengths, offsets, np.ones(counts.size, dtype=bool)

    new_lengths: list[int] = []
    new_counts: list[int] = []  # sentences of each new document
    ends: list[bool] = []
    is_long = np.zeros(counts.size, dtype=bool)
    is_long[too_long] = True
    for document, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        sentences = lengths[start:stop].tolist()
        if not is_long[document]:
            new_lengths += sentences
            new_counts.append(len(sentences))
            ends.append(True)
            continue
        parts: list[list[int]] = [[]]
        free = room
        for length in sentences:
            if parts[-1] and length + int(separator) > free:
                parts.append([])
                free = room
            elif parts[-1]:
                free -= int(separator)
            while length > free:
                parts[-1].append(free)
                length -= free
                parts.append([])
                free = room
            parts[-1].append(length)
            free -= length
        for part in parts:
            new_lengths += part
            new_counts.append(len(part))
            ends.append(False)
        ends[-1] = True
    new_offsets = np.concatenate([[0], np.cumsum(new_counts)]).astype(np.int64)
    return np.array(new_lengths, dtype=np.int64), new_offsets, np.array(ends, dtype=bool)


def best_fit(lengths: np.ndarray | Sequence[int], capacity: int) -> np.ndarray:
    """Best-fit decreasing: gives each document the fullest row that still holds it.

    Args:
        lengths: `[D]` tokens of each document, each from 1 to `capacity`.
        capacity: tokens a row.

    Returns:
        `[D]` int64, the row of each document. Rows are numbered by their first document (in the order given),
        so the result is deterministic and keeps the order of the batch as far as packing allows.

    Raises:
        ValueError: a document is longer than the capacity, or empty.

    Example:
        >>> best_fit([3, 5, 4, 2, 2], capacity=8)
        array([0, 0, 1, 1, 1])
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    _check_lengths(lengths, capacity)
    if lengths.size and int(lengths.max()) > capacity:
        document = int(lengths.argmax())
        raise ValueError(
            f"document {document} has {lengths[document]} tokens and fits into no row of {capacity}: "
            f"split it first (split_long_documents) or raise the capacity"
        )
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(lengths.size, dtype=np.int64)
    open_rows: dict[int, list[int]] = {}  # free space -> rows that have it; the youngest is taken first
    spaces = 0  # bit s is set when some open row has s free tokens
    num_rows = 0
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        large_enough = spaces >> length
        if large_enough:
            space = (
                length + (large_enough & -large_enough).bit_length() - 1
            )  # the lowest bit: the tightest fit
            row = open_rows[space].pop()
            if not open_rows[space]:
                spaces ^= 1 << space
        else:
            space, row = capacity, num_rows
            num_rows += 1
        row_of[document] = row
        if space > length:
            open_rows.setdefault(space - length, []).append(row)
            spaces |= 1 << (space - length)
    _, first_document, compact = np.unique(row_of, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_document))[compact]


@dataclass(frozen=True)
class Pieces:
    """Where every part of the documents' token stream stands in the rows; P pieces, in stream order.

    Attributes:
        document: `[P]` the document a piece belongs to.
        start: `[P]` its first token in the stream of all documents.
        length: `[P]` its tokens.
        row: `[P]` its row.
        column: `[P]` its first column in that row.
        num_rows: R.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray
    column: np.ndarray
    num_rows: int

    def row_lengths(self) -> np.ndarray:
        """`[R]` tokens in each row, pads not counted."""
        return np.bincount(self.row, weights=self.length, minlength=self.num_rows).astype(np.int64)


def pack_best_fit(lengths: np.ndarray | Sequence[int], capacity: int) -> Pieces:
    """Whole documents into rows, see `best_fit`; inside a row they keep their order."""
    lengths = np.asarray(lengths, dtype=np.int64)
    row = best_fit(lengths, capacity)
    start = np.cumsum(lengths) - lengths
    by_row = np.argsort(row, kind="stable")
    ordered = lengths[by_row]
    before = np.cumsum(ordered) - ordered  # tokens of all earlier rows and of this one so far
    _, first_of_row, documents = np.unique(row[by_row], return_index=True, return_counts=True)
    column = np.empty_like(start)
    column[by_row] = before - np.repeat(before[first_of_row], documents)
    return Pieces(np.arange(lengths.size), start, lengths, row, column, first_of_row.size)


def concatenate(lengths: np.ndarray | Sequence[int], capacity: int) -> Pieces:
    """All documents one after the other, cut every `capacity` tokens.

    Example:
        >>> pieces = concatenate([3, 4], capacity=5)
        >>> pieces.document, pieces.length, pieces.row, pieces.column
        (array([0, 1, 1]), array([3, 2, 2]), array([0, 0, 1]), array([0, 3, 0]))
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    _check_lengths(lengths, capacity)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    borders = np.union1d(offsets, np.arange(0, offsets[-1], capacity, dtype=np.int64))
    start = borders[:-1]
    document = np.searchsorted(offsets, start, side="right") - 1
    return Pieces(document, start, np.diff(borders), start // capacity, start % capacity,
                  int(-(-offsets[-1] // capacity)))  # fmt: skip


def fill_rows(
    tokens: np.ndarray, pieces: Pieces, width: int, *, pad: int, isolate: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes the documents' tokens into rows.

    Labels are not shifted (the model shifts them). With `isolate` the positions restart at every piece, which
    is how transformers' masks tell packed documents apart when no attention_mask and no cache are given, and
    the first label of every piece is -100: it must not be predicted from another document. That holds for the
    second part of a document cut by a row border too: its context is in another row, so the part starts at
    position 0 and its first token is not predicted. Without `isolate` the positions run on over the row and
    every token is a label. The padding tail of a row counts as one more piece: positions restart at 0 and its
    labels are -100.

    Args:
        tokens: `[N]` int64, all documents.
        pieces: their places.
        width: T, at least the longest row.
        pad: token id of the padding.

    Returns:
        (input_ids, labels, position_ids), each `[R, T]` int64.
    """
    used = pieces.row_lengths()
    if used.size and int(used.max()) > width:
        raise ValueError(f"a row holds {used.max()} tokens and does not fit into width {width}")
    shape = (pieces.num_rows, width)
    to = pieces.row * width + pieces.column  # [P] first cell of each piece
    cells = spread(to, pieces.length)  # [N]
    input_ids = np.full(shape, pad, dtype=np.int64)
    input_ids.reshape(-1)[cells] = tokens
    columns = np.arange(width, dtype=np.int64)
    is_pad = columns >= used[:, None]
    labels = input_ids.copy()
    labels[is_pad] = IGNORED_LABEL
    position_ids = np.where(is_pad, columns - used[:, None], columns)
    if isolate:
        labels.reshape(-1)[to] = IGNORED_LABEL
        position_ids.reshape(-1)[cells] = spread(np.zeros_like(to), pieces.length)
    return input_ids, labels, position_ids


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


def _check_lengths(lengths: np.ndarray, capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1 token, got {capacity}")
    if lengths.size and int(lengths.min()) < 1:
        raise ValueError(f"document {int(lengths.argmin())} is empty; documents must hold at least 1 token")
