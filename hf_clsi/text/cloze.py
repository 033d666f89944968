"""Cloze items: two endings of a story, one right and one wrong, in symmetric pairs.

* *topic-cloze*: the wrong ending belongs to a story of another topic (TopicCloze, Hassid et al. 2023).
* *story-cloze*: the wrong ending has the story's own topic, character and object but contradicts how the
  story turned (StoryCloze, Mostafazadeh et al. 2016).

Items come in pairs that swap what is right: prompt A with endings A and B, prompt B with endings B and A. A
scorer that does not listen to the prompt prefers the same ending twice and so gets exactly half of them.
One item is the same item in every direction: only the languages of its prompt and endings change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .languages import REFERENCE_LANGUAGE
from .stories import Holdout, HoldoutRule, Split, StoryPlan, draw_plan, tell

Task = Literal["topiccloze", "storycloze"]
TASKS: tuple[Task, ...] = ("topiccloze", "storycloze")


@dataclass(frozen=True)
class ClozeItem:
    """One item: `prompt` tells the first four sentences, `correct` and `negative` each give an ending."""

    id: str
    pair_id: str
    task: Task
    holdout: HoldoutRule
    prompt: StoryPlan
    negative: StoryPlan

    def texts(self, prompt_language: str, ending_language: str) -> dict[str, list[str] | str]:
        """`prompt_text` (four sentences), `correct_text` and `negative_text` (one each) of one direction."""
        return {
            "prompt_text": tell(self.prompt, prompt_language)[:-1],
            "correct_text": tell(self.prompt, ending_language)[-1],
            "negative_text": tell(self.negative, ending_language)[-1],
        }


def directions(languages: list[str] | tuple[str, ...]) -> list[tuple[str, str]]:
    """(prompt language, ending language): within each language first, then across.

    >>> directions(["en", "fr"])
    [('en', 'en'), ('fr', 'fr'), ('en', 'fr'), ('fr', 'en')]
    """
    within = [(code, code) for code in languages]
    across = [(first, second) for first in languages for second in languages if first != second]
    return within + across


def direction_name(prompt_language: str, ending_language: str) -> str:
    """The dataset config of a direction.

    >>> direction_name("en", "en"), direction_name("en", "fr")
    ('en', 'en-fr')
    """
    return prompt_language if prompt_language == ending_language else f"{prompt_language}-{ending_language}"


def draw_items(
    task: Task,
    num_items: int,
    split: Split,
    rule: HoldoutRule,
    holdout: Holdout,
    seed: int,
    same_character: bool = True,
) -> list[ClozeItem]:
    """Symmetric pairs of cloze items, every topic equally often.

    Args:
        num_items: even; topics take turns, so a multiple of the number of topics keeps them exactly equal.
        split, rule: which held-out content the stories use (text/stories.py).
        same_character: in topic-cloze, both stories of a pair have the same main character, so that only the
            topic tells the endings apart; otherwise the character's name gives the answer away as well.

    Raises:
        ValueError: unknown task, or an odd number of items.
        RuntimeError: the held-out content gives no more new items.
    """
    if task not in TASKS:
        raise ValueError(f"unknown cloze task '{task}'; choose one of {TASKS}.")
    if num_items < 2 or num_items % 2:
        raise ValueError(f"num_items={num_items} must be even and positive: items come in symmetric pairs.")
    rng = np.random.default_rng([seed, 3, TASKS.index(task), split == "test", rule == "tuple"])
    draw_pair = _draw_topic_pair if task == "topiccloze" else _draw_story_pair
    items: list[ClozeItem] = []
    seen: set[frozenset[tuple[str, ...]]] = set()  # pairs by their texts, in either order
    while len(items) < num_items:
        for topics in (
            _topic_pairs(rng, holdout.topics) if task == "topiccloze" else _shuffled(rng, holdout.topics)
        ):
            if len(items) == num_items:
                break
            for _ in range(1000):
                pair = draw_pair(rng, holdout, split, rule, topics, same_character)
                if pair is not None:
                    texts = frozenset(tuple(tell(plan, REFERENCE_LANGUAGE)) for plan in pair)
                    if texts not in seen:
                        break
            else:
                raise RuntimeError(
                    f"no new {split} item of {task} ({rule}) found for {topics} after {len(items)} items; "
                    "ask for fewer, hold out more, or add words to text/languages."
                )
            seen.add(texts)
            pair_id = f"{split}-{rule}-{task}-{len(items) // 2:05d}"
            for suffix, prompt, negative in (("a", *pair), ("b", *reversed(pair))):
                items.append(ClozeItem(f"{pair_id}{suffix}", pair_id, task, rule, prompt, negative))
    return items


def _shuffled(rng: np.random.Generator, topics: list[str]) -> list[str]:
    return [topics[i] for i in rng.permutation(len(topics))]


def _topic_pairs(rng: np.random.Generator, topics: list[str]) -> list[tuple[str, str]]:
    """All topics once, in random pairs (the first of an odd number comes twice)."""
    order = _shuffled(rng, topics)
    if len(order) % 2:
        order.append(order[0])
    return list(zip(order[::2], order[1::2], strict=True))


def _draw_topic_pair(rng, holdout, split, rule, topics, same_character):
    """Two stories of different topics that turn out alike; None if the draw found no common character."""
    success = bool(rng.integers(2))
    first = draw_plan(rng, holdout, split, rule, topic=topics[0], success=success)
    if first is None:
        return None
    character = first.character if same_character else None
    second = draw_plan(rng, holdout, split, rule, topic=topics[1], character=character, success=success)
    return None if second is None else (first, second)


def _draw_story_pair(rng, holdout, split, rule, topic, same_character):
    """One story in two versions that differ only in how they turn and end."""
    happy = draw_plan(rng, holdout, split, rule, topic=topic, success=True)
    sad = draw_plan(rng, holdout, split, rule, topic=topic, success=False)
    if happy is None or sad is None:
        return None
    return happy, replace(happy, success=False, turn=sad.turn, turn_frame=sad.turn_frame, ending=sad.ending)
