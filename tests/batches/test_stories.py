"""Tables of stories from lists and from Arrow, and which of their sentences are read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.batches.interleave import story_key
from hf_clsi.batches.stories import Documents, ListedStories, StoryTable, is_arrow, listed_documents
from hf_clsi.rows.shards import UnitColumn

ROWS = [
    {"story_id": "a", "units_en": [[0, 1], [2]], "units_fr": [[10], [11, 12]]},
    {"story_id": "b", "units_en": [[3]], "units_fr": [[13, 14]]},
    {"story_id": "c", "units_en": [[4], [5]], "units_fr": None},
]
UNITS = pa.list_(pa.list_(pa.uint16()))


def arrow(rows=ROWS, **more):
    names = [name for name in rows[0] if name.startswith(("units", "tokens"))]
    columns = {name: pa.array([row[name] for row in rows], type=UNITS) for name in names}
    return pa.table({"story_id": [row["story_id"] for row in rows], **columns, **more})


def sentences(table, codes, language, sentence):
    values, starts, lengths = table.read(codes, np.array(language), np.array(sentence))
    return [values[start : start + n].tolist() for start, n in zip(starts, lengths, strict=True)]


@pytest.fixture(params=["lists", "table", "chunks", "slice", "batch"])
def stories(request):
    if request.param == "lists":
        return ListedStories(ROWS, ["en", "fr"])
    table = arrow()
    if request.param == "chunks":
        table = pa.concat_tables([arrow(ROWS[:1]), arrow(ROWS[1:])])
    elif request.param == "slice":
        table = pa.concat_tables([arrow(ROWS[1:2]), table]).combine_chunks().slice(1)
    elif request.param == "batch":
        table = table.to_batches()[0]
    assert is_arrow(table)
    return StoryTable.from_arrow(table, ["en", "fr"])


def test_a_table_says_which_sentences_a_story_has(stories):
    assert len(stories) == 3 and list(stories.ids) == ["a", "b", "c"]
    assert stories.story_keys.tolist() == [story_key(name) for name in "abc"]
    for code, counts in (("en", [1, 2, 2]), ("fr", [1, 0, 2])):
        first, found = stories.spans(code, np.array([1, 2, 0]))
        assert found.tolist() == counts
        assert first[0] == 2 and first[2] == 0


def test_sentences_are_read_in_the_order_asked_for(stories):
    found = sentences(stories, ["en", "fr"], [1, 0, 0, 1, 0], [2, 4, 0, 0, 4])
    assert found == [[13, 14], [5], [0, 1], [10], [5]]
    assert sentences(stories, ["en", "fr"], [1], [1]) == [[11, 12]]


def test_raw_units_are_known(stories):
    places, rows = np.array([0, 2]), np.array([0, 1])
    assert stories.raw_lengths("fr", places, rows).tolist() == [1, 2]
    assert stories.raw_sentence("fr", 2, 1).tolist() == [13, 14]
    assert stories.is_raw("fr", rows).tolist() == [True, True]


def test_columns_in_one_array_are_read_without_a_copy():
    units = np.arange(20, dtype=np.uint16)
    offsets = np.array([0, 2, 4, 6])
    columns = {
        code: UnitColumn(units, offsets + base, np.array([0, 1, 3])) for code, base in (("en", 0), ("fr", 9))
    }
    table = StoryTable(["a", "b"], columns)
    values, starts, lengths = table.read(["en", "fr"], np.array([0, 1]), np.array([1, 2]))
    assert values is units
    assert (starts.tolist(), lengths.tolist()) == ([2, 13], [2, 2])


def test_columns_much_longer_than_what_is_read_are_not_joined():
    long = UnitColumn(np.arange(1000, dtype=np.uint16), np.arange(0, 1001, 2), np.arange(501))
    other = UnitColumn(np.arange(2000, 3000, dtype=np.uint16), np.arange(0, 1001, 2), np.arange(501))
    table = StoryTable([str(i) for i in range(500)], {"en": long, "fr": other})
    values, _, _ = table.read(["en", "fr"], np.array([1, 0, 1]), np.array([3, 2, 1]))
    assert values.size == 6
    assert sentences(table, ["en", "fr"], [1, 0, 1], [3, 2, 1]) == [[2006, 2007], [4, 5], [2002, 2003]]


def test_tokens_are_read_in_preference_and_units_beside_them_are_counted():
    rows = [{"story_id": "a", "tokens_en": [[5], [3]], "units_en": [[0, 0, 1], [3]]}]
    for table in (StoryTable.from_arrow(arrow(rows), ["en"]), ListedStories(rows, ["en"])):
        assert sentences(table, ["en"], [0, 0], [0, 1]) == [[5], [3]]
        assert table.raw_lengths("en", np.array([0, 1]), np.array([0, 0])).tolist() == [3, 1]
        assert table.raw_sentence("en", 0, 0).tolist() == [0, 0, 1]
        assert not table.is_raw("en", np.array([0])).any()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (arrow().drop(["story_id"]), "no column 'story_id'"),
        (arrow().drop(["units_en", "units_fr"]), r"none of the columns \['units_en', 'units_fr'\]"),
        (
            arrow([{"story_id": "a", "tokens_en": [[1]], "units_en": [[1]], "units_fr": [[2]]}]),
            "tokens in en but only units in fr",
        ),
        (pa.table({"story_id": ["a"], "units_en": pa.array([[[1, None]]], type=UNITS)}), "1 missing units"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        StoryTable.from_arrow(table, ["en", "fr"])


def test_a_table_with_too_few_ids_is_refused():
    with pytest.raises(ValueError, match="1 story ids but 2 stories in 'en'"):
        StoryTable(["a"], {"en": UnitColumn(np.arange(2), np.array([0, 1, 2]), np.array([0, 1, 2]))})


def test_documents_are_taken_and_joined():
    documents = Documents.join([Documents.whole(2, epoch=3), Documents.whole(np.array([7]), language=1)])
    assert len(documents) == 3
    assert documents.story.tolist() == [0, 1, 7]
    assert documents[1:].language.tolist() == [-1, 1]
    assert documents[np.array([0])].epoch.tolist() == [3]


def test_rows_may_say_how_they_become_documents():
    rows = [{"story_id": "a", "language": "fr", "max_tokens": 4, "epoch": 2}, {"story_id": "b"}]
    documents = listed_documents(rows, ("en", "fr"), epoch=9)
    assert documents.language.tolist() == [1, -1]
    assert documents.max_tokens.tolist() == [4, 0]
    assert documents.epoch.tolist() == [2, 9]


def test_the_collator_takes_arrow_lists_and_tables_alike():
    rows = [{**row, "story_id": f"story-{index}"} for index, row in enumerate(ROWS[:2] * 10)]
    collate = InterleavingDataCollator(
        ["en", "fr"], num_units=20, max_length=16, return_counts=True, return_languages=True, deduplicate=True
    )
    listed = collate(rows)
    table = arrow(rows)
    extra = {"epoch": pa.array([0] * 20), "max_tokens": pa.array([None] * 20, type=pa.int64())}
    others = [table, table.to_batches()[0], StoryTable.from_arrow(table, ["en", "fr"]), arrow(rows, **extra)]
    for other in others:
        batch = collate(other)
        assert list(batch) == list(listed)
        assert all((batch[name] == listed[name]).all() for name in listed)
    limited = collate(arrow(rows, max_tokens=pa.array([1] * 20)))
    assert limited["token_counts"][:, 0].sum() == 20
