"""The languages that the story grammar speaks, by ISO 639-1 code."""

from string import Formatter

from .base import FRAME_TABLES, Character, Language, Noun, TopicWords, Verb
from .english import English
from .french import French
from .german import German

# English is the reference: its tables define which topics, characters and frames exist.
REFERENCE_LANGUAGE = "en"
LANGUAGES: dict[str, Language] = {"en": English(), "fr": French(), "de": German()}


def register_language(language: Language) -> None:
    """Add a language to the grammar after checking that it says everything that English says.

    Raises:
        ValueError: a topic, character or frame is missing or extra, or a frame asks for a field that nothing
            fills; the message names the first eight.
    """
    problems = missing_words(language, LANGUAGES[REFERENCE_LANGUAGE]) or unknown_fields(language)
    if problems:
        raise ValueError(
            f"language '{language.code}' does not match '{REFERENCE_LANGUAGE}' in {len(problems)} place(s): "
            + "; ".join(problems[:8])
            + ". Every table needs the same entries in the same order."
        )
    LANGUAGES[language.code] = language


def missing_words(language: Language, reference: Language) -> list[str]:
    """Every place where the tables of `language` and `reference` differ in shape, as readable strings."""
    problems = []
    for table in ("characters", "topics"):
        ours, theirs = set(getattr(language, table)), set(getattr(reference, table))
        problems += [f"{table} lacks '{key}'" for key in sorted(theirs - ours)]
        problems += [f"{table} has unknown '{key}'" for key in sorted(ours - theirs)]
    for table in ("times", *FRAME_TABLES):
        got, expected = len(getattr(language, table)), len(getattr(reference, table))
        if got != expected:
            problems.append(f"{table} has {got} entries, expected {expected}")
    for key in sorted(set(language.topics) & set(reference.topics)):
        for field in TopicWords.__dataclass_fields__:
            got, expected = (
                len(getattr(language.topics[key], field)),
                len(getattr(reference.topics[key], field)),
            )
            if got != expected:
                problems.append(f"topic '{key}' has {got} {field}, expected {expected}")
    return problems


def unknown_fields(language: Language) -> list[str]:
    """Every frame field that neither the generator nor the language's own `*_forms` methods fill."""
    character, words = next(iter(language.characters.values())), next(iter(language.topics.values()))
    filled = {
        *("C", "F", "time", "place", "problem"),
        *language.character_forms(character),
        *language.friend_forms(character),
        *language.noun_forms(words.objects[0]),
        *language.verb_forms(words.actions[0]),
    }
    told_after = {
        "successes": "success",
        "happy_endings": "success",
        "setbacks": "setback",
        "sad_endings": "setback",
    }
    return [
        f"{table}[{number}] has unknown field {{{field}}}"
        for table in FRAME_TABLES
        for number, frame in enumerate(getattr(language, table))
        for _, field, _, _ in Formatter().parse(frame)
        if field is not None and field not in filled | {told_after.get(table)}
    ]


def language(code: str) -> Language:
    """The language of a code.

    Raises:
        ValueError: the code is not registered; the message lists those that are.
    """
    if code not in LANGUAGES:
        raise ValueError(
            f"the story grammar does not speak '{code}'. It speaks {sorted(LANGUAGES)}; add another with "
            "hf_clsi.text.languages.register_language (see CONTRIBUTING.md, 'Add a language')."
        )
    return LANGUAGES[code]


__all__ = [
    "LANGUAGES",
    "REFERENCE_LANGUAGE",
    "Character",
    "Language",
    "Noun",
    "TopicWords",
    "Verb",
    "language",
    "missing_words",
    "register_language",
    "unknown_fields",
]
