"""Plans and ledgers: budgets to the token, and the plan's draw is the collator's."""

import numpy as np
import pytest

from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.batches.interleave import interleave_story
from hf_clsi.batches.stories import NO_LIMIT
from hf_clsi.training.budget import Ledger, StoryLengths, _batch_ends, matched, plan_stage, stage_budgets
from hf_clsi.training.recipes import (
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    StageSettings,
    TrainingPreset,
    recipe,
)
from hf_clsi.training.run import TrainingStories
from hf_clsi.training.stories import listed_table

LANGUAGES = ("en", "fr")
MONOLINGUAL = StageSettings("en", "monolingual", {"en": 1})
MIXED = StageSettings("mixed", "mixed", {"en": 3, "fr": 1})
ALTERNATING = StageSettings("turns", "alternating", {"en": 1, "fr": 1})
INTERLEAVED = StageSettings("both", "interleaved", {"*": 1})
UNALIGNED = StageSettings("control", "interleaved-unaligned", {"*": 1})


def stories(count=12, sentences=5, languages=LANGUAGES, seed=0):
    """`count` stories; a sentence's tokens are its language's, 1 to 6 of them. Units 0-9 are the first
    language's, 10-19 the second's and so on."""
    random = np.random.default_rng(seed)
    tokens = {
        code: [
            [random.integers(10 * i, 10 * i + 10, random.integers(1, 7)).astype(np.uint16) for _ in range(n)]
            for n in ([sentences] * count if isinstance(sentences, int) else sentences)
        ]
        for i, code in enumerate(languages)
    }
    return TrainingStories([f"story-{i}" for i in range(len(tokens[languages[0]]))], tokens, tokens)


def lengths_of(counts):
    """StoryLengths of stories given as {"en": [[3, 2], ...], ...}: tokens of every sentence."""
    sentences = {
        code: [[np.zeros(tokens, np.uint16) for tokens in story] for story in column]
        for code, column in counts.items()
    }
    return StoryLengths.of([f"story-{i}" for i in range(len(counts["en"]))], sentences)


def plan(settings, budgets, lengths, tokens_per_step=40, seed=0, languages=LANGUAGES):
    return plan_stage(settings, budgets, lengths, languages, tokens_per_step, seed)


def collated(stage, corpus, seed=0, languages=LANGUAGES, mode="interleaved"):
    """token_counts [B, L] of the collator over a stage, batch by batch."""
    collator = InterleavingDataCollator(
        languages, num_units=10 * len(languages), max_length=64, seed=seed, mode=mode, return_counts=True
    )
    table = listed_table(corpus.ids, corpus.tokens, corpus.units)
    return np.stack(
        [
            collator.collate(table, stage.documents(step))["token_counts"][:, 0].numpy()
            for step in range(stage.num_steps)
        ]
    )


# --- lengths of stories -------------------------------------------------------------------------------------


def test_lengths_of_stories():
    lengths = lengths_of({"en": [[3, 2], [1], [4, 4, 4]], "fr": [[5, 1], [2], [1, 2, 3]]})
    assert len(lengths) == 3
    assert lengths.offsets.tolist() == [0, 2, 3, 6]
    assert lengths.tokens["fr"].tolist() == [5, 1, 2, 1, 2, 3]
    assert lengths.per_story("en").tolist() == [5, 1, 12]
    assert lengths.per_story("fr").tolist() == [6, 2, 6]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"en": [], "fr": []}, "no training story"),
        ({"en": [[1], [1, 2]], "fr": [[1], [1]]}, "'story-1' has 2 sentences in en and 1 in fr"),
        ({"en": [[1], [1]], "fr": [[1]]}, "2 story ids but 1 stories in fr"),
        ({"en": [[1], []], "fr": [[1], []]}, "'story-1' has no sentence"),
        ({"en": [[1], [2, 3]], "fr": [[1], [2, 0]]}, "'story-1' has a sentence without tokens in fr"),
    ],
)
def test_stories_that_cannot_be_planned_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        lengths_of(counts)


