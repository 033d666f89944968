"""The data collator: exact batches of literal rows, refusals, budgets, counts, and its life inside the
Trainer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.batches.collator import InterleavingCallback, InterleavingDataCollator
from hf_clsi.batches.interleave import draw_languages, interleave_story, story_key
from hf_clsi.batches.stories import ListedStories
from hf_clsi.units.merges import UnitMerges

# "story-0" draws [en, fr, en, en, fr, fr, ...] in epoch 0 and [en, en, fr, fr, en, en, ...] in epoch 1 with
# seed 0 (test_interleave.py::test_draws_are_fixed). English units are below 10, French ones from 10 to 19.
STORY = {
    "story_id": "story-0",
    "units_en": [[0, 1], [2], [3, 4, 5], [6]],
    "units_fr": [[10], [11, 12], [13], [14, 15]],
}
BOS, EOS, PAD = 20, 21, 22


def collator(**settings) -> InterleavingDataCollator:
    return InterleavingDataCollator(
        **{"languages": ["en", "fr"], "num_units": 20, "max_length": 16, **settings}
    )


def ids(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """input_ids without the padding."""
    return [[token for token in row if token != PAD] for row in batch["input_ids"].tolist()]


def made_up_rows(n: int, seed: int = 0, **extra) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        sizes = rng.integers(1, 6, size=(2, int(rng.integers(1, 6))))
        rows.append(
            {
                "story_id": f"story-{i}",
                "units_en": [rng.integers(0, 10, size).tolist() for size in sizes[0]],
                "units_fr": [rng.integers(10, 20, size).tolist() for size in sizes[1]],
                **extra,
            }
        )
    return rows


# --- what a batch holds -------------------------------------------------------------------------------------


def test_interleaved_batch():
    batch = collator()([STORY])
    document = [BOS, 0, 1, 11, 12, 3, 4, 5, 6, EOS]
    assert list(batch) == ["input_ids", "labels", "position_ids"]
    assert batch["input_ids"].tolist() == [document + [PAD] * 6]
    assert batch["labels"].tolist() == [[-100, *document[1:], *[-100] * 6]]
    assert batch["position_ids"].tolist() == [[*range(10), *range(6)]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_next_epoch_draws_anew():
    collate = collator()
    collate.set_epoch(1)
    assert collate.epoch == 1
    assert ids(collate([STORY])) == [[BOS, 0, 1, 2, 13, 14, 15, EOS]]


def test_a_row_may_name_its_own_epoch():
    collate = collator()
    rows = [{**STORY, "epoch": 1}, {**STORY, "epoch": None}]
    assert ids(collate([rows[0]])) == [[BOS, 0, 1, 2, 13, 14, 15, EOS]]
    assert ids(collate([rows[1]])) == [[BOS, 0, 1, 11, 12, 3, 4, 5, 6, EOS]]


def test_collator_agrees_with_interleave_story():
    for row in made_up_rows(20):
        expected = interleave_story(
            row["story_id"], {"en": row["units_en"], "fr": row["units_fr"]}, seed=3, epoch=2, weights=[1, 2]
        )
        batch = collator(seed=3, weights=[1, 2], max_length=64)([{**row, "epoch": 2}])
        assert ids(batch) == [[BOS, *(unit for _, sentence in expected for unit in sentence), EOS]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"separator": "bos"}, [BOS, 0, 1, BOS, 11, 12, BOS, 3, 4, 5, BOS, 6, EOS]),
        ({"separator": "eos"}, [BOS, 0, 1, EOS, 11, 12, EOS, 3, 4, 5, EOS, 6, EOS]),
        ({"separator": "eos", "append_eos": False}, [BOS, 0, 1, EOS, 11, 12, EOS, 3, 4, 5, EOS, 6]),
        ({"append_eos": False}, [BOS, 0, 1, 11, 12, 3, 4, 5, 6]),
        ({"mode": "monolingual", "language": "fr"}, [BOS, 10, 11, 12, 13, 14, 15, EOS]),
        ({"weights": [0, 1]}, [BOS, 10, 11, 12, 13, 14, 15, EOS]),
        ({"languages": ["fr", "en"]}, [BOS, 10, 2, 13, 14, 15, EOS]),
    ],
)
def test_document_formats_and_modes(settings, expected):
    assert ids(collator(**settings)([STORY])) == [expected]


def test_mixed_mode_draws_one_language_per_document():
    rows = [{**row, "story_id": f"story-{i}"} for i, row in enumerate([STORY] * 400)]
    batch = collator(mode="mixed", max_length=9, weights=[1, 3])(rows)
    english, french = [BOS, 0, 1, 2, 3, 4, 5, 6, EOS], [BOS, 10, 11, 12, 13, 14, 15, EOS]
    keys = np.array([story_key(row["story_id"]) for row in rows], dtype=np.uint64)
    drawn = draw_languages(0, 0, keys, -1, [1, 3])
    assert ids(batch) == [english if language == 0 else french for language in drawn]
    assert 270 < drawn.sum() < 330  # 300 expected, standard deviation 8.7


def test_a_row_may_ask_for_one_language_and_then_lack_the_others():
    row = {"story_id": "only-french", "language": "fr", "units_fr": [[10], [11]]}
    assert ids(collator()([row])) == [[BOS, 10, 11, EOS]]
    assert ids(collator(mode="mixed")([row])) == [[BOS, 10, 11, EOS]]
    assert ids(collator(mode="monolingual", language="en")([row])) == [[BOS, 10, 11, EOS]]


def test_mixed_mode_takes_rows_whose_languages_have_different_numbers_of_sentences():
    row = {"story_id": "a", "units_en": [[1], [2]], "units_fr": [[11]]}
    batches = [ids(collator(mode="mixed")([{**row, "epoch": epoch}]))[0] for epoch in range(20)]
    assert {tuple(batch) for batch in batches} == {(BOS, 1, 2, EOS), (BOS, 11, EOS)}


def test_several_documents_are_packed_and_isolated():
    rows = [
        {"story_id": name, "units_en": [units]}
        for name, units in (("a", [1, 2, 3]), ("b", [4]), ("c", [5, 6]))
    ]
    batch = InterleavingDataCollator(["en"], num_units=20, max_length=8)(rows)
    assert batch["input_ids"].tolist() == [
        [BOS, 1, 2, 3, EOS, BOS, 4, EOS],
        [BOS, 5, 6, EOS, PAD, PAD, PAD, PAD],
    ]
    assert batch["labels"][0].tolist() == [-100, 1, 2, 3, EOS, -100, 4, EOS]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]


def test_concatenation():
    rows = [{"story_id": name, "units_en": [units]} for name, units in (("a", [1, 2, 3]), ("b", [4, 5]))]
    settings = {"languages": ["en"], "num_units": 20, "max_length": 6, "packing": "concatenate"}
    batch = InterleavingDataCollator(**settings)(rows)
    assert batch["input_ids"].tolist() == [[BOS, 1, 2, 3, EOS, BOS], [4, 5, EOS, PAD, PAD, PAD]]
    assert batch["labels"].tolist() == [[-100, 1, 2, 3, EOS, -100], [-100, 5, EOS, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 2]]
    batch = InterleavingDataCollator(**settings, isolate=False)(rows)
    assert batch["labels"].tolist() == [[BOS, 1, 2, 3, EOS, BOS], [4, 5, EOS, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]]


def test_padding_to_the_longest_row():
    assert collator(max_length=40, pad_to_max_length=False)([STORY])["input_ids"].shape == (1, 16)
    assert collator(max_length=12, pad_to_max_length=False)([STORY])["input_ids"].shape == (1, 12)
    assert collator(max_length=40)([STORY])["input_ids"].shape == (1, 40)


def test_a_long_story_is_split_at_sentence_borders_and_ends_once():
    batch = collator(max_length=7)([STORY])
    assert ids(batch) == [[BOS, 0, 1, 11, 12], [BOS, 3, 4, 5, 6, EOS]]


def test_a_sentence_longer_than_a_row_is_cut_but_kept():
    row = {"story_id": "a", "units_en": [[1, 2, 3, 4, 5, 6, 7]]}
    batch = InterleavingDataCollator(["en"], num_units=20, max_length=5)([row])
    assert ids(batch) == [[BOS, 1, 2, 3], [BOS, 4, 5, 6], [BOS, 7, EOS]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Draws of sentence 0, 1, 2, 3: en, fr, en, en; two sentences a draw use those of 0 and 2.
        ({"switch_every": 2}, [0, 1, 2, 3, 4, 5, 6]),
        ({"switch_every": 3}, [0, 1, 2, 3, 4, 5, 6]),
        ({"start_language": "fr"}, [10, 11, 12, 3, 4, 5, 6]),
        ({"switch_every": 3, "start_language": "fr"}, [10, 11, 12, 13, 6]),
        ({"switch_probability": 0, "start_language": "fr"}, [10, 11, 12, 13, 14, 15]),
        ({"switch_probability": 1, "start_language": "fr"}, [10, 2, 13, 6]),
        ({"switch_probability": 1, "switch_every": 2, "start_language": "en"}, [0, 1, 2, 13, 14, 15]),
        ({"switch_every": "story", "start_language": "fr"}, [10, 11, 12, 13, 14, 15]),
    ],
)
def test_ways_of_switching(settings, expected):
    assert ids(collator(**settings)([STORY])) == [[BOS, *expected, EOS]]


def test_whole_stories_are_drawn_as_in_mixed_mode():
    rows = made_up_rows(50)
    by_story, mixed = (
        collator(switch_every="story", max_length=64)(rows),
        collator(mode="mixed", max_length=64)(rows),
    )
    assert torch.equal(by_story["input_ids"], mixed["input_ids"])


def test_documents_without_bos():
    batch = collator(prepend_bos=False, max_length=9)([STORY, {**STORY, "epoch": 1}])
    assert ids(batch) == [[0, 1, 11, 12, 3, 4, 5, 6, EOS], [0, 1, 2, 13, 14, 15, EOS]]
    assert batch["labels"][1].tolist() == [-100, 1, 2, 13, 14, 15, EOS, -100, -100]
    assert ids(collator(prepend_bos=False, append_eos=False, max_length=4)([STORY])) == [
        [0, 1, 11, 12],
        [3, 4, 5, 6],
    ]


def test_a_schedule_changes_the_mode_from_an_epoch_on():
    schedule = {2: {"mode": "interleaved", "start_language": "fr"}, 1: {"mode": "mixed", "weights": [0, 1]}}
    collate = collator(mode="monolingual", language="en", schedule=schedule)
    english, french = [BOS, 0, 1, 2, 3, 4, 5, 6, EOS], [BOS, 10, 11, 12, 13, 14, 15, EOS]
    expected = [english, french]
    for epoch in (2, 3):
        drawn = interleave_story(
            "story-0", {"en": STORY["units_en"], "fr": STORY["units_fr"]}, seed=0, epoch=epoch
        )
        own = [STORY["units_fr"][0], *(sentence for _, sentence in drawn[1:])]
        expected.append([BOS, *(unit for sentence in own for unit in sentence), EOS])
    assert ids(collate([{**STORY, "epoch": epoch} for epoch in range(4)])) != ids(collate([STORY] * 4))
    for epoch, row in enumerate(expected):
        assert ids(collate([{**STORY, "epoch": epoch}])) == [row]
        collate.set_epoch(epoch)
        assert ids(collate([STORY])) == [row]


def test_switches_are_counted():
    # [en, fr, en, en] in epoch 0, [en, en, fr, fr] in epoch 1; a cut story keeps its borders before the cut.
    rows = [STORY, {**STORY, "epoch": 1}, {**STORY, "max_tokens": 3}]
    for count in (1, 2, 3):
        batch = collator(return_counts=True, max_length=24)(rows[:count])
        assert batch["switch_counts"].tolist() == [[2, 3], [3, 6], [4, 7]][count - 1]


def test_languages_of_tokens():
    batch = collator(return_languages=True, separator="bos")([STORY])
    assert batch["languages"].tolist() == [[-1, 0, 0, -1, 1, 1, -1, 0, 0, 0, -1, 0, -1, -1, -1, -1]]


def test_flash_attention_takes_one_row_and_the_borders_of_its_documents():
    rows = [
        {"story_id": name, "units_en": [units]}
        for name, units in (("a", [1, 2, 3]), ("b", [4]), ("c", [5, 6]))
    ]
    batch = InterleavingDataCollator(["en"], num_units=20, max_length=8, return_flash_attn_kwargs=True)(rows)
    assert batch["input_ids"].tolist() == [[BOS, 1, 2, 3, EOS, BOS, 4, EOS, BOS, 5, 6, EOS]]
    assert batch["labels"].tolist() == [[-100, 1, 2, 3, EOS, -100, 4, EOS, -100, 5, 6, EOS]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]
    for side in "qk":
        assert batch[f"cu_seq_lens_{side}"].tolist() == [0, 5, 8, 12]
        assert batch[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert batch[f"max_length_{side}"] == 5


def test_more_parts_than_rows_leave_rows_of_padding():
    collate = collator(return_counts=True)
    table, whole = ListedStories([STORY], ["en", "fr"]), collate([STORY])
    parts = [collate.collate(table, part=(index, 3)) for index in range(3)]
    assert sum(part["token_counts"] for part in parts).tolist() == whole["token_counts"].tolist()
    full = [part for part in parts if part["token_counts"].any()]
    assert len(full) == 1 and torch.equal(full[0]["input_ids"], whole["input_ids"])
    empty = [part for part in parts if not part["token_counts"].any()]
    assert all((part["labels"] == -100).all() and part["input_ids"].shape == (1, 16) for part in empty)


# --- the shapes rows come in --------------------------------------------------------------------------------


def object_array(sentences: list[list[int]]) -> np.ndarray:
    out = np.empty(len(sentences), dtype=object)
    out[:] = [np.array(sentence, dtype=np.uint16) for sentence in sentences]
    return out


@pytest.mark.parametrize(
    "convert",
    [
        lambda sentences: [np.array(sentence, dtype=np.uint16) for sentence in sentences],
        lambda sentences: tuple(tuple(sentence) for sentence in sentences),
        lambda sentences: [torch.tensor(sentence) for sentence in sentences],
        lambda sentences: [np.array(s, dtype=np.uint64) if i else s for i, s in enumerate(sentences)],
        object_array,
    ],
    ids=["arrays", "tuples", "tensors", "mixed", "object array"],
)
def test_columns_may_be_lists_or_arrays(convert):
    row = {**STORY, "units_en": convert(STORY["units_en"]), "units_fr": convert(STORY["units_fr"])}
    assert ids(collator()([row])) == ids(collator()([STORY]))


def test_sentences_of_equal_length_may_come_as_one_matrix():
    # datasets' numpy format stacks them.
    row = {"story_id": "a", "units_en": np.array([[1, 2], [3, 4]])}
    assert ids(InterleavingDataCollator(["en"], num_units=20, max_length=8)([row])) == [
        [BOS, 1, 2, 3, 4, EOS]
    ]


def test_rows_are_not_changed():
    rows = [{**copy.deepcopy(STORY), "max_tokens": 3}, *made_up_rows(5)]
    before = copy.deepcopy(rows)
    collator(deduplicate=True, return_counts=True)(rows)
    assert rows == before


# --- merges and deduplication -------------------------------------------------------------------------------


def merges(deduplicate: bool = False) -> UnitMerges:
    """4 = "0 1", 5 = "0 1 2"."""
    return UnitMerges(num_units=4, pairs=[(0, 1), (4, 2)], deduplicate=deduplicate)


def test_raw_units_are_merged_on_the_way():
    row = {"story_id": "a", "units_en": [[3, 0, 1, 2], [0, 1, 1]]}
    batch = InterleavingDataCollator(["en"], merges=merges(), max_length=8)([row])
    assert batch["input_ids"].tolist() == [[6, 3, 5, 4, 1, 7, 8, 8]]


def test_raw_units_are_deduplicated_inside_sentences_only():
    row = {"story_id": "a", "units_en": [[1, 1, 2], [2, 2]]}
    batch = InterleavingDataCollator(["en"], num_units=20, max_length=6, deduplicate=True)([row])
    assert batch["input_ids"].tolist() == [[BOS, 1, 2, 2, EOS, PAD]]
    row = {"story_id": "a", "units_en": [[3, 0, 0, 1, 1, 1, 2], [0, 1, 1]]}
    batch = InterleavingDataCollator(["en"], merges=merges(deduplicate=True), max_length=6)([row])
    assert batch["input_ids"].tolist() == [[6, 3, 5, 4, 7, 8]]


def test_merged_column_is_used_in_preference():
    row = {"story_id": "a", "units_en": [[0, 1], [2]], "tokens_en": [[5], [3, 4]]}
    collate = InterleavingDataCollator(["en"], merges=merges(), max_length=6)
    assert collate([row])["input_ids"].tolist() == [[6, 5, 3, 4, 7, 8]]
    assert collate([{**row, "tokens_en": None}])["input_ids"].tolist() == [[6, 4, 2, 7, 8, 8]]


def test_rows_with_merged_and_raw_columns_may_share_a_batch():
    rows = [
        {"story_id": "a", "tokens_en": [[5], [3]]},
        {"story_id": "b", "units_en": [[0, 1, 2], [0, 1]]},
        {"story_id": "c", "tokens_en": [[4]]},
    ]
    batch = InterleavingDataCollator(["en"], merges=merges(), max_length=4)(rows)
    assert batch["input_ids"].tolist() == [[6, 5, 3, 7], [6, 5, 4, 7], [6, 4, 7, 8]]


def test_merging_on_the_way_equals_merging_before():
    rows = made_up_rows(30)
    learned = UnitMerges.learn([np.array(s) for row in rows for s in row["units_en"]], 20, 15, True, False)

    def merged(row: dict) -> dict:
        columns = {code: [np.array(sentence) for sentence in row[f"units_{code}"]] for code in ("en", "fr")}
        tokens = {f"tokens_{code}": learned.encode(sentences) for code, sentences in columns.items()}
        return {"story_id": row["story_id"], **tokens}

    assert learned.num_merges > 0
    settings = {"languages": ["en", "fr"], "merges": learned, "max_length": 32}
    a, b = (
        InterleavingDataCollator(**settings)(rows),
        InterleavingDataCollator(**settings)([merged(row) for row in rows]),
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- budgets and counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [BOS, 0]),
        (2, [BOS, 0, 1]),  # ends on a sentence border: no separator is left over
        (3, [BOS, 0, 1, EOS, 11]),
        (7, [BOS, 0, 1, EOS, 11, 12, EOS, 3, 4, 5]),
        (8, [BOS, 0, 1, EOS, 11, 12, EOS, 3, 4, 5, EOS, 6, EOS]),  # nothing cut: the story ends
        (99, [BOS, 0, 1, EOS, 11, 12, EOS, 3, 4, 5, EOS, 6, EOS]),
    ],
)
def test_max_tokens_cuts_the_document_and_a_cut_document_has_no_eos(limit, expected):
    assert ids(collator(separator="eos")([{**STORY, "max_tokens": limit}])) == [expected]


def test_counts_of_a_whole_story():
    batch = collator(separator="bos", return_counts=True)([STORY])
    # en: [0 1], [3 4 5], [6]; fr: [11 12].
    assert batch["token_counts"].tolist() == [[6, 6, 3], [2, 2, 1]]


def test_counts_of_a_cut_story():
    batch = collator(return_counts=True)([{**STORY, "max_tokens": 5}])
    assert batch["token_counts"].tolist() == [[3, 3, 2], [2, 2, 1]]


@pytest.mark.parametrize(
    ("limit", "counts"),
    [(1, [1, 3, 1]), (2, [2, 8, 1]), (3, [3, 11, 2]), (4, [4, 12, 2])],
)
def test_counts_after_deduplication_and_merges_are_raw_units(limit, counts):
    # 3 3 3 | 0 0 1 2 2 -> tokens 3, 5; second sentence 0 1 1 | 3 -> tokens 4, 3.
    row = {"story_id": "a", "units_en": [[3, 3, 3, 0, 0, 1, 2, 2], [0, 1, 1, 3]], "max_tokens": limit}
    collate = InterleavingDataCollator(
        ["en"], merges=merges(deduplicate=True), max_length=8, return_counts=True
    )
    assert collate([row])["token_counts"].tolist() == [counts]
    merged = {**row, "tokens_en": [[3, 5], [4, 3]]}
    assert collate([merged])["token_counts"].tolist() == [counts]


def test_counts_from_merged_tokens_alone():
    row = {"story_id": "a", "tokens_en": [[3, 5], [4]], "max_tokens": 2}
    collate = InterleavingDataCollator(["en"], merges=merges(), max_length=8, return_counts=True)
    assert collate([row])["token_counts"].tolist() == [[2, 4, 1]]
    collate = InterleavingDataCollator(
        ["en"], merges=merges(deduplicate=True), max_length=8, return_counts=True
    )
    with pytest.raises(ValueError, match=r"story 'a': raw units cannot be counted.*'units_en'"):
        collate([row])


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_counts_are_exactly_what_is_in_the_batch(packing):
    rows = [{**row, "max_tokens": 3 + i % 20} for i, row in enumerate(made_up_rows(100))]
    batch = collator(packing=packing, separator="eos", return_counts=True)(rows)
    tokens = batch["input_ids"]
    english, french = int((tokens < 10).sum()), int(((tokens >= 10) & (tokens < 20)).sum())
    assert batch["token_counts"][:, :2].tolist() == [[english] * 2, [french] * 2]
    assert (tokens == BOS).sum() >= 100
    assert english > 100 and french > 100


def test_a_split_story_counts_each_sentence_once():
    row = {"story_id": "a", "units_en": [[1, 2, 3, 4, 5, 6, 7], [8]]}
    batch = InterleavingDataCollator(["en"], num_units=20, max_length=5, return_counts=True)([row])
    assert batch["token_counts"].tolist() == [[8, 8, 2]]


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"story_id": None}, "row 1 of the batch: story_id must be a non-empty string, got None"),
        ({"units_fr": None}, "story 'bad': it has no sentence in 'fr' .*no column 'units_fr'"),
        ({"units_fr": [[10], [11]]}, r"story 'bad'.*same number of sentences.*\{'en': 4, 'fr': 2\}"),
        ({"units_en": [], "units_fr": []}, "story 'bad': it has no sentence in 'en'"),
        ({"units_en": [[1], [], [1], [1]]}, "story 'bad', sentence 1: it is empty"),
        (
            {"units_en": [[1], [20], [1], [1]]},
            r"story 'bad', sentence 1: unit 20 is out of range, expected 0\.\.19",
        ),
        ({"units_en": [[1], [-1], [1], [1]]}, "story 'bad', sentence 1: unit -1 is out of range"),
        (
            {"units_en": [[1], [1.5], [1], [1]]},
            r"story 'bad', sentence 1: .*flat list of integers, got \[1.5\]",
        ),
        ({"units_en": [[1], [[2], [3]], [1], [1]]}, "story 'bad', sentence 1: .*flat list of integers"),
        ({"units_en": [[1], [[2, 3], [3]], [1], [1]]}, "story 'bad', sentence 1: .*flat list of integers"),
        ({"units_en": [1, 2, 3, 4]}, "story 'bad', sentence 0: .*flat list of integers, got 1"),
        ({"tokens_en": [[1]]}, "story 'bad': 'tokens_en' has 1 sentences but 'units_en' 4"),
        ({"max_tokens": 0}, "story 'bad': max_tokens must be at least 1, got 0"),
        ({"language": "de"}, "story 'bad': language 'de' is not one of en, fr"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_their_story_id(change, message):
    # Only English is drawn, so that the faulty sentence is surely used; both languages have to be there.
    collate = collator(weights=[1, 1e-12])
    with pytest.raises(ValueError, match=message):
        collate([STORY, {**STORY, "story_id": "bad", **change}])


def test_a_missing_story_id_is_refused():
    with pytest.raises(ValueError, match="row 0 of the batch: story_id"):
        collator()([{key: value for key, value in STORY.items() if key != "story_id"}])


@pytest.mark.parametrize("return_counts", [False, True])
def test_tokens_out_of_range_are_refused(return_counts):
    collate = InterleavingDataCollator(["en"], merges=merges(), max_length=8, return_counts=return_counts)
    with pytest.raises(ValueError, match=r"story 'a', sentence 0: token 6 is out of range, expected 0\.\.5"):
        collate([{"story_id": "a", "tokens_en": [[5, 6]]}])
    with pytest.raises(ValueError, match=r"story 'b', sentence 1: unit 4 is out of range, expected 0\.\.3"):
        collate([{"story_id": "a", "tokens_en": [[5]]}, {"story_id": "b", "units_en": [[0], [4]]}])


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        collator()([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": "en"}, "list of different codes"),
        ({"languages": ["en", "en"]}, "list of different codes"),
        ({"mode": "both"}, "mode must be one of interleaved, monolingual, mixed, got 'both'"),
        ({"packing": "first_fit"}, "packing must be one of"),
        ({"separator": "sep"}, "separator must be one of"),
        ({"mode": "monolingual"}, "language is for mode 'monolingual'"),
        ({"language": "en"}, "language is for mode 'monolingual'"),
        ({"mode": "monolingual", "language": "de"}, "'de' is not one of en, fr"),
        ({"weights": [1]}, "got 1 weights for 2 languages"),
        ({"max_length": 2}, r"must hold BOS, one token and EOS \(3\), got 2"),
        ({"max_length": 1, "prepend_bos": False}, r"must hold one token and EOS \(2\), got 1"),
        ({"switch_every": 0}, "switching every 0 sentences"),
        ({"switch_every": "page"}, "expected 1, a larger whole number or 'story'"),
        ({"switch_probability": 1.5}, "lies between 0 and 1"),
        ({"switch_every": "story", "switch_probability": 0.5}, "never switches"),
        ({"start_language": "de"}, "'de' is not one of en, fr"),
        ({"mode": "mixed", "switch_every": 2}, "are for mode 'interleaved', got 'mixed'"),
        ({"return_flash_attn_kwargs": True, "isolate": False}, "needs isolate=True"),
        ({"schedule": {1: {"packing": "best_fit"}}}, "a schedule is {epoch: settings}"),
        ({"schedule": {-1: {"mode": "mixed"}}}, "a schedule is {epoch: settings}"),
        ({"schedule": {1: {"mode": "monolingual"}}}, "language is for mode 'monolingual'"),
        ({"num_units": None}, "give num_units, or merges"),
        ({"merges": merges()}, "num_units is 20 but the merges were learned on 4"),
        ({"merges": merges(), "num_units": 4, "deduplicate": True}, "learned with deduplicate=False"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        collator(**settings)


# --- checkpoints --------------------------------------------------------------------------------------------


def checkpoint(folder, *, learned=None, **settings):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if learned is not None:
        settings |= {"num_merges": learned.num_merges, "deduplicate": learned.deduplicate}
        learned.save(folder)
    text_config = {"model_type": "llama", "max_position_embeddings": 64, **sizes}
    ClsiForCausalLM(ClsiConfig(num_units=4, text_config=text_config, **settings)).save_pretrained(folder)
    return folder


def test_a_checkpoint_says_how_its_documents_look(tmp_path):
    folder = checkpoint(tmp_path, learned=merges(deduplicate=True), separator="eos", languages=["en", "de"])
    collate = InterleavingDataCollator.from_pretrained(folder, ["en"], pad_to_max_length=False)
    assert (collate.max_length, collate.separator, collate.deduplicate) == (64, "eos", True)
    row = {"story_id": "a", "units_en": [[3, 0, 0, 1, 2], [0, 1]]}
    assert collate([row])["input_ids"].tolist() == [[6, 3, 5, 7, 4, 7, 8, 8]]
    assert InterleavingDataCollator.from_pretrained(folder, max_length=9).languages == ("en", "de")


def test_a_checkpoint_of_plain_units_needs_no_tokenizer_file(tmp_path):
    collate = InterleavingDataCollator.from_pretrained(checkpoint(tmp_path), ["en"], max_length=4)
    assert collate([{"story_id": "a", "units_en": [[3, 3]]}])["input_ids"].tolist() == [[4, 3, 3, 5]]
    with pytest.raises(ValueError, match="does not say which languages"):
        InterleavingDataCollator.from_pretrained(tmp_path)


# --- data loaders and the Trainer ---------------------------------------------------------------------------


def batches(num_workers: int, epochs: int = 2) -> list[dict[str, torch.Tensor]]:
    collate = collator(max_length=48, return_counts=True)
    loader = torch.utils.data.DataLoader(
        made_up_rows(40), 8, collate_fn=collate, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    out = []
    for epoch in range(epochs):
        collate.set_epoch(epoch)  # reaches workers that are alive already
        out += list(loader)
    return out


def test_batches_are_the_same_with_and_without_workers():
    alone, workers = batches(0), batches(2)
    assert len(alone) == len(workers) == 10
    for a, b in zip(alone, workers, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(alone[0]["token_counts"], alone[5]["token_counts"])  # the second epoch draws anew


def tiny_model() -> ClsiForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ClsiForCausalLM(ClsiConfig(num_units=20, text_config={"model_type": "llama", **sizes}))


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_packed_rows_give_each_document_the_logits_it_has_alone(packing):
    model = tiny_model().eval()
    collate = collator(packing=packing, max_length=24)
    packed = collate(made_up_rows(12))
    with torch.no_grad():
        logits = model(**packed).logits
        checked = 0
        for row in range(packed["input_ids"].shape[0]):
            starts = torch.flatten((packed["position_ids"][row] == 0).nonzero()).tolist()
            for start, stop in zip(starts, [*starts[1:], 24], strict=True):
                document = packed["input_ids"][row, start:stop]
                if document[0] == PAD:
                    continue
                alone = model(input_ids=document[None]).logits[0]
                torch.testing.assert_close(logits[row, start:stop], alone, atol=1e-5, rtol=1e-4)
                checked += 1
    assert checked >= 12


class RecordingTrainer(Trainer):
    """Keeps every batch that it trains on."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.__dict__.setdefault("seen", []).append({name: tensor.clone() for name, tensor in inputs.items()})
        return super().training_step(model, inputs, num_items_in_batch)


