"""Cloze items: symmetric pairs, wrong endings that are wrong for the right reason, ids across directions."""

from collections import Counter
from dataclasses import fields
from itertools import cycle

import pytest

from hf_clsi.text import cloze
from hf_clsi.text.cloze import TASKS, direction_name, directions, draw_items
from hf_clsi.text.stories import Holdout, draw_stories, tell

HOLDOUT = Holdout(seed=3)
TOLD_BY_THE_TURN = {"success", "turn", "turn_frame", "ending"}


def draw(task, rule="strict", num_items=240, split="test", seed=7, **kwargs):
    return draw_items(task, num_items, split, rule, HOLDOUT, seed, **kwargs)


@pytest.fixture(
    scope="module", params=[(task, rule) for task in TASKS for rule in ("strict", "tuple")], ids=str
)
def items(request):
    return draw(*request.param)


def test_an_item_in_words():
    item = draw("topiccloze", num_items=2)[0]
    texts = item.texts("en", "fr")
    assert texts["prompt_text"] == tell(item.prompt, "en")[:4]
    assert texts["correct_text"] == tell(item.prompt, "fr")[4]
    assert texts["negative_text"] == tell(item.negative, "fr")[4]


def test_pairs_are_symmetric(items):
    """Prompt A with endings A, B; prompt B with endings B, A: ignoring the prompt gets half of them right."""
    for first, second in zip(items[::2], items[1::2], strict=True):
        assert first.pair_id == second.pair_id
        assert (first.id, second.id) == (f"{first.pair_id}a", f"{first.pair_id}b")
        assert (second.prompt, second.negative) == (first.negative, first.prompt)


def test_ids_are_unique_over_all_tasks_rules_and_splits():
    ids = [
        item.id
        for task in TASKS
        for rule in ("strict", "tuple")
        for split in ("dev", "test")
        for item in draw(task, rule, 48, split)
    ]
    assert len(set(ids)) == len(ids) == 8 * 48


def test_one_id_is_the_same_item_in_every_direction(items):
    """Only the languages change: texts of one language are equal whatever the other part speaks."""
    for item in items[:20]:
        told = {direction: item.texts(*direction) for direction in directions(["en", "fr"])}
        assert told["en", "en"]["prompt_text"] == told["en", "fr"]["prompt_text"]
        assert told["fr", "fr"]["prompt_text"] == told["fr", "en"]["prompt_text"]
        for key in ("correct_text", "negative_text"):
            assert told["en", "en"][key] == told["fr", "en"][key]
            assert told["fr", "fr"][key] == told["en", "fr"][key]


def test_every_topic_comes_equally_often(items):
    assert Counter(item.prompt.topic for item in items) == dict.fromkeys(HOLDOUT.topics, 10)
    assert Counter(item.negative.topic for item in items) == dict.fromkeys(HOLDOUT.topics, 10)


def test_topiccloze_endings_are_of_another_topic():
    for item in draw("topiccloze"):
        assert item.prompt.topic != item.negative.topic
        # Nothing but the topic's object (and action) tells which ending is right.
        assert item.prompt.character == item.negative.character
        assert item.prompt.success == item.negative.success


def test_topiccloze_with_another_character():
    items = draw("topiccloze", same_character=False)
    assert sum(item.prompt.character != item.negative.character for item in items) > 200


def test_storycloze_endings_contradict_how_the_story_turned():
    for item in draw("storycloze"):
        changed = {
            field.name
            for field in fields(item.prompt)
            if getattr(item.prompt, field.name) != getattr(item.negative, field.name)
        }
        assert "success" in changed
        assert changed <= TOLD_BY_THE_TURN
    happy, sad = draw("storycloze", num_items=2)
    assert (happy.prompt.success, sad.prompt.success) == (True, False)


def test_storycloze_stories_agree_until_the_turn():
    for item in draw("storycloze"):
        assert tell(item.prompt, "fr")[:3] == tell(item.negative, "fr")[:3]
        assert tell(item.prompt, "fr")[3] != tell(item.negative, "fr")[3]


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_both_endings_differ(items, code):
    for item in items:
        texts = item.texts(code, code)
        assert texts["correct_text"] != texts["negative_text"]


@pytest.mark.parametrize("code", ["en", "fr", "de"])
def test_no_item_comes_twice(items, code):
    asked = [
        (*item.texts(code, code)["prompt_text"], item.texts(code, code)["negative_text"]) for item in items
    ]
    assert len(set(asked)) == len(asked)


def test_a_pair_in_the_other_order_is_the_same_pair(monkeypatch):
    happy, sad = (item.prompt for item in draw("storycloze", num_items=2))
    pairs = cycle([(happy, sad), (sad, happy)])
    monkeypatch.setattr(cloze, "_draw_story_pair", lambda *arguments: next(pairs))
    with pytest.raises(RuntimeError, match=r"no new test item of storycloze .* after 2 items"):
        draw("storycloze", num_items=4)


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("task", TASKS)
def test_both_endings_are_held_out(task, split):
    trained = list(draw_stories(4000, "train", HOLDOUT, 1))
    pairs = {plan.pair for plan in trained} | {(plan.topic, plan.object, plan.friend) for plan in trained}
    contents = {plan.content for plan in trained}
    for item in draw(task, "strict", split=split):
        assert item.prompt.pair not in pairs
        assert item.negative.pair not in pairs
        assert HOLDOUT.split_of_pair(item.prompt.pair) == HOLDOUT.split_of_pair(item.negative.pair) == split
    for item in draw(task, "tuple", split=split):
        assert item.prompt.content not in contents
        assert item.negative.content not in contents
        assert HOLDOUT.split_of_pair(item.prompt.pair) == HOLDOUT.split_of_pair(item.negative.pair) == "train"


def test_the_seed_decides(items):
    task, rule = items[0].task, items[0].holdout
    assert draw(task, rule) == items
    assert draw(task, rule, seed=8) != items


def test_directions():
    assert directions(("en", "fr", "de"))[:4] == [("en", "en"), ("fr", "fr"), ("de", "de"), ("en", "fr")]
    assert len(set(directions(("en", "fr", "de")))) == 9


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="unknown cloze task 'wordcloze'"):
        draw("wordcloze")
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"num_items={number} must be even and positive"):
            draw("storycloze", num_items=number)
    nothing_held_out = Holdout(0, test_characters=0)
    with pytest.raises(RuntimeError, match=r"no new test item of storycloze \(strict\).*after 0 items"):
        draw_items("storycloze", 2, "test", "strict", nothing_held_out, 0)


def test_a_direction_is_named_by_its_language_or_by_both():
    assert [direction_name(*pair) for pair in directions(["en", "fr"])] == ["en", "fr", "en-fr", "fr-en"]