# --- budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("settings", "budgets"),
    [
        (MONOLINGUAL, {"en": 1001}),
        (MIXED, {"en": 600, "fr": 217}),
        (ALTERNATING, {"en": 333, "fr": 500}),
        (INTERLEAVED, {"*": 777}),
        (UNALIGNED, {"*": 777}),
    ],
    ids=lambda value: value.mode if isinstance(value, StageSettings) else "",
)
def test_the_plan_is_what_the_collator_counts(settings, budgets, seed):
    """Per language: the draw, the partners and the cut documents are the same on both sides."""
    corpus = stories()
    stage = plan(settings, budgets, corpus.lengths(), seed=seed)
    counted = collated(stage, corpus, seed).sum(0)
    assert stage.tokens.tolist() == counted.tolist()
    assert stage.tokens.sum() == sum(budgets.values())
    if "*" not in budgets:
        assert dict(zip(LANGUAGES, stage.tokens.tolist(), strict=True)) == {"en": 0, "fr": 0, **budgets}
    else:
        assert (stage.tokens > 200).all()  # both languages, about half each
    assert stage.epoch.max() >= 2  # the draw of several epochs


def test_every_cut_of_a_drawn_document_is_counted_by_language():
    # The draw of story-0 in epoch 0 with seed 0 is en fr en en (see tests/batches/test_interleave.py).
    lengths = lengths_of({"en": [[3, 9, 2, 1]], "fr": [[9, 4, 9, 9]]})
    expected = [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (4, 4), (5, 4), (6, 4)]
    for budget, tokens in enumerate(expected, start=1):
        stage = plan(INTERLEAVED, {"*": budget}, lengths)
        assert tuple(stage.tokens) == tokens
        assert stage.max_tokens.tolist() == ([budget] if budget < 10 else [0])


def test_three_languages_are_drawn_and_cut_like_the_collators():
    languages = ("en", "fr", "de")
    corpus = stories(languages=languages)
    for settings in (INTERLEAVED, UNALIGNED):
        for budget in range(180, 200):
            stage = plan(settings, {"*": budget}, corpus.lengths(), seed=5, languages=languages)
            counted = collated(stage, corpus, 5, languages).sum(0)
            assert stage.tokens.tolist() == counted.tolist()
            assert stage.tokens.sum() == budget and (stage.tokens > 0).all()


def test_only_the_last_document_of_a_language_is_cut():
    corpus = stories()
    stage = plan(MIXED, {"en": 200, "fr": 101}, corpus.lengths())
    for language, budget in enumerate((200, 101)):
        mine = np.flatnonzero(stage.language == language)
        whole = corpus.lengths().per_story(LANGUAGES[language])[stage.story[mine]]
        assert (stage.max_tokens[mine[:-1]] == 0).all()
        left = budget - whole[:-1].sum()
        assert 0 < left <= whole[-1]
        assert stage.max_tokens[mine[-1]] == (left if left < whole[-1] else 0)


