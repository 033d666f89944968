"""Bilingual story grammar: a seed becomes TinyStories-like stories, aligned sentence by sentence.

A story is first a *plan*: indices of a topic, a main character, a friend, an object, a place, an action and
of the frames that tell them. A language (text/languages/) turns a plan into five sentences:

    1 opening   One morning, the rabbit was in the garden.     Un matin, le lapin était dans le jardin.
    2 desire    He wanted to plant a rose.                      Il voulait planter une rose.
    3 problem   But the ground was too dry.                     Mais la terre était trop sèche.
    4 turn      Luckily, a soft rain fell.                      Heureusement, une pluie douce est tombée.
    5 ending    In the end, the rabbit planted the rose and …   À la fin, le lapin a planté la rose et …

The turn is a success or a setback and decides whether the ending is happy or sad. Plans know no language, so
all languages tell the same story, and a new language needs no change here.

Held-out content. `Holdout` deals every (character, object) pair to exactly one of train, dev and test, and
every (character, object, place, action) tuple of the training pairs likewise. Two rules follow:

* *strict*: the story's (character, object) pair never occurs in training, not even with a friend as
  character;
* *tuple*: the pair occurs in training, but never with this place and action.

Dealing is exact and balanced: every object keeps the same number of training characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from .digests import DigestSet, text_digest
from .languages import LANGUAGES, REFERENCE_LANGUAGE
from .languages import language as get_language

SENTENCES_PER_STORY = 5
Split = Literal["train", "dev", "test"]
HoldoutRule = Literal["strict", "tuple"]
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class StoryPlan:
    """What happens in a story, without a word of any language.

    `topic`, `character` and `friend` are names of the lexicon; every other field is an index into the topic's
    words or into a frame table of the language. `success` decides the turn and the ending.
    """

    topic: str
    character: str
    friend: str
    object: int
    place: int
    action: int
    time: int
    opening: int
    desire: int
    problem: int
    success: bool
    turn: int
    turn_frame: int
    ending: int

    @property
    def pair(self) -> tuple[str, int, str]:
        """(topic, object, character): what the strict rule keeps out of training."""
        return (self.topic, self.object, self.character)

    @property
    def content(self) -> tuple[str, int, str, int, int]:
        """(topic, object, character, place, action): what the tuple rule keeps out of training."""
        return (*self.pair, self.place, self.action)


def tell(plan: StoryPlan, language_code: str) -> list[str]:
    """The story's five sentences in one language.

    Raises:
        ValueError: the language is not registered (text/languages).
    """
    return [" ".join(phrases) for phrases in tell_phrases(plan, language_code)]


def tell_phrases(plan: StoryPlan, language_code: str) -> list[list[str]]:
    """As `tell`, each sentence as the phrases between which a slow reader pauses."""
    language = get_language(language_code)
    words = language.topics[plan.topic]
    character, friend = language.characters[plan.character], language.characters[plan.friend]
    fields = {
        "C": character.name,
        "F": friend.name,
        "time": language.times[plan.time],
        "place": words.places[plan.place],
        "problem": words.problems[plan.problem],
        **language.character_forms(character),
        **language.friend_forms(friend),
        **language.noun_forms(words.objects[plan.object]),
        **language.verb_forms(words.actions[plan.action]),
    }
    if plan.success:
        fields["success"] = words.successes[plan.turn]
        turn, ending = language.successes[plan.turn_frame], language.happy_endings[plan.ending]
    else:
        fields["setback"] = words.setbacks[plan.turn]
        turn, ending = language.setbacks[plan.turn_frame], language.sad_endings[plan.ending]
    frames = (
        language.openings[plan.opening],
        language.desires[plan.desire],
        language.problems[0],
        turn,
        ending,
    )
    return [language.phrases(frame, fields) for frame in frames]


class Holdout:
    """Deals (character, object) pairs and their (place, action) tuples to train, dev and test.

    Args:
        seed: decides which pairs and tuples are held out.
        dev_characters, test_characters: of every object's characters, how many are kept for dev and for test
            under the strict rule.
        dev_tuples, test_tuples: of every training pair's (place, action) combinations, how many are kept for
            dev and test under the tuple rule.

    Raises:
        ValueError: nothing would be left for training.
    """

    def __init__(
        self,
        seed: int,
        dev_characters: int = 3,
        test_characters: int = 4,
        dev_tuples: int = 1,
        test_tuples: int = 1,
    ):
        reference = LANGUAGES[REFERENCE_LANGUAGE]
        self.topics = sorted(reference.topics)
        self.characters = sorted(reference.characters)
        if dev_characters + test_characters > len(self.characters) - 2:
            raise ValueError(
                f"dev_characters={dev_characters} and test_characters={test_characters} leave an object "
                f"fewer than two of {len(self.characters)} characters for training, one of them "
                "the friend. Hold out fewer."
            )
        rng = np.random.default_rng([seed, 1])
        self._pairs: dict[tuple[str, int, str], Split] = {}
        self._tuples: dict[tuple[str, int, str, int, int], Split] = {}
        self._pairs_of: dict[tuple[Split, str], list[tuple[str, int, str]]] = {}
        for topic in self.topics:
            words = reference.topics[topic]
            combinations = [(p, a) for p in range(len(words.places)) for a in range(len(words.actions))]
            if dev_tuples + test_tuples >= len(combinations):
                raise ValueError(
                    f"dev_tuples={dev_tuples} and test_tuples={test_tuples} leave no training tuple: topic "
                    f"'{topic}' has {len(combinations)} (place, action) combinations. Hold out fewer."
                )
            for obj in range(len(words.objects)):
                dealt = _deal(rng, len(self.characters), dev_characters, test_characters)
                for character, split in zip(self.characters, dealt, strict=True):
                    pair = (topic, obj, character)
                    self._pairs[pair] = split
                    self._pairs_of.setdefault((split, topic), []).append(pair)
                    if split == "train":
                        splits = _deal(rng, len(combinations), dev_tuples, test_tuples)
                        for combination, tuple_split in zip(combinations, splits, strict=True):
                            self._tuples[(*pair, *combination)] = tuple_split

    def split_of_pair(self, pair: tuple[str, int, str]) -> Split:
        """Where a (topic, object, character) pair belongs."""
        return self._pairs[pair]

    def pairs(self, split: Split, topic: str, character: str | None = None) -> list[tuple[str, int, str]]:
        """All pairs of one topic in a split, of one character if given, in a fixed order."""
        pairs = self._pairs_of.get((split, topic), [])
        return [pair for pair in pairs if character is None or pair[2] == character]

    def combinations(
        self, split: Split, rule: HoldoutRule, pair: tuple[str, int, str]
    ) -> list[tuple[int, int]]:
        """The (place, action) combinations that a story of this split and rule may use with this pair."""
        words = LANGUAGES[REFERENCE_LANGUAGE].topics[pair[0]]
        every = [(p, a) for p in range(len(words.places)) for a in range(len(words.actions))]
        if rule == "strict" and split != "train":
            return every if self._pairs[pair] == split else []
        if self._pairs[pair] != "train":
            return []
        return [combination for combination in every if self._tuples[(*pair, *combination)] == split]


def _deal(rng: np.random.Generator, total: int, num_dev: int, num_test: int) -> list[Split]:
    """`total` labels, exactly `num_dev` of them "dev" and `num_test` "test", in random order."""
    labels: list[Split] = ["test"] * num_test + ["dev"] * num_dev + ["train"] * (total - num_dev - num_test)
    return [labels[i] for i in rng.permutation(total)]


def draw_plan(
    rng: np.random.Generator,
    holdout: Holdout,
    split: Split,
    rule: HoldoutRule = "strict",
    *,
    topic: str,
    character: str | None = None,
    success: bool | None = None,
) -> StoryPlan | None:
    """One random plan of a split, or None if the topic has no pair for this character in it.

    A friend is always one whose pair with the object is a training pair, so that a held-out pair is never
    heard in training, not even as friend and object.
    """
    pair_split: Split = split if rule == "strict" else "train"
    pairs = holdout.pairs(pair_split, topic, character)
    if not pairs:
        return None
    topic, obj, character = pairs[rng.integers(len(pairs))]
    combinations = holdout.combinations(split, rule, (topic, obj, character))
    if not combinations:  # none is held out; then none is of any pair, since they are dealt evenly
        return None
    place, action = combinations[rng.integers(len(combinations))]
    friends = [
        friend
        for friend in holdout.characters
        if friend != character and holdout.split_of_pair((topic, obj, friend)) == "train"
    ]
    reference = LANGUAGES[REFERENCE_LANGUAGE]
    words = reference.topics[topic]
    happy = bool(rng.integers(2)) if success is None else success
    turns = words.successes if happy else words.setbacks
    turn_frames = reference.successes if happy else reference.setbacks
    endings = reference.happy_endings if happy else reference.sad_endings

    def pick(options) -> int:
        return int(rng.integers(len(options)))

    return StoryPlan(
        topic=topic,
        character=character,
        friend=friends[pick(friends)],
        object=obj,
        place=place,
        action=action,
        time=pick(reference.times),
        opening=pick(reference.openings),
        desire=pick(reference.desires),
        problem=pick(words.problems),
        success=happy,
        turn=pick(turns),
        turn_frame=pick(turn_frames),
        ending=pick(endings),
    )


def draw_stories(
    num_stories: int, split: Split, holdout: Holdout, seed: int, rule: HoldoutRule = "strict"
) -> Iterator[StoryPlan]:
    """Random plans of one split that tell distinct stories, topics in turn.

    Args:
        num_stories: how many.
        split, rule: which content they may use (`Holdout`); the rule does not matter for training stories.
        seed: the same seed gives the same stories.

    Raises:
        RuntimeError: the grammar runs out of new stories (it holds over 10^7 training stories).
    """
    rng = np.random.default_rng([seed, 2, _SPLITS.index(split), rule == "tuple"])
    # Not the plans: those that differ only in what their frames do not tell (the friend who is not mentioned)
    # are the same story.
    seen = DigestSet()
    for number in range(num_stories):
        topic = holdout.topics[number % len(holdout.topics)]
        for _ in range(1000):
            plan = draw_plan(rng, holdout, split, rule, topic=topic)
            if plan is not None:
                story = "\n".join(tell(plan, REFERENCE_LANGUAGE))
                if seen.add(text_digest(story)):
                    break
        else:
            raise RuntimeError(
                f"no new {split} story of topic '{topic}' found after {number} stories; ask for fewer "
                "stories or add words to text/languages."
            )
        yield plan


def story_row(story_id: str, plan: StoryPlan, languages: list[str] | tuple[str, ...]) -> dict:
    """The text part of a story row: `story_id`, `topic`, `plan` and `text_<language>` for every language."""
    row = {"story_id": story_id, "topic": plan.topic, "plan": asdict(plan)}
    for code in languages:
        row[f"text_{code}"] = tell(plan, code)
    return row
