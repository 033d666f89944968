"""Turns the lengths of sentences into a layout of rows, and a layout into token ids, labels and position ids.

First the layout is made, from lengths alone: `[bos] sentence [separator] sentence ... [eos]` for every
document, and a place in the rows for every document. Then the tokens of any part of the rows are gathered in
one pass, straight from where they are stored; nobody reads what another process trains on.

Two ways to fill rows of `capacity` tokens:

- `best_fit`: whole documents, longest first, each into the fullest row that still holds it, or, if that
  takes more rows than it must, the one or two that fill a row best. Cost: one sort and, a document, a few
  shifts of one integer whose bits are the free spaces or the lengths left.
- `concatenate`: all documents one after the other, cut every `capacity` tokens (arXiv 2512.01865:
  "concatenated until 2,048 units"). No padding but in the last row; documents are broken at the borders.

Letters: S sentences, D documents, P pieces (a document or a part of one in one row), R rows, T tokens a row.
A cell is a place in the rows: row * T + column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .stories import spread

IGNORED_LABEL = -100
#: If this share of the rows must be there at least, no other way of packing is tried.
FULL_ENOUGH = 0.99
# Documents a row from which best-fit decreasing is good enough.
_MANY_A_ROW = 4


def split_long_documents(
    sentence_lengths: np.ndarray,
    document_offsets: np.ndarray,
    capacity: int,
    *,
    bos: bool = True,
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
        bos, eos, separator: whether documents carry BOS, EOS, and a token between sentences.

    Returns:
        (`[S']` sentence lengths, `[D' + 1]` document offsets, `[D']` bool: the document ends its story).
        The tokens themselves stay where they are.
    """
    lengths = np.asarray(sentence_lengths, dtype=np.int64)
    offsets = np.asarray(document_offsets, dtype=np.int64)
    room = capacity - int(bos) - int(eos)
    if room < 1:
        raise ValueError(
            f"capacity must hold {'BOS, ' if bos else ''}one token{' and EOS' if eos else ''}, got {capacity}"
        )
    counts = np.diff(offsets)
    totals = np.add.reduceat(lengths, offsets[:-1]) + int(separator) * (counts - 1)
    too_long = np.flatnonzero(totals > room)
    if not too_long.size:
        return lengths, offsets, np.ones(counts.size, dtype=bool)

    new_lengths, new_counts, ends = [], [], []  # arrays, to be joined
    done = 0  # documents
    for document in too_long.tolist():
        start, stop = int(offsets[document]), int(offsets[document + 1])
        new_lengths.append(lengths[offsets[done] : start])
        new_counts.append(counts[done:document])
        ends.append(np.ones(document - done, dtype=bool))
        parts: list[list[int]] = [[]]
        free = room
        for length in lengths[start:stop].tolist():
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
        new_lengths.append([length for part in parts for length in part])
        new_counts.append([len(part) for part in parts])
        ends.append([False] * (len(parts) - 1) + [True])
        done = document + 1
    new_lengths.append(lengths[offsets[done] :])
    new_counts.append(counts[done:])
    ends.append(np.ones(counts.size - done, dtype=bool))
    new_offsets = np.concatenate([[0], np.cumsum(np.concatenate(new_counts))]).astype(np.int64)
    return np.concatenate(new_lengths).astype(np.int64), new_offsets, np.concatenate(ends).astype(bool)