def test_a_budget_that_ends_with_a_document_cuts_none():
    lengths = lengths_of({"en": [[2, 3], [1, 4]]})
    for budget in (5, 10, 20):  # documents of 5 tokens: also just at the end of an epoch
        stage = plan(MONOLINGUAL, {"en": budget}, lengths, languages=("en",))
        assert stage.max_tokens.tolist() == [0] * (budget // 5)
        assert stage.tokens.tolist() == [budget]


def test_a_budget_smaller_than_one_document():
    stage = plan(ALTERNATING, {"en": 1, "fr": 3}, lengths_of({"en": [[5, 5]] * 3, "fr": [[5, 5]] * 3}))
    assert stage.tokens.tolist() == [1, 3]
    assert stage.max_tokens.tolist() == [1, 3]
    assert stage.language.tolist() == [0, 1]
    assert stage.batches.tolist() == [0, 1, 2]


def test_one_story_is_read_again_in_every_epoch():
    stage = plan(MONOLINGUAL, {"en": 25}, lengths_of({"en": [[4, 6]]}), languages=("en",))
    assert stage.story.tolist() == [0, 0, 0]
    assert stage.epoch.tolist() == [0, 1, 2]
    assert stage.max_tokens.tolist() == [0, 0, 5]


@pytest.mark.parametrize("settings", [MONOLINGUAL, INTERLEAVED, UNALIGNED], ids=lambda s: s.mode)
def test_every_epoch_holds_every_story_once_in_a_new_order(settings):
    stage = plan(settings, dict.fromkeys(settings.parts, 1000), stories(count=10).lengths())
    orders = [stage.story[stage.epoch == epoch].tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert (np.diff(stage.epoch) >= 0).all()


def test_languages_are_drawn_anew_in_every_epoch():
    corpus = stories()
    stage = plan(INTERLEAVED, {"*": 900}, corpus.lengths())
    draws = []
    for index in np.flatnonzero((stage.story == 3) & (stage.max_tokens == NO_LIMIT)).tolist():
        sentences = {code: corpus.tokens[code][3] for code in LANGUAGES}
        epoch = int(stage.epoch[index])
        draws.append(tuple(i for i, _ in interleave_story("story-3", sentences, seed=0, epoch=epoch)))
    assert len(draws) >= 4 and len(set(draws)) >= 3


def test_the_seed_and_the_stages_name_make_the_order():
    lengths = stories().lengths()
    other_name = StageSettings("english", "monolingual", {"en": 1})
    first, again, seed, name = (
        plan(settings, {"en": 300}, lengths, seed=seed).story.tolist()
        for settings, seed in ((MONOLINGUAL, 0), (MONOLINGUAL, 0), (MONOLINGUAL, 1), (other_name, 0))
    )
    assert first == again
    assert first != seed and first != name and seed != name


def test_a_longer_stage_of_the_same_name_begins_like_a_shorter_one():
    lengths = stories().lengths()
    short, long = (plan(MONOLINGUAL, {"en": budget}, lengths) for budget in (500, 900))
    assert long.story[: len(short.story)].tolist() == short.story.tolist()


# --- the unaligned control ----------------------------------------------------------------------------------


def test_unaligned_partners_are_other_stories_of_the_same_length_used_once():
    sizes = [5] * 6 + [3] * 4 + [2] * 2
    stage = plan(UNALIGNED, {"*": 900}, stories(sentences=sizes).lengths())
    partners = []
    for epoch in range(3):
        story, partner = stage.story[stage.epoch == epoch], stage.partner[stage.epoch == epoch]
        assert sorted(story) == sorted(partner) == list(range(12))
        assert (story != partner).all()
        assert [sizes[i] for i in story] == [sizes[i] for i in partner]
        partners.append(dict(zip(story.tolist(), partner.tolist(), strict=True)))
    assert partners[0] != partners[1] != partners[2]


def test_only_the_unaligned_stage_has_partners():
    for settings in (MONOLINGUAL, MIXED, ALTERNATING, INTERLEAVED):
        stage = plan(settings, dict.fromkeys(settings.parts, 200), stories().lengths())
        assert (stage.partner == -1).all()


def test_a_story_without_a_partner_is_refused():
    lengths = stories(sentences=[5, 5, 4]).lengths()
    with pytest.raises(ValueError, match="only one story has 4 sentences"):
        plan(UNALIGNED, {"*": 10}, lengths)
    assert plan(INTERLEAVED, {"*": 10}, lengths).tokens.sum() == 10


# --- batches and order --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "tokens_per_step", "expected"),
    [
        ([6, 6, 6, 6, 6], 10, [0, 2, 4, 5]),  # the second batch ends where 20 tokens are reached
        ([5, 5, 5, 5], 10, [0, 2, 4]),
        ([5, 5, 4], 10, [0, 3]),  # less than half a step is left: it goes with the last one
        ([5, 5, 6], 10, [0, 2, 3]),
        ([3], 10, [0, 1]),  # less than a step
        ([25, 2], 10, [0, 1, 2]),  # one document over two marks
        ([40], 10, [0, 1]),
        ([2, 30, 2, 2], 10, [0, 2, 4]),
    ],
)
def test_batches_end_where_the_steps_are_reached(tokens, tokens_per_step, expected):
    assert _batch_ends(np.array(tokens), tokens_per_step).tolist() == expected


def test_every_batch_is_a_step_within_one_document():
    corpus = stories(count=40)
    stage = plan(INTERLEAVED, {"*": 2000}, corpus.lengths(), tokens_per_step=100)
    assert stage.num_steps == 20
    sizes = collated(stage, corpus).sum(1)
    longest = 30  # five sentences of six tokens
    reached = np.cumsum(sizes)[:-1] - 100 * np.arange(1, 20)
    assert (reached >= 0).all() and (reached < longest).all()
    assert sizes.sum() == 2000


def test_a_mixed_stage_spreads_both_languages_and_keeps_their_orders():
    lengths = stories(count=30).lengths()
    stage = plan(MIXED, {"en": 1800, "fr": 600}, lengths)
    english, french = (np.flatnonzero(stage.language == language) for language in (0, 1))
    for mine, code, budget in ((english, "en", 1800), (french, "fr", 600)):
        alone = plan(StageSettings("mixed", "monolingual", {code: 1}), {code: budget}, lengths)
        assert stage.story[mine].tolist() == alone.story.tolist()
        assert stage.epoch[mine].tolist() == alone.epoch.tolist()
        assert stage.max_tokens[mine].tolist() == alone.max_tokens.tolist()
    # Every quarter of the stage holds about a quarter of the French documents, but in no fixed rhythm.
    quarters = np.histogram(french, bins=4, range=(0, len(stage.story)))[0]
    assert abs(quarters - len(french) / 4).max() <= 1.5
    assert len(set(np.diff(french))) > 1


@pytest.mark.parametrize("seed", range(5))
def test_noise_never_reorders_a_language(seed):
    """Also where one language has by far the most documents, and so the least distance between two."""
    lengths = lengths_of({"en": [[1]] * 500, "fr": [[1]] * 500})
    stage = plan(MIXED, {"en": 2000, "fr": 3}, lengths, seed=seed)
    alone = plan(StageSettings("mixed", "monolingual", {"en": 1}), {"en": 2000}, lengths, seed=seed)
    assert stage.story[stage.language == 0].tolist() == alone.story.tolist()


def test_an_alternating_stage_takes_turns_batch_by_batch():
    stage = plan(ALTERNATING, {"en": 400, "fr": 200}, stories().lengths(), tokens_per_step=40)
    languages = []
    for start, stop in zip(stage.batches[:-1], stage.batches[1:], strict=True):
        batch = set(stage.language[start:stop].tolist())
        assert len(batch) == 1
        languages += batch
    assert languages == [0, 1] * 5 + [0] * 5


def test_a_language_with_less_than_a_step_gets_one_batch():
    corpus = stories()
    stage = plan(ALTERNATING, {"en": 7, "fr": 90}, corpus.lengths(), tokens_per_step=40)
    assert collated(stage, corpus).tolist()[0] == [7, 0]
    assert stage.num_steps == 3 and stage.tokens.tolist() == [7, 90]


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "budgets", "message"),
    [
        (MONOLINGUAL, {"en": 0}, "stage 'en' has a budget of 0 tokens for 'en'"),
        (ALTERNATING, {"en": 5, "fr": -3}, "budget of -3 tokens for 'fr'.*already used it up"),
        (MONOLINGUAL, {"fr": 5}, r"parts for \['en'\], got budgets for \['fr'\]"),
        (ALTERNATING, {"en": 5}, r"parts for \['en', 'fr'\], got budgets for \['en'\]"),
        (INTERLEAVED, {"en": 5, "fr": 5}, r"parts for \['\*'\], got budgets"),
        (StageSettings("de", "monolingual", {"de": 1}), {"de": 5}, "the languages are en, fr"),
        (MONOLINGUAL, {"en": 10**9}, "would read its [0-9]+ tokens over 10000 times"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(settings, budgets, message):
    with pytest.raises(ValueError, match=message):
        plan(settings, budgets, stories().lengths())


# --- ledgers ------------------------------------------------------------------------------------------------


def filled_ledger():
    ledger = Ledger(LANGUAGES, {"en": 100, "fr": 400}, frame_rate_hz=12.5)
    ledger.open("en", "monolingual")
    ledger.add(np.array([[30, 75, 4], [0, 0, 0]]))
    ledger.step()
    ledger.open("both", "interleaved")
    ledger.add(np.array([[10, 25, 2], [20, 50, 3]]))
    ledger.add(np.array([[10, 25, 2], [30, 75, 3]]))
    ledger.step()
    return ledger


def test_ledger_adds_up_tokens_units_seconds_and_epochs():
    ledger = filled_ledger()
    assert (ledger.tokens(), ledger.tokens("en"), ledger.tokens("fr")) == (100, 50, 50)
    assert ledger.to_dict() == {
        "stages": [
            {
                "stage": "en",
                "mode": "monolingual",
                "steps": 1,
                "tokens": {"en": 30, "fr": 0},
                "units": {"en": 75, "fr": 0},
                "seconds": {"en": 6.0, "fr": 0.0},
                "epochs": {"en": 0.3, "fr": 0.0},
            },
            {
                "stage": "both",
                "mode": "interleaved",
                "steps": 1,
                "tokens": {"en": 20, "fr": 50},
                "units": {"en": 50, "fr": 125},
                "seconds": {"en": 4.0, "fr": 10.0},
                "epochs": {"en": 0.2, "fr": 0.125},
            },
        ],
        "total": {
            "steps": 2,
            "tokens": {"en": 50, "fr": 50},
            "units": {"en": 125, "fr": 125},
            "seconds": {"en": 10.0, "fr": 10.0},
            "epochs": {"en": 0.5, "fr": 0.125},
        },
    }


def test_the_entry_of_a_ledger_is_a_copy():
    ledger = filled_ledger()
    ledger.to_dict()["stages"][0]["tokens"]["en"] = 0
    assert ledger.tokens("en") == 50


def test_a_completing_stage_gets_what_is_missing():
    preset = TrainingPreset(400, ModelSettings({}), OptimizerSettings(), BatchSettings())
    settings = recipe("interleave-ft", preset)
    english, both, tuning = settings.stages
    ledger = filled_ledger()  # 50 and 50 so far
    assert stage_budgets(settings, english, ledger) == {"en": 200}
    assert stage_budgets(settings, both, ledger) == {"*": 80}
    assert stage_budgets(settings, tuning, ledger) == {"en": 300 - 50, "fr": 100 - 50}


def entry(english, french, units=1.0):
    tokens = {"en": english, "fr": french}
    return {"total": {"tokens": tokens, "units": {code: units * count for code, count in tokens.items()}}}


def test_matched_tells_equal_totals_from_equal_languages():
    ledgers = {
        "a": entry(75, 25),
        "equal": entry(75, 25, units=2.0),
        "swapped": entry(70, 30),
        "more": entry(75, 26),
        "english": entry(100, 0),
    }
    found = matched(ledgers, [("a", "equal"), ("a", "swapped"), ("a", "more"), ("a", "english")])
    assert found == [
        {
            "a": "a",
            "b": "equal",
            "total_equal": True,
            "languages_equal": True,
            "unit_ratio": {"en": 0.5, "fr": 0.5},
        },
        {
            "a": "a",
            "b": "swapped",
            "total_equal": True,
            "languages_equal": False,
            "unit_ratio": {"en": 1.0714, "fr": 0.8333},
        },
        {
            "a": "a",
            "b": "more",
            "total_equal": False,
            "languages_equal": False,
            "unit_ratio": {"en": 1.0, "fr": 0.9615},
        },
        {
            "a": "a",
            "b": "english",
            "total_equal": True,
            "languages_equal": False,
            "unit_ratio": {"en": 0.75},
        },
    ]


def test_matched_leaves_out_recipes_that_were_not_run():
    assert matched({"a": entry(1, 1)}, [("a", "b"), ("b", "a")]) == []
