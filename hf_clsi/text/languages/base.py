"""What a language must bring to the story grammar: words for every concept, and frames for every sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Noun:
    """A countable thing. `gender` and `elides` matter only to languages that have them."""

    singular: str
    gender: str = ""
    elides: bool = True


@dataclass(frozen=True)
class Verb:
    """A transitive action: its infinitive and its finished past (with its auxiliary, if any)."""

    infinitive: str
    past: str


@dataclass(frozen=True)
class Character:
    """Who a story is about. `name` carries its own article ("the rabbit"); `gender` is the language's own."""

    name: str
    gender: str


@dataclass(frozen=True)
class TopicWords:
    """The words of one topic. Entry i of every tuple means the same thing in every language.

    `problems`, `successes` and `setbacks` are whole past-tense clauses that name neither the character nor
    the object, so that nothing in them has to agree with either.
    """

    objects: tuple[Noun, ...]
    places: tuple[str, ...]
    actions: tuple[Verb, ...]
    problems: tuple[str, ...]
    successes: tuple[str, ...]
    setbacks: tuple[str, ...]


FRAME_TABLES = ("openings", "desires", "problems", "successes", "setbacks", "happy_endings", "sad_endings")


class Language(ABC):
    """One language of the story grammar.

    A subclass fills the tables below and says how its nouns, verbs and characters inflect. Frames are
    `str.format` templates; `|` marks where a slow reader pauses (commas do too). Every language may use `{C}`
    and `{F}` (main character and friend), `{time}`, `{place}`, `{problem}`, `{success}`, `{setback}`, and
    whatever its own `*_forms` methods return. Frame i of every table means the same in every language. The
    generator (text/stories.py) only handles indices, so a new language is a new file and one
    `register_language` call: nothing else changes.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    characters: ClassVar[dict[str, Character]]
    topics: ClassVar[dict[str, TopicWords]]
    times: ClassVar[tuple[str, ...]]
    openings: ClassVar[tuple[str, ...]]
    desires: ClassVar[tuple[str, ...]]
    problems: ClassVar[tuple[str, ...]]
    successes: ClassVar[tuple[str, ...]]
    setbacks: ClassVar[tuple[str, ...]]
    happy_endings: ClassVar[tuple[str, ...]]
    sad_endings: ClassVar[tuple[str, ...]]

    @abstractmethod
    def character_forms(self, character: Character) -> dict[str, str]:
        """Fields that agree with the main character (pronoun, endings of adjectives and participles)."""

    @abstractmethod
    def noun_forms(self, noun: Noun) -> dict[str, str]:
        """The object with its articles, and the endings that agree with it."""

    @abstractmethod
    def verb_forms(self, verb: Verb) -> dict[str, str]:
        """The action's forms."""

    def friend_forms(self, character: Character) -> dict[str, str]:
        """Fields that agree with the friend; none by default."""
        return {}

    def finish(self, sentence: str) -> str:
        """Last rules on the whole sentence (contractions, elision); none by default."""
        return sentence

    def phrases(self, frame: str, fields: dict[str, str]) -> list[str]:
        """Fill a frame, apply `finish`, capitalize, and split where a slow reader pauses: at `|` and commas.

        Joined with single spaces, the phrases are the sentence.
        """
        sentence = self.finish(frame.format_map(fields))
        sentence = sentence[0].upper() + sentence[1:]
        return [phrase.strip() for phrase in sentence.replace(", ", ",|").split("|")]
