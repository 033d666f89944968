"""Steps of a recipe: the same from every source and for any number of processes, exact to the token, and
after any interruption those of an undisturbed run."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hf_clsi.batches.interleave import Switching, draw_document_languages, story_key
from hf_clsi.batches.stories import Documents
from hf_clsi.training.budget import plan_stage
from hf_clsi.training.feed import (
    PlannedFeed,
    StreamedFeed,
    _cuts,
    _empty_batch,
    _join_batches,
    plan_stages,
    stage_collators,
)
from hf_clsi.training.recipes import BatchSettings, DataSettings, ModelSettings, Recipe, StageSettings
from hf_clsi.training.stories import (
    DatasetStories,
    IterableStories,
    MappedStories,
    ParquetStories,
    StoryReader,
    open_stories,
    story_lengths,
)
from hf_clsi.units.merges import UnitMerges

# Every unit says where it stands: language, story and sentence are read back from a batch.
UNITS_A_STORY, STORIES = 16, 60
NUM_UNITS = 2 * UNITS_A_STORY * STORIES
EN = StageSettings("english", "monolingual", {"en": 20})
INTERLEAVED = StageSettings("interleaved", "interleaved", {"*": 30})
TURNS = StageSettings("turns", "alternating", {"en": 60, "fr": 40}, completes=True)
MIXED = StageSettings("mixed", "mixed", {"en": 30, "fr": 10})


def rows_of(first, count, languages=("en", "fr")):
    """Stories first, first + 1, ...: story i has 1 to 4 sentences, of 1 to 4 units of its own."""
    rows = []
    for story in range(first, first + count):
        random = np.random.default_rng(story)
        sizes = random.integers(1, 5, (random.integers(1, 5), 2))
        row = {"story_id": f"story-{story}"}
        for number, code in enumerate(("en", "fr")):
            if code in languages:
                base = (number * STORIES + story) * UNITS_A_STORY
                row[f"units_{code}"] = [
                    list(range(base + 4 * index, base + 4 * index + size))
                    for index, size in enumerate(sizes[:, number].tolist())
                ]
        rows.append(row)
    return rows


def write(path, shards, group=3):
    for index, rows in enumerate(shards):
        names = [name for name in rows[0] if name != "story_id"]
        table = pa.table(
            {
                "story_id": [row["story_id"] for row in rows],
                **{
                    name: pa.array([row[name] for row in rows], pa.list_(pa.list_(pa.uint16())))
                    for name in names
                },
            }
        )
        file = path / "units" / f"train-{index:05d}-of-{len(shards):05d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, row_group_size=group)
    files = "{split: train, path: units/train-*.parquet}"
    (path / "README.md").write_text(f"---\nconfigs:\n- config_name: units\n  data_files: [{files}]\n---\n")
    return path


SIZES = [14, 9, 17, 20]  # stories of the shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    starts = np.cumsum([0, *SIZES[:-1]]).tolist()
    shards = [rows_of(start, count) for start, count in zip(starts, SIZES, strict=True)]
    return write(tmp_path_factory.mktemp("corpus"), shards)


@pytest.fixture(scope="module")
def source(folder):
    return open_stories(folder, ["en", "fr"], num_units=NUM_UNITS, streaming=True)


@pytest.fixture(scope="module")
def mapped(source, tmp_path_factory):
    return MappedStories.build(source, tmp_path_factory.mktemp("cache"), progress=False)


def recipe_of(*stages, lanes=2, block=4, budget=3000, step=120, targets=None, **batch):
    return Recipe(
        name="test",
        languages=("en", "fr"),
        budget_tokens=budget,
        stages=stages or (EN, INTERLEAVED, TURNS),
        model=ModelSettings({"model_type": "llama"}),
        batch=BatchSettings(tokens_per_step=step, max_length=32, **batch),
        data=DataSettings("shards", lanes, block),
        seed=5,
        targets=targets,
    )


def collators_of(recipe, **options):
    return stage_collators(recipe, num_units=NUM_UNITS, return_languages=True, **options)


def streamed(recipe, source, rank=0, world_size=1, accumulation=None, **options):
    return StreamedFeed(recipe, source, collators_of(recipe, **options), rank, world_size, accumulation)


def plain(step):
    """A step in plain types, to be compared."""
    batches = [
        {name: value.tolist() if torch.is_tensor(value) else value for name, value in batch.items()}
        for batch in step.micro_batches
    ]
    return batches, step.stage, step.position


def counts_of(feed, position=None):
    """Tokens by stage and language, summed over all steps: {stage: [en, fr]}."""
    totals = {}
    for step in feed.steps(position):
        for batch in step.micro_batches:
            stage = totals.setdefault(step.stage, np.zeros(2, dtype=np.int64))
            stage += batch["token_counts"][:, 0].numpy()
    return {stage: total.tolist() for stage, total in totals.items()}


def documents_in(step):
    """The documents of a step's rows: lists of units, split where positions restart."""
    found = []
    for batch in step.micro_batches:
        for ids, positions in zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True):
            for token, position in zip(ids, positions, strict=True):
                if position == 0:
                    found.append([])
                found[-1].append(token)
    found = [[token for token in document if token < NUM_UNITS] for document in found]
    return [document for document in found if document]