def best_fit(lengths: np.ndarray | Sequence[int], capacity: int) -> np.ndarray:
    """Best-fit decreasing, or a search that looks two documents ahead, whichever needs fewer rows.

    Best-fit decreasing gives each document, the longest first, the fullest row that still holds it. That
    fills rows of many documents, and is all that is done where 4 or more go into a row. Where a row holds
    fewer (stories of a minute or two in rows of 2,048), up to 4% would stay empty, and rows are filled one by
    one instead (`_look_ahead`): in two ways, and by best-fit decreasing at last, until the rows are 99% full
    or as few as can be; the fewest rows win.

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
    least = -(-int(lengths.sum()) // capacity)
    as_list = lengths.tolist()
    ways = [_best_fit_decreasing]
    if lengths.size < _MANY_A_ROW * least:
        ways = [partial(_look_ahead, slack=slack) for slack in (capacity // 64, capacity // 16)] + ways
    num_rows, row_of = ways[0](as_list, capacity)
    for way in ways[1:]:
        if num_rows * FULL_ENOUGH <= least:
            break
        again, other = way(as_list, capacity)
        if again < num_rows:
            num_rows, row_of = again, other
    rows = np.array(row_of, dtype=np.int64)
    first_document = np.empty(num_rows, dtype=np.int64)
    first_document[rows[::-1]] = np.arange(rows.size - 1, -1, -1)  # the last one written is the first
    number = np.empty(num_rows, dtype=np.int64)
    number[np.argsort(first_document)] = np.arange(num_rows)
    return number[rows]


def _best_fit_decreasing(lengths: list[int], capacity: int) -> tuple[int, list[int]]:
    """(number of rows, row of each document)."""
    row_of = [0] * len(lengths)
    open_rows: dict[int, list[int]] = {}  # free space -> rows that have it; the youngest is taken first
    spaces = 0  # bit s is set when some open row has s free tokens
    num_rows = 0
    for document in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[document]
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
    return num_rows, row_of


def _look_ahead(lengths: list[int], capacity: int, slack: int) -> tuple[int, list[int]]:
    """Best fit by rows: (number of rows, row of each document).

    Every row begins with the longest document that is left. Then the longest one that fits goes in, if that
    fills the row but for `slack` tokens; or else two documents that fill it (but for capacity / 512), the two
    most alike, so that short and long ones are kept for later; or else, again, the longest that fits, and on.
    Which lengths are left are the bits of one integer and the bits of its mirror image; shifted against each
    other, their common bits are the pairs of a given sum.
    """
    left: dict[int, list[int]] = {}  # length -> its documents, the first one last
    for document in range(len(lengths) - 1, -1, -1):
        left.setdefault(lengths[document], []).append(document)
    present = mirror = 0  # bit l, and bit capacity - l: a document of l tokens is left
    for length in left:
        present |= 1 << length
        mirror |= 1 << (capacity - length)
    pair_slack = min(slack, capacity // 512)
    row_of = [0] * len(lengths)
    row = 0
    while present:
        space = capacity
        chosen = (present.bit_length() - 1,)
        while True:
            for length in chosen:
                documents = left[length]
                row_of[documents.pop()] = row
                space -= length
                if not documents:
                    present ^= 1 << length
                    mirror ^= 1 << (capacity - length)
            fitting = present & ((2 << space) - 1)
            if not fitting:
                break
            longest = fitting.bit_length() - 1
            chosen = (longest,)
            shortest = (fitting & -fitting).bit_length() - 1
            if space - longest > slack and 2 * shortest <= space:
                for wanted in range(space, space - pair_slack - 1, -1):
                    pairs = fitting & (mirror >> (capacity - wanted))  # bit l: l and wanted - l are left
                    if not pairs:
                        continue
                    half = (wanted + 1) // 2
                    pairs >>= half
                    if 2 * half == wanted and pairs & 1 and len(left[half]) == 1:
                        pairs ^= 1  # there is only one of it
                    if pairs:
                        larger = half + (pairs & -pairs).bit_length() - 1
                        chosen = (larger, wanted - larger)
                        break
        row += 1
    return row, row_of


@dataclass(frozen=True)
class Layout:
    """Where everything stands in R rows of T tokens. All cells are in rising order.

    Attributes:
        num_rows, width: R and T.
        sentence: `[S]` the sentences, as numbered by the caller, in the order of their cells.
        cell: `[S]` first cell of each.
        length: `[S]` tokens of each.
        bos, eos, separator: `[.]` cells of the special tokens.
        piece: `[P]` first cells of the pieces: where documents begin, and where a row border cuts them.
        used: `[R]` tokens in each row; what follows is padding.
    """

    num_rows: int
    width: int
    sentence: np.ndarray
    cell: np.ndarray
    length: np.ndarray
    bos: np.ndarray
    eos: np.ndarray
    separator: np.ndarray
    piece: np.ndarray
    used: np.ndarray


def lay_out(
    sentence_lengths: np.ndarray,
    document_offsets: np.ndarray,
    capacity: int,
    *,
    packing: str = "best_fit",
    bos: bool = True,
    eos: bool = True,
    separator: bool = False,
    ends: np.ndarray | None = None,
    fixed_width: bool = True,
) -> Layout:
    """Puts documents into rows.

    Args:
        sentence_lengths: `[S]` tokens of each sentence, at least 1.
        document_offsets: `[D + 1]`; document d holds the sentences from its offset to the next one.
        capacity: tokens a row at most.
        packing: "best_fit" or "concatenate", see the module.
        bos, eos: whether documents begin and end with a special token.
        separator: whether a special token stands between sentences.
        ends: `[D]` bool, the documents that get their EOS (a story that goes on elsewhere does not end); all
            when None.
        fixed_width: rows are `capacity` wide; False: as the longest row, rounded up to a multiple of 8.

    Raises:
        ValueError: a document without a sentence, or (best_fit) longer than the capacity.

    Example:
        >>> layout = lay_out([2, 1, 1], [0, 2, 3], capacity=8, separator=True)
        >>> layout.cell, layout.bos, layout.separator, layout.eos, layout.used
        (array([1, 4, 9]), array([0, 8]), array([3]), array([ 5, 10]), array([6, 3]))
    """
    lengths = np.asarray(sentence_lengths, dtype=np.int64)
    offsets = np.asarray(document_offsets, dtype=np.int64)
    counts = np.diff(offsets)
    if (counts < 1).any():
        raise ValueError(
            f"every document needs at least one sentence, got document_offsets {offsets.tolist()}"
        )
    before = np.full(lengths.size, int(separator))
    before[offsets[:-1]] = int(bos)
    after = np.zeros(lengths.size, dtype=np.int64)
    if eos:
        last = offsets[1:] - 1
        after[last if ends is None else last[np.asarray(ends, dtype=bool)]] = 1
    total = before + lengths + after  # [S]
    sizes = np.add.reduceat(total, offsets[:-1])  # [D]

    if packing == "best_fit":
        row = best_fit(sizes, capacity)
        num_rows = int(row.max()) + 1
        used = np.bincount(row, weights=sizes, minlength=num_rows).astype(np.int64)
        order = np.argsort(row, kind="stable")  # documents keep their order inside a row
        width = capacity if fixed_width else min(capacity, -(-int(used.max()) // 8) * 8)
        gapless = np.cumsum(sizes[order]) - sizes[order]
        row = row[order]
        start = gapless + row * width - (np.cumsum(used) - used)[row]  # [D] first cells, rising
        piece = start
        sentence = spread(offsets[:-1][order], counts[order])
        before, total, counts = before[sentence], total[sentence], counts[order]
        has_eos = after[sentence] == 1
    else:
        _check_lengths(sizes, capacity)
        filled = int(sizes.sum())
        num_rows = -(-filled // capacity)
        used = np.full(num_rows, capacity)
        used[-1] = filled - (num_rows - 1) * capacity
        width = capacity if fixed_width else min(capacity, -(-int(used[0]) // 8) * 8)
        start = np.cumsum(sizes) - sizes
        piece = np.union1d(start, np.arange(0, filled, capacity))
        sentence = np.arange(lengths.size)
        has_eos = after == 1
    first = np.cumsum(counts) - counts  # [D] each document's first sentence, in the order of cells
    seat = np.cumsum(total) - total
    cell = seat + np.repeat(start - seat[first], counts) + before
    length = lengths[sentence]
    is_first = np.zeros(lengths.size, dtype=bool)
    is_first[first] = True
    return Layout(
        num_rows,
        width,
        sentence,
        cell,
        length,
        bos=start if bos else start[:0],
        eos=(cell + length)[has_eos],
        separator=cell[~is_first] - 1 if separator else start[:0],
        piece=piece,
        used=used,
    )


def fill_rows(
    layout: Layout,
    values: np.ndarray,
    starts: np.ndarray,
    rows: tuple[int, int] | None = None,
    *,
    bos: int,
    eos: int,
    separator: int | None,
    pad: int,
    isolate: bool = True,
    check: Callable[[np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes tokens into some rows of a layout.

    Labels are not shifted (the model shifts them). With `isolate` the positions restart at every piece, which
    is how transformers' masks tell packed documents apart when no attention_mask and no cache are given, and
    the first label of every piece is -100: it must not be predicted from another document. That holds for the
    second part of a document cut by a row border too: its context is in another row, so the part starts at
    position 0 and its first token is not predicted. Without `isolate` the positions run on over the row and
    every token is a label. The padding tail of a row counts as one more piece: positions restart at 0 and its
    labels are -100.

    Args:
        values: `[n]` integers that hold the tokens; read where sentences are.
        starts: `[S]` where in `values` each of the layout's sentences begins (in the layout's order).
        rows: first and last (exclusive) of the rows wanted; all when None.
        bos, eos, separator, pad: token ids.
        check: called with the tokens of all cells; those of cells between sentences may be any of `values`.

    Returns:
        (input_ids, labels, position_ids), each `[rows, T]` int64.
    """
    first_row, last_row = (0, layout.num_rows) if rows is None else rows
    width = layout.width
    low, high = first_row * width, last_row * width
    size = high - low
    shape = (last_row - first_row, width)

    sentences = slice(
        int(np.searchsorted(layout.cell + layout.length, low, side="right")),
        int(np.searchsorted(layout.cell, high)),
    )
    to, come_from = layout.cell[sentences] - low, np.array(starts[sentences], dtype=np.int64)
    index = np.ones(size, dtype=np.int64)  # becomes the place in `values` of every cell
    if to.size:
        hidden = np.maximum(-to[:1], 0)  # of the first sentence, in the row before
        to[:1] += hidden
        come_from[:1] += hidden
        index[to[0]] = come_from[0] - to[0]
        index[to[1:]] = np.diff(come_from) - np.diff(to) + 1
    np.cumsum(index, out=index)
    # Cells between sentences get whatever number comes; they are overwritten. The index becomes the ids:
    # fresh memory costs about as much as the gathering.
    gathered = values.take(index, mode="clip")
    if check is not None:
        check(gathered)
    input_ids = index
    input_ids[:] = gathered

    def here(cells: np.ndarray) -> np.ndarray:
        return cells[np.searchsorted(cells, low) : np.searchsorted(cells, high)] - low

    input_ids[here(layout.bos)] = bos
    input_ids[here(layout.eos)] = eos
    if separator is not None:
        input_ids[here(layout.separator)] = separator
    used = layout.used[first_row:last_row]
    tail = np.arange(shape[0]) * width + used  # first cell of each row's padding
    pads = spread(tail, width - used)
    input_ids[pads] = pad
    labels = input_ids.copy()
    labels[pads] = IGNORED_LABEL

    restart = np.arange(0, size, width) if size else np.empty(0, dtype=np.int64)
    if isolate:
        pieces = here(layout.piece)
        labels[pieces] = IGNORED_LABEL
        restart = pieces  # every row begins with one
    restart = np.sort(np.concatenate([restart, tail[used < width]]))
    position_ids = np.ones(size, dtype=np.int64)
    if restart.size:
        position_ids[restart[0]] = 0
        position_ids[restart[1:]] = 1 - np.diff(restart)
    np.cumsum(position_ids, out=position_ids)
    return input_ids.reshape(shape), labels.reshape(shape), position_ids.reshape(shape)


def _check_lengths(lengths: np.ndarray, capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1 token, got {capacity}")
    if lengths.size and int(lengths.min()) < 1:
        raise ValueError(f"document {int(lengths.argmin())} is empty; documents must hold at least 1 token")