def train(tmp_path, num_workers: int = 0, max_steps: int = -1, resume: bool = False) -> RecordingTrainer:
    collate = collator(max_length=24)
    trainer = RecordingTrainer(
        model=tiny_model(),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=3,
            max_steps=max_steps,
            per_device_train_batch_size=8,
            dataloader_num_workers=num_workers,
            remove_unused_columns=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=3,
            learning_rate=1e-3,
            seed=0,
        ),
        train_dataset=made_up_rows(16),
        data_collator=collate,
        callbacks=[InterleavingCallback(collate)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_plain_trainer_draws_anew_in_every_epoch_and_is_the_same_with_workers(tmp_path):
    alone = train(tmp_path / "alone")
    assert len(alone.seen) == 6  # 2 batches in each of 3 epochs
    collate = collator(max_length=200)
    by_epoch = []
    for epoch in range(3):
        # Shuffling is the Trainer's; what has to be seen in each epoch is that epoch's draw of every story.
        expected = sorted(ids(collate([{**row, "epoch": epoch}]))[0] for row in made_up_rows(16))
        seen = []
        for batch in alone.seen[2 * epoch : 2 * epoch + 2]:
            for row in ids(batch):
                text = " ".join(map(str, row)).split(f"{BOS} ")[1:]
                seen += [[BOS, *map(int, document.split())] for document in text]
        assert sorted(seen) == expected
        by_epoch.append(expected)
    assert by_epoch[0] != by_epoch[1] != by_epoch[2] != by_epoch[0]

    workers = train(tmp_path / "workers", num_workers=2)
    assert len(workers.seen) == 6
    for a, b in zip(alone.seen, workers.seen, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    for a, b in zip(alone.model.parameters(), workers.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resumed_training_sees_the_same_batches(tmp_path):
    undisturbed = train(tmp_path / "undisturbed").seen
    train(tmp_path / "resumed", max_steps=3)  # stops in the middle of the second epoch
    resumed = train(tmp_path / "resumed", resume=True).seen
    assert len(resumed) == 3
    for a, b in zip(undisturbed[3:], resumed, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


class StoriesWithoutLength(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(made_up_rows(4))


def test_epochs_of_an_iterable_dataset_are_counted(tmp_path):
    # Its length is unknown, so the Trainer's state.epoch lags behind: 0, 1/3 and 4/3 at the start of the
    # three epochs.
    collate = collator(max_length=200)
    seen = []

    class Recording(InterleavingCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            super().on_epoch_begin(args, state, control, **kwargs)
            seen.append((state.epoch, collate.epoch))

    Trainer(
        model=tiny_model(),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, remove_unused_columns=False,
            use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=StoriesWithoutLength(),
        data_collator=collate,
        callbacks=[Recording(collate)],
    ).train()  # fmt: skip
    assert [epoch for _, epoch in seen] == [0, 1, 2]
    assert [int(reported or 0) for reported, _ in seen] == [0, 0, 1]