def story_of(unit):
    """(language, story, sentence, place) of a unit."""
    return (
        unit // (UNITS_A_STORY * STORIES),
        unit // UNITS_A_STORY % STORIES,
        unit % UNITS_A_STORY // 4,
        unit % 4,
    )


# -- streamed ------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_steps(folder, source, mapped, tmp_path):
    from datasets import load_dataset

    recipe, reader = recipe_of(), StoryReader(["en", "fr"], num_units=NUM_UNITS)
    sources = [
        source,
        mapped,
        IterableStories(load_dataset(str(folder), "units", split="train", streaming=True), reader),
        DatasetStories(
            load_dataset(str(folder), "units", split="train", cache_dir=str(tmp_path)),
            reader,
            np.cumsum([0, *SIZES]),
        ),
    ]
    first, *others = [[plain(step) for step in streamed(recipe, each).steps()] for each in sources]
    assert len(first) == sum(recipe.expected_steps().values()) == 25
    for other in others:
        assert other == first


def test_two_processes_together_read_what_one_reads(source):
    recipe = recipe_of(lanes=4, targets={"en": 75, "fr": 75})
    one = list(streamed(recipe, source).steps())
    both = [list(streamed(recipe, source, rank, 2).steps()) for rank in range(2)]
    assert [len(steps) for steps in both] == [len(one)] * 2
    read = Counter()
    for step, *parts in zip(one, *both, strict=True):
        assert {part.stage for part in parts} == {step.stage}
        documents = sorted(documents_in(step))
        assert sorted(documents_in(parts[0]) + documents_in(parts[1])) == documents
        for name in ("token_counts", "switch_counts"):
            total = sum(batch[name] for part in parts for batch in part.micro_batches)
            assert total.tolist() == step.micro_batches[0][name].tolist()
        # Each lane packs by itself, so the rows are the same too, but for padding at their ends.
        rows = [
            sorted(
                [token for token in row if token != recipe_pad]
                for part in process
                for batch in part.micro_batches
                for row in batch["input_ids"].tolist()
            )
            for process in ([step], parts)
            for recipe_pad in [NUM_UNITS + 2]
        ]
        assert rows[0] == rows[1]
        read.update(tuple(document) for document in documents)
    assert len(read) > 60


def test_budgets_are_met_to_the_token(source):
    recipe = recipe_of(EN, INTERLEAVED, TURNS, MIXED, lanes=3, budget=3001, targets={"en": 75, "fr": 60})
    counts = counts_of(streamed(recipe, source))
    assert counts[0] == [recipe.tokens(20), 0] == [600, 0]
    assert sum(counts[1]) == recipe.tokens(30) == 900 and min(counts[1]) > 0
    targets = recipe.language_targets()
    assert [sum(counts[stage][i] for stage in range(3)) for i in range(2)] == [targets["en"], targets["fr"]]
    assert counts[3] == [recipe.tokens(30), recipe.tokens(10)]


def test_counts_are_those_of_the_batches(source):
    """Budgets are kept by what blocks say; here by what stands in the rows."""
    for step in streamed(recipe_of(), source).steps():
        for batch in step.micro_batches:
            languages = batch["languages"]
            found = [int((languages == index).sum()) for index in range(2)]
            assert found == batch["token_counts"][:, 0].tolist()
            is_unit = batch["input_ids"] < NUM_UNITS
            assert torch.equal(languages >= 0, is_unit)
            assert torch.equal(languages[is_unit], batch["input_ids"][is_unit] // (NUM_UNITS // 2))


def test_an_epoch_reads_every_story_once_and_the_next_in_another_order(source):
    tokens = sum(len(s) for row in rows_of(0, 60) for s in row["units_en"])
    stage = StageSettings("english", "monolingual", {"en": 100})
    # One shard a lane, which may hold more than its share of the corpus: so one lane.
    recipe = recipe_of(stage, lanes=1, budget=3 * tokens, step=tokens // 5)
    starts = [
        story_of(document[0])[1]
        for step in streamed(recipe, source, packing="concatenate", max_length=2048).steps()
        for document in sorted(documents_in(step), key=lambda d: 0)
        if story_of(document[0])[2:] == (0, 0)
    ]
    epochs = [starts[:60], starts[60:120], starts[120:180]]
    assert len(starts) == 180 and all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # Shards are read one after the other, each in blocks of 4 whose stories are permuted.
    borders = np.cumsum([0, *SIZES])
    shards = [np.searchsorted(borders, story, side="right") - 1 for story in epochs[0]]
    assert sum(a != b for a, b in pairwise(shards)) == 3
    within = [story - borders[shard] for story, shard in zip(epochs[0], shards, strict=True)]
    first = [place // 4 for place, shard in zip(within, shards, strict=True) if shard == 3]
    assert first == sorted(first) and within != sorted(within)


def test_interleaved_documents_are_the_draw_of_their_epoch(source):
    """Every sentence once, in order, in the language that the draw of (seed, epoch, id) gives."""
    switching, weights = Switching(every=2, probability=0.7, start="fr"), (2.0, 1.0)
    stage = StageSettings("i", "interleaved", {"*": 100}, switching=switching, weights=weights)
    recipe = recipe_of(stage, lanes=1, budget=2500)
    seen = Counter()
    for step in streamed(recipe, source, max_length=128).steps():
        for document in documents_in(step):
            story = story_of(document[0])[1]
            row = rows_of(story, 1)[0]
            count = len(row["units_en"])
            options = []
            for epoch in range(6):
                drawn = draw_document_languages(
                    recipe.seed, np.array([epoch]), np.array([story_key(row["story_id"])], dtype=np.uint64),
                    np.array([count]), recipe.languages, weights, switching,
                )  # fmt: skip
                pieces = [row[("units_en", "units_fr")[code]][i] for i, code in enumerate(drawn.tolist())]
                options.append([unit for piece in pieces for unit in piece])
            assert any(option[: len(document)] == document for option in options)
            seen[story] += 1
    assert len(seen) == 60 and set(seen.values()) <= set(range(2, 7))


def test_a_run_goes_on_exactly_from_every_position(mapped):
    recipe = recipe_of(EN, INTERLEAVED, MIXED, TURNS, targets={"en": 100, "fr": 70})
    steps = [plain(step) for step in streamed(recipe, mapped).steps()]
    assert {stage for _, stage, _ in steps} == {0, 1, 2, 3}
    for number, (_, _, position) in enumerate(steps):
        saved = json.loads(json.dumps(position))
        resumed = streamed(recipe, mapped).steps(saved)
        # The next three, and at some places all that follow.
        for expected in steps[number + 1 : None if number % 9 == 4 else number + 4]:
            assert plain(next(resumed)) == expected, number
        assert saved == position  # the caller's is left alone
    assert list(streamed(recipe, mapped).steps(steps[-1][2])) == []


def test_resuming_reads_nothing_before_the_current_block(source, monkeypatch):
    recipe = recipe_of(StageSettings("english", "monolingual", {"en": 100}), lanes=1, budget=400, step=40)
    asked = []
    blocks = ParquetStories.blocks

    def spy(self, shard, start=0, size=4096):
        asked.append((shard, start, size))
        yield from blocks(self, shard, start, size)

    monkeypatch.setattr(ParquetStories, "blocks", spy)
    positions = [step.position for step in streamed(recipe, source).steps()][:-1]
    states = [position["lanes"]["0"]["readings"]["en"] for position in positions]
    assert max(state["block"] for state in states) > 1
    for position, state in zip(positions, states, strict=True):
        asked.clear()
        next(streamed(recipe, source).steps(position))
        assert asked[0][1:] == (state["block"], 4) and len(asked) <= 2


def test_the_number_of_processes_may_change_between_steps(source):
    recipe = recipe_of(lanes=4, targets={"en": 75, "fr": 75})
    whole = list(streamed(recipe, source).steps())
    pair = [streamed(recipe, source, rank, 2).steps() for rank in range(2)]
    for _ in range(9):
        positions = [next(steps).position for steps in pair]
    with pytest.raises(ValueError, match="is that of lanes 0, 2, but process 0 of 1 reads lanes 0, 1"):
        next(streamed(recipe, source).steps(positions[0]))
    position = json.loads(json.dumps(StreamedFeed.join_positions(positions)))
    assert [plain(step) for step in streamed(recipe, source).steps(position)] == [
        plain(step) for step in whole[9:]
    ]
    four = [streamed(recipe, source, rank, 4).steps(position) for rank in range(4)]
    documents = [document for steps in four for document in documents_in(next(steps))]
    assert sorted(documents) == sorted(documents_in(whole[9]))
    with pytest.raises(ValueError, match="positions of different steps"):
        StreamedFeed.join_positions([positions[0], next(pair[1]).position])


def test_a_position_of_other_settings_is_refused(source):
    position = next(streamed(recipe_of(), source).steps()).position
    with pytest.raises(ValueError, match="written with num_lanes = 2, now it is 4"):
        next(streamed(recipe_of(lanes=4), source).steps(position))
    with pytest.raises(ValueError, match="written with num_lanes = None"):
        next(streamed(recipe_of(), source).steps({"step": 3}))


def test_mixed_stages_read_their_languages_evenly(source):
    recipe = recipe_of(MIXED, lanes=1, step=300)
    seen = np.zeros(2)
    for step in streamed(recipe, source).steps():
        seen += step.micro_batches[0]["token_counts"][:, 0].numpy()
        assert abs(seen[0] / 900 - seen[1] / 300) < 0.06
    assert seen.tolist() == [900, 300]


def test_alternating_stages_take_turns(source):
    recipe = recipe_of(StageSettings("turns", "alternating", {"en": 20, "fr": 12}), lanes=2)
    steps = [
        step.micro_batches[0]["token_counts"][:, 0].tolist() for step in streamed(recipe, source).steps()
    ]
    languages = ["en" if en else "fr" for en, fr in steps if not (en and fr)]
    assert languages == ["en", "fr", "en", "fr", "en", "fr", "en", "en"]


def test_steps_keep_to_their_marks(source):
    """Each ends within a document of its share of the budget, so that all are of nearly one size."""
    recipe = recipe_of(StageSettings("english", "monolingual", {"en": 100}), lanes=2, budget=2400)
    seen = 0
    for number, step in enumerate(streamed(recipe, source).steps(), 1):
        seen += int(step.micro_batches[0]["token_counts"][0, 0])
        assert 0 <= seen - 120 * number < 2 * 16
    assert number == 20 and seen == 2400


def test_micro_batches_are_shares_of_the_rows(mapped):
    source, recipe = mapped, recipe_of(EN, INTERLEAVED, lanes=4)
    whole = list(streamed(recipe, source).steps())
    parts = list(streamed(recipe, source, accumulation=3).steps())
    few = list(streamed(recipe_of(EN, INTERLEAVED, lanes=4, rows_per_forward=2), source).steps())
    for one, split, small in zip(whole, parts, few, strict=True):
        assert len(split.micro_batches) == 3
        assert {len(batch["input_ids"]) for batch in small.micro_batches} <= {1, 2}
        for other in (split, small):
            assert documents_in(other) == documents_in(one)
            counts = sum(batch["token_counts"] for batch in other.micro_batches)
            assert torch.equal(counts, one.micro_batches[0]["token_counts"])
    assert _cuts(2, 3, None) == [(0, 0), (0, 1), (1, 2)]
    assert _cuts(0, None, 4) == [(0, 0)] and _cuts(5, None, None) == [(0, 5)]


def test_rows_of_different_widths_are_joined_by_padding(source):
    recipe = recipe_of()
    collator = collators_of(recipe)[0]
    table = next(source.blocks(0))
    short, long = (
        collator.collate(table, Documents.whole(np.array(these), 0, 0)) for these in ([0], [0, 1, 2])
    )
    widths = [batch["input_ids"].shape[1] for batch in (short, long)]
    assert widths[0] < widths[1]
    joined = _join_batches([short, long], collator)
    wide = stage_collators(recipe, NUM_UNITS, return_languages=True, pad_to_max_length=True)[0]
    alone = wide.collate(table, Documents.whole(np.array([0]), 0, 0))
    for name in ("input_ids", "labels", "position_ids", "languages"):
        assert torch.equal(joined[name][:1], alone[name][:, : widths[1]])
        assert torch.equal(joined[name][1:], long[name])
    assert torch.equal(joined["token_counts"], short["token_counts"] + long["token_counts"])


def test_a_full_row_is_padded_from_position_0(source):
    collator = collators_of(recipe_of())[0]
    rows = {"labels": torch.tensor([[1] * 8]), "languages": torch.tensor([[0] * 8])}
    full = {"input_ids": torch.tensor([[5] * 8]), "position_ids": torch.arange(8)[None], **rows}
    open_ = {"input_ids": torch.tensor([[5] * 16]), "position_ids": torch.arange(16)[None]}
    open_ |= {name: value.repeat(1, 2) for name, value in rows.items()}
    joined = _join_batches([full, open_], collator)
    assert joined["position_ids"][0].tolist() == [*range(8), *range(8)]
    assert joined["input_ids"][0, 8:].tolist() == [collator.pad_token_id] * 8
    assert joined["labels"][0, 8:].tolist() == [-100] * 8 and joined["languages"][0, 8:].tolist() == [-1] * 8


def test_varlen_batches_of_lanes_are_joined_in_one_row(source):
    recipe = recipe_of(lanes=2)
    plain_steps = streamed(recipe, source).steps()
    for step, plain_step in zip(
        streamed(recipe, source, return_flash_attn_kwargs=True).steps(), plain_steps, strict=True
    ):
        batch, other = step.micro_batches[0], plain_step.micro_batches[0]
        used = other["input_ids"] != NUM_UNITS + 2
        for name in ("input_ids", "labels", "position_ids", "languages"):
            assert torch.equal(batch[name][0], other[name][used])
        starts = torch.nonzero(batch["position_ids"][0] == 0)[:, 0]
        ends = [*starts.tolist(), batch["input_ids"].shape[1]]
        assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == ends
        assert batch["cu_seq_lens_q"].dtype == torch.int32
        assert batch["max_length_q"] == batch["max_length_k"] == max(np.diff(ends))


@pytest.mark.parametrize("varlen", [False, True])
def test_a_process_without_rows_gets_padding(varlen):
    collator = collators_of(recipe_of(), return_flash_attn_kwargs=varlen)[0]
    batch = _empty_batch(collator)
    assert batch["input_ids"].tolist() == [[NUM_UNITS + 2] * 8]
    assert batch["labels"].tolist() == [[-100] * 8]
    assert batch["languages"].tolist() == [[-1] * 8]
    assert batch["token_counts"].tolist() == [[0] * 3] * 2 and batch["switch_counts"].tolist() == [0, 0]
    if varlen:
        assert batch["cu_seq_lens_q"].tolist() == [0, 8]


def test_stories_longer_than_a_step_are_refused_or_padded(source):
    """With one process it is known that the step is empty; of several, another may have rows."""
    recipe = recipe_of(StageSettings("english", "monolingual", {"en": 100}), lanes=2, budget=60, step=3)
    with pytest.raises(ValueError, match=r"has no document left: .*tokens_per_step / data\.lanes = 3 / 2"):
        list(streamed(recipe, source).steps())
    steps = list(streamed(recipe, source, 0, 2).steps())
    assert len(steps) == 20 and documents_in(steps[-1]) == []


def test_lanes_that_do_not_fit_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"data\.lanes is 3, which 2 processes cannot share equally"):
        streamed(recipe_of(lanes=3), source, 0, 2)
    with pytest.raises(ValueError, match=r"data\.lanes is 5, but the data have 4 shards"):
        streamed(recipe_of(lanes=5), source)
    with pytest.raises(ValueError, match="rank lies in 0"):
        streamed(recipe_of(), source, 2, 2)
    unaligned = StageSettings("control", "interleaved-unaligned", {"*": 20})
    with pytest.raises(ValueError, match=r"Set data\.order to 'global'"):
        streamed(recipe_of(unaligned), source)
    with pytest.raises(ValueError, match="has 1 tokens of 'en' for 2 lanes"):
        streamed(recipe_of(StageSettings("s", "monolingual", {"en": 0.1}), budget=600), source)
    english = write(tmp_path / "en", [rows_of(0, 4, ["en"]), rows_of(4, 4, ["en"])])
    feed = streamed(recipe_of(MIXED), open_stories(english, ["en", "fr"], streaming=True))
    with pytest.raises(ValueError, match="stage 'mixed': lane 0 has no story in fr"):
        next(feed.steps())


def test_budgets_far_beyond_the_corpus_are_refused(tmp_path):
    path = write(tmp_path, [rows_of(0, 1)])
    stage = StageSettings("s", "monolingual", {"en": 100})
    feed = streamed(
        recipe_of(stage, lanes=1, budget=10**9, step=10**9), open_stories(path, ["en", "fr"], streaming=True)
    )
    with pytest.raises(ValueError, match="over 10000 times"):
        next(feed.steps())


def test_a_lane_that_has_read_too_much_to_complete_is_refused(source):
    recipe = recipe_of(INTERLEAVED, TURNS, targets={"en": 10, "fr": 80})
    with pytest.raises(ValueError, match="stage 'turns' completes 150 tokens of 'en' in lane 0, which has"):
        list(streamed(recipe, source).steps())


def test_stages_read_the_shards_that_have_their_languages(tmp_path):
    """A corpus in English alone and one in both: an interleaved stage never opens the former."""
    english = write(tmp_path / "en", [rows_of(0, 8, ["en"]), rows_of(8, 8, ["en"])])
    both = write(tmp_path / "both", [rows_of(16, 8), rows_of(24, 8)])
    source = open_stories([english, both], ["en", "fr"], num_units=NUM_UNITS, streaming=True)
    found = {}
    for step in streamed(recipe_of(EN, INTERLEAVED, MIXED), source).steps():
        stories = {story_of(unit)[:2] for document in documents_in(step) for unit in document}
        found.setdefault(step.stage, set()).update(stories)
    assert found[0] == {(0, story) for story in range(32)}
    assert {story for _, story in found[1]} == set(range(16, 32))
    assert {story for language, story in found[2] if language} <= set(range(16, 32))
    assert min(story for language, story in found[2] if not language) < 16


def test_unmerged_stories_are_refused_where_the_model_reads_tokens(source, mapped):
    merges = UnitMerges(NUM_UNITS, [(0, 1)])
    recipe = recipe_of()
    with pytest.raises(ValueError, match="open them with its merges"):
        next(StreamedFeed(recipe, source, stage_collators(recipe, merges=merges)).steps())
    with pytest.raises(ValueError, match="open them with its merges"):
        PlannedFeed(recipe, mapped.table, stage_collators(recipe, merges=merges))


# -- planned -------------------------------------------------------------------------------------------------


def planned(recipe, mapped, rank=0, world_size=1, accumulation=None, **options):
    return PlannedFeed(recipe, mapped.table, collators_of(recipe, **options), rank, world_size, accumulation)


def test_planned_steps_are_those_of_the_plan(mapped):
    recipe = recipe_of(EN, INTERLEAVED, TURNS)
    feed = planned(recipe, mapped)
    lengths, places = story_lengths(mapped.table, ["en", "fr"], ["en", "fr"])
    assert places.tolist() == list(range(60))
    plan = plan_stage(EN, {"en": 600}, lengths, recipe.languages, 120, recipe.seed)
    assert feed.num_steps[0] == plan.num_steps == 5
    for number in range(plan.num_steps):
        stage, documents = feed.documents(number)
        assert stage == 0
        for name in ("story", "epoch", "language", "max_tokens", "partner"):
            values = getattr(documents, name)
            assert values.dtype == np.int64
            assert np.array_equal(values, getattr(plan.documents(number), name))
    counts = counts_of(feed)
    assert counts[0] == [600, 0] and sum(counts[1]) == 900
    assert [sum(stage[i] for stage in counts.values()) for i in range(2)] == [2250, 750]


def test_planned_processes_share_every_step(mapped):
    recipe = recipe_of()
    whole = list(planned(recipe, mapped).steps())
    parts = [list(planned(recipe, mapped, rank, 2, 2).steps()) for rank in range(2)]
    for step, *both in zip(whole, *parts, strict=True):
        assert [part.position for part in both] == [step.position] * 2
        assert documents_in(step) == documents_in(both[0]) + documents_in(both[1])
        counts = sum(batch["token_counts"] for part in both for batch in part.micro_batches)
        assert torch.equal(counts, step.micro_batches[0]["token_counts"])


def test_planned_runs_go_on_from_every_position(mapped):
    feed = planned(recipe_of(), mapped)
    steps = [plain(step) for step in feed.steps()]
    assert len(steps) == len(feed) == sum(feed.num_steps)
    for number, (_, _, position) in enumerate(steps):
        assert [plain(step) for step in feed.steps(position)] == steps[number + 1 :]
    for position in ({"step": len(feed) + 1}, {"stage": 0}):
        with pytest.raises(ValueError, match="of the order 'global'"):
            next(feed.steps(position))


def test_planned_stages_read_the_stories_that_have_their_languages(tmp_path):
    english = write(tmp_path / "en", [rows_of(0, 16, ["en"])])
    both = write(tmp_path / "both", [rows_of(16, 16)])
    mapped = open_stories([english, both], ["en", "fr"], cache_dir=tmp_path, progress=False)
    recipe = recipe_of(EN, INTERLEAVED, MIXED)
    plans = plan_stages(recipe, mapped.table)
    assert set(plans[0].story.tolist()) == set(range(32))
    assert set(plans[1].story.tolist()) == set(range(16, 32))
    assert set(plans[2].story[plans[2].language == 1].tolist()) <= set(range(16, 32))
    assert set(plans[2].story[plans[2].language == 0].tolist()) >= set(range(16))
    assert counts_of(planned(recipe, mapped))[2] == [900, 300]
    with pytest.raises(ValueError, match="none of the 16 stories is in en and fr"):
        alone = open_stories(english, ["en", "fr"], cache_dir=tmp_path, progress=False)
        planned(recipe, alone)


# -- in a data loader ----------------------------------------------------------------------------------------


class Steps(IterableDataset):
    def __init__(self, feed, position=None):
        self.feed, self.position = feed, position

    def __iter__(self):
        return self.feed.steps(self.position)


def loaded(feed, position, workers):
    return [plain(step) for step in DataLoader(Steps(feed, position), batch_size=None, num_workers=workers)]


def test_steps_come_through_worker_processes_as_they_are(source, mapped):
    recipe = recipe_of()
    steps = [plain(step) for step in streamed(recipe, source).steps()]
    assert loaded(streamed(recipe, source), steps[6][2], 1) == steps[7:]
    feed = planned(recipe, mapped)
    steps = [plain(step) for step in feed.steps()]
    assert loaded(feed, {"step": 3}, 2) == steps[3:]
    with pytest.raises(ValueError, match="the data loader has 2 workers"):
        loaded(streamed(recipe, source), None, 2)


def test_collators_are_checked(mapped):
    recipe = recipe_of()
    with pytest.raises(ValueError, match="has 3 stages, got 1 collators"):
        PlannedFeed(recipe, mapped.table, collators_of(recipe)[:1])
    collators = [*collators_of(recipe)[:1], *stage_collators(recipe, NUM_UNITS, seed=1)[1:]]
    with pytest.raises(ValueError, match=r"collator of stage 'interleaved' has .* seed 1, the recipe .* 5"):
        PlannedFeed(recipe, mapped.table, collators)
